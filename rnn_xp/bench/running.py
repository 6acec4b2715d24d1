"""Measures rows: the libraries take turns, round by round, after their results were compared."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rnn_xp.bench import machine
from rnn_xp.bench.cases import Case
from rnn_xp.bench.client import Asked, Worker, WorkerError, results_of
from rnn_xp.bench.footprint import import_seconds, installed_bytes
from rnn_xp.bench.peers import LIBRARIES, OURS, library
from rnn_xp.bench.results import BenchError, Measured, Results, Row, peak_key

TOLERANCE = {"float32": 2e-4, "float64": 1e-10}
"""Of the largest element of an output or a gradient."""
_TURN = 0.01  # seconds; a shorter call is repeated as often as fits
_SHORT = 0.05  # seconds; before a shorter call the caches are warmed by one that does not count
_MOST = 10_000  # calls a turn
_MEMORY_ROUNDS = 3  # each takes a new process


@dataclass(frozen=True)
class Settings:
    """How long to measure."""

    rounds: int = 15
    """At least so many in a row,"""
    seconds: float = 3.0
    """and at least so long."""
    wait: float = 60.0
    """So many seconds at most, in the whole run, for an idle machine."""


class Candidate(NamedTuple):
    """A library in one mode, with a case made ready."""

    peer: str
    mode: str
    worker: Asked
    compile_seconds: float

    @property
    def name(self) -> str:
        """What `Row.absent` calls it."""
        return f"{self.peer} {self.mode}".strip()


def run(
    plan: Sequence[tuple[Case, int]],
    peers: Sequence[str],
    results: Results,
    settings: Settings,
    done: Callable[[Row], None],
) -> None:
    """Add the rows of a plan, cases and threads, to results, but for those that are there.

    Parameters
    ----------
    plan : rows of one number of threads stand together
    peers : names of `peers.LIBRARIES`, this library first
    results : gets the rows, the versions and the peaks
    settings : Settings
    done : called after each row

    Raises
    ------
    BenchError
        If results differ, or this library itself cannot run a case.
    """
    patience = settings.wait
    fleet = Fleet(peers, 0)
    try:
        for case, threads in plan:
            if results.has(case, threads):
                continue
            if threads != fleet.threads:
                fleet.close()
                fleet = Fleet(peers, threads)
            patience = machine.wait_until_idle(fleet.pids, patience)
            row = _row(case, fleet, results, settings)
            results.rows.append(row)
            done(row)
    finally:
        fleet.close()


class Fleet:
    """The workers of one number of threads; started when first needed, and after a crash again."""

    def __init__(self, names: Sequence[str], threads: int) -> None:
        self.names = list(names)
        self.threads = threads
        self.unusable: dict[str, str] = {}
        self._workers: dict[str, Worker] = {}

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [worker.pid for worker in self._workers.values()]

    def workers(self) -> dict[str, Worker]:
        """Return every library's worker; one that does not start stands in `unusable`."""
        for name in self.names:
            worker = self._workers.get(name)
            if name in self.unusable or (worker is not None and worker.alive):
                continue
            if worker is not None:
                worker.close()
            try:
                self._workers[name] = Worker(name, self.threads)
            except WorkerError as error:
                if name == OURS:
                    raise BenchError(f"{OURS}: {error}") from error
                self.unusable[name] = str(error)
        return {n: w for n, w in self._workers.items() if n not in self.unusable}

    def close(self) -> None:
        """End them."""
        while self._workers:
            self._workers.popitem()[1].close()


def _row(case: Case, fleet: Fleet, results: Results, settings: Settings) -> Row:
    """Measure one row, in the way that its task needs."""
    threads, names = fleet.threads, fleet.names
    if case.task == "import":
        named = [name for name in names if LIBRARIES[name].statement]
        return repeated(case, threads, named, settings.rounds, lambda n: import_seconds(n, threads))
    if case.task == "size":
        named = [name for name in names if LIBRARIES[name].distributions]
        return repeated(case, threads, named, 1, installed_bytes)
    if case.table == "memory":
        rounds = min(settings.rounds, _MEMORY_ROUNDS)
        able = {name: library(name).lacks(case) for name in names}
        named = [name for name in names if not able[name]]
        row = repeated(case, threads, named, rounds, lambda n: _memory(n, threads, case, results))
        return replace(row, absent={**row.absent, **{n: why for n, why in able.items() if why}})
    workers = fleet.workers()
    for worker in workers.values():
        results.add_versions(worker.versions)
    key = peak_key(case.dtype, threads)
    if key not in results.peaks:
        results.peaks[key] = float(workers[OURS].ask("peak", dtype=case.dtype)["flops"])
    row = measure(case, threads, workers, settings, fleet.pids)
    return replace(row, absent={**fleet.unusable, **row.absent})


def _memory(name: str, threads: int, case: Case, results: Results) -> float:
    with Worker(name, threads) as worker:
        results.add_versions(worker.versions)
        return float(worker.ask("memory", case=asdict(case))["bytes"])


def repeated(
    case: Case, threads: int, names: Sequence[str], rounds: int, value: Callable[[str], float]
) -> Row:
    """Measure what takes no worker, in interleaved rounds; the first one is for the disk's cache.

    Parameters
    ----------
    value : of a library's name
        What is measured; a `WorkerError` from it makes the library absent.
    """
    absent: dict[str, str] = {}
    values: dict[tuple[str, str], list[float]] = {(name, ""): [] for name in names}
    others = machine.Others(())
    for count in range(-1 if case.task == "import" else 0, rounds):
        for name, mode in list(values):
            try:
                found = value(name)
            except WorkerError as error:
                if name == OURS:
                    raise BenchError(f"{OURS}: {error}") from error
                absent[name] = str(error)
                del values[name, mode]
                continue
            if count >= 0:
                values[name, mode].append(found)
    share = None if case.task == "size" else others.share()
    return Row(case, threads, rounds, share, summary(values, {}), absent)


def measure(
    case: Case,
    threads: int,
    workers: Mapping[str, Asked],
    settings: Settings,
    pids: Sequence[int] = (),
) -> Row:
    """Compare the results of all workers, then time them in interleaved rounds.

    Parameters
    ----------
    workers : name of `peers.LIBRARIES` → worker, this library among them
    pids : their processes, which are not counted among the others

    Raises
    ------
    BenchError
        If results differ, this library cannot run the case, or one that could fails later.
    """
    absent: dict[str, str] = {}
    try:
        candidates = list(ready(case, workers, absent))
        others = machine.Others(pids)
        per_call = case.shape[0] if case.task == "streaming" else 1
        values = {
            (candidate.peer, candidate.mode): [seconds / per_call for seconds in times]
            for candidate, times in interleaved(candidates, settings).items()
        }
        share = others.share()
    finally:
        for worker in workers.values():
            with contextlib.suppress(WorkerError):
                worker.ask("forget")
    compiling = {(c.peer, c.mode): c.compile_seconds for c in candidates}
    rounds = len(values[OURS, ""])
    return Row(case, threads, rounds, share, summary(values, compiling), absent)


def ready(case: Case, workers: Mapping[str, Asked], absent: dict[str, str]) -> Iterator[Candidate]:
    """Make a case ready in every library and mode that can run it, and compare the results."""
    reference: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for peer, worker in workers.items():
            kind = library(peer)
            reason = kind.lacks(case)
            if reason:
                absent[peer] = reason
                continue
            for mode in kind.modes(case):
                try:
                    made = worker.ask("make", case=asdict(case), mode=mode)
                    candidate = Candidate(peer, mode, worker, made["compile"])
                    found = results_of(worker, mode, Path(folder))
                except WorkerError as error:
                    _give_up(peer, mode, case, error, absent)
                    continue
                reference = reference or found
                compare(candidate.name, case, found, reference)
                yield candidate


def _give_up(peer: str, mode: str, case: Case, error: WorkerError, absent: dict[str, str]) -> None:
    if peer == OURS:
        raise BenchError(f"{OURS} fails at {case}: {error}") from error
    absent[f"{peer} {mode}".strip()] = str(error)


def compare(name: str, case: Case, found: Mapping[str, Any], reference: Mapping[str, Any]) -> None:
    """Raise `BenchError` if results differ by more than rounding."""
    most = TOLERANCE[case.dtype]
    for key, expected in reference.items():
        if key not in found or found[key].shape != expected.shape:
            raise BenchError(f"{name} returns no {key} {expected.shape} for {case}")
        scale = float(np.abs(expected).max()) or 1.0
        error = float(np.abs(found[key].astype(np.float64) - expected).max()) / scale
        if not error <= most:  # so that NaN counts
            raise BenchError(
                f"{name} and {OURS} differ in {key} for {case}: by {error:.2g} of its largest "
                f"element, more than {most:g}"
            )


def interleaved(
    candidates: Sequence[Candidate], settings: Settings
) -> dict[Candidate, list[float]]:
    """Return each candidate's seconds a call in each round."""
    turns = {candidate: _turn(candidate) for candidate in candidates}
    times: dict[Candidate, list[float]] = {candidate: [] for candidate in candidates}
    start, rounds = time.perf_counter(), 0
    while rounds < settings.rounds or time.perf_counter() - start < settings.seconds:
        for candidate in candidates:
            calls, warm = turns[candidate]
            times[candidate].append(_seconds(candidate, calls, warm))
        rounds += 1
    return times


def _turn(candidate: Candidate) -> tuple[int, bool]:
    """Return how many calls fill a turn, and whether one before them warms the caches."""
    once = min(_seconds(candidate, 1, True) for _ in range(2))
    return min(max(1, math.ceil(_TURN / once)), _MOST), once < _SHORT


def _seconds(candidate: Candidate, calls: int, warm: bool) -> float:
    try:
        answer = candidate.worker.ask("time", mode=candidate.mode, calls=calls, warm=warm)
    except WorkerError as error:
        raise BenchError(f"{candidate.name} fails while it is timed: {error}") from error
    return float(answer["seconds"])


def summary(
    values: Mapping[tuple[str, str], Sequence[float]], compiling: Mapping[tuple[str, str], float]
) -> tuple[Measured, ...]:
    """Return minimum, median and the median ratio to ours of the rounds of each library."""
    ours = values[OURS, ""]
    return tuple(
        Measured(
            peer,
            mode,
            min(times),
            statistics.median(times),
            statistics.median(a / b for a, b in zip(times, ours, strict=True)),
            compiling.get((peer, mode), 0.0),
        )
        for (peer, mode), times in values.items()
    )
