"""The Elman cell (Elman, "Finding structure in time", Cognitive Science 14, 1990).

    a  = W_ih x + b_ih + W_hh h + b_hh
    h' = tanh(a)    or    relu(a)

Backward, with dh the gradient with respect to h':

    da = dh ∘ (1 - h'²)    or    dh where h' > 0
    dh = W_hhᵀ da
"""

from __future__ import annotations

from rnn_xp.backend import Array, Namespace
from rnn_xp.cells.base import Cell, Kept, State, Weights, product


class Elman(Cell):
    """The Elman cell with tanh."""

    gates = 1

    def step(self, xp: Namespace, w: Weights, a: Array, state: State) -> tuple[State, Kept]:
        (h,) = state
        h = xp.tanh(a + product(w, "hh", h))
        return (h,), (h,)

    def step_backward(
        self, xp: Namespace, w: Weights, dstate: State, kept: Kept
    ) -> tuple[State, Kept]:
        (dh,), (h,) = dstate, kept
        da = dh * (1 - h * h)
        return (da @ w["weight_hh"],), (da,)


class ReluElman(Cell):
    """The Elman cell with relu."""

    gates = 1

    def step(self, xp: Namespace, w: Weights, a: Array, state: State) -> tuple[State, Kept]:
        (h,) = state
        a = a + product(w, "hh", h)
        h = xp.where(a > 0, a, xp.zeros_like(a))
        return (h,), (h,)

    def step_backward(
        self, xp: Namespace, w: Weights, dstate: State, kept: Kept
    ) -> tuple[State, Kept]:
        (dh,), (h,) = dstate, kept
        da = xp.where(h > 0, dh, xp.zeros_like(dh))
        return (da @ w["weight_hh"],), (da,)
