"""The Elman cell (Elman, "Finding structure in time", Cognitive Science 14, 1990).

    a  = W_ih x + b_ih + W_hh h + b_hh
    h' = tanh(a)    or    relu(a)

Backward, with dh the gradient with respect to h':

    da = dh ∘ (1 - h'²)    or    dh where h' > 0
    dh = W_hhᵀ da
"""

from __future__ import annotations

from collections.abc import Sequence

from rnn_xp.backend import Array, Namespace, Operations, device_of
from rnn_xp.cells.base import Cell, Chunk, Folded, Weights, scaled_fold


class Elman(Cell):
    """The Elman cell with tanh."""

    gates = 1

    def fold(self, xp: Namespace, weights: Weights) -> Folded:
        return scaled_fold(xp, weights, (1.0,))

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
        a = ops.matmul(w.weight_hh, state[0], out=out[0])
        a = ops.add(a, pre[0, ...], out=out[0])
        return pre, (self.activate(ops, a, out[0]),), extras

    def workspace(self, ops: Operations, like: Array, batch: int) -> tuple[Array, ...]:
        return ()

    def activate(self, ops: Operations, a: Array, out: Array) -> Array:
        """Return the nonlinearity of a."""
        return ops.tanh(a, out=out)

    def slope(self, xp: Namespace, h: Array) -> Array:
        """Return the derivative of the nonlinearity, from its value h."""
        return 1.0 - h * h

    def factors(self, ops: Operations, weights: Weights, chunk: Chunk) -> list[Array]:
        return [self.slope(ops.xp, chunk.after[0])]

    def step_backward(
        self,
        ops: Operations,
        w: Sequence[Array],
        local: Sequence[Array],
        dstate: Sequence[Array],
        work: Sequence[Array],
    ) -> tuple[Sequence[Array], Sequence[Array]]:
        da = ops.multiply(dstate[0], local[0], out=local[0])
        return (da,), (ops.matmul(w[0], da, out=work[0]),)


class ReluElman(Elman):
    """The Elman cell with relu."""

    def activate(self, ops: Operations, a: Array, out: Array) -> Array:
        zero = ops.xp.zeros((), dtype=a.dtype, device=device_of(a))
        return ops.maximum(a, zero, out=out)

    def slope(self, xp: Namespace, h: Array) -> Array:
        return xp.astype(h > 0, h.dtype)
