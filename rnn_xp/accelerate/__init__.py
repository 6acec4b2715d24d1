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
from rnn_xp.recurrence import Loop


class Engine(Protocol):
    """What runs a cell over time; arguments and results are those of `recurrence`."""

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


def engine(cell: Cell, like: Array) -> Engine:
    """Return the engine for a cell whose weights are arrays like `like`."""
    if type(like) is np.ndarray:
        chosen = native.choose()
        if isinstance(chosen, native.Native) and chosen.takes(like, cell):
            return chosen
        return recurrence
    # Each of these two imports its library, which the caller has imported already.
    name = array_namespace(like=like).__name__
    if name == "jax.numpy":
        from rnn_xp.accelerate import scan

        return scan
    if name.endswith("torch"):
        from rnn_xp.accelerate import tensors

        return tensors
    if name.endswith("cupy"):
        from rnn_xp.accelerate.cuda import engine as cuda

        return cuda.choose()
    return recurrence


def product(ops: Operations, a: Array, b: Array, bias: Array | None = None) -> Array:
    """Return a b + bias for two matrices of one dtype, as a new array.

    On NumPy with the compiled kernels, whose threads would otherwise wait for those of NumPy's own
    product: these spin for a while after each.
    """
    if ops.xp is np and 0 not in a.shape and 0 not in b.shape:
        chosen = native.choose()
        if isinstance(chosen, native.Native) and chosen.takes(a):
            return chosen.product(a, b, bias)
    y = a @ b
    return y if bias is None else ops.add(y, bias, out=y)
