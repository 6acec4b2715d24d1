"""Whether a run fits a device's persistent kernels, how it lies there, and whether it pays.

A block per multiprocessor keeps the recurrent weights of its hidden units in shared memory, beside
the states of as many sequences as fit: the tile. The cost is counted on paper, from what a step
moves and multiplies; its constants are estimates and were not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, inf
from typing import NamedTuple

THREADS = 256
_WARPS = THREADS // 32
BARRIER = 1.2
"""Of the whole grid, and what it costs to begin a step, in µs."""
LAUNCH = 3.5
"""Of a kernel or a product, in µs; without the persistent kernels a step has one of each."""
BEGIN = 150.0
"""Of the host to give a run of all steps and its backward run to the device, in µs."""
RUN = 80.0
"""Of the products, sums and fills around such two runs, in µs."""
CLOCK = 1500.0
"""Cycles a µs."""
CAPABILITY = {16: 75, 32: 70}
"""The least for numbers of so many bits: their products, and how the blocks meet."""


BFLOAT16 = 80
"""The same for products of bfloat16."""


class Limits(NamedTuple):
    """What a device has."""

    multiprocessors: int
    shared: int
    """Bytes of shared memory that a block may have."""
    cooperative: bool
    """Whether it knows cooperative launches."""
    capability: int = 80
    """Ten times the compute capability."""
    device: int = 0
    """Its number: what was tried on one device says nothing of the next."""


class Work(NamedTuple):
    """What a cell multiplies in a step."""

    gates: tuple[int, ...]
    """Of each product, in the order of a forward step."""
    bits: int
    """Of a number: 32, or 16 on tensor cores."""


class Plan(NamedTuple):
    """How a kernel lies on the device."""

    blocks: int
    units: int
    """Hidden units of a block."""
    tile: int
    """Sequences at once."""
    shared: int
    """Bytes of shared memory of a block."""


def fit(
    products: Sequence[tuple[int, int]], bits: int, hidden: int, batch: int, limits: Limits
) -> Plan | None:
    """Return the plan with the largest tile; None where the weights and one sequence do not fit.

    Parameters
    ----------
    products : sequence of (int, int)
        Of each product of a step: the rows of weights for each hidden unit, and their width, which
        is that of the states.
    bits, hidden, batch : int
    limits : Limits
    """
    units = -(-hidden // limits.multiprocessors)
    weights = sum(units * rows * _row(width, bits) for rows, width in products)
    rows, state = units * max(rows for rows, _ in products), _row(max(w for _, w in products), bits)
    most = min(batch, (limits.shared - weights) // (state + 4 * rows))
    for tile in range(most if limits.cooperative else 0, 0, -1):
        shared = weights + tile * state + 4 * rows * tile * _slices(rows, tile, bits)
        if shared <= limits.shared:
            return Plan(-(-hidden // units), units, tile, shared)
    return None


def _row(width: int, bits: int) -> int:
    """Return the bytes of a row in shared memory: `distance` of persistent.cu."""
    return 4 * width if bits == 32 else 2 * (-(-width // 16) * 16 + 8)


def _slices(rows: int, tile: int, bits: int) -> int:
    """Return how many warps share the width of a sum: `slices` of persistent.cu."""
    return 1 if bits == 32 else max(1, _WARPS // (-(-rows // 16) * -(-tile // 8)))


@lru_cache(maxsize=1024)
def plans(work: Work, hidden: int, batch: int, limits: Limits) -> tuple[Plan, Plan] | None:
    """Return the plans of the forward and the backward kernel; None where one does not fit."""
    gates, bits = work
    if limits.capability < CAPABILITY[bits] or (bits == 16 and hidden % 2):
        return None
    forward = fit([(count, hidden) for count in gates], bits, hidden, batch, limits)
    backward = fit([(1, count * hidden) for count in gates], bits, hidden, batch, limits)
    return None if forward is None or backward is None else (forward, backward)


def cost(work: Work, hidden: int, batch: int, limits: Limits) -> float:
    """Return the µs of a step, forward and backward; infinite where a kernel does not fit."""
    found = plans(work, hidden, batch, limits)
    if found is None:
        return inf
    numbers = sum(work.gates) * hidden
    both = zip(found, (len(work.gates) * hidden, numbers), strict=True)
    return sum(_cost(plan, width, numbers, batch, work) for plan, width in both)


def cost_without(work: Work, hidden: int, batch: int, limits: Limits) -> float:
    """Return the µs of a step, forward and backward, of kernels for a step each."""
    numbers, speed = sum(work.gates) * hidden, 128 if work.bits == 32 else 1024
    alone = numbers * hidden * batch / (limits.multiprocessors * speed * CLOCK)
    return 2 * (2 * LAUNCH * len(work.gates) + alone)


def wave(levels: int, steps: int, cost: float) -> tuple[int, float]:
    """Return the steps of a chunk where levels run at once, and the µs of all steps of all levels.

    A level waits for each chunk of the level below. Chunks are as short as the host can give them
    to all levels while they run.

    Parameters
    ----------
    levels, steps : int
    cost : float
        The µs of a step of one level, on its part of the device.
    """
    chunk = min(steps, max(1, ceil(levels * BEGIN / cost)))
    return chunk, (ceil(steps / chunk) + levels - 1) * (chunk * cost + RUN)


def _cost(plan: Plan, staged: int, numbers: int, batch: int, work: Work) -> float:
    """Return the µs of a step, forward or backward.

    States are staged; two numbers are read for four products. On tensor cores a warp reads 192
    words for 16 x 8 x 16 products.
    """
    tiles = len(work.gates) * -(-batch // plan.tile)
    products, per_cycle = numbers * plan.units * batch, 64 if work.bits == 32 else 256
    cycles = products / per_cycle + staged * batch * work.bits / 512
    return BARRIER * tiles + cycles / CLOCK
