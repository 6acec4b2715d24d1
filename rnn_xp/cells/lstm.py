"""The LSTM cell (Hochreiter & Schmidhuber, 1997; its forget gate: Gers et al., 2000).

    i = σ(W_ii x + b_ii + W_hi h + b_hi)        input gate
    f = σ(W_if x + b_if + W_hf h + b_hf)        forget gate
    g = tanh(W_ig x + b_ig + W_hg h + b_hg)     candidate
    o = σ(W_io x + b_io + W_ho h + b_ho)        output gate
    c' = f ∘ c + i ∘ g
    h' = o ∘ tanh(c')

Backward, with dh and dc the gradients with respect to h' and c':

    dc   = dc + dh ∘ o (1 - tanh²c')
    da_i = dc ∘ g i (1 - i)
    da_f = dc ∘ c f (1 - f)
    da_g = dc ∘ i (1 - g²)
    da_o = dh ∘ tanh(c') o (1 - o)
    dh   = W_hhᵀ da
    dc   = dc ∘ f

Since σ(a) = (1 + tanh(a / 2)) / 2, and halving is exact, the forward step uses weights with the
sigmoid gates' rows halved, and one tanh serves all four gates.
"""

from __future__ import annotations

from collections.abc import Sequence

from rnn_xp.backend import Array, Namespace, Operations
from rnn_xp.cells.base import (
    Cell,
    Chunk,
    Folded,
    Weights,
    gate_column,
    scaled_fold,
    sigmoid_slope,
    tanh_slope,
)


class LSTM(Cell):
    """The LSTM cell."""

    gates = 4
    state = ("h", "c")

    def fold(self, xp: Namespace, weights: Weights) -> Folded:
        scale = gate_column(xp, (0.5, 0.5, 1.0, 0.5), weights["weight_hh"])
        shift = gate_column(xp, (0.5, 0.5, 0.0, 0.5), weights["weight_hh"])
        return scaled_fold(xp, weights, (0.5, 0.5, 1.0, 0.5), extra=(scale, shift))

    def workspace(self, ops: Operations, like: Array, batch: int) -> tuple[Array, ...]:
        return (
            ops.buffer((self.gates, self.hidden_size, batch), like),
            ops.buffer((self.hidden_size, batch), like),
        )

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
        h, c = state
        h_out, c_out = out
        scale, shift = w.extra
        a = ops.add(pre, ops.matmul_blocks(w.weight_hh, h, 4, out=work[0]), out=pre)
        gates = ops.tanh(a, out=pre)
        gates = ops.multiply(gates, scale, out=pre)
        gates = ops.add(gates, shift, out=pre)
        i, f, g, o = ops.unstack(gates)
        c = ops.multiply(f, c, out=c_out)
        c = ops.add(c, ops.multiply(i, g, out=work[1]), out=c_out)
        h = ops.multiply(o, ops.tanh(c, out=work[1]), out=h_out)
        return gates, (h, c), extras

    def factors(self, ops: Operations, weights: Weights, chunk: Chunk) -> list[Array]:
        i, f, g, o = (chunk.gates[:, k, ...] for k in range(4))
        tanh_c = ops.xp.tanh(chunk.after[1])
        da, (da_i, da_f, da_g, da_o) = ops.beside(4, i)
        da_i = ops.multiply(sigmoid_slope(ops, i, out=da_i), g, out=da_i)
        da_f = ops.multiply(sigmoid_slope(ops, f, out=da_f), chunk.before[1], out=da_f)
        da_g = ops.multiply(tanh_slope(ops, g, out=da_g), i, out=da_g)
        da_o = ops.multiply(sigmoid_slope(ops, o, out=da_o), tanh_c, out=da_o)
        dc_dh = ops.multiply(tanh_slope(ops, tanh_c, out=tanh_c), o, out=tanh_c)
        return [ops.stacked((da_i, da_f, da_g, da_o), out=da), dc_dh, f]

    def step_backward(
        self,
        ops: Operations,
        w: Sequence[Array],
        local: Sequence[Array],
        dstate: Sequence[Array],
        work: Sequence[Array],
    ) -> tuple[Sequence[Array], Sequence[Array]]:
        dh, dc = dstate
        da, dc_dh, f = local
        dc = ops.add(dc, ops.multiply(dh, dc_dh, out=dc_dh), out=dc)
        da_ifg = ops.multiply(da[:3, ...], dc, out=da[:3, ...])
        da_o = ops.multiply(da[3:, ...], dh, out=da[3:, ...])
        da = ops.joined((da_ifg, da_o), out=da)
        dh = ops.matmul(w[0], ops.flat(da), out=work[0])
        dc = ops.multiply(dc, f, out=dc)
        return (da,), (dh, dc)
