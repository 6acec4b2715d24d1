"""Compiled kernels for NumPy arrays: the whole time loop in one call (`kernels/`).

The recurrent weights are packed once, a step's gates are computed where its product leaves them,
and several threads share the work where there is enough of it. The results are those of the core
within rounding, and the same bits for any number of threads.

`RNN_XP_ACCELERATE` in the environment chooses: `0` turns the kernels off, the name of an
instruction set (`avx512`, `avx2`, `portable`) takes that one; otherwise the best that the processor
has. `RNN_XP_NUM_THREADS`, else `OMP_NUM_THREADS`, else the number of the processor's cores, is the
number of threads.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np

from rnn_xp.backend import Array, Namespace
from rnn_xp.cells import CELLS
from rnn_xp.cells.base import Cell, Weights
from rnn_xp.recurrence import Loop


def _load() -> tuple[Any, str]:
    """Return the compiled module, or None and why there is none."""
    try:
        return importlib.import_module("rnn_xp.accelerate._kernels"), ""
    except ModuleNotFoundError:
        return None, "not built: there was no C++ compiler when rnn_xp was installed"
    except ImportError as error:  # built on another system
        return None, f"cannot be loaded: {error}"


_kernels, _missing = _load()

MOST_THREADS = 64
"""As in kernels/pool.h."""

BY_WORK, BY_BATCH, BY_UNITS = range(3)
"""What the threads share out: as the kernels see fit, the sequences, or the hidden units."""

_CELLS = ("rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before")
# The kernels' numbers of the cells, by the cells' types.
_NUMBERS: dict[Any, int] = {CELLS[name]: number for number, name in enumerate(_CELLS)}
_empty, _byte, _array = np.empty, np.dtype(np.uint8), np.ndarray
_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class OneHot(NamedTuple):
    """What a layer can read instead of x (T, B, I): in each of its rows one 1 among zeros."""

    indices: Array
    """(T, B), int64, one after the other: where the ones stand."""
    size: int
    """I"""
    dtype: Any
    """Of the numbers that it stands for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(T, B, I)"""
        return (*self.indices.shape, self.size)

    @property
    def ndim(self) -> int:
        """3"""
        return 3


Folded = tuple[list[Array], int, int, int]
"""Packed weights: those of each direction; the kernels' numbers of instruction set and cell, and
the bytes of a number. A plain tuple, as `Kept` is: to make a named one takes a tenth of a short
call.
"""

Kept = tuple[Array | OneHot, int, Array | None, tuple[int, ...], list[Array]]
"""What a forward run keeps: x and the distance of its rows, the lengths, the sizes, and the
kernels' memory of each direction."""


AtOnce = Callable[[Any, Any], Any]
"""From x and the state to y and the state; None where an argument is not plainly right."""


class Spare:
    """Memory of forward runs that a backward run has used up: it waits for the next one.

    Arrays of more than 32 MB the C library would hand back to the system each time, and each page
    of the next one costs a fault: 8 % of a training step with 256 sequences, more of a long one.
    """

    LEAST, MOST = 32 << 20, 256 << 20
    """In bytes: of an array, and of all that waits; as in kernels/module.cpp."""

    def __init__(self) -> None:
        self._held: list[Array] = []

    def make(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an array of one axis, as `numpy.empty` does or longer."""
        (count,) = shape
        while self._held:
            with contextlib.suppress(IndexError):  # another thread may take it first
                held = self._held.pop()
                if held.dtype == dtype and held.size >= count:
                    return held
        return _empty(shape, dtype)

    def give(self, memory: Sequence[Array]) -> None:
        """Take arrays that nobody reads any more."""
        for array in memory:
            waiting = sum(held.nbytes for held in self._held)
            if array.nbytes > self.LEAST and waiting + array.nbytes <= self.MOST:
                self._held.append(array)


class Native:
    """The engine of one instruction set: see `Engine`.

    Parameters
    ----------
    name : str
        One of `instruction_sets()`.
    threads : int
    split : int
        `BY_WORK`, or the other two for tests.
    """

    def __init__(self, name: str, threads: int, split: int = BY_WORK) -> None:
        self.name = name
        self.threads = threads
        self._number = _kernels.kernel_names()[name]
        self._spare = Spare()
        self._split = split

    def takes(self, like: Array, cell: Cell | None = None) -> bool:
        """Tell whether the kernels have this dtype, and this cell."""
        has_cell = cell is None or type(cell) in _NUMBERS
        return has_cell and like.dtype.char in "fd" and bool(like.dtype.isnative)

    def fold(self, cell: Cell, xp: Namespace, weights: Sequence[Weights]) -> Folded:
        """Pack the weights of each direction."""
        first = weights[0]["weight_ih"]
        number, item = _NUMBERS[type(cell)], first.itemsize
        shape = (self._number, number, item, 1, 1, first.shape[1], cell.hidden_size)
        size, packed = _kernels.sizes(shape)[0], []
        for own in weights:
            room = _empty(size, _byte)
            _kernels.pack(shape, self.threads, *map(_whole, map(own.get, _WEIGHTS)), room)
            packed.append(room)
        return packed, self._number, number, item

    def at_once(self, cell: Cell, w: Folded, like: Array) -> AtOnce | None:
        """Return what runs one direction without a check of Python's; None if there are two."""
        packed, kernels, number, item = w
        if len(packed) > 1:
            return None
        sizes = (kernels, number, item, 1, 1, like.shape[1], cell.hidden_size)
        return partial(_kernels.infer, sizes, self.threads, packed[0], _empty, like.dtype)

    def forward_at_once(
        self,
        cell: Cell,
        inputs: int,
        weights: tuple[Array, ...],
        x: Array,
        state: Any,
        *,
        keep: bool,
    ) -> tuple[Array, Any, Kept | None] | None:
        """Pack the weights of one direction, in the order of `Cell.shapes`, and run it over x.

        As `fold` and `run`, without a check of Python's: None where an argument is not plainly
        right. The state is that of a layer.
        """
        dtype = weights[0].dtype
        sizes = (self._number, _NUMBERS[type(cell)], dtype.itemsize, 1, 1, inputs, cell.hidden_size)
        room = self._spare.make if keep else None
        done = _kernels.forward_at_once(
            sizes, self.threads, self._split, _array, _empty, dtype, weights, x, state, room
        )
        if done is None:
            return None
        y, state, memory = done
        if not keep:
            return y, state, None
        return y, state, (x, inputs, None, (*sizes[:3], *x.shape, cell.hidden_size), [memory])

    def backward_at_once(
        self, weights: tuple[Array, ...], kept: Kept, dy: Array, dstate: Any
    ) -> tuple[tuple[Array, ...], Array, Any] | None:
        """Run backward after `forward_at_once`: the gradients of the weights, of x, of the state.

        None where an argument is not plainly right.
        """
        x, _, _, shape, (memory,) = kept
        given = (x.dtype, weights, x, memory, dy, dstate)
        done: tuple[tuple[Array, ...], Array, Any] | None = _kernels.backward_at_once(
            shape, self.threads, self._split, _array, _empty, *given
        )
        if memory.nbytes > Spare.LEAST and done is not None:
            self._spare.give((memory,))
        return done

    def run(
        self,
        loops: Sequence[Loop],
        w: Folded,
        x: Array | OneHot,
        state: Sequence[Array | None],
        *,
        keep: bool,
    ) -> tuple[Array, Sequence[Array], Kept | None]:
        """Run every direction over x; see `Engine`."""
        cell, _, ragged, _ = loops[0]
        packed, kernels, number, item = w
        (steps, batch, inputs), dtype = x.shape, x.dtype
        distance, rows, indices = inputs, x, None
        if isinstance(x, OneHot):
            rows, indices = None, x.indices
        elif not x.flags.c_contiguous:
            x, distance = _rows(x)
            rows = x
        hidden, ways = cell.hidden_size, len(loops)
        shape = (kernels, number, item, steps, batch, inputs, hidden)
        y = _empty((steps, batch, ways * hidden), dtype)
        states = (ways, batch, hidden)
        h, c = _empty(states, dtype), None
        if len(state) == 2:
            c = _empty(states, dtype)
        # A copy: the caller may change his before the backward run.
        lengths = None if ragged is None else np.array(ragged.lengths, np.int64)
        room, memory = None, []
        for d, loop in enumerate(loops):
            if keep:
                room = self._spare.make((_kernels.sizes(shape)[1],), _byte)
                memory.append(room)
            _kernels.forward(
                shape,
                self.threads,
                self._split,
                loop.reverse,
                d,
                ways,
                packed[d],
                rows,
                distance,
                lengths,
                indices,
                _whole(state[0]),
                None if c is None else _whole(state[1]),
                y,
                h,
                c,
                room,
            )
        kept = (x, distance, lengths, shape, memory) if keep else None
        return y, (h,) if c is None else (h, c), kept

    def run_backward(
        self,
        loops: Sequence[Loop],
        weights: Sequence[Weights],
        kept: Kept,
        dy: Array,
        dstate: Sequence[Array | None],
    ) -> tuple[Sequence[Weights], Array, Sequence[Array]]:
        """Run every direction backward through time; see `Engine`. dx of `OneHot` is None."""
        x, x_distance, lengths, shape, memory = kept
        rows, indices = (None, x.indices) if isinstance(x, OneHot) else (x, None)
        distance = dy.shape[2]
        if not dy.flags.c_contiguous:
            dy, distance = _rows(dy)
        dtype, batch, hidden, ways = x.dtype, shape[4], shape[6], len(loops)
        states = (ways, batch, hidden)
        dh, dc = _empty(states, dtype), None
        if len(dstate) == 2:
            dc = _empty(states, dtype)
        gradients, dx = [], None
        for d, own in enumerate(weights):
            made = {name: _empty(a.shape, dtype) for name, a in own.items()}
            part = None if rows is None else _empty(x.shape, dtype)
            _kernels.backward(
                shape,
                self.threads,
                self._split,
                loops[d].reverse,
                d,
                ways,
                _whole(own["weight_ih"]),
                _whole(own["weight_hh"]),
                rows,
                x_distance,
                lengths,
                indices,
                memory[d],
                dy,
                distance,
                _whole(dstate[0]),
                None if dc is None else _whole(dstate[1]),
                part,
                *map(made.get, _WEIGHTS),
                dh,
                dc,
            )
            gradients.append(made)
            dx = part if dx is None or part is None else np.add(dx, part, out=dx)
        self._spare.give(memory)
        return gradients, dx, (dh,) if dc is None else (dh, dc)

    def product(self, a: Array, b: Array, bias: Array | None) -> Array:
        """Return a b + bias for matrices a (M, K) and b (K, N)."""
        a, a_row, a_k = _steps(a)
        b, b_k, b_n = _steps(b)
        if 1 not in (b_k, b_n):
            b, b_k, b_n = _steps(np.ascontiguousarray(b))
        (rows, inner), columns = a.shape, b.shape[1]
        out = np.empty((rows, columns), dtype=a.dtype)
        _kernels.product(
            self._number,
            a.itemsize,
            self.threads,
            rows,
            columns,
            inner,
            a,
            a_row,
            a_k,
            b,
            b_k,
            b_n,
            None if bias is None else _whole(bias),
            out,
        )
        return out

    def adam(
        self,
        arrays: Sequence[Array],
        betas: tuple[float, float],
        eps: float,
        scale: float,
        keep: float,
    ) -> tuple[Array, Array, Array]:
        """Return a parameter, m and v after Adam's update; see `accelerate.adam`."""
        param = arrays[0]
        made = [_empty(param.shape, param.dtype) for _ in range(3)]
        numbers = (param.size, *betas, eps, scale, keep)
        given = map(_whole, arrays)
        _kernels.adam(self._number, param.itemsize, self.threads, *numbers, *given, *made)
        return made[0], made[1], made[2]


def _rows(a: Array) -> tuple[Array, int]:
    """Return (T, B, K) as T * B rows at one distance, and that distance in numbers.

    That is `a` itself where its rows lie so, such as one direction's half of (T, B, 2 K).
    """
    steps, batch, size = a.shape
    distance = a.strides[1] if batch > 1 else a.strides[0] if steps > 1 else size * a.itemsize
    even = steps == 1 or a.strides[0] == batch * distance
    within = size == 1 or a.strides[2] == a.itemsize
    if not (even and within and distance >= size * a.itemsize and distance % a.itemsize == 0):
        return np.ascontiguousarray(a), size
    return a, distance // a.itemsize


def _steps(a: Array) -> tuple[Array, int, int]:
    """Return a matrix, and the distances in numbers between its rows and its columns."""
    if any(step % a.itemsize for step in a.strides):
        a = np.ascontiguousarray(a)
    row, column = (
        step // a.itemsize if count > 1 else 1
        for step, count in zip(a.strides, a.shape, strict=True)
    )
    return a, row, column


def _whole(a: Array | None) -> Array | None:
    """Return `a` with its numbers one after the other: itself where it can be."""
    return a if a is None or a.flags.c_contiguous else np.ascontiguousarray(a)


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that there are kernels for and the processor has, best first."""
    return () if _kernels is None else tuple(_kernels.kernel_names())


@cache
def choose() -> Native | str:
    """Return the engine to use, or in one line why there is none.

    Raises
    ------
    ValueError
        If `RNN_XP_ACCELERATE` names an instruction set that cannot be used here, or
        `RNN_XP_NUM_THREADS` is not a number of threads.
    """
    wanted = os.environ.get("RNN_XP_ACCELERATE", "").lower()
    if wanted == "0":
        return "switched off by RNN_XP_ACCELERATE=0"
    sets = instruction_sets()
    if wanted not in ("", "1", *sets):
        raise ValueError(
            f"RNN_XP_ACCELERATE must be 0, 1 or one of {', '.join(sets) or 'no kernels here'}, "
            f"got {wanted!r}"
        )
    if not sets:
        return _missing
    return Native(wanted if wanted in sets else sets[0], _threads())


def _threads() -> int:
    """Return the number of threads, at most as many as the kernels take.

    OpenMP's variable may hold a list, of which the first number counts; it is not ours to refuse.
    """
    own = os.environ.get("RNN_XP_NUM_THREADS", "")
    others = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if own and not _is_count(own):
        raise ValueError(f"RNN_XP_NUM_THREADS must be an integer >= 1, got {own!r}")
    if own or _is_count(others):
        return min(int(own or others), MOST_THREADS)
    if hasattr(os, "sched_getaffinity"):
        return min(len(os.sched_getaffinity(0)), MOST_THREADS)
    return min(os.cpu_count() or 1, MOST_THREADS)


def _is_count(text: str) -> bool:
    return text.isdecimal() and text.strip("0") != ""
