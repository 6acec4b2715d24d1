"""Whether a run fits a device's persistent kernels, how it lies there, and whether it pays.

A block per multiprocessor keeps the recurrent weights of its hidden units in shared memory, beside
the states of as many sequences as fit: the tile. The cost is counted on paper, from what a step
moves and multiplies; its constants are estimates and were not measured.
"""

from __future__ import annotations

from typing import NamedTuple

THREADS = 256
BYTES = 4
"""Of a number."""
BARRIER = 1.2
"""Of the whole grid, and what it costs to begin a step, in µs."""
LAUNCH = 3.5
"""Of a kernel or a product, in µs; without the persistent kernels a step has one of each."""
CLOCK = 1500.0
"""Cycles a µs."""


class Limits(NamedTuple):
    """What a device has."""

    multiprocessors: int
    shared: int
    """Bytes of shared memory that a block may have."""
    cooperative: bool
    """Whether it knows cooperative launches."""


class Plan(NamedTuple):
    """How a kernel lies on the device."""

    blocks: int
    units: int
    """Hidden units of a block."""
    tile: int
    """Sequences at once."""
    shared: int
    """Bytes of shared memory of a block."""


def fit(rows: int, width: int, hidden: int, batch: int, limits: Limits) -> Plan | None:
    """Return the plan with the largest tile; None where the weights and one sequence do not fit.

    Parameters
    ----------
    rows : int
        Rows of the weights for each hidden unit.
    width : int
        Of these rows, and of the states that they multiply.
    hidden, batch : int
    limits : Limits
    """
    units = -(-hidden // limits.multiprocessors)
    free = limits.shared // BYTES - rows * units * width
    tile = min(batch, free // (width + rows * units))
    if not limits.cooperative or tile < 1:
        return None
    words = rows * units * width + tile * (width + rows * units)
    return Plan(-(-hidden // units), units, tile, BYTES * words)


def plans(gates: int, hidden: int, batch: int, limits: Limits) -> tuple[Plan, Plan] | None:
    """Return the plans of the forward and the backward kernel; None where one does not fit."""
    forward = fit(gates, hidden, hidden, batch, limits)
    backward = fit(1, gates * hidden, hidden, batch, limits)
    return None if forward is None or backward is None else (forward, backward)


def pays(gates: int, hidden: int, batch: int, limits: Limits) -> bool:
    """Tell whether both kernels fit and a step, forward and backward, costs less than without."""
    found = plans(gates, hidden, batch, limits)
    if found is None:
        return False
    both = zip(found, (hidden, gates * hidden), strict=True)
    work = gates * hidden * hidden * batch / (limits.multiprocessors * 128 * CLOCK)
    return sum(_cost(*each, gates, hidden, batch) for each in both) < 2 * (2 * LAUNCH + work)


def _cost(plan: Plan, width: int, gates: int, hidden: int, batch: int) -> float:
    """Return the µs of a step: two numbers are read for four products; states are staged."""
    products = gates * plan.units * hidden * batch
    return BARRIER * -(-batch // plan.tile) + (products / 64 + width * batch / 16) / CLOCK
