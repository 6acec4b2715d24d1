"""The minimal GRU cell (Feng et al., "Were RNNs All We Needed?", 2024, arXiv 2410.01201).

    z = σ(W_iz x + b_iz)    update gate
    n = W_in x + b_in       candidate, linear
    h' = (1 - z) ∘ h + z ∘ n

Neither the gate nor the candidate sees the state: there is no W_hh. As in the paper, z is what is
taken of the candidate; in `gru` it is what is kept of h.

Backward, with dh the gradient with respect to h':

    da_z = dh ∘ (n - h) z (1 - z)
    da_n = dh ∘ z
    dh   = dh ∘ (1 - z)
"""

from __future__ import annotations

from collections.abc import Sequence

from rnn_xp.backend import Array, Namespace
from rnn_xp.cells.base import Cell, Kept, State, Weights, of_product, sigmoid, split


class MinGRU(Cell):
    """The minimal GRU cell."""

    gates = 2

    def shapes(self, input_size: int, bias: bool) -> dict[str, tuple[int, ...]]:
        shapes = super().shapes(input_size, bias)
        return {name: shape for name, shape in shapes.items() if name.endswith("ih")}

    def step(self, xp: Namespace, w: Weights, a: Array, state: State) -> tuple[State, Kept]:
        (h,) = state
        z, n = split(a, 2)
        z = sigmoid(xp, z)
        return ((1 - z) * h + z * n,), (z, n, h)

    def step_backward(
        self, xp: Namespace, w: Weights, dstate: State, kept: Kept
    ) -> tuple[State, Kept]:
        (dh,), (z, n, h) = dstate, kept
        da_z = dh * (n - h) * z * (1 - z)
        da_n = dh * z
        return (dh * (1 - z),), (xp.concat((da_z, da_n), axis=1),)

    def gradients(
        self, xp: Namespace, w: Weights, x: Array, h: Array, kept: Sequence[Array], da: Kept
    ) -> Weights:
        return of_product(xp, w, "ih", da[0], x)
