"""What a benchmark found: rows, the file that keeps them, ratios, means and growth."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rnn_xp.files import replace_file

from . import machine
from .cases import CELLS, DTYPES, NO_SHAPE, TABLES, TASKS, Case
from .peers import FASTEST, LIBRARIES, OURS

_FORMAT = 1


class BenchError(ValueError):
    """A benchmark cannot be made or read: one line that says why."""


@dataclass(frozen=True)
class Measured:
    """One library in one mode: seconds or bytes."""

    peer: str
    mode: str
    min: float
    median: float
    median_ratio: float
    """The median of the rounds' ratios to ours."""
    compile_seconds: float = 0.0


@dataclass(frozen=True)
class Settings:
    """How long to measure."""

    rounds: int = 15
    """At least so many in a row,"""
    seconds: float = 3.0
    """and at least so long."""
    wait: float = 60.0
    """So many seconds at most, in the whole run, for an idle machine."""


@dataclass(frozen=True)
class Row:
    """A case on a number of threads."""

    case: Case
    threads: int
    rounds: int
    others: float | None
    """The share of all CPUs that other processes used meanwhile; None where it is unknown."""
    measured: tuple[Measured, ...]
    absent: dict[str, str]
    """Why a library, or a mode of it, was not measured."""
    date: str | None = None
    """The day, `2026-12-31`; this and the next two are None where an older file has none."""
    build: str | None = None
    """Of this library: `build.build`."""
    settings: Settings | None = None
    """What was asked for; `rounds` is how many there were."""

    def best(self, peer: str) -> Measured | None:
        """Return a library in its fastest mode, None if it was not measured."""
        found = [m for m in self.measured if m.peer == peer]
        return min(found, key=lambda m: m.min, default=None)

    def tells(self, peer: str, mode: str) -> bool:
        """Tell whether a library was measured in a mode, or why it was not is said."""
        return (
            any((m.peer, m.mode) == (peer, mode) for m in self.measured)
            or peer in self.absent
            or f"{peer} {mode}" in self.absent
        )

    @property
    def ours(self) -> Measured:
        """What this library took."""
        found = self.best(OURS)
        assert found is not None
        return found

    @property
    def fastest(self) -> Measured | None:
        """Return the fastest of PyTorch, JAX and onnxruntime."""
        found = [m for m in map(self.best, FASTEST) if m is not None]
        return min(found, key=lambda m: m.min, default=None)

    def ratio(self, peer: Measured | None) -> float:
        """Return how many times as much as ours a library took; NaN for None."""
        return math.nan if peer is None else peer.min / self.ours.min

    @property
    def idle(self) -> bool | None:
        """Whether others left the machine alone; None where it is unknown."""
        return None if self.others is None else self.others < machine.IDLE


@dataclass
class Results:
    """Rows, and where they were measured."""

    machine: dict[str, str]
    versions: dict[str, str] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)
    """Of NumPy's matrix product: dtype and threads to operations a second."""
    rows: list[Row] = field(default_factory=list)

    def add_versions(self, versions: dict[str, str]) -> None:
        """Note versions; raise `BenchError` if other rows are of other ones."""
        for name, version in versions.items():
            if self.versions.setdefault(name, version) != version:
                raise BenchError(
                    f"the rows there are of {name} {self.versions[name]}, but this is {version}: "
                    "give another --json"
                )

    def find(self, case: Case, threads: int) -> Row | None:
        """Return a row, None if it is not there."""
        place = (case, threads)
        return next((row for row in self.rows if (row.case, row.threads) == place), None)

    def put(self, row: Row) -> None:
        """Add a row, in the place of the one that is there of the same case and threads."""
        old = self.find(row.case, row.threads)
        if old is None:
            self.rows.append(row)
        else:
            self.rows[self.rows.index(old)] = row


def peak_key(dtype: str, threads: int) -> str:
    """Return a key of `Results.peaks`."""
    return f"{dtype}, {threads}"


def save(results: Results, path: Path) -> None:
    """Write results as JSON, as a whole or not at all."""
    replace_file(path, (json.dumps({"format": _FORMAT, **asdict(results)}, indent=1)).encode())


def load(path: Path) -> Results:
    """Read what `save` wrote.

    Raises
    ------
    BenchError
        If it is something else.
    OSError
        If it cannot be read.
    """
    data = path.read_bytes()
    try:
        return _results(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise BenchError(f"{path} holds no results of benchmarks.beside ({error})") from error


Expected = tuple[Callable[[Any], bool], str]
"""Of a value of JSON: whether it is right, and what is."""


def _integer(least: int) -> Expected:
    return lambda v: type(v) is int and v >= least, f"an integer >= {least}"


def _number(right: Callable[[float], bool], what: str) -> Expected:
    return lambda v: type(v) in (int, float) and math.isfinite(v) and right(v), what


def _one_of(*names: str) -> Expected:
    return lambda v: v in names, f"one of {', '.join(name or 'nothing' for name in names)}"


def _named(inner: Expected) -> Expected:
    right, what = inner
    return (
        lambda v: isinstance(v, dict) and all(map(right, v.values())),
        f"an object, each value {what}",
    )


def _is_shape(value: Any) -> bool:
    sizes = value if isinstance(value, list) else ()
    return len(sizes) == 4 and all(type(size) is int and size >= 0 for size in sizes)


def _is_absence(value: Any) -> bool:
    return isinstance(value, dict) and all(
        name.partition(" ")[0] in LIBRARIES and isinstance(why, str) for name, why in value.items()
    )


def _like(pattern: str, what: str) -> Expected:
    return (
        lambda v: v is None or (isinstance(v, str) and bool(re.fullmatch(pattern, v))),
        f"null or {what}",
    )


_NO_NETWORK = ("import", "size")
_TEXT: Expected = (lambda v: isinstance(v, str), "a text")
_LIST: Expected = (lambda v: isinstance(v, list), "a list")
_OBJECT: Expected = (lambda v: isinstance(v, dict), "an object")
_FLAG: Expected = (lambda v: isinstance(v, bool), "true or false")
_ABOVE_0 = _number(lambda v: v > 0, "a number > 0")
_AT_LEAST_0 = _number(lambda v: v >= 0, "a number >= 0")
_FILE = {
    "format": (lambda v: v == _FORMAT, str(_FORMAT)),
    "machine": _named(_TEXT),
    "versions": _named(_TEXT),
    "peaks": _named(_ABOVE_0),
    "rows": _LIST,
}
_CASE = {
    "table": _one_of(*TABLES),
    "task": _one_of(*TASKS),
    "cell": _one_of(*CELLS, ""),
    "shape": (_is_shape, "four integers >= 0"),
    "dtype": _one_of(*DTYPES, ""),
    "layers": _integer(1),
    "bidirectional": _FLAG,
    "ragged": _FLAG,
}
_MEASURED = {
    "peer": _one_of(*LIBRARIES),
    "mode": _TEXT,
    "min": _ABOVE_0,
    "median": _ABOVE_0,
    "median_ratio": _ABOVE_0,
    "compile_seconds": _AT_LEAST_0,
}
_SETTINGS = {"rounds": _integer(1), "seconds": _ABOVE_0, "wait": _AT_LEAST_0}
_ROW = {
    "case": _OBJECT,
    "threads": _integer(1),
    "rounds": _integer(1),
    "others": (
        lambda v: v is None or (type(v) in (int, float) and 0 <= v <= 1),
        "null or a number from 0 to 1",
    ),
    "measured": _LIST,
    "absent": (_is_absence, "an object of libraries, each value a text"),
}
_SINCE: dict[str, Expected] = {  # files from before are without
    "date": _like(r"\d{4}-\d\d-\d\d", "a date as 2026-12-31"),
    "build": _like("[0-9a-f]{8}", "eight hex digits"),
    "settings": (lambda v: v is None or isinstance(v, dict), "null or an object"),
}


def _checked(where: str, read: Any, expected: Mapping[str, Expected]) -> dict[str, Any]:
    """Return an object that has what is expected, and nothing else."""
    if not isinstance(read, dict):
        raise ValueError(f"{where} is {reprlib.repr(read)}, expected an object")
    for name, (right, what) in expected.items():
        if name not in read:
            raise ValueError(f"{where} has no {name}")
        if not right(read[name]):
            raise ValueError(f"{where}: {name} is {reprlib.repr(read[name])}, expected {what}")
    for name in read:
        if name not in expected:
            raise ValueError(f"{where} has {name!r}, which is unknown here")
    return read


def _results(read: Any) -> Results:
    found = _checked("the file", read, _FILE)
    rows = [_row(f"row {k}", row) for k, row in enumerate(found.pop("rows"), 1)]
    del found["format"]
    return Results(**found, rows=rows)


def _row(where: str, read: Any) -> Row:
    if isinstance(read, dict):
        read = {**dict.fromkeys(_SINCE), **read}
    row = _checked(where, read, {**_ROW, **_SINCE})
    if row["settings"] is not None:
        row["settings"] = Settings(**_checked(f"{where}, settings", row["settings"], _SETTINGS))
    case = _checked(f"{where}, case", row["case"], _CASE)
    case["shape"] = tuple(case["shape"])
    table, task, cell, shape, dtype = (
        case[name] for name in ("table", "task", "cell", "shape", "dtype")
    )
    if table in _NO_NETWORK:
        fits = (task, cell, shape, dtype) == (table, "", NO_SHAPE, "")
    else:
        fits = bool(task not in _NO_NETWORK and cell and min(shape) >= 1 and dtype)
    if not fits:
        raise ValueError(f"{where}: task, cell, shape and dtype do not fit the table {table}")
    measured = [Measured(**_checked(f"{where}, measured", m, _MEASURED)) for m in row["measured"]]
    if not any(m.peer == OURS for m in measured):
        raise ValueError(f"{where} is without {OURS}")
    return Row(**{**row, "case": Case(**case), "measured": tuple(measured)})


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of those values that are numbers, NaN if there are none."""
    numbers = [value for value in values if not math.isnan(value)]
    return math.exp(sum(map(math.log, numbers)) / len(numbers)) if numbers else math.nan


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the k of seconds ~ size^k that fits best (least squares of the logarithms)."""
    if len(sizes) < 2:
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
