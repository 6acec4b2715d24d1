"""Write a model and its parameters as one ONNX file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rnn_xp.backend import Array, dtype_name, to_numpy
from rnn_xp.files import replace_file
from rnn_xp.layers import GRU, LSTM, RNN, Dropout, Embedding, Linear, Pool
from rnn_xp.layers.base import Layer
from rnn_xp.layers.checks import check_params
from rnn_xp.layers.recurrent import Recurrent
from rnn_xp.models import Chain
from rnn_xp.onnx.errors import OnnxError, import_onnx
from rnn_xp.onnx.graph import Graph, HostArray, Value
from rnn_xp.onnx.nodes import Proto
from rnn_xp.onnx.recurrent import PEEPHOLES, TO_ONNX, reorder

Weights = Mapping[str, HostArray]
_LARGEST = 2**31 - 2**20
"""Bytes of parameters: a message of protobuf has less than 2 GiB, and the graph takes some."""


def export(
    model: Chain | Layer,
    params: Mapping[str, Array],
    path: str | os.PathLike[str],
    *,
    lengths: bool = False,
    states: bool = False,
    softmax: bool = False,
) -> Proto:
    """Write a model and its parameters to one ONNX file, replaced as a whole or not at all.

    The graph computes `y` from `x`, as `model(params, x)`, for any number of steps T and
    sequences B, in the parameters' dtype; dropout is left out. onnxruntime runs it in float32;
    it has no recurrent operators in float64.

    Parameters
    ----------
    model : Chain, or one layer
    params : dict of arrays
        float16, float32 or float64.
    path : path-like
    lengths : bool
        Whether there is an input `lengths` (B,), int32 in 1..T.
    states : bool
        Whether the states of each recurrent layer are inputs `<layer>.h0` (and `.c0`) and
        outputs `<layer>.hn` (and `.cn`), (L*D, B, H); of a layer alone, `h0`, `hn`, ...
    softmax : bool
        Whether y are probabilities: a softmax over its last axis.

    Returns
    -------
    ModelProto
        What was written.

    Raises
    ------
    OnnxError
        If ONNX cannot express the model: an LSTM with a projection, or another dtype; or if the
        parameters have 2 GiB or more.
    ValueError
        If the parameters do not fit the model.
    OSError
        If the file cannot be written; an old file is left as it was.
    ImportError
        If the package onnx is not installed.
    """
    import_onnx()
    if not model.shapes:
        raise OnnxError("a model without parameters cannot be written to ONNX")
    check_params(model, params)
    dtype = dtype_name(next(iter(params.values())).dtype)
    if dtype not in ("float16", "float32", "float64"):
        raise OnnxError(f"params must be float16, float32 or float64 for ONNX, got {dtype}")
    size = np.dtype(dtype).itemsize * sum(map(math.prod, model.shapes.values()))
    if size > _LARGEST:
        raise OnnxError(
            f"params have {size:,} bytes, and an ONNX file holds less than {_LARGEST:,}"
        )
    writer = _Writer(dtype, lengths=lengths, states=states)
    layers = model.layers if isinstance(model, Chain) else (("", model),)
    x = writer.start(next(layer for _, layer in layers if layer.shapes))
    for name, layer in layers:
        prefix = f"{name}." if name else ""
        own = {k: to_numpy(params[prefix + k]) for k in layer.shapes}
        x = writer.layer(prefix, layer, own, x)
    if softmax:
        x = Value(writer.graph.node("Softmax", [x.name], axis=-1), x.shape)
    proto = writer.finish(x)
    replace_file(Path(path), proto.SerializeToString())
    return proto


class _Writer:
    """Writes one layer after the other; each method takes and returns the value in between."""

    def __init__(self, dtype: str, *, lengths: bool, states: bool) -> None:
        self.graph = Graph(dtype)
        self.states = states
        self.has_lengths = lengths
        self.lengths = ""
        self.last: dict[str, Value] = {}

    def start(self, first: Layer) -> Value:
        """Add the inputs x, as the first layer with parameters takes it, and lengths."""
        if isinstance(first, Recurrent | Linear):
            x = self.graph.input("x", self.graph.dtype, ("T", "B", first.input_size))
        else:  # an embedding
            x = self.graph.input("x", "int64", ("T", "B"))
        if self.has_lengths:
            self.lengths = self.graph.input("lengths", "int32", ("B",)).name
        return x

    def finish(self, y: Value) -> Proto:
        """Add the outputs, y first; return the model."""
        for name, value in {"y": y, **self.last}.items():
            self.graph.output(name, value)
        return self.graph.model()

    def layer(self, prefix: str, layer: Layer, params: Weights, x: Value) -> Value:
        """Add a layer."""
        if isinstance(layer, Recurrent):
            return self._recurrent(prefix, layer, params, x)
        if isinstance(layer, Embedding):
            weight = self.graph.constant(f"{prefix}weight", params["weight"])
            name = self.graph.node("Gather", [weight, x.name])
            return Value(name, (*x.shape, layer.embedding_size))
        if isinstance(layer, Linear):
            return self._linear(prefix, layer, params, x)
        if isinstance(layer, Pool):
            name = self._mean(x) if layer.kind == "mean" else self._last(layer, x)
            return Value(name, x.shape[1:])
        if isinstance(layer, Dropout):
            return x
        raise OnnxError(f"{_shown(prefix)} is a {type(layer).__name__}, which ONNX has no node for")

    def _linear(self, prefix: str, layer: Linear, params: Weights, x: Value) -> Value:
        graph = self.graph
        weight = graph.constant(f"{prefix}weight", params["weight"].T)
        name = graph.node("MatMul", [x.name, weight])
        if layer.bias:
            name = graph.node("Add", [name, graph.constant(f"{prefix}bias", params["bias"])])
        return Value(name, (*x.shape[:-1], layer.output_size))

    # Recurrent layers: one node for each level

    def _recurrent(self, prefix: str, layer: Recurrent, params: Weights, x: Value) -> Value:
        graph, directions = self.graph, layer.num_directions
        operator, attributes = _operator_of(prefix, layer)
        if layer.bidirectional:
            attributes["direction"] = "bidirectional"
        before = [self._initial(prefix, layer, part) for part in layer.equations.state]
        after: list[list[str]] = [[] for _ in before]
        name = x.name
        for level in range(layer.num_layers):
            weights, biases, peepholes = self._weights(prefix, layer, operator, params, level)
            made = graph.names(operator, 1 + len(before))
            states = [names[level] for names in before]
            inputs = [name, *weights, biases, self.lengths, *states, *peepholes]
            graph.node(operator, inputs, made, hidden_size=layer.hidden_size, **attributes)
            for names, last in zip(after, made[1:], strict=True):
                names.append(last)
            # (T, D, B, H) to (T, B, D*H)
            name = graph.node("Transpose", [made[0]], perm=[0, 2, 1, 3])
            flat = graph.integers(0, 0, directions * layer.hidden_size)
            name = graph.node("Reshape", [name, flat])
        if self.states:
            for part, names in zip(layer.equations.state, after, strict=True):
                whole = names[0] if len(names) == 1 else graph.node("Concat", names, axis=0)
                self.last[f"{prefix}{part}n"] = Value(whole, _state_shape(layer))
        return Value(name, (*x.shape[:-1], layer.output_size))

    def _initial(self, prefix: str, layer: Recurrent, part: str) -> list[str]:
        """Add a part of the initial state; return its name for each level, "" for none."""
        graph, levels = self.graph, layer.num_layers
        if not self.states:
            return [""] * levels
        whole = graph.input(f"{prefix}{part}0", graph.dtype, _state_shape(layer)).name
        if levels == 1:
            return [whole]
        names = graph.names("Split", levels)
        graph.node("Split", [whole, graph.integers(*[layer.num_directions] * levels)], names)
        return names

    def _weights(
        self, prefix: str, layer: Recurrent, operator: str, params: Weights, level: int
    ) -> tuple[list[str], str, list[str]]:
        """Add W, R, B and P of one level, the directions stacked; return their names."""
        ends = [f"_l{level}{end}" for end in ("", "_reverse")[: layer.num_directions]]

        def stacked(name: str, order: Sequence[int] = TO_ONNX[operator]) -> HostArray:
            return np.stack([reorder(np, params[name + end], order) for end in ends])

        def add(name: str, array: HostArray) -> str:
            return self.graph.constant(f"{prefix}{name}_l{level}", array)

        weights = [add("W", stacked("weight_ih")), add("R", stacked("weight_hh"))]
        biases, peepholes = "", []
        if layer.bias:
            both = (stacked("bias_ih"), stacked("bias_hh"))
            biases = add("B", np.concatenate(both, axis=1))
        if isinstance(layer, LSTM) and layer.peephole:
            peephole = stacked("weight_peephole", PEEPHOLES)
            peepholes = [add("P", peephole.reshape(len(ends), -1))]
        return weights, biases, peepholes

    # Pooling

    def _mean(self, x: Value) -> str:
        """Add the mean over the valid steps."""
        graph = self.graph
        if not self.lengths:
            return graph.node("ReduceMean", [x.name], axes=[0], keepdims=0)
        count = graph.node("Cast", [self.lengths], to=graph.element_type(graph.dtype))
        count = graph.node("Unsqueeze", [count, graph.integers(1)])
        return graph.node("Div", [self._sum_where("Less", x.name, self.lengths), count])

    def _last(self, layer: Pool, x: Value) -> str:
        """Add the last valid step; of the second half of a bidirectional layer, the first."""
        graph, size = self.graph, int(x.shape[-1])
        if not layer.bidirectional:
            return self._last_step(x.name)
        halves = graph.names("Split", 2)
        sizes = graph.integers(size // 2, size - size // 2)
        graph.node("Split", [x.name, sizes], halves, axis=2)
        first = graph.node("Gather", [halves[1], graph.scalar(0)])
        return graph.node("Concat", [self._last_step(halves[0]), first], axis=1)

    def _last_step(self, x: str) -> str:
        """Add x at each sequence's last step: (T, B, F) to (B, F)."""
        graph = self.graph
        if not self.lengths:
            return graph.node("Gather", [x, graph.scalar(-1)])
        last = graph.node("Sub", [self.lengths, graph.scalar(1, "int32")])
        return self._sum_where("Equal", x, last)

    def _sum_where(self, comparison: str, x: str, ends: str) -> str:
        """Add the sum of x over the steps t whose comparison with `ends` (B,) holds: (B, F)."""
        graph = self.graph
        zero, one = graph.scalar(0), graph.scalar(1)
        steps = graph.node("Gather", [graph.node("Shape", [x]), zero])
        time = graph.node("Range", [zero, steps, one])
        time = graph.node("Unsqueeze", [time, graph.integers(1)])
        ends = graph.node("Cast", [ends], to=graph.element_type("int64"))
        mask = graph.node(comparison, [time, ends])
        mask = graph.node("Unsqueeze", [mask, graph.integers(2)])
        kept = graph.node("Where", [mask, x, graph.scalar(0, graph.dtype)])
        return graph.node("ReduceSum", [kept, graph.integers(0)], keepdims=0)


def _state_shape(layer: Recurrent) -> tuple[str | int, ...]:
    return (layer.num_layers * layer.num_directions, "B", layer.hidden_size)


def _operator_of(prefix: str, layer: Recurrent) -> tuple[str, dict[str, Any]]:
    """Return the operator of a layer, and the attributes that are not the default."""
    if isinstance(layer, RNN):
        return "RNN", {"activations": [layer.nonlinearity.capitalize()] * layer.num_directions}
    if isinstance(layer, GRU):
        return "GRU", {"linear_before_reset": int(layer.reset_after)}
    if isinstance(layer, LSTM) and not layer.proj_size:
        return "LSTM", {}
    size = getattr(layer, "proj_size", 0)
    what = f"has proj_size={size}" if size else f"is of the cell {type(layer.equations).__name__}"
    raise OnnxError(f"{_shown(prefix)} {what}, which ONNX has no node for")


def _shown(prefix: str) -> str:
    return f"the layer {prefix.rstrip('.')}" if prefix else "the layer"
