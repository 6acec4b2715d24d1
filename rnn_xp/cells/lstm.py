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
"""

from __future__ import annotations

from rnn_xp.backend import Array, Namespace
from rnn_xp.cells.base import Cell, Kept, State, Weights, product, sigmoid, split


class LSTM(Cell):
    """The LSTM cell."""

    gates = 4
    state = ("h", "c")

    def step(self, xp: Namespace, w: Weights, a: Array, state: State) -> tuple[State, Kept]:
        h, c = state
        i, f, g, o = split(a + product(w, "hh", h), 4)
        i, f, g, o = sigmoid(xp, i), sigmoid(xp, f), xp.tanh(g), sigmoid(xp, o)
        new_c = f * c + i * g
        tanh_c = xp.tanh(new_c)
        return (o * tanh_c, new_c), (i, f, g, o, c, tanh_c)

    def step_backward(
        self, xp: Namespace, w: Weights, dstate: State, kept: Kept
    ) -> tuple[State, Kept]:
        (dh, dc), (i, f, g, o, c, tanh_c) = dstate, kept
        dc = dc + dh * o * (1 - tanh_c * tanh_c)
        da_i = dc * g * i * (1 - i)
        da_f = dc * c * f * (1 - f)
        da_g = dc * i * (1 - g * g)
        da_o = dh * tanh_c * o * (1 - o)
        da = xp.concat((da_i, da_f, da_g, da_o), axis=1)
        return (da @ w["weight_hh"], dc * f), (da,)
