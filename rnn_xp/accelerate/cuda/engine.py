"""CuPy: the engine that chooses, for each run, by the cell, its sizes and its dtype.

    persistent   all steps in one kernel, where that fits the device and pays: `persistent`;
                 tried on each device before the first run of a cell: `trial`; not any more for
                 a size whose kernel could not be compiled or launched
    fused        a product and a kernel a step, where there is a kernel: `fused`
    core         what is left, peepholes and projections among it: `recurrence`

Two directions run one after the other, each on the whole device, or at once, each persistent on one
half of it and on a stream of its own: by the same estimate of cost. So do the levels of a layer in
one direction, in chunks of steps: `wave`.

CuPy computes on its current device; who calls an engine enters that of the arrays first.

`RNN_XP_ACCELERATE=0` in the environment leaves everything to the core.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from math import inf
from threading import local
from typing import Any, NamedTuple

from rnn_xp.accelerate import CORE, Deep, Engine, OneByOne, Places, one_by_one
from rnn_xp.accelerate.cuda import fused, persistent, plan, trial
from rnn_xp.accelerate.cuda.fused import Fused
from rnn_xp.accelerate.cuda.persistent import MOST_STATES, KernelError, Persistent
from rnn_xp.accelerate.cuda.plan import Limits
from rnn_xp.accelerate.cuda.wave import Wave
from rnn_xp.backend import Array, Namespace, Operations
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


class Place:
    """A stream: see `accelerate.Place`.

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


class Cuda(Deep):
    """The engine: see `Engine`.

    Parameters
    ----------
    fused : Fused
    persistent : Persistent, optional
    streams : function
        `streams`, or what stands for it where there are none.
    """

    def __init__(
        self,
        fused: Fused,
        persistent: Persistent | None = None,
        streams: Places = one_by_one,
    ) -> None:
        self._fused, self._persistent, self._streams = fused, persistent, streams
        self._best = lru_cache(maxsize=1024)(self._chosen)
        self._tried: dict[tuple[Any, ...], bool] = {}
        self._failed: dict[tuple[Any, ...], str] = {}

    def able(
        self,
        cell: Cell,
        dtype: Any,
        shape: tuple[int, int],
        ops: Operations,
        ways: int = 1,
        levels: int = 1,
    ) -> list[Engine]:
        """Return what can run (T, B) in so many directions and levels here, the best last."""
        found: list[Engine] = [CORE]
        if self._fused.takes(cell, dtype):
            found.append(OneByOne(self._fused))
        whole, (steps, batch) = self._persistent, shape
        if whole is None or not whole.takes(cell, dtype) or steps * batch >= MOST_STATES:
            return found
        if (whole.limits(), cell, dtype) in self._failed:
            return found
        one, without = whole.costs(cell, dtype, batch)
        if one < without and self._trusts(whole, cell, dtype, ops):
            found.append(OneByOne(whole))
        count = ways if ways > 1 else levels
        if count > 1:
            part = whole.part(count)
            cost, _ = part.costs(cell, dtype, batch)
            engine, took = self._at_once(part, cost, steps, ways, levels)
            apart = count * (steps * min(one, without) + plan.RUN)
            if took < apart and self._trusts(whole, cell, dtype, ops):
                found.append(engine)
        return found

    def _chosen(self, _: Any, *given: Any) -> Engine:
        """Return the best of what is able to run, on the current device, which comes first."""
        return self.able(*given)[-1]

    def _device(self) -> Limits | None:
        return None if self._persistent is None else self._persistent.limits()

    def why_not(self, cell: Cell, dtype: Any, batch: int, ops: Operations) -> str:
        """Return in one line why the steps do not run in one kernel here; empty where they do."""
        whole = self._persistent
        if whole is None or not whole.takes(cell, dtype):
            return "there is none"
        one, without = whole.costs(cell, dtype, batch)
        if one == inf:
            has = whole.limits()
            return (
                f"it does not fit {has.multiprocessors} multiprocessors of {has.shared} bytes of "
                f"shared memory, compute capability {has.capability / 10}"
            )
        if one >= without:
            return f"it does not pay: {one:.1f} µs a step on paper, {without:.1f} without"
        failed = self._failed.get((whole.limits(), cell, dtype))
        if failed:
            return f"it could not run: {failed}"
        return "" if self._trusts(whole, cell, dtype, ops) else "it went wrong when tried"

    def _trusts(self, whole: Persistent, cell: Cell, dtype: Any, ops: Operations) -> bool:
        """Tell whether the kernel of all steps was right when tried, on the current device."""
        key = (whole.limits(), type(cell), dtype)
        if key not in self._tried:
            self._tried[key] = trial.passes(whole, self._fused, cell, dtype, ops)
        return self._tried[key]

    def _at_once(
        self, part: Persistent, cost: float, steps: int, ways: int, levels: int
    ) -> tuple[Engine, float]:
        """Return what runs directions, or levels of one direction, at once; and its µs."""
        if ways > 1:
            return OneByOne(part, self._streams), steps * cost + plan.RUN
        chunk, took = plan.wave(levels, steps, cost)
        return Wave(part, self._streams, chunk), took

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
        engine = self._best(self._device(), cell, x.dtype, x.shape[:2], ops, len(loops))
        folded = _folded(engine, cell, ops, w)
        try:
            y, last, kept = engine.run(loops, folded, x, state, keep=keep)
        except KernelError as error:
            self._leave(cell, x.dtype, error)
            return self.run(loops, w, x, state, keep=keep)
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
        try:
            return kept.engine.run_backward(loops, weights, kept.kept, dy, dstate)
        except KernelError as error:
            self._leave(loops[0].cell, dy.dtype, error)
            raise

    def run_levels(
        self,
        loops: Sequence[Loop],
        levels: Sequence[Arranged],
        x: Array,
        states: Sequence[Sequence[Array | None]],
        *,
        keep: bool,
    ) -> tuple[Array, list[Sequence[Array]], Kept | None] | None:
        """Run every level over x, where they run at once; see `Deep`."""
        cell, ops, *_ = loops[0]
        shape, ways = x.shape[:2], len(loops)
        engine = self._best(self._device(), cell, x.dtype, shape, ops, ways, len(levels))
        if not isinstance(engine, Wave):
            return None
        folded = [_folded(engine, cell, ops, w) for w in levels]
        try:
            y, last, kept = engine.run_levels(loops, folded, x, states, keep=keep)
        except KernelError as error:
            self._leave(cell, x.dtype, error)
            return None
        return y, last, Kept(engine, kept) if keep else None

    def run_levels_backward(
        self,
        loops: Sequence[Loop],
        weights: Sequence[Sequence[Weights]],
        kept: Kept,
        dy: Array,
        dstates: Sequence[Sequence[Array | None]],
    ) -> tuple[list[Sequence[Weights]], Array, list[Sequence[Array]]]:
        """Run every level backward through time; see `Deep`."""
        assert isinstance(kept.engine, Wave)
        try:
            return kept.engine.run_levels_backward(loops, weights, kept.kept, dy, dstates)
        except KernelError as error:
            self._leave(loops[0].cell, dy.dtype, error)
            raise

    def _leave(self, cell: Cell, dtype: Any, error: KernelError) -> None:
        """Warn that the kernels of all steps cannot run for a cell of this size; use them no more.

        On the current device.
        """
        assert self._persistent is not None
        self._failed[self._persistent.limits(), cell, dtype] = str(error)
        self._best.cache_clear()
        warnings.warn(
            f"the {dtype} CUDA kernel of all steps of {type(cell).__name__} with "
            f"hidden_size={cell.hidden_size} cannot run here, and is not used any more: {error}",
            trial.TrialWarning,
            stacklevel=3,
        )


def _folded(engine: Engine, cell: Cell, ops: Operations, w: Arranged) -> Any:
    """Return the weights as an engine arranges them."""
    if engine not in w.folded:
        w.folded[engine] = engine.fold(cell, ops.xp, w.weights)
    return w.folded[engine]


@cache
def choose() -> Engine:
    """Return the engine for CuPy arrays."""
    if os.environ.get("RNN_XP_ACCELERATE") == "0":
        return CORE
    whole = Persistent(persistent.compiled, persistent.limits)
    return Cuda(Fused(fused.compiled), whole, streams)
