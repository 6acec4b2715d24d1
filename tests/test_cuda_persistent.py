"""Kernels of all steps, on the processor from the same source, against the core in float64."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cuda_on_cpu
import elementwise_on_cpu
import numpy as np
import pytest
import standin
from targets import need_compiler, need_module
from test_cuda_fused import HOST, LIMITS, Case, largest_error, on_standin, trusted

from rnn_xp import recurrence
from rnn_xp.accelerate import OneByOne, one_by_one
from rnn_xp.accelerate.cuda import fused, persistent, plan, trial
from rnn_xp.accelerate.cuda.engine import Cuda
from rnn_xp.accelerate.cuda.fused import Fused
from rnn_xp.accelerate.cuda.persistent import Persistent
from rnn_xp.accelerate.cuda.plan import Limits, Work
from rnn_xp.accelerate.cuda.wave import Wave
from rnn_xp.backend import Backend, InPlace
from rnn_xp.cells import make_cell
from rnn_xp.doctor import parity
from rnn_xp.doctor.engines import run_by

GATES = {
    "rnn_tanh": (1,),
    "rnn_relu": (1,),
    "lstm": (4,),
    "gru": (3,),
    "gru_reset_before": (2, 1),
}
DTYPES = ("float32", "float16", "bfloat16")
H100 = Limits(132, 232448, True)
T4 = Limits(40, 65536, True, 75)
SMALL = Limits(3, 60000, True)


def no_kernels(dtype: str) -> Any:
    raise AssertionError("nothing is to run")


FUSED = Fused(no_kernels)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder = tmp_path_factory.mktemp("kernels")
    source = persistent.source()
    return tuple(cuda_on_cpu.library(source, folder, dtype=dtype) for dtype in DTYPES)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Fused:
    return Fused(elementwise_on_cpu.kernels(fused.source(), tmp_path_factory.mktemp("steps")))


@pytest.fixture
def xp() -> Any:
    need_module("ml_dtypes")  # NumPy knows bfloat16 by it
    standin.xp.start(need_module("cupy"), need_module("array_api_compat.cupy"))
    return standin.xp


def errors(
    paths: tuple[Path, ...],
    xp: Any,
    name: str,
    sizes: tuple[Any, ...],
    order: int,
    dtype: str = "float32",
    **how: bool,
) -> float:
    """Return the largest error of values and gradients."""
    steps, batch, hidden = sizes[0]
    if dtype != "float32":
        hidden += hidden % 2
    case = Case(name, steps, batch, hidden)
    limits = device(Work(GATES[name], 8 * np.dtype(dtype).itemsize), hidden, *sizes[1:])
    expected = case.run(recurrence, HOST, np.copy, **how)
    engine = Persistent(cuda_on_cpu.kernels(*paths, order=order), lambda: limits)
    found = case.run(engine, InPlace(xp, 0), on_standin(dtype), **how)
    assert {a.dtype.name for a in found} == {dtype}
    return largest_error(*(trusted(each, name, dtype) for each in (found, expected)))


# (T, B, H); multiprocessors; sequences at once that shared memory has room for.
SIZES = {
    "one of all": ((1, 1, 1), 4, 1),
    "uneven": ((4, 3, 5), 2, 2),
    "tiles of the batch": ((3, 17, 37), 3, 6),
    "a block alone": ((2, 3, 5), 1, 3),
    "several rounds": ((2, 3, 130), 5, 2),
    "a last block with few units": ((2, 8, 14), 3, 8),
}


def device(work: Work, hidden: int, blocks: int, tile: int) -> Limits:
    """Return a device that has just so much room."""
    both = plan.plans(work, hidden, tile, Limits(blocks, 10**9, True))
    assert both is not None
    return Limits(blocks, max(found.shared for found in both), True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize(("reverse", "ragged"), [(False, False), (True, True)])
@pytest.mark.parametrize("sizes", SIZES)
def test_values_and_all_gradients_are_the_core_s(
    dtype: str,
    name: str,
    reverse: bool,
    ragged: bool,
    sizes: str,
    libraries: tuple[Path, ...],
    xp: Any,
) -> None:
    how = {"reverse": reverse, "ragged": ragged}
    assert errors(libraries, xp, name, SIZES[sizes], 0, dtype, **how) < LIMITS[dtype]
    assert not xp.reads


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_every_schedule_gives_the_same(
    dtype: str, name: str, order: int, libraries: tuple[Path, ...], xp: Any
) -> None:
    how = {"reverse": False, "ragged": True}
    assert errors(libraries, xp, name, SIZES["uneven"], order, dtype, **how) < LIMITS[dtype]


@pytest.mark.parametrize("name", ["lstm", "gru_reset_before"])
def test_blocks_without_units(
    name: str, libraries: tuple[Path, ...], xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = plan.fit

    def wider(*given: Any) -> Any:
        found = fit(*given)
        return found and found._replace(blocks=found.blocks + 2)

    monkeypatch.setattr(plan, "fit", wider)
    plan.plans.cache_clear()
    assert errors(libraries, xp, name, SIZES["uneven"], 1, reverse=False, ragged=False) < 2e-5
    plan.plans.cache_clear()


@pytest.mark.parametrize("name", ["rnn_tanh", "lstm", "gru", "gru_reset_before"])
def test_zeros_for_none_and_no_bias(name: str, libraries: tuple[Path, ...], xp: Any) -> None:
    case, how = Case(name, 3, 2, 5, bias=False), {"ragged": False, "reverse": False}
    engine = Persistent(cuda_on_cpu.kernels(*libraries), lambda: H100)
    case.state = case.dstate = [None for _ in case.state]
    found = case.run(engine, InPlace(xp, 0), on_standin("float32"), **how)
    case.state = case.dstate = [np.zeros((1, 2, 5)) for _ in case.state]
    assert largest_error(found, case.run(recurrence, HOST, np.copy, **how)) < 2e-5


def test_a_run_is_one_kernel(libraries: tuple[Path, ...], xp: Any) -> None:
    for name, kernel, gradients in (("lstm", "lstm", 3), ("gru_reset_before", "reset", 4)):
        case, how = Case(name, 7, 2, 5), {"ragged": False, "reverse": False}
        engine = Persistent(cuda_on_cpu.kernels(*libraries), lambda: H100)
        xp.launches.clear()
        case.run(engine, InPlace(xp, 0), on_standin("float32"), **how)
        assert xp.launches[f"{kernel}_all_forward"] == 2  # one keeps, one does not
        assert xp.launches[f"{kernel}_all_backward"] == 1
        assert xp.launches["dot"] == 2 + gradients


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("gates", set(GATES.values()))
def test_the_plan_stays_within_the_device(gates: tuple[int, ...], bits: int) -> None:
    most = {65536: 75, 101376: 86, 166912: 80, 232448: 90}  # bytes of a block: CUDA's own figures
    devices = [Limits(count, shared, True, of) for shared, of in most.items() for count in (3, 40)]
    for limits in (H100, Limits(3, 17000, True), *devices):
        for hidden in (1, 5, 37, 130, 512, 1320, 1848):
            for batch in (1, 3, 17, 256):
                both = plan.plans(Work(gates, bits), hidden, batch, limits)
                assert both is None or bits == 32 or hidden % 2 == 0
                for found in both or ():
                    assert found.blocks <= limits.multiprocessors
                    assert found.shared <= limits.shared
                    assert 1 <= found.tile <= batch
                    assert (found.blocks - 1) * found.units < hidden
                    assert found.blocks * found.units >= hidden
    (_, batch, hidden), blocks, tile = SIZES["tiles of the batch"]
    work, hidden = Work(gates, bits), hidden + 1
    both = plan.plans(work, hidden, batch, device(work, hidden, blocks, tile))
    assert both is not None
    assert tile <= min(found.tile for found in both) < batch


def test_how_large_a_network_an_h100_holds() -> None:
    for gates, bits, largest in (((4,), 32, 1320), ((4,), 16, 1848), ((3,), 32, 1496)):
        most = max(h for h in range(2, 2500, 2) if plan.plans(Work(gates, bits), h, 1, H100))
        assert 0.9 * largest < most <= 1.02 * largest


def test_what_does_not_fit_or_pay_is_left_to_the_others(
    xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "passes", lambda *_: True)

    def chosen(name: str, hidden: int, batch: int, dtype: str, limits: Limits) -> Any:
        engine = Cuda(FUSED, Persistent(no_kernels, lambda: limits))
        cell, ops = make_cell(name, hidden), InPlace(xp, 0)
        best: Any = engine.able(cell, np.dtype(dtype), (100, batch), ops)[-1]
        return best.each

    assert isinstance(chosen("lstm", 512, 16, "float32", H100), Persistent)
    assert chosen("lstm", 512, 16, "float64", H100) is FUSED
    assert chosen("lstm", 512, 16, "float32", H100._replace(cooperative=False)) is FUSED
    assert chosen("lstm", 512, 16, "float32", T4) is FUSED  # too large
    assert chosen("lstm", 512, 1024, "float32", H100) is FUSED  # one step fills the device
    assert chosen("lstm", 512, 0, "float32", H100) is FUSED
    assert isinstance(chosen("gru_reset_before", 64, 1, "float32", H100), Persistent)
    assert isinstance(chosen("lstm", 1600, 16, "float16", H100), Persistent)
    assert chosen("lstm", 1600, 16, "float32", H100) is FUSED
    assert chosen("lstm", 511, 16, "float16", H100) is FUSED  # two numbers a word
    assert chosen("lstm", 512, 16, "float32", H100._replace(capability=60)) is FUSED
    assert isinstance(chosen("lstm", 512, 16, "float32", H100._replace(capability=70)), Persistent)
    assert chosen("lstm", 512, 16, "float16", H100._replace(capability=70)) is FUSED
    assert isinstance(chosen("lstm", 512, 16, "bfloat16", H100), Persistent)
    assert chosen("lstm", 512, 16, "bfloat16", H100._replace(capability=75)) is FUSED
    assert chosen("lstm_peephole", 64, 1, "float32", H100) is recurrence


class Places:
    """As `streams`, without one: counts who goes in, in which order."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def place(self, name: str) -> Iterator[None]:
        self.said.append(name)
        yield

    @contextmanager
    def __call__(self, count: int) -> Iterator[tuple[Any, Any]]:
        assert count == 2
        self.said.append("fork")
        yield self.place("first"), self.place("second")
        self.said.append("join")


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("ragged", [False, True])
def test_two_directions_at_once(
    name: str, ragged: bool, libraries: tuple[Path, ...], xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "passes", lambda *_: True)
    streams = Places()
    whole = Persistent(cuda_on_cpu.kernels(*libraries), lambda: H100)
    engine = Cuda(FUSED, whole, streams)
    case, how = Case(name, 3, 4, 70, ways=2), {"ragged": ragged, "reverse": False}
    found = case.run(engine, InPlace(xp, 0), on_standin("float32"), **how)
    assert largest_error(found, case.run(recurrence, HOST, np.copy, **how)) < 2e-5
    assert streams.said == ["fork", "first", "second", "join"] * 3
    assert not xp.reads


def test_when_two_directions_run_at_once(xp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "passes", lambda *_: True)

    def chosen(name: str, hidden: int, batch: int) -> Any:
        engine = Cuda(FUSED, Persistent(no_kernels, lambda: H100), Places())
        cell, ops = make_cell(name, hidden), InPlace(xp, 0)
        return engine.able(cell, np.dtype("float32"), (100, batch), ops, 2)[-1]

    for name in GATES:
        both = chosen(name, 256, 4)
        assert both.each.limits() == H100._replace(multiprocessors=66)
        assert isinstance(both.places, Places)
    assert chosen("lstm", 1200, 1).each.limits() == H100  # its weights fill the whole device
    assert chosen("lstm", 1200, 1).places is one_by_one
    assert chosen("lstm", 512, 1024).each is FUSED


def test_when_levels_run_at_once(xp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "passes", lambda *_: True)

    def chosen(steps: int, hidden: int, levels: int, ways: int = 1) -> Any:
        engine = Cuda(FUSED, Persistent(no_kernels, lambda: H100), Places())
        cell, ops, dtype = make_cell("lstm", hidden), InPlace(xp, 0), np.dtype("float32")
        return engine.able(cell, dtype, (steps, 16), ops, ways, levels)[-1]

    for levels in (2, 3):
        best = chosen(1024, 256, levels)
        assert isinstance(best, Wave)
        assert isinstance(best.each, Persistent)
        assert best.each.limits().multiprocessors == 132 // levels
        assert isinstance(best.places, Places)
        # Chunks that are long enough for the host, and several of them.
        assert 16 * levels <= best.steps <= 1024 / 4
    for other in (chosen(100, 256, 2), chosen(1024, 256, 1), chosen(1024, 1024, 2)):
        # Too short; nothing to run at once; too large for a half.
        assert type(other) is OneByOne
        assert isinstance(other.each, Persistent)
        assert other.each.limits() == H100
    assert chosen(1024, 1600, 2).each is FUSED
    # `rnn-xp doctor` finds such levels, on a small device as well.
    long = [c for c in parity.grid(quick=False, gpu=True) if c.shape[0] > 100]
    assert {config.cell for config in long} == set(parity.CELLS)
    for engine in (Cuda(FUSED, Persistent(no_kernels, d)) for d in (lambda: H100, lambda: T4)):
        for config in long:
            given = config.layer.cell, np.dtype("float32"), config.shape[:2], InPlace(xp, 0)
            best = engine.able(*given, 1, config.layers)[-1]
            assert isinstance(best, Wave), config
            assert best.steps < config.shape[0] / 2
    # In two directions a level needs the whole of the one below.
    assert type(chosen(1024, 256, 2, 2)) is OneByOne


@pytest.mark.parametrize("cell", parity.CELLS)
@pytest.mark.parametrize("ragged", [False, True])
def test_levels_at_once(
    cell: str, ragged: bool, libraries: tuple[Path, ...], xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "passes", lambda *_: True)
    monkeypatch.setattr(plan, "BEGIN", 3.0)  # so that few steps are enough
    monkeypatch.setattr(plan, "RUN", 0.0)
    engine = Cuda(FUSED, Persistent(cuda_on_cpu.kernels(*libraries), lambda: H100))
    config = parity.Config(cell, (9, 4, 33, 70), 2, ragged=ragged, carried=True)
    best = engine.able(config.layer.cell, np.dtype("float32"), (9, 4), InPlace(xp, 0), 1, 2)[-1]
    assert isinstance(best, Wave)
    assert 1 <= best.steps <= 4
    backend = Backend("cupy", xp, standin.Device(0), "cuda:0")
    given = run_by(config.layer, engine), parity.problem_of(config), backend, "float32"
    errors = parity.errors_of(parity.results(*given), parity.reference(config), "float32")
    assert max(errors.values()) < 2e-5
    chunks = -(-9 // best.steps)
    ran = [count for name, count in xp.launches.items() if "_all_" in name]
    assert ran == [2 * chunks, 2 * chunks]  # of each level, forward and backward


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GATES)
def test_the_trial_passes(
    name: str, dtype: str, libraries: tuple[Path, ...], steps: Fused, xp: Any
) -> None:
    whole = Persistent(cuda_on_cpu.kernels(*libraries), lambda: Limits(20, 60000, True))
    assert trial.passes(whole, steps, make_cell(name, 5), np.dtype(dtype), InPlace(xp, 0))


def test_the_engine_runs_what_it_chose(libraries: tuple[Path, ...], steps: Fused, xp: Any) -> None:
    engine = Cuda(steps, Persistent(cuda_on_cpu.kernels(*libraries), lambda: SMALL))
    for _ in range(2):  # tried once, before the first run
        case, how = Case("gru", 3, 2, 5), {"ragged": True, "reverse": True}
        found = case.run(engine, InPlace(xp, 0), on_standin("float32"), **how)
        assert largest_error(found, case.run(recurrence, HOST, np.copy, **how)) < 2e-5
    assert xp.launches["gru_all_backward"] == 2 + 2
    assert xp.launches["gru_backward"] == 12


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (("x[0] + h[0], x[1] + h[1], x[2]", "x[1] + h[1], x[0] + h[0], x[2]"), "off by"),
        (("row.after * size + at, value", "row.after * size + at, 0 / (value - value)"), "by nan"),
        (("if (n + 1 < steps) meet", "if (blockIdx.x == 1) return; meet"), "Deadlock"),
    ],
)
def test_a_kernel_that_goes_wrong_is_not_used(
    fault: tuple[str, str], said: str, steps: Fused, xp: Any, tmp_path: Path
) -> None:
    path = cuda_on_cpu.library(only(replaced(*fault), "gru"), tmp_path)
    engine = Cuda(steps, Persistent(cuda_on_cpu.kernels(path), lambda: SMALL))
    case, how = Case("gru", 3, 2, 5), {"ragged": True, "reverse": True}
    with pytest.warns(RuntimeWarning, match=f"float32 CUDA kernel of all steps of GRU.*{said}"):
        found = case.run(engine, InPlace(xp, 0), on_standin("float32"), **how)
    assert largest_error(found, case.run(recurrence, HOST, np.copy, **how)) < 2e-5


def replaced(right: str, wrong: str) -> str:
    text = persistent.source()
    assert right in text, right
    return text.replace(right, wrong)


def only(source: str, *names: str) -> str:
    """Leave out the kernels of other cells: they take time to compile."""
    return re.sub(rf"\nKERNELS\((?!{'|'.join(names)}).*", "", source)


# In the kernels' source: what stands there, and a mistake instead.
FAULTS = {
    "gates swapped": ("x[0] + h[0], x[1] + h[1], x[2]", "x[1] + h[1], x[0] + h[0], x[2]"),
    "a unit beside": ("own.first + row] : 0", "(own.first + row + 1) % own.hidden] : 0"),
    "the state of another tile": ("from + first * width, count", "from, count"),
    "the last state of a tile left out": ("column + j < count)", "column + j < count - 1)"),
    "the gradient that passes by forgotten": ("number whole = load(dh + at);", "number whole = 0;"),
    "a step that does not count": ("bool counts = !valid ||", "bool counts = true ||"),
    "the step before, not after": ("last(reverse ? t - 1 : t + 1)", "last(n < steps ? t : t + 1)"),
    "not the candidate's gradient": (
        "multiply(own, candidate, 1, du,",
        "multiply(own, candidate, 1, dh,",
    ),
    "the candidate's weights beside": ("weights + 2 * units * by;", "weights + units * by;"),
}
TENSOR_CORE_FAULTS = {
    "a row beside": ("column + line, count - 1)", "column + line + 1, count - 1)"),
    "columns swapped": ("*(const word*)(upper + m), ", "*(const word*)(upper + m + 8), "),
    "a part of the width left out": ("m = part * 16", "m = (part + 1) * 16"),
    "a part's sums forgotten": (
        "for (int part = 1; part < parts",
        "for (int part = 2; part < parts",
    ),
    "two columns kept as one": ("column + pair + i % 2;", "column + pair;"),
    "what lies between the rows": ("__ldcg((const word*)from + row * there + column) : 0", "1 : 1"),
}


def worst_error(fault: tuple[str, str], dtype: str, xp: Any, folder: Path) -> float:
    """Return the largest error with a mistake in the source; NaN where there is one."""
    names = ("lstm", "gru", "gru_reset_before")
    source = only(replaced(*fault), "lstm", "gru", "reset")
    path = cuda_on_cpu.library(source, folder, "-O0", dtype=dtype)
    sizes, how = ((3, 5, 10), 2, 2), {"reverse": False, "ragged": True}
    return float(np.max([errors((path,), xp, name, sizes, 1, dtype, **how) for name in names]))


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, xp: Any, tmp_path: Path) -> None:
    assert not worst_error(FAULTS[fault], "float32", xp, tmp_path) < 1e-3


@pytest.mark.parametrize("fault", TENSOR_CORE_FAULTS)
def test_planted_faults_are_caught_in_float16(fault: str, xp: Any, tmp_path: Path) -> None:
    assert not worst_error(TENSOR_CORE_FAULTS[fault], "float16", xp, tmp_path) < 5e-2


def test_a_block_that_leaves_early_is_a_deadlock(xp: Any, tmp_path: Path) -> None:
    source = replaced("if (n + 1 < steps) meet", "if (blockIdx.x == 1) return; meet")
    path = cuda_on_cpu.library(only(source, "lstm"), tmp_path)
    with pytest.raises(cuda_on_cpu.Deadlock):
        errors((path,), xp, "lstm", SIZES["uneven"], 0, reverse=False, ragged=False)


class Watched(NamedTuple):
    """A program of `cuda/main.cpp`: one cell's kernels."""

    kernel: str = "lstm"
    bits: int = 32


WATCHED = (Watched(), Watched("lstm", 16), Watched("reset"), Watched("reset", 16))


def sanitized(
    sanitizer: str,
    source: str,
    folder: Path,
    *orders: int,
    which: Watched = WATCHED[0],
    blocks: int = 3,
) -> list[str]:
    """Run a cell's kernels under a sanitizer; return what it prints with each schedule."""
    (folder / "persistent.cu").write_text(only(source, which.kernel))
    here, made = Path(__file__).parent / "cuda", folder / "main"
    need_compiler()
    gates = GATES["lstm" if which.kernel == "lstm" else "gru_reset_before"]
    flags = ["-std=c++20", "-O1", "-g1", "-w", f"-fsanitize={sanitizer}", f"-I{here}"]
    flags += [f"-I{folder}", f"-DBITS={which.bits}", f"-DCELL={which.kernel}"]
    flags.append(f"-DGATES={','.join(map(str, gates))}")
    subprocess.run(["g++", *flags, here / "main.cpp", "-o", made], check=True)
    work = Work(gates, which.bits)
    found = plan.plans(work, 38, 3, device(work, 38, blocks, 2))
    assert found is not None
    assert min(each.tile for each in found) == 2
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
    "no barrier after staging": (": 0;\n  }\n  __syncthreads();\n}", ": 0;\n  }\n}"),
    "the arrival orders nothing": ("arrive(counter);\n    while", RELAXED),
}
MORE_RACES = {
    "none between the products": (WATCHED[2], ("    meet(counter, 2 * n + 1);\n", "")),
    "none between the parts' sums": (
        WATCHED[1],
        ("  __syncthreads();\n  if (parts == 1) return;", "  if (parts == 1) return;"),
    ),
}


@pytest.mark.parametrize("which", WATCHED)
def test_no_races(which: Watched, tmp_path: Path) -> None:
    said = sanitized("thread", persistent.source(), tmp_path, 0, 2, which=which)
    assert said == ["finished\n", "finished\n"]


@pytest.mark.parametrize("race", RACES)
def test_planted_races_are_caught(race: str, tmp_path: Path) -> None:
    (said,) = sanitized("thread", replaced(*RACES[race]), tmp_path, 0)
    assert "data race" in said
    assert "persistent.cu" in said


@pytest.mark.parametrize("race", MORE_RACES)
def test_planted_races_of_other_kernels_are_caught(race: str, tmp_path: Path) -> None:
    which, fault = MORE_RACES[race]
    (said,) = sanitized("thread", replaced(*fault), tmp_path, 0, which=which)
    assert "data race" in said
    assert "persistent.cu" in said


OVERRUNS = {
    "of y": ("store(y + row.t * size", "store(y + (row.t + 1) * size"),
    "of the shared memory": ("sums[(row + i) * tile", "sums[(row + i + 4) * tile"),
}


@pytest.mark.parametrize("blocks", [3, 8])  # of eight the last one has three units of five
@pytest.mark.parametrize("which", WATCHED)
def test_no_overruns(which: Watched, blocks: int, tmp_path: Path) -> None:
    (said,) = sanitized("address", persistent.source(), tmp_path, 0, which=which, blocks=blocks)
    assert said.startswith("finished\n")
    assert "ERROR" not in said  # a warning of its own, of the fibers' stacks, is none


def test_parts_of_a_sum_for_each_block_s_rows_are_an_overrun(tmp_path: Path) -> None:
    source = replaced("gates * own.units, width", "gates * own.count, width")
    (said,) = sanitized("address", source, tmp_path, 0, which=WATCHED[1], blocks=8)
    assert "heap-buffer-overflow" in said


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
        attributes = {**has, "CooperativeLaunch": 1}
        return SimpleNamespace(id=index, attributes=attributes, compute_capability="90")

    fake = SimpleNamespace(cuda=SimpleNamespace(Device=device), RawModule=Module)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    for kept in (persistent._limits, persistent._compiled):
        kept.cache_clear()
        monkeypatch.setattr(persistent, kept.__name__, kept.__wrapped__)
    assert persistent.limits() == H100._replace(capability=90, device=7)
    kernel: Any = persistent.compiled("float32")("lstm_all_forward")
    assert kernel.name == "lstm_all_forward"
    assert kernel.max_dynamic_shared_size_bytes == 232448
    assert made["enable_cooperative_groups"] is True
    assert made["code"] == persistent.source()
    assert made["options"] == ("--std=c++17", "-DBITS=32")
