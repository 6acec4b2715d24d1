"""The time loop, forward and backward through time: knows no cell.

    forward:   W_ih x + b_ih for all steps at once, then step after step
    backward:  step after step in the other order, then the gradients of the weights and of x by one
               product each

Time comes first, x (T, B, I) and y (T, B, H); a state is (B, H) for each of its parts. The reverse
direction visits the steps in the other order; nothing is flipped.

A ragged batch has `valid` (T, B), False past a sequence's length. A step past the length leaves
the state as it was, gives output 0 and passes no gradient.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rnn_xp.backend import Array, Namespace, device_of, like_dtype
from rnn_xp.cells.base import Cell, Weights, product


class Loop(NamedTuple):
    """What is walked over time, in which library, which steps count, and which way."""

    cell: Cell
    xp: Namespace
    valid: Array | None
    """(T, B), boolean; None where all steps of all sequences count."""
    reverse: bool
    """From the last step to the first."""


class Tape(NamedTuple):
    """What a forward run keeps for the backward run."""

    x: Array
    """(T, B, I)"""
    before: Sequence[Array]
    """h before each step, (B, H)"""
    kept: Sequence[tuple[Array, ...]]
    """What the cell keeps of each step."""


def run(
    loop: Loop, w: Weights, x: Array, state: Sequence[Array | None], *, keep: bool
) -> tuple[Array, tuple[Array, ...], Tape | None]:
    """Run a cell over x.

    Parameters
    ----------
    x : (T, B, I)
    state : (B, H) for each part of the cell's state; None is zeros
    keep : keep what `run_backward` needs

    Returns
    -------
    y : (T, B, H)
    state : the state after the last step that was visited, like the one that goes in
    tape : what `run_backward` needs; None without `keep`
    """
    cell, xp, valid, reverse = loop
    x = zeroed(xp, valid, x)
    now = full(cell, xp, state, x)
    a = input_product(xp, w, x)
    outputs: list[Any] = [None] * x.shape[0]
    before, kept = list(outputs), list(outputs)
    for t in order(x.shape[0], reverse=reverse):
        old = now
        now, made = cell.step(xp, w, a[t, ...], old)
        if valid is not None:
            now = hold(xp, valid[t, ...], now, old)
        outputs[t] = now[0]
        if keep:
            before[t], kept[t] = old[0], made
    y = zeroed(xp, valid, xp.stack(outputs))
    return y, now, Tape(x, before, kept) if keep else None


def run_backward(
    loop: Loop, w: Weights, tape: Tape, dy: Array, dstate: Sequence[Array | None]
) -> tuple[Weights, Array, tuple[Array, ...]]:
    """Run a cell backward through time.

    Parameters
    ----------
    tape : from `run`
    dy : (T, B, H)
    dstate : (B, H) for each part of the state after the last step; None is zeros

    Returns
    -------
    dweights : the gradient of every weight, summed over time and batch
    dx : (T, B, I)
    dstate : the gradient with respect to the initial state, like the one that goes in
    """
    cell, xp, valid, reverse = loop
    dy = zeroed(xp, valid, dy)
    now = full(cell, xp, dstate, dy)
    da: list[Any] = [None] * dy.shape[0]
    for t in order(dy.shape[0], reverse=not reverse):
        after = (now[0] + dy[t, ...], *now[1:])
        now, da[t] = cell.step_backward(xp, w, after, tape.kept[t])
        if valid is not None:
            now = hold(xp, valid[t, ...], now, after)
    each = [xp.stack(steps) for steps in zip(*da, strict=True)]
    gradients, dx = sums(loop, w, tape.x, xp.stack(tape.before), Kept(xp, tape.kept), each)
    return gradients, dx, now


class Kept(Sequence[Array]):
    """What a cell kept, (T * B, ...) each: joined over the steps where somebody asks for it."""

    def __init__(self, xp: Namespace, steps: Sequence[tuple[Array, ...]]) -> None:
        self.xp, self.steps = xp, steps

    def __getitem__(self, k: Any) -> Any:
        own = [made[k] for made in self.steps]
        return Kept(self.xp, own) if isinstance(k, slice) else rows(self.xp, self.xp.stack(own))

    def __len__(self) -> int:
        return len(self.steps[0])


def sums(
    loop: Loop, w: Weights, x: Array, h: Array, kept: Any, da: Sequence[Array]
) -> tuple[Weights, Array]:
    """Return the gradients of the weights, summed over all steps that count, and dx (T, B, I)."""
    cell, xp, valid, _ = loop
    flat = tuple(rows(xp, zeroed(xp, valid, each)) for each in da)
    gradients = cell.gradients(xp, w, rows(xp, x), rows(xp, h), kept, flat)
    return gradients, xp.reshape(flat[0] @ w["weight_ih"], x.shape)


def input_product(xp: Namespace, w: Weights, x: Array) -> Array:
    """Return W_ih x + b_ih of all steps, (T, B, G*H)."""
    return xp.reshape(product(w, "ih", rows(xp, x)), (*x.shape[:2], -1))


def order(steps: int, *, reverse: bool) -> Iterable[int]:
    """Return the steps in the order of the visits."""
    return reversed(range(steps)) if reverse else range(steps)


def full(
    cell: Cell, xp: Namespace, state: Sequence[Array | None], like: Array
) -> tuple[Array, ...]:
    """Return a state with zeros for None, for the batch of `like` (T, B, ...)."""

    def zeros(size: int) -> Array:
        return xp.zeros((like.shape[1], size), dtype=like.dtype, device=device_of(like))

    sized = zip(cell.state_sizes, state, strict=True)
    return tuple([zeros(size) if part is None else part for size, part in sized])


def hold(
    xp: Namespace, valid: Array, new: Sequence[Array], old: Sequence[Array]
) -> tuple[Array, ...]:
    """Return the new state of the sequences that are valid (B,), the old one of the others."""
    return tuple(xp.where(valid[:, None], a, b) for a, b in zip(new, old, strict=True))


def zeroed(xp: Namespace, valid: Array | None, a: Array) -> Array:
    """Return a (T, B, ...) with zeros past each sequence's length, whatever stood there."""
    if valid is None:
        return a
    counts = xp.reshape(valid, (*valid.shape, *[1] * (a.ndim - 2)))
    return like_dtype(xp, xp.where(counts, a, xp.zeros_like(a)), a)


def rows(xp: Namespace, a: Array) -> Array:
    """Return a (T, B, ...) as (T * B, ...)."""
    return xp.reshape(a, (-1, *a.shape[2:]))
