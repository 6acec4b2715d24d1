"""JAX: the time loop as one `jax.lax.scan`, which compiles as fast for 1000 steps as for 10.

    forward:   W_ih x + b_ih for all steps, then a scan over `Cell.step`
    backward:  a scan over `Cell.step_backward`, then the gradients of the weights and of x by one
               product each

Each of the two is one compiled function of a cell and the shapes, kept for all later calls; inside
the caller's own `jax.jit`, `jax.vmap` or `jax.grad` it becomes a part of what is traced there. Of a
cell without a backward step JAX derives the gradient of the forward function.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from rnn_xp.backend import Array
from rnn_xp.cells.base import Cell, Weights
from rnn_xp.engines.base import ByLevel, Made, Parts, Run, Stack, of_direction, stacked, valid_of
from rnn_xp.recurrence import Loop, Tape, hold, input_product, rows, sums, zeroed


class Scan(ByLevel):
    """The engine for JAX arrays."""

    title, derives = "scan", True

    def run_level(self, how: Run, weights: Any, x: Array, state: Parts) -> Made:
        """Run the directions of one level; see `Engine`.

        With and without `keep` it is the same compiled function, with the same bits; inside a
        caller's `jax.jit`, what is not used afterwards is not computed.
        """
        stack, cell, valid = how.stack, how.stack.cell, valid_of(how.ragged)
        firsts = [full(cell, of_direction(state, d), x) for d in range(len(weights))]
        runs = [
            _run(cell, reverse, w, x, first, valid)
            for w, reverse, first in zip(weights, stack.reverse, firsts, strict=True)
        ]
        outputs, states, tapes = zip(*runs, strict=True)
        kept = tapes if cell.has_backward else [(x, first) for first in firsts]
        y = outputs[0] if len(runs) == 1 else jnp.concat(outputs, axis=2)
        return y, stacked(states), [(each, valid) for each in kept]

    def run_level_backward(
        self, stack: Stack, weights: Any, kept: Any, dy: Array, dstate: Parts
    ) -> Made:
        """Run the directions of one level backward; see `Engine`."""
        cell = stack.cell
        backward = _run_backward if cell.has_backward else _derived
        runs = []
        for d, (w, reverse) in enumerate(zip(weights, stack.reverse, strict=True)):
            own = dy[:, :, d * cell.output_size : (d + 1) * cell.output_size]
            last = full(cell, of_direction(dstate, d), dy)
            runs.append(backward(cell, reverse, w, *kept[d], own, last))
        gradients, dx, states = zip(*runs, strict=True)
        return list(gradients), sum(dx[1:], start=dx[0]), stacked(states)


def full(cell: Cell, state: Parts, like: Array) -> tuple[Array, ...]:
    """Return a state with zeros for None, so that both are one compiled function.

    Under `jax.shard_map` they are the devices' own, as `like` is.
    """
    return tuple(
        lax.full_like(like, 0, shape=(like.shape[1], size)) if part is None else part
        for size, part in zip(cell.state_sizes, state, strict=True)
    )


def _scan(
    cell: Cell, reverse: bool, w: Weights, x: Array, first: Any, valid: Array | None
) -> tuple[Array, Any, Tape]:
    x = zeroed(jnp, valid, x)

    def step(old: Any, now: Any) -> Any:
        a_t, valid_t = now
        new, kept = cell.step(jnp, w, a_t, old)
        new = new if valid_t is None else hold(jnp, valid_t, new, old)
        return new, (new[0], old[0], kept)

    inputs = (input_product(jnp, w, x), valid)
    last, (y, before, kept) = lax.scan(step, first, inputs, reverse=reverse)
    return zeroed(jnp, valid, y), last, Tape(x, before, kept)


def _scan_backward(
    cell: Cell, reverse: bool, w: Weights, tape: Tape, valid: Array | None, dy: Array, last: Any
) -> tuple[Weights, Array, Any]:
    def step(after: Any, now: Any) -> Any:
        dy_t, kept_t, valid_t = now
        after = (after[0] + dy_t, *after[1:])
        before, da = cell.step_backward(jnp, w, after, kept_t)
        return before if valid_t is None else hold(jnp, valid_t, before, after), da

    inputs = (zeroed(jnp, valid, dy), tape.kept, valid)
    first, da = lax.scan(step, last, inputs, reverse=not reverse)
    kept = tuple(rows(jnp, each) for each in tape.kept)
    gradients, dx = sums(Loop(cell, jnp, valid, reverse), w, tape.x, tape.before, kept, da)
    return gradients, dx, first


def _derive(
    cell: Cell, reverse: bool, w: Weights, start: Any, valid: Array | None, dy: Array, last: Any
) -> tuple[Weights, Array, Any]:
    def forward(w: Weights, x: Array, first: Any) -> Any:
        return _scan(cell, reverse, w, x, first, valid)[:2]

    _, pull = jax.vjp(forward, w, *start)
    made: tuple[Weights, Array, Any] = pull((dy, last))
    return made


# Compiled once for each cell (equal cells are one), direction and set of shapes.
_run = jax.jit(_scan, static_argnums=(0, 1))
_run_backward = jax.jit(_scan_backward, static_argnums=(0, 1))
_derived = jax.jit(_derive, static_argnums=(0, 1))
SCAN = Scan()
