"""The scripts of `benchmarks/` that compare speeds, on cases so small that no time of them counts.

That of the GPU has a file of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from targets import benchmark_script, need, need_module

from rnn_xp.engines import PLAIN

SHAPE = (4, 2, 3, 5)


@pytest.fixture(scope="module")
def arrays() -> Iterator[Any]:
    need("torch")
    need("jax")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            patch.setenv(name, "1")  # the script would set it for good
        with benchmark_script("arrays") as module:
            yield module


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("name", ["inference", "training"])
def test_every_way_to_run_other_arrays_gives_the_same(arrays: Any, kind: str, name: str) -> None:
    # Either compares its results before it returns the calls.
    calls = arrays.torch_calls(kind, SHAPE, name)
    assert list(calls) == ["rnn_xp", "core", "plain"]
    assert all(time > 0 for time in arrays.measure(calls, 0.0))
    calls = arrays.jax_calls(kind, SHAPE, name)
    assert list(calls)[:3] == ["core", "scan", "jit"]
    assert ("autodiff" in calls) == (name == "training")
    assert all(time > 0 for time in arrays.measure(calls, 0.0))


def test_results_that_differ_end_it(arrays: Any) -> None:
    right = np.linspace(-1, 1, 7)
    arrays.compare([{"y": right}, {"y": right * (1 + 1e-5)}])
    with pytest.raises(AssertionError):
        arrays.compare([{"y": right}, {"y": right * 1.01}])


def test_only_the_core_runs_where_it_is_asked_for(arrays: Any) -> None:
    layer = arrays.LSTM(3, 5)
    params = layer.init(0, backend="torch")
    before = layer.prepare(params).engine
    with arrays.only_the_core():
        assert layer.prepare(params).engine is PLAIN
    assert before is not PLAIN
    assert layer.prepare(params).engine is before


def test_compilation_is_timed(arrays: Any) -> None:
    assert 0 < arrays.compile_seconds("GRU", 3, "training") < 60


@pytest.fixture
def train_text() -> Iterator[Any]:
    need("torch")
    with benchmark_script("train_text") as module:
        yield module


def test_training_of_text_is_measured_beside_pytorch(
    train_text: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_text, "BLOCK", 2)
    page = train_text.page(["lstm"], [1], 3)
    (row,) = [line for line in page.splitlines() if line.startswith("| lstm |")]
    threads, ours, ratio, *_ = (cell.strip() for cell in row.split("|")[2:-1])
    assert threads == "1"
    assert float(ours.replace(",", "")) > 1000
    assert float(ratio.split()[0]) > 0
    differences = [line.split("|")[-2] for line in page.splitlines() if line.startswith("| 2 |")]
    assert [abs(float(d)) < 1e-3 for d in differences] == [True]


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        ("arrays", ["--seconds", "0"], "expected a number > 0, got 0"),
        ("arrays", ["--second"], "expected one argument"),
        ("train_text", ["--steps", "0"], "expected an integer >= 1, got 0"),
        ("train_text", ["--cells", "rnn"], "invalid choice: 'rnn'"),
    ],
)
def test_wrong_options_are_one_line(
    script: str,
    options: list[str],
    said: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = request.getfixturevalue(script)
    monkeypatch.setattr("sys.argv", [f"{script}.py", *options])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert said in line
    assert line.count("\n") == 1


def test_the_host_s_part_of_a_call_on_cupy_s_own_arrays(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need_module("cupy")
    namespace = need_module("array_api_compat.cupy")
    before = namespace.dot
    with benchmark_script("host") as host:
        _, _, *lines = host.table(1)
        rows = {tuple(cells[:3]): cells[5] for cells in (line[2:-2].split(" | ") for line in lines)}
        assert len(rows) == len(host.CASES) * len(host.LAYERS) * 2
        for cell in host.LAYERS:
            assert rows["10,1,3,5", cell, "inference"] == "1 fill, 1 kernel, 1 product"
            products = 6 if cell == "GRU" else 5
            launched = rows["10,1,3,5", cell, "training"]
            assert launched.endswith(f"3 fill, 2 kernel, {products} product")
        monkeypatch.setattr("sys.argv", ["host.py", "--calls", "2"])
        monkeypatch.setattr(host, "CASES", {"10,1,3,5": host.CASES["10,1,3,5"]})
        host.main()
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3 * 2
    assert namespace.dot is before
