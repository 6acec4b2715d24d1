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
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import numpy as np

from rnn_xp.backend import Array
from rnn_xp.cells import GRU, LSTM, Cell, Elman, ReluElman, ResetBeforeGRU
from rnn_xp.engines.base import Attempt, ByLevel, Made, Params, Parts, Run, Stack


def _load() -> tuple[Any, str]:
    """Return the compiled module, or None and why there is none."""
    try:
        return importlib.import_module("rnn_xp.engines._kernels"), ""
    except ModuleNotFoundError:
        return None, "not built: there was no C++ compiler when rnn_xp was installed"
    except ImportError as error:  # built on another system
        return None, f"cannot be loaded: {error}"


_kernels, _missing = _load()

MOST_THREADS = 64
"""As in kernels/pool.h."""

BY_WORK, BY_BATCH, BY_UNITS = range(3)
"""What the threads share out: as the kernels see fit, the sequences, or the hidden units."""

_NUMBERS: dict[Any, int] = {
    kind: k for k, kind in enumerate((Elman, ReluElman, LSTM, GRU, ResetBeforeGRU))
}
"""The kernels' numbers of the cells, by the cells' types."""
_WAYS = {(False,): 0, (True,): 1, (False, True): 2}
_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_empty, _array = np.empty, np.ndarray


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

    def give(self, array: Array) -> None:
        """Take an array that nobody reads any more."""
        waiting = sum(held.nbytes for held in self._held)
        if array.nbytes > self.LEAST and waiting + array.nbytes <= self.MOST:
            self._held.append(array)


class Packed(tuple[Any, ...]):
    """Prepared weights of a level: what the kernels' calls begin with, and the packed array."""

    __slots__ = ()


class Native(ByLevel):
    """The engine of one instruction set.

    The weights of a level are a tuple of arrays, those of each direction in the order of
    `Cell.shapes`; or, prepared, `Packed`.

    Parameters
    ----------
    name : str
        One of `instruction_sets()`.
    threads : int
    split : int
        `BY_WORK`, or the other two for tests.
    """

    def __init__(self, name: str, threads: int, split: int = BY_WORK) -> None:
        self.name, self.title = name, f"kernels {name}"
        self.threads = threads
        self._number = _kernels.kernel_names()[name]
        self._spare = Spare()
        self._split = split

    def takes(self, like: Array, cell: Cell | None = None) -> bool:
        """Tell whether the kernels have this dtype, and this cell."""
        has_cell = cell is None or type(cell) in _NUMBERS
        return has_cell and like.dtype.char in "fd" and bool(like.dtype.isnative)

    def weights(self, stack: Stack, params: Params) -> list[Any]:
        """Return the weights of each level."""
        arrays = stack.arrays(params)
        if stack.levels == 1:
            return [arrays]
        each = len(arrays) // stack.levels
        return [arrays[k : k + each] for k in range(0, len(arrays), each)]

    def of_directions(self, weights: Sequence[Mapping[str, Array]]) -> tuple[Array, ...]:
        """Return the weights of one level's directions as `run_level` takes them."""
        return tuple(array for own in weights for array in own.values())

    def by_direction(self, stack: Stack, gradients: tuple[Array, ...]) -> list[dict[str, Array]]:
        """Return the gradients of one level's weights by the cell's names, for each direction."""
        each = len(gradients) // len(stack.reverse)
        parts = [gradients[k : k + each] for k in range(0, len(gradients), each)]
        return [dict(zip(_WEIGHTS, part, strict=False)) for part in parts]

    def named(self, stack: Stack, gradients: list[tuple[Array, ...]]) -> dict[str, Array]:
        """Return gradients by the parameters' names; see `Engine`."""
        flat = gradients[0] if len(gradients) == 1 else sum(gradients, start=())
        return dict(zip(stack.shapes, flat, strict=True))

    def prepare(self, stack: Stack, params: Params) -> list[Any]:
        """Pack the weights of each level."""
        packed = []
        for own in self.weights(stack, params):
            arrays = tuple(map(_whole, own))
            begin = self._begin(stack, arrays[0].shape[1], arrays[0].dtype)
            packed.append(Packed((*begin, _kernels.pack(*begin, arrays))))
        return packed

    def attempt(self, stack: Stack, params: Params, x: Any, state: Any) -> Any:
        """Run a layer of one level; see `Engine`."""
        own = stack.arrays(params)
        begin = self._began(stack, own[0])
        return begin and _kernels.forward(*begin, own, x, state)

    def attempt_forward(self, stack: Stack, params: Params, x: Any, state: Any) -> Made | None:
        """Run a layer of one level for training; see `Engine`."""
        own = stack.arrays(params)
        begin = self._began(stack, own[0])
        done = begin and _kernels.forward(*begin, own, x, state, None, self._spare.make)
        return done and (done[0], done[1], [((x, None, begin, done[2]), None)])

    def attempting(self, stack: Stack, prepared: list[Packed]) -> Attempt | None:
        """Return what runs a prepared layer of one level; see `Engine`."""
        return None if stack.levels > 1 else partial(_kernels.forward, *prepared[0])

    def attempt_backward(
        self, stack: Stack, params: Params, kept: Any, dy: Any, dstate: Any
    ) -> Made | None:
        """Run a layer of one level backward, with unchecked gradients; see `Engine`."""
        if stack.levels > 1:
            return None
        x, lengths, begin, memory = kept[0][0]
        own = stack.arrays(params)
        done = _kernels.backward(*begin, own, x, lengths, memory, dy, dstate)
        if done is None:
            return None
        if memory.nbytes > Spare.LEAST:
            self._spare.give(memory)
        return [done[0]], done[1], done[2]

    def run_level(self, how: Run, weights: Any, x: Array, state: Parts) -> Made:
        """Run the directions of one level; see `Engine`.

        x may also be indices (T, B): in each row of what it stands for, the place of a 1 among
        zeros. Then `run_level_backward` gives no dx.
        """
        stack, ragged, *_ = how
        if type(weights) is Packed:
            begin: Any
            *begin, own = weights
            if x.ndim == 2:
                begin[0] = (*begin[0][:-1], 1)
        else:
            own, looks_up = tuple(map(_whole, weights)), x.ndim == 2
            inputs = stack.input_size if looks_up else x.shape[2]
            begin = self._begin(stack, inputs, own[0].dtype, looks_up=looks_up)
        lengths, before = None if ragged is None else ragged.lengths, None
        if any(part is not None for part in state):
            zeros = (len(stack.reverse), x.shape[1], stack.cell.hidden_size)
            before = tuple(np.zeros(zeros, begin[5]) if a is None else _whole(a) for a in state)
        rest = before, lengths, self._spare.make if how.keep else None
        done = _kernels.forward(*begin, own, x, *rest)
        if done is None:  # the rows of x lie at no one distance, or not as numbers should
            x = np.array(x, order="C")
            done = _kernels.forward(*begin, own, x, *rest)
        y, last, memory = done
        return y, last, (x, lengths, begin, memory)

    def run_level_backward(
        self, stack: Stack, weights: Any, kept: Any, dy: Array, dstate: Parts
    ) -> Made:
        """Run the directions of one level backward; see `Engine`."""
        x, lengths, begin, memory = kept
        own, after = tuple(map(_whole, weights)), tuple(map(_whole, dstate))
        done = _kernels.backward(*begin, own, x, lengths, memory, dy, after)
        if done is None:  # the rows of dy lie at no one distance, or not as numbers should
            dy = np.array(dy, order="C")
            done = _kernels.backward(*begin, own, x, lengths, memory, dy, after)
        if done is None:
            raise ValueError("x or lengths were changed since the forward run")
        self._spare.give(memory)
        made: Made = done
        return made

    def _began(self, stack: Stack, first: Any) -> Any:
        """Return what the calls for a layer of one level begin with; None for other parameters."""
        if type(first) is not _array or stack.levels > 1:
            return None
        begin = stack.memo.get((self, first.dtype))
        if begin is None and self.takes(first):
            begin = self._begin(stack, stack.input_size, first.dtype)
            stack.memo[self, first.dtype] = begin
        return begin

    def _begin(
        self, stack: Stack, inputs: int, dtype: Any, *, looks_up: bool = False
    ) -> tuple[Any, ...]:
        """Return what the kernels' calls begin with; `looks_up` where x is indices."""
        cell, way = stack.cell, _WAYS[stack.reverse]
        kind = self._number, _NUMBERS[type(cell)], dtype.itemsize
        sizes = *kind, inputs, cell.hidden_size, way, int(looks_up)
        return sizes, self.threads, self._split, _array, _empty, dtype

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
        """Return a parameter, m and v after Adam's update; see `around.adam`."""
        param = arrays[0]
        made = [_empty(param.shape, param.dtype) for _ in range(3)]
        numbers = (param.size, *betas, eps, scale, keep)
        given = map(_whole, arrays)
        _kernels.adam(self._number, param.itemsize, self.threads, *numbers, *given, *made)
        return made[0], made[1], made[2]


def _steps(a: Array) -> tuple[Array, int, int]:
    """Return a matrix, and the distances in numbers between its rows and its columns."""
    if any(step % a.itemsize for step in a.strides):
        a = np.ascontiguousarray(a)
    row, column = (
        step // a.itemsize if count > 1 else 1
        for step, count in zip(a.strides, a.shape, strict=True)
    )
    return a, row, column


def _whole(a: Any) -> Any:
    """Return `a` with its numbers one after the other, and aligned: itself where it can be."""
    return a if a is None or (a.flags.c_contiguous and a.flags.aligned) else np.array(a, order="C")


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


def kernels_for(a: Array, cell: Cell | None = None) -> Native | None:
    """Return the kernels if they take the dtype of a NumPy array, and the cell."""
    chosen = choose()
    return chosen if isinstance(chosen, Native) and chosen.takes(a, cell) else None
