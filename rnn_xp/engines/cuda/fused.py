"""CuPy: a step is one product and one kernel, forward and backward.

The core's step takes a dozen launches of several microseconds each; here the gates of a step, its
state, its output and what is kept of it are one kernel (`fused.cu`), made from the formulas of
`kernels/gates.h`. The GRU that resets before its product has two products, so two of each.

Everything lies in rows: a state is (B, H), the gates of all steps (T * B, G * H), as the products
x Wᵀ and h Wᵀ give them. Nothing is folded: the kernels add both biases themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from rnn_xp.backend import Array, Namespace, array_namespace
from rnn_xp.cells import GRU, LSTM, Cell, Elman, ReluElman, ResetBeforeGRU
from rnn_xp.cells.base import Weights
from rnn_xp.recurrence import Loop, zeroed

Kernel = Callable[..., Any]
"""As `cupy.RawKernel`: (grid, block, arguments), 0 for a null pointer."""
Kernels = Callable[[str], Kernel]
"""From a kernel's name to the kernel."""

# By the dtypes' characters: NumPy takes 4 µs to spell a name. That of bfloat16 is of ml_dtypes.
NAMES = {"e": "float16", "E": "bfloat16", "f": "float32", "d": "float64"}
_FLAGS = {
    "float16": ("-DBITS=16",),
    "bfloat16": ("-DBITS=16", "-DBRAIN"),
    "float32": ("-DBITS=32",),
    "float64": ("-DBITS=64",),
}


class Kind(NamedTuple):
    """How a cell runs here."""

    forward: tuple[str, ...]
    """The kernel after each product of a step."""
    backward: tuple[str, ...]
    """The kernel before each product of a step."""
    blocks_hh: int = 0
    """Gates of da of the product with h, where it is not that of the product with x."""
    carries: bool = False
    """Whether a part of dh passes by the products."""
    extra: bool = False
    """Whether it keeps q or u."""


# By the cells' types.
_KINDS: dict[Any, Kind] = {
    Elman: Kind(("tanh_forward",), ("tanh_backward",)),
    ReluElman: Kind(("relu_forward",), ("relu_backward",)),
    LSTM: Kind(("lstm_forward",), ("lstm_backward",)),
    GRU: Kind(("gru_forward",), ("gru_backward",), 3, True, True),
    ResetBeforeGRU: Kind(
        ("reset_forward", "candidate_forward"),
        ("candidate_backward", "reset_backward"),
        2,
        True,
        True,
    ),
}


class Kept(NamedTuple):
    """What a forward run keeps for the backward run."""

    x: Array
    """(T * B, I)"""
    gates: Array
    """(T * B, G * H)"""
    h: Array
    """(T + 1, B, H); row k stands between the steps k - 1 and k."""
    c: Array | None
    """As h, of the LSTM alone."""
    extra: Array | None
    """(T, B, H): q of the GRU, u of the one that resets before."""

    def part(self, begin: int, end: int) -> Kept:
        """Return a view of some of the steps."""
        x, gates, *states, extra = self
        rows, batch = slice(begin, end), self.h.shape[1]
        lines = slice(begin * batch, end * batch)
        h, c = (None if a is None else a[begin : end + 1, ...] for a in states)
        return Kept(x[lines], gates[lines], h, c, None if extra is None else extra[rows, ...])


class Made(NamedTuple):
    """The gradients of the pre-activations, (T * B, gates * H) each."""

    ih: Array
    """Of the product with x; they take the place of the gates."""
    hh: Array
    """Of the product with h."""
    u: Array | None
    """Of the product with u = r ∘ h."""

    def part(self, begin: int, end: int, batch: int) -> Made:
        """Return a view of some of the steps."""
        lines = slice(begin * batch, end * batch)
        return Made(*(None if a is None else a[lines] for a in self))


class Fused:
    """The kernels of one direction: as the functions of `recurrence`.

    Parameters
    ----------
    kernels : function
        From the name of a dtype to the kernels, by name.
    """

    def __init__(self, kernels: Callable[[str], Kernels]) -> None:
        self._kernels = kernels

    def takes(self, cell: Cell, dtype: Any) -> bool:
        """Tell whether there are kernels for this cell and dtype."""
        return type(cell) in _KINDS and dtype.char in NAMES

    def run(
        self,
        loop: Loop,
        w: Weights,
        x: Array,
        state: Sequence[Array | None],
        *,
        keep: bool,
    ) -> tuple[Array, Sequence[Array], Kept | None]:
        """Run the cell over x; see `recurrence.run`."""
        cell, xp, valid, _ = loop
        x = zeroed(xp, valid, x)
        kept = self.room(cell, xp, x, keep=keep)
        y = blank((*x.shape[:2], cell.hidden_size), x)
        last = self.run_into(loop, w, kept, state, y, keep=keep)
        return y, last, kept if keep else None

    def room(self, cell: Cell, xp: Namespace, x: Array, *, keep: bool) -> Kept:
        """Return the arrays that a run over x (T, B, I) fills."""
        steps, batch, inputs = x.shape
        shape = steps, batch, cell.hidden_size
        states = [self._rows(k, shape, x, keep=keep) for k in range(len(cell.state))]
        gates = blank((steps * batch, cell.gates * cell.hidden_size), x)
        extra = self._extra(cell, shape, x, keep=keep)
        return Kept(x.reshape(steps * batch, inputs), gates, *pair(states), extra)

    def run_into(
        self,
        loop: Loop,
        w: Weights,
        kept: Kept,
        state: Sequence[Array | None],
        y: Array,
        *,
        keep: bool,
    ) -> list[Array]:
        """Run the cell over `kept.x`, zero where no step counts; return the last state."""
        loop.xp.dot(kept.x, w["weight_ih"].T, out=kept.gates)
        return self._forward(loop, w, kept, state, y, keep=keep)

    def _rows(self, part: int, shape: tuple[int, ...], like: Array, *, keep: bool) -> Array | None:
        """Return an array for h or c of (T, B, H): of all steps, or of one at a time."""
        steps, *state = shape
        return blank((steps + 1 if keep else 1, *state), like)

    def _extra(
        self, cell: Cell, shape: tuple[int, ...], like: Array, *, keep: bool
    ) -> Array | None:
        """Return an array for q or u of a cell that has one."""
        steps, *state = shape
        if not keeps_extra(cell):
            return None
        return blank((steps if keep else 1, *state), like)

    def made(self, cell: Cell, kept: Kept, dy: Array) -> Made:
        """Return the arrays that a backward run fills with gradients of the pre-activations."""
        kind, (steps, batch, hidden) = _KINDS[type(cell)], dy.shape
        made = Made(kept.gates, kept.gates, None)
        if kind.blocks_hh:
            made = made._replace(hh=blank((steps * batch, kind.blocks_hh * hidden), dy))
        if len(kind.backward) == 2:
            made = made._replace(u=blank((steps * batch, hidden), dy))
        return made

    def _forward(
        self,
        loop: Loop,
        w: Weights,
        kept: Kept,
        state: Sequence[Array | None],
        y: Array,
        *,
        keep: bool,
    ) -> list[Array]:
        """Run all steps from a state on; return the last one."""
        cell, xp, valid, reverse = loop
        steps, batch, hidden = y.shape
        parts = [rows for rows in (kept.h, kept.c) if rows is not None]
        for rows, part in zip(parts, state, strict=True):
            rows[-1 if reverse else 0, ...] = 0 if part is None else part
        kernels = self._named(_KINDS[type(cell)].forward, y)
        operands: list[Any] = [kept.h, kept.extra][: len(kernels)]
        stages = [
            (kernel, tuple(rows), weight.T, blank((batch, weight.shape[0]), y))
            for kernel, rows, weight in zip(kernels, operands, _blocks(cell, w), strict=True)
        ]
        given = pointers(valid, w.get("bias_ih"), w.get("bias_hh"))
        made = pointers(*kept[1:], y)
        grid, block = _threads(batch, hidden)
        after = steps if reverse and keep else 0
        for k in reversed(range(steps)) if reverse else range(steps):
            before, slot = after, k if keep else 0
            after = (k if reverse else k + 1) if keep else 0
            for (kernel, rows, weight, total), row in zip(stages, (before, slot), strict=False):
                xp.dot(rows[row], weight, out=total)
                kernel(grid, block, (hidden, k, before, after, slot, *given, total, *made))
        last = [rows[after, ...] for rows in parts]
        return [copied(a) for a in last] if keep else last

    def run_backward(
        self,
        loop: Loop,
        weights: Weights,
        kept: Kept,
        dy: Array,
        dstate: Sequence[Array | None],
    ) -> tuple[Weights, Array, Sequence[Array]]:
        """Run the cell backward through time; see `recurrence.run_backward`."""
        cell, xp, _, reverse = loop
        made = self.made(cell, kept, dy)
        dx = blank((*dy.shape[:2], kept.x.shape[1]), dy)
        first = self.run_backward_into(
            loop, weights, kept, made, xp.ascontiguousarray(dy), dstate, dx
        )
        return gradients(xp, weights, kept, made, reverse=reverse), dx, first

    def run_backward_into(
        self,
        loop: Loop,
        w: Weights,
        kept: Kept,
        made: Made,
        dy: Array,
        dstate: Sequence[Array | None],
        dx: Array,
    ) -> list[Array]:
        """Run the cell backward, dy contiguous; return the gradients of the first state."""
        first = [blank(tuple(dy.shape[1:]), dy) for _ in dstate]
        self._backward(loop, w, kept, dy, dstate, first, made)
        loop.xp.dot(made.ih, w["weight_ih"], out=dx.reshape(-1, dx.shape[2]))
        return first

    def _backward(
        self,
        loop: Loop,
        w: Weights,
        kept: Kept,
        dy: Array,
        dlast: Sequence[Array | None],
        dstate: Sequence[Array],
        made: Made,
    ) -> None:
        """Run all steps from `dlast` on; fill `dstate`, before the first one, and `made`."""
        cell, xp, valid, reverse = loop
        steps, batch, hidden = dy.shape
        for part, given in zip(dstate, dlast, strict=True):
            part[...] = 0 if given is None else given
        carry = None
        if _KINDS[type(cell)].carries or valid is not None:
            carry = xp.zeros((batch, hidden), dtype=dy.dtype)
        kernels = self._named(_KINDS[type(cell)].backward, dy)
        # Of two products, the step's second one is the first here.
        operands = [a.reshape(steps, batch, -1) for a in (made.u, made.hh) if a is not None]
        stages = [
            (kernel, tuple(rows), weight)
            for kernel, rows, weight in zip(kernels, operands, _blocks(cell, w)[::-1], strict=True)
        ]
        arguments = pointers(valid, dy, *kept[1:], *pair(dstate), carry, made.hh, made.u)
        grid, block = _threads(batch, hidden)
        for k in range(steps) if reverse else reversed(range(steps)):
            before, after = (k + 1, k) if reverse else (k, k + 1)
            for kernel, rows, weight in stages:
                kernel(grid, block, (hidden, k, before, after, *arguments))
                xp.dot(rows[k], weight, out=dstate[0])
        if carry is not None:
            xp.add(dstate[0], carry, out=dstate[0])

    def _named(self, names: Sequence[str], like: Array) -> list[Kernel]:
        kernels = self._kernels(NAMES[like.dtype.char])
        return [kernels(name) for name in names]


def keeps_extra(cell: Cell) -> bool:
    """Tell whether a run of the cell keeps q or u."""
    return _KINDS[type(cell)].extra


def pair(parts: Sequence[Array]) -> tuple[Array, Array | None]:
    """Return the first part of a state, and the second one if there is one."""
    return parts[0], parts[1] if len(parts) == 2 else None


def _blocks(cell: Cell, w: Weights) -> list[Array]:
    """Return the weights of each product of a step, in the order of the step."""
    weight, split = w["weight_hh"], 2 * cell.hidden_size
    if len(_KINDS[type(cell)].forward) == 1:
        return [weight]
    return [weight[:split, :], weight[split:, :]]


def blank(shape: tuple[int, ...], like: Array) -> Array:
    """Return an array to write into, with the dtype of `like`."""
    return array_namespace(like=like).ndarray(shape, like.dtype)  # `empty` asks for it longer


def copied(a: Array) -> Array:
    """Return a copy."""
    made = blank(a.shape, a)
    made[...] = a
    return made


def pointers(*arrays: Array | None) -> tuple[Any, ...]:
    """Return arrays as kernels take them: of None, not every CuPy makes a null pointer."""
    return tuple(0 if a is None else a for a in arrays)


def _threads(batch: int, hidden: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the grid and the block: one thread for each hidden unit of each sequence."""
    threads = min(256, -(-hidden // 32) * 32)
    return (batch, -(-hidden // threads)), (threads,)


def gradients(xp: Namespace, w: Weights, kept: Kept, made: Made, *, reverse: bool) -> Weights:
    """Return the gradients of all weights, summed over time and batch."""
    h = kept.h
    before = (h[1:, ...] if reverse else h[:-1, ...]).reshape(-1, h.shape[2])
    found = {
        "weight_ih": xp.dot(made.ih.T, kept.x),
        "weight_hh": xp.dot(made.hh.T, before),
    }
    if made.u is not None:
        through_u = xp.dot(made.u.T, xp.reshape(kept.extra, (-1, h.shape[2])))
        found["weight_hh"] = xp.concat((found["weight_hh"], through_u), axis=0)
    if "bias_ih" in w:
        ones = xp.ones((1, h.shape[1] * (h.shape[0] - 1)), dtype=h.dtype)
        found["bias_ih"] = xp.dot(ones, made.ih)[0, ...]  # a sum, but by a faster kernel
        # With u both biases stand in the same sum.
        same = made.u is not None or made.hh is made.ih
        found["bias_hh"] = (
            xp.asarray(found["bias_ih"], copy=True) if same else xp.dot(ones, made.hh)[0, ...]
        )
    return {name: found[name] for name in w}


def source(name: str = "fused.cu") -> str:
    """Return the source of the kernels in a file, complete in itself."""
    folder = Path(__file__).parent
    text = (folder / name).read_text(encoding="utf-8")
    for path in (folder / "numbers.h", folder.parent / "kernels" / "gates.h"):
        included = path.read_text(encoding="utf-8").replace("#pragma once", "")
        text = text.replace(f'#include "{path.name}"', included)
    return text


def options(dtype: str) -> tuple[str, ...]:
    """Return how the source is compiled for a dtype."""
    return "--std=c++17", *_FLAGS[dtype]


@cache
def compiled(dtype: str) -> Kernels:
    """Return the kernels for a dtype; they are compiled at their first use."""
    return module(source(), dtype)


def module(code: str, dtype: str) -> Kernels:
    """Return the kernels of a source for a dtype."""
    import cupy

    named: Kernels = cache(cupy.RawModule(code=code, options=options(dtype)).get_function)
    return named
