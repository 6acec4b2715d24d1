"""Batches moved to a GPU many at a time, while it computes on those before.

There are two pieces. While the device works on the batches of one, the host fills the other and
gives its copy to a stream of its own. Who waits for whom:

- the current stream, for the copy of a piece, before its first batch is used;
- the copy into a piece, for all that the current stream was given before the piece was left;
- the host, for the copy from a piece's page-locked memory, before it writes there again or lets go
  of it. That copy has long been made: nothing waits for what is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from rnn_xp.backend import Array, Backend

HostArray = np.ndarray[Any, Any]

BYTES = 1 << 24
"""What a piece holds, or a single batch if that is larger."""
_ALIGN = 256
"""Bytes, as of the device's own allocations."""


class Batch(Protocol):
    """As `batches.Batch`."""

    @property
    def arrays(self) -> tuple[Array, ...]:
        """Its arrays."""

    def _replace(self, *, arrays: tuple[Array, ...]) -> Batch:
        """Return it with other arrays."""


class Place(NamedTuple):
    """Where an array lies in a piece."""

    start: int
    stop: int
    dtype: Any
    shape: tuple[int, ...]

    def view(self, piece: Array) -> Array:
        """Return the array, of a piece on either side."""
        return piece[self.start : self.stop].view(self.dtype).reshape(self.shape)


class Piece:
    """Batches side by side: bytes on the host, and the same ones on the device."""

    def __init__(self, backend: Backend, dtype: str, stream: Any) -> None:
        self._backend, self._stream = backend, stream
        self._dtype = np.dtype(backend.dtype(dtype))
        self._size = 0
        self._moved: Any = None
        """The event after the last copy; None before the first one."""
        self._left: Any = None
        """The event after which the device's side may be written."""
        self._batches: list[tuple[Batch, list[Place]]] = []

    def fill(self, batches: Iterator[Batch]) -> bool:
        """Take the next batches, as many as fit, and give their copy to the stream.

        False, and nothing is done, where there are none.
        """
        taken, end = list[tuple[Batch, list[Place]]](), 0
        for batch in batches:
            places = self._places(batch.arrays, end)
            taken.append((batch, places))
            end = places[-1].stop
            if end >= BYTES:
                break
        self._batches = taken
        if not taken:
            return False
        self.rest()
        self._reserve(end)
        for batch, places in taken:
            for array, place in zip(batch.arrays, places, strict=True):
                place.view(self._host)[...] = array
        with self._backend.scope():
            self._stream.wait_event(self._left)
            self._device[:end].set(self._host[:end], stream=self._stream)
            self._moved = self._stream.record()
        return True

    def batches(self) -> Iterator[Batch]:
        """Yield them with their arrays on the device."""
        _current(self._backend).wait_event(self._moved)
        for batch, places in self._batches:
            with self._backend.scope():
                arrays = tuple(place.view(self._device) for place in places)
            yield batch._replace(arrays=arrays)

    def leave(self) -> None:
        """Let the next copy wait for all that the current stream was given so far."""
        self._left = _current(self._backend).record()

    def rest(self) -> None:
        """Wait for the last copy: the host's side may be written, or let go of."""
        if self._moved is not None:
            self._moved.synchronize()

    def _places(self, arrays: Iterable[HostArray], start: int) -> list[Place]:
        places = []
        for array in arrays:
            dtype = self._dtype if array.dtype.kind == "f" else array.dtype
            start = -(-start // _ALIGN) * _ALIGN
            places.append(Place(start, start + array.size * dtype.itemsize, dtype, array.shape))
            start = places[-1].stop
        return places

    def _reserve(self, size: int) -> None:
        """Have memory for so many bytes: the device's belongs to the current stream."""
        import cupyx

        if size > self._size:
            self._size = size
            with self._backend.scope():
                self._host = cupyx.empty_pinned(self._size, dtype=np.uint8)
                self._device = self._backend.xp.empty(self._size, dtype=np.uint8)
            self.leave()


def ahead(backend: Backend, dtype: str, batches: Iterable[Batch]) -> Iterator[Batch]:
    """Yield batches with their arrays on the device: see `batches.move`."""
    import cupy

    with backend.scope():
        stream = cupy.cuda.Stream(non_blocking=True)
    here, other = (Piece(backend, dtype, stream) for _ in range(2))
    source = iter(batches)
    try:
        filled = here.fill(source)
        while filled:
            for number, batch in enumerate(here.batches()):
                yield batch
                if number == 0:  # the device has something to do meanwhile
                    filled = other.fill(source)
            here.leave()
            here, other = other, here
    finally:
        for piece in (here, other):
            piece.rest()


def _current(backend: Backend) -> Any:
    import cupy

    with backend.scope():
        return cupy.cuda.get_current_stream()
