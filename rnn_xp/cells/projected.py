"""A projection after any cell (Sak, Senior & Beaufays, Interspeech 2014).

    m  = the h' of the inner cell, which reads h (P,) through W_hh (G*H, P)
    h' = W_hr m

Backward, with dh the gradient with respect to h':

    dm = W_hrᵀ dh
    dW_hr = Σ dh mᵀ
"""

from __future__ import annotations

from collections.abc import Sequence

from rnn_xp.backend import Array, Namespace
from rnn_xp.cells.base import Cell, Kept, State, Weights, of_product, product


class Projected(Cell):
    """A cell whose output is projected to fewer units: the `output_size` that `inner` reads."""

    def __init__(self, inner: Cell) -> None:
        self.gates, self.state = inner.gates, inner.state
        super().__init__(inner.hidden_size, inner.output_size)
        self.inner = inner

    @property
    def has_backward(self) -> bool:
        return self.inner.has_backward

    def shapes(self, input_size: int, bias: bool) -> dict[str, tuple[int, ...]]:
        shape = (self.output_size, self.hidden_size)
        return self.inner.shapes(input_size, bias) | {"weight_hr": shape}

    def step(self, xp: Namespace, w: Weights, a: Array, state: State) -> tuple[State, Kept]:
        (m, *rest), kept = self.inner.step(xp, w, a, state)
        return (product(w, "hr", m), *rest), (m, *kept)

    def step_backward(
        self, xp: Namespace, w: Weights, dstate: State, kept: Kept
    ) -> tuple[State, Kept]:
        dh, *rest = dstate
        dm = dh @ w["weight_hr"]
        dstate, da = self.inner.step_backward(xp, w, (dm, *rest), kept[1:])
        return dstate, (*da, dh)

    def gradients(
        self, xp: Namespace, w: Weights, x: Array, h: Array, kept: Sequence[Array], da: Kept
    ) -> Weights:
        made = self.inner.gradients(xp, w, x, h, kept[1:], da[:-1])
        return made | of_product(xp, w, "hr", da[-1], kept[0])


def projected(inner: type[Cell], size: int, hidden_size: int) -> Projected:
    """Return the cell of a class whose output is projected to `size` units."""
    return Projected(inner(hidden_size, size))
