"""CuPy: all steps of a run in one kernel, forward and backward (`persistent.cu`).

The recurrent weights stay in shared memory, and the blocks meet once a step; the input product and
the gradients of the weights and of x are products outside, as in `fused`. float32; float16 and
bfloat16 on tensor cores, which add in float32. Never run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import inf
from typing import Any

from rnn_xp.accelerate.cuda import fused
from rnn_xp.accelerate.cuda.fused import Fused, Kept, Kernels, Made
from rnn_xp.accelerate.cuda.plan import (
    BFLOAT16,
    THREADS,
    Limits,
    Work,
    cost,
    cost_without,
    plans,
)
from rnn_xp.backend import Array
from rnn_xp.cells import CELLS
from rnn_xp.cells.base import Cell, Weights
from rnn_xp.recurrence import Loop

# By the cells' types: the kernels' name, and the gates of each product of a step.
_CELLS: dict[Any, tuple[str, tuple[int, ...]]] = {
    CELLS["rnn_tanh"]: ("tanh", (1,)),
    CELLS["rnn_relu"]: ("relu", (1,)),
    CELLS["lstm"]: ("lstm", (4,)),
    CELLS["gru"]: ("gru", (3,)),
    CELLS["gru_reset_before"]: ("reset", (2, 1)),
}


class Persistent(Fused):
    """The engine of one direction: see `Recurrence`.

    Parameters
    ----------
    kernels : function
        As for `Fused`.
    limits : function
        Returns what the current device has.
    """

    rows = 2

    def __init__(self, kernels: Callable[[str], Kernels], limits: Callable[[], Limits]) -> None:
        super().__init__(kernels)
        self.limits = limits
        self._parts: dict[int, Persistent] = {}

    def on(self, multiprocessors: int) -> Persistent:
        """Return the engine that uses no more than so many multiprocessors."""
        most = min(multiprocessors, self.limits().multiprocessors)
        return Persistent(self._kernels, lambda: self.limits()._replace(multiprocessors=most))

    def part(self, count: int) -> Persistent:
        """Return the engine that uses no more than one of so many parts of the multiprocessors."""

        def limits() -> Limits:
            whole = self.limits()
            return whole._replace(multiprocessors=max(1, whole.multiprocessors // count))

        if count not in self._parts:
            self._parts[count] = Persistent(self._kernels, limits)
        return self._parts[count]

    def takes(self, cell: Cell, dtype: Any) -> bool:
        """Tell whether there are kernels for this cell and dtype."""
        return type(cell) in _CELLS and dtype.char in "eEf"

    def costs(self, cell: Cell, dtype: Any, batch: int) -> tuple[float, float]:
        """Return the µs of a step of so many sequences on the current device: here, and without.

        Infinite here where it does not fit.
        """
        limits = self.limits()
        given = (_work(cell, dtype), cell.hidden_size, max(batch, 1), limits)
        runs = batch and (dtype.char != "E" or limits.capability >= BFLOAT16)
        return cost(*given) if runs else inf, cost_without(*given)

    def _forward(self, loop: Loop, w: Weights, kept: Kept, y: Array, *, keep: bool) -> int:
        """Run all steps; return the row of the last state."""
        steps, reverse = int(y.shape[0]), loop.reverse
        given = (fused.valid(loop.ragged), w.get("bias_ih"), w.get("bias_hh"))
        arrays = (w["weight_hh"], *given, *kept[1:], y)
        self._launch(loop, "forward", y, (int(reverse), int(keep)), arrays)
        if not keep:
            return steps % 2
        return 0 if reverse else steps

    def _backward(
        self,
        loop: Loop,
        w: Weights,
        kept: Kept,
        dy: Array,
        dstate: tuple[Array, Array | None, Array | None],
        made: Made,
    ) -> None:
        """Run all steps: `dstate` becomes that before the first one, and `made` is filled."""
        arrays = (
            w["weight_hh"],
            fused.valid(loop.ragged),
            dy,
            *kept[1:],
            *dstate[:2],
            made.hh,
            made.u,
        )
        self._launch(loop, "backward", dy, (int(loop.reverse),), arrays)

    def _launch(
        self,
        loop: Loop,
        part: str,
        like: Array,
        how: tuple[int, ...],
        arrays: Sequence[Array | None],
    ) -> None:
        (name, _), (steps, batch, hidden) = _CELLS[type(loop.cell)], like.shape
        found = plans(_work(loop.cell, like.dtype), hidden, batch, self.limits())
        assert found is not None, "chosen although it does not fit"
        plan, xp = found[part == "backward"], loop.ops.xp
        counter = xp.zeros((1,), dtype=xp.uint32)
        sizes = (hidden, batch, steps, plan.units, plan.tile)
        (kernel,) = self._named([f"{name}_all_{part}"], like)
        arguments = (*sizes, *how, counter, *fused.pointers(*arrays))
        kernel((plan.blocks,), (THREADS,), arguments, shared_mem=plan.shared)


def _work(cell: Cell, dtype: Any) -> Work:
    return Work(_CELLS[type(cell)][1], 8 * dtype.itemsize)


def source() -> str:
    """Return the kernels' source, complete in itself."""
    return fused.source("persistent.cu")


def limits() -> Limits:
    """Return what CuPy's current device has."""
    import cupy

    return _limits(cupy.cuda.Device().id)


@cache
def _limits(device: int) -> Limits:
    import cupy

    asked = cupy.cuda.Device(device)
    has = asked.attributes
    return Limits(
        has["MultiProcessorCount"],
        has["MaxSharedMemoryPerBlockOptin"],
        bool(has["CooperativeLaunch"]),
        int(asked.compute_capability),
        device,
    )


def compiled(dtype: str) -> Kernels:
    """Return the kernels of the current device; they are compiled at their first use."""
    import cupy

    return _compiled(cupy.cuda.Device().id, dtype)


@cache
def _compiled(device: int, dtype: str) -> Kernels:
    import cupy

    options = fused.options(dtype)
    module = cupy.RawModule(code=source(), options=options, enable_cooperative_groups=True)

    def named(name: str) -> Any:
        kernel = module.get_function(name)
        kernel.max_dynamic_shared_size_bytes = _limits(device).shared
        return kernel

    return cache(named)
