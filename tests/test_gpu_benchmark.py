"""`benchmarks/gpu.py` without a GPU: its contestants on the CPU, its tables, and its refusals."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from beside.cases import Case, data_of
from targets import benchmark_script, need, need_module

CELLS = ("rnn", "lstm", "gru")
ABOUT = {"device": "none", "driver": "none"}


@pytest.fixture(scope="module")
def gpu() -> Any:
    with benchmark_script("gpu") as module:
        yield module


def by_the_clock(run: Callable[[], Any], calls: int) -> float:
    start = perf_counter()
    for _ in range(calls):
        run()
    return (perf_counter() - start) / calls


def bytes_of(run: Callable[[], Any]) -> int:
    run()
    return 1_500_000


def on_host(contestant: Any) -> Any:
    return contestant._replace(seconds=by_the_clock, pool=bytes_of)


def taking(contestant: Any, seconds: float) -> Any:
    def run_and_say(run: Callable[[], Any], calls: int) -> float:
        run()
        return seconds

    return on_host(contestant)._replace(seconds=run_and_say)


class Counted:
    """A contestant that counts its calls, each of which takes so many seconds."""

    def __init__(self, gpu: Any, seconds: float, **more: Any) -> None:
        self.turns: list[int] = []
        self.made = gpu.Contestant(dict, self.seconds, bytes_of, np.asarray, 0.0, **more)
        self.takes = seconds

    def seconds(self, run: Callable[[], Any], calls: int) -> float:
        run()
        self.turns.append(calls)
        return self.takes


def case(task: str = "training", cell: str = "lstm", dtype: str = "float32", **more: Any) -> Case:
    return Case("grid", task, cell, (5, 3, 4, 6), dtype, **more)


def makers(gpu: Any, asked: Case) -> dict[str, Any]:
    data = gpu.numbers(asked)
    return {
        "rnn_xp": lambda: on_host(gpu.ours(asked, data, core=False, backend="numpy")),
        "core": lambda: on_host(gpu.ours(asked, data, core=True, backend="numpy")),
        "cuDNN": lambda: on_host(gpu.torchs(asked, data, tf32=False, device="cpu")),
        "cuDNN TF32": lambda: on_host(gpu.torchs(asked, data, tf32=True, device="cpu")),
    }


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("task", ["training", "inference"])
@pytest.mark.parametrize(
    "more", [{}, {"ragged": True}, {"layers": 2}, {"layers": 2, "bidirectional": True}], ids=str
)
def test_contestants_agree(task: str, cell: str, more: dict[str, Any], gpu: Any) -> None:
    need("torch")
    found = gpu.measure(makers(gpu, case(task, cell, **more)), 3, seconds=3e-4)
    assert list(found) == ["rnn_xp", "core", "cuDNN", "cuDNN TF32"]
    for each in found.values():
        assert each["error"] < 1e-5
        assert 0 < each["min"] <= each["median"]
        assert each["bytes"] == 1_500_000


def test_float16_numbers_are_float32s_rounded(gpu: Any) -> None:
    half, single = (gpu.numbers(case(dtype=dtype)) for dtype in ("float16", "float32"))
    assert half.x.dtype == np.float16
    assert np.array_equal(half.x, single.x.astype("float16"))
    assert half.params.keys() == single.params.keys()


def test_few_numbers_are_drawn_and_all_contestants_get_the_same(
    gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("torch")
    import torch

    data = gpu.numbers(Case("long", "training", "rnn", (1024, 16, 128, 64), "float32"))
    assert len(data.x) == gpu.DRAWN
    assert len(data.dy) == 1024 * 16 * 64
    few = np.random.default_rng(1).standard_normal((2, 7), dtype=np.float32)
    monkeypatch.setattr(gpu, "noise", lambda: few)
    asked = case("training", ragged=True)
    data = gpu.numbers(asked)
    assert len(data.x) == len(data.dy) == 7
    assert data.lengths.max() == 5
    shape = (5, 3, 4)
    host, tensor = gpu.spread(data.x, shape, np.tile), torch.tensor(data.x)
    assert host.shape == shape
    assert np.array_equal(host, gpu.spread(tensor, shape, torch.tile).numpy())
    assert len(np.unique(host[:, 0, 0])) == 5  # no step is like another
    for each in gpu.measure(makers(gpu, asked), 1, seconds=1e-4).values():
        assert each["error"] < 1e-5


def test_parameters_are_those_of_the_other_benchmarks(gpu: Any) -> None:
    asked = case(layers=2)
    expected = data_of(asked).params
    found = gpu.numbers(asked).params
    assert found.keys() == expected.keys()
    assert all(np.allclose(found[name], expected[name], rtol=1e-6) for name in expected)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_the_largest_error_is_of_any_element(dtype: str, gpu: Any) -> None:
    right = np.linspace(-4, 4, 33).astype(dtype).reshape(11, 3)
    for place in ((0, 0), (5, 1), (10, 2)):
        wrong = right.copy()
        wrong[place] += 0.5
        assert gpu.largest_error({"y": wrong, "z": right}, {"y": right, "z": right}) == 0.125
        wrong[place] = np.nan
        assert np.isnan(gpu.largest_error({"z": right, "y": wrong}, {"z": right, "y": right}))
    zeros = np.zeros_like(right)
    assert gpu.largest_error({"y": zeros}, {"y": zeros}) == 0.0
    with pytest.raises(KeyError):
        gpu.largest_error({}, {"y": right})


def test_calls_fill_a_turn_and_long_ones_are_made_once_a_round(gpu: Any) -> None:
    short, medium, long = (Counted(gpu, seconds) for seconds in (0.001, 0.02, 0.2))
    loop = Counted(gpu, 0.001, once=True)
    each = {"rnn_xp": short, "core": loop, "cuDNN": medium, "cuDNN TF32": long}
    found = gpu.measure({name: lambda c=c: c.made for name, c in each.items()}, 5, seconds=0.05)
    assert short.turns == [1, 1, 1] + [1, 10] * 5  # the first, two to size it, then warm turns
    assert loop.turns == [1, 1, 1, 1, 10]
    assert medium.turns == [1, 1, 1] + [1] * 5
    assert long.turns == [1, 1] + [1] * 5  # its memory and its time are taken from one call
    assert [found[name]["min"] for name in each] == [0.001, 0.001, 0.02, 0.2]


def test_a_failure_while_it_is_timed_is_no_time(gpu: Any) -> None:
    good, bad = Counted(gpu, 0.2), Counted(gpu, 0.2)

    def breaks(run: Callable[[], Any], calls: int) -> float:
        if len(bad.turns) == 3:
            raise RuntimeError("lost")
        return bad.seconds(run, calls)

    broken = bad.made._replace(seconds=breaks)
    found = gpu.measure({"rnn_xp": lambda: good.made, "cuDNN": lambda: broken}, 4, seconds=0.1)
    assert found["cuDNN"] == {"failed": "RuntimeError: lost"}
    assert found["rnn_xp"]["min"] == 0.2


def test_the_loop_runs_where_it_is_short_or_alone(gpu: Any) -> None:
    def named(cell: str, steps: int, dtype: str = "float32") -> list[str]:
        asked = Case("grid", "inference", cell, (steps, 1, 2, 2), dtype)
        return list(gpu.contestants(asked, None))

    assert named("lstm", 100) == ["rnn_xp", "core", "cuDNN", "cuDNN TF32"]
    assert named("lstm", 512) == ["rnn_xp", "cuDNN", "cuDNN TF32"]
    assert named("lstm", 512, "float16") == ["rnn_xp", "cuDNN"]
    assert named("gru-before", 1024) == ["rnn_xp", "core"]


def test_wrong_results_and_failures_are_no_times(gpu: Any) -> None:
    data = gpu.numbers(case())
    right = gpu.ours(case(), data, core=True, backend="numpy")

    def wrong() -> Any:
        return on_host(right._replace(run=lambda: {k: a * 1.01 for k, a in right.run().items()}))

    def not_a_number() -> Any:
        return on_host(right._replace(run=lambda: {k: a * np.nan for k, a in right.run().items()}))

    def fails() -> Any:
        raise MemoryError("no room\nfor that")

    named = {"rnn_xp": lambda: on_host(right), "a": wrong, "b": not_a_number, "c": fails}
    found = gpu.measure(named, 1, seconds=1e-4)
    assert found["a"]["failed"].startswith("results differ by 0.0")
    assert found["b"] == {"failed": "results differ by nan"}
    assert found["c"] == {"failed": "MemoryError: no room"}
    assert "min" in found["rnn_xp"]


@pytest.fixture
def tiny(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """Let `main` measure a plan of tiny rows on the CPU; return what has been measured."""
    measured: list[Case] = []

    def contestants(asked: Case, data: Any) -> Any:
        measured.append(asked)
        core = gpu.ours(asked, data, core=True, backend="numpy")
        times = {"rnn_xp": 10.0, "cuDNN": 5.0}
        if asked.dtype == "float32":
            times["cuDNN TF32"] = 2.5
        return {name: lambda s=s: taking(core, s) for name, s in times.items()}

    monkeypatch.setattr(gpu, "facts", lambda: dict(ABOUT))
    monkeypatch.setattr(gpu, "contestants", contestants)
    monkeypatch.setattr(gpu, "GRID", ((2, 1, 3, 5),))
    monkeypatch.setattr(gpu, "LONG", ())
    monkeypatch.setattr(gpu, "WIDE", ())
    return measured


def test_a_run_goes_on_where_it_stopped(
    gpu: Any,
    tiny: list[Case],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "gpu.json"
    options = ["--out", str(out), "--cell", "rnn", "lstm", "--table", "grid", "--rounds", "2"]
    seconds = iter([0.0, 1.0, 2.0, 3.0])
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "perf_counter", lambda: next(seconds))
        assert gpu.main([*options, "--limit", "2.5"]) == 0
    assert len(tiny) == len(json.loads(out.read_text())["rows"]) == 2
    assert "stopped after 2.5 seconds: 6 rows are left" in capsys.readouterr().out
    assert gpu.main(options) == 0
    assert [(c.dtype, c.cell, c.task) for c in tiny] == [
        (dtype, cell, task)
        for dtype in ("float32", "float16")
        for cell in ("lstm", "rnn")
        for task in ("inference", "training")
    ]
    assert gpu.main(options) == 0
    assert len(tiny) == len(json.loads(out.read_text())["rows"]) == 8
    text = out.with_suffix(".md").read_text()
    assert (
        "| grid | LSTM | 2,1,3,5 | 5e+06 | – | 2.5e+06 | 1.25e+06 | **0.50** | 1.5 | 1.5 |" in text
    )
    assert "| inference, float32 | 2 | 2 | 0 | 0.50 | 0 | 0.25 |" in text
    assert "| training, float16 | 2 | 2 | 0 | 0.50 | – | – |" in text
    monkeypatch.setattr(gpu, "facts", lambda: {"device": "another"})
    assert gpu.main(options) == 2
    assert "was measured on another device" in capsys.readouterr().err


def test_a_run_stops_where_everything_fails_and_goes_on_after_it(
    gpu: Any, tiny: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works = gpu.contestants

    def fails() -> Any:
        raise RuntimeError("an illegal memory access")

    monkeypatch.setattr(gpu, "contestants", lambda *_: {"rnn_xp": fails, "cuDNN": fails})
    out = tmp_path / "gpu.json"
    options = ["--out", str(out), "--cell", "rnn", "--table", "grid", "--dtype", "float16"]
    assert gpu.main(options) == 1
    monkeypatch.setattr(gpu, "contestants", works)
    assert gpu.main(options) == 0
    assert [c.task for c in tiny] == ["training"]
    assert "| inference, float16 | 1 | 0 | – | – | – | – |" in out.with_suffix(".md").read_text()


def test_the_summary(gpu: Any) -> None:
    def row(task: str, **times: float | None) -> dict[str, Any]:
        names = {"ours": "rnn_xp", "cudnn": "cuDNN", "tf32": "cuDNN TF32"}
        found = {
            names[k]: {"failed": "no"} if each is None else {"min": each}
            for k, each in times.items()
        }
        return {"dtype": "float32", "task": task, "found": found}

    rows = [
        row("inference", ours=1.0, cudnn=2.0, tf32=0.5),
        row("inference", ours=1.0, cudnn=8.0, tf32=None),
        row("inference", ours=2.0, cudnn=1.0, tf32=4.0),
        row("inference", ours=1.0, cudnn=None, tf32=9.0),
        row("inference", ours=None, cudnn=1.0, tf32=1.0),
        row("inference", ours=1.0),
        row("training", ours=1.0),
    ]
    assert gpu.summary(rows)[2:] == [
        "| inference, float32 | 6 | 3 | 2 | 2.00 | 1 | 1.26 |",
        "| training, float32 | 1 | 0 | – | – | – | – |",
    ]


def whole_plan(gpu: Any) -> list[Case]:
    found: list[Case] = gpu.plan(gpu.DTYPES, gpu.TASKS, gpu.IN_ORDER, gpu.TABLES)
    return found


def test_the_plan_has_what_it_should(gpu: Any) -> None:
    rows = gpu.plan(("float32",), gpu.TASKS, ("lstm",), gpu.TABLES)
    shapes = {row.shape for row in rows}
    assert {shape[3] for shape in shapes} >= {5, 64, 128, 256, 512, 650, 768, 1024, 2048}
    assert {shape[1] for shape in shapes if shape[0] == 1024} == {1, 4, 16, 64, 256}
    for size in (512, 768, 1024, 2048):
        assert {s[1] for s in shapes if s[::3] == (1024, size)} >= {1, 16, 64, 256}
    for some in (
        {row.shape for row in rows if row.ragged},
        {row.shape for row in rows if row.bidirectional and row.layers == 2},
    ):
        assert some == {(100, 32, 256, 256), (1024, 16, 512, 512)}
    assert {row.layers for row in rows if not row.bidirectional} == {1, 2, 4}
    assert {row.table for row in rows} == set(gpu.TABLES)
    everything = whole_plan(gpu)
    assert len(set(everything)) == len(everything) == 364
    assert len([row for row in everything if row.cell == gpu.ALONE]) == 4 * 4


def test_the_plan_begins_with_what_says_most(gpu: Any) -> None:
    rows = whole_plan(gpu)
    order = [(gpu.DTYPES.index(row.dtype), gpu.IN_ORDER.index(row.cell)) for row in rows]
    assert order == sorted(order)
    assert gpu.plan(gpu.DTYPES[::-1], gpu.TASKS, gpu.IN_ORDER, gpu.TABLES) == rows
    two = gpu.plan(("float16",), ("training",), ("gru",), ("2 levels", "ragged"))
    assert [(row.table, row.layers) for row in two] == [
        ("ragged", 1),
        ("ragged", 1),
        ("2 levels", 2),
        ("2 levels", 2),
    ]


def test_without_a_gpu_it_says_so(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cupy = need_module("cupy")
    if cupy.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    assert capsys.readouterr().err.startswith("nothing is measured: no NVIDIA driver")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rounds", "0"], "expected an integer >= 1, got 0"),
        (["--seconds", "-1"], "expected a number > 0, got -1"),
        (["--cell", "cnn"], "invalid choice: 'cnn'"),
        (["--out", "folder"], "--out folder is a folder, expected a file to write"),
        (["--out", "pipe"], "--out pipe is a device, a pipe or a socket"),
        (["--out", "no/gpu.json"], "--out no/gpu.json: cannot write there"),
    ],
)
def test_wrong_options_are_one_line(
    gpu: Any,
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SystemExit) as stop:
        gpu.main(options)
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


class FakeEvent:
    """Of either library: records the calls until then, each of which takes 4 ms."""

    made: list[FakeEvent]
    calls = 0

    def __init__(self, *, enable_timing: bool = True) -> None:
        assert enable_timing
        FakeEvent.made.append(self)

    def record(self) -> None:
        self.at = FakeEvent.calls

    def synchronize(self) -> None:
        self.done = True

    def elapsed_time(self, stop: FakeEvent) -> float:
        assert stop.done
        return 4.0 * (stop.at - self.at)


def called() -> None:
    FakeEvent.calls += 1


def test_time_and_memory_on_cupy(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real, pool = need_module("cupy"), SimpleNamespace(size=7)
    pool.free_all_blocks = lambda: setattr(pool, "size", 2)
    pool.total_bytes = lambda: pool.size
    cuda = SimpleNamespace(Event=FakeEvent, get_elapsed_time=FakeEvent.elapsed_time)
    fake = SimpleNamespace(cuda=cuda, get_default_memory_pool=lambda: pool)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    FakeEvent.made = []
    assert gpu.cupy_seconds(called, 3) == pytest.approx(4e-3)
    assert len(FakeEvent.made) == 2
    assert gpu.cupy_bytes(lambda: setattr(pool, "size", 12)) == 10
    for name in ("Event", "get_elapsed_time"):
        assert hasattr(real.cuda, name)
    for name in ("free_all_blocks", "total_bytes"):
        assert hasattr(real.cuda.MemoryPool, name)


def test_cupy_has_what_the_arrays_need() -> None:
    cupy = need_module("cupy")
    assert list(inspect.signature(cupy.tile).parameters) == ["A", "reps"]
    assert callable(cupy.from_dlpack)
    for name in ("__abs__", "__dlpack__", "__sub__", "max", "reshape"):
        assert hasattr(cupy.ndarray, name)


def test_time_and_memory_on_pytorch(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    need("torch")
    cuda = need_module("torch").cuda
    used = {"now": 9}
    fakes = {
        "Event": FakeEvent,
        "empty_cache": lambda: used.update(now=3),
        "reset_peak_memory_stats": lambda: None,
        "memory_reserved": lambda: used["now"],
        "max_memory_reserved": lambda: used["now"],
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(cuda, name, fake)  # each of them is there
    FakeEvent.made = []
    assert gpu.torch_seconds(called, 5) == pytest.approx(4e-3)
    assert gpu.torch_bytes(lambda: used.update(now=11)) == 8
