"""CuPy: all steps of a run in one kernel, forward and backward (`persistent.cu`).

The recurrent weights stay in registers and shared memory, and the blocks send each other the
states; the product with the input and the gradients of the weights and of x are products outside,
as in `fused`. float32; float16 and bfloat16 on tensor cores, which add in float32.

The hidden size, and how many weights a thread holds, are known when a kernel is compiled: so it is
compiled when a size first runs, for what `plan` finds. The kernels of a run are two, one each way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from math import inf
from typing import Any, NamedTuple

from rnn_xp.backend import Array, Namespace
from rnn_xp.cells import GRU, LSTM, Cell, Elman, ReluElman, ResetBeforeGRU
from rnn_xp.cells.base import Weights
from rnn_xp.engines.cuda import fused
from rnn_xp.engines.cuda.fused import Fused, Kept, Kernel, Made
from rnn_xp.engines.cuda.plan import (
    BFLOAT16,
    THREADS,
    Layout,
    Limits,
    Plan,
    Work,
    cost,
    cost_without,
    plans,
)
from rnn_xp.errors import named_line
from rnn_xp.recurrence import Loop


class Kind(NamedTuple):
    """How a cell runs here."""

    name: str
    """Of its kernels."""
    functions: tuple[str, str]
    """Of the source, forward and backward."""
    gates: tuple[int, ...]
    """Of each product of a step."""


# By the cells' types.
_KINDS: dict[Any, Kind] = {
    Elman: Kind("tanh", ("forward<Tanh>", "backward<Tanh>"), (1,)),
    ReluElman: Kind("relu", ("forward<Relu>", "backward<Relu>"), (1,)),
    LSTM: Kind("lstm", ("forward<Lstm>", "backward<Lstm>"), (4,)),
    GRU: Kind("gru", ("forward<Gru>", "backward<Gru>"), (3,)),
    ResetBeforeGRU: Kind("reset", ("reset_forward<Reset>", "reset_backward<Reset>"), (2, 1)),
}
PARTS = ("forward", "backward")
NAMES = tuple(f"{kind.name}_all_{part}" for kind in _KINDS.values() for part in PARTS)
"""Of all kernels."""
MOST_STATES = 2**30
"""Of a run: its kernels count steps and sequences in 32 bits."""

Compiled = Callable[[str, tuple[str, ...]], Kernel]
"""From a kernel's name and `options` to the kernel."""


class KernelError(RuntimeError):
    """A kernel of all steps could not be compiled or launched: one line."""


class Persistent(Fused):
    """The kernels of one direction: as the functions of `recurrence`.

    Parameters
    ----------
    compiled : function
    limits : function
        Returns what the current device has.
    """

    def __init__(self, compiled: Compiled, limits: Callable[[], Limits]) -> None:
        self._compiled, self.limits = compiled, limits
        self._parts: dict[int, Persistent] = {}

    def on(self, multiprocessors: int, shared: int) -> Persistent:
        """Return the engine that uses no more multiprocessors, and shared memory of each."""
        has = self.limits()
        most = min(multiprocessors, has.multiprocessors), min(shared, has.shared)
        few = has._replace(multiprocessors=most[0], shared=most[1])
        return Persistent(self._compiled, lambda: few)

    def part(self, count: int) -> Persistent:
        """Return the engine that uses no more than one of so many parts of the multiprocessors."""

        def limits() -> Limits:
            whole = self.limits()
            return whole._replace(multiprocessors=max(1, whole.multiprocessors // count))

        if count not in self._parts:
            self._parts[count] = Persistent(self._compiled, limits)
        return self._parts[count]

    def takes(self, cell: Cell, dtype: Any) -> bool:
        """Tell whether there are kernels for this cell and dtype."""
        return type(cell) in _KINDS and dtype.char in "eEf"

    def costs(self, cell: Cell, dtype: Any, batch: int) -> tuple[float, float]:
        """Return the µs of a step of so many sequences on the current device: here, and without.

        Infinite here where it does not fit.
        """
        limits = self.limits()
        given = (_work(cell, dtype), cell.hidden_size, max(batch, 1), limits)
        runs = batch and (dtype.char != "E" or limits.capability >= BFLOAT16)
        return cost(*given) if runs else inf, cost_without(*given)

    def _rows(self, part: int, shape: tuple[int, ...], like: Array, *, keep: bool) -> Array | None:
        steps, *state = shape
        if part == 0:
            return _empty((steps + 1, *state), like)
        return super()._rows(part, shape, like, keep=True) if keep else None

    def _extra(
        self, cell: Cell, shape: tuple[int, ...], like: Array, *, keep: bool
    ) -> Array | None:
        if len(_KINDS[type(cell)].gates) == 2:
            return _empty(shape, like)  # u
        return super()._extra(cell, shape, like, keep=keep) if keep else None

    def made(self, cell: Cell, kept: Kept, dy: Array) -> Made:
        """Return the arrays that a backward run fills with gradients of the pre-activations."""
        gates, (steps, batch, hidden) = _KINDS[type(cell)].gates, dy.shape
        hh = _empty((steps * batch, gates[0] * hidden), dy)
        u = _empty((steps * batch, hidden), dy) if len(gates) == 2 else None
        return Made(kept.gates if fused.keeps_extra(cell) else hh, hh, u)

    def _forward(
        self,
        loop: Loop,
        w: Weights,
        kept: Kept,
        state: Sequence[Array | None],
        y: Array,
        *,
        keep: bool,
    ) -> list[Array]:
        """Run all steps from a state on; return the last one."""
        xp, reverse = loop.xp, loop.reverse
        last = [fused.blank(tuple(y.shape[1:]), y) for _ in state]
        given = (w["weight_hh"], loop.valid, w.get("bias_ih"), w.get("bias_hh"))
        arrays = (*given, *_first(xp, state), *kept[1:], y, *fused.pair(last))
        if keep:  # if the other one cannot be compiled, it is better known now
            self._kernel(loop, 1, y)
        self._launch(loop, 0, y, (int(reverse), int(keep)), arrays)
        return last

    def _backward(
        self,
        loop: Loop,
        w: Weights,
        kept: Kept,
        dy: Array,
        dlast: Sequence[Array | None],
        dstate: Sequence[Array],
        made: Made,
    ) -> None:
        """Run all steps from `dlast` on; fill `dstate`, before the first one, and `made`."""
        given = (w["weight_hh"], loop.valid, dy)
        ends = (*_first(loop.xp, dlast), *fused.pair(dstate))
        arrays = (*given, *kept[1:], *ends, made.hh, made.u)
        self._launch(loop, 1, dy, (int(loop.reverse),), arrays)

    def _launch(
        self,
        loop: Loop,
        part: int,
        like: Array,
        how: tuple[int, ...],
        arrays: Sequence[Array | None],
    ) -> None:
        steps, batch, _ = like.shape
        kernel, plan = self._kernel(loop, part, like)
        arguments = (batch, steps, plan.share, plan.tile, *how, *fused.pointers(*arrays))
        try:
            kernel((plan.blocks,), (THREADS,), arguments, shared_mem=plan.shared)
        except Exception as error:  # any: the driver's
            raise KernelError(named_line(error)) from error

    def _kernel(self, loop: Loop, part: int, like: Array) -> tuple[Kernel, Plan]:
        """Return the compiled kernel of a run, and its plan."""
        kind, (_, batch, hidden) = _KINDS[type(loop.cell)], like.shape
        work, dtype = _work(loop.cell, like.dtype), fused.NAMES[like.dtype.char]
        plan, given = _planned(part, work, dtype, hidden, batch, self.limits())
        try:
            return self._compiled(f"{kind.name}_all_{PARTS[part]}", given), plan
        except Exception as error:  # any: the compiler's
            raise KernelError(named_line(error)) from error


@lru_cache(maxsize=1024)
def _planned(
    part: int, work: Work, dtype: str, hidden: int, batch: int, limits: Limits
) -> tuple[Plan, tuple[str, ...]]:
    """Return how a kernel lies on the device, and how it is compiled."""
    found = plans(work, hidden, batch, limits)
    assert found is not None, "chosen although it does not fit"
    return found[part], options(dtype, hidden, found[part].units, found[part].layouts)


def _empty(shape: tuple[int, ...], like: Array) -> Array:
    """Return an array in which no number is yet: EMPTY of persistent.cu everywhere."""
    empty = fused.blank(shape, like)
    empty.data.memset_async(0xFF, empty.nbytes)
    return empty


def _first(xp: Namespace, state: Sequence[Array | None]) -> tuple[Array | None, Array | None]:
    """Return both parts of a state, each contiguous; None is zeros."""
    return fused.pair([None if a is None else xp.ascontiguousarray(a) for a in state])


def _work(cell: Cell, dtype: Any) -> Work:
    return Work(_KINDS[type(cell)].gates, 8 * dtype.itemsize)


def source(name: str) -> str:
    """Return the source of a kernel, complete in itself."""
    kind = next(kind for kind in _KINDS.values() if name.startswith(f"{kind.name}_all_"))
    part = name.rpartition("_")[2]
    function = kind.functions[PARTS.index(part)]
    return f"{fused.source('persistent.cu')}{part.upper()}_KERNEL({kind.name}, {function})\n"


def options(dtype: str, hidden: int, units: int, layouts: tuple[Layout, ...]) -> tuple[str, ...]:
    """Return how the source is compiled for a dtype, a hidden size and a plan's units."""
    given = {"THREADS": THREADS, "HIDDEN": hidden, "UNITS": units}
    for which, laid in zip("HU", layouts, strict=False):
        held = {"TALL": laid.tall, "WIDE": laid.wide, "MORE": laid.more, "SIDE": laid.side}
        given |= {f"{name}_{which}": value for name, value in held.items()}
    return *fused.options(dtype), *(f"-D{name}={value}" for name, value in given.items())


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


def compiled(name: str, options: tuple[str, ...]) -> Kernel:
    """Return a kernel of the current device; it is compiled at its first use."""
    import cupy

    return _kernel(cupy.cuda.Device().id, name, options)


@cache
def _kernel(device: int, name: str, options: tuple[str, ...]) -> Kernel:
    import cupy

    module = cupy.RawModule(code=source(name), options=options, enable_cooperative_groups=True)
    kernel: Any = module.get_function(name)
    kernel.max_dynamic_shared_size_bytes = _limits(device).shared
    return kernel  # type: ignore[no-any-return]
