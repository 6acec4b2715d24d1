"""The recurrent operators of ONNX: RNN, LSTM and GRU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rnn_xp import cells
from rnn_xp.backend import (
    Array,
    Backend,
    Namespace,
    dtype_name,
    is_floating,
    to_numpy,
)
from rnn_xp.cells.base import Cell, Weights
from rnn_xp.engines import Engine, Ragged, Run, Stack, engine
from rnn_xp.onnx.activations import Function, functions
from rnn_xp.onnx.cells import AnyElman, AnyGRU, AnyLSTM

# Of each gate of ours (LSTM: i f g o, GRU: r z n) its place in ONNX's order (i o f c, z r h), and
# the other way round.
FROM_ONNX = {"RNN": (0,), "LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2)}
TO_ONNX = {"RNN": (0,), "LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
PEEPHOLES = (0, 2, 1)  # i o f and i f o: either way

ATTRIBUTES = (
    "activation_alpha",
    "activation_beta",
    "activations",
    "clip",
    "direction",
    "hidden_size",
    "layout",
)
Folds = list[tuple[Stack, Engine, list[Any]]]
_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
_PLAIN = {"RNN": ("tanh",), "LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh")}


class RecurrentNode:
    """An RNN, LSTM or GRU node: its attributes, and one cell for each direction.

    Raises
    ------
    ValueError
        If an attribute has a value that it cannot have.
    """

    def __init__(self, operator: str, attributes: Mapping[str, Any], backend: Backend) -> None:
        self.operator = operator
        self.attributes = attributes
        self.backend = backend
        self.direction = self._one_of("direction", ("forward", "reverse", "bidirectional"))
        self.directions = 2 if self.direction == "bidirectional" else 1
        self.batch_first = self._one_of("layout", (0, 1)) == 1
        self.coupled = self._one_of("input_forget", (0, 1)) == 1
        self.reset_after = self._one_of("linear_before_reset", (0, 1)) == 1
        self.clip: float | None = attributes.get("clip")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"the attribute clip must be > 0, got {self.clip}")
        self.functions = self._functions()
        self.prepared: Folds | None = None

    def _one_of(self, name: str, choices: tuple[Any, ...]) -> Any:
        value = self.attributes.get(name, choices[0])
        if value not in choices:
            wanted = ", ".join(map(str, choices))
            raise ValueError(f"the attribute {name} must be one of {wanted}, got {value}")
        return value

    def _functions(self) -> list[list[Function]]:
        """Return the functions of each direction."""
        plain = _PLAIN[self.operator]
        count = len(plain) * self.directions
        names = self.attributes.get("activations", plain * self.directions)
        if self.operator == "RNN" and len(names) == 2:
            names = names[:count]  # ONNX's own default has two for one direction, too
        if len(names) != count:
            raise ValueError(f"the attribute activations must have {count} names, got {names}")
        alphas, betas = (self.attributes.get(f"activation_{k}", ()) for k in ("alpha", "beta"))
        made, each = functions(names, alphas, betas), len(plain)
        return [made[k : k + each] for k in range(0, count, each)]

    # The weights

    def prepare(self, inputs: Sequence[str], constants: Mapping[str, Array]) -> None:
        """Fold the weights now if they are constants."""
        named = {
            key: name
            for key, name in zip(_INPUTS, inputs, strict=False)
            if name and key in ("W", "R", "B", "P")
        }
        if all(name in constants for name in named.values()):
            self.prepared = self._fold({key: constants[name] for key, name in named.items()})

    def _fold(self, arrays: Mapping[str, Array]) -> Folds:
        """Return what runs each direction: its stack, its engine and the prepared weights."""
        hidden, size = self._check_weights(arrays), arrays["W"].shape[2]
        folds = []
        for d, each in enumerate(self.functions):
            cell = self._cell(hidden, each, peephole="P" in arrays)
            reverse = d == 1 or self.direction == "reverse"
            stack = Stack(cell, size, "B" in arrays, reverse=(reverse,))
            chosen = engine(cell, arrays["W"])
            own = {f"{name}_l0": a for name, a in self._weights(arrays, d).items()}
            folds.append((stack, chosen, chosen.prepare(stack, own)))
        return folds

    def _check_weights(self, arrays: Mapping[str, Array]) -> int:
        """Check W, R, B and P; return the hidden size."""
        weight, recurrent = arrays["W"], arrays["R"]
        for name in ("W", "R"):
            if arrays[name].ndim != 3:
                raise ValueError(f"{name} must have three axes, got {tuple(arrays[name].shape)}")
        if not is_floating(weight):
            raise ValueError(f"W must be floating-point, got {dtype_name(weight.dtype)}")
        hidden = int(self.attributes.get("hidden_size", recurrent.shape[2]))
        rows, directions = len(FROM_ONNX[self.operator]) * hidden, self.directions
        shapes = {
            "W": (directions, rows, weight.shape[2]),
            "R": (directions, rows, hidden),
            "B": (directions, 2 * rows),
            "P": (directions, 3 * hidden),
        }
        for name, array in arrays.items():
            if name in shapes:
                _check(name, array, shapes[name], weight)
        return hidden

    def _weights(self, arrays: Mapping[str, Array], d: int) -> Weights:
        """Return the weights of direction d under the package's names, in its order of gates."""
        xp, order = self.backend.xp, FROM_ONNX[self.operator]
        weights = {
            "weight_ih": reorder(xp, arrays["W"][d, ...], order),
            "weight_hh": reorder(xp, arrays["R"][d, ...], order),
        }
        if "B" in arrays:
            bias = xp.reshape(arrays["B"][d, ...], (2, -1))
            weights["bias_ih"] = reorder(xp, bias[0, ...], order)
            weights["bias_hh"] = reorder(xp, bias[1, ...], order)
        if "P" in arrays:
            peephole = xp.reshape(arrays["P"][d, ...], (3, -1))
            weights["weight_peephole"] = reorder(xp, peephole, PEEPHOLES)
        return weights

    def _cell(self, hidden: int, chosen: Sequence[Function], *, peephole: bool) -> Cell:
        """Return the package's cell where the node is one of them, else one of `onnx.cells`."""
        names = tuple(function.name for function in chosen)
        plain = self.clip is None and not self.coupled
        if self.operator == "RNN":
            if plain and names[0] in ("tanh", "relu"):
                return (cells.Elman if names[0] == "tanh" else cells.ReluElman)(hidden)
            return AnyElman(hidden, chosen, self.clip)
        plain = plain and names == _PLAIN[self.operator]
        if self.operator == "LSTM":
            if plain:
                return (cells.PeepholeLSTM if peephole else cells.LSTM)(hidden)
            return AnyLSTM(hidden, chosen, self.clip, coupled=self.coupled, peephole=peephole)
        if plain:
            return (cells.GRU if self.reset_after else cells.ResetBeforeGRU)(hidden)
        return AnyGRU(hidden, chosen, self.clip, reset_after=self.reset_after)

    # A run

    def __call__(self, *inputs: Array) -> tuple[Array, ...]:
        """Return Y, Y_h and, of an LSTM, Y_c.

        Raises
        ------
        ValueError
            If an input's shape or dtype does not fit.
        """
        given = {k: a for k, a in zip(_INPUTS, inputs, strict=False) if a is not None}
        folds = self.prepared or self._fold(given)
        x = self._input(given["X"], given["W"])
        ragged = _ragged(given.get("sequence_lens"), x)
        first = folds[0][0].cell
        parts = [self._initial(given, part, x, first) for part in first.state]
        outputs, states = [], []
        for d, (stack, chosen, weights) in enumerate(folds):
            state = [None if part is None else part[d : d + 1, ...] for part in parts]
            y, last, _ = chosen.run(Run(stack, ragged), weights, x, state)
            outputs.append(y)
            states.append(last)
        return self._arranged(outputs, states)

    def _input(self, x: Array, weight: Array) -> Array:
        """Return X as (T, B, I)."""
        if x.ndim != 3 or 0 in x.shape:
            raise ValueError(f"X must have three axes, none of size 0, got {tuple(x.shape)}")
        _check("X", x, (*x.shape[:2], weight.shape[2]), weight)
        return self._exchanged(x)

    def _initial(self, given: Mapping[str, Array], part: str, x: Array, cell: Cell) -> Array | None:
        """Return an initial state as (D, B, H)."""
        array = given.get(f"initial_{part}")
        if array is None:
            return None
        shape = (self.directions, x.shape[1], cell.hidden_size)
        if self.batch_first:
            shape = (shape[1], shape[0], shape[2])
        _check(f"initial_{part}", array, shape, x)
        return self._exchanged(array)

    def _arranged(
        self, outputs: Sequence[Array], states: Sequence[Sequence[Array]]
    ) -> tuple[Array, ...]:
        """Return the outputs (T, B, H) and the states (1, B, H) as ONNX has them."""
        xp = self.backend.xp
        y = xp.stack(outputs, axis=1)
        if self.batch_first:
            y = xp.permute_dims(y, (2, 0, 1, 3))
        last = (xp.concat(parts, axis=0) for parts in zip(*states, strict=True))
        return (y, *map(self._exchanged, last))

    def _exchanged(self, a: Array) -> Array:
        """Exchange the first two of three axes with layout=1."""
        return self.backend.xp.permute_dims(a, (1, 0, 2)) if self.batch_first else a


def _ragged(lengths: Array | None, x: Array) -> Ragged | None:
    """Return which steps count; `lengths` may be 0, other than a layer's."""
    if lengths is None:
        return None
    steps, batch = x.shape[:2]
    host = to_numpy(lengths)
    if host.shape != (batch,) or host.dtype.kind not in "iu":
        raise ValueError(f"sequence_lens must be {batch} integers, got {host.shape} {host.dtype}")
    wrong = host[(host < 0) | (host > steps)]
    if wrong.size:
        raise ValueError(f"sequence_lens must lie in 0..{steps}, got {wrong[0]}")
    return Ragged.of(host, steps, x)


def _check(name: str, array: Array, shape: tuple[int, ...], like: Array) -> None:
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(array.shape)}")
    if array.dtype != like.dtype:
        raise ValueError(
            f"{name} must have dtype {dtype_name(like.dtype)}, got {dtype_name(array.dtype)}"
        )


def reorder(xp: Namespace, rows: Array, order: Sequence[int]) -> Array:
    """Put the gates of (G*H, ...) into another order."""
    count = rows.shape[0] // len(order)
    return xp.concat([rows[k * count : (k + 1) * count, ...] for k in order], axis=0)
