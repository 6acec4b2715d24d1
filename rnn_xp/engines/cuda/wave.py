"""CuPy: several levels at once, each on its own part of the device and in chunks of steps.

While a level runs one chunk, the level above it runs the chunk before, so that after the first
chunks all of them run; backward the same, from the last chunk and the highest level on. A level's
states pass from chunk to chunk. In training the chunks are parts of one run's arrays, so that the
gradients of a level's weights are products over many steps: over all of them where the gradients of
the pre-activations do not take too much memory, else part by part. Only levels of one direction: in
two, a level needs all steps of the one below.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rnn_xp.backend import Array, Namespace, array_namespace, is_half, like_dtype
from rnn_xp.cells.base import Weights
from rnn_xp.engines.base import (
    Made,
    Parts,
    Ragged,
    Run,
    Stack,
    joined,
    of_direction,
    of_level,
    stacked,
)
from rnn_xp.engines.cuda.directions import Directions, loops_of
from rnn_xp.engines.cuda.fused import Fused, Kept, blank, gradients
from rnn_xp.recurrence import Loop, zeroed

MOST_MADE = 2**25
"""Bytes of gradients of the pre-activations that a level holds, if more than one chunk has."""


@dataclass(frozen=True)
class Wave(Directions):
    """The engine of several levels of one direction; with dropout, one after the other.

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

    @property
    def title(self) -> str:  # type: ignore[override]
        """What the doctor calls it."""
        return f"{type(self.each).__name__.lower()} wave"

    def run(self, how: Run, weights: list[Any], x: Array, state: Parts) -> Made:
        """Run every level over x; see `Engine`."""
        stack, ragged, drop, keep = how
        if drop is not None:
            return super().run(how, weights, x, state)
        (loop,), each = loops_of(stack, array_namespace(x=x), ragged), self.each
        cell, xp, valid, _ = loop
        x = zeroed(xp, valid, x)
        states = [of_level(stack, state, level) for level in range(stack.levels)]
        last: list[Any] = [of_direction(state, 0) for state in states]
        shape = *x.shape[:2], cell.hidden_size
        result = blank(shape, x)  # of the memory of who reads it
        # Nothing of them is free for other work before all places have met.
        rows, kept = [x], list[Kept]()
        with self.places(stack.levels) as places:
            for k, place in enumerate(places):
                with place:
                    if keep:
                        kept.append(each.room(cell, xp, rows[-1], keep=True))
                    rows.append(blank(shape, x) if k + 1 < stack.levels else result)
            for begin, end, own in _chunks(loop, ragged, x.shape[0], self.steps):
                below, *outputs = (a[begin:end, ...] for a in rows)
                for k, ((w,), y) in enumerate(zip(weights, outputs, strict=True)):
                    if k:
                        places[k].follow(places[k - 1])
                    with places[k]:
                        if keep:
                            part = kept[k].part(begin, end)
                        else:
                            part = each.room(cell, xp, below, keep=False)
                        last[k] = each.run_into(own, w, part, last[k], y, keep=keep)
                    below = y
        return result, joined([stacked([part]) for part in last]), (loop, ragged, kept)

    def run_backward(
        self, stack: Stack, weights: list[Any], kept: Any, dy: Array, dstate: Parts
    ) -> Made:
        """Run every level backward through time; see `Engine`."""
        if isinstance(kept, list):  # with dropout
            return super().run_backward(stack, weights, kept, dy, dstate)
        (loop, ragged, levels), each = kept, self.each
        cell, xp, *_ = loop
        steps, batch, _ = dy.shape
        dy = xp.ascontiguousarray(dy)
        w = [own for (own,) in weights]
        dstates = [of_level(stack, dstate, level) for level in range(stack.levels)]
        first: list[Any] = [of_direction(state, 0) for state in dstates]
        sums: list[dict[str, Array]] = [{} for _ in weights]
        chunks = list(_chunks(loop, ragged, steps, self.steps))[::-1]
        together = max(1, MOST_MADE // (self.steps * levels[0].gates[:batch].nbytes))
        # All dx stay until all places have met.
        inputs = []
        with self.places(len(weights)) as places:
            for place, level in zip(places, levels, strict=True):
                with place:
                    inputs.append(blank((steps, batch, level.x.shape[1]), dy))
            for some in (chunks[k : k + together] for k in range(0, len(chunks), together)):
                start, stop = some[-1][0], some[0][1]
                parts = [level.part(start, stop) for level in levels]
                made = []
                for place, part in zip(places, parts, strict=True):
                    with place:
                        made.append(each.made(cell, part, dy[start:stop, ...]))
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
                        more = gradients(xp, w[k], parts[k], made[k], reverse=False)
                        _add(xp, sums[k], more)
        found = [[{name: like_dtype(xp, a, dy) for name, a in level.items()}] for level in sums]
        return found, inputs[0], joined([stacked([part]) for part in first])


def _add(xp: Namespace, sums: dict[str, Array], made: Weights) -> None:
    """Add gradients to the sums; the first ones begin them, and more are added in 32 bits."""
    for name, part in made.items():
        if name not in sums:
            sums[name] = part
            continue
        total, more = (
            xp.astype(a, xp.float32) if is_half(xp, a.dtype) else a for a in (sums[name], part)
        )
        sums[name] = xp.add(total, more, out=total)


def _chunks(
    loop: Loop, ragged: Ragged | None, steps: int, chunk: int
) -> Iterator[tuple[int, int, Loop]]:
    """Yield where each chunk begins and ends, and its loop."""
    for begin in range(0, steps, chunk):
        end = min(begin + chunk, steps)
        yield begin, end, loop._replace(valid=ragged and ragged.part(begin, end))
