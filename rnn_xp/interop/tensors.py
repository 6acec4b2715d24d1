"""Named tensors, from a file or another tool, as the parameters of a layer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rnn_xp.backend import Array, select
from rnn_xp.checkpoint import CheckpointError, misfit, read_tensors
from rnn_xp.layers.checks import HasShapes

HostArray = np.ndarray[Any, Any]
Params = dict[str, Array]


class InteropError(ValueError):
    """A layer cannot be carried from one tool to another: one line with the layer and why."""


def read_safetensors(
    path: str | os.PathLike[str],
    layer: HasShapes,
    prefix: str = "",
    *,
    backend: str = "numpy",
    device: str | None = None,
    dtype: str | None = None,
) -> Params:
    """Read a layer's parameters from a safetensors file that PyTorch's `state_dict` went into.

    Neither PyTorch nor any other tool needs to be installed.

    Parameters
    ----------
    path : path-like
    layer : a layer, or a Chain
        What the tensors are for: the file has no description of it. What shapes do not tell (the
        nonlinearity of an `RNN`, say) must be the same as on the other side.
    prefix : str
        Where the layer stands in the model that was saved, as in `named_modules()`: with
        `encoder.lstm`, the tensor `encoder.lstm.weight_ih_l0` is the layer's `weight_ih_l0`, and
        tensors of other names are left alone. Empty: the file must have the layer's tensors alone.
    backend, device : str
        Where the arrays shall lie; as in `backend.select`.
    dtype : str, optional
        Cast the parameters. Without it they stay as they are in the file, float16 too, but
        bfloat16, which NumPy lacks, is widened to float32: every value is the same.

    Raises
    ------
    CheckpointError
        If the file is truncated or no safetensors file; if a tensor is missing, not expected, or
        of another shape than the layer's, or not floating-point.
    OSError
        If it cannot be read.
    """
    tensors, _ = read_tensors(path, start_of(prefix))
    named, problem = select_tensors(layer.shapes, tensors, prefix)
    if problem:
        raise CheckpointError(f"{path} does not fit the {type(layer).__name__}: {problem}")
    return place(named, backend, device, dtype)


def select_tensors(
    shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, HostArray], prefix: str
) -> tuple[dict[str, HostArray], str | None]:
    """Return the tensors under `prefix` by their names in `shapes`, and why they do not fit."""
    start = start_of(prefix)
    own = {name: value for name, value in tensors.items() if name.startswith(start)}
    problem = misfit({start + name: shape for name, shape in shapes.items()}, own)
    return {} if problem else {name: own[start + name] for name in shapes}, problem


def start_of(prefix: str) -> str:
    """Return what the names of a layer's tensors start with."""
    return f"{prefix.removesuffix('.')}." if prefix else ""


def place(
    arrays: Mapping[str, HostArray], backend: str, device: str | None, dtype: str | None
) -> Params:
    """Copy host arrays to a backend."""
    chosen = select(backend, device)
    return {name: chosen.asarray(np.array(array), dtype) for name, array in arrays.items()}
