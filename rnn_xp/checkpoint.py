"""Saving and loading: one safetensors file, replaced as a whole or not at all.

    tensors   <parameter>                       the parameters, under PyTorch's names
              training.<...>                    optional: what training needs to go on
    metadata  format, model, vocabulary, task, training, bfloat16   JSON, as strings

bfloat16, which NumPy lacks, is written as float32, and `bfloat16` lists the tensors that were so.

A reader that knows nothing of this package finds the parameters by their names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from rnn_xp.backend import Array, Backend, dtype_name, host_of, select
from rnn_xp.errors import first_line
from rnn_xp.files import replace_file
from rnn_xp.layers.base import Layer
from rnn_xp.layers.description import UnknownCellError, build, describe
from rnn_xp.layers.recurrent import Factory
from rnn_xp.models import Chain

if TYPE_CHECKING:
    from rnn_xp.captioner import Captioner

FORMAT = "rnn_xp 1"
_TRAINING = "training."
_INTEGERS = (f"{kind}{bits}" for kind in "IU" for bits in (8, 16, 32, 64))
_READABLE = frozenset(("BOOL", "BF16", "F16", "F32", "F64", "C64", *_INTEGERS))
"""The format's dtypes that NumPy has, and bfloat16."""


class CheckpointError(ValueError):
    """A file is no usable checkpoint: one line with the file and the reason."""


class Checkpoint(NamedTuple):
    """What `load` returns."""

    model: Any
    """A `Chain`, a `Captioner` or a layer: as it was saved."""
    params: dict[str, Array]
    vocabulary: str | None
    """The characters, in the order of their numbers."""
    training: dict[str, Any]
    """The plain values given to `save`."""
    tensors: dict[str, Array]
    """The arrays given to `save` beside the parameters."""
    task: dict[str, Any]
    """What the model is for: its `kind`, and the plain values that its use needs."""


def save(
    path: str | os.PathLike[str],
    model: Chain | Captioner | Layer,
    params: Mapping[str, Array],
    *,
    vocabulary: str | None = None,
    task: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Array] | None = None,
) -> None:
    """Write a model to one safetensors file.

    The file is written under another name in the same folder, flushed to the disk and renamed: a
    reader, or a crash, finds the old file or the new one, never a part.

    Parameters
    ----------
    path : path-like
    model : Chain, Captioner, or one layer
    params : dict of arrays
    vocabulary : str, optional
        The characters, in the order of their numbers.
    task : dict, optional
        Plain values that the model's use needs, `kind` among them.
    training, tensors : dicts, optional
        Plain values and arrays with which training goes on.

    Raises
    ------
    ValueError
        If the parameters do not fit the model, or one's name begins with `training.`.
    TypeError
        If the model has a layer that `load` would not know, or a cell without a name.
    OSError
        If the file cannot be written; an old file is left as it was.
    """
    from safetensors.numpy import save as to_bytes

    for name in params:
        if name.startswith(_TRAINING):
            raise ValueError(
                f"the parameter {name} must not begin with {_TRAINING}: rename its layer"
            )
    given = {**params, **{_TRAINING + name: value for name, value in (tensors or {}).items()}}
    arrays = {name: host_of(value) for name, value in given.items()}
    problem = misfit(model.shapes, {name: arrays[name] for name in params})
    if problem:
        raise ValueError(f"params do not fit the model: {problem}")
    metadata = {"format": FORMAT, "model": json.dumps(_describe(model))}
    if vocabulary is not None:
        metadata["vocabulary"] = json.dumps(vocabulary)
    if task is not None:
        metadata["task"] = json.dumps(dict(task))
    if training is not None:
        metadata["training"] = json.dumps(dict(training))
    narrow = [name for name, value in given.items() if dtype_name(value.dtype) == "bfloat16"]
    if narrow:
        metadata["bfloat16"] = json.dumps(narrow)
    replace_file(Path(path), to_bytes(arrays, metadata))


def load(
    path: str | os.PathLike[str],
    *,
    backend: str = "numpy",
    device: str | None = None,
    dtype: Any = None,
    cells: Iterable[Factory] = (),
) -> Checkpoint:
    """Read what `save` wrote.

    Parameters
    ----------
    path : path-like
    backend, device : str
        Where the arrays shall lie; as in `backend.select`.
    dtype : str, optional
        Cast the parameters; without it they stay as they were saved, but bfloat16 is float32 on
        a backend without it.
    cells : cells of your own, as `Recurrent` takes them
        Those that the model has. The file names them; code that it names is never imported.

    Raises
    ------
    CheckpointError
        If the file is truncated, no safetensors file, of another program or format version, has a
        cell that is not given, or its tensors do not fit its model.
    OSError
        If the file cannot be read.
    TypeError
        If `cells` are no cells.
    """
    given = () if callable(cells) else tuple(cells or ())
    if callable(cells) or not all(map(callable, given)):
        raise TypeError(f"cells must be a list of Cell classes, got {cells!r}")
    arrays, metadata = read_tensors(path)
    found = metadata.get("format")
    if found != FORMAT:
        what = f"the format {found!r}" if found else "no rnn_xp model description"
        raise CheckpointError(f"{path} has {what}: expected the format {FORMAT!r}")
    try:
        model = _build(json.loads(metadata["model"]), given)
        vocabulary = json.loads(metadata.get("vocabulary", "null"))
        task = json.loads(metadata.get("task", "{}"))
        training = json.loads(metadata.get("training", "{}"))
        narrow = json.loads(metadata.get("bfloat16", "[]"))
    except UnknownCellError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise CheckpointError(f"{path} has a damaged model description ({error})") from error
    for name, value, kind in (
        ("vocabulary", vocabulary, str | None),
        ("task", task, dict),
        ("training", training, dict),
        ("bfloat16", narrow, list),
    ):
        if not isinstance(value, kind):
            raise CheckpointError(f"{path} has a damaged description: {name} is {value!r:.40}")
    params = {name: a for name, a in arrays.items() if not name.startswith(_TRAINING)}
    problem = misfit(model.shapes, params)
    if problem:
        raise CheckpointError(f"{path} does not fit its own model description: {problem}")
    chosen = select(backend, device)
    if narrow and not _has_bfloat16(chosen):
        narrow = []

    def placed(name: str, dtype: str | None) -> Array:
        return chosen.asarray(arrays[name], dtype or ("bfloat16" if name in narrow else None))

    return Checkpoint(
        model,
        {name: placed(name, dtype) for name in model.shapes},
        vocabulary,
        training,
        {
            name.removeprefix(_TRAINING): placed(name, None)
            for name in arrays
            if name.startswith(_TRAINING)
        },
        task,
    )


def _has_bfloat16(backend: Backend) -> bool:
    try:
        backend.dtype("bfloat16")
    except ValueError:
        return False
    return True


def read_tensors(
    path: str | os.PathLike[str], start: str = ""
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str]]:
    """Return the tensors whose names begin with `start`, and the metadata, of a safetensors file.

    bfloat16, which NumPy lacks, is widened to float32: every value is the same.

    Raises
    ------
    CheckpointError
        If the file is truncated or no safetensors file, or NumPy lacks the dtype of a tensor.
    OSError
        If it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    with open(path, "rb"):  # OSError with the system's own reason
        pass
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    try:
        with safe_open(os.fspath(path), framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                if not name.startswith(start):
                    continue
                dtype = file.get_slice(name).get_dtype()
                if dtype not in _READABLE:
                    raise CheckpointError(f"{path}: {name} has dtype {dtype}, which NumPy lacks")
                if dtype == "BF16":
                    arrays[name] = _bfloat16(path, name)
                else:
                    arrays[name] = file.get_tensor(name)
            return arrays, file.metadata() or {}
    except CheckpointError:
        raise
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{path} is not a safetensors file, or is truncated ({first_line(error)})"
        ) from error


def _bfloat16(path: str | os.PathLike[str], name: str) -> np.ndarray[Any, Any]:
    """Read one bfloat16 tensor as float32: its bits are the upper half of float32's."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
        start, stop = entry["data_offsets"]
        file.seek(8 + size + start)
        halves = np.frombuffer(file.read(stop - start), dtype="<u2")
    return (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])


def _describe(model: Chain | Captioner | Layer) -> Any:
    """Return a model as plain values: a list of a chain's layers, else a dict with its type."""
    return {"name": "", **describe(model)} if isinstance(model, Layer) else model.describe()


def _build(description: Any, given: tuple[Factory, ...]) -> Chain | Captioner | Layer:
    """Make the model that `_describe` took apart."""
    if isinstance(description, list):
        return Chain.build(description, given)
    if description.get("type") == "Captioner":
        from rnn_xp.captioner import Captioner  # a few ms that `import rnn_xp` does without

        return Captioner.build(description, given)
    return build({k: v for k, v in description.items() if k != "name"}, given)


def misfit(
    shapes: Mapping[str, tuple[int, ...]], params: Mapping[str, np.ndarray[Any, Any]]
) -> str | None:
    """Say in a few words how the parameters differ from `shapes`; None if they fit."""
    for name, shape in shapes.items():
        if name not in params:
            return f"the tensor {name} is missing"
        if params[name].shape != shape:
            return f"{name} has shape {params[name].shape}, expected {shape}"
        if dtype_name(params[name].dtype) not in ("float16", "float32", "float64"):
            return f"{name} has dtype {params[name].dtype}, expected a floating-point one"
    for name in params:
        if name not in shapes:
            return f"the tensor {name} is not expected"
    return None
