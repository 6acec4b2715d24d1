"""JAX: the time loop as one `jax.lax.scan`, which compiles as fast for 1000 steps as for 10.

    forward:   pre = W_ih x + b for all steps, then a scan over `Cell.step`
    backward:  the local factors of all steps, then a scan over `Cell.step_backward`,
               then the gradients of the weights and of x by one product each

Each of the two is one compiled function of a cell and the shapes, kept for all later calls; inside
the caller's own `jax.jit`, `jax.vmap` or `jax.grad` it becomes a part of what is traced there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax import lax

from rnn_xp import recurrence
from rnn_xp.backend import Array, Namespace, Operations
from rnn_xp.cells.base import Cell, Chunk, Folded, Weights
from rnn_xp.recurrence import Loop, zero_columns, zero_rows


class Kept(NamedTuple):
    """What the forward pass keeps for the backward pass."""

    x: Array
    """(T, B, I)"""
    state: tuple[Array, ...]
    """The initial state, (B, H) for each part."""
    gates: Array
    """(T, G, H, B)"""
    after: Sequence[Array]
    """The state after each step, (T, H, B) for each part."""
    extras: Sequence[Array]
    """(T, H, B) each"""


def fold(cell: Cell, xp: Namespace, weights: Weights) -> Folded:
    """Arrange the weights for `run`."""
    folded: Folded = _fold(cell, xp, weights)
    return folded


def run(
    loop: Loop,
    w: Folded,
    x: Array,
    state: Sequence[Array | None],
    *,
    keep: bool,
) -> tuple[Array, Sequence[Array], Kept | None]:
    """Run the cell over x; as `recurrence.run`.

    With and without `keep` it is the same compiled function, with the same bits; inside a caller's
    `jax.jit`, what is not used afterwards is not computed.
    """
    cell, ops, ragged, reverse = loop
    valid = None if ragged is None else ragged.valid
    state = _full(cell, state, x)
    y, last, *kept = _run(cell, ops, reverse, w, x, state, valid)
    return y, last, Kept(x, state, *kept) if keep else None


def run_backward(
    loop: Loop,
    weights: Weights,
    chunks: Kept,
    dy: Array,
    dstate: Sequence[Array | None],
) -> tuple[Weights, Array, Sequence[Array]]:
    """Run the cell backward through time; as `recurrence.run_backward`."""
    cell, ops, ragged, reverse = loop
    valid = None if ragged is None else ragged.valid
    dstate = _full(cell, dstate, dy)
    gradients, dx, first = _run_backward(cell, ops, reverse, weights, chunks, dy, dstate, valid)
    return gradients, dx, first


def _full(cell: Cell, state: Sequence[Array | None], like: Array) -> tuple[Array, ...]:
    """Return a state with zeros for None, so that both are one compiled function.

    Under `jax.shard_map` they are the devices' own, as `like` is.
    """
    return tuple(
        jax.lax.full_like(like, 0, shape=(like.shape[1], size)) if part is None else part
        for size, part in zip(cell.state_sizes, state, strict=True)
    )


def _scan(
    cell: Cell,
    ops: Operations,
    reverse: bool,
    w: Folded,
    x: Array,
    state: tuple[Array, ...],
    valid: Array | None,
) -> tuple[Array, ...]:
    xp, (steps, batch, _) = ops.xp, x.shape
    if valid is not None:
        x = zero_rows(ops, valid, x)
    pre = xp.reshape(
        w.weight_ih @ xp.permute_dims(x, (0, 2, 1)), (steps, cell.gates, cell.hidden_size, batch)
    )
    pre = pre if w.bias is None else pre + w.bias
    out, extras = [None] * len(cell.state), [None] * len(cell.extras)
    work = cell.workspace(ops, x, batch)

    def body(old: tuple[Array, ...], step: tuple[Array, Array]) -> tuple[Any, Any]:
        pre_t, valid_t = step
        gates, new, kept = cell.step(ops, w, pre_t, old, out, extras, work)
        if valid_t is not None:
            new = [ops.hold(valid_t, a, b) for a, b in zip(new, old, strict=True)]
        return tuple(new), (gates, tuple(new), tuple(kept))

    columns = tuple(part.T for part in state)
    last, (gates, after, extras) = lax.scan(body, columns, (pre, valid), reverse=reverse)
    y = xp.permute_dims(after[0], (0, 2, 1))
    if valid is not None:
        y = zero_rows(ops, valid, y)
    return y, tuple(part.T for part in last), gates, after, extras


def _scan_backward(
    cell: Cell,
    ops: Operations,
    reverse: bool,
    weights: Weights,
    kept: Kept,
    dy: Array,
    dstate: tuple[Array, ...],
    valid: Array | None,
) -> tuple[Weights, Array, tuple[Array, ...]]:
    xp, x, (steps, batch, _) = ops.xp, kept.x, dy.shape
    if valid is not None:
        x, dy = (zero_rows(ops, valid, a) for a in (x, dy))
    before = [_before(xp, a.T, b, reverse) for a, b in zip(kept.state, kept.after, strict=True)]
    chunk = Chunk(0, steps, x, kept.gates, before, kept.after, kept.extras)
    w = cell.transposed(ops, weights)
    work = cell.workspace_backward(ops, dy, batch)

    def body(dnew: tuple[Array, ...], step: tuple[Array, Any, Array]) -> tuple[Any, Any]:
        dy_t, local, valid_t = step
        dnew = (dnew[0] + dy_t, *dnew[1:])
        made, dold = cell.step_backward(ops, w, local, dnew, work)
        if valid_t is not None:
            dold = [ops.hold(valid_t, a, b) for a, b in zip(dold, dnew, strict=True)]
        return tuple(dold), tuple(made)

    columns = tuple(part.T for part in dstate)
    steps_of = (xp.permute_dims(dy, (0, 2, 1)), tuple(cell.factors(ops, weights, chunk)), valid)
    dfirst, made = lax.scan(body, columns, steps_of, reverse=not reverse)
    if valid is not None:
        made = [zero_columns(ops, valid, whole) for whole in made]
    gradients, dx = cell.gradients(ops, weights, chunk, made)
    return gradients, xp.reshape(dx, x.shape), tuple(part.T for part in dfirst)


def _before(xp: Namespace, first: Array, after: Array, reverse: bool) -> Array:
    """Return the state before each step, (T, H, B)."""
    parts = (after[1:, ...], first[None, ...]) if reverse else (first[None, ...], after[:-1, ...])
    return xp.concat(parts, axis=0)


# Compiled once for each cell (equal cells are one), direction and set of shapes.
_fold = jax.jit(recurrence.fold, static_argnums=(0, 1))
_run = jax.jit(_scan, static_argnums=(0, 1, 2))
_run_backward = jax.jit(_scan_backward, static_argnums=(0, 1, 2))
