"""Batches of examples on their way from the host to the device."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, NamedTuple

import numpy as np

from rnn_xp.backend import Array, Backend
from rnn_xp.engines import around

HostArray = np.ndarray[Any, Any]


class Batch(NamedTuple):
    """Some examples."""

    arrays: tuple[Array, ...]
    """On the host, or moved to a device."""
    lengths: HostArray | None = None
    """(B,), on the host, where the examples are sequences of several lengths."""


def move(backend: Backend, dtype: str, batches: Iterable[Batch]) -> Generator[Batch, None, None]:
    """Yield batches with their arrays on a device, the floating-point ones in `dtype`.

    A GPU gets many batches at a time, while it computes: a batch is there until the next one is
    asked for, and to be read only.
    """
    ahead = around.ahead(backend)
    if ahead is not None:
        yield from ahead(backend, dtype, batches)
        return
    for batch in batches:
        kinds = (dtype if array.dtype.kind == "f" else None for array in batch.arrays)
        arrays = map(backend.asarray, batch.arrays, kinds)
        yield batch._replace(arrays=tuple(arrays))
