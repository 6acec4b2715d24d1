"""Looking inside: the value of every hidden unit after every character of a text.

Some units of a character model follow a thing that a reader knows: the inside of a quotation, the
length of a line, the depth of brackets (A. Karpathy, J. Johnson, L. Fei-Fei, "Visualizing and
Understanding Recurrent Networks", ICLR 2016 workshop).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from rnn_xp.backend import Array, Backend, to_numpy
from rnn_xp.layers import Recurrent
from rnn_xp.models import Chain, Params
from rnn_xp.text import Codes, TextError, Vocabulary

HostArray = np.ndarray[Any, Any]


class Place(NamedTuple):
    """One level of one recurrent layer."""

    layer: str
    level: int
    """From 0, as in the names of the parameters: `weight_hh_l0`."""

    def __str__(self) -> str:
        return f"{self.layer}/{self.level}"


def places(model: Chain) -> list[Place]:
    """Return every level of every recurrent layer, in the order in which they run."""
    found: list[tuple[str, Any]] = [each for each in model.layers if each[1].has_state]
    return [Place(name, level) for name, layer in found for level in range(layer.num_layers)]


def find_place(model: Chain, name: str | None = None) -> Place:
    """Return the place called `layer/level`; without a name, the last one.

    Raises
    ------
    ValueError
        If there is no such place, or no recurrent layer at all.
    """
    found = {str(place): place for place in places(model)}
    if not found:
        raise ValueError("the model has no recurrent layer")
    if name is None:
        return list(found.values())[-1]
    if name not in found:
        raise ValueError(f"the model has no level {name!r}: its levels are {', '.join(found)}")
    return found[name]


def split(model: Chain, name: str) -> tuple[Chain, Recurrent, Chain]:
    """Return what stands before a recurrent layer, the layer, and what stands after it."""
    layer: Any
    for k, (other, layer) in enumerate(model.layers):
        if other == name and layer.has_state:
            return Chain(model.layers[:k]), layer, Chain(model.layers[k + 1 :])
    raise ValueError(f"the model has no recurrent layer {name!r}")


def part_of(params: Params, part: Chain) -> Params:
    """Return the parameters of a part of the model."""
    return {name: params[name] for name in part.shapes}


def hidden_units(
    model: Chain,
    params: Params,
    backend: Backend,
    codes: Codes,
    *,
    place: Place | None = None,
    state: str = "h",
) -> HostArray:
    """Return the value of every unit of one level after every character.

    The layers before the recurrent one run as in the model. Of the recurrent layer, whose output is
    that of its last level, the levels up to the one asked for run as a layer of their own; for c,
    which is no output, the text is read one character at a time.

    Parameters
    ----------
    model, params, backend
        As from a checkpoint.
    codes : integers (T,), T >= 1
    place : Place, optional
        Where to look; the last level without it.
    state : str
        `h`, or `c`, the cell state of an LSTM.

    Returns
    -------
    (T, H), on the host
        Of a bidirectional layer (T, 2H): the units that run forward, then those that run backward.

    Raises
    ------
    ValueError
        If there is no character, no such place, or no such state there.
    """
    if not len(codes):
        raise TextError("not enough text: no character is left to look at")
    layer_name, level = find_place(model) if place is None else place
    before, layer, _ = split(model, layer_name)
    levels = replace(layer, num_layers=level + 1)
    own = {name: params[f"{layer_name}.{name}"] for name in levels.shapes}
    x, _ = before(part_of(params, before), backend.asarray(codes[:, None]))
    if state == "c":
        return _cell_states(levels, own, x)
    if state != "h":
        raise ValueError(f"state must be 'h' or 'c', got {state!r}")
    y, _ = levels(own, x)
    return to_numpy(y[:, 0, :])


def _cell_states(layer: Recurrent, params: Params, x: Array) -> HostArray:
    """Return c of the last level (T, H) after every step of x (T, 1, I)."""
    parts = layer.equations.state
    if "c" not in parts:
        name = type(layer.equations if type(layer) is Recurrent else layer).__name__
        raise ValueError(f"a {name} has no cell state c: only an LSTM has one")
    if layer.bidirectional:
        raise ValueError("c is shown of layers of one direction only, and this one has two")
    prepared, state, values = layer.prepare(params), None, []
    for t in range(x.shape[0]):
        _, state = layer(prepared, x[t : t + 1, ...], state)
        values.append(to_numpy(state[parts.index("c")][-1, 0, :]))
    return np.stack(values)


def most_varied(values: HostArray, count: int) -> list[int]:
    """Return the numbers of the `count` units whose value (T, H) varies most, the first first.

    Variance over the text; of equal ones, the lower number.
    """
    order = np.argsort(-values.astype(np.float64).var(axis=0), kind="stable")
    return [int(unit) for unit in order[:count]]


def check_units(units: list[int], size: int) -> list[int]:
    """Return the units.

    Raises
    ------
    ValueError
        If one is not in 0..size-1.
    """
    for unit in units:
        if not 0 <= unit < size:
            raise ValueError(f"there is no unit {unit}: this level has the units 0 to {size - 1}")
    return units


class Reading(NamedTuple):
    """What a reader sees of a text, and where."""

    characters: list[str]
    """N of them."""
    steps: list[int]
    """The step (N,) of 0..T-1 after which the model has read each character as a whole."""


def readable(vocabulary: Vocabulary, codes: Codes) -> Reading:
    """Return the characters of a text as the model read it.

    To a model of bytes a character may be several steps; its step is that of its last byte. Bytes
    that are no UTF-8 are U+FFFD, one for as many as make no character.
    """
    characters: list[str] = []
    steps: list[int] = []
    for step, piece in enumerate(vocabulary.decode(codes.tolist())):
        characters.extend(piece)
        steps.extend([step] * len(piece))
    # A broken beginning comes together with the byte that breaks it, or after the last one.
    after = len(codes)
    for k in reversed(range(len(steps))):
        steps[k] = after = min(steps[k], after - 1)
    return Reading(characters, steps)
