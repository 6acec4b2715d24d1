"""The LSTM cell with peepholes (Gers, Schraudolph & Schmidhuber, JMLR 3, 2002).

The gates also see the cell state, through one weight a unit, p = (p_i, p_f, p_o):

    i = σ(... + p_i ∘ c)    f = σ(... + p_f ∘ c)    o = σ(... + p_o ∘ c')

Backward, the additions to `lstm`:

    dc = dc + p_o ∘ da_o                 before da_i, da_f and da_g
    dc = dc ∘ f + p_i ∘ da_i + p_f ∘ da_f
    dp_i = Σ da_i ∘ c    dp_f = Σ da_f ∘ c    dp_o = Σ da_o ∘ c'
"""

from __future__ import annotations

from collections.abc import Sequence

from rnn_xp.backend import Array, Namespace, Operations
from rnn_xp.cells.base import Chunk, Folded, Weights, sigmoid_of_half
from rnn_xp.cells.lstm import LSTM


class PeepholeLSTM(LSTM):
    """The LSTM cell with peepholes."""

    def shapes(self, input_size: int, bias: bool) -> dict[str, tuple[int, ...]]:
        return super().shapes(input_size, bias) | {"weight_peephole": (3, self.hidden_size)}

    def fold(self, xp: Namespace, weights: Weights) -> Folded:
        folded = super().fold(xp, weights)
        peephole = xp.reshape(weights["weight_peephole"], (3, self.hidden_size, 1)) * 0.5
        return folded._replace(extra=(*folded.extra, peephole))

    def workspace(self, ops: Operations, like: Array, batch: int) -> tuple[Array, ...]:
        shapes = ((4,), (2,), (1,), ())
        return tuple(ops.buffer((*n, self.hidden_size, batch), like) for n in shapes)

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
        peephole = w.extra[2]
        a = ops.add(pre, ops.matmul_blocks(w.weight_hh, h, 4, out=work[0]), out=pre)
        a_if, a_g, a_o = a[:2, ...], a[2:3, ...], a[3:, ...]
        a_if = ops.add(a_if, ops.multiply(peephole[:2, ...], c, out=work[1]), out=a_if)
        i_f = sigmoid_of_half(ops, a_if)
        g = ops.tanh(a_g, out=a_g)
        i, f = ops.unstack(i_f)
        c = ops.multiply(f, c, out=c_out)
        c = ops.add(c, ops.multiply(i, g[0, ...], out=work[3]), out=c_out)
        a_o = ops.add(a_o, ops.multiply(peephole[2:, ...], c, out=work[2]), out=a_o)
        o = sigmoid_of_half(ops, a_o)
        h = ops.multiply(o[0, ...], ops.tanh(c, out=work[3]), out=h_out)
        return ops.joined((i_f, g, o), out=pre), (h, c), extras

    def transposed(self, ops: Operations, weights: Weights) -> tuple[Array, ...]:
        peephole = ops.xp.reshape(weights["weight_peephole"], (3, self.hidden_size, 1))
        return (*super().transposed(ops, weights), peephole)

    def workspace_backward(self, ops: Operations, like: Array, batch: int) -> tuple[Array, ...]:
        work = super().workspace_backward(ops, like, batch)
        return (*work, ops.buffer((2, self.hidden_size, batch), like))

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
        weight_hh_t, peephole = w
        da_o = ops.multiply(da[3:, ...], dh, out=da[3:, ...])
        dc = ops.add(dc, ops.multiply(dh, dc_dh, out=dc_dh), out=dc)
        dc = ops.add(dc, ops.multiply(peephole[2, ...], da_o[0, ...], out=dc_dh), out=dc)
        da_ifg = ops.multiply(da[:3, ...], dc, out=da[:3, ...])
        da = ops.joined((da_ifg, da_o), out=da)
        dh = ops.matmul(weight_hh_t, ops.flat(da), out=work[0])
        through_i, through_f = ops.unstack(
            ops.multiply(peephole[:2, ...], da_ifg[:2, ...], out=work[1])
        )
        dc = ops.add(ops.multiply(dc, f, out=dc), through_i, out=dc)
        dc = ops.add(dc, through_f, out=dc)
        return (da,), (dh, dc)

    def gradients(
        self, ops: Operations, weights: Weights, chunk: Chunk, made: Sequence[Array]
    ) -> tuple[Weights, Array]:
        gradients, dx = super().gradients(ops, weights, chunk, made)
        xp, da = ops.xp, made[0]
        before, after = chunk.before[1], chunk.after[1]
        seen = ((da[:, 0, ...], before), (da[:, 1, ...], before), (da[:, 3, ...], after))
        gradients["weight_peephole"] = xp.stack([xp.sum(d * c, axis=(0, 2)) for d, c in seen])
        return gradients, dx
