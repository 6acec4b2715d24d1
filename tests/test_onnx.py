"""The interface of onnx.backend.base: ONNX's own tests, and what goes wrong."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import re
import unittest
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from targets import need_module
from test_onnx_nodes import make_model, small
from test_onnx_operators import graph_of

import rnn_xp.onnx
from rnn_xp.backend import BackendError
from rnn_xp.onnx import (
    OnnxError,
    PreparedModel,
    prepare,
    run_model,
    run_node,
    supports_device,
)

HostArray = np.ndarray[Any, Any]


def names_of_onnx_s_tests() -> list[str]:
    """Read the names of its node tests from the source of the package onnx, without its runner."""
    found = importlib.util.find_spec("onnx")
    if found is None or found.origin is None:
        return []
    folder = Path(found.origin).parent / "backend" / "test" / "case" / "node"
    named = (
        keyword.value.value
        for path in folder.glob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        for keyword in call.keywords
        if keyword.arg == "name" and isinstance(keyword.value, ast.Constant)
    )
    return sorted({name for name in map(str, named) if re.match("test_.*(rnn|lstm|gru)", name)})


NAMES = names_of_onnx_s_tests()


@pytest.fixture(scope="module")
def official() -> dict[str, unittest.TestCase]:
    """ONNX's own tests of this backend by name, as its runner collects them."""
    need_module("onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the data of other operators' tests overflow
        from onnx.backend.test import BackendTest

        runner = BackendTest(rnn_xp.onnx, __name__).include("rnn|lstm|gru")
        suite = runner.test_suite
    return {test.id().rpartition(".")[2]: test for test in suite}


def test_onnx_s_runner_has_the_tests_that_its_source_names(
    official: dict[str, unittest.TestCase],
) -> None:
    collected = {name for name in official if re.search("rnn|lstm|gru", name)}
    assert len(NAMES) >= 18
    assert collected == {f"{name}_{device}" for name in NAMES for device in ("cpu", "cuda")}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", NAMES or ["none"])
def test_of_onnx_itself(name: str, device: str, official: dict[str, unittest.TestCase]) -> None:
    result = unittest.TestResult()
    official[f"{name}_{device}"].run(result)
    assert result.testsRun == 1
    if result.skipped and device == "cuda":
        pytest.skip(result.skipped[0][1])
    assert not result.skipped
    assert not result.failures + result.errors, (result.failures + result.errors)[0][1]


# The interface


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert supports_device("CPU")
    assert supports_device("cpu")
    for name in ("GPU", "CPU:1", "CUDA:x", ""):
        assert not supports_device(name)
    with pytest.raises(OnnxError, match="device must be 'CPU', 'CUDA' or 'CUDA:<n>', got 'TPU'"):
        prepare("m.onnx", "TPU")
    monkeypatch.setenv("RNN_XP_BACKEND", "numpy")
    assert supports_device("CPU")
    assert not supports_device("CUDA")
    with pytest.raises(BackendError, match="NumPy has no device 'cuda:0'"):
        prepare("m.onnx", "CUDA")


def test_inputs_by_order_by_name_and_alone() -> None:
    node, arrays = small("GRU")
    model = make_model(node, arrays)
    prepared = prepare(model, "CPU", anything="else")
    assert isinstance(prepared, PreparedModel)
    assert prepared.inputs == ["X"]
    assert prepared.outputs == ["Y", "Y_h"]
    x = arrays["X"]
    runs = [prepared.run([x]), prepared.run({"X": x}), prepared.run(x), run_model(model, [x])]
    for outputs in runs:
        assert np.array_equal(outputs[0], runs[0][0])
        assert np.array_equal(outputs["Y_h"], outputs[1])
        assert np.array_equal(outputs.Y, outputs[0])


def test_run_node_takes_all_inputs_or_those_with_a_name() -> None:
    node, arrays = small()
    arrays["P"] = np.full((1, 6), 0.5, "float32")
    made = make_model(node, arrays, constant=False).graph.node[0]
    assert list(made.input) == ["X", "W", "R", "B", "", "", "", "P"]
    named = [arrays[name] for name in ("X", "W", "R", "B", "P")]
    everything = [*named[:4], None, None, None, named[4]]
    expected = run_model(make_model(node, arrays), arrays["X"])
    for inputs in (named, everything, tuple(everything), arrays):
        found = run_node(made, inputs, "CPU", None, opset_version=14)
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    made.output[0] = made.output[1] = ""
    (last_c,) = run_node(made, named)
    assert np.array_equal(last_c, expected[2])


def test_run_node_with_one_input_twice() -> None:
    onnx = need_module("onnx")
    node = onnx.helper.make_node("Add", ["a", "a"], ["b"])
    a = np.asarray([1.0, 2.0], "float32")
    for inputs in ([a, a], {"a": a}):
        assert run_node(node, inputs)[0].tolist() == [2.0, 4.0]


def test_without_onnx_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.partition(".")[0] == "onnx":
            raise ModuleNotFoundError("No module named 'onnx'", name="onnx")
        return original(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"onnx is not installed: pip install 'rnn-xp\[onnx\]'"):
        prepare("m.onnx")


# What goes wrong


def write(path: Path, **attributes: Any) -> Path:
    node, arrays = small("GRU", **attributes)
    path.write_bytes(make_model(node, arrays).SerializeToString())
    return path


def test_a_path_and_what_is_no_path(tmp_path: Path) -> None:
    _, arrays = small("GRU")
    path = write(tmp_path / "m.onnx")
    for name in (path, str(path)):
        assert len(run_model(name, arrays["X"])) == 2
    with pytest.raises(OnnxError, match="model must be a ModelProto or a path, got bytes"):
        prepare(path.read_bytes())
    with pytest.raises(OnnxError, match=r"none\.onnx cannot be read: No such file or directory"):
        prepare(tmp_path / "none.onnx")
    with pytest.raises(OnnxError, match="cannot be read: Is a directory"):
        prepare(tmp_path)


def test_weights_in_a_file_beside_it(tmp_path: Path) -> None:
    onnx = need_module("onnx")
    node, arrays = small("GRU")
    path = tmp_path / "m.onnx"
    options = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
    onnx.save(make_model(node, arrays), path, **options)
    expected = run_model(make_model(node, arrays), arrays["X"])
    assert np.array_equal(run_model(path, arrays["X"])[0], expected[0])
    (tmp_path / "weights").unlink()
    with pytest.raises(OnnxError, match=r"m\.onnx cannot be read: .*weights"):
        prepare(path)


@pytest.mark.parametrize("part", [0.0, 0.05, 0.5, 0.9, 0.999])
def test_a_truncated_file(tmp_path: Path, part: float) -> None:
    path = write(tmp_path / "m.onnx")
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(OnnxError, match=r"m\.onnx is not a"):
        prepare(path)


@pytest.mark.parametrize(
    "data",
    [b"\x89PNG\r\n\x1a\n", b"a,b\n1,2\n", bytes(range(256)), b"PK\3\4"],
    ids=["png", "csv", "bytes", "zip"],
)
def test_a_file_of_another_kind(tmp_path: Path, data: bytes) -> None:
    need_module("onnx")
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(
        OnnxError, match=r"m\.onnx is not an ONNX file, or is truncated: .+"
    ) as caught:
        prepare(path)
    assert "\n" not in str(caught.value)


def test_an_error_names_file_node_and_attribute(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", clip=-2.0)
    with pytest.raises(OnnxError, match=r"m\.onnx: GRU node 'Y': the attribute clip must be > 0"):
        prepare(path)


@pytest.mark.parametrize(
    ("kind", "inputs", "options", "message"),
    [
        ("Relu", ["x"], {}, "Relu node 'y': the operator Relu is not supported"),
        ("Relu", ["x"], {"name": "act"}, "Relu node 'act': the operator Relu is not supported"),
        ("Shape", ["x"], {"start": 1}, "the attribute start of Shape is not supported"),
        ("Reshape", ["x", "x"], {"allow": 1}, "Unrecognized attribute: allow for operator Reshape"),
        ("Magic", ["x"], {}, "is not a valid ONNX model: No Op registered for Magic"),
        ("Inverse", ["x"], {"domain": "com.microsoft"}, "com.microsoft.Inverse is not supported"),
        ("Split", ["x"], {}, "Split without the sizes of its parts is not supported"),
    ],
)
def test_what_is_not_supported_is_named(
    kind: str, inputs: list[str], options: dict[str, Any], message: str
) -> None:
    onnx = need_module("onnx")
    node = onnx.helper.make_node(kind, inputs, ["y"], **options)
    given = {"x": np.ones((2, 2), "float32")}
    model = graph_of([node], given, 2)
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(OnnxError, match=re.escape(message)):
        run_model(model, given)


def test_an_old_opset_is_named() -> None:
    onnx = need_module("onnx")
    given = {"x": np.ones((2, 2), "float32")}
    node = onnx.helper.make_node("Softmax", ["x"], ["y"])
    message = "Softmax of opset 11 is not supported, only that of 13 and later"
    with pytest.raises(OnnxError, match=message):
        prepare(graph_of([node], given, 2, opset=11))
    with pytest.raises(OnnxError, match=message):
        run_node(node, given, opset_version=11)


def test_run_node_names_an_attribute() -> None:
    node, arrays = small("GRU")
    made = make_model(node, arrays, constant=False).graph.node[0]
    made.attribute.append(need_module("onnx").helper.make_attribute("input_forget", 1))
    with pytest.raises(OnnxError, match="the attribute input_forget of GRU is not supported"):
        run_node(made, arrays)


def test_run_node_names_a_missing_input() -> None:
    node = need_module("onnx").helper.make_node("LSTM", ["x"], ["y"], name="layer")
    with pytest.raises(OnnxError, match=r"LSTM node 'layer' is not valid: .*input size 1 not in"):
        run_node(node, [np.ones((1, 1, 1), "float32")])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], r"the model takes 1 inputs \(X\), got 0"),
        ({"Z": np.ones(1)}, "the model takes the inputs X, got Z"),
        (np.ones((3, 2, 2)), "the input X must have dtype float32, got float64"),
        (
            np.ones((3, 2, 5), "float32"),
            r"the input X must have shape \(3, 2, 2\), got \(3, 2, 5\)",
        ),
        (np.ones((3, 2), "float32"), r"the input X must have shape \(3, 2, 2\), got \(3, 2\)"),
    ],
)
def test_wrong_inputs_of_a_model(inputs: Any, message: str) -> None:
    node, arrays = small("GRU")
    prepared = prepare(make_model(node, arrays))
    with pytest.raises(OnnxError, match=message):
        prepared.run(inputs)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            ("Gather", ["x", "index"]),
            "Gather node 'y': indices must lie in -2..1, got values from -3 to 0",
        ),
        (("Div", ["index", "index"]), "Div node 'y': division of int64 is not supported"),
        (("MatMul", ["x", "x"]), "MatMul node 'y': "),
    ],
)
def test_an_error_in_a_run_names_the_node(node: tuple[str, list[str]], message: str) -> None:
    make = need_module("onnx").helper.make_node
    inputs = {"x": np.ones((2, 3), "float32"), "index": np.asarray([-3, 0])}
    used = {name: inputs[name] for name in node[1]}
    with pytest.raises(OnnxError, match=re.escape(message)):
        run_node(make(*node, ["y"]), used)


def test_sparse_weights_and_other_kinds_of_inputs() -> None:
    onnx = need_module("onnx")
    node, arrays = small("GRU")
    model = make_model(node, arrays)
    values = onnx.helper.make_tensor("s", onnx.TensorProto.FLOAT, [1], [1.0])
    places = onnx.helper.make_tensor("i", onnx.TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [4]))
    with pytest.raises(OnnxError, match="sparse initializers are not supported"):
        prepare(model)
    helper = onnx.helper
    of_tensors = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [1])
    value = helper.make_value_info("x", helper.make_sequence_type_proto(of_tensors))
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [])
    graph.output.append(helper.make_value_info("y", value.type))
    with pytest.raises(OnnxError, match="the input x is not a tensor"):
        prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
