"""What can go wrong, in one line that names the file, the node and the attribute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rnn_xp.errors import first_line


class OnnxError(ValueError):
    """A file, model, node or input cannot be used: one line that names it and the reason."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Turn an error about a value into an `OnnxError` that begins with `what`."""
    try:
        yield
    except (ValueError, IndexError, TypeError) as error:
        raise OnnxError(f"{what}: {first_line(error)}") from error


def import_onnx() -> Any:
    """Return the package `onnx`, or say in one line what to install."""
    try:
        import onnx
        import onnx.backend.base
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise ImportError("onnx is not installed: pip install 'rnn-xp[onnx]'") from None
    return onnx
