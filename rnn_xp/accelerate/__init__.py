"""Faster ways to run a recurrence, for one array library each, and the choice between them.

An engine runs a level of a layer, in one or two directions; one of them several levels at once. The
core, `recurrence`, runs everywhere, one direction after the other. Each of the others is here
because a benchmark shows that it pays, and a test ties it to the core.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from rnn_xp import recurrence
from rnn_xp.accelerate import heap, native
from rnn_xp.backend import (
    Array,
    Backend,
    Namespace,
    Operations,
    array_namespace,
    namespace_at_once,
)
from rnn_xp.cells.base import Cell, Weights
from rnn_xp.recurrence import Loop

heap.widen()


class Recurrence(Protocol):
    """What runs a cell over time in one direction: as the functions of `recurrence`."""

    def fold(self, cell: Cell, xp: Namespace, weights: Weights) -> Any:
        """Arrange the weights for `run`."""

    def run(
        self,
        loop: Loop,
        w: Any,
        x: Array,
        state: Sequence[Array | None],
        *,
        keep: bool,
    ) -> tuple[Array, Sequence[Array], Any]:
        """Return y, the state, and what `run_backward` takes as `chunks`."""

    def run_backward(
        self,
        loop: Loop,
        weights: Weights,
        chunks: Any,
        dy: Array,
        dstate: Sequence[Array | None],
    ) -> tuple[Weights, Array, Sequence[Array]]:
        """Return the gradients of the weights, of x and of the initial state."""


class Engine(Protocol):
    """What runs a level of a layer: a cell over time, in D directions."""

    def fold(self, cell: Cell, xp: Namespace, weights: Sequence[Weights]) -> Any:
        """Arrange the weights of each direction for `run`."""

    def run(
        self,
        loops: Sequence[Loop],
        w: Any,
        x: Array,
        state: Sequence[Array | None],
        *,
        keep: bool,
    ) -> tuple[Array, Sequence[Array], Any]:
        """Run every direction over x.

        Parameters
        ----------
        loops : of each direction
        w : from `fold`
        x : (T, B, I)
        state : (D, B, size) for each part of the cell's state; None is zeros
        keep : keep what `run_backward` needs

        Returns
        -------
        y : (T, B, D * size), a new array
        state : like the one that goes in, after the last step that was visited
        kept : belongs to one `run_backward`
        """

    def run_backward(
        self,
        loops: Sequence[Loop],
        weights: Sequence[Weights],
        kept: Any,
        dy: Array,
        dstate: Sequence[Array | None],
    ) -> tuple[Sequence[Weights], Array, Sequence[Array]]:
        """Run every direction backward through time.

        Parameters
        ----------
        loops, weights : of each direction
        kept : from `run`
        dy : (T, B, D * size)
        dstate : (D, B, size) for each part of the state; None is zeros

        Returns
        -------
        gradients : of each direction's weights
        dx : (T, B, I), a new array
        dstate : like the one that goes in, of the initial state
        """


class Deep(ABC):
    """An engine that may run several levels at once, each over the output of the one below."""

    @abstractmethod
    def run_levels(
        self,
        loops: Sequence[Loop],
        levels: Sequence[Any],
        x: Array,
        states: Sequence[Sequence[Array | None]],
        *,
        keep: bool,
    ) -> tuple[Array, list[Sequence[Array]], Any] | None:
        """Run every level: as `run`, with the weights and the states of each.

        None, and nothing is done, where they are better run one after the other.
        """

    @abstractmethod
    def run_levels_backward(
        self,
        loops: Sequence[Loop],
        weights: Sequence[Sequence[Weights]],
        kept: Any,
        dy: Array,
        dstates: Sequence[Sequence[Array | None]],
    ) -> tuple[list[Sequence[Weights]], Array, list[Sequence[Array]]]:
        """Run every level backward through time: as `run_backward`, after `run_levels`."""


class Place(Protocol):
    """Where one of several runs takes place, once it is entered."""

    def __enter__(self) -> Any:
        """Enter it."""

    def __exit__(self, *failure: object) -> None:
        """Leave it."""

    def follow(self, other: Self) -> None:
        """Let what comes here next wait for what `other` has been given so far."""


Places = Callable[[int], AbstractContextManager[Sequence[Any]]]
"""Returns a context with so many places (`Place`)."""


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


@dataclass(frozen=True)
class OneByOne:
    """The engine that runs one direction after the other, or each in its own place.

    Parameters
    ----------
    each : Recurrence
    places : Places
    """

    each: Recurrence
    places: Places = one_by_one

    def fold(self, cell: Cell, xp: Namespace, weights: Sequence[Weights]) -> list[Any]:
        """Arrange the weights of each direction."""
        return [self.each.fold(cell, xp, own) for own in weights]

    def run(
        self,
        loops: Sequence[Loop],
        w: Sequence[Any],
        x: Array,
        state: Sequence[Array | None],
        *,
        keep: bool,
    ) -> tuple[Array, Sequence[Array], Sequence[Any]]:
        """Run every direction over x; see `Engine`."""
        if len(loops) == 1:  # no places to share out, which take as long as a small layer's step
            y, last, kept = self.each.run(loops[0], w[0], x, of_direction(state, 0), keep=keep)
            return y, [part[None, ...] for part in last], [kept]
        runs = []
        with self.places(len(loops)) as places:
            for d, loop in enumerate(loops):
                with places[d]:
                    runs.append(self.each.run(loop, w[d], x, of_direction(state, d), keep=keep))
        xp = loops[0].ops.xp
        outputs, states, own = zip(*runs, strict=True)
        return xp.concat(outputs, axis=2), stacked(xp, states), own

    def run_backward(
        self,
        loops: Sequence[Loop],
        weights: Sequence[Weights],
        kept: Sequence[Any],
        dy: Array,
        dstate: Sequence[Array | None],
    ) -> tuple[Sequence[Weights], Array, Sequence[Array]]:
        """Run every direction backward through time; see `Engine`."""
        if len(loops) == 1:
            own, part = kept[0], of_direction(dstate, 0)
            made, dx, first = self.each.run_backward(loops[0], weights[0], own, dy, part)
            return [made], dx, [part[None, ...] for part in first]
        ops, size = loops[0].ops, loops[0].cell.output_size
        runs = []
        with self.places(len(loops)) as places:
            for d, loop in enumerate(loops):
                own = dy[:, :, d * size : (d + 1) * size]
                part = of_direction(dstate, d)
                with places[d]:
                    runs.append(self.each.run_backward(loop, weights[d], kept[d], own, part))
        gradients, parts, states = zip(*runs, strict=True)
        dx = parts[0]
        for part in parts[1:]:
            dx = ops.add(dx, part, out=dx)
        return gradients, dx, stacked(ops.xp, states)


def of_direction(state: Sequence[Array | None], d: int) -> list[Array | None]:
    """Return each part of one direction's state, (B, size)."""
    return [None if part is None else part[d, ...] for part in state]


def stacked(xp: Namespace, states: Sequence[Sequence[Array]]) -> list[Array]:
    """Return each part of the directions' states as (D, B, size)."""
    if len(states) == 1:
        return [part[None, ...] for part in states[0]]
    return [xp.stack(parts) for parts in zip(*states, strict=True)]


CORE = OneByOne(recurrence)
"""The engine that runs everywhere."""


def at_once(chosen: Engine, cell: Cell, levels: Sequence[Any], like: Array) -> native.AtOnce | None:
    """Return what runs a prepared layer on plain arguments, if its engine has such a thing.

    A step of a stream is so short that its checks in Python take longer than all else.
    """
    if len(levels) > 1 or not isinstance(chosen, native.Native):
        return None
    return chosen.at_once(cell, levels[0], like)


def engine(cell: Cell, like: Array) -> Engine:
    """Return the engine for a cell whose weights are arrays like `like`."""
    if type(like) is np.ndarray:
        return _kernels_for(like, cell) or CORE
    # Each of these imports its library, which the caller has imported already.
    name = (namespace_at_once(like) or array_namespace(like=like)).__name__
    if name == "jax.numpy":
        from rnn_xp.accelerate import scan

        return OneByOne(scan)
    if name.endswith("torch"):
        from rnn_xp.accelerate import tensors

        return tensors
    if name.endswith("cupy"):
        from rnn_xp.accelerate.cuda import engine as cuda

        return cuda.choose()
    return CORE


def ahead(backend: Backend) -> Callable[[Backend, str, Iterable[Any]], Iterator[Any]] | None:
    """Return what moves batches to a device while it computes; None where they need not travel."""
    if not backend.xp.__name__.endswith("cupy"):
        return None
    from rnn_xp.accelerate.cuda import pieces

    return pieces.ahead


def product(ops: Operations, a: Array, b: Array, bias: Array | None = None) -> Array:
    """Return a b + bias for two matrices of one dtype, as a new array.

    On NumPy with the compiled kernels, whose threads would otherwise wait for those of NumPy's own
    product: these spin for a while after each.
    """
    if ops.xp is np and 0 not in a.shape and 0 not in b.shape:
        kernels = _kernels_for(a)
        if kernels is not None:
            return kernels.product(a, b, bias)
    y = a @ b
    return y if bias is None else ops.add(y, bias, out=y)


def adam(
    arrays: Sequence[Array], betas: tuple[float, float], eps: float, scale: float, keep: float
) -> tuple[Array, Array, Array] | None:
    """Return keep p + scale m' / (√v' + eps), m' and v', of p, its gradient g, m and v.

    m' = β1 m + (1 - β1) g and v' = β2 v + (1 - β2) g². None where the compiled kernels, which take
    less than half of the time that NumPy's passes take, cannot do it.
    """
    p = arrays[0]
    on_gpu = training_on_gpu(p)
    if on_gpu is not None:
        made: tuple[Array, Array, Array]
        made = on_gpu.adam(namespace_at_once(p), arrays, betas, eps, scale, keep)
        return made
    if any(type(a) is not np.ndarray or a.dtype != p.dtype or a.shape != p.shape for a in arrays):
        return None
    kernels = _kernels_for(p) if p.size else None
    return None if kernels is None else kernels.adam(arrays, betas, eps, scale, keep)


def clip(arrays: Sequence[Array], most: float) -> tuple[list[Array], Array] | None:
    """Return gradients of one dtype scaled so that their norm is at most `most`, and their norm.

    None where no kernels do it.
    """
    on_gpu = training_on_gpu(arrays[0])
    if on_gpu is None or arrays[0].dtype.itemsize > 4:  # a square of 64 bits may leave its range
        return None
    made: tuple[list[Array], Array] = on_gpu.clip(namespace_at_once(arrays[0]), arrays, most)
    return made


def moved(mean: Array, p: Array, part: float) -> Array | None:
    """Return mean + part (p - mean); None where no kernel does it."""
    on_gpu = training_on_gpu(p)
    return None if on_gpu is None else on_gpu.moved(namespace_at_once(p), mean, p, part)


def training_on_gpu(a: Array) -> Any:
    """Return CuPy's kernels for a training step if they take this array: `cuda.training`."""
    xp = None if type(a) is np.ndarray else namespace_at_once(a)
    if xp is None or not xp.__name__.endswith("cupy"):
        return None
    from rnn_xp.accelerate.cuda import fused, training

    return training.choose() if a.dtype.char in fused.NAMES else None


def _kernels_for(a: Array, cell: Cell | None = None) -> native.Native | None:
    """Return the compiled kernels if they take the dtype of a NumPy array, and the cell."""
    chosen = native.choose()
    return chosen if isinstance(chosen, native.Native) and chosen.takes(a, cell) else None
