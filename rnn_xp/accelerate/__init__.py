"""Faster ways to run a recurrence, for one array library each, and the choice between them.

An engine does what the functions of `recurrence` do, and gives the same results; `recurrence` is
itself the engine that runs everywhere. Each of the others is here because a benchmark shows that it
pays, and a test ties it to the core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from rnn_xp import recurrence
from rnn_xp.accelerate import native
from rnn_xp.backend import Array, Namespace, Operations, array_namespace
from rnn_xp.cells.base import Cell, Weights
from rnn_xp.recurrence import Ragged


class Engine(Protocol):
    """What runs a cell over time; arguments and results are those of `recurrence`."""

    def fold(self, cell: Cell, xp: Namespace, weights: Weights) -> Any:
        """Arrange the weights for `run`."""

    def run(
        self,
        cell: Cell,
        ops: Operations,
        w: Any,
        x: Array,
        state: Sequence[Array | None],
        ragged: Ragged | None,
        *,
        reverse: bool,
        keep: bool,
    ) -> tuple[Array, Sequence[Array], Any]:
        """Return y, the state, and what `run_backward` takes as `chunks`."""

    def run_backward(
        self,
        cell: Cell,
        ops: Operations,
        weights: Weights,
        chunks: Any,
        dy: Array,
        dstate: Sequence[Array | None],
        ragged: Ragged | None,
        *,
        reverse: bool,
    ) -> tuple[Weights, Array, Sequence[Array]]:
        """Return the gradients of the weights, of x and of the initial state."""


def engine(cell: Cell, like: Array) -> Engine:
    """Return the engine for a cell whose weights are arrays like `like`."""
    if type(like) is np.ndarray:
        chosen = native.choose()
        if isinstance(chosen, native.Native) and chosen.takes(cell, like):
            return chosen
    elif array_namespace(like=like).__name__ == "jax.numpy":
        from rnn_xp.accelerate import scan  # imports JAX, which the caller has imported already

        return scan
    return recurrence
