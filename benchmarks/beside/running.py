"""Measures rows: the libraries take turns, round by round, after their results were compared."""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import machine
from .build import build
from .cases import Case
from .client import Asked, Worker, WorkerError, results_of
from .footprint import import_seconds, installed_bytes
from .peers import LIBRARIES, OURS, library, missing
from .results import BenchError, Measured, Results, Row, Settings, peak_key

TOLERANCE = {"float32": 2e-4, "float64": 1e-10}
"""Of the largest element of an output or a gradient."""
_TURN = 0.01  # seconds; a shorter call is repeated as often as fits
_SHORT = 0.05  # seconds; before a shorter call the caches are warmed by one that does not count
_MOST = 10_000  # calls a turn
_LONG = 5.0  # seconds, after which is said what is done
_UNTIMED = ("memory", "size")  # on a busy machine the same
_MEMORY_ROUNDS = 3  # each takes a new process


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


class Job(NamedTuple):
    """A row to measure."""

    case: Case
    threads: int
    libraries: Sequence[str]
    """This one among them."""

    def __str__(self) -> str:
        return f"{self.case}, {self.threads} thread{'s' if self.threads > 1 else ''}"


def turns(case: Case, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return what is measured of a case: of these libraries those that it concerns, and modes."""
    if case.task == "import":
        return [(name, "") for name in names if LIBRARIES[name].statement]
    if case.task == "size":
        return [(name, "") for name in names if LIBRARIES[name].distributions]
    if case.table == "memory":
        return [(name, "") for name in names]
    return [(name, mode) for name in names for mode in library(name).modes(case)]


def left(plan: Sequence[tuple[Case, int]], names: Sequence[str], results: Results) -> list[Job]:
    """Return what is to be measured: the rows that are not there, or lack one of the libraries.

    Such a row is measured anew with the libraries that it has, too: ratios are of one run.

    Parameters
    ----------
    plan : cases and threads
    names : of `peers.LIBRARIES`, this library among them

    Raises
    ------
    BenchError
        If a library that such a row has is not installed any more.
    """
    jobs = []
    for case, threads in dict.fromkeys(plan):
        row = results.find(case, threads)
        old: set[str] = set()
        if row is not None:
            if all(row.tells(*turn) for turn in turns(case, names)):
                continue
            said = {name.partition(" ")[0] for name in row.absent}
            old = {m.peer for m in row.measured} | {name for name in said if not missing(name)}
        job = Job(case, threads, [name for name in LIBRARIES if name in {*names, *old}])
        for name in job.libraries:
            lacks = missing(name)
            if lacks:
                raise BenchError(
                    f"{job}: the row there has {LIBRARIES[name].title}, but {lacks} is not "
                    "installed to measure it anew: give another --json"
                )
        jobs.append(job)
    return jobs


def run(
    jobs: Sequence[Job],
    results: Results,
    settings: Settings,
    done: Callable[[Row], None],
    say: Callable[[str], None],
) -> None:
    """Measure rows, and put them into results.

    Parameters
    ----------
    jobs : those of one number of threads stand together
    results : gets the rows, the versions and the peaks
    settings : Settings
    done : called after each row
    say : gets a line on what is done, where that takes long

    Raises
    ------
    BenchError
        If results differ, or this library itself cannot run a case.
    """
    patience = settings.wait
    today, measured = date.today().isoformat(), build()
    fleet = Fleet(0)
    try:
        for job in jobs:
            if job.threads != fleet.threads:
                fleet.close()
                fleet = Fleet(job.threads)
            if job.case.table not in _UNTIMED:
                with lasting(f"{job}: waiting for an idle machine", say):
                    patience = machine.wait_until_idle(fleet.pids, patience)
            row = _row(job, fleet, results, settings, say)
            row = replace(row, date=today, build=measured, settings=settings)
            results.put(row)
            done(row)
    finally:
        fleet.close()


@contextlib.contextmanager
def lasting(text: str, say: Callable[[str], None]) -> Iterator[None]:
    """Say what is done within, once, if it takes long."""
    timer = threading.Timer(_LONG, say, [f"{text} …"])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


class Fleet:
    """The workers of one number of threads; started when first needed, and after a crash again."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.unusable: dict[str, str] = {}
        self._workers: dict[str, Worker] = {}

    @property
    def pids(self) -> list[int]:
        """The processes."""
        return [worker.pid for worker in self._workers.values()]

    def workers(self, names: Sequence[str]) -> dict[str, Worker]:
        """Return the workers of libraries; one that does not start stands in `unusable`."""
        for name in names:
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
        return {name: self._workers[name] for name in names if name not in self.unusable}

    def close(self) -> None:
        """End them."""
        while self._workers:
            self._workers.popitem()[1].close()


def _row(
    job: Job, fleet: Fleet, results: Results, settings: Settings, say: Callable[[str], None]
) -> Row:
    """Measure one row, in the way that its task needs."""
    case, threads, names = job
    if case.table in ("import", "size", "memory"):
        with lasting(f"{job}: measuring", say):
            return _footprint(job, results, settings)
    with lasting(f"{job}: starting the libraries", say):
        workers = fleet.workers(names)
    for worker in workers.values():
        results.add_versions(worker.versions)
    key = peak_key(case.dtype, threads)
    if key not in results.peaks:
        results.peaks[key] = float(workers[OURS].ask("peak", dtype=case.dtype)["flops"])
    row = measure(job, workers, settings, say, fleet.pids)
    unusable = {name: why for name, why in fleet.unusable.items() if name in names}
    return replace(row, absent={**unusable, **row.absent})


def _footprint(job: Job, results: Results, settings: Settings) -> Row:
    """Measure a row that is not about speed."""
    case, threads, names = job
    named = [name for name, _ in turns(case, names)]
    if case.task == "import":
        return repeated(case, threads, named, settings.rounds, lambda n: import_seconds(n, threads))
    if case.task == "size":
        return repeated(case, threads, named, 1, installed_bytes)
    rounds = min(settings.rounds, _MEMORY_ROUNDS)
    lacks = {name: why for name in named if (why := library(name).lacks(case))}
    able = [name for name in named if name not in lacks]
    row = repeated(case, threads, able, rounds, lambda n: _memory(n, threads, case, results))
    return replace(row, absent={**row.absent, **lacks})


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
    job: Job,
    workers: Mapping[str, Asked],
    settings: Settings,
    say: Callable[[str], None],
    pids: Sequence[int] = (),
) -> Row:
    """Compare the results of all workers, then time them in interleaved rounds.

    Parameters
    ----------
    workers : name of `peers.LIBRARIES` → worker, this library among them
    say : gets a line on what is done, where that takes long
    pids : their processes, which are not counted among the others

    Raises
    ------
    BenchError
        If results differ, this library cannot run the case, or one that could fails later.
    """
    case, threads, _ = job
    absent: dict[str, str] = {}
    try:
        candidates = list(ready(job, workers, absent, say))
        others = machine.Others(pids)
        per_call = case.shape[0] if case.task == "streaming" else 1
        with lasting(f"{job}: measuring", say):
            times = interleaved(candidates, settings)
        values = {
            (candidate.peer, candidate.mode): [seconds / per_call for seconds in found]
            for candidate, found in times.items()
        }
        share = others.share()
    finally:
        for worker in workers.values():
            with contextlib.suppress(WorkerError):
                worker.ask("forget")
    compiling = {(c.peer, c.mode): c.compile_seconds for c in candidates}
    rounds = len(values[OURS, ""])
    return Row(case, threads, rounds, share, summary(values, compiling), absent)


def ready(
    job: Job, workers: Mapping[str, Asked], absent: dict[str, str], say: Callable[[str], None]
) -> Iterator[Candidate]:
    """Make a case ready in every library and mode that can run it, and compare the results."""
    case = job.case
    reference: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for peer, worker in workers.items():
            kind = library(peer)
            reason = kind.lacks(case)
            if reason:
                absent[peer] = reason
                continue
            for mode in kind.modes(case):
                what = f"{LIBRARIES[peer].title} {mode}".strip()
                try:
                    with lasting(f"{job}: making {what} ready", say):
                        made = worker.ask("make", case=asdict(case), mode=mode)
                        found = results_of(worker, mode, Path(folder))
                    candidate = Candidate(peer, mode, worker, made["compile"])
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
