"""The recurrent operators of ONNX, against onnxruntime on nodes drawn over all options."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from targets import Target, need_module

from rnn_xp.backend import Backend
from rnn_xp.onnx import OnnxError, prepare, run_model, run_node

HostArray = np.ndarray[Any, Any]
Node = dict[str, Any]
OPSET = 17
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
FUNCTIONS = {"RNN": 1, "LSTM": 3, "GRU": 2}
# What each function takes, and whether onnxruntime's defaults are ONNX's own.
ACTIVATIONS = {
    "Tanh": (0, True),
    "Relu": (0, True),
    "Sigmoid": (0, True),
    "Affine": (2, False),
    "LeakyRelu": (1, True),
    "ThresholdedRelu": (1, False),
    "ScaledTanh": (2, False),
    "HardSigmoid": (2, True),
    "Elu": (1, True),
    "Softsign": (0, True),
    "Softplus": (0, True),
}


def make_model(node: Node, arrays: dict[str, HostArray], constant: bool = True) -> Any:
    """Return a model of one node, its weights constants or inputs."""
    onnx = need_module("onnx")
    helper = onnx.helper
    is_lstm = node["op_type"] == "LSTM"
    names = ["Y", "Y_h", "Y_c"] if is_lstm else ["Y", "Y_h"]
    used = [name if name in arrays else "" for name in INPUTS[: 8 if is_lstm else 6]]
    made = helper.make_node(node["op_type"], used, names, **node["attributes"])
    fixed = [name for name in ("W", "R", "B", "P") if name in arrays] if constant else []
    to_type = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        [made],
        "one",
        [
            helper.make_tensor_value_info(k, to_type(a.dtype), a.shape)
            for k, a in arrays.items()
            if k not in fixed
        ],
        [
            helper.make_tensor_value_info(k, to_type(arrays["X"].dtype), [None] * (4 - (k != "Y")))
            for k in names
        ],
        [onnx.numpy_helper.from_array(arrays[k], k) for k in fixed],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def feed(model: Any, arrays: dict[str, HostArray]) -> dict[str, HostArray]:
    return {value.name: arrays[value.name] for value in model.graph.input}


def onnxruntime_run(model: Any, inputs: dict[str, HostArray]) -> list[HostArray]:
    runtime = need_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options)
    return list(session.run(None, inputs))


def draw_node(rng: np.random.Generator, op_type: str, direction: str) -> Node:
    """Draw a node over all options, and the form of its inputs."""

    def maybe(value: Any) -> Any:
        return value if rng.random() < 0.5 else None

    directions = 2 if direction == "bidirectional" else 1
    steps, batch, size, hidden = (int(rng.integers(1, most + 1)) for most in (6, 4, 4, 5))
    attributes: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    attributes["clip"] = maybe(float(rng.choice([0.05, 0.3, 1.0])))
    if op_type == "LSTM":
        attributes["input_forget"] = maybe(int(rng.integers(2)))
    if op_type == "GRU":
        attributes["linear_before_reset"] = maybe(int(rng.integers(2)))
    if rng.random() < 0.6:
        attributes |= draw_activations(rng, FUNCTIONS[op_type] * directions)
    given = ["B", "initial_h", *["initial_c", "P"] * (op_type == "LSTM")]
    return {
        "op_type": op_type,
        "attributes": {k: a for k, a in attributes.items() if a is not None},
        "sizes": (steps, batch, size, hidden, directions),
        "given": [name for name in given if rng.random() < 0.5],
        "lengths": maybe(rng.integers(1, steps + 1, batch).tolist()),
        "layout": int(rng.integers(2)),
        "constant": bool(rng.integers(2)),
        "dtype": str(rng.choice(["float32", "float64"])),
        "seed": int(rng.integers(2**32)),
    }


def draw_activations(rng: np.random.Generator, count: int) -> dict[str, Any]:
    """Draw functions with their parameters, or without: then those with the same defaults."""
    explicit = rng.random() < 0.6
    choices = [name for name, (_, same) in ACTIVATIONS.items() if same or explicit]
    names = rng.choice(choices, count).tolist()
    found: dict[str, Any] = {"activations": names}
    for least, kind in ((1, "alpha"), (2, "beta")):
        takers = sum(ACTIVATIONS[name][0] >= least for name in names)
        if explicit and takers:
            found[f"activation_{kind}"] = rng.choice([0.25, 0.5, 0.75], takers).tolist()
    return found


def draw_arrays(node: Node) -> dict[str, HostArray]:
    """Return the inputs of a node in layout 0, in float32.

    Small weights: onnxruntime's Softplus overflows where its argument is past 88.
    """
    steps, batch, size, hidden, directions = node["sizes"]
    rows = GATES[node["op_type"]] * hidden
    rng = np.random.default_rng(node["seed"])
    shapes = {
        "X": (steps, batch, size),
        "W": (directions, rows, size),
        "R": (directions, rows, hidden),
        "B": (directions, 2 * rows),
        "initial_h": (directions, batch, hidden),
        "initial_c": (directions, batch, hidden),
        "P": (directions, 3 * hidden),
    }
    drawn = {k: rng.uniform(-0.5, 0.5, shape).astype("float32") for k, shape in shapes.items()}
    arrays = {k: drawn[k] for k in ("X", "W", "R", *node["given"])}
    if node["lengths"] is not None:
        arrays["sequence_lens"] = np.asarray(node["lengths"], "int32")
    return arrays


def with_layout(name: str, array: HostArray) -> HostArray:
    """Return an input of layout 0 as layout 1 has it."""
    return array.transpose(1, 0, 2) if name in ("X", "initial_h", "initial_c") else array


def check(node: Node, shown: str) -> None:
    """Run a node with onnxruntime in layout 0 and float32, and with this package as drawn.

    onnxruntime's CPU kernels have neither layout 1 nor float64: there the same numbers must come
    out, the axes exchanged and to float32's rounding.
    """
    arrays = draw_arrays(node)
    model = make_model(node, arrays, node["constant"])
    expected = onnxruntime_run(model, feed(model, arrays))
    if node["layout"]:
        node = node | {"attributes": node["attributes"] | {"layout": 1}}
        arrays = {name: with_layout(name, array) for name, array in arrays.items()}
        expected = [
            expected[0].transpose(2, 0, 1, 3),
            *(e.transpose(1, 0, 2) for e in expected[1:]),
        ]
    arrays = {
        name: a if name == "sequence_lens" else a.astype(node["dtype"])
        for name, a in arrays.items()
    }
    model = make_model(node, arrays, node["constant"])
    found = run_model(model, feed(model, arrays))
    assert len(found) == len(expected)
    for ours, theirs, name in zip(found, expected, ("Y", "Y_h", "Y_c"), strict=False):
        assert ours.dtype == node["dtype"]
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-6, err_msg=f"{name} of {shown}")


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op_type", list(GATES))
def test_as_onnxruntime(op_type: str, direction: str) -> None:
    rng = np.random.default_rng(len(op_type + direction))
    for k in range(80):
        node = draw_node(rng, op_type, direction)
        check(node, f"node {k}: {node}")


def test_on_every_library(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same source on other libraries; `CUDA` is CuPy, and this is what runs there."""
    chosen = Backend(target.backend, target.xp, target.device, target.device_name or "")
    monkeypatch.setattr("rnn_xp.onnx.interface.select", lambda *_: chosen)
    rng = np.random.default_rng(5)
    # JAX compiles for each shape anew.
    for op_type in ("LSTM",) if target.backend == "jax" else (*GATES,) * 6:
        node = draw_node(rng, op_type, "bidirectional")
        check(node, str(node))


def small(op_type: str = "LSTM", **attributes: Any) -> tuple[Node, dict[str, HostArray]]:
    """Return a node with 3 steps, 2 sequences, 2 inputs and 2 units, and its inputs."""
    node: Node = {
        "op_type": op_type,
        "attributes": {"hidden_size": 2} | attributes,
        "sizes": (3, 2, 2, 2, 1),
        "given": ["B"],
        "lengths": None,
        "seed": 3,
    }
    return node, draw_arrays(node)


def test_a_sequence_of_length_0_keeps_its_state() -> None:
    node, arrays = small()
    h, c = (np.full((1, 2, 2), value, "float32") for value in (0.25, -0.5))
    arrays |= {"sequence_lens": np.asarray([0, 2], "int32"), "initial_h": h, "initial_c": c}
    y, last_h, last_c = run_model(make_model(node, arrays), feed(make_model(node, arrays), arrays))
    assert not y[:, :, 0].any()
    assert np.array_equal(last_h[:, 0], h[:, 0])
    assert np.array_equal(last_c[:, 0], c[:, 0])
    assert not np.array_equal(last_c[:, 1], c[:, 1])


def test_what_stands_past_a_length_does_not_matter() -> None:
    node, arrays = small(clip=0.5)
    arrays["sequence_lens"] = np.asarray([1, 2], "int32")
    model = make_model(node, arrays)
    before = run_model(model, feed(model, arrays))
    for rest in (np.nan, np.inf, [[np.inf, -np.inf]]):
        arrays["X"][1:, 0] = rest
        for found, expected in zip(run_model(model, feed(model, arrays)), before, strict=True):
            assert np.array_equal(found, expected)


def test_the_default_of_thresholded_relu_is_1() -> None:
    node, arrays = small("RNN", activations=["ThresholdedRelu"])
    arrays = {
        "X": np.asarray([[[0.5, 1.5], [1.0, -2.0]]], "float32"),
        "W": np.eye(2, dtype="float32")[None],
        "R": np.zeros((1, 2, 2), "float32"),
    }
    model = make_model(node, arrays)
    assert run_model(model, arrays["X"])[0].tolist() == [[[[0.0, 1.5], [1.0, 0.0]]]]


def test_two_functions_of_one_direction_are_onnx_s_own_default() -> None:
    node, arrays = small("RNN", activations=["Tanh", "Tanh"])
    plain, _ = small("RNN")
    results = [run_model(make_model(n, arrays), arrays["X"]) for n in (node, plain)]
    assert np.array_equal(results[0][0], results[1][0])


@pytest.mark.parametrize(
    ("op_type", "attributes", "message"),
    [
        ("LSTM", {"direction": "up"}, "the attribute direction must be one of forward, reverse,"),
        ("GRU", {"layout": 2}, "the attribute layout must be one of 0, 1, got 2"),
        ("LSTM", {"input_forget": 3}, "the attribute input_forget must be one of 0, 1, got 3"),
        ("GRU", {"linear_before_reset": 2}, "the attribute linear_before_reset must be one of"),
        ("RNN", {"clip": -1.0}, "the attribute clip must be > 0, got -1.0"),
        ("LSTM", {"activations": ["Tanh"]}, "the attribute activations must have 3 names, got"),
        (
            "RNN",
            {"activations": ["Swish"]},
            "the attribute activations has the unknown function 'Swish'",
        ),
        ("RNN", {"activations": ["Affine"]}, "Affine needs a value in the attribute activation_al"),
        (
            "RNN",
            {"activations": ["ScaledTanh"], "activation_alpha": [1.0]},
            "ScaledTanh needs a value in the attribute activation_beta",
        ),
        (
            "RNN",
            {"activations": ["Elu"], "activation_alpha": [1.0, 2.0]},
            r"the attribute activation_alpha has 1 more values than its functions take \(Elu\)",
        ),
        ("LSTM", {"hidden_size": 3}, r"W must have shape \(1, 12, 2\), got \(1, 8, 2\)"),
        ("LSTM", {"direction": "bidirectional"}, r"W must have shape \(2, 8, 2\), got \(1, 8, 2\)"),
    ],
)
@pytest.mark.parametrize("constant", [True, False], ids=["constant", "given"])
def test_a_wrong_attribute_is_named(
    op_type: str, attributes: dict[str, Any], message: str, constant: bool
) -> None:
    node, arrays = small(op_type, **attributes)
    model = make_model(node, arrays, constant)
    with pytest.raises(OnnxError, match=rf"{op_type} node 'Y': {message}"):
        run_model(model, feed(model, arrays))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("X", np.ones((3, 2, 4), "float32"), r"X must have shape \(3, 2, 2\), got \(3, 2, 4\)"),
        ("X", np.ones((3, 2), "float32"), r"X must have three axes, none of size 0, got \(3, 2\)"),
        ("X", np.ones((0, 2, 2), "float32"), r"X must have three axes, none of size 0, got \(0,"),
        ("X", np.ones((3, 2, 2)), "X must have dtype float32, got float64"),
        ("W", np.ones((8, 2), "float32"), r"W must have three axes, got \(8, 2\)"),
        ("R", np.ones((1, 8, 2)), "R must have dtype float32, got float64"),
        ("B", np.ones((1, 8), "float32"), r"B must have shape \(1, 16\), got \(1, 8\)"),
        ("P", np.ones((1, 8), "float32"), r"P must have shape \(1, 6\), got \(1, 8\)"),
        ("initial_h", np.ones((1, 2, 3), "float32"), r"initial_h must have shape \(1, 2, 2\)"),
        ("initial_c", np.ones((1, 2, 2)), "initial_c must have dtype float32, got float64"),
        ("sequence_lens", np.ones(3, "int32"), r"sequence_lens must be 2 integers, got \(3,\)"),
        ("sequence_lens", np.ones(2, "float32"), r"sequence_lens must be 2 integers, got \(2,\) f"),
        ("sequence_lens", np.asarray([1, 4], "int32"), r"sequence_lens must lie in 0\.\.3, got 4"),
        (
            "sequence_lens",
            np.asarray([-1, 1], "int32"),
            r"sequence_lens must lie in 0\.\.3, got -1",
        ),
    ],
)
def test_a_wrong_input_is_named(name: str, array: HostArray, message: str) -> None:
    node, arrays = small()
    arrays[name] = array
    made = make_model(node, arrays, constant=False).graph.node[0]
    with pytest.raises(OnnxError, match=rf"LSTM node 'Y': {message}"):
        run_node(made, arrays)


def test_integers_are_no_weights() -> None:
    node, arrays = small()
    arrays = {name: a.astype("int32") for name, a in arrays.items()}
    made = make_model(node, arrays, constant=False).graph.node[0]
    with pytest.raises(OnnxError, match="W must be floating-point, got int32"):
        run_node(made, arrays)


def test_weights_are_folded_once() -> None:
    """A prepared model gives the same results again, and does not change its inputs."""
    node, arrays = small(input_forget=1)
    model = make_model(node, arrays)
    prepared = prepare(model)
    x = arrays["X"].copy()
    x.flags.writeable = False
    first, again = prepared.run([x]), prepared.run([x])
    assert np.array_equal(first[0], again[0])
