"""What a benchmark found: rows, the file that keeps them, ratios, means and growth."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rnn_xp.bench import machine
from rnn_xp.bench.cases import Case
from rnn_xp.bench.peers import FASTEST, OURS
from rnn_xp.files import replace_file

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

    def best(self, peer: str) -> Measured | None:
        """Return a library in its fastest mode, None if it was not measured."""
        found = [m for m in self.measured if m.peer == peer]
        return min(found, key=lambda m: m.min, default=None)

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

    def has(self, case: Case, threads: int) -> bool:
        """Tell whether a row is there."""
        return any((row.case, row.threads) == (case, threads) for row in self.rows)


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
        read = json.loads(data)
        if read.pop("format") != _FORMAT:
            raise ValueError("another format")
        return Results(**{**read, "rows": [_row(row) for row in read["rows"]]})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BenchError(f"{path} holds no results of rnn-xp bench ({error})") from error


def _row(read: dict[str, Any]) -> Row:
    case = Case(**{**read["case"], "shape": tuple(read["case"]["shape"])})
    measured = tuple(Measured(**m) for m in read["measured"])
    if not any(m.peer == OURS for m in measured):
        raise ValueError(f"a row without {OURS}")
    return Row(**{**read, "case": case, "measured": measured})


def geometric_mean(values: Iterable[float]) -> float:
    """Return the geometric mean of those values that are numbers, NaN if there are none."""
    numbers = [value for value in values if not math.isnan(value)]
    return math.exp(sum(map(math.log, numbers)) / len(numbers)) if numbers else math.nan


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the k of seconds ~ size^k that fits best (least squares of the logarithms)."""
    if len(sizes) < 2:
        return math.nan
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
