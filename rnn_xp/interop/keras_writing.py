"""From our layers to Keras'; see `rnn_xp.interop.keras`."""

from __future__ import annotations

from typing import Any

import numpy as np

from rnn_xp.interop.keras_reading import RECURRENT, Arrays, gates
from rnn_xp.interop.tensors import HostArray, InteropError
from rnn_xp.layers import GRU, LSTM, RNN, Dropout, Embedding, Linear, Pool, Recurrent
from rnn_xp.layers.base import Layer
from rnn_xp.models import Chain

Options = dict[str, Any]
"""The dtype of a Keras layer, and its name; Keras chooses one where it is None."""


def made_chain(keras: Any, chain: Chain, arrays: Arrays, dtype: str) -> list[Any]:
    """Return the Keras layers of a Sequential under the chain's names."""
    made: list[Any] = []
    rest = list(chain.layers)
    while rest:
        name, layer = rest.pop(0)
        start = f"{name}."
        own = {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}
        follows = rest[0][1] if rest else None
        pooled = isinstance(layer, Recurrent) and follows == Pool("last", layer.bidirectional)
        if pooled:
            del rest[0]  # Keras' layer takes the last step by itself
        options = {"dtype": dtype, "name": name}
        made += made_of(keras, layer, own, options, sequences=not pooled)
    return made


def made_of(
    keras: Any, layer: Layer, arrays: Arrays, options: Options, *, sequences: bool = True
) -> list[Any]:
    """Return the Keras layers of one of ours, with these weights.

    `sequences` is the `return_sequences` of a recurrent one.
    """
    if isinstance(layer, RNN | LSTM | GRU):
        return _levels(keras, layer, arrays, options, sequences)
    if isinstance(layer, Linear):
        dense = keras.layers.Dense(layer.output_size, use_bias=layer.bias, **options)
        dense.build((None, layer.input_size))
        dense.set_weights([arrays["weight"].T, *([arrays["bias"]] if layer.bias else [])])
        return [dense]
    if isinstance(layer, Embedding):
        table = keras.layers.Embedding(layer.num_embeddings, layer.embedding_size, **options)
        table.build()
        table.set_weights([arrays["weight"]])
        return [table]
    if isinstance(layer, Dropout):
        return [keras.layers.Dropout(layer.rate, **options)]
    if isinstance(layer, Pool) and layer.kind == "mean":
        return [keras.layers.GlobalAveragePooling1D(**options)]
    raise InteropError(
        f"{layer} cannot be carried: Keras has one only behind a recurrent layer of as many "
        "directions"
    )


def _levels(
    keras: Any, layer: RNN | LSTM | GRU, arrays: Arrays, options: Options, sequences: bool
) -> list[Any]:
    """Return a Keras layer for each level, with Dropout between them if the layer has some."""
    made: list[Any] = []
    size, top = layer.input_size, layer.num_layers - 1
    for level in range(layer.num_layers):
        if level and layer.dropout:
            between = _ending(options, f"dropout{level - 1}")
            made.append(keras.layers.Dropout(layer.dropout, **between))
        own = _ending(options, f"l{level}") if top else options
        one = _bare(keras, layer, own, sequences or level < top)
        one.build((None, None, size))
        ends = ("", "_reverse")[: layer.num_directions]
        one.set_weights([w for end in ends for w in _weights(layer, arrays, f"_l{level}{end}")])
        made.append(one)
        size = layer.output_size
    return made


def _ending(options: Options, end: str) -> Options:
    name = options["name"]
    return options | {"name": name and f"{name}_{end}"}


def _bare(keras: Any, layer: RNN | LSTM | GRU, options: Options, sequences: bool) -> Any:
    """Return a Keras layer for one level, not built."""
    own: dict[str, Any] = {"use_bias": layer.bias, "return_sequences": sequences}
    own["recurrent_initializer"] = "glorot_uniform"  # orthogonal matrices need float32
    if isinstance(layer, RNN):
        own["activation"] = layer.nonlinearity
    elif isinstance(layer, GRU):
        own["reset_after"] = layer.reset_after
    elif layer.peephole or layer.proj_size:
        what = "peephole=True" if layer.peephole else f"proj_size={layer.proj_size}"
        raise InteropError(f"LSTM: {what} cannot be carried, Keras has none")
    make = next(getattr(keras.layers, n) for n, kind in RECURRENT.items() if type(layer) is kind)
    if not layer.bidirectional:
        return make(layer.hidden_size, **own, **options)
    inner = make(layer.hidden_size, dtype=options["dtype"], **own)
    return keras.layers.Bidirectional(inner, merge_mode="concat", **options)


def _weights(layer: Recurrent, arrays: Arrays, end: str) -> list[HostArray]:
    """Return the weights of one run in Keras' order."""
    kind = type(layer)
    weights = [gates(kind, arrays[f"weight_{part}{end}"].T) for part in ("ih", "hh")]
    if layer.bias:
        b_ih, b_hh = (gates(kind, arrays[f"bias_{part}{end}"]) for part in ("ih", "hh"))
        separate = isinstance(layer, GRU) and layer.reset_after
        weights.append(np.stack((b_ih, b_hh)) if separate else b_ih + b_hh)
    return weights
