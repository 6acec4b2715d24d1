"""Whether a run fits a device's persistent kernels, how it lies there, and whether it pays.

A block per multiprocessor holds the recurrent weights of its hidden units in registers, and in
shared memory those for which there are none. A few blocks are a group, which holds all weights;
each group runs its own share of the batch, so that a block waits for few states of other blocks. Of
all ways that fit, the one that costs least is taken. What a step costs is computed from constants
that were measured on one device, an H100.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from math import ceil, inf
from typing import NamedTuple

THREADS = 512
_WARPS = THREADS // 32
HELD = 64
"""Registers of a thread for weights, of the 128 that it has: a block has 65,536 on every device."""
EXCHANGE = 0.8
"""Until the other blocks have what one sent, in µs."""
BANDWIDTH = 40e3
"""Bytes of states that a block receives, in a µs."""
GATES = 0.4
"""Of the gates of a step, and of beginning it, in µs."""
CLOCK = 1700.0
"""Cycles a µs."""
LAUNCH = 10.0
"""Of a kernel or a product, in µs; without the persistent kernels a step has one of each."""
BEGIN = 150.0
"""Of the host to give a run of all steps and its backward run to the device, in µs."""
RUN = 80.0
"""Of the products, sums and fills around such two runs, in µs."""
CAPABILITY = {16: 75, 32: 70}
"""The least for numbers of so many bits: their products, and how the blocks exchange them."""
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


class Layout(NamedTuple):
    """How the weights of a product lie in a block's warps: see `Held` of persistent.cu."""

    tall: int
    """Rows of a lane; on tensor cores tiles of 16 rows of a warp."""
    wide: int
    """Fours of columns of a lane; on tensor cores tiles of 16 columns of a warp."""
    more: int
    """The same, of which the weights are in shared memory."""
    side: int
    """Lanes side by side with other rows; the rest of a warp has other columns."""
    parts: int
    """Warps that share the width of a sum."""
    cycles: float
    """Of a product with one sequence."""


class Plan(NamedTuple):
    """How a kernel lies on the device."""

    blocks: int
    units: int
    """Hidden units of a block."""
    members: int
    """Blocks of a group."""
    share: int
    """Sequences of a group."""
    tile: int
    """Sequences at once."""
    shared: int
    """Bytes of shared memory of a block."""
    layouts: tuple[Layout, ...]
    """Of each product."""
    cost: float
    """The µs of a step."""


def fit(
    products: Sequence[tuple[int, int]], bits: int, hidden: int, batch: int, limits: Limits
) -> Plan | None:
    """Return the plan that costs least; None where the weights do not fit.

    Parameters
    ----------
    products : sequence of (int, int)
        Of each product of a step: the rows of weights for each hidden unit, and their width, which
        is that of the states.
    bits, hidden, batch : int
    limits : Limits
    """
    if not limits.cooperative:
        return None
    given = products, bits, hidden, batch, limits
    # Few sizes of a group, so that few kernels are compiled when the batch changes.
    few = [limits.multiprocessors >> k for k in range(limits.multiprocessors.bit_length())]
    found = list(_candidates(few, *given)) or list(_candidates(range(1, few[0] + 1), *given))
    return min(found, key=lambda plan: plan.cost, default=None)


def _candidates(
    sizes: Iterable[int],
    products: Sequence[tuple[int, int]],
    bits: int,
    hidden: int,
    batch: int,
    limits: Limits,
) -> Iterator[Plan]:
    """Yield what fits, of groups of no more than so many blocks."""
    for units in sorted({-(-hidden // min(members, hidden)) for members in sizes}):
        layouts = _layouts(products, bits, units)
        if layouts is None:
            return  # a larger part of the weights fits even less
        found = _tiled(products, bits, hidden, batch, limits, units, layouts)
        if found is not None:
            yield found


def _layouts(
    products: Sequence[tuple[int, int]], bits: int, units: int
) -> tuple[Layout, ...] | None:
    """Return how the weights of so many units lie: each product has its part of the registers."""
    sizes = [rows * width for rows, width in products]
    found = [
        layout(rows * units, width, bits, HELD * size // sum(sizes))
        for (rows, width), size in zip(products, sizes, strict=True)
    ]
    laid = tuple(each for each in found if each is not None)
    return laid if len(laid) == len(products) else None


def _tiled(
    products: Sequence[tuple[int, int]],
    bits: int,
    hidden: int,
    batch: int,
    limits: Limits,
    units: int,
    layouts: tuple[Layout, ...],
) -> Plan | None:
    """Return the plan of blocks of so many units; None where shared memory has too little room."""
    members = -(-hidden // units)
    share = -(-batch // min(batch, limits.multiprocessors // members))
    each = zip(products, layouts, strict=True)
    summed = max(units * rows * laid.parts for (rows, _), laid in each)
    numbers = 2 * units * (share + sum(rows for rows, _ in products))
    fixed = 16 * -(-numbers // 4) + 16 * THREADS * sum(laid.tall * laid.more for laid in layouts)
    sequence = max(_row(width, bits) for _, width in products) + 4 * summed
    tile = min(share, (limits.shared - fixed) // sequence)
    if tile < 1 or (tile < share and members == 1):
        return None
    tiles = -(-share // tile)
    tile = -(-share // tiles)
    wide = bits // 8 * share * sum(width for _, width in products)
    waits = len(products) * EXCHANGE + wide / BANDWIDTH if members > 1 else 0.0
    together = -(-share // 8) * 8 if bits == 16 else share
    multiplies = together * sum(laid.cycles for laid in layouts) / CLOCK
    gates = len(products) * GATES * max(tiles, units * share / THREADS)
    shared = fixed + tile * sequence
    took = waits + multiplies + gates
    blocks = members * -(-batch // share)
    return Plan(blocks, units, members, share, tile, shared, layouts, took)


def _row(width: int, bits: int) -> int:
    """Return the bytes of a sequence's states in shared memory: `distance` of persistent.cu."""
    return 16 * (-(-width // 4)) if bits == 32 else 2 * (-(-width // 16) * 16 + 8)


@lru_cache(maxsize=4096)
def layout(rows: int, width: int, bits: int, held: int = HELD) -> Layout | None:
    """Return how weights (rows, width) lie in a block's warps; None if there are too many rows.

    Parameters
    ----------
    rows, width, bits : int
    held : int
        Registers of a thread for them.
    """
    found = layouts(rows, width, bits, held)
    return min(found, key=lambda each: each.cycles, default=None)


def layouts(rows: int, width: int, bits: int, held: int) -> Iterator[Layout]:
    """Yield all ways in which weights (rows, width) can lie in a block's warps."""
    shapes = ((tall, 1) for tall in (1, 2))
    if bits == 32:
        shapes = ((tall, side) for tall in (1, 2, 4, 8) for side in (1, 2, 4, 8))
    for tall, side in shapes:
        height, column = (16 * tall, 16) if bits == 16 else (tall * side, 4 * 32 // side)
        across = -(-rows // height)
        if across > _WARPS or 4 * tall > held:
            continue
        all_wide = -(-width // (column * (_WARPS // across)))
        wide = all_wide
        if 4 * tall * wide > held:
            wide = max(1, held * 3 // 4 // (4 * tall))  # those from shared memory need some, too
        parts = -(-width // (column * all_wide))
        laid = Layout(tall, wide, all_wide - wide, side, parts, 0.0)
        yield laid._replace(cycles=3.0 * parts + _cycles(laid, across * parts, bits))


def _cycles(laid: Layout, warps: int, bits: int) -> float:
    """Return the cycles of so many warps for a sequence: four begin an instruction in each cycle.

    Reads of shared memory and exchanges between lanes share one path.
    """
    tall, wide, more = laid.tall, laid.wide + laid.more, laid.more
    if bits == 16:
        begun = (wide * (2 + 8 * tall) + 40) / 8 * -(-warps // 4)
        return begun + 4 * tall * more * warps / 8
    exchanges, have, along = 0, tall, 32 // laid.side
    while along > 1:
        have, along = max(1, have // 2), along // 2
        exchanges += have
    begun = wide * (1 + 4 * tall) + 4 * exchanges + 8
    shared = 4 * wide + 4 * tall * more + exchanges + have
    return max(begun * -(-warps // 4), shared * warps) * (2 if more else 1)


@lru_cache(maxsize=1024)
def plans(work: Work, hidden: int, batch: int, limits: Limits) -> tuple[Plan, Plan] | None:
    """Return the plans of the forward and the backward kernel; None where one does not fit."""
    gates, bits = work
    if limits.capability < CAPABILITY[bits]:
        return None
    forward = fit([(count, hidden) for count in gates], bits, hidden, batch, limits)
    backward = fit([(1, count * hidden) for count in gates], bits, hidden, batch, limits)
    return None if forward is None or backward is None else (forward, backward)


def cost(work: Work, hidden: int, batch: int, limits: Limits) -> float:
    """Return the µs of a step, forward and backward; infinite where a kernel does not fit."""
    found = plans(work, hidden, batch, limits)
    return inf if found is None else sum(plan.cost for plan in found)


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
