"""Kernels of all steps, on the processor from the same source, against the core in float64."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cuda_on_cpu
import elementwise_on_cpu
import numpy as np
import pytest
import standin
from cuda_on_cpu import Deadlock, Library
from targets import need_compiler, need_module
from test_cuda_fused import HOST, LIMITS, Case, largest_error, on_standin, trusted

from rnn_xp import recurrence
from rnn_xp.accelerate import OneByOne, one_by_one
from rnn_xp.accelerate.cuda import fused, persistent, plan, trial
from rnn_xp.accelerate.cuda.engine import Cuda
from rnn_xp.accelerate.cuda.fused import Fused
from rnn_xp.accelerate.cuda.persistent import Persistent
from rnn_xp.accelerate.cuda.plan import THREADS, Layout, Limits, Plan, Work
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
FEW = Limits(20, 2000, True)
"""With so little shared memory that blocks wait for each other."""


def no_kernels(*given: Any) -> Any:
    raise AssertionError("nothing is to run")


FUSED = Fused(no_kernels)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(persistent.source, tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Fused:
    return Fused(elementwise_on_cpu.kernels(fused.source(), tmp_path_factory.mktemp("steps")))


@pytest.fixture
def xp() -> Any:
    need_module("ml_dtypes")  # NumPy knows bfloat16 by it
    standin.xp.start(need_module("cupy"), need_module("array_api_compat.cupy"))
    return standin.xp


class Sizes(NamedTuple):
    """A run, and how it lies on a device."""

    steps: int
    batch: int
    hidden: int
    units: int
    """Of a block."""
    groups: int
    tile: int


SIZES = {
    "one of all": Sizes(1, 1, 1, 1, 1, 1),
    "groups of one block": Sizes(4, 3, 5, 5, 2, 2),
    "a last block with fewer units": Sizes(3, 3, 40, 14, 2, 1),
    "tiles of a share": Sizes(3, 17, 37, 13, 2, 4),
    "weights in shared memory": Sizes(2, 3, 130, 65, 1, 3),
    "more than threads": Sizes(2, 35, 130, 33, 1, 35),
}
SMALL = Sizes(3, 5, 10, 4, 2, 2)


def products(gates: tuple[int, ...], hidden: int) -> tuple[list[tuple[int, int]], ...]:
    """Return the products of a step, forward and backward, as `plan.fit` takes them."""
    return [(count, hidden) for count in gates], [(1, count * hidden) for count in gates]


def lying(gates: tuple[int, ...], bits: int, sizes: Sizes) -> tuple[Plan, Plan]:
    """Return the plans of a run that lies so, whatever it costs."""
    members = -(-sizes.hidden // sizes.units)
    limits = Limits(members * sizes.groups, 10**9, True)

    def one(multiplied: list[tuple[int, int]]) -> Plan:
        found = plan._candidates(
            range(1, limits.multiprocessors + 1),
            multiplied,
            bits,
            sizes.hidden,
            sizes.batch,
            limits,
        )
        best = min((p for p in found if p.units == sizes.units), key=lambda p: p.cost)
        assert (best.members, best.blocks) == (members, members * sizes.groups)
        assert best.tile == best.share
        best = best._replace(tile=sizes.tile)
        return best._replace(shared=shared_of(best, bits, multiplied))

    forward, backward = products(gates, sizes.hidden)
    return one(forward), one(backward)


def shared_of(found: Plan, bits: int, multiplied: list[tuple[int, int]]) -> int:
    """Return the bytes of shared memory that a kernel uses, by the order in which it lies there."""
    spare = sum(16 * THREADS * laid.tall * laid.more for laid in found.layouts)
    width = max(width for _, width in multiplied)
    row = 4 * (-(-width // 4) * 4) if bits == 32 else 2 * (-(-width // 16) * 16 + 8)
    both = zip(multiplied, found.layouts, strict=True)
    sums = 4 * max(rows * found.units * laid.parts for (rows, _), laid in both)
    own, biases = 2 * found.units * found.share, 2 * found.units * sum(n for n, _ in multiplied)
    return spare + found.tile * (row + sums) + 4 * (own + biases)


def errors(
    library: Library,
    xp: Any,
    name: str,
    sizes: Sizes,
    order: int,
    dtype: str = "float32",
    **how: bool,
) -> float:
    """Return the largest error of values and gradients."""
    # With these numbers no rounding to float16 lands on the other side of relu's bend.
    case = Case(name, sizes.steps, sizes.batch, sizes.hidden, seed=2)
    expected = case.run(recurrence, HOST, np.copy, **how)
    found = run(library.kernels(order), xp, case, sizes, dtype, **how)
    assert {a.dtype.name for a in found} == {dtype}
    return largest_error(*(trusted(each, name, dtype) for each in (found, expected)))


def run(
    compiled: persistent.Compiled, xp: Any, case: Case, sizes: Sizes, dtype: str, **how: bool
) -> list[Any]:
    """Return what a run gives that lies so."""
    name = next(name for name in GATES if type(make_cell(name, 1)) is type(case.cell))
    plans = lying(GATES[name], 8 * np.dtype(dtype).itemsize, sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(persistent, "plans", lambda *_: plans)
        return case.run(
            Persistent(compiled, lambda: H100), InPlace(xp, 0), on_standin(dtype), **how
        )


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


@pytest.mark.parametrize("bits", [16, 32])
def test_the_sizes_are_of_every_kind(bits: int) -> None:
    met = set[str]()
    for sizes in SIZES.values():
        for gates in set(GATES.values()):
            both = zip(lying(gates, bits, sizes), products(gates, sizes.hidden), strict=True)
            for found, multiplied in both:
                met |= set(kinds(found, sizes, bits, multiplied))
    assert met == {
        *("alone", "of several", "groups", "uneven groups", "tiles", "an uneven tile"),
        *("fewer units", "more than threads", "vectors", "single numbers", "watched"),
        *("parts", "one part", "weights in shared memory", "a padded row"),
    }


def kinds(found: Plan, sizes: Sizes, bits: int, multiplied: list[tuple[int, int]]) -> Iterator[str]:
    """Yield what a plan is an example of."""
    width = max(width for _, width in multiplied)
    of = {
        "alone": found.members == 1,
        "of several": found.members > 1,
        "groups": found.blocks > found.members,
        "uneven groups": sizes.batch % found.share > 0,
        "tiles": found.tile < found.share,
        "an uneven tile": found.share % found.tile > 0,
        "fewer units": sizes.hidden % found.units > 0,
        "more than threads": found.units * found.tile > THREADS,
        "vectors": found.members > 1 and width * bits // 8 % 16 == 0,
        "single numbers": found.members > 1 and width * bits // 8 % 16 > 0,
        "watched": found.members > 1 and found.tile * (width * bits // 8 // 16) > THREADS,
        "parts": any(laid.parts > 1 for laid in found.layouts),
        "one part": any(laid.parts == 1 for laid in found.layouts),
        "weights in shared memory": any(laid.more for laid in found.layouts),
        "a padded row": width % (4 if bits == 32 else 16) > 0,
    }
    return (name for name, is_one in of.items() if is_one)


@pytest.mark.parametrize("dtype", DTYPES)
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


@pytest.mark.parametrize("name", ["rnn_tanh", "lstm", "gru", "gru_reset_before"])
def test_zeros_for_none_and_no_bias(name: str, library: Library, xp: Any) -> None:
    case, how = Case(name, 3, 2, 5, bias=False), {"ragged": False, "reverse": False}
    engine = Persistent(library.kernels(), lambda: H100)
    case.state = case.dstate = [None for _ in case.state]
    found = case.run(engine, InPlace(xp, 0), on_standin("float32"), **how)
    case.state = case.dstate = [np.zeros((1, 2, 5)) for _ in case.state]
    assert largest_error(found, case.run(recurrence, HOST, np.copy, **how)) < 2e-5


def test_a_run_is_one_kernel(library: Library, xp: Any) -> None:
    for name, kernel, gradients in (("lstm", "lstm", 4), ("gru_reset_before", "reset", 5)):
        case, how = Case(name, 7, 2, 5), {"ragged": False, "reverse": False}
        engine = Persistent(library.kernels(), lambda: H100)
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
    met = 0
    for limits in (H100, FEW, *devices):
        for hidden in (1, 5, 37, 130, 512, 1051, 1848):
            for batch in (1, 3, 17, 256):
                both = plan.plans(Work(gates, bits), hidden, batch, limits)
                for found, multiplied in zip(both or (), products(gates, hidden), strict=False):
                    check(found, limits, hidden, batch, multiplied, bits)
                    met += 1
    assert met > 200


def check(
    found: Plan,
    limits: Limits,
    hidden: int,
    batch: int,
    multiplied: list[tuple[int, int]],
    bits: int,
) -> None:
    """Assert that a plan is within a device, and within the kernels."""
    groups = -(-batch // found.share)
    assert found.blocks == found.members * groups <= limits.multiprocessors
    assert (found.members - 1) * found.units < hidden <= found.members * found.units
    assert (groups - 1) * found.share < batch
    assert 1 <= found.tile <= found.share
    assert found.members > 1 or found.tile == found.share
    assert found.shared <= limits.shared
    assert found.shared == shared_of(found, bits, multiplied)
    held = 0
    for (rows, width), laid in zip(multiplied, found.layouts, strict=True):
        height = laid.tall * (16 if bits == 16 else laid.side)
        column = 16 if bits == 16 else 4 * 32 // laid.side
        across, span = -(-rows * found.units // height), column * (laid.wide + laid.more)
        assert laid.parts == -(-width // span)
        assert 32 * across * laid.parts <= THREADS
        assert laid.wide > 0
        held += 4 * laid.tall * laid.wide
    assert held <= plan.HELD


def test_how_large_a_network_an_h100_holds() -> None:
    for gates, bits, largest in (((4,), 32, 1584), ((4,), 16, 2112), ((3,), 32, 1706)):

        def fits(hidden: int, gates: tuple[int, ...] = gates, bits: int = bits) -> bool:
            return plan.plans(Work(gates, bits), hidden, 1, H100) is not None

        assert all(fits(hidden) for hidden in range(101, int(0.9 * largest), 97))
        assert not any(fits(hidden) for hidden in range(int(1.1 * largest), 4000, 97))


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
    assert isinstance(chosen("lstm", 512, 16, "float32", T4), Persistent)
    assert chosen("lstm", 700, 16, "float32", T4) is FUSED  # too large
    assert chosen("lstm", 512, 1024, "float32", H100) is FUSED  # one step fills the device
    assert chosen("lstm", 512, 0, "float32", H100) is FUSED
    assert isinstance(chosen("gru_reset_before", 64, 1, "float32", H100), Persistent)
    assert isinstance(chosen("lstm", 1600, 16, "float16", H100), Persistent)
    assert chosen("lstm", 1600, 16, "float32", H100) is FUSED
    assert isinstance(chosen("lstm", 511, 16, "float16", H100), Persistent)
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
    name: str, ragged: bool, library: Library, xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "passes", lambda *_: True)
    streams = Places()
    whole = Persistent(library.kernels(), lambda: H100)
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
    cell: str, ragged: bool, library: Library, xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "passes", lambda *_: True)
    monkeypatch.setattr(plan, "BEGIN", 1.0)  # so that few steps are enough
    monkeypatch.setattr(plan, "RUN", 0.0)
    engine = Cuda(FUSED, Persistent(library.kernels(), lambda: H100))
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


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", GATES)
def test_the_trial_passes(name: str, dtype: str, library: Library, steps: Fused, xp: Any) -> None:
    whole = Persistent(library.kernels(), lambda: Limits(20, 60000, True))
    assert trial.passes(whole, steps, make_cell(name, 5), np.dtype(dtype), InPlace(xp, 0))


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
    tried = Persistent(lambda *_: lambda *_, **__: None, lambda: H100)
    # Kernels that do nothing are found out.
    with pytest.warns(trial.TrialWarning), np.errstate(all="ignore"):
        assert not trial.passes(tried, steps, make_cell(name, 5), np.dtype(dtype), InPlace(xp, 0))
    assert {found.members > 1 for found in seen} == {True, False}


def test_the_engine_runs_what_it_chose(library: Library, steps: Fused, xp: Any) -> None:
    engine = Cuda(steps, Persistent(library.kernels(), lambda: Limits(3, 60000, True)))
    for _ in range(2):  # tried once, before the first run
        case, how = Case("gru", 3, 2, 5), {"ragged": True, "reverse": True}
        found = case.run(engine, InPlace(xp, 0), on_standin("float32"), **how)
        assert largest_error(found, case.run(recurrence, HOST, np.copy, **how)) < 2e-5
    assert xp.launches["gru_all_backward"] == 1 + 2  # blocks that wait do not fit
    assert xp.launches["gru_backward"] == 12


Fault = tuple[str, str]
"""What stands in the kernels' source, and a mistake instead."""
SWAPPED: Fault = ("x[0] + h[0], x[1] + h[1], x[2], h", "x[1] + h[1], x[0] + h[0], x[2], h")
LEAVES: Fault = ("n < steps; n++) {", "n < steps; n++) {\n    if (n && blockIdx.x == 1) return;")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (SWAPPED, "off by"),
        (("size + k, value);", "size + k, 0 / (value - value));"), "by nan"),
        (LEAVES, "Deadlock"),
    ],
)
def test_a_kernel_that_goes_wrong_is_not_used(
    fault: Fault, said: str, steps: Fused, xp: Any, tmp_path: Path
) -> None:
    made = Library(faulty(fault), tmp_path, "-O0")
    engine = Cuda(steps, Persistent(made.kernels(), lambda: FEW))
    case, how = Case("gru", 3, 2, 5), {"ragged": True, "reverse": True}
    with pytest.warns(RuntimeWarning, match=f"float32 CUDA kernel of all steps of GRU.*{said}"):
        found = case.run(engine, InPlace(xp, 0), on_standin("float32"), **how)
    assert largest_error(found, case.run(recurrence, HOST, np.copy, **how)) < 2e-5


def replaced(text: str, fault: Fault) -> str:
    right, wrong = fault
    assert right in text, right
    return text.replace(right, wrong)


def faulty(*faults: Fault) -> Callable[[str], str]:
    """Return what gives the kernels' sources with mistakes."""

    def source(name: str) -> str:
        text = persistent.source(name)
        for fault in faults:
            text = replaced(text, fault)
        return text

    return source


# A cell, and a mistake in its kernels.
FAULTS: dict[str, tuple[str, Fault]] = {
    "gates swapped": ("gru", SWAPPED),
    "a weight's column beside": ("rnn_tanh", ("* HIDDEN + column]", "* HIDDEN + column / 2]")),
    "a weight's unit beside": (
        "rnn_tanh",
        ("weights[(long long)column * HIDDEN + unit]", "weights[column * HIDDEN + unit / 2]"),
    ),
    "the states of another tile": ("lstm", ("from = (sequence + begin) *", "from = sequence *")),
    "the states of another group": ("lstm", ("from = (sequence + begin) *", "from = begin *")),
    "the gradient that passes by forgotten": (
        "gru",
        ("own.own[at.slot] = whole;", "own.own[at.slot] = 0;"),
    ),
    "the second one forgotten": ("gru_reset_before", ("own.own[at.slot] += d.h;", "")),
    "a step that does not count": ("lstm", ("!valid ||", "true ||")),
    "the states after, not before": (
        "rnn_tanh",
        ("h + row.before * size : nullptr", "h + row.after * size : nullptr"),
    ),
    "the gradients of this step": (
        "rnn_tanh",
        ("da_hh + row.last *", "da_hh + (n < steps ? row.t : row.last) *"),
    ),
    "c after, not before": ("lstm", ("in.c_before = c[row.before", "in.c_before = c[row.after")),
    "not the candidate's gradient": (
        "gru_reset_before",
        ("nullptr, da_u + row.t * size", "nullptr, dy + row.t * size"),
    ),
    "the candidate's weights beside": (
        "gru_reset_before",
        ("(long long)WIDTH * HIDDEN", "(long long)(WIDTH - 1) * HIDDEN"),
    ),
    "the first state forgotten": (
        "lstm",
        ("own.begin(own.own, h_first);", "own.begin(own.own, nullptr);"),
    ),
    "c's gradient not handed on": ("lstm", ("own.other[at.slot] = d;", "")),
    "a bias forgotten": ("lstm", (" + own.biases[G * UNITS + r]", "")),
    "inputs of another tile": (
        "lstm",
        ("if (works) got = fetched(at, n)", "if (works) got = fetched(place(mine, 0), n)"),
    ),
}


def caught(
    source: Callable[[str], str],
    name: str,
    xp: Any,
    folder: Path,
    *orders: int,
    dtype: str = "float32",
) -> bool:
    """Tell whether a mistake shows in some schedule."""
    made, how = Library(source, folder, "-O0"), {"reverse": False, "ragged": True}
    try:
        found = [errors(made, xp, name, SMALL, order, dtype, **how) for order in orders]
    except Deadlock:
        return True
    return not max(found, key=abs) < 20 * LIMITS[dtype] or bool(np.isnan(found).any())


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, xp: Any, tmp_path: Path) -> None:
    name, mistake = FAULTS[fault]
    assert caught(faulty(mistake), name, xp, tmp_path, 0, 1)


CHECKED: Fault = ("awaited(got[i], (const V*)from + at, patience)", "got[i]")
ALL_WATCHED: Fault = ("begin == 0 && now *", "begin == 0 || now *")
HARMLESS: dict[str, tuple[Fault, ...]] = {
    "nothing": (),
    "always watched": (ALL_WATCHED,),
    "another number watched": (ALL_WATCHED, ("(k + 1) * UNITS - 1", "k * UNITS")),
}
UNCHECKED: dict[str, tuple[Fault, ...]] = {
    "nobody waits": (("while (lacking(got) &&", "while (false &&"),),
    "stage does not": (CHECKED,),
    "only watch does": (CHECKED, ALL_WATCHED),
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("faults", [*HARMLESS, *UNCHECKED])
def test_blocks_wait_for_each_other(faults: str, dtype: str, xp: Any, tmp_path: Path) -> None:
    source = faulty(*{**HARMLESS, **UNCHECKED}[faults])
    assert caught(source, "lstm", xp, tmp_path, *range(12), dtype=dtype) == (faults in UNCHECKED)


PRODUCT_FAULTS: dict[str, tuple[str, Fault]] = {
    "a state left out": ("float32", ("first + s < count)", "first + s < count - 1)")),
    "another lane's row": ("float32", ("(r ^ kept())", "r")),
    "a lane's sum forgotten": ("float32", ("sum[r] += __shfl", "sum[r] = __shfl")),
    "other columns": (
        "float32",
        ("(c * ALONG + lane % ALONG) * 4 + i", "(c * ALONG + lane % ALONG) + i"),
    ),
    "a row left out": ("float32", ("TALL > ALONG ? TALL / ALONG : 1", "1")),
    "beyond registers forgotten": (
        "float32",
        ("spare[(r * MORE + c - WIDE) * THREADS] = four", "(void)0"),
    ),
    "rows beside": ("float16", ("lane / 4 + i % 2 * 8", "lane / 4 + 1 + i % 2 * 8")),
    "columns swapped": (
        "float16",
        ("*(const unsigned*)(state + 16 * c),", "*(const unsigned*)(state + 16 * c + 8),"),
    ),
    "a part of the width left out": (
        "float16",
        ("WIDE + MORE; c++) {\n        if (!Own", "WIDE + MORE - 1; c++) {\n        if (!Own"),
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


KEPT: Fault = ("as.bits == EMPTY ? (Bits)(EMPTY >> 1) : as.bits", "as.bits")


@pytest.mark.parametrize("faults", [(), (KEPT,)])
def test_a_number_that_looks_as_if_it_were_not_there(
    faults: tuple[Fault, ...], xp: Any, tmp_path: Path
) -> None:
    made, case = Library(faulty(*faults), tmp_path, "-O0"), Case("rnn_relu", 3, 3, 5)
    sizes = Sizes(3, 3, 5, 2, 1, 2)
    nan = np.full(1, -1, dtype=np.int64).view(np.float64)[0]
    case.weights[0]["bias_ih"][...] = nan
    how = {"ragged": False, "reverse": False}
    if faults:
        with pytest.raises(Deadlock):
            run(made.kernels(), xp, case, sizes, "float32", **how)
    else:
        y, *_ = run(made.kernels(), xp, case, sizes, "float32", **how)
        assert np.isnan(y._host).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", GATES)
def test_nan_stays_in_its_sequence(name: str, dtype: str, library: Library, xp: Any) -> None:
    assert not spreads(library, name, dtype, xp)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_nan_that_spreads_is_seen(dtype: str, xp: Any, tmp_path: Path) -> None:
    made = Library(faulty(("MORE = padded(WIDTH) - WIDTH;", "MORE = 0;")), tmp_path, "-O0")
    assert spreads(made, "gru_reset_before", dtype, xp)


def spreads(library: Library, name: str, dtype: str, xp: Any) -> bool:
    """Tell whether NaN in x or dy of some sequences is in the results of others."""
    case, sizes = Case(name, 4, 3, 37), Sizes(4, 3, 37, 13, 1, 3)
    case.x[1, 1], case.dy = np.nan, case.dy.copy()
    case.dy[2, 0] = np.nan
    found = run(library.kernels(), xp, case, sizes, dtype, ragged=False, reverse=False)
    y, dx = found[0]._host, found[-1 - len(case.state)]._host
    assert np.isnan(y[:, 1]).any()
    assert np.isnan(dx[:, 0]).any()
    return bool(np.isnan(y[:, [0, 2]]).any() or np.isnan(dx[:, 2]).any())


@pytest.mark.parametrize("faults", [(), (("states[k] = 0;", ";"),)])
def test_no_first_state_is_zeros(faults: tuple[Fault, ...], xp: Any, tmp_path: Path) -> None:
    made, case = Library(faulty(*faults), tmp_path, "-O0"), Case("lstm", 2, 3, 5)
    case.state = [None for _ in case.state]
    how = {"ragged": False, "reverse": False}
    found = run(made.kernels(), xp, case, Sizes(2, 3, 5, 2, 1, 2), "float32", **how)
    case.state = [np.zeros((1, 3, 5)) for _ in case.state]
    error = largest_error(found, case.run(recurrence, HOST, np.copy, **how))
    assert (error < 2e-5) == (not faults)


def test_a_block_that_leaves_early_is_a_deadlock(xp: Any, tmp_path: Path) -> None:
    made = Library(faulty(LEAVES), tmp_path, "-O0")
    with pytest.raises(Deadlock):
        errors(made, xp, "rnn_tanh", SMALL, 0, reverse=False, ragged=False)


def test_who_waits_in_vain_gives_up(xp: Any, tmp_path: Path) -> None:
    patience = (
        ("PATIENCE = 1 << 22", "PATIENCE = 30"),
        ("patience--;", "patience--, grid::moved();"),
    )
    made = Library(faulty(LEAVES, *patience), tmp_path, "-O0")
    assert np.isnan(errors(made, xp, "rnn_tanh", SMALL, 0, reverse=False, ragged=False))


class Watched(NamedTuple):
    """What runs under a sanitizer."""

    name: str = "lstm"
    dtype: str = "float32"
    part: str = "forward"


WATCHED = [
    Watched(name, dtype, part)
    for name in ("lstm", "gru_reset_before")
    for dtype in ("float32", "float16")
    for part in persistent.PARTS
]
UNDER = Sizes(2, 4, 10, 4, 1, 3)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let blocks have four warps: a sanitizer takes its time for each thread."""
    monkeypatch.setattr(plan, "THREADS", 128)
    monkeypatch.setattr(plan, "_WARPS", 4)
    monkeypatch.setattr(persistent, "THREADS", 128)
    plan.layout.cache_clear()
    yield
    plan.layout.cache_clear()


class Launch(NamedTuple):
    """How a kernel was launched."""

    options: tuple[str, ...]
    blocks: int
    threads: int
    shared: int
    arguments: tuple[Any, ...]


def launched(library: Library, xp: Any, which: Watched, sizes: Sizes) -> tuple[str, Launch]:
    """Return the first launch of a run, forward or backward, with its arrays as they were."""
    seen: dict[str, Launch] = {}

    def compiled(name: str, options: tuple[str, ...]) -> Any:
        kernel = library.kernels()(name, options)

        def launch(grid: Any, block: Any, arguments: Any, *, shared_mem: int) -> None:
            copies = tuple(a._host.copy() if hasattr(a, "_host") else a for a in arguments)
            seen.setdefault(name, Launch(options, grid[0], block[0], shared_mem, copies))
            kernel(grid, block, arguments, shared_mem=shared_mem)

        return launch

    case = Case(which.name, sizes.steps, sizes.batch, sizes.hidden)
    run(compiled, xp, case, sizes, which.dtype, ragged=True, reverse=False)
    (name,) = (name for name in seen if name.endswith(which.part))
    return name, seen[name]


def sanitized(
    sanitizer: str,
    source: Callable[[str], str],
    launch: tuple[str, Launch],
    folder: Path,
    *orders: int,
) -> list[str]:
    """Run a kernel under a sanitizer; return what it prints with each schedule."""
    need_compiler()
    name, (options, blocks, threads, shared, arguments) = launch
    (folder / "kernel.cu").write_text(source(name))
    here, made = cuda_on_cpu.HERE, folder / "main"
    flags = [
        "-std=c++20",
        "-O1",
        "-U_FORTIFY_SOURCE",
        "-g1",
        "-w",
        f"-fsanitize={sanitizer}",
        f"-I{here}",
    ]
    flags += [f"-I{folder}", f"-DKERNEL={name}", *options[1:]]
    subprocess.run(["g++", *flags, here / "main.cpp", "-o", made], check=True)
    given = [str(number) for number in (blocks, threads, shared)]
    for k, argument in enumerate(arguments):
        if not isinstance(argument, int):
            (folder / f"{k}").write_bytes(argument.tobytes())
    passed = [str(a) if isinstance(a, int) else folder / f"{k}" for k, a in enumerate(arguments)]
    runs = [
        subprocess.run(
            [made, *given, str(order), *passed], capture_output=True, text=True, timeout=120
        )
        for order in orders
    ]
    return [run.stdout + run.stderr for run in runs]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("which", WATCHED, ids="-".join)
def test_no_races(which: Watched, library: Library, xp: Any, tmp_path: Path) -> None:
    launch = launched(library, xp, which, UNDER)
    said = sanitized("thread", persistent.source, launch, tmp_path, 0, 2)
    assert said == ["finished\n", "finished\n"]


STAGED: Fault = ("    }\n    __syncthreads();\n    held.multiply", "    }\n    held.multiply")
MULTIPLIED_BEFORE: Fault = ("now, tile);\n    __syncthreads();", "now, tile);")
RACES: dict[str, tuple[Watched, Fault]] = {
    "no barrier after staging": (Watched(), STAGED),
    "none after the product": (Watched(), MULTIPLIED_BEFORE),
    "no barrier after staging in float16": (Watched(dtype="float16"), STAGED),
    "none after a product of two": (Watched("gru_reset_before"), MULTIPLIED_BEFORE),
    "none after the beginning": (
        Watched(part="backward"),
        ("own.other, dc_last);\n  __syncthreads();", "own.other, dc_last);"),
    ),
    "read as other memory": (
        Watched(),
        (
            "got[i] = fetch((const V*)from + k + i * THREADS)",
            "got[i] = ((const V*)from)[k + i * THREADS]",
        ),
    ),
    "written as other memory": (
        Watched(part="backward"),
        (
            "give((Bits*)to, as.bits == EMPTY ? (Bits)(EMPTY >> 1) : as.bits)",
            "grid::moved(), *(Bits*)to = as.bits",
        ),
    ),
}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("race", RACES)
def test_planted_races_are_caught(race: str, library: Library, xp: Any, tmp_path: Path) -> None:
    which, fault = RACES[race]
    launch = launched(library, xp, which, UNDER)
    (said,) = sanitized("thread", faulty(fault), launch, tmp_path, 0)
    assert "data race" in said
    assert "kernel.cu" in said


OVERRUNS: dict[str, tuple[Watched, Fault]] = {
    "of y": (Watched(), ("store(y + row.t * size", "store(y + (row.t + 1) * size")),
    "of the shared memory": (
        Watched(),
        ("biases[gates * UNITS + k]", "biases[gates * UNITS + k + 1]"),
    ),
    "of the weights": (Watched(), ("unit < HIDDEN ? weights[(row", "true ? weights[(row")),
}


@pytest.mark.parametrize(
    ("which", "sizes"),
    [
        *((which, "a last block with fewer units") for which in WATCHED),
        *((Watched(dtype=dtype), "weights in shared memory") for dtype in ("float32", "float16")),
        (Watched("gru_reset_before"), "weights in shared memory"),
    ],
)
def test_no_overruns(which: Watched, sizes: str, library: Library, xp: Any, tmp_path: Path) -> None:
    launch = launched(library, xp, which, SIZES[sizes])
    (said,) = sanitized("address", persistent.source, launch, tmp_path, 0)
    assert said.startswith("finished\n")
    assert "ERROR" not in said  # a warning of its own, of the fibers' stacks, is none


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("overrun", OVERRUNS)
def test_planted_overruns_are_caught(
    overrun: str, library: Library, xp: Any, tmp_path: Path
) -> None:
    which, fault = OVERRUNS[overrun]
    launch = launched(library, xp, which, UNDER)
    (said,) = sanitized("address", faulty(fault), launch, tmp_path, 0)
    assert "heap-buffer-overflow" in said


@pytest.mark.usefixtures("small_blocks")
def test_all_of_the_shared_memory_is_needed(library: Library, xp: Any, tmp_path: Path) -> None:
    name, launch = launched(library, xp, Watched(), UNDER)
    less = launch._replace(shared=launch.shared - 1)
    (said,) = sanitized("address", persistent.source, (name, less), tmp_path, 0)
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
