"""Random numbers that are the same on every backend: drawn by NumPy on the host, then moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING

from rnn_xp.backend import Array, array_namespace, device_of, like_of, on_its_device

if TYPE_CHECKING:
    import numpy as np

Seed = int | Sequence[int]
"""A seed, or a path of numbers: `(7, 0)` and `(7, 1)` are two independent streams of seed 7."""


def generator(seed: Seed) -> np.random.Generator:
    """Return NumPy's default generator for a seed.

    Raises
    ------
    TypeError, ValueError
        If `seed` is not a non-negative integer, or a sequence of such.
    """
    import numpy.random  # not part of `import numpy`: 15 ms that inference does without

    numbers: list[int] = []
    for number in seed if isinstance(seed, Sequence) else (seed,):
        if isinstance(number, bool):
            raise TypeError(f"seed must be an integer >= 0, got {seed!r}")
        try:
            numbers.append(index(number))
        except TypeError:
            raise TypeError(f"seed must be an integer >= 0, got {seed!r}") from None
        if numbers[-1] < 0:
            raise ValueError(f"seed must be an integer >= 0, got {seed!r}")
    return numpy.random.default_rng(numbers if isinstance(seed, Sequence) else numbers[0])


def spawn(seed: Seed, *path: int) -> tuple[int, ...]:
    """Return the seed of an independent stream: `seed` followed by `path`."""
    return (*(seed if isinstance(seed, Sequence) else (seed,)), *path)


@on_its_device
def dropout_mask(seed: Seed, rate: float, like: Array) -> Array:
    """Return zeros with probability `rate` and 1 / (1 - rate) elsewhere, shaped as `like`."""
    import numpy as np

    if rate == 1.0:
        return like_of(np.zeros(like.shape, dtype=np.float32), like)
    # The numbers of random(dtype=float32), before they become fractions: in half the time.
    size = math.prod(like.shape)
    raw = generator(seed).bit_generator.random_raw((size + 1) // 2)
    bits = raw.astype("<u8", copy=False).view("<u4")[:size].reshape(like.shape)
    limit = math.ceil(float(np.float32(rate)) * 2**24) << 8
    kept = bits >= limit
    if isinstance(like, np.ndarray):
        mask: Array = kept.astype(like.dtype)
    else:  # one byte an element is moved
        xp = array_namespace(like=like)
        mask = xp.astype(xp.asarray(kept, device=device_of(like)), like.dtype)
    return mask * (1.0 / (1.0 - rate))
