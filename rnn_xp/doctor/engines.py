"""The engines that can run a layer on a backend: the core, and the one that the layer chooses."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from rnn_xp.accelerate import CORE, Engine, OneByOne, engine, one_by_one
from rnn_xp.accelerate.cuda.engine import Cuda
from rnn_xp.accelerate.cuda.wave import Wave
from rnn_xp.backend import Backend, operations
from rnn_xp.layers import Recurrent

NAME_OF_CORE = "core"


class Run(NamedTuple):
    """A layer, and the name of the engine that runs it."""

    engine: str
    layer: Recurrent


def is_gpu(backend: Backend) -> bool:
    """Tell whether a backend is CuPy, whose kernels are CUDA's."""
    return backend.name == "cupy"


def run_by(layer: Recurrent, chosen: Engine) -> Recurrent:
    """Return the same layer, run by an engine whatever it would choose."""
    kind = type(layer)
    given = {field.name: getattr(layer, field.name) for field in fields(layer)}
    always = {"_engine": lambda *_: chosen}
    made: Recurrent = type(kind.__name__, (kind,), always)(**given)
    return made


def on_core(layer: Recurrent) -> Recurrent:
    """Return the same layer, run by the core."""
    return run_by(layer, CORE)


def runs(layer: Recurrent, backend: Backend, dtype: str, shape: tuple[int, int]) -> list[Run]:
    """Return the layer on every engine that can run (T, B), the core first."""
    try:
        like = backend.asarray(np.zeros((1, 1)), dtype)
        chosen = engine(layer.cell, like)
        if isinstance(chosen, Cuda):
            ops, size = operations(backend.xp), (layer.num_directions, layer.num_layers)
            engines = chosen.able(layer.cell, like.dtype, shape, ops, *size)
        else:
            engines = [CORE] if chosen == CORE else [CORE, chosen]
    except Exception:  # any: whatever it is, to run the layer raises it again
        return [Run(NAME_OF_CORE, on_core(layer)), Run("unknown", layer)]
    return [Run(_name(each), run_by(layer, each)) for each in engines]


def why_not_persistent(layer: Recurrent, backend: Backend, dtype: str, batch: int) -> str:
    """Return in one line why a layer's steps do not run in one kernel of CuPy; empty if they do."""
    try:
        like = backend.asarray(np.zeros((1, 1)), dtype)
        chosen = engine(layer.cell, like)
        if not isinstance(chosen, Cuda):
            return "the kernels are switched off"
        return chosen.why_not(layer.cell, like.dtype, batch, operations(backend.xp))
    except Exception:  # any: whatever it is, to run the layer raises it again
        return ""


def _name(chosen: Any) -> str:
    """Return an engine's name: that of its module or class, or the instruction set's."""
    if chosen == CORE:
        return NAME_OF_CORE
    if hasattr(chosen, "threads"):
        return f"kernels {chosen.name}"
    if not isinstance(chosen, OneByOne):
        return str(chosen.__name__).rpartition(".")[2]  # a module
    each = chosen.each
    name: str = getattr(each, "__name__", type(each).__name__.lower())
    at_once = " wave" if isinstance(chosen, Wave) else " pair"
    return name.rpartition(".")[2] + ("" if chosen.places is one_by_one else at_once)
