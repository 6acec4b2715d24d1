"""CuPy: the engine that chooses, for each run, by the cell, its sizes and its dtype.

    persistent   all steps in one kernel, where that fits the device and pays: `persistent`;
                 tried on each device before the first run of a cell: `trial`
    fused        a product and a kernel a step, where there is a kernel: `fused`
    core         what is left, peepholes and projections among it: `recurrence`

CuPy computes on its current device; a run enters that of its arrays first.

`RNN_XP_ACCELERATE=0` in the environment leaves everything to the core.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

from rnn_xp import recurrence
from rnn_xp.accelerate import Recurrence
from rnn_xp.accelerate.cuda import fused, persistent, trial
from rnn_xp.accelerate.cuda.fused import Fused
from rnn_xp.accelerate.cuda.persistent import Persistent
from rnn_xp.backend import Array, Namespace, Operations, device_of
from rnn_xp.cells.base import Cell, Weights
from rnn_xp.recurrence import Loop


class Arranged(NamedTuple):
    """Weights, and how each engine that ran with them arranged them."""

    weights: Weights
    folded: dict[Recurrence, Any]


class Kept(NamedTuple):
    """What a forward run keeps."""

    engine: Recurrence
    chunks: Any


class Cuda:
    """The engine of one direction: see `Recurrence`.

    Parameters
    ----------
    fused : Fused
    persistent : Persistent, optional
    """

    def __init__(self, fused: Fused, persistent: Persistent | None = None) -> None:
        self._fused, self._persistent = fused, persistent
        self._tried: dict[tuple[Any, ...], bool] = {}

    def able(self, cell: Cell, dtype: Any, batch: int, ops: Operations) -> list[Recurrence]:
        """Return what can run so many sequences on the current device, the best last."""
        found: list[Recurrence] = [recurrence]
        if self._fused.takes(cell, dtype):
            found.append(self._fused)
        whole = self._persistent
        if whole is not None and whole.takes(cell, dtype) and whole.pays(cell, dtype, batch):
            key = (whole.limits(), type(cell), dtype)
            if key not in self._tried:
                self._tried[key] = trial.passes(whole, self._fused, cell, dtype, ops)
            if self._tried[key]:
                found.append(whole)
        return found

    def fold(self, cell: Cell, xp: Namespace, weights: Weights) -> Arranged:
        """Keep the weights: how they are arranged depends on the run."""
        return Arranged(weights, {})

    def run(
        self,
        loop: Loop,
        w: Arranged,
        x: Array,
        state: Sequence[Array | None],
        *,
        keep: bool,
    ) -> tuple[Array, Sequence[Array], Kept | None]:
        """Run the cell over x; see `recurrence.run`."""
        with device_of(x):
            engine = self.able(loop.cell, x.dtype, x.shape[1], loop.ops)[-1]
            if engine not in w.folded:
                w.folded[engine] = engine.fold(loop.cell, loop.ops.xp, w.weights)
            y, last, chunks = engine.run(loop, w.folded[engine], x, state, keep=keep)
        return y, last, Kept(engine, chunks) if keep else None

    def run_backward(
        self,
        loop: Loop,
        weights: Weights,
        chunks: Kept,
        dy: Array,
        dstate: Sequence[Array | None],
    ) -> tuple[Weights, Array, Sequence[Array]]:
        """Run the cell backward through time; see `recurrence.run_backward`."""
        with device_of(dy):
            return chunks.engine.run_backward(loop, weights, chunks.chunks, dy, dstate)


@cache
def choose() -> Recurrence:
    """Return the engine for CuPy arrays."""
    if os.environ.get("RNN_XP_ACCELERATE") == "0":
        return recurrence
    return Cuda(Fused(fused.compiled), Persistent(persistent.compiled, persistent.limits))
