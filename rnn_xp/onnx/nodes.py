"""From a node of ONNX to a step that runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from rnn_xp.backend import Array, Backend
from rnn_xp.onnx.errors import OnnxError, import_onnx, naming
from rnn_xp.onnx.operators import OPERATORS
from rnn_xp.onnx.recurrent import ATTRIBUTES, RecurrentNode

Proto = Any
"""A message of ONNX: ModelProto, NodeProto, ..."""

_KNOWN = {name: (operator.since, operator.attributes) for name, operator in OPERATORS.items()}
_KNOWN |= {
    "RNN": (7, ATTRIBUTES),
    "LSTM": (7, (*ATTRIBUTES, "input_forget")),
    "GRU": (7, (*ATTRIBUTES, "linear_before_reset")),
}


class Step(NamedTuple):
    """One node, ready to run."""

    label: str
    call: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, values: dict[str, Array]) -> None:
        """Compute the outputs from `values`, and add them to it."""
        with naming(self.label):
            made = self.call(*(values[name] if name else None for name in self.inputs))
        if not isinstance(made, tuple):
            made = (made,)
        values.update(zip(self.outputs, made, strict=False))


def compile_node(node: Proto, opset: int, backend: Backend) -> Step:
    """Return the step of a node.

    Raises
    ------
    OnnxError
        If the operator, its version, an attribute or its value is not supported.
    """
    kind = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    label = f"{kind} node {node.name or next(filter(None, node.output), '')!r}"
    if node.domain not in ("", "ai.onnx") or node.op_type not in _KNOWN:
        raise OnnxError(f"{label}: the operator {kind} is not supported")
    since, known = _KNOWN[node.op_type]
    if opset < since:
        raise OnnxError(
            f"{label}: {kind} of opset {opset} is not supported, only that of {since} and later"
        )
    attributes = {a.name: _value(a) for a in node.attribute}
    for name in attributes:
        if name not in known:
            raise OnnxError(f"{label}: the attribute {name} of {kind} is not supported")
    call: Callable[..., Any]
    if node.op_type in OPERATORS:
        call = partial(OPERATORS[node.op_type].compute, backend, attributes)
    else:
        with naming(label):
            call = RecurrentNode(node.op_type, attributes, backend)
    return Step(label, call, tuple(node.input), tuple(node.output))


def _value(attribute: Proto) -> Any:
    onnx = import_onnx()
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    if attribute.name == "to":  # of Cast
        return onnx.helper.tensor_dtype_to_np_dtype(value).name
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [text.decode() for text in value]
    return value
