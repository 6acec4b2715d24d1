"""CuPy: the directions of a level, one after the other or each on a stream of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rnn_xp.backend import Array, Namespace, array_namespace
from rnn_xp.engines.base import (
    ByLevel,
    Made,
    Parts,
    Ragged,
    Run,
    Stack,
    of_direction,
    stacked,
    valid_of,
)
from rnn_xp.engines.cuda.fused import Fused
from rnn_xp.engines.cuda.streams import Places, one_by_one
from rnn_xp.recurrence import Loop


@dataclass(frozen=True)
class Directions(ByLevel):
    """The engine that runs each direction by the kernels of `each`.

    Parameters
    ----------
    each : Fused
    places : Places
    """

    each: Fused
    places: Places = one_by_one

    @property
    def title(self) -> str:  # type: ignore[override]
        """What the doctor calls it."""
        return type(self.each).__name__.lower() + ("" if self.places is one_by_one else " pair")

    def run_level(self, how: Run, weights: Any, x: Array, state: Parts) -> Made:
        """Run the directions of one level; see `Engine`."""
        stack, ragged, _, keep = how
        xp, runs = array_namespace(x=x), []
        loops = loops_of(stack, xp, ragged)
        with self.places(len(loops)) as places:
            for d, (loop, place) in enumerate(zip(loops, places, strict=True)):
                with place:
                    part = of_direction(state, d)
                    runs.append(self.each.run(loop, weights[d], x, part, keep=keep))
        outputs, states, kept = zip(*runs, strict=True)
        y = outputs[0] if len(runs) == 1 else xp.concat(outputs, axis=2)
        return y, stacked(states), list(zip(loops, kept, strict=True))

    def run_level_backward(
        self, stack: Stack, weights: Any, kept: Any, dy: Array, dstate: Parts
    ) -> Made:
        """Run the directions of one level backward; see `Engine`."""
        xp, size, runs = array_namespace(dy=dy), stack.cell.output_size, []
        with self.places(len(kept)) as places:
            for d, ((loop, own), place) in enumerate(zip(kept, places, strict=True)):
                part = dy[:, :, d * size : (d + 1) * size]
                after = of_direction(dstate, d)
                with place:
                    runs.append(self.each.run_backward(loop, weights[d], own, part, after))
        gradients, parts, states = zip(*runs, strict=True)
        dx = parts[0]
        for part in parts[1:]:
            dx = xp.add(dx, part, out=dx)
        return list(gradients), dx, stacked(states)


def loops_of(stack: Stack, xp: Namespace, ragged: Ragged | None) -> list[Loop]:
    """Return the loop of each direction."""
    return [Loop(stack.cell, xp, valid_of(ragged), reverse) for reverse in stack.reverse]
