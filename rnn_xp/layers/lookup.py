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
from typing import Any

import numpy as np

from rnn_xp.accelerate import engine, product
from rnn_xp.accelerate.native import Native, OneHot
from rnn_xp.backend import Array, operations
from rnn_xp.layers import recurrent
from rnn_xp.layers.checks import check_given, check_params, check_same_kind
from rnn_xp.layers.dense import Embedding
from rnn_xp.layers.recurrent import Params, Recurrent, State
from rnn_xp.random import Seed

__all__ = ["Cache", "OneHot", "backward", "forward", "one_hot", "pays"]

OPS = operations(np)
LEAST = 8000
"""So many multiplications less, for each gate's unit, are worth the longer way there."""
_WEIGHTS = ("weight_ih_l0", "weight_ih_l0_reverse")


@dataclass(slots=True)
class Cache:
    """What `forward` keeps for one `backward`."""

    layer: Recurrent
    """Of one-hot vectors."""
    params: Params
    table: Array
    kept: recurrent.Cache


def pays(embedding: Embedding, above: Any, params: Params, x: Any) -> bool:
    """Tell whether the kernels can look these integers up for the layer above, and save work so.

    Parameters
    ----------
    above : the layer that reads the embedding's vectors, or None
    params : of the embedding
    x : the integers, (T, B)
    """
    table = params.get("weight")
    if not isinstance(above, Recurrent) or type(x) is not np.ndarray or x.ndim != 2:
        return False
    saved = (x.size - 4 * embedding.num_embeddings) * embedding.embedding_size
    if saved < LEAST or type(table) is not np.ndarray:
        return False
    if above.input_size != embedding.embedding_size:
        return False  # the layer itself says so
    return isinstance(engine(above.cell, table), Native)


def one_hot(embedding: Embedding, params: Params, x: Array) -> OneHot:
    """Return the integers x (T, B) as `forward` takes them.

    Raises
    ------
    TypeError, ValueError
        As `Embedding.forward`.
    """
    embedding.check(params, x)
    indices = np.array(x, dtype=np.int64, order="C")  # a copy: checked once, read again later
    return OneHot(indices, embedding.num_embeddings, params["weight"].dtype)


def forward(
    layer: Recurrent,
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
    check_same_kind("x", table, params["weight_ih_l0"])
    joined = _of_one_hot(layer, len(table))
    weights = {name: product(OPS, params[name], table.T) for name in _WEIGHTS if name in params}
    params = {**params, **weights}
    y, state, kept = joined.forward(params, x, state, lengths=lengths, dropout_seed=dropout_seed)
    return y, state, Cache(joined, params, table, kept)


def backward(
    layer: Recurrent, params: Params, cache: Cache, dy: Array, dstate: State
) -> tuple[Params, Array, State]:
    """Return dparams, the gradient of the table, and dstate0; see `Recurrent.backward`."""
    check_params(layer, params)
    first = params["weight_ih_l0"]
    check_given("weight_ih_l0", first, tuple(first.shape), cache.kept.like)
    dparams, _, dstate = cache.layer.backward(cache.params, cache.kept, dy, dstate)
    dtable = None
    for name in _WEIGHTS:
        if name in params:
            dw = dparams[name]
            dparams[name] = product(OPS, dw, cache.table)
            part = product(OPS, dw.T, params[name])
            dtable = part if dtable is None else dtable + part
    return dparams, dtable, dstate


@lru_cache(maxsize=16)
def _of_one_hot(layer: Recurrent, size: int) -> Recurrent:
    return replace(layer, input_size=size)
