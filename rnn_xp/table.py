"""Tables of numbers: reading CSV files, with errors that name the file, the line and the column."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnn_xp.files import read_utf8

HostArray = np.ndarray[Any, np.dtype[np.float64]]

DELIMITERS = (",", ";", "\t")
MISSING = ("", "na", "n/a", "nan", "null", "none", "?")
"""What stands for a missing number, in any case of letters."""


class TableError(ValueError):
    """A file is no usable table: one line with the file, the line and the reason."""


@dataclass(frozen=True)
class Table:
    """Named columns of text, all of one length.

    Attributes
    ----------
    source : str
        Where it is from, for errors.
    columns : dict of tuples of str
    lines : tuple of int
        The line of the source that each row ends on.
    """

    source: str
    columns: Mapping[str, tuple[str, ...]]
    lines: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.lines)

    def text(self, name: str) -> tuple[str, ...]:
        """Return a column as it stands in the source.

        Raises
        ------
        TableError
            If there is no such column.
        """
        if name not in self.columns:
            raise TableError(
                f"{self.source} has no column {name!r}: its columns are {', '.join(self.columns)}"
            )
        return self.columns[name]

    def numbers(self, name: str) -> HostArray:
        """Return a column as numbers (N,), float64; NaN where one is missing.

        Raises
        ------
        TableError
            If there is no such column, or a field is neither a finite number nor one of `MISSING`.
        """
        values = np.empty(len(self), dtype=np.float64)
        for k, field in enumerate(self.text(name)):
            number = as_number(field)
            if number is None:
                raise TableError(
                    f"{self.source}, line {self.lines[k]}: the column {name!r} has {field!r}, "
                    "expected a number"
                )
            values[k] = number
        return values


def as_number(field: str) -> float | None:
    """Return a field as a number, NaN for a missing one, None where it is neither."""
    field = field.strip()
    if field.lower() in MISSING:
        return math.nan
    try:
        number = float(field)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in field else None


def read_table(path: str | os.PathLike[str], *, header: bool | None = True) -> Table:
    """Read a CSV file in UTF-8; the delimiter is a comma, a semicolon or a tab.

    Parameters
    ----------
    path : path-like
    header : bool, optional
        Whether the first row holds the columns' names. None: it does if one of its fields is no
        number. Without a header the names are `0`, `1`, ….

    Raises
    ------
    TableError
        If the file is empty, not UTF-8, has no row of data or two columns of one name, or a row
        has more or fewer fields than the first one.
    OSError
        If it cannot be read.
    """
    return parse_table(read_utf8(path, TableError), os.fspath(path), header=header)


def parse_table(text: str, source: str, *, header: bool | None = True) -> Table:
    """Read a table from text; see `read_table`. `source` names it in errors."""
    first_line = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(DELIMITERS, key=first_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows, lines = [], []
    try:
        for row in reader:
            if row:
                rows.append([field.strip() for field in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise TableError(f"{source}, line {reader.line_num} is not CSV: {error}") from None
    if not rows:
        raise TableError(f"{source} is empty")
    width = len(rows[0])
    for row, line in zip(rows, lines, strict=True):
        if len(row) != width:
            raise TableError(
                f"{source}, line {line} has {len(row)} fields, but the first row has {width}"
            )
    if header is None:
        header = any(as_number(field) is None for field in rows[0])
    names = rows.pop(0) if header else [str(k) for k in range(width)]
    if header:
        lines.pop(0)
    for name in names:
        if names.count(name) > 1:
            raise TableError(f"{source} has {names.count(name)} columns called {name!r}")
    if not rows:
        raise TableError(f"{source} has a header, but no row of data")
    columns = {name: tuple(row[k] for row in rows) for k, name in enumerate(names)}
    return Table(source, columns, tuple(lines))
