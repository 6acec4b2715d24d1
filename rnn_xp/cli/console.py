"""What the commands share while they run: progress, logs, Ctrl-C, the file to write."""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import IO, Any

from rnn_xp.backend import Backend, select
from rnn_xp.checkpoint import Checkpoint, load
from rnn_xp.files import other_than_file

INTERRUPTED = 130


def load_model(options: argparse.Namespace) -> tuple[Backend, Checkpoint]:
    """Read `options.model` onto the backend that the options name."""
    backend = select(options.backend, options.device)
    checkpoint = load(
        options.model, backend=backend.name, device=options.device, dtype=options.dtype
    )
    return backend, checkpoint


def check_output(option: str, path: Path | None, force: bool, otherwise: str = "") -> None:
    """Raise, now rather than after an hour of training, if a file cannot be written.

    `option` is the one that names it. A file that is there is replaced only with `force`.
    """
    if path is None:
        return
    given = f"{option} {path}"
    found = other_than_file(path)
    if found:
        raise ValueError(f"{given} is {found}, expected a file to write")
    if path.exists() and not force:
        raise ValueError(
            f"{given} exists: {otherwise}replace it with --force, or give another {option}"
        )
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{given}: cannot write there: {error.strerror}") from error


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


@contextlib.contextmanager
def log_file(path: Path | None) -> Iterator[IO[str] | None]:
    """Open a log to append to; None for no path."""
    if path is None:
        yield None
        return
    with open(path, "a", encoding="utf-8") as file:
        yield file


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
            print(text, flush=True)
