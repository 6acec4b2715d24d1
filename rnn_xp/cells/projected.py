"""A projection after any cell (Sak, Senior & Beaufays, Interspeech 2014).

    m  = the h' of the inner cell, which reads h (P, B) through W_hh (G*H, P)
    h' = W_hr m

Backward, with dh the gradient with respect to h':

    dm = W_hrᵀ dh
    dW_hr = Σ dh mᵀ
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rnn_xp.backend import Array, Namespace, Operations
from rnn_xp.cells.base import Cell, Chunk, Folded, Weights, columns, dense_gradients, rows


class Projected(Cell):
    """A cell whose output is projected to fewer units: the `output_size` that `inner` reads."""

    def __init__(self, inner: Cell) -> None:
        super().__init__(inner.hidden_size, inner.output_size)
        self.inner = inner
        self.gates = inner.gates
        self.state = inner.state
        self.state_sizes = inner.state_sizes
        self.extras = (inner.hidden_size, *inner.extras)

    def shapes(self, input_size: int, bias: bool) -> dict[str, tuple[int, ...]]:
        shape = (self.output_size, self.hidden_size)
        return self.inner.shapes(input_size, bias) | {"weight_hr": shape}

    def fold(self, xp: Namespace, weights: Weights) -> Folded:
        return self.inner.fold(xp, weights)._replace(projection=weights["weight_hr"])

    def workspace(self, ops: Operations, like: Array, batch: int) -> tuple[Array, ...]:
        return self.inner.workspace(ops, like, batch)

    def step(
        self,
        ops: Operations,
        w: Folded,
        pre: Array,
        state: Sequence[Array],
        out: Sequence[Array],
        extras: Sequence[Array],
        work: Sequence[Array],
    ) -> tuple[Array, Sequence[Array], Sequence[Array]]:
        inner_out = (extras[0], *out[1:])
        gates, (m, *rest), kept = self.inner.step(ops, w, pre, state, inner_out, extras[1:], work)
        h = ops.matmul(w.projection, m, out=out[0])
        return gates, (h, *rest), (m, *kept)

    def transposed(self, ops: Operations, weights: Weights) -> tuple[Array, ...]:
        projection = ops.contiguous(weights["weight_hr"].T)
        return (projection, *self.inner.transposed(ops, weights))

    def workspace_backward(self, ops: Operations, like: Array, batch: int) -> tuple[Array, ...]:
        dm = ops.buffer((self.hidden_size, batch), like)
        return (dm, *self.inner.workspace_backward(ops, like, batch))

    def factors(self, ops: Operations, weights: Weights, chunk: Chunk) -> list[Array]:
        da, *rest = self.inner.factors(ops, weights, chunk)
        # Filled with each step's dh, for the gradient of W_hr.
        return [da, ops.xp.empty_like(chunk.after[0]), *rest]

    def step_backward(
        self,
        ops: Operations,
        w: Sequence[Array],
        local: Sequence[Array],
        dstate: Sequence[Array],
        work: Sequence[Array],
    ) -> tuple[Sequence[Array], Sequence[Array]]:
        da, dh_kept, *rest = local
        dh, *others = dstate
        dh_kept = ops.copy(dh, out=dh_kept)
        dm = ops.matmul(w[0], dh, out=work[0])
        (da,), dstate = self.inner.step_backward(ops, w[1:], (da, *rest), (dm, *others), work[1:])
        return (da, dh_kept), dstate

    def gradients(
        self, ops: Operations, weights: Weights, chunk: Chunk, made: Sequence[Array]
    ) -> tuple[Weights, Array]:
        da, dh = made
        inner_chunk = replace(chunk, extras=chunk.extras[1:])
        gradients, dx = self.inner.gradients(ops, weights, inner_chunk, (da,))
        m = rows(ops.xp, chunk.extras[0])
        gradients |= dense_gradients(ops.xp, columns(ops.xp, dh), m, "hr", weights)
        return gradients, dx
