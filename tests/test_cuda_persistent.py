"""Kernels of all steps, on the processor from the same source, against the core in float64."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cuda_on_cpu
import elementwise_on_cpu
import numpy as np
import pytest
import standin
from targets import need_module
from test_cuda_fused import HOST, Case, largest_error, on_standin

from rnn_xp import recurrence
from rnn_xp.accelerate.cuda import fused, persistent, plan, trial
from rnn_xp.accelerate.cuda.engine import Cuda
from rnn_xp.accelerate.cuda.fused import Fused
from rnn_xp.accelerate.cuda.persistent import Persistent
from rnn_xp.accelerate.cuda.plan import Limits
from rnn_xp.backend import InPlace
from rnn_xp.cells import make_cell

RUN_HERE = ("rnn_tanh", "rnn_relu", "lstm", "gru")
H100 = Limits(132, 232448, True)
SMALL = Limits(3, 60000, True)


def no_kernels(bits: int) -> Any:
    raise AssertionError("nothing is to run")


FUSED = Fused(no_kernels)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cuda_on_cpu.library(persistent.source(), tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Fused:
    return Fused(elementwise_on_cpu.kernels(fused.source(), tmp_path_factory.mktemp("steps")))


@pytest.fixture
def xp() -> Any:
    standin.xp.start(need_module("cupy"), need_module("array_api_compat.cupy"))
    return standin.xp


def errors(
    path: Path, xp: Any, name: str, sizes: tuple[Any, ...], order: int, **how: bool
) -> float:
    """Return the largest error of values and gradients."""
    case, limits = Case(name, *sizes[0]), device(name, *sizes)
    expected = case.run(recurrence, HOST, np.copy, **how)
    engine = Persistent(cuda_on_cpu.kernels(path, order), lambda: limits)
    found = case.run(engine, InPlace(xp, 0), on_standin("float32"), **how)
    assert {a.dtype.name for a in found} == {"float32"}
    return largest_error(found, expected)


GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3}
# (T, B, H); multiprocessors; what shared memory has room for beside the weights, in bytes.
SIZES = {
    "one of all": ((1, 1, 1), 4, 1000),
    "uneven": ((4, 3, 5), 2, 1000),
    "tiles of the batch": ((3, 17, 37), 3, 2400),
    "a block alone": ((2, 3, 5), 1, 1000),
    "several rounds": ((2, 3, 130), 5, 9000),
}


def device(name: str, shape: tuple[int, ...], blocks: int, room: int) -> Limits:
    """Return a device that has just so much room."""
    hidden = shape[2]
    return Limits(blocks, 4 * GATES[name] * -(-hidden // blocks) * hidden + room, True)


@pytest.mark.parametrize("name", RUN_HERE)
@pytest.mark.parametrize(("reverse", "ragged"), [(False, False), (True, True)])
@pytest.mark.parametrize("sizes", SIZES)
def test_values_and_all_gradients_are_the_core_s(
    name: str, reverse: bool, ragged: bool, sizes: str, library: Path, xp: Any
) -> None:
    how = {"reverse": reverse, "ragged": ragged}
    assert errors(library, xp, name, SIZES[sizes], 0, **how) < 2e-5
    assert not xp.reads


@pytest.mark.parametrize("name", RUN_HERE)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_schedule_gives_the_same(name: str, order: int, library: Path, xp: Any) -> None:
    assert errors(library, xp, name, SIZES["uneven"], order, reverse=False, ragged=True) < 2e-5


def test_blocks_without_units(library: Path, xp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = plan.fit

    def wider(*given: Any) -> Any:
        found = fit(*given)
        return found and found._replace(blocks=found.blocks + 2)

    monkeypatch.setattr(plan, "fit", wider)
    assert errors(library, xp, "lstm", SIZES["uneven"], 1, reverse=False, ragged=False) < 2e-5


@pytest.mark.parametrize("name", ["rnn_tanh", "lstm", "gru"])
def test_zeros_for_none_and_no_bias(name: str, library: Path, xp: Any) -> None:
    case, how = Case(name, 3, 2, 5, bias=False), {"ragged": False, "reverse": False}
    engine = Persistent(cuda_on_cpu.kernels(library), lambda: H100)
    case.state = case.dstate = [None for _ in case.state]
    found = case.run(engine, InPlace(xp, 0), on_standin("float32"), **how)
    case.state = case.dstate = [np.zeros((2, 5)) for _ in case.state]
    assert largest_error(found, case.run(recurrence, HOST, np.copy, **how)) < 2e-5


def test_a_run_is_one_kernel(library: Path, xp: Any) -> None:
    case, how = Case("lstm", 7, 2, 5), {"ragged": False, "reverse": False}
    engine = Persistent(cuda_on_cpu.kernels(library), lambda: H100)
    xp.launches.clear()
    case.run(engine, InPlace(xp, 0), on_standin("float32"), **how)
    assert xp.launches["lstm_all_forward"] == 2  # one keeps, one does not
    assert xp.launches["lstm_all_backward"] == 1
    assert xp.launches["dot"] == 2 + 3


def test_the_plan_stays_within_the_device() -> None:
    for limits in (H100, Limits(40, 65536, True), Limits(3, 17000, True)):
        for gates in (1, 3, 4):
            for hidden in (1, 5, 37, 130, 512, 1320):
                for batch in (1, 3, 17, 256):
                    for found in plan.plans(gates, hidden, batch, limits) or ():
                        assert found.blocks <= limits.multiprocessors
                        assert found.shared <= limits.shared
                        assert 1 <= found.tile <= batch
                        assert (found.blocks - 1) * found.units < hidden
                        assert found.blocks * found.units >= hidden
    for name, gates in GATES.items():
        shape, *rest = SIZES["tiles of the batch"]
        both = plan.plans(gates, shape[2], shape[1], device(name, shape, *rest))
        assert both is not None
        assert all(found.tile < shape[1] for found in both)


def test_what_does_not_fit_or_pay_is_left_to_the_others(
    xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "passes", lambda *_: True)

    def chosen(name: str, hidden: int, batch: int, dtype: str, limits: Limits) -> Any:
        engine = Cuda(FUSED, Persistent(no_kernels, lambda: limits))
        return engine.able(make_cell(name, hidden), np.dtype(dtype), batch, InPlace(xp, 0))[-1]

    assert isinstance(chosen("lstm", 512, 16, "float32", H100), Persistent)
    assert chosen("lstm", 512, 16, "float64", H100) is FUSED
    assert chosen("lstm", 512, 16, "float32", H100._replace(cooperative=False)) is FUSED
    assert chosen("lstm", 512, 16, "float32", Limits(40, 65536, True)) is FUSED  # too large
    assert chosen("lstm", 512, 1024, "float32", H100) is FUSED  # one step fills the device
    assert chosen("lstm", 512, 0, "float32", H100) is FUSED
    assert chosen("gru_reset_before", 64, 1, "float32", H100) is FUSED
    assert chosen("lstm_peephole", 64, 1, "float32", H100) is recurrence


def test_the_engine_runs_what_it_chose(library: Path, steps: Fused, xp: Any) -> None:
    engine = Cuda(steps, Persistent(cuda_on_cpu.kernels(library), lambda: SMALL))
    for _ in range(2):  # tried once, before the first run
        case, how = Case("gru", 3, 2, 5), {"ragged": True, "reverse": True}
        found = case.run(engine, InPlace(xp, 0), on_standin("float32"), **how)
        assert largest_error(found, case.run(recurrence, HOST, np.copy, **how)) < 2e-5
    assert xp.launches["gru_all_backward"] == 1 + 2
    assert xp.launches["gru_backward"] == 12


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (("x[0] + h[0], x[1] + h[1], x[2]", "x[1] + h[1], x[0] + h[0], x[2]"), "off by"),
        (("h[after * size + at] = value", "h[after * size + at] = 0 / (value - value)"), "by nan"),
        (("if (n + 1 < steps) meet", "if (blockIdx.x == 1) return; meet"), "Deadlock"),
    ],
)
def test_a_kernel_that_goes_wrong_is_not_used(
    fault: tuple[str, str], said: str, steps: Fused, xp: Any, tmp_path: Path
) -> None:
    path = cuda_on_cpu.library(without(replaced(*fault), "tanh", "relu", "lstm"), tmp_path)
    engine = Cuda(steps, Persistent(cuda_on_cpu.kernels(path), lambda: SMALL))
    case, how = Case("gru", 3, 2, 5), {"ragged": True, "reverse": True}
    with pytest.warns(RuntimeWarning, match=f"kernel of all steps of GRU goes wrong.*{said}"):
        found = case.run(engine, InPlace(xp, 0), on_standin("float32"), **how)
    assert largest_error(found, case.run(recurrence, HOST, np.copy, **how)) < 2e-5


def replaced(right: str, wrong: str) -> str:
    text = persistent.source()
    assert right in text, right
    return text.replace(right, wrong)


def without(source: str, *names: str) -> str:
    """Leave out the kernels of some cells: they take time to compile."""
    return re.sub(rf"\nKERNELS\(({'|'.join(names)}), .*", "", source)


# In the kernels' source: what stands there, and a mistake instead.
FAULTS = {
    "gates swapped": ("x[0] + h[0], x[1] + h[1], x[2]", "x[1] + h[1], x[0] + h[0], x[2]"),
    "a unit beside": ("+ own.first + k / width]", "+ (own.first + k / width + 1) % hidden]"),
    "the state of another tile": ("before * size + first * hidden", "before * size"),
    "the last state of a tile left out": ("column + j < count)", "column + j < count - 1)"),
    "the gradient that passes by forgotten": ("number whole = dh[at];", "number whole = 0;"),
    "a step that does not count": ("bool counts = !valid ||", "bool counts = true ||"),
    "the step before, not after": ("reverse ? t - 1 : t + 1;", "t;"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, xp: Any, tmp_path: Path) -> None:
    source = without(replaced(*FAULTS[fault]), "tanh", "relu")
    path = cuda_on_cpu.library(source, tmp_path, "-O0")
    worst = 0.0
    for name in ("lstm", "gru"):
        found = errors(path, xp, name, ((3, 5, 9), 2, 450), 1, reverse=False, ragged=True)
        worst = np.maximum(worst, found)  # NaN stays
    assert not worst < 1e-3


def test_a_block_that_leaves_early_is_a_deadlock(xp: Any, tmp_path: Path) -> None:
    source = replaced("if (n + 1 < steps) meet", "if (blockIdx.x == 1) return; meet")
    path = cuda_on_cpu.library(without(source, "tanh", "relu", "gru"), tmp_path)
    with pytest.raises(cuda_on_cpu.Deadlock):
        errors(path, xp, "lstm", SIZES["uneven"], 0, reverse=False, ragged=False)


def sanitized(sanitizer: str, source: str, folder: Path, *orders: int) -> list[str]:
    """Run the LSTM's kernels under a sanitizer; return what it prints with each schedule."""
    (folder / "persistent.cu").write_text(without(source, "tanh", "relu", "gru"))
    here, made = Path(__file__).parent / "cuda", folder / "main"
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    flags = [
        "-std=c++20",
        "-O1",
        "-g1",
        "-w",
        f"-fsanitize={sanitizer}",
        f"-I{here}",
        f"-I{folder}",
    ]
    subprocess.run(["g++", *flags, here / "main.cpp", "-o", made], check=True)
    found = plan.plans(4, 37, 3, device("lstm", (3, 3, 37), 3, 900))
    assert found is not None
    assert all(each.tile < 3 for each in found)
    numbers = [str(number) for each in found for number in each]
    runs = [
        subprocess.run([made, *numbers, str(order)], capture_output=True, text=True, timeout=60)
        for order in orders
    ]
    return [run.stdout + run.stderr for run in runs]


RELAXED = """__atomic_fetch_add(counter, 1, __ATOMIC_RELAXED), grid::moved();
    while"""
RACES = {
    "no barrier of the grid": ("    arrive(counter);\n    while", "    if (0) while"),
    "no barrier after staging": (
        "to[k] = __ldcg(from + k);\n  __syncthreads();",
        "to[k] = __ldcg(from + k);",
    ),
    "no barrier before the next tile": ("      __syncthreads();  // before", "  // before"),
    "the arrival orders nothing": ("arrive(counter);\n    while", RELAXED),
}


def test_no_races(tmp_path: Path) -> None:
    said = sanitized("thread", persistent.source(), tmp_path, 0, 2)
    assert said == ["finished\n", "finished\n"]


@pytest.mark.parametrize("race", RACES)
def test_planted_races_are_caught(race: str, tmp_path: Path) -> None:
    (said,) = sanitized("thread", replaced(*RACES[race]), tmp_path, 0)
    assert "data race" in said
    assert "persistent.cu" in said


OVERRUNS = {
    "of y": ("y[t * size + at] = counts", "y[(t + 1) * size + at] = counts"),
    "of the shared memory": ("sums[(row + i) * tile", "sums[(row + i + 4) * tile"),
}


def test_no_overruns(tmp_path: Path) -> None:
    (said,) = sanitized("address", persistent.source(), tmp_path, 0)
    assert said.startswith("finished\n")
    assert "ERROR" not in said  # a warning of its own, of the fibers' stacks, is none


@pytest.mark.parametrize("overrun", OVERRUNS)
def test_planted_overruns_are_caught(overrun: str, tmp_path: Path) -> None:
    (said,) = sanitized("address", replaced(*OVERRUNS[overrun]), tmp_path, 0)
    assert "heap-buffer-overflow" in said


def test_the_device_is_asked_and_the_kernels_are_set_up_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: dict[str, Any] = {}

    class Module:
        def __init__(self, **given: Any) -> None:
            made.update(given)

        def get_function(self, name: str) -> Any:
            return SimpleNamespace(name=name)

    def device(index: int = 7) -> Any:
        has = {"MultiProcessorCount": 132, "MaxSharedMemoryPerBlockOptin": 232448}
        return SimpleNamespace(id=index, attributes={**has, "CooperativeLaunch": 1})

    fake = SimpleNamespace(cuda=SimpleNamespace(Device=device), RawModule=Module)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    for kept in (persistent._limits, persistent._compiled):
        kept.cache_clear()
        monkeypatch.setattr(persistent, kept.__name__, kept.__wrapped__)
    assert persistent.limits() == H100
    kernel: Any = persistent.compiled(32)("lstm_all_forward")
    assert kernel.name == "lstm_all_forward"
    assert kernel.max_dynamic_shared_size_bytes == 232448
    assert made["enable_cooperative_groups"] is True
    assert made["code"] == persistent.source()
