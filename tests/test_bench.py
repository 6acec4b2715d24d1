"""The benchmark: what it measures, what it refuses, and what it writes."""

from __future__ import annotations

import json
import math
import mmap
import signal
import sys
import time
from dataclasses import asdict, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_cli
from beside import footprint, machine, report, running
from beside.build import build
from beside.cases import CELLS, GRID, SECTIONS, Case, cases, data_of
from beside.client import Worker, WorkerError, environment
from beside.command import main
from beside.peers import LIBRARIES, OURS, Entry, library, missing
from beside.results import (
    BenchError,
    Measured,
    Results,
    Row,
    Settings,
    exponent,
    geometric_mean,
    load,
    save,
)
from beside.running import Job, compare, left, measure
from beside.worker import Session
from targets import HostArray, need_module

from rnn_xp.doctor.machine import describe, processor, usable


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Run the benchmark as from a clone, in another folder."""
    given = {"PYTHONPATH": str(Path(__file__).parents[1])}
    return test_cli.run(folder, *arguments, env=given, module="benchmarks.beside")


called = partial(test_cli.called, by=main)
fails = partial(test_cli.fails, by=main)

SMALL = "--rounds 2 --seconds 0.01 --wait 0 --threads 1".split()  # noqa: SIM905
SIZE = "--task size --against numpy".split()  # noqa: SIM905
CASE = Case("training", "training", "lstm", (11, 2, 3, 4), "float32")


# The cases


def test_the_whole_table_has_every_cell_shape_and_task() -> None:
    everything = [
        case for section in SECTIONS for case in cases(section, [*CELLS], None, "float32")
    ]
    assert len(everything) == len(set(everything))
    for task in ("training", "inference"):
        grid = {(c.cell, c.shape) for c in everything if c.table == task}
        assert grid == {(cell, shape) for cell in CELLS for shape in GRID}
    steps = {case.shape[0] for case in everything if case.table == "sweep T"}
    assert (min(steps), max(steps)) == (100, 10_000)
    assert {case.dtype for case in everything if case.table == "float64"} == {"float64"}
    assert all(case.bidirectional and case.layers == 2 for case in everything if "bi" in case.table)


def test_the_same_case_has_the_same_numbers_everywhere() -> None:
    case = replace(CASE, ragged=True)
    one, two = data_of(case), data_of(case)
    np.testing.assert_array_equal(one.x, two.x)
    np.testing.assert_array_equal(one.params["weight_hh_l0"], two.params["weight_hh_l0"])
    assert one.lengths is not None
    assert one.lengths.max() == 11
    assert one.lengths.min() >= 1
    assert {value.dtype.name for value in (one.x, one.dy, *one.params.values())} == {"float32"}


def test_the_operations_of_a_case() -> None:
    assert CASE.flops == 3 * 2 * 11 * 2 * (4 * 4) * (3 + 4)
    infer = Case("inference", "inference", "rnn", (2, 3, 5, 7), "float32")
    assert infer.flops == 2 * 2 * 3 * 7 * (5 + 7)


# Comparing


def arrays(**values: Any) -> dict[str, HostArray]:
    return {name: np.array(value, dtype=np.float32) for name, value in values.items()}


def test_results_that_agree_but_for_rounding_pass() -> None:
    compare("torch", CASE, arrays(y=[1.0, -2.0001]), arrays(y=[1.0, -2.0]))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (arrays(y=[1.0, -2.001]), "torch and rnn_xp differ in y for training LSTM 11,2,3,4"),
        (arrays(y=[1.0, math.nan]), "differ in y"),
        (arrays(y=[[1.0], [-2.0]]), "returns no y (2,)"),
        (arrays(x=[1.0, -2.0]), "returns no y (2,)"),
    ],
)
def test_results_that_differ_are_an_error(found: dict[str, HostArray], said: str) -> None:
    with pytest.raises(BenchError, match=said.replace("(", r"\(").replace(")", r"\)")):
        compare("torch", CASE, found, arrays(y=[1.0, -2.0]))


class Fake:
    """A worker that answers by a script: its results, and the seconds of its calls in turn."""

    def __init__(
        self, name: str, log: list[str], results: dict[str, HostArray], seconds: list[float]
    ) -> None:
        self.name, self.log, self.results, self.seconds = name, log, results, seconds

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        if do == "make":
            return {"compile": 0.25}
        if do == "results":
            np.savez(values["path"], **self.results)  # type: ignore[arg-type]
        if do == "time":
            self.log.append(self.name)
            return {"seconds": self.seconds.pop(0)}
        return {}


class Broken(Fake):
    """A worker whose library fails."""

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        if do == "make":
            raise WorkerError("no compiler")
        return super().ask(do, **values)


def timed(case: Case, workers: dict[str, Fake], rounds: int = 1) -> Row:
    return measure(Job(case, 1, [*workers]), workers, Settings(rounds, 0.0, 0.0), print)


def test_the_rounds_are_interleaved_and_their_ratios_are_of_one_round() -> None:
    log: list[str] = []
    same = arrays(y=[1.0, -2.0])
    # Two calls to see how long they take, then three rounds.
    ours = Fake(OURS, log, same, [1.0, 1.0, 1.0, 2.0, 4.0])
    theirs = Fake("onnxruntime", log, same, [1.0, 1.0, 3.0, 3.0, 4.0])
    case = replace(CASE, table="inference", task="inference")
    row = timed(case, {OURS: ours, "onnxruntime": theirs}, rounds=3)
    assert log[4:] == [OURS, "onnxruntime"] * 3
    best = row.best("onnxruntime")
    assert best is not None
    assert (best.min, best.median, best.compile_seconds) == (3.0, 3.0, 0.25)
    assert best.median_ratio == 1.5  # of 3/1, 3/2, 4/4
    assert row.ratio(row.fastest) == 3.0
    assert (row.ours.median, row.rounds) == (2.0, 3)


def test_a_worker_with_wrong_results_is_found_out_before_the_timing() -> None:
    log: list[str] = []
    ours = Fake(OURS, log, arrays(y=[1.0, -2.0]), [1.0] * 9)
    theirs = Fake("jax", log, arrays(y=[1.0, -2.1]), [1.0] * 9)
    with pytest.raises(BenchError, match="jax and rnn_xp differ in y"):
        timed(CASE, {OURS: ours, "jax": theirs})
    assert not log


def test_a_library_that_fails_is_absent_with_its_reason_and_ours_may_not_fail() -> None:
    same = arrays(y=[1.0])
    ours = Fake(OURS, [], same, [1.0] * 9)
    broken = Broken("jax", [], same, [])
    row = timed(CASE, {OURS: ours, "jax": broken})
    assert row.absent == {"jax": "no compiler", "jax in-loop": "no compiler"}
    assert row.fastest is None
    with pytest.raises(BenchError, match="rnn_xp fails at training LSTM"):
        timed(CASE, {OURS: Broken(OURS, [], same, [])})


def test_what_takes_long_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(Fake):
        def ask(self, do: str, **values: Any) -> dict[str, Any]:
            if do == "make" and values["mode"] == "in-loop":
                time.sleep(0.2)
            return super().ask(do, **values)

    monkeypatch.setattr(running, "_LONG", 0.1)
    same, said = arrays(y=[1.0]), list[str]()
    workers = {OURS: Fake(OURS, [], same, [1.0] * 9), "jax": Slow("jax", [], same, [1.0] * 9)}
    measure(Job(CASE, 2, [*workers]), workers, Settings(1, 0.0, 0.0), said.append)
    assert said == ["training LSTM 11,2,3,4 float32, 2 threads: making JAX in-loop ready …"]


def test_only_what_is_timed_waits_for_an_idle_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def wait(_: object, patience: float) -> float:
        events.append("wait")
        return patience

    def measured(job: Job, *_: object) -> Row:
        events.append(job.case.table)
        return row(job.case, 1.0)

    monkeypatch.setattr(machine, "wait_until_idle", wait)
    monkeypatch.setattr(running, "_row", measured)
    untimed = Case("size", "size"), replace(CASE, table="memory")
    jobs = [Job(case, 1, [OURS]) for case in (*untimed, Case("import", "import"), CASE)]
    results = Results({})
    running.run(jobs, results, Settings(2, 0.5, 9.0), lambda _: None, print)
    assert events == ["size", "memory", "wait", "import", "wait", "training"]
    assert {r.settings for r in results.rows} == {Settings(2, 0.5, 9.0)}
    assert {r.build for r in results.rows} == {build()}
    assert {r.date for r in results.rows} == {date.today().isoformat()}


# What is left to measure


def test_a_row_without_a_library_that_is_asked_for_is_measured_anew_with_those_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "missing", lambda name: name if name == "onnxruntime" else "")
    old = row(CASE, 0.002, numpy=0.003)
    results = Results({}, rows=[row(replace(CASE, cell="rnn"), 1.0), old])
    plan = [(CASE, 2)] * 2
    assert left(plan, [OURS], results) == []
    assert left(plan, [OURS, "numpy"], results) == []
    assert left(plan, [OURS, "onnxruntime"], results) == []  # absent, and said why
    assert left([(CASE, 1)], [OURS], results) == [Job(CASE, 1, [OURS])]
    again = [Job(CASE, 2, [OURS, "numpy", "jax"])]
    assert left(plan, [OURS, "jax"], results) == again
    new = row(CASE, 0.001, numpy=0.002, jax=0.003)
    results.put(new)
    assert results.rows[1:] == [new]
    assert left(plan, [OURS, "jax"], results) == again  # one of its two ways is not there
    results.put(replace(new, absent={"jax in-loop": "no memory"}))
    assert left(plan, [OURS, "jax"], results) == []


def test_a_row_is_not_measured_anew_without_a_library_that_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running, "missing", lambda name: "keras" if name == "keras" else "")
    results = Results({}, rows=[row(CASE, 0.002, keras=0.003)])
    with pytest.raises(BenchError, match="2 threads: the row there has Keras, but keras is not"):
        left([(CASE, 2)], [OURS, "torch"], results)


def test_a_stream_is_counted_by_the_step() -> None:
    case = replace(CASE, table="streaming", task="streaming")
    ours = Fake(OURS, [], arrays(y=[1.0]), [22.0] * 9)
    row = timed(case, {OURS: ours})
    assert row.ours.min == 2.0


# The machine


def test_what_others_use_is_told_from_what_we_use(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([machine.Busy(10.0, 100.0), machine.Busy(15.0, 110.0)])
    used = iter([1.0, 3.0])
    monkeypatch.setattr(machine, "busy", lambda: next(moments))
    monkeypatch.setattr(machine, "used_by", lambda _: next(used))
    assert machine.Others(()).share() == pytest.approx(0.3)  # (5 - 2) of 10 seconds


def test_waiting_ends_when_the_machine_is_idle_or_patience_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shares = iter([0.5, 0.5, 0.0, *[0.5] * 9])
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(machine.Others, "share", lambda _: next(shares))
    assert machine.wait_until_idle((), 10.0) == 8.0
    assert machine.wait_until_idle((), 3.0) == 0.0
    assert machine.wait_until_idle((), 0.0) == 0.0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_machine_is_read_as_linux_shows_it() -> None:
    before = machine.busy()
    assert before is not None
    assert 0.0 < before.used <= before.possible
    assert machine.used_by([]) > 0.0
    assert describe()["processor"]
    with machine.pinned(1):
        assert len(usable()) == 1


CPUINFO = "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nflags\t\t:\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (2 * f"{CPUINFO}\n", "AMD EPYC (cpu family 26, model 2)"),
        ("processor\t: 0\nBogoMIPS\t: 100.00\n", "Abacus"),
        (None, "Abacus"),
    ],
)
def test_a_processor_s_name(
    text: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any, **__: Any) -> str:
        if text is None:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.setattr("platform.processor", lambda: "Abacus")
    assert processor() == expected


# Workers


def test_a_worker_s_environment_sets_threads_and_drops_what_slows_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"OPENBLAS_CORETYPE": "Haswell", "RNN_XP_ACCELERATE": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RNN_XP_NUM_THREADS", "7")
    ours, plain = environment(OURS, 2), environment("numpy", 2)
    assert not {"OPENBLAS_CORETYPE", "RNN_XP_ACCELERATE"} & set(ours)
    assert plain == ours | {"RNN_XP_ACCELERATE": "0"}
    threads = {name: value for name, value in ours.items() if name.endswith("NUM_THREADS")}
    assert len(threads) >= 4
    assert set(threads.values()) == {"2"}


def test_a_worker_that_dies_or_cannot_do_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIBRARIES, "theano", Entry("Theano", "theano", ()))
    with pytest.raises(WorkerError, match="KeyError: 'theano'"):
        Worker("theano", 1)
    with Worker("numpy", 1) as worker:
        with pytest.raises(WorkerError, match="KeyError"):
            worker.ask("time", mode="", calls=1, warm=False)
        assert worker.alive
        worker._process.send_signal(signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"its process ended \(exit code -9\)"):
            worker.ask("hello")
        assert not worker.alive


def test_a_worker_that_died_is_started_again_and_one_that_cannot_start_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(LIBRARIES, "theano", Entry("Theano", "theano", ()))
    fleet = running.Fleet(1)
    try:
        first = fleet.workers([OURS, "theano"])[OURS]
        first._process.kill()
        first._process.wait()
        again = fleet.workers([OURS, "theano"])
        assert list(again) == [OURS]
        assert again[OURS].pid != first.pid
        assert list(fleet.unusable) == ["theano"]
    finally:
        fleet.close()


def test_a_library_that_fails_while_it_is_timed_is_an_error() -> None:
    class Late(Fake):
        def ask(self, do: str, **values: Any) -> dict[str, Any]:
            if do == "time":
                raise WorkerError("its process ended")
            return super().ask(do, **values)

    same = arrays(y=[1.0])
    workers = {OURS: Fake(OURS, [], same, [1.0] * 9), "keras": Late("keras", [], same, [])}
    with pytest.raises(BenchError, match="keras fails while it is timed: its process ended"):
        timed(CASE, workers)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_memory_is_at_least_what_is_returned() -> None:
    case = Case("memory", "training", "rnn", (400, 16, 64, 128), "float32")
    y_and_dx = 4 * 400 * 16 * (128 + 64)
    row = running.repeated(
        case, 1, [OURS], 1, lambda name: running._memory(name, 1, case, Results({}))
    )
    assert y_and_dx < row.ours.min < 20 * y_and_dx


def test_memory_that_does_not_grow_is_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "reset_peak", lambda: None)
    monkeypatch.setattr(machine, "resident", lambda: 1 << 20)
    monkeypatch.setattr(machine, "peak", lambda: 1 << 20)
    assert (
        Session(OURS, 1).memory(
            asdict(CASE),
        )["bytes"]
        == mmap.PAGESIZE
    )


def test_import_time_is_measured_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    statement = "import time; time.sleep(0.2)"
    monkeypatch.setitem(LIBRARIES, "jax", Entry("JAX", "jax", (), statement))
    assert 0.2 < footprint.import_seconds("jax", 1) < 5.0
    monkeypatch.setitem(LIBRARIES, "jax", Entry("JAX", "jax", (), "import no_such_module"))
    with pytest.raises(WorkerError, match="No module named 'no_such_module'"):
        footprint.import_seconds("jax", 1)


def test_installed_size_is_that_of_all_that_is_required(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def install(name: str, size: int, *requires: str) -> None:
        (tmp_path / f"{name}.py").write_bytes(b"#" * size)
        (tmp_path / f"{name}.pyc").write_bytes(b"#" * 1000)
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        lines = [f"Requires-Dist: {line}" for line in requires]
        text = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", "Version: 1", *lines, ""])
        (info / "METADATA").write_text(text, encoding="utf-8")
        (info / "RECORD").write_text(f"{name}.py,,\n{name}.pyc,,\n", encoding="utf-8")

    install("bench_a", 100, "bench-b (>=1)", 'bench-c; extra == "more"', "bench_gone>=2")
    install("bench_b", 20, "Bench_A")
    install("bench_c", 3)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(LIBRARIES, "jax", Entry("JAX", "jax", (), "", ("bench_a",)))
    assert footprint.installed_bytes("jax") == 120
    monkeypatch.setitem(LIBRARIES, "jax", Entry("JAX", "jax", (), "", ("bench_none",)))
    with pytest.raises(WorkerError, match="bench_none is not installed"):
        footprint.installed_bytes("jax")


# Means and growth


def test_means_and_exponents() -> None:
    assert geometric_mean([2.0, math.nan, 8.0]) == pytest.approx(4.0)
    assert math.isnan(geometric_mean([math.nan]))
    sizes = [100, 300, 1000, 10_000]
    assert exponent(sizes, [3e-6 * n**1.05 for n in sizes]) == pytest.approx(1.05)
    assert math.isnan(exponent([100], [1.0]))


# The file and the page


def row(case: Case, ours: float, **peers: float) -> Row:
    values = {OURS: ours, **peers}
    measured = tuple(Measured(n, "", v, 2 * v, 1.1, 0.5 * (n == "jax")) for n, v in values.items())
    return Row(case, 2, 15, 0.01, measured, {"onnxruntime": "only infers"})


@pytest.fixture
def results() -> Results:
    sweep = [
        row(Case("sweep T", "training", "rnn", (steps, 8, 64, 64), "float32"), steps * 1e-5)
        for steps in (100, 1000)
    ]
    lost = replace(CASE, cell="rnn")
    rows = [row(CASE, 0.002, torch=0.003, jax=0.004), row(lost, 0.002, torch=0.001), *sweep]
    return Results({"processor": "Abacus"}, {"JAX": "1.2"}, {"float32, 2": 1e9}, rows)


def test_results_come_back_from_their_file(results: Results, tmp_path: Path) -> None:
    results.rows[0] = replace(
        results.rows[0], date="2026-12-31", build="00c0ffee", settings=Settings(3, 0.5, 0.0)
    )
    save(results, tmp_path / "bench.json")
    assert load(tmp_path / "bench.json") == results


def test_a_file_from_before_builds_were_noted_is_read(results: Results, tmp_path: Path) -> None:
    save(results, tmp_path / "bench.json")
    read = json.loads((tmp_path / "bench.json").read_bytes())
    for each in read["rows"]:
        del each["date"], each["build"], each["settings"]
    (tmp_path / "bench.json").write_text(json.dumps(read), encoding="utf-8")
    assert load(tmp_path / "bench.json") == results


def test_the_page_of_known_results(results: Results) -> None:
    page = report.page(results)
    assert "processor Abacus; JAX 1.2." in page
    assert "The machine was idle but for this." in page
    gemm = 0.002 * 1e9 / CASE.flops
    assert f"| LSTM | 11,2,3,4 | 2 | 2 | 3 | 4 | 1.50 (1.10) PyTorch | {gemm:.3g} | 15 |" in page
    assert "| RNN | 11,2,3,4 | 2 | 2 | 1 | – | **0.50** (1.10) PyTorch |" in page
    assert "| RNN | 2 | rnn_xp, ms | 1 | 10 | 1.00 |" in page
    assert "| RNN | 2 | ratio | – | – |  |\n| RNN | 2 | rounds | 15 | 15 |  |" in page
    # Geometric mean of 1.5 and 0.5.
    assert "| Training step | training | 2 | 1 of 2 | 0.87 | 0.87 | 2.00 |" in page
    assert "1 of 2.\n\n| table | row | threads | ratio |" in page
    assert "| Training step | RNN 11,2,3,4 | 2 | **0.50** (1.10) PyTorch |" in page
    assert "| JAX | training | 2 | 0.5 | 0.5 | 1 |" in page
    assert "- onnxruntime: only infers (4 rows)" in page


def test_a_ragged_batch_is_compared_with_a_full_one(results: Results) -> None:
    results.rows.append(row(replace(CASE, table="ragged", ragged=True), 0.0021, torch=0.004))
    page = report.page(results)
    assert "| ratio | rnn_xp ÷ full batch | rounds |" in page
    assert "| LSTM | 11,2,3,4 | training | 2 | 2.1 | 4 | 1.90 (1.10) PyTorch | 1.05 | 15 |" in page


def test_a_busy_machine_is_said_and_its_rows_are_marked(results: Results) -> None:
    results.rows[1] = replace(results.rows[1], others=0.31)
    page = report.page(results)
    assert "not idle: in 1 of 4 rows, marked with a *, others used more than 5%" in page
    assert "at most 31%" in page
    assert page.count("| 15* |") == 1
    results.rows[0] = replace(results.rows[0], others=None)
    page = report.page(results)
    assert "not idle: in 1 of 4 rows, marked with a *" in page
    assert "is unknown in 1 of 4 rows" in page


def test_nothing_is_said_of_a_busy_machine_where_nothing_was_timed(results: Results) -> None:
    results.rows = [replace(row(Case("size", "size"), 1e6), others=None)]
    assert "idle" not in report.page(results)


def test_growth_has_the_ratio_the_rounds_and_the_mark_of_a_busy_machine() -> None:
    short, long = (
        row(Case("sweep T", "training", "gru", (steps, 8, 64, 64), "float32"), 0.002, torch=peer)
        for steps, peer in ((100, 0.003), (1000, 0.001))
    )
    double = replace(long, case=replace(long.case, dtype="float64"))
    page = report.page(Results({}, rows=[short, replace(long, others=0.5)]))
    assert "in 1 of 2 rows, marked with a *" in page
    assert "| GRU | 2 | PyTorch, ms | 3 | 1 |" in page
    assert "| GRU | 2 | ratio | 1.50 (1.10) PyTorch | **0.50** (1.10) PyTorch |  |" in page
    assert "| GRU | 2 | rounds | 15 | 15* |  |" in page
    page = report.page(Results({}, rows=[short, long, double]))
    assert "| GRU | float32 | 2 | rnn_xp, ms | 2 | 2 |" in page
    assert "| GRU | float64 | 2 | rnn_xp, ms | – | 2 | – |" in page


def test_what_is_not_compiled_is_said() -> None:
    def page(case: Case) -> str:
        return report.page(Results({}, rows=[row(case, 0.002, torch=0.003)]))

    unrolled = "- PyTorch compiled: is not tried where it unrolls more than 10 steps (1 rows)"
    infers = replace(CASE, table="inference", task="inference")
    assert unrolled in page(CASE)
    assert unrolled in page(replace(infers, dtype="float64"))
    assert "- PyTorch compiled: is not tried on ragged batches (1 rows)" in page(
        replace(CASE, table="ragged", ragged=True)
    )
    for tried in (infers, replace(CASE, shape=(10, 2, 3, 4))):
        assert "PyTorch compiled" not in page(tried)
        assert library("torch").modes(tried) == ("", "compiled")
    assert "PyTorch compiled" not in page(replace(CASE, table="memory"))


def test_builds_and_days_are_told_where_there_are_more_than_one(results: Results) -> None:
    results.rows[1:] = [replace(r, build="00c0ffee", date="2026-12-30") for r in results.rows[1:]]
    results.rows[3] = replace(results.rows[3], date="2026-12-31")
    page = report.page(results)
    assert (
        "or day:\n\n| build | dates | rows |\n|---|---|---|\n"
        "| not recorded | not recorded | 1 |\n| 00c0ffee | 2026-12-30, 2026-12-31 | 3 |\n"
    ) in page
    assert page.index("00c0ffee") < page.index("Minima of")
    results.rows = results.rows[1:3]
    assert "00c0ffee" not in report.page(results)


def test_a_build_is_told_by_sources_and_kernels(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "a.py").write_text("a = 1", encoding="utf-8")
    first = build(tmp_path)
    assert len(first) == 8
    assert int(first, 16) >= 0
    (tmp_path / "notes.txt").write_text("b", encoding="utf-8")
    (tmp_path / "a.pyc").write_text("b", encoding="utf-8")
    assert build(tmp_path) == first
    (tmp_path / "kernels.so").write_text("b", encoding="utf-8")
    second = build(tmp_path)
    (tmp_path / "kernels.so").write_text("c", encoding="utf-8")
    third = build(tmp_path)
    (tmp_path / "cells" / "a.py").rename(tmp_path / "a.py")
    assert len({first, second, third, build(tmp_path)}) == 4


def test_the_picture_of_known_results(results: Results, tmp_path: Path) -> None:
    need_module("matplotlib")
    from beside.picture import picture

    figure = picture(results)
    ratios, curve = figure.axes[0], figure.axes[1]
    assert [text.get_text() for text in ratios.get_yticklabels()] == [
        "LSTM 11,2,3,4",
        "RNN 11,2,3,4",
    ]
    np.testing.assert_allclose(ratios.collections[0].get_offsets(), [[1.5, 0], [0.5, 1]])
    assert list(curve.lines[0].get_ydata()) == [1e-3, 1e-2]
    save(results, tmp_path / "bench.json")
    made = ("--out", "bench.md", "--plot", "bench.png")
    assert called(tmp_path, "--show", "bench.json", *made)[::2] == (0, "")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "bench.md").read_text(encoding="utf-8") == report.page(results)
    with pytest.raises(BenchError, match="nothing to draw"):
        picture(Results({}))


def change(read: Any, path: str, value: Any) -> None:
    """Put a value into what JSON holds; the path is of keys and indices."""
    *way, last = (int(key) if key.isdigit() else key for key in path.split())
    for key in way:
        read = read[key]
    read[last] = value


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("format", 2, "the file: format is 2, expected 1"),
        ("machine", None, "the file: machine is None, expected an object, each value a text"),
        ("peaks float32", "fast", "peaks is {"),
        ("rows", 3, "the file: rows is 3, expected a list"),
        ("rows 0", [], "row 1 is [], expected an object"),
        ("rows 0 threads", True, "row 1: threads is True, expected an integer >= 1"),
        ("rows 1 others", -1, "row 2: others is -1, expected null or a number from 0 to 1"),
        ("rows 0 noise", 3, "row 1 has 'noise', which is unknown here"),
        ("rows 0 absent", {"theano": "old"}, "row 1: absent is {'theano': 'old'}, expected"),
        ("rows 0 case cell", "qrnn", "row 1, case: cell is 'qrnn', expected one of rnn, lstm,"),
        ("rows 0 case table", "speed", "row 1, case: table is 'speed', expected one of training,"),
        ("rows 0 case shape", [1, 2, 3], "row 1, case: shape is [1, 2, 3], expected four"),
        ("rows 0 case shape", [0, 2, 3, 4], "row 1: task, cell, shape and dtype do not fit"),
        ("rows 0 case table", "import", "row 1: task, cell, shape and dtype do not fit the table"),
        ("rows 0 measured", [], "row 1 is without rnn_xp"),
        ("rows 0 measured 1", {"peer": "torch"}, "row 1, measured has no mode"),
        ("rows 0 measured 1 min", 0, "row 1, measured: min is 0, expected a number > 0"),
        ("rows 0 measured 1 min", "x", "row 1, measured: min is 'x', expected a number > 0"),
        ("rows 0 date", "today", "row 1: date is 'today', expected null or a date as 2026-12-31"),
        ("rows 0 build", "0.1.0", "row 1: build is '0.1.0', expected null or eight hex digits"),
        ("rows 0 settings", {"rounds": 0}, "row 1, settings: rounds is 0, expected an integer"),
        ("rows 0 measured 1 median", math.inf, "median is inf, expected a number > 0"),
    ],
)
def test_a_damaged_file_is_one_line(
    path: str, value: Any, said: str, results: Results, tmp_path: Path
) -> None:
    save(results, tmp_path / "b.json")
    read = json.loads((tmp_path / "b.json").read_bytes())
    change(read, path, value)
    (tmp_path / "b.json").write_text(json.dumps(read), encoding="utf-8")
    for arguments in ([*SIZE, "--json", "b.json"], ["--show", "b.json"]):
        told = fails(tmp_path, *arguments, "--out", "b.md")
        assert "b.json holds no results of benchmarks.beside (" in told
        assert said in told


# The command


def test_the_command_measures_prints_and_continues(tmp_path: Path) -> None:
    arguments = ["--against", "numpy", *SMALL, "--shape", "5,2,3,4", "--json", "b.json"]
    rnn = ["--cell", "rnn"]
    code, out, err = run(tmp_path, *arguments, *rnn, "--task", "training", "size")
    assert code == 0, err
    assert "| RNN | 5,2,3,4 | 1 |" in out
    assert err.count("\n") == 2
    first = json.loads((tmp_path / "b.json").read_bytes())
    assert {m["peer"] for m in first["rows"][0]["measured"]} == {OURS, "numpy"}
    arguments += [*rnn, "--out", "b.md", "--task", "training", "ragged", "bidirectional"]
    code, out, err = run(tmp_path, *arguments)
    assert (code, out) == (0, "saved to b.md\n")
    assert err.count("\n") == 4
    rows = json.loads((tmp_path / "b.json").read_bytes())["rows"]
    assert rows[:2] == first["rows"]
    assert [row["case"]["table"] for row in rows[2:]] == ["ragged"] * 2 + ["bidirectional"] * 2
    assert "--out" in fails(tmp_path, *arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shape", "5,2,3"], "four integers T,B,I,H >= 1, got '5,2,3'"),
        (["--shape", "5,2,3,0"], "four integers"),
        (["--shape", "a,b,c,d"], "--shape: expected four integers T,B,I,H >= 1, got 'a,b,c,d'"),
        (["--threads", "4000"], "--threads 4000 is more than the"),
        (["--against", "theano"], "invalid choice: 'theano'"),
        (["--json", "none/b.json"], "none/b.json: cannot write there"),
        (["--json", "other.json"], "other.json holds no results of benchmarks.beside"),
        (["--plot", "b.bmp"], "b.bmp must end in one of"),
        (["--json", "b", "--show", "other.json"], "--show: not allowed with argument --json"),
        ([*SIZE, "--json", "b", "--out", "./b"], "--out b is also --json: give each a file"),
        ([*SIZE, "--json", "other.json", "--out", "link", "--force"], "--out link is also --json"),
        ([*SIZE, "--out", "b.png", "--plot", "b.png"], "--out b.png is also --plot"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    if "--plot" in arguments:
        need_module("matplotlib")
    (tmp_path / "other.json").write_text('{"format": 1, "rows": 3}', encoding="utf-8")
    (tmp_path / "link").hardlink_to(tmp_path / "other.json")
    assert said in fails(tmp_path, *SMALL[:6], *arguments)


@pytest.fixture
def all_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every library seem to be there, beside matplotlib."""
    need_module("matplotlib")
    monkeypatch.setattr("beside.command.missing", lambda _: "")
    monkeypatch.setattr("beside.running.missing", lambda _: "")


@pytest.mark.usefixtures("all_installed")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--against", "numpy", "--task", "training"],
        ["--against", "numpy", "--task", "size"],
        ["--against", "onnxruntime", "--task", "training"],
    ],
)
def test_a_picture_of_nothing_is_refused_before_anything_is_measured(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("beside.command.run", lambda *_: pytest.fail("was measured"))
    said = fails(tmp_path, *arguments, "--plot", "b.png")
    assert "--plot draws ratios to the fastest of PyTorch, JAX and onnxruntime, and growth" in said


@pytest.mark.usefixtures("all_installed")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--against", "numpy", "--task", "sweep"],
        ["--against", "onnxruntime", "--task", "inference"],
        ["--against", "torch", "--task", "size"],
    ],
)
def test_a_picture_of_something_is_not_refused(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[Job] = []
    monkeypatch.setattr("beside.command.run", lambda jobs, *_: measured.extend(jobs))
    monkeypatch.setattr("beside.command._write", lambda *_: None)
    assert called(tmp_path, *arguments, "--plot", "b.png") == (0, "", "")
    assert measured


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"machine": {"processor": "Abacus"}}, "was measured with processor Abacus, this is"),
        ({"versions": {"NumPy": "0.1"}}, "are of NumPy 0.1, but this is"),
    ],
)
def test_rows_of_another_machine_or_version_are_not_continued(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    kept = {"machine": describe(), **change}
    save(Results(**kept), tmp_path / "b.json")
    arguments = ["--against", "numpy", "--json", "b.json", "--task", "training", "--cell", "rnn"]
    assert said in fails(tmp_path, *SMALL, *arguments)


def test_a_library_that_is_not_installed_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("beside.command.missing", lambda name: "jax" if name == "keras" else "")
    monkeypatch.setattr("beside.command.run", lambda *_: None)
    assert main(["--against", "keras", "numpy"]) == 0
    assert "Keras is left out: jax is not installed" in capsys.readouterr().err


# The peers: their results are compared with ours before anything is timed


@pytest.mark.parametrize(
    ("name", "cells", "tasks"),
    [
        ("torch", ["lstm"], ["training", "streaming", "ragged"]),
        ("jax", ["gru-before"], ["training", "ragged", "bidirectional"]),
        ("jax", [*CELLS], ["streaming"]),
        ("keras", ["gru-before"], ["training", "bidirectional"]),
        ("onnxruntime", [*CELLS], ["inference", "streaming", "ragged", "bidirectional"]),
    ],
)
def test_every_peer_gives_our_results(
    name: str, cells: list[str], tasks: list[str], tmp_path: Path
) -> None:
    for tool in missing(name).split(", ") if missing(name) else ():
        need_module(tool)
    # Longer than what is unrolled and compiled.
    arguments = ["--against", name, *SMALL, "--shape", "11,2,3,4", "--json", "b.json"]
    code, out, err = run(tmp_path, *arguments, "--cell", *cells, "--task", *tasks)
    assert code == 0, err
    assert "## Summary" in out
    for found in load(tmp_path / "b.json").rows:
        lacks = library(name).lacks(found.case)
        modes = {m.mode for m in found.measured if m.peer == name}
        assert modes == (set() if lacks else set(library(name).modes(found.case))), found.absent
