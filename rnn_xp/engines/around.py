"""What is done around the layers, faster where one array library has a way of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from rnn_xp.backend import Array, Backend, Namespace, is_library, known_namespace
from rnn_xp.engines import native


def ahead(backend: Backend) -> Callable[[Backend, str, Iterable[Any]], Iterator[Any]] | None:
    """Return what moves batches to a device while it computes; None where they need not travel."""
    if not is_library(backend.xp, "cupy"):
        return None
    from rnn_xp.engines.cuda import pieces

    return pieces.ahead


def product(xp: Namespace, a: Array, b: Array, bias: Array | None = None) -> Array:
    """Return a b + bias for two matrices of one dtype, as a new array.

    On NumPy with the compiled kernels, whose threads would otherwise wait for those of NumPy's own
    product: these spin for a while after each.
    """
    if xp is np and 0 not in a.shape and 0 not in b.shape:
        kernels = native.kernels_for(a)
        if kernels is not None:
            return kernels.product(a, b, bias)
    y = a @ b
    return y if bias is None else y + bias


def adam(
    arrays: Sequence[Array], betas: tuple[float, float], eps: float, scale: float, keep: float
) -> tuple[Array, Array, Array] | None:
    """Return keep p + scale m' / (√v' + eps), m' and v', of p, its gradient g, m and v.

    m' = β1 m + (1 - β1) g and v' = β2 v + (1 - β2) g². None where the compiled kernels, which take
    less than half of the time that NumPy's passes take, cannot do it.
    """
    p = arrays[0]
    on_gpu = training_on_gpu(p)
    if on_gpu is not None:
        made: tuple[Array, Array, Array]
        made = on_gpu.adam(known_namespace(p), arrays, betas, eps, scale, keep)
        return made
    if any(type(a) is not np.ndarray or a.dtype != p.dtype or a.shape != p.shape for a in arrays):
        return None
    kernels = native.kernels_for(p) if p.size else None
    return None if kernels is None else kernels.adam(arrays, betas, eps, scale, keep)


def clip(arrays: Sequence[Array], most: float) -> tuple[list[Array], Array] | None:
    """Return gradients of one dtype scaled so that their norm is at most `most`, and their norm.

    None where no kernels do it.
    """
    on_gpu = training_on_gpu(arrays[0])
    if on_gpu is None or arrays[0].dtype.itemsize > 4:  # a square of 64 bits may leave its range
        return None
    made: tuple[list[Array], Array] = on_gpu.clip(known_namespace(arrays[0]), arrays, most)
    return made


def moved(mean: Array, p: Array, part: float) -> Array | None:
    """Return mean + part (p - mean); None where no kernel does it."""
    on_gpu = training_on_gpu(p)
    return None if on_gpu is None else on_gpu.moved(known_namespace(p), mean, p, part)


def training_on_gpu(a: Array) -> Any:
    """Return CuPy's kernels for a training step if they take this array: `cuda.training`."""
    xp = None if type(a) is np.ndarray else known_namespace(a)
    if xp is None or not is_library(xp, "cupy"):
        return None
    from rnn_xp.engines.cuda import fused, training

    return training.choose() if a.dtype.char in fused.NAMES else None
