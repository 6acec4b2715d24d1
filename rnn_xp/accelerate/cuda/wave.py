"""CuPy: several levels at once, each on its own part of the device and in chunks of steps.

While a level runs one chunk, the level above it runs the chunk before, so that after the first
chunks all of them run; backward the same, from the last chunk and the highest level on. A level's
states pass from chunk to chunk, and its weights' gradients are the sums over all chunks, of 16-bit
numbers in float32. Only levels of one direction: in two, a level needs all steps of the one below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnn_xp.accelerate import Deep, OneByOne, of_direction, stacked
from rnn_xp.backend import Array, Operations
from rnn_xp.cells.base import Weights
from rnn_xp.recurrence import Loop, Ragged


@dataclass(frozen=True)
class Wave(OneByOne, Deep):
    """The engine of several levels: see `Deep`.

    Parameters
    ----------
    each : Recurrence
        Runs one level on its part of the device.
    places : Places
    steps : int
        Of a chunk.
    """

    steps: int = 1

    def run_levels(
        self,
        loops: Sequence[Loop],
        levels: Sequence[Sequence[Any]],
        x: Array,
        states: Sequence[Sequence[Array | None]],
        *,
        keep: bool,
    ) -> tuple[Array, list[Sequence[Array]], list[list[Any]]]:
        """Run every level over x; see `Deep`."""
        (loop,), ops = loops, loops[0].ops
        last: list[Any] = [of_direction(state, 0) for state in states]
        kept: list[list[Any]] = [[] for _ in levels]
        # Nothing of them is free for other work before all places have met.
        outputs: list[list[Array]] = [[] for _ in levels]
        with self.places(len(levels)) as places:
            for begin, own in _chunks(loop, x.shape[0], self.steps):
                y = x[begin : begin + self.steps, ...]
                for k, (w,) in enumerate(levels):
                    if k:
                        places[k].follow(places[k - 1])
                    with places[k]:
                        y, last[k], made = self.each.run(own, w, y, last[k], keep=keep)
                    kept[k].append(made)
                    outputs[k].append(y)
        y = ops.xp.concat(outputs[-1], axis=0)
        return y, [stacked(ops.xp, [state]) for state in last], kept

    def run_levels_backward(
        self,
        loops: Sequence[Loop],
        weights: Sequence[Sequence[Weights]],
        kept: list[list[Any]],
        dy: Array,
        dstates: Sequence[Sequence[Array | None]],
    ) -> tuple[list[Sequence[Weights]], Array, list[Sequence[Array]]]:
        """Run every level backward through time; see `Deep`."""
        (loop,), ops = loops, loops[0].ops
        first: list[Any] = [of_direction(state, 0) for state in dstates]
        sums: list[dict[str, Array]] = [{} for _ in weights]
        # Both stay until another place may have their memory: the chunk until the level below
        # follows, which gave its x, and dx until all have met.
        held: list[Any] = [None] * len(weights)
        inputs: list[list[Array]] = [[] for _ in weights]
        with self.places(len(weights)) as places:
            for begin, own in reversed(list(_chunks(loop, dy.shape[0], self.steps))):
                dx = dy[begin : begin + self.steps, ...]
                for k in reversed(range(len(weights))):
                    if k + 1 < len(weights):
                        places[k].follow(places[k + 1])
                    held[k] = kept[k].pop()
                    with places[k]:
                        made, dx, first[k] = self.each.run_backward(
                            own, weights[k][0], held[k], dx, first[k]
                        )
                        _add(ops, sums[k], made)
                    inputs[k].insert(0, dx)
        dx = ops.xp.concat(inputs[0], axis=0)
        gradients: list[Sequence[Weights]] = [
            [{name: _as(ops, part, dy.dtype) for name, part in own.items()}] for own in sums
        ]
        return gradients, dx, [stacked(ops.xp, [state]) for state in first]


def _add(ops: Operations, sums: dict[str, Array], made: Weights) -> None:
    """Add a chunk's gradients to the sums; the first one's begin them."""
    for name, part in made.items():
        wide = _as(ops, part, ops.xp.float32) if part.dtype.itemsize == 2 else part
        sums[name] = ops.add(sums[name], wide, out=sums[name]) if name in sums else wide


def _as(ops: Operations, a: Array, dtype: Any) -> Array:
    return a if a.dtype == dtype else ops.xp.astype(a, dtype)


def _chunks(loop: Loop, steps: int, chunk: int) -> Iterator[tuple[int, Loop]]:
    """Yield where each chunk begins, and its loop."""
    ragged = loop.ragged
    for begin in range(0, steps, chunk):
        own = None
        end = min(begin + chunk, steps)
        if ragged is not None and end > ragged.shortest:
            own = Ragged(
                np.clip(ragged.lengths - begin, 0, end - begin),
                ragged.valid[begin:end, ...],
                max(0, ragged.shortest - begin),
            )
        yield begin, loop._replace(ragged=own)
