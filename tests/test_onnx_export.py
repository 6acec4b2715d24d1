"""Models written as ONNX files: onnxruntime computes from them what the model does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from targets import Target, make_target, need_module
from test_cli import SMALL, TEXT, run

from rnn_xp import load
from rnn_xp.backend import Backend
from rnn_xp.cells import MinGRU
from rnn_xp.layers import GRU, LSTM, RNN, Dropout, Embedding, Linear, Pool, Recurrent
from rnn_xp.models import Chain, character_model, sequence_model
from rnn_xp.onnx import OnnxError, export, prepare

HostArray = np.ndarray[Any, Any]
Model = Any
SIZES = ((1, 1), (7, 3), (4, 5))  # T, B
SIZE, H = 3, 4

LAYERS: dict[str, Model] = {
    "tanh": RNN(SIZE, H),
    "relu": RNN(SIZE, H, 2, nonlinearity="relu", bidirectional=True),
    "lstm": LSTM(SIZE, H, 3, bias=False),
    "lstm both ways": LSTM(SIZE, H, 2, bidirectional=True, dropout=0.5),
    "peephole": LSTM(SIZE, H, 2, bidirectional=True, peephole=True),
    "peephole without bias": LSTM(SIZE, H, bias=False, peephole=True),
    "gru": GRU(SIZE, H, 2, bidirectional=True),
    "gru without bias": GRU(SIZE, H, bias=False),
    "gru reset before": GRU(SIZE, H, 2, bidirectional=True, reset_after=False),
    "linear": Linear(SIZE, H),
    "linear without bias": Linear(SIZE, H, bias=False),
}
CHAINS: dict[str, Chain] = {
    "rnn characters": character_model(9, cell="rnn", embedding_size=SIZE, hidden_size=H),
    "lstm characters": character_model(
        9, cell="lstm", embedding_size=SIZE, hidden_size=H, num_layers=2, dropout=0.3
    ),
    "gru characters": character_model(9, cell="gru", embedding_size=SIZE, hidden_size=H),
    "mean": sequence_model(SIZE, 5, cell="gru", hidden_size=H, bidirectional=True, dropout=0.1),
    "last": sequence_model(SIZE, 5, cell="lstm", hidden_size=H, pool="last", num_layers=2),
    "last both ways": sequence_model(
        SIZE, 5, cell="rnn", hidden_size=H, pool="last", bidirectional=True
    ),
    "pooled first": Chain(
        (("dropout", Dropout(0.5)), ("pool", Pool("mean")), ("linear", Linear(SIZE, H)))
    ),
    "two recurrent layers": Chain(
        (("one", Embedding(9, SIZE)), ("x", GRU(SIZE, H)), ("y", LSTM(H, 2, peephole=True)))
    ),
}
MODELS = LAYERS | CHAINS


@dataclass
class Case:
    """What goes into a model and what comes out of it, under the names of its ONNX file."""

    inputs: dict[str, HostArray]
    outputs: dict[str, HostArray]


def recurrent_layers(model: Model) -> dict[str, Any]:
    layers = model.layers if isinstance(model, Chain) else (("", model),)
    return {name: layer for name, layer in layers if isinstance(layer, RNN | LSTM | GRU)}


def make_case(
    model: Model,
    params: dict[str, HostArray],
    steps: int,
    batch: int,
    *,
    lengths: bool = False,
    states: bool = False,
    softmax: bool = False,
) -> Case:
    """Draw inputs and run the model."""
    rng = np.random.default_rng(steps)
    dtype = next(iter(params.values())).dtype
    embeds = isinstance(model, Chain) and isinstance(model.layers[0][1], Embedding)
    drawn = (
        rng.integers(0, 9, (steps, batch)) if embeds else rng.standard_normal((steps, batch, SIZE))
    )
    x = drawn if embeds else drawn.astype(dtype)
    inputs = {"x": x}
    options: dict[str, Any] = {}
    if lengths:
        inputs["lengths"] = rng.integers(1, steps + 1, batch).astype("int32")
        options["lengths"] = inputs["lengths"]
    before = {}
    for name, layer in recurrent_layers(model).items() if states else ():
        shape = (layer.num_layers * layer.num_directions, batch, layer.hidden_size)
        parts = [rng.standard_normal(shape).astype(dtype) for _ in layer.equations.state]
        before[name] = tuple(parts) if len(parts) == 2 else parts[0]
        for letter, part in zip("hc", parts, strict=False):
            inputs[f"{name}.{letter}0".removeprefix(".")] = part
    y, after = call(model, params, x, before, options)
    if softmax:
        e = np.exp(y - y.max(axis=-1, keepdims=True))
        y = e / e.sum(axis=-1, keepdims=True)
    outputs = {"y": y}
    for name in before:
        last = after[name] if isinstance(after[name], tuple) else (after[name],)
        for letter, part in zip("hc", last, strict=False):
            outputs[f"{name}.{letter}n".removeprefix(".")] = part
    return Case(inputs, outputs)


def call(model: Model, params: Any, x: HostArray, before: Any, options: Any) -> tuple[Any, Any]:
    """Return y, and the state of each recurrent layer by name."""
    if isinstance(model, Chain):
        y, after = model(params, x, before or None, **options)
        return y, after
    if isinstance(model, Linear):
        return model(params, x), {}
    y, last = model(params, x, before.get(""), **options)
    return y, {"": last}


@pytest.mark.parametrize("name", list(MODELS))
def test_one_file_for_any_number_of_steps_and_sequences(name: str, tmp_path: Path) -> None:
    need_module("onnx")
    runtime = need_module("onnxruntime")
    model, path = MODELS[name], tmp_path / "m.onnx"
    params = model.init(5)
    for lengths in (False, True):
        for states in (False, True):
            options = {"lengths": lengths, "states": states, "softmax": states}
            if isinstance(model, Linear) and (lengths or states):
                continue
            export(model, params, path, **options)
            session = runtime.InferenceSession(path)
            prepared = prepare(path)
            for steps, batch in SIZES:
                case = make_case(model, params, steps, batch, **options)
                names = [output.name for output in session.get_outputs()]
                assert set(names) == set(case.outputs)
                theirs = session.run(names, case.inputs)
                ours = prepared.run(case.inputs)
                for key, by_runtime in zip(names, theirs, strict=True):
                    expected = case.outputs[key]
                    assert by_runtime.dtype == expected.dtype == np.float32
                    np.testing.assert_allclose(by_runtime, expected, rtol=2e-5, atol=2e-6)
                    np.testing.assert_allclose(ours[key], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("name", ["peephole", "gru characters", "mean", "last both ways"])
def test_the_file_has_the_parameters_dtype(name: str, dtype: str, tmp_path: Path) -> None:
    """Run by `prepare`: onnxruntime has recurrent operators in float32 alone."""
    need_module("onnx")
    model = MODELS[name]
    params = model.init(1, dtype=dtype)
    export(model, params, tmp_path / "m.onnx", lengths=True, states=True)
    case = make_case(model, params, 6, 4, lengths=True, states=True)
    found = prepare(tmp_path / "m.onnx").run(case.inputs)
    bound = {"float16": 2e-3, "float64": 1e-13}[dtype]
    for key, expected in case.outputs.items():
        assert found[key].dtype == dtype
        np.testing.assert_allclose(found[key], expected, rtol=0, atol=bound)


def test_steps_and_sequences_are_free_and_named(tmp_path: Path) -> None:
    need_module("onnx")
    model = CHAINS["lstm characters"]
    proto = export(model, model.init(0), tmp_path / "m.onnx", lengths=True, states=True)
    values = [*proto.graph.input, *proto.graph.output]
    assert [value.name for value in proto.graph.output] == ["y", "recurrent.hn", "recurrent.cn"]
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values
    }
    assert shapes == {
        "x": ["T", "B"],
        "lengths": ["B"],
        "recurrent.h0": [2, "B", H],
        "recurrent.c0": [2, "B", H],
        "y": ["T", "B", 9],
        "recurrent.hn": [2, "B", H],
        "recurrent.cn": [2, "B", H],
    }
    assert proto.SerializeToString() == (tmp_path / "m.onnx").read_bytes()


def test_the_state_goes_on_where_the_file_stopped(tmp_path: Path) -> None:
    """Two halves, the state carried, are the whole: streaming in onnxruntime."""
    need_module("onnx")
    runtime = need_module("onnxruntime")
    model = CHAINS["gru characters"]
    params = model.init(2)
    export(model, params, tmp_path / "m.onnx", states=True)
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    x = np.random.default_rng(0).integers(0, 9, (8, 2))
    state, rows = np.zeros((1, 2, H), "float32"), []
    for part in (x[:5], x[5:]):
        y, state = session.run(None, {"x": part, "recurrent.h0": state})
        rows.append(y)
    np.testing.assert_allclose(np.concatenate(rows), model(params, x)[0], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("library", ["strict", "torch", "jax"])
def test_parameters_of_any_library_make_the_same_file(library: str, tmp_path: Path) -> None:
    need_module("onnx")
    target, model = make_target(library), CHAINS["mean"]
    params = model.init(4)
    expected = export(model, params, tmp_path / "a.onnx")
    assert export(model, target.tree(params), tmp_path / "b.onnx") == expected


def test_on_every_library(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators around the recurrent ones; `CUDA` is CuPy, and this is what runs there."""
    need_module("onnx")
    chosen = Backend(target.backend, target.xp, target.device, target.device_name or "")
    monkeypatch.setattr("rnn_xp.onnx.interface.select", lambda *_: chosen)
    names = ("last both ways",) if target.backend == "jax" else ("gru characters", "mean", "last")
    for name in names:
        model = CHAINS[name]
        params = model.init(3)
        options = {"lengths": name != "last", "states": True, "softmax": True}
        export(model, params, tmp_path / "m.onnx", **options)
        case = make_case(model, params, 5, 3, **options)
        found = prepare(tmp_path / "m.onnx").run(case.inputs)
        for key, expected in case.outputs.items():
            assert found[key].dtype == expected.dtype
            np.testing.assert_allclose(found[key], expected, rtol=1e-5, atol=1e-6)


def test_a_trained_character_model_in_onnxruntime(tmp_path: Path) -> None:
    need_module("onnx")
    runtime = need_module("onnxruntime")
    (tmp_path / "book.txt").write_text(TEXT, encoding="utf-8")
    steps = ("--max-steps", "60", "--out", "m.safetensors", "--seed", "1")
    code, _, err = run(tmp_path, "train", "text", "book.txt", *SMALL, *steps)
    assert code == 0, err
    found = load(tmp_path / "m.safetensors")
    assert found.vocabulary is not None
    export(found.model, found.params, tmp_path / "m.onnx", softmax=True)
    text = "the quick brown fox jumps over "
    x = np.asarray([[found.vocabulary.index(c)] for c in text])
    (y,) = runtime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x})
    logits, _ = found.model(found.params, x)
    e = np.exp(logits)
    np.testing.assert_allclose(y, e / e.sum(axis=-1, keepdims=True), rtol=1e-4, atol=1e-6)
    right = (y[:-1, 0].argmax(axis=-1) == x[1:, 0]).mean()
    assert right > 0.5  # it learnt something


# What goes wrong


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (LSTM(3, 4, proj_size=2), "the layer has proj_size=2, which ONNX has no node for"),
        (
            Chain((("a", GRU(3, 4)), ("b", LSTM(4, 4, proj_size=3)))),
            "the layer b has proj_size=3, which ONNX has no node for",
        ),
        (Recurrent(MinGRU, 3, 4), "the layer is of the cell MinGRU, which ONNX has no node for"),
        (Pool("mean"), "a model without parameters cannot be written to ONNX"),
        (Chain((("a", Dropout(0.5)),)), "a model without parameters cannot be written"),
    ],
)
def test_what_onnx_cannot_express_is_named(model: Model, message: str, tmp_path: Path) -> None:
    need_module("onnx")
    with pytest.raises(OnnxError, match=message):
        export(model, model.init(0), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_another_kind_of_layer_is_named(tmp_path: Path) -> None:
    need_module("onnx")

    class Scale:
        shapes: ClassVar[dict[str, tuple[int, ...]]] = {}

    layers: Any = (("linear", Linear(3, 4)), ("scale", Scale()))
    params = {f"linear.{name}": a for name, a in Linear(3, 4).init(0).items()}
    with pytest.raises(OnnxError, match="the layer scale is a Scale, which ONNX has no node for"):
        export(Chain(layers), params, tmp_path / "m.onnx")


def test_bfloat16_is_named(tmp_path: Path) -> None:
    need_module("onnx")
    make_target("torch")
    model = GRU(3, 4)
    params = model.init(0, backend="torch", dtype="bfloat16")
    with pytest.raises(OnnxError, match="params must be float16, float32 or float64 for ONNX, got"):
        export(model, params, tmp_path / "m.onnx")


def test_wrong_parameters_and_a_missing_folder(tmp_path: Path) -> None:
    need_module("onnx")
    model = GRU(3, 4)
    params = model.init(0)
    with pytest.raises(FileNotFoundError):
        export(model, params, tmp_path / "none" / "m.onnx")
    del params["bias_hh_l0"]
    with pytest.raises(ValueError, match="bias_hh_l0 missing"):
        export(model, params, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_model_that_no_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_module("onnx")
    layer = GRU(3, 4)
    params, size = layer.init(0), 4 * (12 * 3 + 12 * 4 + 12 + 12)
    monkeypatch.setattr("rnn_xp.onnx.exporting._LARGEST", size)
    export(layer, params, tmp_path / "m.onnx")
    monkeypatch.setattr("rnn_xp.onnx.exporting._LARGEST", size - 1)
    with pytest.raises(OnnxError, match=f"params have {size} bytes, and an ONNX file holds less"):
        export(layer, params, tmp_path / "n.onnx")
    assert not (tmp_path / "n.onnx").exists()
