"""From Keras' layers to ours; see `rnn_xp.interop.keras`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from rnn_xp.backend import host_of
from rnn_xp.interop.tensors import HostArray, InteropError
from rnn_xp.layers import GRU, LSTM, RNN, Dropout, Embedding, Linear, Pool, Recurrent
from rnn_xp.layers.base import Layer
from rnn_xp.models import Chain

Arrays = dict[str, HostArray]

RECURRENT: dict[str, type[RNN] | type[LSTM] | type[GRU]] = {
    "SimpleRNN": RNN,
    "LSTM": LSTM,
    "GRU": GRU,
}


def gates(kind: type[Recurrent], values: HostArray) -> HostArray:
    """Put the gates in the last axis in the other side's order; twice is as it was."""
    if kind is not GRU:
        return values
    blocks = values.reshape(*values.shape[:-1], 3, -1)
    return blocks[..., (1, 0, 2), :].reshape(values.shape)


class _Run(NamedTuple):
    """A recurrent layer of Keras, of one direction, in our terms."""

    kind: type[RNN] | type[LSTM] | type[GRU]
    hidden_size: int
    options: dict[str, Any]
    weights: Arrays


def _expect(name: str, config: Mapping[str, Any], **expected: Any) -> None:
    """Raise unless each option in `config` has one of the values that can be carried."""
    for option, values in expected.items():
        if config[option] not in values:
            raise InteropError(
                f"Keras layer {name!r}: {option}={config[option]!r} cannot be carried, expected "
                f"{' or '.join(map(repr, values))}"
            )


def _unknown(keras: Any, layer: Any, expected: str) -> InteropError:
    if not isinstance(layer, keras.layers.Layer):
        return InteropError(f"{layer!r} is no Keras layer: expected {expected}")
    kind = type(layer).__name__
    return InteropError(f"Keras layer {layer.name!r} is of the kind {kind}: expected {expected}")


def _host_weights(layer: Any, most: int = 3) -> list[HostArray]:
    if not layer.weights:
        raise InteropError(f"Keras layer {layer.name!r} has no weights yet: build it, or call it")
    if len(layer.weights) > most:
        names = ", ".join(weight.name for weight in layer.weights)
        raise InteropError(
            f"Keras layer {layer.name!r} has the weights {names}: those of LoRA or of quantisation "
            "cannot be carried, merge them before"
        )
    return [host_of(weight.value) for weight in layer.weights]


def _run_of(keras: Any, layer: Any, *, backward: bool = False) -> _Run:
    """Read a SimpleRNN, LSTM or GRU."""
    name = type(layer).__name__
    kind = RECURRENT.get(name)
    if kind is None or type(layer) is not getattr(keras.layers, name):
        raise _unknown(keras, layer, "SimpleRNN, LSTM, GRU or a Bidirectional of one")
    config = layer.get_config()
    activations = ("tanh", "relu") if kind is RNN else ("tanh",)
    _expect(layer.name, config, activation=activations, go_backwards=(backward,), stateful=(False,))
    # Works in training alone; `layer.cell.dropout = 0.0` carries the weights of a trained one.
    _expect(layer.name, config, dropout=(0.0,), recurrent_dropout=(0.0,))
    options: dict[str, Any] = {"bias": config["use_bias"]}
    if kind is RNN:
        options["nonlinearity"] = config["activation"]
    else:
        _expect(layer.name, config, recurrent_activation=("sigmoid",))
    if kind is GRU:
        options["reset_after"] = config["reset_after"]
    kernel, recurrent, *bias = (gates(kind, array) for array in _host_weights(layer))
    weights = {"weight_ih": kernel.T, "weight_hh": recurrent.T}
    if bias:
        two = bias[0] if bias[0].ndim == 2 else (bias[0], np.zeros_like(bias[0]))
        weights |= dict(zip(("bias_ih", "bias_hh"), two, strict=True))
    return _Run(kind, config["units"], options, weights)


def _level_of(keras: Any, layer: Any) -> tuple[_Run, ...]:
    """Read a recurrent layer of one direction, or of two."""
    if type(layer) is not keras.layers.Bidirectional:
        return (_run_of(keras, layer),)
    _expect(layer.name, {"merge_mode": layer.merge_mode}, merge_mode=("concat",))
    forward = _run_of(keras, layer.forward_layer)
    backward = _run_of(keras, layer.backward_layer, backward=True)
    if forward[:3] != backward[:3]:
        raise InteropError(
            f"Keras layer {layer.name!r}: its two directions differ in kind, units or options"
        )
    return forward, backward


def stack_of(keras: Any, layers: Sequence[Any]) -> tuple[Recurrent, Arrays]:
    """Make one recurrent layer of Keras layers that feed each other."""
    if not layers:
        raise InteropError("expected at least one Keras layer, got an empty list")
    levels = [_level_of(keras, layer) for layer in layers]
    first = levels[0][0]
    for (below, under), (above, level) in pairwise(zip(layers, levels, strict=True)):
        if len(level) != len(under) or level[0][:3] != under[0][:3]:
            raise InteropError(
                f"Keras layer {above.name!r} differs from the one before in kind, directions, "
                "units or options: the levels of one layer are alike; a Sequential may have both"
            )
        if not below.return_sequences:
            raise InteropError(
                f"Keras layer {below.name!r}: return_sequences=False, but a layer follows"
            )
    made = first.kind(
        first.weights["weight_ih"].shape[1],
        first.hidden_size,
        len(levels),
        bidirectional=len(levels[0]) == 2,
        **first.options,
    )
    arrays = {
        f"{name}_l{k}{end}": array
        for k, level in enumerate(levels)
        for run, end in zip(level, ("", "_reverse"), strict=False)
        for name, array in run.weights.items()
    }
    return made, {name: arrays[name] for name in made.shapes}


def layer_of(keras: Any, layer: Any) -> tuple[Layer, Arrays]:
    """Make a layer of one of Keras' layers."""
    layers, kind = keras.layers, type(layer)
    if kind is layers.Dense:
        _expect(layer.name, layer.get_config(), activation=("linear",))
        kernel, *bias = _host_weights(layer, 1 + layer.use_bias)
        arrays = {"weight": kernel.T} | dict(zip(("bias",), bias, strict=False))
        return Linear(*kernel.shape, bias=bool(bias)), arrays
    if kind is layers.Embedding:
        (table,) = _host_weights(layer, 1)
        return Embedding(*table.shape), {"weight": table}
    if kind is layers.Dropout:
        _expect(layer.name, layer.get_config(), noise_shape=(None,))
        return Dropout(layer.rate), {}
    if kind is layers.GlobalAveragePooling1D:
        expected = {"data_format": ("channels_last",), "keepdims": (False,)}
        _expect(layer.name, layer.get_config(), **expected)
        return Pool("mean"), {}
    if kind is layers.Bidirectional or kind.__name__ in RECURRENT:
        return stack_of(keras, [layer])
    kinds = ", ".join((*RECURRENT, "Bidirectional", "Dense", "Embedding", "Dropout"))
    raise _unknown(keras, layer, f"{kinds} or GlobalAveragePooling1D")


def chain_of(keras: Any, sources: Sequence[Any]) -> tuple[Chain, Arrays]:
    """Make a Chain of the layers of a Sequential."""
    entries: list[tuple[str, Layer]] = []
    arrays: Arrays = {}
    for source in sources:
        if type(source) is keras.layers.Masking:
            continue  # what it finds are the `lengths` of the call
        layer, own = layer_of(keras, source)
        entries.append((source.name, layer))
        arrays |= {f"{source.name}.{name}": array for name, array in own.items()}
        if isinstance(layer, Recurrent) and not source.return_sequences:
            entries.append((f"{source.name}_last", Pool("last", layer.bidirectional)))
    return Chain(tuple(entries)), arrays
