"""`benchmarks/gpu.py` without a GPU: its contestants on the CPU, its tables, and its refusals."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from targets import benchmark_script, need, need_module

from rnn_xp.bench.cases import Case

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


def on_host(contestant: Any) -> Any:
    return contestant._replace(seconds=by_the_clock, pool=lambda run: run() and 1_500_000)


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
    found = gpu.measure(makers(gpu, case(task, cell, **more)), 3, turn=1e-4)
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
    found = gpu.measure(named, 1, turn=1e-4)
    assert found["a"]["failed"].startswith("results differ by 0.0")
    assert found["b"] == {"failed": "results differ by nan"}
    assert found["c"] == {"failed": "MemoryError: no room"}
    assert "min" in found["rnn_xp"]


def test_a_run_goes_on_where_it_stopped(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[Case] = []

    def contestants(asked: Case, data: Any) -> Any:
        measured.append(asked)
        core = gpu.ours(asked, data, core=True, backend="numpy")
        slow = on_host(core)._replace(seconds=lambda run, calls: 10.0)
        fast = on_host(core)._replace(seconds=lambda run, calls: 5.0)
        return {"rnn_xp": lambda: slow, "cuDNN": lambda: fast}

    monkeypatch.setattr(gpu, "facts", lambda: dict(ABOUT))
    monkeypatch.setattr(gpu, "contestants", contestants)
    monkeypatch.setattr(gpu, "GRID", ((2, 1, 3, 5),))
    monkeypatch.setattr(gpu, "LONG", ())
    small = gpu.plan
    monkeypatch.setattr(gpu, "plan", lambda *given: [c for c in small(*given) if c.table == "grid"])
    out = tmp_path / "gpu.json"
    options = ["--out", str(out), "--cell", "rnn", "lstm", "--dtype", "float32", "--rounds", "2"]
    assert gpu.main(options) == 0
    assert [(c.task, c.cell) for c in measured] == [
        (task, cell) for task in ("inference", "training") for cell in ("rnn", "lstm")
    ]
    assert gpu.main(options) == 0
    assert len(measured) == 4
    assert len(json.loads(out.read_text())["rows"]) == 4
    text = out.with_suffix(".md").read_text()
    assert "| grid | LSTM | 2,1,3,5 | 5e+06 | – | 2.5e+06 | **0.50** | 1.5 | 1.5 |" in text
    monkeypatch.setattr(gpu, "facts", lambda: {"device": "another"})
    assert gpu.main(options) == 2
    assert "was measured on another device" in capsys.readouterr().err


def test_the_plan_has_what_it_should(gpu: Any) -> None:
    rows = gpu.plan(("float32",), ("lstm",))
    shapes = {row.shape for row in rows}
    assert {shape[3] for shape in shapes} >= {5, 64, 128, 256, 512, 650, 768, 1024, 2048}
    assert {shape[1] for shape in shapes if shape[0] == 1024} == {1, 4, 16, 64, 256}
    assert any(row.ragged for row in rows)
    assert any(row.bidirectional and row.layers == 2 for row in rows)
    assert {row.layers for row in rows if not row.bidirectional} == {1, 2, 4}
    assert len(set(rows)) == len(rows)


def test_without_a_gpu_it_says_so(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cupy = need_module("cupy")
    if cupy.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    assert capsys.readouterr().err.startswith("nothing is measured: no NVIDIA driver")
    assert not list(tmp_path.iterdir())


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
