"""CuPy: the streams that runs are given to, which take place at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from threading import local
from typing import Any

Places = Callable[[int], AbstractContextManager[Sequence[Any]]]
"""Returns a context with so many places (`Place`)."""


class Place:
    """A stream: what happens within it is given to that stream.

    Entered by `use()`, not by the stream's own `with`, which forgets one that `use()` made current.
    """

    def __init__(self, stream: Any, before: Any) -> None:
        self._stream, self._before = stream, before

    def __enter__(self) -> None:
        """Make it the current stream."""
        self._stream.use()

    def __exit__(self, *failure: object) -> None:
        """Make the one before the current stream."""
        self._before.use()

    def follow(self, other: Place) -> None:
        """Let what comes on this stream next wait for what the other one has been given."""
        self._stream.wait_event(other._stream.record())


@contextmanager
def streams(count: int) -> Iterator[Sequence[Place]]:
    """Yield places for work that runs at once: the current stream, and others.

    The others begin where the current one stands, and all of them go on where all end, so that
    memory passes between them in order.
    """
    import cupy

    current = cupy.cuda.get_current_stream()
    others = _other_streams(cupy.cuda.Device().id, current, count - 1)
    begin = current.record()
    for other in others:
        other.wait_event(begin)
    try:
        yield [Place(stream, current) for stream in (current, *others)]
    finally:
        for other in others:
            current.wait_event(other.record())
        end = current.record()
        for other in others:
            other.wait_event(end)


_others = local()


def _other_streams(device: int, current: Any, count: int) -> Sequence[Any]:
    """Return streams beside the current one: of this thread, and of that stream alone.

    CuPy gives a stream's freed memory to its next work, which waits for no stream but the one that
    it is beside.
    """
    import cupy

    found: dict[str, list[Any]] = _others.__dict__
    # With `current`, so that no later stream has its number.
    known = found.setdefault(f"{device} {current.ptr}", [current])
    while len(known) <= count:
        known.append(cupy.cuda.Stream(non_blocking=True))
    return known[1 : count + 1]


class Here:
    """The place where everything happens in the order in which it is given."""

    def __enter__(self) -> None:
        """Stay."""

    def __exit__(self, *failure: object) -> None:
        """Stay."""

    def follow(self, other: Here) -> None:
        """It does so already."""


@contextmanager
def one_by_one(count: int) -> Iterator[Sequence[Here]]:
    """Yield the places of runs that take place one after the other."""
    yield [Here()] * count
