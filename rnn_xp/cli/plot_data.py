"""What `plot` reads: logs of trainings, forecasts and confusion matrices."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rnn_xp.plotting import Band, Curve
from rnn_xp.table import Table, TableError, as_number, read_table

HostArray = np.ndarray[Any, Any]

_STEPS = ("step", "epoch")
_DATE = re.compile(r"\d{4}-\d\d(-\d\d([T ]\d\d:\d\d(:\d\d)?)?)?")


class LogError(ValueError):
    """A file is no log of a training: one line with the file, the line and the reason."""


class Log(NamedTuple):
    """A log of one or more trainings."""

    step: str
    """`step` of a text model, `epoch` of the others."""
    curve: Curve


def read_log(path: Path) -> Log:
    """Read the JSON lines that `--log` wrote.

    Where a later training was appended the steps start anew: a row of NaN parts the two.

    Raises
    ------
    LogError
        If the file is empty, or a line is not a report of a training, or of another kind than the
        first.
    OSError
        If it cannot be read.
    """
    rows: list[tuple[float, float, float]] = []
    kinds: list[str] = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        kind, row = _report(f"{path}, line {number}", line)
        if kinds and kind != kinds[0]:
            raise LogError(f"{path}, line {number} counts {kind}s, but the first one {kinds[0]}s")
        if rows and row[0] <= rows[-1][0]:
            rows.append((math.nan, math.nan, math.nan))
        rows.append(row)
        kinds.append(kind)
    if not rows:
        raise LogError(f"{path} is empty: expected the lines that train --log wrote")
    return Log(kinds[0], Curve(path.name, *map(list, zip(*rows, strict=True))))


def _report(where: str, line: bytes) -> tuple[str, tuple[float, float, float]]:
    try:
        report = json.loads(line)
    except ValueError as error:
        raise LogError(f"{where} is not JSON: {error}") from None
    found = [kind for kind in _STEPS if isinstance(report, dict) and kind in report]
    if not found:
        raise LogError(f"{where} is no report of a training: it has neither step nor epoch")
    step, train, validation = (
        _number(where, report, name) for name in (found[0], "train_loss", "validation_loss")
    )
    return found[0], (step, train, validation)


def _number(where: str, report: dict[str, Any], name: str) -> float:
    if name not in report:
        raise LogError(f"{where} has no {name}")
    value = report[name]
    if value is None and name in ("train_loss", "validation_loss"):  # null stands for NaN, too
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LogError(f"{where}: {name} is {value!r}, expected a number")
    # Of a loss that is not finite there is nothing to draw at that step.
    return float(value) if math.isfinite(value) else math.nan


class Forecast(NamedTuple):
    """What `plotting.forecast` draws."""

    time: HostArray
    time_label: str
    actual: HostArray
    predicted: HostArray
    bands: list[Band]


def read_forecast(path: Path) -> Forecast:
    """Read a forecast: columns time, actual, forecast, and the quantiles q0.1, q0.9, ….

    Raises
    ------
    TableError
        If it is no such table, or has no forecast.
    OSError
        If it cannot be read.
    """
    table = read_table(path)
    for name in ("time", "actual", "forecast"):
        table.text(name)
    levels = sorted((_level(table, name), name) for name in table.columns if name[0] == "q")
    predicted = table.numbers("forecast")
    if np.isnan(predicted).all():
        raise TableError(f"{path} has no number in the column 'forecast'")
    pairs = zip(levels, reversed(levels), strict=True)
    bands = [
        Band(
            f"{round(100 * (high - low), 6):g} % interval",
            table.numbers(low_name).tolist(),
            table.numbers(high_name).tolist(),
        )
        for (low, low_name), (high, high_name) in pairs
        if low < high
    ]
    time, label = _time(table.text("time"))
    return Forecast(time, label, table.numbers("actual"), predicted, bands)


def _level(table: Table, name: str) -> float:
    level = as_number(name[1:])
    if level is None or not 0.0 < level < 1.0:
        raise TableError(
            f"{table.source} has a column {name!r}: expected q and a number between 0 and 1"
        )
    return level


def _time(fields: tuple[str, ...]) -> tuple[HostArray, str]:
    """Return times as numbers or dates, or else the numbers of the rows; and the axis' label."""
    numbers = [as_number(field) for field in fields]
    if all(number is not None and not math.isnan(number) for number in numbers):
        return np.asarray(numbers, dtype=np.float64), "time"
    if all(_DATE.fullmatch(field) for field in fields):
        try:
            return np.asarray([np.datetime64(field, "s") for field in fields]), "time"
        except ValueError:  # a 13th month
            pass
    return np.arange(1, len(fields) + 1), "row"


def read_confusion(path: Path) -> tuple[HostArray, list[str]]:
    """Read a confusion matrix (K, K) and its K classes.

    The first column, `true`, has the true classes; the others, called after the predicted ones,
    have counts.

    Raises
    ------
    TableError
        If it is no such table.
    OSError
        If it cannot be read.
    """
    table = read_table(path)
    first, *classes = table.columns
    if first != "true" or not classes:
        raise TableError(
            f"{path} has the columns {', '.join(table.columns)}: expected true, and one for each "
            "predicted class"
        )
    rows = list(table.text("true"))
    if sorted(rows) != sorted(classes):
        raise TableError(
            f"{path} has the true classes {', '.join(rows)}, but the predicted classes "
            f"{', '.join(classes)}: expected the same"
        )
    matrix = np.stack([_counts(table, name) for name in classes], axis=1)
    return matrix[[rows.index(name) for name in classes]], classes


def _counts(table: Table, name: str) -> HostArray:
    values = table.numbers(name)
    for line, value in zip(table.lines, values, strict=True):
        if not (value >= 0.0 and value == round(value)):
            raise TableError(
                f"{table.source}, line {line}: the column {name!r} has {value:g}, expected a count"
            )
    return values.astype(np.int64)
