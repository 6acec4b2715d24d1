"""What the commands share while they run: progress, logs, Ctrl-C, the file to write."""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import io
import json
import math
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import IO, Any

from rnn_xp.backend import Backend, select
from rnn_xp.captioner import Captioner
from rnn_xp.checkpoint import Checkpoint, CheckpointError, load
from rnn_xp.cli.cells import own_cells
from rnn_xp.errors import named_line
from rnn_xp.files import other_than_file

INTERRUPTED = 130


def load_model(options: argparse.Namespace) -> tuple[Backend, Checkpoint]:
    """Read `options.model` onto the backend that the options name."""
    backend = select(options.backend, options.device)
    where = {"backend": backend.name, "device": options.device, "dtype": options.dtype}
    checkpoint = load(options.model, **where, cells=own_cells(options))
    return backend, checkpoint


def check_output(
    options: argparse.Namespace, name: str = "out", *, force: bool = False, otherwise: str = ""
) -> None:
    """Raise, now rather than after an hour of training, if a file cannot be written.

    `name` is that of the option. A file that is there is replaced only with `force`, or --force;
    and never one that another option names, be it to read or to write.
    """
    path: Path | None = getattr(options, name)
    if path is None:
        return
    given = f"--{name} {path}"
    found = other_than_file(path)
    if found:
        raise ValueError(f"{given} is {found}, expected a file to write")
    for other, value in vars(options).items():
        for each in value if isinstance(value, list) else (value,):
            # FILE may be the name of built-in data, too.
            known = isinstance(each, Path) or (other == "file" and each and Path(each).exists())
            if other != name and known and _same(path, Path(each)):
                raise ValueError(f"{given} is also {_shown(other)}: give each a file of its own")
    if path.exists() and not (force or options.force):
        raise ValueError(
            f"{given} exists: {otherwise}replace it with --force, or give another --{name}"
        )
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{given}: cannot write there: {error.strerror}") from error


def check_log(options: argparse.Namespace) -> None:
    """Raise if `--log` cannot be appended to: it is a log, or is not there yet."""
    path: Path | None = options.log
    if path is not None and path.exists() and not (path.is_file() or path.is_dir()):
        return  # a pipe, say
    check_output(options, "log", force=True)
    if path is None or not path.exists() or not path.stat().st_size:
        return
    with open(path, "rb") as file:
        file.seek(-min(path.stat().st_size, 1 << 16), os.SEEK_END)
        last = file.read().rstrip(b"\n").rpartition(b"\n")[2]
    try:
        is_log = "train_loss" in json.loads(last)
    except (ValueError, TypeError, RecursionError):
        is_log = False
    if not is_log:
        raise ValueError(f"--log {path} is there, and its last line is no line of a log")


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve() or (
        one.exists() and other.exists() and one.samefile(other)
    )


def _shown(name: str) -> str:
    """Return an option as the help shows it."""
    return name.upper() if name in ("file", "files", "model") else f"--{name.replace('_', '-')}"


def print_table(rows: Sequence[Sequence[Any]]) -> None:
    """Print rows with their columns aligned to the right."""
    widths = [max(len(str(row[k])) for row in rows) for k in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{cell!s:>{width}}" for cell, width in zip(row, widths, strict=True)))


def as_csv(rows: Iterable[Sequence[Any]]) -> bytes:
    """Return rows as a CSV file."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def say(text: str) -> None:
    """Print a line at once; without a reader, that of a closed pipe, what is done goes on."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        to_nobody()
    except OSError as error:
        print(f"rnn-xp: the output: {error.strerror}: nothing more is printed", file=sys.stderr)
        to_nobody()


def to_nobody() -> None:
    """Let what is printed go nowhere: the reader of a pipe went away."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_outputs(path: Path, model: Any, count: int, what: str) -> None:
    """Raise if a model does not tell so many things apart as its description has."""
    chain = model.text if isinstance(model, Captioner) else model
    outputs = getattr(chain.layers[-1][1], "output_size", count)
    if outputs != count:
        raise CheckpointError(f"{path} has {count} {what}, but its model has {outputs} outputs")


@dataclass
class Log:
    """JSON lines that are appended to a file; where it cannot be written, the training goes on."""

    path: Path | None
    file: IO[bytes] | None

    def write(self, entry: Any) -> None:
        """Append the fields of a dataclass; what is not finite is null."""
        if self.file is None:
            return
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(entry).items()
        }
        line = json.dumps(values).encode() + b"\n"
        before = os.fstat(self.file.fileno()).st_size
        try:
            if self.file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            with contextlib.suppress(OSError):  # whole lines alone
                self.file.truncate(before)
            self.file = None
            print(f"rnn-xp: {self.path}: {error.strerror}: the log ends here", file=sys.stderr)


@contextlib.contextmanager
def log_file(path: Path | None) -> Iterator[Log]:
    """Open a log to append to; for no path one that writes nothing."""
    if path is None:
        yield Log(None, None)
        return
    whole = True
    if path.is_file() and path.stat().st_size:
        with open(path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            whole = file.read() == b"\n"
    with open(path, "ab", buffering=0) as file:
        if not whole:
            file.write(b"\n")
        yield Log(path, file)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say in one line that a model's description is damaged, whatever is missing from it or wrong.

    Raises
    ------
    CheckpointError
    """
    try:
        yield
    except (
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise CheckpointError(f"{path} has a damaged description: {named_line(error)}") from error


@contextlib.contextmanager
def interrupt() -> Iterator[list[int]]:
    """Yield a list that gets an entry on Ctrl-C; a second Ctrl-C interrupts at once."""
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        asked.append(number)
        signal.signal(number, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


class Bar:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, total: int, start: int = 0, unit: str = "step") -> None:
        self._bar: Any = None
        self._due = 0.0
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, unit=unit, dynamic_ncols=True)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, loss: Callable[[], float] | None = None) -> None:
        """Show one more step; the loss, which a GPU may have to be waited for, twice a second."""
        if self._bar is not None:
            if loss is not None and perf_counter() >= self._due:
                self._bar.set_postfix(loss=f"{loss():.3f}", refresh=False)
                self._due = perf_counter() + 0.5
            self._bar.update(1)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            say(text)
