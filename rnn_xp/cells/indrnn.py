"""The independently recurrent cell (Li et al., "IndRNN", CVPR 2018, arXiv 1803.04831).

    a  = W_ih x + b_ih + u ∘ h
    h' = relu(a)

Each unit sees its own past alone, through one weight: u, `weight_hh` (H,). Over T steps the paper
keeps |u| at 2^(1/T) at most, or units explode; nothing here enforces it.

Backward, with dh the gradient with respect to h':

    da = dh where h' > 0
    dh = u ∘ da
    du = Σ da ∘ h
"""

from __future__ import annotations

from collections.abc import Sequence

from rnn_xp.backend import Array, Namespace
from rnn_xp.cells.base import Cell, Kept, State, Weights, of_product, total


class IndRNN(Cell):
    """The independently recurrent cell, with relu."""

    gates = 1

    def shapes(self, input_size: int, bias: bool) -> dict[str, tuple[int, ...]]:
        shapes = super().shapes(input_size, bias) | {"weight_hh": (self.hidden_size,)}
        shapes.pop("bias_hh", None)
        return shapes

    def step(self, xp: Namespace, w: Weights, a: Array, state: State) -> tuple[State, Kept]:
        (h,) = state
        a = a + w["weight_hh"] * h
        h = xp.where(a > 0, a, xp.zeros_like(a))
        return (h,), (h,)

    def step_backward(
        self, xp: Namespace, w: Weights, dstate: State, kept: Kept
    ) -> tuple[State, Kept]:
        (dh,), (h,) = dstate, kept
        da = xp.where(h > 0, dh, xp.zeros_like(dh))
        return (w["weight_hh"] * da,), (da,)

    def gradients(
        self, xp: Namespace, w: Weights, x: Array, h: Array, kept: Sequence[Array], da: Kept
    ) -> Weights:
        return of_product(xp, w, "ih", da[0], x) | {"weight_hh": total(xp, da[0] * h)}
