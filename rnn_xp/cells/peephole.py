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

from rnn_xp.backend import Array, Namespace
from rnn_xp.cells.base import Kept, State, Weights, product, sigmoid, split, total
from rnn_xp.cells.lstm import LSTM


class PeepholeLSTM(LSTM):
    """The LSTM cell with peepholes."""

    def shapes(self, input_size: int, bias: bool) -> dict[str, tuple[int, ...]]:
        return super().shapes(input_size, bias) | {"weight_peephole": (3, self.hidden_size)}

    def step(self, xp: Namespace, w: Weights, a: Array, state: State) -> tuple[State, Kept]:
        h, c = state
        p_i, p_f, p_o = (w["weight_peephole"][k, ...] for k in range(3))
        i, f, g, o = split(a + product(w, "hh", h), 4)
        i, f, g = sigmoid(xp, i + p_i * c), sigmoid(xp, f + p_f * c), xp.tanh(g)
        new_c = f * c + i * g
        o, tanh_c = sigmoid(xp, o + p_o * new_c), xp.tanh(new_c)
        return (o * tanh_c, new_c), (i, f, g, o, c, tanh_c, new_c)

    def step_backward(
        self, xp: Namespace, w: Weights, dstate: State, kept: Kept
    ) -> tuple[State, Kept]:
        (dh, dc), (i, f, g, o, c, tanh_c, _) = dstate, kept
        p_i, p_f, p_o = (w["weight_peephole"][k, ...] for k in range(3))
        da_o = dh * tanh_c * o * (1 - o)
        dc = dc + dh * o * (1 - tanh_c * tanh_c) + p_o * da_o
        da_i = dc * g * i * (1 - i)
        da_f = dc * c * f * (1 - f)
        da_g = dc * i * (1 - g * g)
        da = xp.concat((da_i, da_f, da_g, da_o), axis=1)
        return (da @ w["weight_hh"], dc * f + p_i * da_i + p_f * da_f), (da,)

    def gradients(
        self, xp: Namespace, w: Weights, x: Array, h: Array, kept: Sequence[Array], da: Kept
    ) -> Weights:
        da_i, da_f, _, da_o = split(da[0], 4)
        c, new_c = kept[4], kept[6]
        seen = [total(xp, d * each) for d, each in ((da_i, c), (da_f, c), (da_o, new_c))]
        return super().gradients(xp, w, x, h, kept, da) | {"weight_peephole": xp.stack(seen)}
