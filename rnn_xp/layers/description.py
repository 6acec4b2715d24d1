"""Layers as plain values, as a saved model holds them, and back.

A cell of one's own is there by its name, `module:name`. Code that a file names is never imported:
who reads the file gives the cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np

from rnn_xp import cells
from rnn_xp.layers.base import Layer
from rnn_xp.layers.dense import Dropout, Embedding, Linear
from rnn_xp.layers.pool import Pool
from rnn_xp.layers.recurrent import GRU, LSTM, RNN, Factory, Recurrent

LAYERS: dict[str, Callable[..., Layer]] = {
    kind.__name__: kind for kind in (RNN, LSTM, GRU, Recurrent, Linear, Embedding, Dropout, Pool)
}
_PLAIN = (str, int, float, bool, type(None))


class UnknownCellError(ValueError):
    """A model has a cell that its reader was not given."""


def describe(layer: Layer) -> dict[str, Any]:
    """Return a layer as plain values; `build` makes the same layer of them.

    Raises
    ------
    TypeError
        If the layer is of a class that `build` does not know, or its cell has no name.
    """
    kind = type(layer).__name__
    if LAYERS.get(kind) is not type(layer):
        raise TypeError(
            f"{layer} cannot be saved: it is none of {', '.join(LAYERS)}; a cell of your own is "
            "saved as Recurrent(cell, ...)"
        )
    values = {each.name: getattr(layer, each.name) for each in fields(layer) if each.init}
    if isinstance(layer, Recurrent) and "cell" in values:
        values |= _name(values["cell"]) | {"probe": _probe(layer.equations)}
    return {"type": kind, **values}


def build(description: Mapping[str, Any], given: Iterable[Factory] = ()) -> Layer:
    """Make the layer that `describe` took apart.

    Parameters
    ----------
    description : from `describe`
    given : the cells that it may name, as `Recurrent` takes them; those of `rnn_xp.cells` are known

    Raises
    ------
    UnknownCellError
        If it names a cell that is not given.
    ValueError
        If the layer is of an unknown type, or has unknown or wrong arguments.
    """
    values = dict(description)
    kind = values.pop("type", None)
    if not isinstance(kind, str) or kind not in LAYERS:
        raise ValueError(f"unknown layer type {kind!r}")
    try:
        if kind != Recurrent.__name__:
            return LAYERS[kind](**values)
        name, probe = values["cell"], values.pop("probe", None)
        cell, options = _find(name, tuple(given)), values.pop("options", {})
        layer = Recurrent(**values | {"cell": partial(cell, **options) if options else cell})
        found = _probe(layer.equations)
        if probe and found and not np.allclose(found, probe, rtol=1e-6, atol=1e-9, equal_nan=True):
            raise UnknownCellError(
                f"the cell {name} gives other numbers than when the model was saved: its equations "
                "were changed, or it is another cell of that name"
            )
        return layer
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"wrong arguments for {kind}: {error}") from error


def _name(cell: Any) -> dict[str, Any]:
    """Return the name of a cell, and the options that it is made with."""
    options = {}
    if isinstance(cell, partial):
        if cell.args or not all(isinstance(value, _PLAIN) for value in cell.keywords.values()):
            raise TypeError(f"{cell} cannot be saved: expected plain values, given by name")
        cell, options = cell.func, dict(cell.keywords)
    name = getattr(cell, "__name__", "<none>")
    if not name.isidentifier():
        raise TypeError(f"the cell {cell!r} cannot be saved: expected a class or a named function")
    return {"cell": f"{cell.__module__}:{name}"} | ({"options": options} if options else {})


def _probe(cell: Any) -> list[float] | None:
    """Return a few numbers that a step of the cell gives; None where it does not run on NumPy."""

    def numbers(*shape: int) -> Any:
        return np.cos(1.7 * np.arange(math.prod(shape)) + len(shape)).reshape(shape)

    try:
        w = {name: numbers(*shape) for name, shape in cell.shapes(2, True).items()}
        a, state = numbers(2, cell.gates * cell.hidden_size), map(numbers, *_pairs(cell))
        new, _ = cell.step(np, w, a, tuple(state))
        return [float(np.sum(part * numbers(*part.shape))) for part in new]
    except Exception:  # any: it is the user's code, for another library maybe
        return None


def _pairs(cell: Any) -> tuple[list[int], list[int]]:
    return [2] * len(cell.state_sizes), list(cell.state_sizes)


def _find(name: str, given: tuple[Any, ...]) -> Factory:
    """Return the cell of that name, `module:name`: of those given the name alone may do."""
    module, _, own = name.rpartition(":")
    cell: Factory
    if module.startswith(cells.__name__) and own in cells.__all__:
        cell = getattr(cells, own)
        return cell
    bare = [each.func if isinstance(each, partial) else each for each in given]
    same = [each for each in bare if getattr(each, "__name__", None) == own]
    exact = [each for each in same if each.__module__ == module]
    if len(set(exact or same)) == 1:
        cell = (exact or same)[0]
        return cell
    what = "it is not given"
    if same:
        what = f"{len(same)} cells of that name are given, none of the module {module}"
    raise UnknownCellError(
        f"a layer has the cell {name}, and {what}: give the one, load(path, cells=[{own}]), or on "
        f"the command line --cell FILE.py:{own}"
    )
