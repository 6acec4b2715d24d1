"""The interface of `onnx.backend.base`: prepare, run_model, run_node, supports_device."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rnn_xp.backend import Backend, BackendError, select, to_numpy
from rnn_xp.errors import first_line
from rnn_xp.onnx.errors import OnnxError, import_onnx, naming
from rnn_xp.onnx.nodes import Proto, Step, compile_node
from rnn_xp.onnx.recurrent import RecurrentNode

HostArray = np.ndarray[Any, Any]
Outputs = Any
"""A named tuple of NumPy arrays: items by position, by attribute, or by name in brackets."""


def supports_device(device: str) -> bool:
    """Tell whether `prepare` can use a device: `CPU`, `CUDA` or `CUDA:<n>`."""
    try:
        _backend(device)
    except (OnnxError, BackendError):
        return False
    return True


def _backend(device: str) -> Backend:
    kind, _, index = device.upper().partition(":")
    if kind == "CPU" and not index:
        return select("numpy")
    if kind == "CUDA" and (index or "0").isdigit():
        return select("auto", f"cuda:{index or 0}")
    raise OnnxError(f"device must be 'CPU', 'CUDA' or 'CUDA:<n>', got {device!r}")


def prepare(
    model: Proto | str | os.PathLike[str], device: str = "CPU", **kwargs: Any
) -> PreparedModel:
    """Read a model, and fold its weights once for many runs.

    Parameters
    ----------
    model : ModelProto, or the path of an ONNX file
    device : str
        `CPU`: NumPy. `CUDA` or `CUDA:<n>`: CuPy, or what `RNN_XP_BACKEND` names.
    **kwargs
        Ignored, as the interface has it.

    Raises
    ------
    OnnxError
        If the file is missing or not ONNX, the model is not valid, or a node has an operator, an
        attribute or a value that is not supported.
    BackendError
        If the device cannot be used.
    ImportError
        If the package onnx is not installed.
    """
    backend = _backend(device)
    onnx = import_onnx()
    source = "the model"
    if isinstance(model, str | os.PathLike):
        source = os.fspath(model)
        model = _read(source)
    elif not isinstance(model, onnx.ModelProto):
        raise OnnxError(f"model must be a ModelProto or a path, got {type(model).__name__}")
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise OnnxError(f"{source} is not a valid ONNX model: {first_line(error)}") from error
    with naming(source):
        return PreparedModel(model, backend)


def _read(path: str) -> Proto:
    from google.protobuf.message import DecodeError

    onnx = import_onnx()
    try:
        return onnx.load(path)
    except (OSError, onnx.checker.ValidationError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise OnnxError(f"{path} cannot be read: {reason}") from error
    except (DecodeError, ValueError) as error:
        raise OnnxError(
            f"{path} is not an ONNX file, or is truncated: {first_line(error)}"
        ) from error


def run_model(
    model: Proto | str | os.PathLike[str], inputs: Any, device: str = "CPU", **kwargs: Any
) -> Outputs:
    """Run a model once: `prepare(model, device).run(inputs)`."""
    return prepare(model, device, **kwargs).run(inputs)


def run_node(
    node: Proto,
    inputs: Any,
    device: str = "CPU",
    outputs_info: Any = None,
    *,
    opset_version: int | None = None,
    **kwargs: Any,
) -> Outputs:
    """Run one node.

    Parameters
    ----------
    node : NodeProto
    inputs : list of arrays, or dict by name
        One for each of the node's inputs, or for each whose name is not empty.
    device : str
        As in `prepare`.
    outputs_info
        Not needed: shapes follow from the inputs.
    opset_version : int, optional
        The version of ONNX's operators; the newest that the package onnx knows when left out.
    **kwargs
        Ignored, as the interface has it.

    Returns
    -------
    named tuple of NumPy arrays
        The outputs whose names are not empty; items by position, attribute or name.

    Raises
    ------
    OnnxError
        If the operator, an attribute or an input is wrong or not supported.
    """
    backend = _backend(device)
    onnx = import_onnx()
    opset = opset_version or onnx.defs.onnx_opset_version()
    step = compile_node(node, opset, backend)
    try:
        onnx.backend.base.Backend.run_node(node, inputs, device, opset_version=opset)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise OnnxError(f"{step.label} is not valid: {first_line(error)}") from error
    names = [name for name in step.inputs if name]
    if isinstance(inputs, Sequence) and len(inputs) == len(step.inputs):
        inputs = [a for name, a in zip(step.inputs, inputs, strict=True) if name]
    values = {
        name: backend.asarray(np.asarray(a))
        for name, a in _by_name(step.label, names, inputs).items()
    }
    with backend.scope():
        step(values)
    outputs = [name for name in step.outputs if name]
    return _named_tuple(outputs)(*(to_numpy(values[name]) for name in outputs))


class PreparedModel:
    """A model that is ready to run: what `prepare` returns, a `BackendRep` of the interface.

    Attributes
    ----------
    inputs, outputs : list of str
        The names of the graph's inputs without its initializers, and of its outputs.
    """

    def __init__(self, model: Proto, backend: Backend) -> None:
        graph = model.graph
        if graph.sparse_initializer:
            raise OnnxError("sparse initializers are not supported")
        to_array = import_onnx().numpy_helper.to_array
        self._backend = backend
        self._constants = {t.name: backend.asarray(to_array(t)) for t in graph.initializer}
        self._inputs = [_Input(v) for v in graph.input if v.name not in self._constants]
        self.inputs = [wanted.name for wanted in self._inputs]
        self.outputs = [value.name for value in graph.output]
        self._make_outputs = _named_tuple(self.outputs)
        opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
        steps = [compile_node(node, opset, backend) for node in graph.node]
        with backend.scope():
            self._steps = [step for step in steps if not self._is_constant(step)]

    def _is_constant(self, step: Step) -> bool:
        """Run a step that depends on constants alone; of another one fold the weights."""
        if all(name in self._constants for name in step.inputs if name):
            step(self._constants)
            return True
        if isinstance(step.call, RecurrentNode):
            with naming(step.label):
                step.call.prepare(step.inputs, self._constants)
        return False

    def run(self, inputs: Any, **kwargs: Any) -> Outputs:
        """Run the model.

        Parameters
        ----------
        inputs : list of arrays in the order of `self.inputs`, dict by name, or one array alone
        **kwargs
            Ignored, as the interface has it.

        Returns
        -------
        named tuple of NumPy arrays
            Items by position, attribute or name.

        Raises
        ------
        OnnxError
            If an input is missing, or its dtype or shape does not fit.
        """
        given = _by_name("the model", self.inputs, inputs)
        values = dict(self._constants)
        for wanted in self._inputs:
            values[wanted.name] = self._backend.asarray(wanted.check(given[wanted.name]))
        with self._backend.scope():
            for step in self._steps:
                step(values)
        return self._make_outputs(*(to_numpy(values[name]) for name in self.outputs))


class _Input:
    """What a graph says about one of its inputs."""

    def __init__(self, value: Proto) -> None:
        self.name = value.name
        if not value.type.HasField("tensor_type"):
            raise OnnxError(f"the input {self.name} is not a tensor, which is not supported")
        wanted = value.type.tensor_type
        self.dtype = import_onnx().helper.tensor_dtype_to_np_dtype(wanted.elem_type)
        self.shape = [d.dim_value or d.dim_param or "?" for d in wanted.shape.dim]
        self.has_shape = wanted.HasField("shape")

    def check(self, given: Any) -> HostArray:
        """Return the array; raise unless its dtype and shape are those of the graph."""
        array = np.asarray(given)
        if array.dtype != self.dtype:
            raise OnnxError(
                f"the input {self.name} must have dtype {self.dtype}, got {array.dtype}"
            )
        fits = len(self.shape) == array.ndim and all(
            wanted == size or isinstance(wanted, str)
            for wanted, size in zip(self.shape, array.shape, strict=True)
        )
        if self.has_shape and not fits:
            shape = ", ".join(map(str, self.shape))
            raise OnnxError(f"the input {self.name} must have shape ({shape}), got {array.shape}")
        return array


def _by_name(taker: str, names: Sequence[str], inputs: Any) -> dict[str, Any]:
    """Return the inputs, a dict or in the order of `names`, as a dict."""
    if isinstance(inputs, Mapping):
        if set(inputs) != set(names):
            raise OnnxError(
                f"{taker} takes the inputs {', '.join(names)}, got {', '.join(map(str, inputs))}"
            )
        return dict(inputs)
    given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    if len(given) != len(names):
        raise OnnxError(f"{taker} takes {len(names)} inputs ({', '.join(names)}), got {len(given)}")
    return dict(zip(names, given, strict=True))


def _named_tuple(names: Sequence[str]) -> Any:
    """Return the type of the outputs, which is the interface's."""
    return import_onnx().backend.base.namedtupledict("Outputs", names)
