"""CuPy: the directions of a level, one after the other or each on a stream of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rnn_xp.backend import Array, Namespace, array_namespace
from rnn_xp.cells.base import Weights
from rnn_xp.engines.base import ByLevel, Parts, Ragged, Stack, of_direction, stacked, valid_of
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

    def run_level(
        self,
        stack: Stack,
        weights: Sequence[Weights],
        x: Array,
        state: Parts,
        ragged: Ragged | None,
        *,
        keep: bool,
    ) -> tuple[Array, Sequence[Array], list[Any]]:
        """Run the directions of one level; see `Engine`."""
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
        self,
        stack: Stack,
        weights: Sequence[Weights],
        kept: list[Any],
        dy: Array,
        dstate: Parts,
    ) -> tuple[list[Weights], Array, Sequence[Array]]:
        """Run the directions of one level backward; see `Engine`."""
        size, runs = stack.cell.output_size, []
        with self.places(len(kept)) as places:
            for d, ((loop, own), place) in enumerate(zip(kept, places, strict=True)):
                part = dy[:, :, d * size : (d + 1) * size]
                after = of_direction(dstate, d)
                with place:
                    runs.append(self.each.run_backward(loop, weights[d], own, part, after))
        gradients, parts, states = zip(*runs, strict=True)
        dx = parts[0]
        for part in parts[1:]:
            dx += part  # its memory is this engine's own
        return list(gradients), dx, stacked(states)


def loops_of(stack: Stack, xp: Namespace, ragged: Ragged | None) -> list[Loop]:
    """Return the loop of each direction."""
    return [Loop(stack.cell, xp, valid_of(ragged), reverse) for reverse in stack.reverse]
