"""The time loop, forward and backward through time: knows no cell.

    forward:   pre = W_ih x + b for many steps at once, then step after step
    backward:  the local factors of many steps at once, then step after step in the other order,
               then the gradients of the weights and of x by one product each

"Many steps at once" is a chunk: as many steps as keep its arrays in the processor's cache, all of
them on a GPU. A chunk keeps what the backward pass needs; in inference it is dropped.

Time comes first at the edges, x (T, B, I) and y (T, B, H); inside, states are columns (H, B), so
that gates are contiguous and a cell reads like its equations. The reverse direction visits the
steps in the other order; nothing is flipped.

A ragged batch has `valid` (T, B), False past a sequence's length. A step past the length leaves
the state as it was, gives output 0 and passes no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from rnn_xp.backend import Array, Namespace, Operations, array_namespace, device_of, is_traced
from rnn_xp.cells.base import Cell, Chunk, Folded, Weights


class Ragged(NamedTuple):
    """Which steps of which sequences count."""

    lengths: Array
    """(B,), integers on the host, or traced by JAX"""
    valid: Array
    """(T, B), boolean"""
    shortest: int
    """All sequences have the steps before this one."""

    @classmethod
    def of(cls, lengths: Array, steps: int, like: Array) -> Ragged | None:
        """Return the steps that count, on the device of `like`; None if all of them do."""
        if is_traced(lengths):
            return cls(lengths, np.arange(steps)[:, None] < lengths[None, :], 0)
        shortest = int(lengths.min())
        if shortest == steps:
            return None
        xp = array_namespace(x=like)
        valid = np.arange(steps)[:, None] < lengths[None, :]
        return cls(lengths, xp.asarray(valid, device=device_of(like)), shortest)

    def step(self, t: int) -> Array:
        """Return valid at step t as (B,), or None where every sequence has the step."""
        return None if t < self.shortest else self.valid[t, ...]


class Loop(NamedTuple):
    """What is walked over time, how the arrays are computed with, how far, and which way."""

    cell: Cell
    ops: Operations
    ragged: Ragged | None
    """None where all sequences have T steps."""
    reverse: bool
    """From the last step to the first."""


def fold(cell: Cell, xp: Namespace, weights: Weights) -> Folded:
    """Arrange the weights for `run`."""
    return cell.fold(xp, weights)


def run(
    loop: Loop, w: Folded, x: Array, state: Sequence[Array | None], *, keep: bool
) -> tuple[Array, Sequence[Array], list[Chunk]]:
    """Run the cell over x.

    Parameters
    ----------
    x : (T, B, I)
    state : (B, H) for each part of the cell's state; None is zeros
    keep : keep what `run_backward` needs

    Returns
    -------
    y : (T, B, H)
    state : the state after the last step that was visited, like the one that goes in
    chunks : in the order of the visits; empty without `keep`
    """
    cell, ops, ragged, reverse = loop
    steps, batch = x.shape[0], x.shape[1]
    if steps == 1 and ragged is None and not keep:
        return _run_step(loop, w, x, state)
    if ragged is not None:
        x = zero_rows(ops, ragged.valid, x)
    y = ops.buffer((steps, batch, cell.output_size), x)
    work = cell.workspace(ops, x, batch)
    chunks: list[Chunk] = []
    columns = _columns(cell, ops, state, x)
    for start, stop in _spans(ops, steps, batch, reverse, keep):
        chunk = _run_chunk(loop, w, x, start, stop, columns, work)
        columns = tuple(part[0 if reverse else -1, ...] for part in chunk.after)
        y = ops.put(y, start, stop, ops.xp.permute_dims(chunk.after[0], (0, 2, 1)))
        if keep:
            chunks.append(chunk)
    if ragged is not None:
        y = zero_rows(ops, ragged.valid, y)
    # Copies: the backward run reads what the parts are views of.
    return y, [ops.fresh(part.T) for part in columns], chunks


def _run_step(
    loop: Loop, w: Folded, x: Array, state: Sequence[Array | None]
) -> tuple[Array, Sequence[Array], list[Chunk]]:
    """Run a single step of which nothing is kept, as a stream has it: a chunk would take longer."""
    cell, ops, _, _ = loop
    batch = x.shape[1]
    room = ops.buffer((cell.gates, cell.hidden_size, batch), x)
    pre = ops.matmul_blocks(w.weight_ih, x[0, ...].T, cell.gates, out=room)
    if w.bias is not None:
        pre = ops.add(pre, w.bias, out=pre)
    out = [ops.buffer((size, batch), x) for size in cell.state_sizes]
    extras = [ops.buffer((size, batch), x) for size in cell.extras]
    work = cell.workspace(ops, x, batch)
    _, after, _ = cell.step(ops, w, pre, _columns(cell, ops, state, x), out, extras, work)
    last = [ops.contiguous(part.T) for part in after]
    return ops.fresh(last[0])[None, ...], last, []


def _columns(
    cell: Cell, ops: Operations, state: Sequence[Array | None], x: Array, *, fresh: bool = False
) -> tuple[Array, ...]:
    """Return the parts of a state as columns (H, B); `fresh`: they will be written over."""
    columns = []
    for size, part in zip(cell.state_sizes, state, strict=True):
        shape = (size, x.shape[1])
        if part is None:
            columns.append(ops.xp.zeros(shape, dtype=x.dtype, device=device_of(x)))
        else:
            column = part.T
            columns.append(
                ops.copy(column, out=ops.buffer(shape, x)) if fresh else ops.contiguous(column)
            )
    return tuple(columns)


def _run_chunk(
    loop: Loop,
    w: Folded,
    x: Array,
    start: int,
    stop: int,
    state: Sequence[Array],
    work: Sequence[Array],
) -> Chunk:
    cell, ops, ragged, reverse = loop
    steps, batch = stop - start, x.shape[1]
    x = x[start:stop, ...]
    pre = _input_product(cell, ops, w, x)
    # Row k holds the state between the steps k - 1 and k.
    between = [ops.buffer((steps + 1, size, batch), x) for size in cell.state_sizes]
    extras = [ops.buffer((steps, size, batch), x) for size in cell.extras]
    state_rows = ops.rows(between, steps + 1)
    extra_rows = ops.rows(extras, steps)
    gate_rows = ops.rows((pre,), steps)
    before, after = (1, 0) if reverse else (0, 1)
    first = steps if reverse else 0
    state = tuple(ops.copy(a, out=b) for a, b in zip(state, state_rows[first], strict=True))
    state_rows[first] = state
    for k in range(steps - 1, -1, -1) if reverse else range(steps):
        old, (pre_k,) = state, gate_rows[k]
        gates, state, extra_rows[k] = cell.step(
            ops, w, pre_k, old, state_rows[k + after], extra_rows[k], work
        )
        valid = None if ragged is None else ragged.step(start + k)
        if valid is not None:
            state = tuple(ops.hold(valid, a, b) for a, b in zip(state, old, strict=True))
        gate_rows[k], state_rows[k + after] = (gates,), state
    (gates,) = ops.wholes(gate_rows, out=(pre,))
    states = ops.wholes(state_rows, out=between)
    return Chunk(
        start,
        stop,
        x,
        gates,
        [whole[before : steps + before, ...] for whole in states],
        [whole[after : steps + after, ...] for whole in states],
        ops.wholes(extra_rows, out=extras),
    )


def _input_product(cell: Cell, ops: Operations, w: Folded, x: Array) -> Array:
    """Return W_ih x + b for all steps of x, as (n, G, H, B)."""
    xp = ops.xp
    steps, batch = x.shape[0], x.shape[1]
    product = ops.matmul(w.weight_ih, xp.reshape(x, (steps * batch, x.shape[2])).T)
    blocks = xp.reshape(product, (cell.gates, cell.hidden_size, steps, batch))
    blocks = xp.permute_dims(blocks, (2, 0, 1, 3))
    out = ops.buffer((steps, cell.gates, cell.hidden_size, batch), x)
    return ops.copy(blocks, out=out) if w.bias is None else ops.add(blocks, w.bias, out=out)


def run_backward(
    loop: Loop,
    weights: Weights,
    chunks: Sequence[Chunk],
    dy: Array,
    dstate: Sequence[Array | None],
) -> tuple[Weights, Array, Sequence[Array]]:
    """Run the cell backward through time.

    Parameters
    ----------
    chunks : what `run` kept; overwritten
    dy : (T, B, H)
    dstate : (B, H) for each part of the state; None is zeros

    Returns
    -------
    dweights : the gradient of every weight, summed over time and batch
    dx : (T, B, I)
    dstate : the gradient with respect to the initial state, like the one that goes in
    """
    cell, ops, ragged, _ = loop
    xp = ops.xp
    steps, batch, size = dy.shape[0], dy.shape[1], chunks[0].x.shape[2]
    if ragged is not None:
        dy = zero_rows(ops, ragged.valid, dy)
    w = cell.transposed(ops, weights)
    work = cell.workspace_backward(ops, dy, batch)
    held = [ops.buffer((rows, batch), dy) for rows in cell.state_sizes]
    dx = ops.buffer((steps, batch, size), dy)
    total: Weights = {}
    columns: Sequence[Array] = _columns(cell, ops, dstate, dy, fresh=True)
    for chunk in reversed(chunks):
        made, columns = _run_chunk_backward(loop, weights, w, chunk, dy, columns, work, held)
        gradients, dx_rows = cell.gradients(ops, weights, chunk, made)
        for name, gradient in gradients.items():
            total[name] = (
                ops.add(total[name], gradient, out=total[name]) if name in total else gradient
            )
        dx_rows = xp.reshape(dx_rows, (chunk.stop - chunk.start, batch, size))
        dx = ops.put(dx, chunk.start, chunk.stop, dx_rows)
    return total, dx, [ops.contiguous(part.T) for part in columns]


def _run_chunk_backward(
    loop: Loop,
    weights: Weights,
    w: Sequence[Array],
    chunk: Chunk,
    dy: Array,
    dstate: Sequence[Array],
    work: Sequence[Array],
    held: Sequence[Array],
) -> tuple[Sequence[Array], Sequence[Array]]:
    cell, ops, ragged, reverse = loop
    start, stop = chunk.start, chunk.stop
    steps = stop - start
    columns = ops.contiguous(ops.xp.permute_dims(dy[start:stop, ...], (0, 2, 1)))
    dy_rows = ops.unstack(columns)
    factors = cell.factors(ops, weights, chunk)
    factor_rows = ops.rows(factors, steps)
    made: list[Sequence[Array]] = [()] * steps
    for k in range(steps) if reverse else range(steps - 1, -1, -1):
        dh = ops.add(dstate[0], dy_rows[k], out=dstate[0])
        dstate = (dh, *dstate[1:])
        valid = None if ragged is None else ragged.step(start + k)
        if valid is not None:
            before = [ops.copy(a, out=b) for a, b in zip(dstate, held, strict=True)]
        made[k], dstate = cell.step_backward(ops, w, factor_rows[k], dstate, work)
        if valid is not None:
            dstate = [ops.hold(valid, a, b) for a, b in zip(dstate, before, strict=True)]
    wholes = ops.wholes(made, out=factors[: len(made[0])])
    if ragged is not None and stop > ragged.shortest:
        valid = ragged.valid[start:stop, :]
        wholes = [zero_columns(ops, valid, whole) for whole in wholes]
    return wholes, dstate


def zero_rows(ops: Operations, valid: Array, a: Array) -> Array:
    """Return a (T, B, size) with zeros where `valid` (T, B) is False, whatever stood there."""
    return _zero(ops, valid[:, :, None], a)


def zero_columns(ops: Operations, valid: Array, a: Array) -> Array:
    """Return a (T, ..., B) with zeros where `valid` (T, B) is False, whatever stood there."""
    steps, batch = valid.shape
    return _zero(ops, ops.xp.reshape(valid, (steps, *[1] * (a.ndim - 2), batch)), a)


def _zero(ops: Operations, valid: Array, a: Array) -> Array:
    zero = ops.xp.zeros((), dtype=a.dtype, device=device_of(a))
    made = ops.xp.where(valid, a, zero)
    # CuPy's `where` makes float32 of bfloat16.
    return made if made.dtype == a.dtype else ops.xp.astype(made, a.dtype)


def _spans(
    ops: Operations, steps: int, batch: int, reverse: bool, keep: bool
) -> Iterator[tuple[int, int]]:
    """Yield the first and the past-the-last step of each chunk, in the order of the visits."""
    # Without `keep` the chunks are all the memory that is needed besides y: they are short.
    rows = ops.rows_a_chunk if keep else ops.rows_a_chunk // 4
    size = max(1, rows // batch) if ops.rows_a_chunk else steps
    starts = range(0, steps, size)
    for start in reversed(starts) if reverse else starts:
        yield start, min(start + size, steps)
