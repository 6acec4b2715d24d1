"""A series and the windows on it: what a forecast made at one row sees, and what it has to tell.

A forecast has an origin, the last row that it may see. Nothing here reads a row past the origin,
other than the values to be forecast themselves.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from rnn_xp.table import Table, as_number

Numbers = np.ndarray[Any, np.dtype[np.float64]]
Rows = np.ndarray[Any, np.dtype[np.int64]]

_MONTH = re.compile(r"\d{4}-\d{2}")
MISSING = ("linear", "last", "mask")
"""What stands for a missing value: the line between its neighbours; the last value before it; the
last value, and one more channel a column with 1 where a value is there and 0 where it is not."""


class SeriesError(ValueError):
    """A series cannot be used: one line with the source, the column and the reason."""


@dataclass(frozen=True)
class Series:
    """A column to forecast and the columns that go with it, in the order of time.

    Attributes
    ----------
    source : str
        Where it is from, for errors.
    names : tuple of str
        The column to forecast, then the others.
    values : (N, C), float64
        NaN where one is missing; the first row has all of its values.
    times : tuple of str
        A label of each row; dates are written as 2001-12-29.
    dropped : int
        The rows of the source before the first one that has all of its values.
    """

    source: str
    names: tuple[str, ...]
    values: Numbers
    times: tuple[str, ...]
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.times)

    @property
    def missing(self) -> dict[str, int]:
        """How many values each column lacks."""
        counts = np.isnan(self.values).sum(axis=0)
        return {name: int(count) for name, count in zip(self.names, counts, strict=True)}


def series_of(
    table: Table, column: str, exog: Sequence[str] = (), *, time: str | None = None
) -> Series:
    """Take a series out of a table, whose rows must follow each other evenly in time.

    Parameters
    ----------
    table : Table
    column : str
        The one to forecast.
    exog : sequence of str
        Others, known up to the origin of a forecast.
    time : str, optional
        The column that labels the rows. None: the first column that is neither used nor all
        numbers; where there is none, the number of the row, from 0.

    Raises
    ------
    TableError
        If a column is missing or has text in place of a number.
    SeriesError
        If a column is named twice, has no value at all or always the same one, no row has a value
        in every column, or the times do not rise.
    """
    names = (column, *exog)
    for name in names:
        if names.count(name) > 1:
            role = "the column to forecast" if name == column else "named twice"
            raise SeriesError(f"{table.source}: the exogenous column {name!r} is {role}")
    values = np.stack([table.numbers(name) for name in names], axis=1)
    for name, one in zip(names, values.T, strict=True):
        present = one[~np.isnan(one)]
        if not len(present):
            raise SeriesError(f"{table.source}: all values of the column {name!r} are missing")
        if (present == present[0]).all():
            raise SeriesError(
                f"{table.source}: the column {name!r} is constant, it is {present[0]:g} in every "
                "row: there is nothing to learn"
            )
    whole = ~np.isnan(values).any(axis=1)
    if not whole.any():
        raise SeriesError(f"{table.source}: no row has a value in all of {', '.join(names)}")
    first = int(np.argmax(whole))
    return Series(table.source, names, values[first:], _times(table, names, time)[first:], first)


def _times(table: Table, used: Sequence[str], time: str | None) -> tuple[str, ...]:
    if time is None:
        labels = [
            name
            for name, fields in table.columns.items()
            if name not in used and any(as_number(field) is None for field in fields)
        ]
        if not labels:
            return tuple(str(k) for k in range(len(table)))
        time = labels[0]
    fields = table.text(time)
    _check_rising(table.source, time, fields)
    dates = [_date(field) for field in fields]
    return fields if None in dates else tuple(str(date) for date in dates)


def _check_rising(source: str, column: str, fields: Sequence[str]) -> None:
    """Raise where times that can be compared do not rise: numbers, months, dates, with a time."""
    for read in (as_number, _moment):
        found = [read(field) for field in fields]
        if None in found:
            continue
        for k, (one, other) in enumerate(pairwise(found)):
            if not one < other:  # type: ignore[operator]
                raise SeriesError(
                    f"{source}: the times in the column {column!r} must rise from row to row, but "
                    f"{fields[k + 1]} stands after {fields[k]}"
                )
        return


def times_after(times: Sequence[str], count: int) -> tuple[str, ...]:
    """Return the labels of the next `count` rows.

    Numbers with one step between them go on, and so do dates (2001-12-29) that are evenly many
    days apart; after other labels stand `+1`, `+2`, ….
    """
    dates = [_date(time) for time in times]
    if len(times) > 1 and None not in dates:
        days = np.asarray([date.toordinal() for date in dates if date is not None])
        step = int(days[-1] - days[-2])
        last = int(days[-1]) + step * count  # no date follows 9999-12-31
        if step > 0 and (np.diff(days) == step).all() and last <= datetime.date.max.toordinal():
            after = (datetime.date.fromordinal(int(days[-1]) + step * k) for k in _counted(count))
            return tuple(str(date) for date in after)
    numbers = np.asarray([_number(time) for time in times])
    if len(times) > 1 and np.isfinite(numbers).all():
        each = float(numbers[-1] - numbers[-2])
        if each and np.allclose(np.diff(numbers), each, rtol=1e-6, atol=0.0):
            return tuple(f"{numbers[-1] + each * k:.12g}" for k in _counted(count))
    return tuple(f"+{k}" for k in _counted(count))


def _counted(count: int) -> range:
    return range(1, count + 1)


def _date(text: str) -> datetime.date | None:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None


def _moment(text: str) -> datetime.datetime | None:
    """Return the time of an ISO label, such as 2001-12, 2001-12-29 or 2001-12-29T16:30."""
    try:
        found = datetime.datetime.fromisoformat(f"{text}-01" if _MONTH.fullmatch(text) else text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def _number(text: str) -> float:
    number = as_number(text)
    return np.nan if number is None else number


class Filled:
    """A column without gaps, as it is known at each origin.

    Parameters
    ----------
    values : (N,)
        NaN where one is missing; the first one is there.
    missing : str
        One of `MISSING`.

    Raises
    ------
    ValueError
        If `missing` is none of them.
    """

    def __init__(self, values: Numbers, missing: str) -> None:
        if missing not in MISSING:
            raise ValueError(f"missing must be one of {', '.join(MISSING)}, got {missing!r}")
        rows = np.arange(len(values))
        self.known = ~np.isnan(values)
        self._last = np.maximum.accumulate(np.where(self.known, rows, 0))
        self._values = (
            np.interp(rows, rows[self.known], values[self.known])
            if missing == "linear"
            else values[self._last]
        )

    def seen(self, origins: Rows, rows: Rows) -> Numbers:
        """Return the values of `rows` (O, K), as they are known at `origins` (O,).

        After the last value at or before the origin there is only that one: a line to the next
        value would come from the future.
        """
        filled: Numbers = self._values[np.minimum(rows, self._last[origins][:, None])]
        return filled


def past_rows(origins: Rows, window: int) -> Rows:
    """Return the `window` rows that end at each origin, (O, window)."""
    rows: Rows = origins[:, None] + np.arange(1 - window, 1)
    return rows


def future_rows(origins: Rows, horizon: int) -> Rows:
    """Return the `horizon` rows after each origin, (O, K)."""
    rows: Rows = origins[:, None] + np.arange(1, horizon + 1)
    return rows


def seasonal_naive(filled: Filled, origins: Rows, horizon: int, season: int) -> Numbers:
    """Forecast the last known value of the same season: ŷ[o + k] = y[o + k - m ⌈k / m⌉].

    Parameters
    ----------
    filled : Filled
    origins : (O,)
        From `season` - 1 on.
    horizon : int
        K
    season : int
        m, the rows after which the series repeats itself; 1: the last value, the naive forecast.

    Returns
    -------
    (O, K), float64
    """
    ahead = np.arange(1, horizon + 1)
    back = season * -(-ahead // season)
    return filled.seen(origins, origins[:, None] + ahead - back)
