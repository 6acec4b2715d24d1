"""The engine that runs everywhere: the core, one level and one direction after the other.

On NumPy a run is cut into chunks of steps, which stay in the processor's cache and bound the memory
that is needed besides the results; in other libraries a run is one chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rnn_xp import recurrence
from rnn_xp.backend import (
    Array,
    Namespace,
    array_namespace,
    copy_of,
    is_library,
    like_dtype,
    widened,
)
from rnn_xp.cells.base import Weights
from rnn_xp.engines.base import (
    ByLevel,
    Made,
    Parts,
    Ragged,
    Run,
    Stack,
    of_direction,
    stacked,
)
from rnn_xp.recurrence import Loop, Tape

ROWS = 512
"""Steps times sequences of a chunk; a fourth of it where nothing is kept."""
LEAST_STEPS = 4
"""Of a chunk, however many the sequences are."""


class Chunk(NamedTuple):
    """What is kept of some consecutive steps."""

    start: int
    stop: int
    loop: Loop
    tape: Tape


class Plain(ByLevel):
    """The engine of the core."""

    title = "core"

    def run_level(self, how: Run, weights: Any, x: Array, state: Parts) -> Made:
        """Run the directions of one level; see `Engine`."""
        (stack, ragged, _, keep), xp = how, array_namespace(x=x)
        if keep and not stack.cell.has_backward:
            raise NotImplementedError(no_backward(stack, x))
        given, runs = x.dtype, []
        wide = widens(xp, given)
        if wide:
            weights = [cast_all(xp, xp.float32, w) for w in weights]
            x, *state = cast(xp, xp.float32, x, *state)
        for d, (w, reverse) in enumerate(zip(weights, stack.reverse, strict=True)):
            loop, own = Loop(stack.cell, xp, None, reverse), of_direction(state, d)
            runs.append(run(loop, w, x, own, ragged, keep=keep))
        outputs, states, kept = zip(*runs, strict=True)
        y = outputs[0] if len(runs) == 1 else xp.concat(outputs, axis=2)
        last = stacked(states)
        if wide:
            y, *last = cast(xp, given, y, *last)
        return y, last, list(kept)

    def run_level_backward(
        self, stack: Stack, weights: Any, kept: Any, dy: Array, dstate: Parts
    ) -> Made:
        """Run the directions of one level backward; see `Engine`."""
        size, dx, xp, given = stack.cell.output_size, None, array_namespace(dy=dy), dy.dtype
        if widens(xp, given):
            weights = [cast_all(xp, xp.float32, w) for w in weights]
            dy, *dstate = cast(xp, xp.float32, dy, *dstate)
        gradients, states = [], []
        for d, w in enumerate(weights):
            own = dy[:, :, d * size : (d + 1) * size]
            made, part, first = run_backward(w, kept[d], own, of_direction(dstate, d))
            dx = part if dx is None else dx + part
            gradients.append(cast_all(xp, given, made))
            states.append(first)
        dx, *first = cast(xp, given, dx, *stacked(states))
        return gradients, dx, first


PLAIN = Plain()
"""The engine that runs everywhere."""


def widens(xp: Namespace, dtype: Any) -> bool:
    """Tell whether products and `where` may give another dtype: CuPy makes float32 of bfloat16."""
    return is_library(xp, "cupy") and bool(dtype.char == "E")


def cast(xp: Namespace, dtype: Any, *arrays: Any) -> list[Any]:
    """Return arrays in a dtype; None stays."""
    return [a if a is None or a.dtype == dtype else xp.astype(a, dtype) for a in arrays]


def cast_all(xp: Namespace, dtype: Any, named: Weights) -> Weights:
    """Return named arrays in a dtype."""
    return dict(zip(named, cast(xp, dtype, *named.values()), strict=True))


def no_backward(stack: Stack, like: Array) -> str:
    """Say what to do about a cell without a backward step, for arrays such as `like`."""
    return (
        f"{type(stack.cell).__name__} has no step_backward, and only JAX and PyTorch derive one: "
        f"write it to train on {type(like).__module__.partition('.')[0]} arrays (calling the layer "
        "without training works)"
    )


def run(
    loop: Loop, w: Weights, x: Array, state: Parts, ragged: Ragged | None, *, keep: bool
) -> tuple[Array, Sequence[Array], list[Chunk]]:
    """Run a cell over x in one direction, chunk by chunk; see `recurrence.run`."""
    steps, batch = x.shape[:2]
    size, chunks = chunk_size(loop.xp, steps, batch, keep=keep), list[Chunk]()
    first = state = copies(loop, state) if keep else state
    starts = range(0, steps, size)
    y = np.empty((steps, batch, loop.cell.output_size), x.dtype) if len(starts) > 1 else None
    for start in reversed(starts) if loop.reverse else starts:
        stop = min(start + size, steps)
        own = loop if ragged is None else loop._replace(valid=ragged.part(start, stop))
        part, state, tape = recurrence.run(own, w, x[start:stop, ...], state, keep=keep)
        if y is not None:
            y[start:stop, ...] = part
        if tape is not None:
            chunks.append(Chunk(start, stop, own, tape))
        new: Any = state
        if not isinstance(new, tuple) or len(new) != len(loop.cell.state):
            raise TypeError(
                f"{loop.cell}.step must return two tuples, the parts {loop.cell.state} of the new "
                "state and what it keeps: rnn_xp.testing.check_cell says more"
            )
    # A copy of what the backward run reads, or what is still the caller's: a cell may return a part
    # of the state as it was.
    if keep or not {*map(id, state)}.isdisjoint(map(id, first)):
        return part if y is None else y, copies(loop, state), chunks
    return part if y is None else y, state, chunks


def run_backward(
    w: Weights, chunks: list[Chunk], dy: Array, dstate: Parts
) -> tuple[Weights, Array, Sequence[Array]]:
    """Run a cell backward in one direction, chunk by chunk; see `recurrence.run_backward`."""
    xp, total, parts = chunks[0].loop.xp, dict[str, Array](), []
    for start, stop, loop, tape in reversed(chunks):
        made, part, dstate = recurrence.run_backward(loop, w, tape, dy[start:stop, ...], dstate)
        parts.append(part)
        for name, own in made.items():
            # 16 bits are too few to add many chunks in.
            own = widened(xp, own) if len(chunks) > 1 else own
            total[name] = total[name] + own if name in total else own
    dx = parts[0] if len(parts) == 1 else xp.concat(parts if loop.reverse else parts[::-1], axis=0)
    for name, a in w.items():
        found = tuple(total[name].shape) if name in total else "none"
        if found != tuple(a.shape):
            raise ValueError(
                f"{loop.cell}.gradients must return a gradient of {name} of the shape "
                f"{tuple(a.shape)}, got {found}: rnn_xp.testing.check_cell says more"
            )
    return {name: like_dtype(xp, total[name], a) for name, a in w.items()}, dx, dstate


def copies(loop: Loop, state: Parts) -> list[Array | None]:
    """Return copies of a state: what is kept for the backward run is not the caller's."""
    return [None if part is None else copy_of(loop.xp, part) for part in state]


def chunk_size(xp: Namespace, steps: int, batch: int, *, keep: bool) -> int:
    """Return the number of steps of a chunk."""
    return max(LEAST_STEPS, (ROWS if keep else ROWS // 4) // batch) if xp is np else steps
