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
from functools import cache, lru_cache
from math import inf
from typing import Any, NamedTuple

from rnn_xp.backend import Array, Namespace, array_namespace
from rnn_xp.cells.base import Cell
from rnn_xp.engines.base import Engine, Made, Params, Parts, Run, Stack
from rnn_xp.engines.cuda import fused, persistent, plan, trial
from rnn_xp.engines.cuda.directions import Directions
from rnn_xp.engines.cuda.fused import Fused
from rnn_xp.engines.cuda.persistent import MOST_STATES, KernelError, Persistent
from rnn_xp.engines.cuda.plan import Limits
from rnn_xp.engines.cuda.streams import Places, one_by_one, streams
from rnn_xp.engines.cuda.wave import Wave
from rnn_xp.engines.plain import PLAIN


class Kept(NamedTuple):
    """What a forward run keeps."""

    engine: Engine
    kept: Any


class Cuda(Engine):
    """The engine: see `Engine`.

    Parameters
    ----------
    fused : Fused
    persistent : Persistent, optional
    streams : function
        `streams`, or what stands for it where there are none.
    """

    title = "cuda"

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
        xp: Namespace,
        ways: int = 1,
        levels: int = 1,
    ) -> list[Engine]:
        """Return what can run (T, B) in so many directions and levels here, the best last."""
        found: list[Engine] = [PLAIN]
        if self._fused.takes(cell, dtype):
            found.append(Directions(self._fused))
        whole, (steps, batch) = self._persistent, shape
        if whole is None or not whole.takes(cell, dtype) or steps * batch >= MOST_STATES:
            return found
        if (whole.limits(), cell, dtype) in self._failed:
            return found
        one, without = whole.costs(cell, dtype, batch)
        if one < without and self._trusts(whole, cell, dtype, xp):
            found.append(Directions(whole))
        count = ways if ways > 1 else levels
        if count > 1:
            part = whole.part(count)
            cost, _ = part.costs(cell, dtype, batch)
            engine, took = self._at_once(part, cost, steps, ways, levels)
            apart = count * (steps * min(one, without) + plan.RUN)
            if took < apart and self._trusts(whole, cell, dtype, xp):
                found.append(engine)
        return found

    def _chosen(self, _: Any, *given: Any) -> Engine:
        """Return the best of what is able to run, on the current device, which comes first."""
        return self.able(*given)[-1]

    def _device(self) -> Limits | None:
        return None if self._persistent is None else self._persistent.limits()

    def why_not(self, cell: Cell, dtype: Any, batch: int, xp: Namespace) -> str:
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
        return "" if self._trusts(whole, cell, dtype, xp) else "it went wrong when tried"

    def _trusts(self, whole: Persistent, cell: Cell, dtype: Any, xp: Namespace) -> bool:
        """Tell whether the kernel of all steps was right when tried, on the current device."""
        key = (whole.limits(), type(cell), dtype)
        if key not in self._tried:
            self._tried[key] = trial.passes(whole, self._fused, cell, dtype, xp)
        return self._tried[key]

    def _at_once(
        self, part: Persistent, cost: float, steps: int, ways: int, levels: int
    ) -> tuple[Engine, float]:
        """Return what runs directions, or levels of one direction, at once; and its µs."""
        if ways > 1:
            return Directions(part, self._streams), steps * cost + plan.RUN
        chunk, took = plan.wave(levels, steps, cost)
        return Wave(part, self._streams, chunk), took

    def weights(self, stack: Stack, params: Params) -> list[Any]:
        """Return the weights of each level: of each direction, by name, each row contiguous."""
        contiguous = array_namespace(like=next(iter(params.values()))).ascontiguousarray
        return super().weights(stack, {name: contiguous(a) for name, a in params.items()})

    def run(self, how: Run, weights: list[Any], x: Array, state: Parts) -> Made:
        """Run all levels over x; see `Engine`."""
        stack, xp = how.stack, array_namespace(x=x)
        levels = stack.levels if how.drop is None else 1
        sizes = x.shape[:2], xp, len(stack.reverse), levels
        engine = self._best(self._device(), stack.cell, x.dtype, *sizes)
        try:
            y, last, kept = engine.run(how, weights, x, state)
        except KernelError as error:
            self._leave(stack.cell, x.dtype, error)
            return self.run(how, weights, x, state)
        return y, last, Kept(engine, kept) if how.keep else None

    def run_backward(
        self, stack: Stack, weights: list[Any], kept: Kept, dy: Array, dstate: Parts
    ) -> Made:
        """Run all levels backward through time; see `Engine`."""
        try:
            return kept.engine.run_backward(stack, weights, kept.kept, dy, dstate)
        except KernelError as error:
            self._leave(stack.cell, dy.dtype, error)
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


@cache
def choose() -> Engine:
    """Return the engine for CuPy arrays."""
    if os.environ.get("RNN_XP_ACCELERATE") == "0":
        return PLAIN
    whole = Persistent(persistent.compiled, persistent.limits)
    return Cuda(Fused(fused.compiled), whole, streams)
