"""An embedding and the recurrent layer above it as one layer, whose first product is looked up.

With E (V, I) the embedding, the input of step t is x = E[k]: column k of Eᵀ. So

    W_ih x = (W_ih Eᵀ)[:, k]

and V products stand for T * B of them: the two are a layer of one-hot vectors with the weight
W = W_ih Eᵀ, (G*H, V). Column k of dW is the sum of da over the places where k stands, and

    dW_ih = dW E,    dE = dWᵀ W_ih

The compiled kernels for NumPy look W up; `benchmarks/train_text.py` shows what it is worth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from rnn_xp.backend import Array
from rnn_xp.engines import Ragged, Run, Stack, native
from rnn_xp.engines.around import product
from rnn_xp.layers.base import Params
from rnn_xp.layers.checks import (
    check_given,
    check_lengths,
    check_params,
    check_same_kind,
    check_state,
    use_once,
)
from rnn_xp.layers.dense import Embedding
from rnn_xp.layers.recurrent import Recurrent, State
from rnn_xp.random import Seed

LEAST = 8000
"""So many multiplications less, for each gate's unit, are worth the longer way there."""
_WEIGHTS = ("weight_ih_l0", "weight_ih_l0_reverse")


class OneHot(NamedTuple):
    """What stands for the vectors of an embedding: integers, checked."""

    indices: Array
    """(T, B), int64, one after the other"""


@dataclass(slots=True)
class Cache:
    """What `forward` keeps for one `backward`."""

    layer: Recurrent
    stack: Stack
    """Of one-hot vectors."""
    params: Params
    table: Array
    kernels: native.Native
    kept: Any
    shape: tuple[int, ...]
    """Of y."""
    used: bool = False


def pays(embedding: Any, above: Any, params: Params, x: Any) -> bool:
    """Tell whether the kernels can look these integers up for the layer above, and save work so.

    Parameters
    ----------
    above : the layer that reads the embedding's vectors, or None
    params : of the embedding
    x : the integers, (T, B)
    """
    table = params.get("weight")
    if not isinstance(embedding, Embedding) or not isinstance(above, Recurrent):
        return False
    if type(x) is not np.ndarray or x.ndim != 2:
        return False
    saved = (x.size - 4 * embedding.num_embeddings) * embedding.embedding_size
    if saved < LEAST or type(table) is not np.ndarray:
        return False
    if above.input_size != embedding.embedding_size:
        return False  # the layer itself says so
    return native.kernels_for(table, above.equations) is not None


def one_hot(embedding: Any, params: Params, x: Array) -> OneHot:
    """Return the integers x (T, B) as `forward` takes them.

    Raises
    ------
    TypeError, ValueError
        As `Embedding.forward`.
    """
    embedding.check(params, x)
    return OneHot(np.array(x, dtype=np.int64, order="C"))  # a copy: checked once, read again later


def forward(
    layer: Any,
    params: Params,
    table: Array,
    x: OneHot,
    state: State,
    *,
    lengths: Sequence[int] | Array | None,
    dropout_seed: Seed | None,
) -> tuple[Array, State, Cache]:
    """Run the layer over the rows of `table` (V, I) that x stands for; see `Recurrent.forward`."""
    check_params(layer, params)
    like = params["weight_ih_l0"]
    check_same_kind("x", table, like)
    kernels = native.kernels_for(table, layer.equations)
    assert kernels is not None, "it does not pay"
    stack, (steps, batch) = _of_one_hot(layer.stack, len(table)), x.indices.shape
    weights = {name: product(np, params[name], table.T) for name in _WEIGHTS if name in params}
    params = {**params, **weights}
    runs = layer.num_layers * layer.num_directions
    parts = check_state(layer.equations, "state", state, (runs, batch), like)
    ragged = None
    if lengths is not None:
        ragged = Ragged.of(check_lengths(lengths, steps, batch), steps, like)
    drop = layer.drop(dropout_seed)
    own = kernels.weights(stack, params)
    y, last, kept = kernels.run(Run(stack, ragged, drop, True), own, x.indices, parts)
    cache = Cache(layer, stack, params, table, kernels, kept, y.shape)
    return y, last[0] if len(last) == 1 else last, cache


def backward(
    layer: Any, params: Params, cache: Cache, dy: Array, dstate: State
) -> tuple[Params, Array, State]:
    """Return dparams, the gradient of the table, and dstate0; see `Recurrent.backward`."""
    check_params(layer, params)
    first, stack = params["weight_ih_l0"], cache.stack
    check_given("weight_ih_l0", first, tuple(first.shape), cache.table)
    check_given("dy", dy, cache.shape, cache.table)
    runs, batch = layer.num_layers * layer.num_directions, dy.shape[1]
    parts = check_state(layer.equations, "dstate", dstate, (runs, batch), cache.table)
    use_once(cache)
    weights = cache.kernels.weights(stack, cache.params)
    made, _, before = cache.kernels.run_backward(stack, weights, cache.kept, dy, parts)
    dparams, dtable = cache.kernels.named(stack, made), None
    for name in _WEIGHTS:
        if name in params:
            dw = dparams[name]
            dparams[name] = product(np, dw, cache.table)
            part = product(np, dw.T, params[name])
            dtable = part if dtable is None else dtable + part
    return dparams, dtable, before[0] if len(before) == 1 else before


@lru_cache(maxsize=16)
def _of_one_hot(stack: Stack, size: int) -> Stack:
    return replace(stack, input_size=size)
