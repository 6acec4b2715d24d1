"""Cells with any of ONNX's activations, and with clipping: for inference alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rnn_xp.backend import Array, Namespace, Operations
from rnn_xp.cells.base import Cell, Chunk, Folded, Weights
from rnn_xp.onnx.activations import Function


class AnyCell(Cell):
    """What the cells below share."""

    def __init__(self, hidden_size: int, functions: Sequence[Function], clip: float | None) -> None:
        super().__init__(hidden_size)
        self.functions = functions
        self.clip = clip

    def fold(self, xp: Namespace, weights: Weights) -> Folded:
        bias = None
        if "bias_ih" in weights:
            bias = weights["bias_ih"] + weights["bias_hh"]
            bias = xp.reshape(bias, (self.gates, self.hidden_size, 1))
        return Folded(weights["weight_ih"], weights["weight_hh"], bias)

    def workspace(self, ops: Operations, like: Array, batch: int) -> tuple[Array, ...]:
        return ()

    def product(self, ops: Operations, weight: Array, h: Array) -> Array:
        """Return W h by gates: (n, H, B)."""
        return ops.xp.reshape(ops.matmul(weight, h), (-1, self.hidden_size, h.shape[1]))

    def factors(self, ops: Operations, weights: Weights, chunk: Chunk) -> list[Array]:
        raise NotImplementedError("this cell is for inference")

    def step_backward(self, *arguments: Any) -> tuple[Sequence[Array], Sequence[Array]]:
        raise NotImplementedError("this cell is for inference")


class AnyElman(AnyCell):
    """h' = f(W x + R h + b)."""

    gates = 1

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
        a = pre[0, ...] + ops.matmul(w.weight_hh, state[0])
        h = self.functions[0](ops.xp, a, self.clip)
        return pre, (ops.copy(h, out=out[0]),), extras


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

    def __init__(
        self, hidden_size: int, functions: Sequence[Function], clip: float | None, coupled: bool
    ) -> None:
        super().__init__(hidden_size, functions, clip)
        self.coupled = coupled

    def fold(self, xp: Namespace, weights: Weights) -> Folded:
        folded = super().fold(xp, weights)
        if "weight_peephole" not in weights:
            return folded
        peephole = xp.reshape(weights["weight_peephole"], (3, self.hidden_size, 1))
        return folded._replace(extra=tuple(peephole[k, ...] for k in range(3)))

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
        xp, clip = ops.xp, self.clip
        gate, candidate, output = self.functions
        h, c = state
        a = pre + self.product(ops, w.weight_hh, h)
        a_i, a_f, a_g, a_o = (a[k, ...] for k in range(4))
        if w.extra:
            a_i, a_f = a_i + w.extra[0] * c, a_f + w.extra[1] * c
        i = gate(xp, a_i, clip)
        f = 1.0 - i if self.coupled else gate(xp, a_f, clip)
        c = f * c + i * candidate(xp, a_g, clip)
        if w.extra:
            a_o = a_o + w.extra[2] * c
        h = gate(xp, a_o, clip) * output(xp, c)
        return pre, (ops.copy(h, out=out[0]), ops.copy(c, out=out[1])), extras


class AnyGRU(AnyCell):
    """The GRU of ONNX, in the order r z n of the package's own; see `rnn_xp.cells.gru`.

    The activation of r and z is f, that of n is g.
    """

    gates = 3

    def __init__(
        self, hidden_size: int, functions: Sequence[Function], clip: float | None, reset_after: bool
    ) -> None:
        super().__init__(hidden_size, functions, clip)
        self.reset_after = reset_after

    def fold(self, xp: Namespace, weights: Weights) -> Folded:
        folded = super().fold(xp, weights)
        if not self.reset_after or "bias_hh" not in weights:
            return folded
        # b_hn stands inside the reset product; the two others join the input's biases.
        b_in = xp.reshape(weights["bias_ih"], (3, -1, 1))[2:, ...]
        b_hn = xp.reshape(weights["bias_hh"], (3, -1, 1))[2, ...]
        bias = xp.concat((folded.bias[:2, ...], b_in), axis=0)
        return folded._replace(bias=bias, extra=(b_hn,))

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
        xp, clip, split = ops.xp, self.clip, 2 * self.hidden_size
        gate, candidate = self.functions
        (h,) = state
        weight_rz, weight_n = w.weight_hh[:split, :], w.weight_hh[split:, :]
        rz = gate(xp, pre[:2, ...] + self.product(ops, weight_rz, h), clip)
        r, z = rz[0, ...], rz[1, ...]
        if self.reset_after:
            q = ops.matmul(weight_n, h)
            through = r * (q + w.extra[0] if w.extra else q)
        else:
            through = ops.matmul(weight_n, r * h)
        n = candidate(xp, pre[2, ...] + through, clip)
        return pre, (ops.copy((1.0 - z) * n + z * h, out=out[0]),), extras
