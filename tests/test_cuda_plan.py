"""How the kernels of all steps lie on a device, and what is left to others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cuda_runs import (
    FEW,
    FUSED,
    GATES,
    H100,
    SIZES,
    Places,
    Sizes,
    lying,
    no_kernels,
    products,
    shared_of,
)
from named_cells import make_cell

from rnn_xp.doctor import parity
from rnn_xp.engines import PLAIN
from rnn_xp.engines.cuda import plan, trial
from rnn_xp.engines.cuda.directions import Directions
from rnn_xp.engines.cuda.engine import Cuda
from rnn_xp.engines.cuda.persistent import Persistent
from rnn_xp.engines.cuda.plan import THREADS, Limits, Plan, Work
from rnn_xp.engines.cuda.streams import one_by_one
from rnn_xp.engines.cuda.wave import Wave


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


T4 = Limits(40, 65536, True, 75)


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

    def chosen(
        name: str, hidden: int, batch: int, dtype: str, limits: Limits, steps: int = 100
    ) -> Any:
        engine = Cuda(FUSED, Persistent(no_kernels, lambda: limits))
        cell, ops = make_cell(name, hidden), xp
        best: Any = engine.able(cell, np.dtype(dtype), (steps, batch), ops)[-1]
        return PLAIN if best is PLAIN else best.each

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
    assert chosen("lstm_peephole", 64, 1, "float32", H100) is PLAIN
    assert isinstance(chosen("lstm", 64, 16, "float32", H100, 2**26 - 1), Persistent)
    assert chosen("lstm", 64, 16, "float32", H100, 2**26) is FUSED  # too many to count


def test_when_two_directions_run_at_once(xp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "passes", lambda *_: True)

    def chosen(name: str, hidden: int, batch: int) -> Any:
        engine = Cuda(FUSED, Persistent(no_kernels, lambda: H100), Places())
        cell, ops = make_cell(name, hidden), xp
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
        cell, ops, dtype = make_cell("lstm", hidden), xp, np.dtype("float32")
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
        assert type(other) is Directions
        assert isinstance(other.each, Persistent)
        assert other.each.limits() == H100
    assert chosen(1024, 1600, 2).each is FUSED
    # `rnn-xp doctor` finds such levels, on a small device as well.
    long = [c for c in parity.grid(quick=False, gpu=True) if c.shape[0] > 100]
    assert {config.cell for config in long} == set(parity.CELLS)
    for engine in (Cuda(FUSED, Persistent(no_kernels, d)) for d in (lambda: H100, lambda: T4)):
        for config in long:
            given = config.layer.equations, np.dtype("float32"), config.shape[:2], xp
            best = engine.able(*given, 1, config.layers)[-1]
            assert isinstance(best, Wave), config
            assert best.steps < config.shape[0] / 2
    # In two directions a level needs the whole of the one below.
    assert type(chosen(1024, 256, 2, 2)) is Directions
