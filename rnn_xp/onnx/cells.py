"""Cells with any of ONNX's activations, and with clipping: for inference alone."""

from __future__ import annotations

from collections.abc import Sequence

from rnn_xp.backend import Array, Namespace
from rnn_xp.cells.base import Cell, Kept, State, Weights, product, split
from rnn_xp.onnx.activations import Function


class AnyCell(Cell):
    """What the cells below share."""

    coupled = peephole = reset_after = False

    def __init__(
        self, hidden_size: int, functions: Sequence[Function], clip: float | None, **options: bool
    ) -> None:
        super().__init__(hidden_size)
        self.functions, self.clip = functions, clip
        vars(self).update(options)


class AnyElman(AnyCell):
    """h' = f(W x + R h + b)."""

    gates = 1

    def step(self, xp: Namespace, w: Weights, a: Array, state: State) -> tuple[State, Kept]:
        return (self.functions[0](xp, a + product(w, "hh", state[0]), self.clip),), ()


class AnyLSTM(AnyCell):
    """The LSTM of ONNX, in the order i f g o of the package's own.

        i  = f(W_i x + R_i h + p_i ∘ c + b_i)
        f  = f(W_f x + R_f h + p_f ∘ c + b_f), or 1 - i (`coupled`)
        g  = g(W_g x + R_g h + b_g)
        c' = f ∘ c + i ∘ g
        o  = f(W_o x + R_o h + p_o ∘ c' + b_o)
        h' = o ∘ h(c')

    with the activations f, g and h.
    """

    gates = 4
    state = ("h", "c")

    def shapes(self, input_size: int, bias: bool) -> dict[str, tuple[int, ...]]:
        own = {"weight_peephole": (3, self.hidden_size)} if self.peephole else {}
        return super().shapes(input_size, bias) | own

    def step(self, xp: Namespace, w: Weights, a: Array, state: State) -> tuple[State, Kept]:
        (gate, candidate, output), clip = self.functions, self.clip
        h, c = state
        a_i, a_f, a_g, a_o = split(a + product(w, "hh", h), 4)
        if self.peephole:
            p_i, p_f, p_o = (w["weight_peephole"][k, ...] for k in range(3))
            a_i, a_f = a_i + p_i * c, a_f + p_f * c
        i = gate(xp, a_i, clip)
        f = 1.0 - i if self.coupled else gate(xp, a_f, clip)
        c = f * c + i * candidate(xp, a_g, clip)
        o = gate(xp, a_o + p_o * c if self.peephole else a_o, clip)
        return (o * output(xp, c), c), ()


class AnyGRU(AnyCell):
    """The GRU of ONNX, in the order r z n of the package's own; see `rnn_xp.cells.gru`.

    The activation of r and z is f, that of n is g.
    """

    gates = 3

    def step(self, xp: Namespace, w: Weights, a: Array, state: State) -> tuple[State, Kept]:
        (gate, candidate), clip, (h,) = self.functions, self.clip, state
        a_r, a_z, a_n = split(a, 3)
        q_r, q_z, q_n = split(product(w, "hh", h), 3)
        r, z = gate(xp, a_r + q_r, clip), gate(xp, a_z + q_z, clip)
        if self.reset_after:
            through = r * q_n
        else:
            _, _, through = split(product(w, "hh", r * h), 3)
        n = candidate(xp, a_n + through, clip)
        return ((1.0 - z) * n + z * h,), ()
