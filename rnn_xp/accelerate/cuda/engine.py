"""CuPy: the engine that chooses, for each run, by the cell, its sizes and its dtype.

    persistent   all steps in one kernel, where that fits the device and pays: `persistent`;
                 tried on each device before the first run of a cell: `trial`
    fused        a product and a kernel a step, where there is a kernel: `fused`
    core         what is left, peepholes and projections among it: `recurrence`

Two directions run one after the other, each on the whole device, or at once, each persistent on one
half of it and on a stream of its own: by the same estimate of cost.

CuPy computes on its current device; a run enters that of its arrays first.

`RNN_XP_ACCELERATE=0` in the environment leaves everything to the core.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from threading import local
from typing import Any, NamedTuple

from rnn_xp.accelerate import CORE, Engine, OneByOne, Places, one_by_one
from rnn_xp.accelerate.cuda import fused, persistent, trial
from rnn_xp.accelerate.cuda.fused import Fused
from rnn_xp.accelerate.cuda.persistent import Persistent
from rnn_xp.backend import Array, Namespace, Operations, device_of
from rnn_xp.cells.base import Cell, Weights
from rnn_xp.recurrence import Loop


class Arranged(NamedTuple):
    """Weights of each direction, and how each engine that ran with them arranged them."""

    weights: Sequence[Weights]
    folded: dict[Engine, Any]


class Kept(NamedTuple):
    """What a forward run keeps."""

    engine: Engine
    kept: Any


@contextmanager
def two_streams() -> Iterator[tuple[Any, Any]]:
    """Yield contexts for work that runs at once: on the current stream, and on another one.

    The other stream begins where the current one stands, and the current one goes on where the
    other one ends, so that memory passes between them in order.
    """
    import cupy

    current = cupy.cuda.get_current_stream()
    other = _other_stream(cupy.cuda.Device().id, current)
    other.wait_event(current.record())
    try:
        yield nullcontext(), _using(other, current)
    finally:
        current.wait_event(other.record())


@contextmanager
def _using(stream: Any, before: Any) -> Iterator[None]:
    """Make a stream the current one; not by `with`, which forgets one that `use()` made so."""
    stream.use()
    try:
        yield
    finally:
        before.use()


_others = local()


def _other_stream(device: int, current: Any) -> Any:
    """Return the stream beside the current one: of this thread, and of that stream alone.

    CuPy gives a stream's freed memory to its next work, which waits for no stream but the one that
    it is beside.
    """
    import cupy

    found: dict[str, tuple[Any, Any]] = _others.__dict__
    key = f"{device} {current.ptr}"
    if key not in found:
        # With `current`, so that no later stream has its number.
        found[key] = current, cupy.cuda.Stream(non_blocking=True)
    return found[key][1]


class Cuda:
    """The engine: see `Engine`.

    Parameters
    ----------
    fused : Fused
    persistent : Persistent, optional
    streams : function
        `two_streams`, or what stands for it where there are none.
    """

    def __init__(
        self,
        fused: Fused,
        persistent: Persistent | None = None,
        streams: Places = one_by_one,
    ) -> None:
        self._fused, self._persistent, self._streams = fused, persistent, streams
        self._tried: dict[tuple[Any, ...], bool] = {}

    def able(
        self, cell: Cell, dtype: Any, batch: int, ops: Operations, ways: int = 1
    ) -> list[Engine]:
        """Return what can run so many sequences in so many directions here, the best last."""
        found: list[Engine] = [CORE]
        if self._fused.takes(cell, dtype):
            found.append(OneByOne(self._fused))
        whole = self._persistent
        if whole is None or not whole.takes(cell, dtype):
            return found
        one, without = whole.costs(cell, dtype, batch)
        if one < without and self._trusts(whole, cell, dtype, ops):
            found.append(OneByOne(whole))
        if ways == 2:
            two, _ = whole.half.costs(cell, dtype, batch)
            if two < 2 * min(one, without) and self._trusts(whole, cell, dtype, ops):
                found.append(OneByOne(whole.half, self._streams))
        return found

    def _trusts(self, whole: Persistent, cell: Cell, dtype: Any, ops: Operations) -> bool:
        """Tell whether the kernel of all steps was right when tried, on the current device."""
        key = (whole.limits(), type(cell), dtype)
        if key not in self._tried:
            self._tried[key] = trial.passes(whole, self._fused, cell, dtype, ops)
        return self._tried[key]

    def fold(self, cell: Cell, xp: Namespace, weights: Sequence[Weights]) -> Arranged:
        """Keep the weights: how they are arranged depends on the run."""
        return Arranged(weights, {})

    def run(
        self,
        loops: Sequence[Loop],
        w: Arranged,
        x: Array,
        state: Sequence[Array | None],
        *,
        keep: bool,
    ) -> tuple[Array, Sequence[Array], Kept | None]:
        """Run every direction over x; see `Engine`."""
        cell, ops, *_ = loops[0]
        with device_of(x):
            engine = self.able(cell, x.dtype, x.shape[1], ops, len(loops))[-1]
            if engine not in w.folded:
                w.folded[engine] = engine.fold(cell, ops.xp, w.weights)
            y, last, kept = engine.run(loops, w.folded[engine], x, state, keep=keep)
        return y, last, Kept(engine, kept) if keep else None

    def run_backward(
        self,
        loops: Sequence[Loop],
        weights: Sequence[Weights],
        kept: Kept,
        dy: Array,
        dstate: Sequence[Array | None],
    ) -> tuple[Sequence[Weights], Array, Sequence[Array]]:
        """Run every direction backward through time; see `Engine`."""
        with device_of(dy):
            return kept.engine.run_backward(loops, weights, kept.kept, dy, dstate)


@cache
def choose() -> Engine:
    """Return the engine for CuPy arrays."""
    if os.environ.get("RNN_XP_ACCELERATE") == "0":
        return CORE
    whole = Persistent(persistent.compiled, persistent.limits)
    return Cuda(Fused(fused.compiled), whole, two_streams)
