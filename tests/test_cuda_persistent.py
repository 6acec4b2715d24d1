"""Kernels of all steps, on the processor from the same source, against the core in float64."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import standin
from cuda_on_cpu import Library
from cuda_runs import (
    DTYPES,
    FEW,
    FUSED,
    GATES,
    H100,
    LEAVES,
    SIZES,
    SMALL,
    SWAPPED,
    Fault,
    Places,
    errors,
    faulty,
    lying,
    replaced,
)
from named_cells import make_cell
from targets import need_module
from test_cuda_fused import HOST, LIMITS, Case, largest_error, on_standin

from rnn_xp import recurrence
from rnn_xp.backend import Backend
from rnn_xp.doctor import parity
from rnn_xp.doctor.engines import run_by
from rnn_xp.engines.cuda import persistent, plan, trial
from rnn_xp.engines.cuda.engine import Cuda
from rnn_xp.engines.cuda.fused import Fused
from rnn_xp.engines.cuda.persistent import Persistent
from rnn_xp.engines.cuda.plan import THREADS, Layout, Limits, Plan
from rnn_xp.engines.cuda.wave import Wave

SOME = ("groups of one block", "tiles of a share", "more than threads")
"""Sizes for bfloat16, which is float16 but for its conversions."""


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [(d, size) for size in SIZES for d in DTYPES if d != "bfloat16" or size in SOME],
)
def test_values_and_all_gradients_are_the_core_s(
    dtype: str, name: str, sizes: str, library: Library, xp: Any
) -> None:
    for how in ({"reverse": False, "ragged": False}, {"reverse": True, "ragged": True}):
        assert errors(library, xp, name, SIZES[sizes], 0, dtype, **how) < LIMITS[dtype], how
    assert not xp.reads


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", GATES)
def test_every_schedule_gives_the_same(dtype: str, name: str, library: Library, xp: Any) -> None:
    how = {"reverse": False, "ragged": True}
    for order in (1, 2, 3):
        assert errors(library, xp, name, SMALL, order, dtype, **how) < LIMITS[dtype], order


# A product of whole numbers, whose sums every dtype holds, with each of the layouts given.
PRODUCT = """
template <class Weights, int ROWS, int WIDTH>
void multiplied(long long count, const stored* weights, const stored* states, stored* out) {
  SHARED(shared);
  const long long tile = count + 1;
  const Weights held(shared, [&](int row, int column) { return weights[row * WIDTH + column]; });
  stored* const own = (stored*)((Four*)shared + Weights::SPARE);
  number* const sums = (number*)(own + tile * distance(WIDTH));
  for (int k = threadIdx.x; k < tile * distance(WIDTH); k += THREADS)
    own[k] = k / distance(WIDTH) < count && k % distance(WIDTH) < WIDTH
                 ? states[k / distance(WIDTH) * WIDTH + k % distance(WIDTH)] : 0;
  __syncthreads();
  held.multiply(sums, own, count, tile);
  __syncthreads();
  for (int k = threadIdx.x; k < count * ROWS; k += THREADS)
    store(out + k, Weights::total(sums, tile, k / ROWS, k % ROWS));
}
extern "C" void product(long long which, long long count, const stored* weights,
                        const stored* states, stored* out) {
  switch (which) {
CASES
  }
}
"""


MULTIPLIED = ((21, 37), (200, 70))
"""Rows and width."""


@cache
def laid_out(bits: int) -> list[tuple[int, int, Layout]]:
    """Return all ways in which some weights can lie, in registers and beyond."""
    return [
        (rows, width, laid)
        for rows, width in MULTIPLIED
        for held in (8 if bits == 16 else 32, plan.HELD)
        for laid in plan.layouts(rows, width, bits, held)
    ]


def product_source(bits: int, text: str) -> str:
    each = [
        f"case {k}: return multiplied<Held<{rows}, {width}, {laid.tall}, {laid.wide}, {laid.more}, "
        f"{laid.side}>, {rows}, {width}>(count, weights, states, out);"
        for k, (rows, width, laid) in enumerate(laid_out(bits))
    ]
    return text + PRODUCT.replace("CASES", "\n".join(each))


def wrong_products(text: str, dtype: str, xp: Any, folder: Path) -> list[tuple[int, int, Layout]]:
    """Return the layouts whose products are wrong, of a source."""
    bits, rng = 8 * np.dtype(dtype).itemsize, np.random.default_rng(0)
    both = lying((1,), bits, SIZES["one of all"])
    flags = ("-O0",)
    made = Library(lambda _: product_source(bits, text), folder, *flags)
    kernel: Any = made.kernels()(
        "product", persistent.options(dtype, 1, both[0].units, both[0].layouts)
    )
    wrong = []
    for which, (rows, width, laid) in enumerate(laid_out(bits)):
        for count in (1, 3, 9):
            weights, states = (rng.integers(-1, 2, (size, width)) for size in (rows, count))
            out = on_standin(dtype)(np.zeros((count, rows)))
            arrays = [on_standin(dtype)(a) for a in (weights, states)]
            kernel((1,), (THREADS,), (which, count, *arrays, out), shared_mem=10**6)
            if not np.array_equal(out._host.astype(float), states @ weights.T):
                wrong.append((rows, width, laid))
                break
    return wrong


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_layout_multiplies(dtype: str, xp: Any, tmp_path: Path) -> None:
    bits = 8 * np.dtype(dtype).itemsize
    met = [laid for _, _, laid in laid_out(bits)]
    assert {laid.tall for laid in met} == ({1, 2, 4, 8} if bits == 32 else {1, 2})
    assert {laid.side for laid in met} == ({1, 2, 4, 8} if bits == 32 else {1})
    assert {laid.parts > 1 for laid in met} == {laid.more > 0 for laid in met} == {True, False}
    assert not wrong_products(persistent.source("tanh_all_forward"), dtype, xp, tmp_path)


PRODUCT_FAULTS: dict[str, tuple[str, Fault]] = {
    "a state left out": ("float32", ("first + s < count)", "first + s < count - 1)")),
    "another lane's row": ("float32", ("(r ^ kept(lane))", "r")),
    "a lane's sum forgotten": ("float32", ("sum[r] += __shfl", "sum[r] = __shfl")),
    "other columns": (
        "float32",
        ("(c * ALONG + lane % ALONG) * 4 + i", "(c * ALONG + lane % ALONG) + i"),
    ),
    "a row left out": ("float32", ("TALL > ALONG ? TALL / ALONG : 1", "1")),
    "beyond registers forgotten": (
        "float32",
        ("spare[k * THREADS] = four", "(void)four"),
    ),
    "those beyond at others' columns": ("float32", ("ALONG * (WIDE + c)", "ALONG * c")),
    "rows beside": ("float16", ("lane / 4 + i % 2 * 8", "lane / 4 + 1 + i % 2 * 8")),
    "columns swapped": (
        "float16",
        ("*(const unsigned*)(state + 16 * c),", "*(const unsigned*)(state + 16 * c + 8),"),
    ),
    "a part of the width left out": (
        "float16",
        ("WIDE + MORE; c++) {\n        if (!All", "WIDE + MORE - 1; c++) {\n        if (!All"),
    ),
    "a part's sums forgotten": ("float16", ("p = 1; p < PARTS", "p = 2; p < PARTS")),
    "sums of one kind forgotten": ("float16", ("k = 1; k < APART", "k = 2; k < APART")),
    "two columns kept as one": ("float16", ("first + pair + i % 2;", "first + pair;")),
    "the last states left out": (
        "float16",
        ("first < count; first += 8", "first + 8 <= count; first += 8"),
    ),
    "another thread's weights": (
        "float16",
        ("(Four*)shared + threadIdx.x", "(Four*)shared + threadIdx.x / 2"),
    ),
}


@pytest.mark.parametrize("fault", PRODUCT_FAULTS)
def test_planted_faults_of_products_are_caught(fault: str, xp: Any, tmp_path: Path) -> None:
    dtype, mistake = PRODUCT_FAULTS[fault]
    text = replaced(persistent.source("tanh_all_forward"), mistake)
    assert wrong_products(text, dtype, xp, tmp_path)


@pytest.mark.parametrize("name", ["rnn_tanh", "lstm", "gru", "gru_reset_before"])
def test_zeros_for_none_and_no_bias(name: str, library: Library, xp: Any) -> None:
    case, how = Case(name, 3, 2, 5, bias=False), {"ragged": False, "reverse": False}
    engine = Persistent(library.kernels(), lambda: H100)
    case.state = case.dstate = [None for _ in case.state]
    found = case.run(engine, xp, on_standin("float32"), **how)
    case.state = case.dstate = [np.zeros((1, 2, 5)) for _ in case.state]
    assert largest_error(found, case.run(recurrence, HOST, np.copy, **how)) < 2e-5


def test_a_run_is_one_kernel(library: Library, xp: Any) -> None:
    for name, kernel, gradients in (("lstm", "lstm", 4), ("gru_reset_before", "reset", 5)):
        case, how = Case(name, 7, 2, 5), {"ragged": False, "reverse": False}
        engine = Persistent(library.kernels(), lambda: H100)
        xp.launches.clear()
        case.run(engine, xp, on_standin("float32"), **how)
        assert xp.launches[f"{kernel}_all_forward"] == 2  # one keeps, one does not
        assert xp.launches[f"{kernel}_all_backward"] == 1
        assert xp.launches["dot"] == 2 + gradients


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("ragged", [False, True])
def test_two_directions_at_once(
    name: str, ragged: bool, library: Library, xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "passes", lambda *_: True)
    streams = Places()
    whole = Persistent(library.kernels(), lambda: H100)
    engine = Cuda(FUSED, whole, streams)
    case, how = Case(name, 3, 4, 70, ways=2), {"ragged": ragged, "reverse": False}
    found = case.run(engine, xp, on_standin("float32"), **how)
    assert largest_error(found, case.run(recurrence, HOST, np.copy, **how)) < 2e-5
    assert streams.said == ["fork", "first", "second", "join"] * 3
    assert not xp.reads


@pytest.mark.parametrize("cell", parity.CELLS)
@pytest.mark.parametrize("ragged", [False, True])
def test_levels_at_once(
    cell: str, ragged: bool, library: Library, xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "passes", lambda *_: True)
    monkeypatch.setattr(plan, "BEGIN", 1.0)  # so that few steps are enough
    monkeypatch.setattr(plan, "RUN", 0.0)
    engine = Cuda(FUSED, Persistent(library.kernels(), lambda: H100))
    config = parity.Config(cell, (9, 4, 33, 70), 2, ragged=ragged, carried=True)
    best = engine.able(config.layer.equations, np.dtype("float32"), (9, 4), xp, 1, 2)[-1]
    assert isinstance(best, Wave)
    assert 1 <= best.steps <= 4
    backend = Backend("cupy", xp, standin.Device(0), "cuda:0")
    given = run_by(config.layer, engine), parity.problem_of(config), backend, "float32"
    errors = parity.errors_of(parity.results(*given), parity.reference(config), "float32")
    assert max(errors.values()) < 2e-5
    chunks = -(-9 // best.steps)
    ran = [count for name, count in xp.launches.items() if "_all_" in name]
    assert ran == [2 * chunks, 2 * chunks]  # of each level, forward and backward


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float32") for name in GATES), ("lstm", "float16")]
)
def test_the_trial_passes(name: str, dtype: str, library: Library, steps: Fused, xp: Any) -> None:
    whole = Persistent(library.kernels(), lambda: Limits(20, 60000, True))
    assert trial.passes(whole, steps, make_cell(name, 5), np.dtype(dtype), xp)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GATES)
def test_the_trial_tries_blocks_that_wait_for_each_other(
    name: str, dtype: str, steps: Fused, xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Plan] = []
    true = plan.plans

    def plans(*given: Any) -> Any:
        seen.extend(true(*given) or ())
        return true(*given)

    monkeypatch.setattr(persistent, "plans", plans)
    persistent._planned.cache_clear()
    tried = Persistent(lambda *_: lambda *_, **__: None, lambda: H100)
    # Kernels that do nothing are found out.
    with pytest.warns(trial.TrialWarning), np.errstate(all="ignore"):
        assert not trial.passes(tried, steps, make_cell(name, 5), np.dtype(dtype), xp)
    assert {found.members > 1 for found in seen} == {True, False}


def test_the_engine_runs_what_it_chose(library: Library, steps: Fused, xp: Any) -> None:
    engine = Cuda(steps, Persistent(library.kernels(), lambda: Limits(3, 60000, True)))
    for _ in range(2):  # tried once, before the first run
        case, how = Case("gru", 3, 2, 5), {"ragged": True, "reverse": True}
        found = case.run(engine, xp, on_standin("float32"), **how)
        assert largest_error(found, case.run(recurrence, HOST, np.copy, **how)) < 2e-5
    assert xp.launches["gru_all_backward"] == 1 + 2  # blocks that wait do not fit
    assert xp.launches["gru_backward"] == 12


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (SWAPPED, "off by"),
        (("row.after, batch), value);", "row.after, batch), 0 / (value - value));"), "by nan"),
        (LEAVES, "Deadlock"),
    ],
)
def test_a_kernel_that_goes_wrong_is_not_used(
    fault: Fault, said: str, steps: Fused, xp: Any, tmp_path: Path
) -> None:
    made = Library(faulty(fault), tmp_path)
    engine = Cuda(steps, Persistent(made.kernels(), lambda: FEW))
    case, how = Case("gru", 3, 2, 5), {"ragged": True, "reverse": True}
    with pytest.warns(RuntimeWarning, match=f"float32 CUDA kernel of all steps of GRU.*{said}"):
        found = case.run(engine, xp, on_standin("float32"), **how)
    assert largest_error(found, case.run(recurrence, HOST, np.copy, **how)) < 2e-5


def test_the_device_is_asked_and_the_kernels_are_set_up_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: dict[str, Any] = {}
    cupy = need_module("cupy")

    class Module:
        def __init__(self, **given: Any) -> None:
            cupy.RawModule(**given)  # takes it; a device is needed later
            made.update(given)

        def get_function(self, name: str) -> Any:
            return SimpleNamespace(name=name)

    def device(index: int = 7) -> Any:
        has = {"MultiProcessorCount": 132, "MaxSharedMemoryPerBlockOptin": 232448}
        attributes = {**has, "CooperativeLaunch": 1}
        assert all(hasattr(cupy.cuda.runtime, f"cudaDevAttr{name}") for name in attributes)
        return SimpleNamespace(id=index, attributes=attributes, compute_capability="90")

    fake = SimpleNamespace(cuda=SimpleNamespace(Device=device), RawModule=Module)
    monkeypatch.setitem(sys.modules, "cupy", fake)
    for kept in (persistent._limits, persistent._kernel):
        kept.cache_clear()
        monkeypatch.setattr(persistent, kept.__name__, kept.__wrapped__)
    assert persistent.limits() == H100._replace(capability=90, device=7)
    found, _ = lying((4,), 32, SIZES["groups of one block"])
    options = persistent.options("float32", 5, found.units, found.layouts)
    kernel: Any = persistent.compiled("lstm_all_forward", options)
    assert kernel.name == "lstm_all_forward"
    assert kernel.max_dynamic_shared_size_bytes == 232448
    assert made["enable_cooperative_groups"] is True
    assert made["code"] == persistent.source("lstm_all_forward")
    assert made["options"] == options
    assert options[:2] == ("--std=c++17", "-DBITS=32")
    assert {"-DTHREADS=512", "-DHIDDEN=5", "-DUNITS=5"} < set(options)
