"""What a cell is: the equations of one time step, forward and backward.

A cell sees columns: a state is (H, B), one column a sequence, so that its lines read like the
textbook's, `W h + ...`; the gates of a step are (G, H, B). It never sees time: `recurrence` calls
it once a step, and hands it whole chunks of steps where nothing depends on the order of time.

Forward, one step:       pre, state -> gates, state, extras      (`Cell.step`)
Backward, one chunk:     gates, states, extras -> local factors  (`Cell.factors`)
Backward, one step:      factors, dstate -> da, dstate           (`Cell.step_backward`)
Backward, one chunk:     da -> gradients of the weights, dx      (`Cell.gradients`)

`da` is the gradient with respect to a step's pre-activations. The backward pass is linear in it:
every factor that depends on the forward pass alone is computed for many steps at once, and the
loop is left with a few products.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rnn_xp.backend import Array, Namespace, Operations, device_of

Weights = dict[str, Array]


class Folded(NamedTuple):
    """Weights as the forward step wants them, made once a call."""

    weight_ih: Array
    """(G*H, I)"""
    weight_hh: Array
    """(G*H, H)"""
    bias: Array
    """(G, H, 1), the sum of both biases; None without."""
    extra: tuple[Array, ...] = ()
    """What else the cell's own step uses."""
    projection: Array = None
    """(P, H), of `Projected` alone."""


@dataclass(slots=True)
class Chunk:
    """What the forward pass keeps of some consecutive steps, for the backward pass.

    Attributes
    ----------
    start, stop : int
        The steps.
    x : (n, B, I)
    gates : (n, G, H, B)
    before, after : the state before and after each step, (n, H, B) for each part of the state
    extras : what else the cell keeps, (n, ...) each
    """

    start: int
    stop: int
    x: Array
    gates: Array
    before: Sequence[Array]
    after: Sequence[Array]
    extras: Sequence[Array]


class Cell(ABC):
    """The equations of one kind of recurrent step."""

    gates: int
    """G, the number of gates."""
    state: tuple[str, ...] = ("h",)
    """The parts of the state; the first one is the output."""
    extra_count = 0
    """How many (H, B) arrays a step keeps for the backward pass besides gates and state."""

    def __init__(self, hidden_size: int, output_size: int | None = None) -> None:
        self.hidden_size = hidden_size
        self.output_size = output_size or hidden_size
        self.extras = (hidden_size,) * self.extra_count
        self.state_sizes = (self.output_size, *(hidden_size for _ in self.state[1:]))

    def __eq__(self, other: object) -> bool:
        # Cells are values: what was compiled for one serves its equals.
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self.hidden_size, self.output_size))

    def shapes(self, input_size: int, bias: bool) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of every weight, in PyTorch's order."""
        rows = self.gates * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {
            "weight_ih": (rows, input_size),
            "weight_hh": (rows, self.output_size),
        }
        if bias:
            shapes |= {"bias_ih": (rows,), "bias_hh": (rows,)}
        return shapes

    @abstractmethod
    def fold(self, xp: Namespace, weights: Weights) -> Folded:
        """Arrange the weights for the forward step."""

    def workspace(self, ops: Operations, like: Array, batch: int) -> tuple[Array, ...]:
        """Return the buffers that every forward step writes over."""
        return (ops.buffer((self.gates, self.hidden_size, batch), like),)

    @abstractmethod
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
        """Compute one step.

        `pre` is W_ih x + b as (G, H, B), and may be overwritten by the gates; `out` and `extras`
        are the buffers for the new state and the extras. Returns the three of them.
        """

    def transposed(self, ops: Operations, weights: Weights) -> tuple[Array, ...]:
        """Return the weights that `step_backward` multiplies by: transposed, contiguous."""
        return (ops.contiguous(weights["weight_hh"].T),)

    def workspace_backward(self, ops: Operations, like: Array, batch: int) -> tuple[Array, ...]:
        """Return the buffers that every backward step writes over."""
        return (ops.buffer((self.output_size, batch), like),)

    @abstractmethod
    def factors(self, ops: Operations, weights: Weights, chunk: Chunk) -> list[Array]:
        """Return the local factors of every step of a chunk, each (n, ...).

        The first one is overwritten by `da`.
        """

    @abstractmethod
    def step_backward(
        self,
        ops: Operations,
        w: Sequence[Array],
        local: Sequence[Array],
        dstate: Sequence[Array],
        work: Sequence[Array],
    ) -> tuple[Sequence[Array], Sequence[Array]]:
        """Compute one step of the backward pass.

        `local` holds the step's factors, `dstate` the gradient with respect to the state after
        the step, overwritten by the gradient with respect to the state before it. Returns what
        replaces the first factors (`da` first), and the new `dstate`.
        """

    def gradients(
        self, ops: Operations, weights: Weights, chunk: Chunk, made: Sequence[Array]
    ) -> tuple[Weights, Array]:
        """Return the gradients of the weights over a chunk, and dx as (n * B, I)."""
        xp = ops.xp
        da = columns(xp, made[0])
        gradients = dense_gradients(xp, da, rows(xp, chunk.x, channels_last=True), "ih", weights)
        gradients |= dense_gradients(xp, da, rows(xp, chunk.before[0]), "hh", weights)
        return gradients, da.T @ weights["weight_ih"]


def dense_gradients(
    xp: Namespace, da: Array, operand: Array, kind: str, weights: Weights
) -> Weights:
    """Return the gradients of W and b in a = W u + b, from da (R, N) and the rows of u (N, K).

    `kind` is `ih` or `hh`, the end of their names.
    """
    gradients = {f"weight_{kind}": da @ operand}
    if f"bias_{kind}" in weights:
        gradients[f"bias_{kind}"] = xp.sum(da, axis=1)
    # Products of bfloat16 may be float32.
    dtype = weights[f"weight_{kind}"].dtype
    return {k: a if a.dtype == dtype else xp.astype(a, dtype) for k, a in gradients.items()}


def columns(xp: Namespace, a: Array) -> Array:
    """Turn (n, ..., B) into (R, n * B): one column for each step and sequence."""
    steps, batch = a.shape[0], a.shape[-1]
    flat = xp.reshape(a, (steps, -1, batch))
    return xp.reshape(xp.permute_dims(flat, (1, 0, 2)), (-1, steps * batch))


def rows(xp: Namespace, a: Array, *, channels_last: bool = False) -> Array:
    """Turn (n, R, B), or (n, B, R) with `channels_last`, into (n * B, R)."""
    if not channels_last:
        a = xp.permute_dims(a, (0, 2, 1))
    return xp.reshape(a, (-1, a.shape[-1]))


def gate_column(xp: Namespace, values: Sequence[float], like: Array) -> Array:
    """Return one value for each gate, as (G, 1, 1), with the dtype and device of `like`."""
    made = xp.asarray(values, dtype=like.dtype, device=device_of(like))
    return xp.reshape(made, (len(values), 1, 1))


def scaled_fold(
    xp: Namespace, weights: Weights, scale: Sequence[float], extra: tuple[Array, ...] = ()
) -> Folded:
    """Scale each gate's rows, and sum the biases."""
    weight_ih, weight_hh, bias = weights["weight_ih"], weights["weight_hh"], None
    gates = len(scale)
    if "bias_ih" in weights:
        bias = xp.reshape(weights["bias_ih"] + weights["bias_hh"], (gates, -1, 1))
    if set(scale) != {1.0}:
        factor = gate_column(xp, scale, weight_hh)
        weight_ih = _scaled(xp, weight_ih, factor)
        weight_hh = _scaled(xp, weight_hh, factor)
        bias = None if bias is None else bias * factor
    return Folded(weight_ih, weight_hh, bias, extra)


def _scaled(xp: Namespace, weight: Array, factor: Array) -> Array:
    blocks = xp.reshape(weight, (factor.shape[0], -1, weight.shape[1]))
    return xp.reshape(blocks * factor, weight.shape)


def sigmoid_of_half(ops: Operations, half: Array) -> Array:
    """Return σ(a) from a / 2, in its place: σ(a) = (1 + tanh(a / 2)) / 2."""
    half = ops.tanh(half, out=half)
    half = ops.multiply(half, 0.5, out=half)
    return ops.add(half, 0.5, out=half)


def sigmoid_slope(ops: Operations, s: Array, out: Array) -> Array:
    """Return σ'(a) = σ (1 - σ), from s = σ(a)."""
    return ops.multiply(ops.subtract(1.0, s, out=out), s, out=out)


def tanh_slope(ops: Operations, h: Array, out: Array) -> Array:
    """Return tanh'(a) = 1 - tanh², from h = tanh(a)."""
    return ops.subtract(1.0, ops.multiply(h, h, out=out), out=out)
