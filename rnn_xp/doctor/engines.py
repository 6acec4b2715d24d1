"""The engines that can run a layer on a backend: the core, and the one that the layer chooses."""

from __future__ import annotations

from dataclasses import fields
from typing import NamedTuple

import numpy as np

from rnn_xp.backend import Backend
from rnn_xp.engines import PLAIN, Engine, engine
from rnn_xp.layers import Recurrent

NAME_OF_CORE = PLAIN.title


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
    given = {each.name: getattr(layer, each.name) for each in fields(layer) if each.init}
    always = {"_engine": lambda *_: chosen}
    made: Recurrent = type(kind.__name__, (kind,), always)(**given)
    return made


def on_core(layer: Recurrent) -> Recurrent:
    """Return the same layer, run by the core."""
    return run_by(layer, PLAIN)


def runs(layer: Recurrent, backend: Backend, dtype: str, shape: tuple[int, int]) -> list[Run]:
    """Return the layer on every engine that can run (T, B), the core first."""
    try:
        like = backend.asarray(np.zeros((1, 1)), dtype)
        chosen = engine(layer.equations, like)
        size = backend.xp, layer.num_directions, layer.num_layers
        able = chosen.able(layer.equations, like.dtype, shape, *size)
        engines = [PLAIN, *(each for each in able if each is not PLAIN)]
    except Exception:  # any: whatever it is, to run the layer raises it again
        return [Run(NAME_OF_CORE, on_core(layer)), Run("unknown", layer)]
    return [Run(each.title, run_by(layer, each)) for each in engines]


def why_not_persistent(layer: Recurrent, backend: Backend, dtype: str, batch: int) -> str:
    """Return in one line why a layer's steps do not run in one kernel of CuPy; empty if they do."""
    try:
        like = backend.asarray(np.zeros((1, 1)), dtype)
        chosen = engine(layer.equations, like)
        return chosen.why_not(layer.equations, like.dtype, batch, backend.xp)
    except Exception:  # any: whatever it is, to run the layer raises it again
        return ""
