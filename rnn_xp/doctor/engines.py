"""The engines that can run a layer on a backend: the core, and the one that the layer chooses."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from rnn_xp import recurrence
from rnn_xp.accelerate import engine
from rnn_xp.backend import Backend, Namespace
from rnn_xp.layers import GRU, LSTM, RNN, Recurrent
from rnn_xp.layers.recurrent import Params, Prepared

CORE = "core"


class _Core(Recurrent):
    """A layer that the core runs, whatever engine there is for its arrays."""

    def _fold(self, xp: Namespace, params: Params) -> Prepared:
        like = next(iter(params.values()))
        runs = tuple(recurrence.fold(self.cell, xp, w) for w in self._weights(params))
        return Prepared(self, like, recurrence, runs)


_CORES: dict[type[Recurrent], Any] = {
    kind: type(f"Core{kind.__name__}", (_Core, kind), {}) for kind in (RNN, LSTM, GRU)
}


class Run(NamedTuple):
    """A layer, and the name of the engine that runs it."""

    engine: str
    layer: Recurrent


def is_gpu(backend: Backend) -> bool:
    """Tell whether a backend is CuPy, whose kernels are CUDA's."""
    return backend.name == "cupy"


def on_core(layer: Recurrent) -> Recurrent:
    """Return the same layer, run by the core."""
    given = {field.name: getattr(layer, field.name) for field in fields(layer)}
    made: Recurrent = _CORES[type(layer)](**given)
    return made


def runs(layer: Recurrent, backend: Backend, dtype: str) -> list[Run]:
    """Return the layer on the core and, where there is another engine, on that."""
    core = Run(CORE, on_core(layer))
    try:
        chosen = engine(layer.cell, backend.asarray(np.zeros((1, 1)), dtype))
    except Exception:  # any: whatever it is, to run the layer raises it again
        return [core, Run("unknown", layer)]
    if chosen is recurrence:
        return [core]
    return [core, Run(_name(chosen), layer)]


def _name(chosen: Any) -> str:
    """Return an engine's name: that of its folder or module, or the instruction set's."""
    if hasattr(chosen, "threads"):
        return f"kernels {chosen.name}"
    module = getattr(chosen, "__name__", type(chosen).__module__)
    return str(module).split(".")[2]  # after rnn_xp.accelerate
