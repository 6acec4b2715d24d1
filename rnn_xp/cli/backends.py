"""`backends`: which array libraries, and which compiled kernels, can be used here."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from rnn_xp.backend import Status, available
from rnn_xp.cli.options import add_command
from rnn_xp.engines import native


def add_backends(commands: Any) -> None:
    """Add `backends`."""
    add_command(commands, "backends", _backends, "show which array libraries can be used here")


def _backends(_: argparse.Namespace) -> int:
    print_backends(available().values())
    return 0


def print_backends(found: Iterable[Status]) -> None:
    """Print the table of backends, and which kernels there are for NumPy."""
    rows = [("name", "version", "device", "usable")]
    for status in found:
        usable = "yes" if status.usable else f"no: {status.reason}"
        rows.append((status.name, status.version or "-", status.device or "-", usable))
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    for row in rows:
        start = "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False))
        print(f"{start}  {row[3]}")
    print(f"compiled kernels for numpy: {kernels()}")


def kernels() -> str:
    """Return which compiled kernels are in use and on how many threads, or why none."""
    chosen = native.choose()
    if isinstance(chosen, str):
        return f"no: {chosen}"
    return f"{chosen.name}, {chosen.threads} thread{'s' * (chosen.threads > 1)}"
