"""Whether the kernels of all steps can be trusted on a device: short runs beside those of a step.

That the blocks wait for each other is what only a device with its driver shows: so each cell's
kernel is tried there before its first run, and not used if that goes wrong.
"""

from __future__ import annotations

import warnings
from math import inf
from typing import Any

import numpy as np

from rnn_xp.backend import Array, Namespace, to_floats
from rnn_xp.cells.base import Cell
from rnn_xp.cells.elman import ReluElman
from rnn_xp.engines.base import Ragged, valid_of
from rnn_xp.engines.cuda.fused import Fused
from rnn_xp.engines.cuda.persistent import Persistent
from rnn_xp.errors import named_line
from rnn_xp.recurrence import Loop


class TrialWarning(RuntimeWarning):
    """A kernel went wrong when it was tried, and is not used."""


MOST = {"float16": 2e-2, "bfloat16": 1e-1, "float32": 1e-4}
"""The largest error that counts as rounding, relative to the largest element of its array."""
_STEPS, _BATCH, _INPUTS, _HIDDEN = 12, 5, 3, 70
_FEW = 20, 1600
"""Multiprocessors and bytes of shared memory: so little that blocks wait for each other."""


def passes(tried: Persistent, known: Fused, cell: Cell, dtype: Any, xp: Namespace) -> bool:
    """Tell whether two engines agree about a small network of a cell; warn if they do not."""
    try:
        small: Any = type(cell)(_HIDDEN)
        expected = _results(known, small, dtype, xp)
        few = tried.on(*_FEW)
        fits = few.costs(small, dtype, _BATCH)[0] < inf
        found = [_results(each, small, dtype, xp) for each in (tried, few)[: 1 + fits]]
        pairs = [pair for each in found for pair in zip(each, expected, strict=True)]
        if dtype.itemsize == 2 and isinstance(cell, ReluElman):
            # Where relu's slope jumps, a rounding lands on the other side: no gradients.
            pairs = [pair for pair in pairs if pair[0].shape == (_STEPS, _BATCH, _HIDDEN)]
        errors = to_floats([_error(xp, *pair) for pair in pairs])
        most = MOST[dtype.name]
        wrong = next((f"off by {error:.2g}" for error in errors if not error <= most), "")
    except Exception as error:  # any: the driver's, the compiler's
        wrong = named_line(error)
    if wrong:
        warnings.warn(
            f"the {dtype} CUDA kernel of all steps of {type(cell).__name__} goes wrong on this "
            f"device, and is not used: {wrong} (rnn-xp doctor --json report.json writes what an "
            "issue needs)",
            TrialWarning,
            stacklevel=2,
        )
    return not wrong


def _error(xp: Namespace, found: Array, expected: Array) -> Array:
    return xp.max(xp.abs(found - expected)) / xp.max(xp.abs(expected))


def _results(engine: Fused, cell: Cell, dtype: Any, xp: Namespace) -> list[Array]:
    """Return what two small runs give: ragged and backward, with gradients, and plain inference."""
    hidden = cell.hidden_size

    def numbers(*shape: int, scale: float = 1.0) -> Array:
        """Return numbers without a generator: the same ones everywhere."""
        host = scale * np.cos(1.7 * np.arange(np.prod(shape)) + len(shape))
        return xp.asarray(host.reshape(shape).astype(dtype))

    weights = {
        name: numbers(*shape, scale=0.2) for name, shape in cell.shapes(_INPUTS, True).items()
    }
    x, dy = numbers(_STEPS, _BATCH, _INPUTS), numbers(_STEPS, _BATCH, hidden)
    state = [numbers(_BATCH, hidden) for _ in cell.state]
    ragged = Ragged.of(np.arange(_STEPS - _BATCH, _STEPS) + 1, _STEPS, x)
    loop, plain = Loop(cell, xp, valid_of(ragged), True), Loop(cell, xp, None, False)
    y, last, kept = engine.run(loop, weights, x, state, keep=True)
    assert kept is not None
    gradients, dx, first = engine.run_backward(loop, weights, kept, dy, state)
    inferred, end, _ = engine.run(plain, weights, x, [None] * len(state), keep=False)
    return [y, *last, *gradients.values(), dx, *first, inferred, *end]
