"""The engines: what runs a whole layer, each for one array library, and the choice between them.

The core, in `plain`, runs everywhere. Each of the others is here because a benchmark shows that it
pays, and a test ties it to the core.
"""

from __future__ import annotations

import numpy as np

from rnn_xp.backend import Array, array_namespace, is_library, known_namespace
from rnn_xp.cells.base import Cell
from rnn_xp.engines import heap, native
from rnn_xp.engines.base import Attempt, Drop, Engine, Parts, Ragged, Run, Stack
from rnn_xp.engines.plain import PLAIN

__all__ = ["PLAIN", "Attempt", "Drop", "Engine", "Parts", "Ragged", "Run", "Stack", "engine"]

heap.widen()


def engine(cell: Cell, like: Array) -> Engine:
    """Return the engine for a cell whose weights are arrays like `like`."""
    if type(like) is np.ndarray:
        return native.kernels_for(like, cell) or PLAIN
    xp = known_namespace(like) or array_namespace(like=like)
    # Each of these imports its library, which the caller has imported already.
    if is_library(xp, "jax"):
        from rnn_xp.engines.scan import SCAN

        return SCAN
    if is_library(xp, "torch"):
        from rnn_xp.engines.tensors import TENSORS

        return TENSORS
    if is_library(xp, "cupy"):
        from rnn_xp.engines.cuda import engine as cuda

        return cuda.choose()
    return PLAIN
