"""Whole files: reading UTF-8 text and NumPy archives, and replacing a file or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np

from rnn_xp.errors import first_line


def read_utf8(path: str | os.PathLike[str], error: type[ValueError]) -> str:
    """Read a UTF-8 file as it is, without its byte order mark.

    Raises
    ------
    error
        If it is not UTF-8.
    OSError
        If it cannot be read.
    """
    try:
        return Path(path).read_bytes().decode().removeprefix("\ufeff")
    except UnicodeDecodeError as found:
        raise error(f"{path} is not UTF-8 text: byte {found.start} is no part of it") from None


def read_npz(
    path: str | os.PathLike[str], error: type[ValueError]
) -> dict[str, np.ndarray[Any, Any]]:
    """Read the arrays of a `.npz` file; nothing in it is unpickled.

    Raises
    ------
    error
        If it is no such file, is truncated, or holds Python objects.
    OSError
        If it cannot be read.
    """
    import zipfile  # with zlib and tempfile a tenth of the time that `import rnn_xp` takes
    import zlib

    with open(path, "rb") as file:  # NumPy leaves a file open that it cannot read
        if not zipfile.is_zipfile(file):
            raise error(f"{path} is no usable .npz file (no zip archive, or truncated)")
        file.seek(0)
        try:
            held = np.load(file, allow_pickle=False)
            arrays = {name: held[name] for name in held.files}
        except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as found:
            raise error(f"{path} is no usable .npz file ({first_line(found)})") from found
    # NumPy gives the bytes of a member that is no array.
    return {name: value for name, value in arrays.items() if isinstance(value, np.ndarray)}


def other_than_file(path: Path) -> str:
    """Return what stands at a path and is no regular file, such as `a folder`; else nothing."""
    if os.path.isdir(path):
        return "a folder"
    there = os.path.exists(path) and not os.path.isfile(path)
    return "a device, a pipe or a socket" if there else ""


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path` as a whole or not at all.

    It is written under another name in the same folder, flushed to the disk and renamed: a reader,
    or a crash, finds the old file or the new one, never a part.

    Raises
    ------
    OSError
        If it cannot be written, or is no regular file: the superuser could rename over a device.
    """
    found = other_than_file(path)
    if found:
        raise OSError(errno.EINVAL, f"is {found}, expected a file to write", str(path))
    try:
        _replace(path, data)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, data: bytes) -> None:
    import tempfile

    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
