"""The minimal LSTM cell (Feng et al., "Were RNNs All We Needed?", 2024, arXiv 2410.01201).

    f = σ(W_if x + b_if)    forget gate
    i = σ(W_ii x + b_ii)    input gate
    g = W_ig x + b_ig       candidate, linear
    p = f / (f + i)         what is kept: the two gates, normalised, are p and 1 - p
    h' = p ∘ h + (1 - p) ∘ g

Neither the gates nor the candidate see the state: there is no W_hh, and no c. It is computed as
p = σ(log f - log i), the same, which is no 0 / 0 where both gates are closed.

Backward, with dh the gradient with respect to h' and d that with respect to log f - log i:

    d    = dh ∘ (h - g) p (1 - p)
    da_f = d ∘ (1 - f)
    da_i = -d ∘ (1 - i)
    da_g = dh ∘ (1 - p)
    dh   = dh ∘ p
"""

from __future__ import annotations

from rnn_xp.backend import Array, Namespace
from rnn_xp.cells.base import Kept, State, Weights, log_sigmoid, sigmoid, split
from rnn_xp.cells.min_gru import MinGRU


class MinLSTM(MinGRU):
    """The minimal LSTM cell, with normalised gates; it has weights as MinGRU."""

    gates = 3

    def step(self, xp: Namespace, w: Weights, a: Array, state: State) -> tuple[State, Kept]:
        (h,) = state
        f, i, g = split(a, 3)
        p = sigmoid(xp, log_sigmoid(xp, f) - log_sigmoid(xp, i))
        return (p * h + (1 - p) * g,), (sigmoid(xp, f), sigmoid(xp, i), g, p, h)

    def step_backward(
        self, xp: Namespace, w: Weights, dstate: State, kept: Kept
    ) -> tuple[State, Kept]:
        (dh,), (f, i, g, p, h) = dstate, kept
        d = dh * (h - g) * p * (1 - p)
        da_f = d * (1 - f)
        da_i = -d * (1 - i)
        da_g = dh * (1 - p)
        return (dh * p,), (xp.concat((da_f, da_i, da_g), axis=1),)
