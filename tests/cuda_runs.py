"""Runs of the kernels of all steps, lying as a test wants, and mistakes in their source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
from cuda_on_cpu import Library
from named_cells import make_cell
from test_cuda_fused import HOST, Case, largest_error, on_standin, trusted

from rnn_xp.engines import PLAIN
from rnn_xp.engines.cuda import persistent, plan
from rnn_xp.engines.cuda.fused import Fused
from rnn_xp.engines.cuda.persistent import Persistent
from rnn_xp.engines.cuda.plan import THREADS, Limits, Plan

GATES = {
    "rnn_tanh": (1,),
    "rnn_relu": (1,),
    "lstm": (4,),
    "gru": (3,),
    "gru_reset_before": (2, 1),
}
DTYPES = ("float32", "float16", "bfloat16")
H100 = Limits(132, 232448, True)
FEW = Limits(20, 2000, True)
"""With so little shared memory that blocks wait for each other."""


def no_kernels(*given: Any) -> Any:
    raise AssertionError("nothing is to run")


FUSED = Fused(no_kernels)


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
    return spare + 16 * -(-(biases + own) // 4) + found.tile * (row + sums)


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
    expected = case.run(PLAIN, HOST, np.copy, **how)
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
        return case.run(Persistent(compiled, lambda: H100), xp, on_standin(dtype), **how)


Fault = tuple[str, str]
"""What stands in the kernels' source, and a mistake instead."""


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


SWAPPED: Fault = ("x[0] + h[0], x[1] + h[1], x[2], h", "x[1] + h[1], x[0] + h[0], x[2], h")


LEAVES: Fault = ("n < steps; n++) {", "n < steps; n++) {\n    if (n && blockIdx.x == 1) return;")


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
