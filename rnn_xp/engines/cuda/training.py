"""CuPy: what a training step does around its layers, in few launches.

As CuPy operations an update by Adam is thirteen launches for each parameter, clipping eight, and a
cross-entropy twenty; a launch takes the host longer than such a kernel takes the GPU
(`training.cu`).

`RNN_XP_ACCELERATE=0` in the environment turns them off.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from rnn_xp.backend import Array, Namespace
from rnn_xp.engines.cuda import fused
from rnn_xp.engines.cuda.fused import Kernels

THREADS = 256
MOST_BLOCKS = 1024
"""Of an update."""
A_THREAD = 4
"""Numbers at least whose squares a thread adds, where there are more than a few."""
MOST_SUMS = 256 * THREADS
"""Of the threads of one array."""


class Training:
    """The kernels of all dtypes.

    Parameters
    ----------
    kernels : function
        From the name of a dtype to the kernels, by name.
    """

    def __init__(self, kernels: Callable[[str], Kernels]) -> None:
        self._kernels = kernels

    def adam(
        self,
        xp: Namespace,
        arrays: Sequence[Array],
        betas: tuple[float, float],
        eps: float,
        scale: float,
        keep: float,
    ) -> tuple[Array, ...]:
        """Return a parameter, m and v after Adam's update; see `accelerate.adam`."""
        p = arrays[0]
        made = tuple(xp.ndarray(p.shape, p.dtype) for _ in range(3))
        given = *map(float, (*betas, eps, scale, keep)), *map(xp.ascontiguousarray, arrays)
        self._run("adam", p, *given, *made)
        return made

    def clip(
        self, xp: Namespace, arrays: Sequence[Array], most: float
    ) -> tuple[list[Array], Array]:
        """Return gradients whose norm is at most `most`, and their norm before."""
        like, given = arrays[0], [xp.ascontiguousarray(a) for a in arrays]
        counts = [_threads(a) for a in given]
        sums, first = xp.ndarray((sum(counts),), xp.float64), 0
        squares = self._kernel("squares", like)
        for a, count in zip(given, counts, strict=True):
            part = sums[first : first + count]
            squares((count // THREADS, 1), (THREADS,), (a.size, a, part))
            first += count
        norm, factor = xp.ndarray((), like.dtype), xp.ndarray((), xp.float64)
        self._kernel("limit", like)((1, 1), (1,), (float(most), xp.sum(sums), norm, factor))
        clipped = [xp.ndarray(a.shape, a.dtype) for a in arrays]
        for a, made in zip(given, clipped, strict=True):
            self._run("scaled", a, factor, a, made)
        return clipped, norm

    def cross_entropy(
        self, xp: Namespace, logits: Array, targets: Array, weights: Array
    ) -> tuple[Array, Array]:
        """Return the loss and its gradient.

        Parameters
        ----------
        logits : (N, V), of 32 or 64 bits
        targets : (N, 1), int64
        weights : (N, 1), or (1, 1) for all
        """
        rows, classes = logits.shape
        logits, targets = xp.ascontiguousarray(logits), xp.ascontiguousarray(targets)
        top = xp.max(logits, axis=1)
        p, terms = xp.ndarray(logits.shape, logits.dtype), xp.ndarray((rows,), logits.dtype)
        self._run("powers", p, classes, logits, top, p)
        sums, each = xp.sum(p, axis=1), int(weights.shape[0] > 1)
        self._run("entropy", p, classes, each, logits, top, sums, targets, weights, p, terms)
        return xp.sum(terms), p

    def moved(self, xp: Namespace, mean: Array, p: Array, part: float) -> Array:
        """Return mean + part (p - mean)."""
        made = xp.ndarray(p.shape, p.dtype)
        given = xp.ascontiguousarray(mean), xp.ascontiguousarray(p)
        self._run("moved", p, float(part), *given, made)
        return made

    def _run(self, name: str, like: Array, *given: Any) -> None:
        """Launch a kernel that takes the numbers of arrays such as `like` one by one."""
        blocks = min(MOST_BLOCKS, max(1, -(-like.size // THREADS)))
        self._kernel(name, like)((blocks, 1), (THREADS,), (like.size, *given))

    def _kernel(self, name: str, like: Array) -> Any:
        return self._kernels(fused.NAMES[like.dtype.char])(name)


def _threads(a: Array) -> int:
    """Return how many threads add the squares of an array."""
    count: int = -(-a.size // A_THREAD)
    return min(MOST_SUMS, max(1, -(-count // THREADS)) * THREADS)


def source() -> str:
    """Return the source of the kernels, complete in itself."""
    return fused.source("training.cu")


@cache
def choose() -> Training | None:
    """Return the kernels for CuPy arrays; None where they are turned off."""
    if os.environ.get("RNN_XP_ACCELERATE") == "0":
        return None
    return Training(compiled)


@cache
def compiled(dtype: str) -> Kernels:
    """Return the kernels for a dtype; they are compiled at their first use."""
    return fused.module(source(), dtype)
