"""CuPy: several levels at once, each on its own part of the device and in chunks of steps.

While a level runs one chunk, the level above it runs the chunk before, so that after the first
chunks all of them run; backward the same, from the last chunk and the highest level on. A level's
states pass from chunk to chunk. In training the chunks are parts of one run's arrays, so that the
gradients of a level's weights are products over many steps: over all of them where the gradients of
the pre-activations do not take too much memory, else part by part. Only levels of one direction: in
two, a level needs all steps of the one below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnn_xp.accelerate import Deep, OneByOne, of_direction, stacked
from rnn_xp.accelerate.cuda.fused import Fused, Kept, gradients
from rnn_xp.backend import Array, Operations
from rnn_xp.cells.base import Weights
from rnn_xp.recurrence import Loop, Ragged, zero_rows

MOST_MADE = 2**25
"""Bytes of gradients of the pre-activations that a level holds, if more than one chunk has."""


@dataclass(frozen=True)
class Wave(OneByOne, Deep):
    """The engine of several levels: see `Deep`.

    Parameters
    ----------
    each : Fused
        Runs one level on its part of the device.
    places : Places
    steps : int
        Of a chunk.
    """

    each: Fused
    steps: int = 1

    def run_levels(
        self,
        loops: Sequence[Loop],
        levels: Sequence[Sequence[Any]],
        x: Array,
        states: Sequence[Sequence[Array | None]],
        *,
        keep: bool,
    ) -> tuple[Array, list[Sequence[Array]], list[Kept]]:
        """Run every level over x; see `Deep`."""
        (loop,), each = loops, self.each
        cell, ops, ragged, _ = loop
        if ragged is not None:
            x = zero_rows(ops, ragged.valid, x)
        last: list[Any] = [of_direction(state, 0) for state in states]
        shape = *x.shape[:2], cell.hidden_size
        result = ops.buffer(shape, x)  # of the memory of who reads it
        # Nothing of them is free for other work before all places have met.
        rows, kept = [x], list[Kept]()
        with self.places(len(levels)) as places:
            for k, place in enumerate(places):
                with place:
                    if keep:
                        kept.append(each.room(cell, ops, rows[-1], keep=True))
                    rows.append(ops.buffer(shape, x) if k + 1 < len(levels) else result)
            for begin, end, own in _chunks(loop, x.shape[0], self.steps):
                below, *outputs = (a[begin:end, ...] for a in rows)
                for k, ((w,), y) in enumerate(zip(levels, outputs, strict=True)):
                    if k:
                        places[k].follow(places[k - 1])
                    with places[k]:
                        if keep:
                            part = kept[k].part(begin, end)
                        else:
                            part = each.room(cell, ops, below, keep=False)
                        last[k] = each.run_into(own, w, part, last[k], y, keep=keep)
                    below = y
        return result, [stacked(ops.xp, [state]) for state in last], kept

    def run_levels_backward(
        self,
        loops: Sequence[Loop],
        weights: Sequence[Sequence[Weights]],
        kept: list[Kept],
        dy: Array,
        dstates: Sequence[Sequence[Array | None]],
    ) -> tuple[list[Sequence[Weights]], Array, list[Sequence[Array]]]:
        """Run every level backward through time; see `Deep`."""
        (loop,), each = loops, self.each
        cell, ops, *_ = loop
        steps, batch, _ = dy.shape
        dy = ops.xp.ascontiguousarray(dy)
        w = [each.fold(cell, ops.xp, own) for (own,) in weights]
        first: list[Any] = [of_direction(state, 0) for state in dstates]
        sums: list[dict[str, Array]] = [{} for _ in weights]
        chunks = list(_chunks(loop, steps, self.steps))[::-1]
        together = max(1, MOST_MADE // (self.steps * kept[0].gates[:batch].nbytes))
        # All dx stay until all places have met.
        inputs = []
        with self.places(len(weights)) as places:
            for place, level in zip(places, kept, strict=True):
                with place:
                    inputs.append(ops.buffer((steps, batch, level.x.shape[1]), dy))
            for some in (chunks[k : k + together] for k in range(0, len(chunks), together)):
                start, stop = some[-1][0], some[0][1]
                parts = [level.part(start, stop) for level in kept]
                made = []
                for place, part in zip(places, parts, strict=True):
                    with place:
                        made.append(each.made(cell, ops, part, dy[start:stop, ...]))
                for begin, end, own in some:
                    span = begin - start, end - start
                    above = dy[begin:end, ...]
                    for k in reversed(range(len(weights))):
                        if k + 1 < len(weights):
                            places[k].follow(places[k + 1])
                        dx = inputs[k][begin:end, ...]
                        with places[k]:
                            first[k] = each.run_backward_into(
                                own,
                                w[k],
                                parts[k].part(*span),
                                made[k].part(*span, batch),
                                above,
                                first[k],
                                dx,
                            )
                        above = dx
                for k, place in enumerate(places):
                    with place:
                        more = gradients(ops, w[k], parts[k], made[k], reverse=False)
                        _add(ops, sums[k], more)
        found: list[Sequence[Weights]] = [
            [{name: _as(ops, a, dy.dtype) for name, a in level.items()}] for level in sums
        ]
        return found, inputs[0], [stacked(ops.xp, [state]) for state in first]


def _add(ops: Operations, sums: dict[str, Array], made: Weights) -> None:
    """Add gradients to the sums; the first ones begin them, and more are added in 32 bits."""
    for name, part in made.items():
        if name not in sums:
            sums[name] = part
            continue
        total, more = (
            _as(ops, a, ops.xp.float32) if a.dtype.itemsize == 2 else a for a in (sums[name], part)
        )
        sums[name] = ops.add(total, more, out=total)


def _as(ops: Operations, a: Array, dtype: Any) -> Array:
    return a if a.dtype == dtype else ops.xp.astype(a, dtype)


def _chunks(loop: Loop, steps: int, chunk: int) -> Iterator[tuple[int, int, Loop]]:
    """Yield where each chunk begins and ends, and its loop."""
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
        yield begin, end, loop._replace(ragged=own)
