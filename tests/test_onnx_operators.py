"""The operators around the recurrent ones, against onnxruntime, and files that PyTorch wrote."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from targets import need_module
from test_onnx_nodes import onnxruntime_run

from rnn_xp.onnx import prepare, run_model

HostArray = np.ndarray[Any, Any]


def graph_of(nodes: list[Any], inputs: dict[str, HostArray], output: int, opset: int = 17) -> Any:
    """Return a model of some nodes whose output `y` has `output` axes."""
    onnx = need_module("onnx")
    helper, to_type = onnx.helper, onnx.helper.np_dtype_to_tensor_dtype
    values = [
        helper.make_tensor_value_info(k, to_type(a.dtype), a.shape) for k, a in inputs.items()
    ]
    result = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None] * output)
    graph = helper.make_graph(nodes, "some", values, [result])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def constant(name: str, value: Any, dtype: str = "int64") -> Any:
    onnx = need_module("onnx")
    tensor = onnx.numpy_helper.from_array(np.asarray(value, dtype))
    return onnx.helper.make_node("Constant", [], [name], value=tensor)


# Operators with inputs (constants as lists of integers), and attributes; the last output is y.
CASES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "Add": (["a", "b"], {}),
    "Sub": (["a", "row"], {}),
    "Div": (["a", "row"], {}),
    "MatMul": (["a", "square"], {}),
    "Concat": (["a", "b"], {"axis": 1}),
    "Softmax": (["a"], {"axis": 0}),
    "Softmax-last": (["a"], {}),
    "Transpose": (["a"], {"perm": [2, 0, 1]}),
    "Transpose-all": (["a"], {}),
    "Reshape": (["a", [0, -1]], {}),
    "Gather": (["a", [1, -1]], {"axis": 1}),
    "Gather-rows": (["a", [[0, -2], [1, 1]]], {}),
    "Slice": (["a", [1, -1], [9, -9], [1, -1], [1, -2]], {}),
    "Slice-plain": (["a", [0, 1], [1, 3]], {}),
    "Slice-axes": (["a", [-2], [2**62], [2]], {}),
    "ConstantOfShape": ([[2, 3]], {}),
    "Expand": (["row", [2, 3, 1]], {}),
    "Expand-not": (["a", [1]], {}),
    "Squeeze": (["one", [0, -1]], {}),
    "Squeeze-all": (["one"], {}),
    "Unsqueeze": (["row", [0, -1]], {}),
    "ReduceSum": (["a", [0, -1]], {"keepdims": 0}),
    "ReduceSum-all": (["a"], {}),
    "ReduceSum-none": (["a", []], {}),
    "ReduceMean": (["a"], {"axes": [1], "keepdims": 0}),
    "ReduceMean-all": (["a"], {}),
    "Gemm": (["square", "tall", "row"], {"alpha": 0.5, "beta": 2.0, "transB": 1}),
    "Gemm-plain": (["tall", "square"], {"transA": 0}),
    "Gemm-transposed": (["square", "square"], {"transA": 1}),
    "Identity": (["a"], {}),
}


@pytest.mark.parametrize("case", list(CASES))
def test_an_operator_as_onnxruntime(case: str) -> None:
    onnx = need_module("onnx")
    rng = np.random.default_rng(1)
    shapes = {
        "a": (2, 3, 4),
        "b": (2, 3, 4),
        "row": (4,),
        "square": (4, 4),
        "tall": (4, 4),
        "one": (1, 4, 1),
    }
    arrays = {k: rng.uniform(0.5, 2.0, shape).astype("float32") for k, shape in shapes.items()}
    given, attributes = CASES[case]
    nodes = [constant(f"c{k}", v) for k, v in enumerate(given) if isinstance(v, list)]
    names = [f"c{k}" if isinstance(v, list) else v for k, v in enumerate(given)]
    nodes.append(onnx.helper.make_node(case.partition("-")[0], names, ["y"], **attributes))
    used = {name: arrays[name] for name in names if name in arrays}
    rank = len(onnx_shape(nodes, used))
    model = graph_of(nodes, used, rank)
    (expected,) = onnxruntime_run(model, used)
    (found,) = run_model(model, used)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def onnx_shape(nodes: list[Any], inputs: dict[str, HostArray]) -> tuple[int, ...]:
    """Return the shape of y by ONNX's shape inference."""
    onnx = need_module("onnx")
    model = graph_of(nodes, inputs, 0)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.output[0]
    return tuple(d.dim_value for d in inferred.type.tensor_type.shape.dim)


def test_integers_masks_and_constants_as_onnxruntime() -> None:
    """y = where(range(T) < shape(x)[0] - 1 and not equal 0, x, 0.5), over two splits."""
    make = need_module("onnx").helper.make_node
    nodes = [
        make("Constant", [], ["half"], value_float=0.5),
        make("Constant", [], ["sizes"], value_ints=[1, 3]),
        make("Constant", [], ["one"], value_int=1),
        make("Constant", [], ["scales"], value_floats=[2.0, 4.0]),
        constant("zero", 0),
        make("Shape", ["x"], ["shape"]),
        make("Gather", ["shape", "zero"], ["steps"]),
        make("Sub", ["steps", "one"], ["last"]),
        make("Range", ["zero", "steps", "one"], ["time"]),
        make("Less", ["time", "last"], ["early"]),
        make("Where", ["early", "x", "half"], ["kept"]),
        make("Equal", ["time", "zero"], ["first"]),
        make("Where", ["first", "half", "kept"], ["masked"]),
        make("Split", ["masked", "sizes"], ["left", "right"], axis=0),
        make("Concat", ["right", "left", "scales"], ["all"], axis=0),
        make("Cast", ["all"], ["y"], to=1),
    ]
    inputs = {"x": np.asarray([3.0, 1.0, 4.0, 1.5], "float32")}
    model = graph_of(nodes, inputs, 1)
    (expected,) = onnxruntime_run(model, inputs)
    (found,) = run_model(model, inputs)
    assert found.dtype == expected.dtype
    assert found.tolist() == expected.tolist() == [1.0, 4.0, 0.5, 0.5, 2.0, 4.0]


def test_a_network_as_other_tools_write_it() -> None:
    """Layer and directions squeezed away, Gemm on the last step; also in a later opset."""
    onnx = need_module("onnx")
    make, rng = onnx.helper.make_node, np.random.default_rng(2)
    shapes = {"W": (1, 12, 3), "R": (1, 12, 4), "B": (1, 24), "w": (5, 4), "b": (5,)}
    weights = {k: rng.uniform(-1, 1, shape).astype("float32") for k, shape in shapes.items()}
    nodes = [
        *(constant(name, array, "float32") for name, array in weights.items()),
        make("GRU", ["x", "W", "R", "B"], ["all", "last"], hidden_size=4, linear_before_reset=1),
        constant("axes", [0]),
        make("Squeeze", ["last", "axes"], ["h"]),
        make("Gemm", ["h", "w", "b"], ["y"], transB=1),
    ]
    inputs = {"x": rng.standard_normal((6, 2, 3)).astype("float32")}
    for opset in (14, 21):
        model = graph_of(nodes, inputs, 2, opset)
        (expected,) = onnxruntime_run(model, inputs)
        np.testing.assert_allclose(run_model(model, inputs)[0], expected, rtol=1e-5, atol=1e-6)


def test_axes_and_sizes_as_attributes() -> None:
    """As they were before version 13 of the operators."""
    onnx = need_module("onnx")
    make = onnx.helper.make_node
    nodes = [
        make("Unsqueeze", ["x"], ["more"], axes=[0, 3]),
        make("Squeeze", ["more"], ["same"], axes=[-1]),  # the first axis has one element, too
        make("Split", ["same"], ["left", "right"], axis=2, split=[1, 2]),
        make("ReduceSum", ["right"], ["sum"], axes=[2], keepdims=1),
        make("Sub", ["left", "sum"], ["y"]),
    ]
    inputs = {"x": np.arange(12.0, dtype="float32").reshape(4, 3)}
    model = graph_of(nodes, inputs, 3, 11)
    (expected,) = onnxruntime_run(model, inputs)
    assert expected.shape == (1, 4, 1)
    assert run_model(model, inputs)[0].tolist() == expected.tolist()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_a_network_as_pytorch_wrote_it_of_old(kind: str) -> None:
    """The operators of version 11."""
    need_module("onnx")
    need_module("torch")
    import torch

    torch.manual_seed(0)
    network, file = getattr(torch.nn, kind)(5, 6, bidirectional=True), io.BytesIO()
    example = torch.randn(3, 2, 5)
    torch.onnx.export(network, (example,), file, dynamo=False, opset_version=11)
    prepared = prepare(need_module("onnx").load_from_string(file.getvalue()))
    with torch.no_grad():
        y, state = network(example)
    last = state if kind == "LSTM" else (state,)
    for found, expected in zip(prepared.run(example.numpy()), (y, *last), strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"batch_first": True}], ids=str)
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
def test_a_network_as_pytorch_writes_it(kind: str, options: dict[str, bool]) -> None:
    """Its exporter to files with free dimensions, which makes the initial states of the input."""
    need_module("onnx")
    need_module("torch")
    import torch

    torch.manual_seed(0)

    class Network(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(11, 5)
            self.recurrent = getattr(torch.nn, kind)(5, 6, 2, **options)
            self.linear = torch.nn.Linear(12 if "bidirectional" in options else 6, 3)

        def forward(self, x: Any) -> Any:
            y, _ = self.recurrent(self.embedding(x))
            return torch.softmax(self.linear(y[-1]), -1)

    network, file = Network().eval(), io.BytesIO()
    free = {"x": {0: "T", 1: "B"}}
    example = torch.zeros((3, 2), dtype=torch.int64)
    torch.onnx.export(network, (example,), file, dynamo=False, input_names=["x"], dynamic_axes=free)
    prepared = prepare(need_module("onnx").load_from_string(file.getvalue()))
    for steps, batch in ((7, 4), (1, 1)):
        x = torch.randint(0, 11, (steps, batch))
        with torch.no_grad():
            expected = network(x).numpy()
        np.testing.assert_allclose(prepared.run(x.numpy())[0], expected, rtol=1e-5, atol=1e-6)
