"""One safetensors file: complete or not there, and readable by others."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from targets import need

from rnn_xp import GRU, LSTM, RNN, Linear, character_model, interop, load, save
from rnn_xp.backend import dtype_name, host_of
from rnn_xp.checkpoint import CheckpointError
from rnn_xp.files import replace_file
from rnn_xp.models import Chain

MODEL = character_model(5, cell="lstm", embedding_size=3, hidden_size=4, num_layers=2, dropout=0.1)


def test_round_trip(tmp_path: Path) -> None:
    params = MODEL.init(3)
    path = tmp_path / "m.safetensors"
    save(path, MODEL, params, vocabulary="abcde", training={"step": 7}, tensors={"m.x": np.ones(2)})
    found = load(path)
    assert found.model == MODEL
    assert found.vocabulary == "abcde"
    assert found.training == {"step": 7}
    assert list(found.tensors) == ["m.x"]
    assert list(found.params) == list(params)
    for name, value in params.items():
        assert found.params[name].dtype == value.dtype
        assert np.array_equal(found.params[name], value)
    assert load(path, dtype="float64").params["linear.weight"].dtype == np.float64
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.mark.parametrize(
    "layer",
    [RNN(2, 3, nonlinearity="relu"), LSTM(2, 4, 2, bidirectional=True, proj_size=3), GRU(2, 3)],
    ids=repr,
)
def test_one_layer_alone(tmp_path: Path, layer: RNN | LSTM | GRU) -> None:
    params = layer.init(1)
    save(tmp_path / "layer", layer, params)
    found = load(tmp_path / "layer")
    assert found.model == layer
    assert load_file(tmp_path / "layer").keys() == params.keys()
    for name, value in params.items():
        assert np.array_equal(found.params[name], value)


def test_names_are_pytorch_s_and_the_description_is_json(tmp_path: Path) -> None:
    save(tmp_path / "m", MODEL, MODEL.init(0))
    assert {"recurrent.weight_ih_l0", "recurrent.bias_hh_l1", "embedding.weight"} <= load_file(
        tmp_path / "m"
    ).keys()
    with safe_open(tmp_path / "m", framework="np") as file:
        described = json.loads(file.metadata()["model"])
    assert described[1]["type"] == "LSTM"
    assert Chain.build(described) == MODEL


def test_arrays_without_axes(tmp_path: Path) -> None:
    save(tmp_path / "m", MODEL, MODEL.init(0), tensors={"s": np.asarray(3.0)})
    assert load(tmp_path / "m").tensors["s"].shape == ()


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_bfloat16_comes_back(tmp_path: Path, backend: str) -> None:
    need(backend)
    layer = GRU(2, 3)
    params = layer.init(0, backend=backend, dtype="bfloat16")
    counts = layer.init(0, backend=backend)["weight_ih_l0"]
    save(tmp_path / "m", layer, params, tensors={"m": params["bias_ih_l0"], "n": counts})
    found = load(tmp_path / "m", backend=backend)
    assert {dtype_name(value.dtype) for value in found.params.values()} == {"bfloat16"}
    assert dtype_name(found.tensors["m"].dtype) == "bfloat16"
    assert dtype_name(found.tensors["n"].dtype) == "float32"
    plain = load(tmp_path / "m")
    for name, value in params.items():
        assert np.array_equal(host_of(found.params[name]), host_of(value))
        assert plain.params[name].dtype == np.float32  # NumPy lacks bfloat16
        assert np.array_equal(plain.params[name], host_of(value))
    cast = load(tmp_path / "m", backend=backend, dtype="float32")
    assert {dtype_name(value.dtype) for value in cast.params.values()} == {"float32"}


def test_a_dtype_that_numpy_lacks(tmp_path: Path) -> None:
    """Read where it is asked for alone."""
    need("torch")
    torch = importlib.import_module("torch")
    own = {f"enc.{name}": torch.ones(shape) for name, shape in GRU(2, 3).shapes.items()}
    other = {"q.w": torch.ones(2, dtype=torch.float8_e4m3fn)}
    importlib.import_module("safetensors.torch").save_file({**own, **other}, tmp_path / "m")
    params = interop.read_safetensors(tmp_path / "m", GRU(2, 3), "enc")
    assert all((value == 1.0).all() for value in params.values())
    with pytest.raises(CheckpointError, match=r"m: q\.w has dtype F8_E4M3, which NumPy lacks"):
        interop.read_safetensors(tmp_path / "m", Linear(1, 1), "q")


def test_a_transposed_array_is_written_as_it_reads(tmp_path: Path) -> None:
    params = MODEL.init(0)
    params["linear.weight"] = np.arange(20.0, dtype="float32").reshape(4, 5).T
    save(tmp_path / "m", MODEL, params)
    assert np.array_equal(load(tmp_path / "m").params["linear.weight"], params["linear.weight"])


def _damage(tmp_path: Path, change: Any, metadata: dict[str, str] | None = None) -> Path:
    path = tmp_path / "m"
    save(path, MODEL, MODEL.init(0))
    with safe_open(path, framework="np") as file:
        found = dict(file.metadata())
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, found | (metadata or {}))
    return path


@pytest.mark.parametrize(
    ("change", "metadata", "message"),
    [
        (lambda t: t.pop("linear.bias"), {}, "linear.bias is missing"),
        (lambda t: t.update(more=np.ones(1)), {}, "more is not expected"),
        (
            lambda t: t.update({"linear.bias": np.ones(4, dtype="float32")}),
            {},
            r"linear.bias has shape \(4,\), expected \(5,\)",
        ),
        (
            lambda t: t.update({"linear.bias": np.ones(5, dtype="int32")}),
            {},
            "linear.bias has dtype int32",
        ),
        (lambda t: None, {"format": "rnn_xp 99"}, "'rnn_xp 99': expected the format 'rnn_xp 1'"),
        (lambda t: None, {"model": "{"}, "damaged model description"),
        (
            lambda t: None,
            {"model": '[{"name": "x", "type": "Magic"}]'},
            "unknown layer type 'Magic'",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, change: Any, metadata: dict[str, str], message: str
) -> None:
    path = _damage(tmp_path, change, metadata)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_a_file_of_another_program(tmp_path: Path) -> None:
    save_file({"a": np.ones(2)}, tmp_path / "m")
    with pytest.raises(CheckpointError, match="no rnn_xp model description"):
        load(tmp_path / "m")


@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.999])
def test_truncated(tmp_path: Path, part: float) -> None:
    path = tmp_path / "m"
    save(path, MODEL, MODEL.init(0))
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(CheckpointError, match="truncated"):
        load(path)


def test_a_name_that_training_s_tensors_have(tmp_path: Path) -> None:
    model = Chain((("training", Linear(2, 2)),))
    with pytest.raises(ValueError, match=r"the parameter training\.weight must not begin with"):
        save(tmp_path / "m", model, model.init(0))
    assert not list(tmp_path.iterdir())


def test_wrong_params_are_not_written(tmp_path: Path) -> None:
    params = MODEL.init(0)
    del params["linear.bias"]
    with pytest.raises(ValueError, match=r"linear.bias is missing"):
        save(tmp_path / "m", MODEL, params)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"old")

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_only_a_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "m"
    os.mkfifo(path)
    with pytest.raises(OSError, match="is a device, a pipe or a socket, expected a file to write"):
        replace_file(path, b"new")
    assert path.is_fifo()
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
