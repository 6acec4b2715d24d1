"""A graph of ONNX while it is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rnn_xp.onnx.errors import import_onnx
from rnn_xp.onnx.nodes import Proto

HostArray = np.ndarray[Any, Any]
Shape = tuple[str | int, ...]

OPSET = 17
IR_VERSION = 8  # read by onnxruntime 1.12 and later, as is the opset


class Value(NamedTuple):
    """A value of the graph: its name, and its shape with names for the free dimensions."""

    name: str
    shape: Shape


class Graph:
    """Collects the parts of a graph."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self._onnx = import_onnx()
        self._nodes: list[Proto] = []
        self._constants: dict[str, HostArray] = {}
        self._inputs: list[Proto] = []
        self._outputs: list[Proto] = []
        self._count = 0

    def constant(self, name: str, array: HostArray) -> str:
        """Add an array."""
        self._constants[name] = np.asarray(array, order="C")
        return name

    def scalar(self, value: int | float, dtype: str = "int64") -> str:
        """Add a number."""
        return self.constant(f"{dtype}_{value}", np.asarray(value, dtype))

    def integers(self, *values: int) -> str:
        """Add a vector of integers."""
        return self.constant("_".join(("vector", *map(str, values))), np.asarray(values, np.int64))

    def input(self, name: str, dtype: str, shape: Shape) -> Value:
        """Add an input of the graph."""
        self._inputs.append(self._info(name, dtype, shape))
        return Value(name, shape)

    def output(self, name: str, value: Value) -> None:
        """Add an output of the graph, equal to `value`."""
        self.node("Identity", [value.name], [name])
        self._outputs.append(self._info(name, self.dtype, value.shape))

    def _info(self, name: str, dtype: str, shape: Shape) -> Proto:
        return self._onnx.helper.make_tensor_value_info(name, self.element_type(dtype), shape)

    def element_type(self, dtype: str) -> int:
        """Return ONNX's number for a dtype."""
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def names(self, kind: str, count: int) -> list[str]:
        """Return names for values that no one asks for by name."""
        self._count += 1
        return [f"{kind.lower()}_{self._count}" + f"_{k}" * (count > 1) for k in range(count)]

    def node(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attributes: Any
    ) -> str:
        """Add a node; return the name of its first output."""
        outputs = outputs or self.names(kind, 1)
        node = self._onnx.helper.make_node(kind, inputs, outputs, name=outputs[0], **attributes)
        self._nodes.append(node)
        return outputs[0]

    def model(self) -> Proto:
        """Return the whole model, checked."""
        helper, to_proto = self._onnx.helper, self._onnx.numpy_helper.from_array
        tensors = [to_proto(array, name) for name, array in self._constants.items()]
        graph = helper.make_graph(self._nodes, "rnn_xp", self._inputs, self._outputs, tensors)
        opset = helper.make_opsetid("", OPSET)
        model = helper.make_model(
            graph, producer_name="rnn_xp", opset_imports=[opset], ir_version=IR_VERSION
        )
        self._onnx.checker.check_model(model, full_check=True)
        return model
