"""Keras' layers: the same outputs, states and gradients on both sides.

Keras computes with PyTorch here, whose autograd gives its gradients; once also with JAX.
"""

from __future__ import annotations

import functools
import importlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_layer import as_parts
from targets import need, need_module

from rnn_xp import (
    GRU,
    LSTM,
    RNN,
    Chain,
    Dropout,
    Embedding,
    Linear,
    Pool,
    character_model,
    interop,
    sequence_model,
)
from rnn_xp.interop import InteropError

HostArray = np.ndarray[Any, Any]

STEPS, BATCH, INPUT, HIDDEN = 4, 4, 3, 5
LENGTHS = np.asarray([4, 1, 3, 2])
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "rnn_tanh": ("SimpleRNN", {}, {}),
    "rnn_relu": ("SimpleRNN", {"activation": "relu"}, {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}, {}),
    "gru": ("GRU", {}, {}),
    "gru_reset_before": ("GRU", {"reset_after": False}, {"reset_after": False}),
}
OURS = {"SimpleRNN": RNN, "LSTM": LSTM, "GRU": GRU}
# The gates by name, in the order of the rows here and of the columns there.
GATES = {RNN: ("h", "h"), LSTM: ("ifco", "ifco"), GRU: ("rzh", "zrh")}
OPTIONS: list[dict[str, Any]] = [
    {"bidirectional": False, "bias": True},
    {"bidirectional": True, "bias": True},
    {"bidirectional": True, "bias": False},
]


def names(options: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items())


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Keras on PyTorch; it reads these variables when it is imported, and only then."""
    need("torch")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        module = need_module("keras")
    assert module.backend.backend() == "torch"
    # On PyTorch and JAX Keras rounds results of float64 to float32, by this table of its own.
    # Lifted for these tests, so that the comparison is sharp.
    dtypes = importlib.import_module("keras.src.backend.common.dtypes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(getattr(dtypes, "BIT64_TO_BIT32_DTYPE", {}), "float64", "float64")
        yield module


@functools.cache
def tolerance() -> float:
    """1e-10, but what float32 can give where this version of Keras computes in no more."""
    import keras

    one = keras.ops.ones((1, 1), dtype="float64")
    exact = keras.backend.standardize_dtype(keras.ops.matmul(one, one).dtype) == "float64"
    return 1e-10 if exact else 1e-5


def make(keras: Any, kind: str, *, bidirectional: bool, bias: bool, **options: Any) -> Any:
    """A Keras layer in float64 whose weights are all random, the biases too."""
    name, own, _ = KINDS[kind]
    own = {"use_bias": bias, "return_sequences": True, "dtype": "float64"} | own | options
    layer = getattr(keras.layers, name)(HIDDEN, **own)
    return keras.layers.Bidirectional(layer, dtype="float64") if bidirectional else layer


def randomize(layers: Iterable[Any], size: int = INPUT) -> None:
    rng = np.random.default_rng(5)
    for layer in layers:
        if not layer.built:
            layer.build((None, None, size))
        layer.set_weights([rng.uniform(-0.7, 0.7, weight.shape) for weight in layer.weights])


def as_kernel(values: HostArray, kind: type) -> HostArray:
    """Rows or elements of ours, gate by gate, as Keras has them."""
    gates: Any = GATES
    own, theirs = gates[kind]
    blocks = dict(zip(own, np.split(values, len(own)), strict=True))
    return np.concatenate([blocks[gate].T for gate in theirs], axis=-1)


def as_keras(layer: Any, values: Any, ends: Iterable[str]) -> list[HostArray]:
    """Gradients of ours in the order and the shapes of Keras' weights.

    Where Keras has one bias, its gradient is that of either of ours.
    """
    found = []
    for end in ends:
        found += [as_kernel(values[f"weight_{part}{end}"], type(layer)) for part in ("ih", "hh")]
        if layer.bias:
            b_ih, b_hh = (
                as_kernel(values[f"bias_{part}{end}"], type(layer)) for part in ["ih", "hh"]
            )
            if isinstance(layer, GRU) and layer.reset_after:
                found.append(np.stack((b_ih, b_hh)))
            else:
                np.testing.assert_array_equal(b_ih, b_hh)
                found.append(b_ih)
    return found


def all_ends(layer: Any) -> list[str]:
    ends = ("", "_reverse")[: layer.num_directions]
    return [f"_l{level}{end}" for level in range(layer.num_layers) for end in ends]


def close(found: Any, expected: Any, what: str = "") -> None:
    np.testing.assert_allclose(
        found, expected.detach().numpy(), rtol=0, atol=tolerance(), err_msg=what
    )


def check(layer: Any, params: Any, peers: list[Any], *, ragged: bool) -> None:
    """Assert equal outputs and gradients of a layer and of Keras layers that feed each other."""
    import torch

    rng = np.random.default_rng(1)
    x = rng.standard_normal((STEPS, BATCH, layer.input_size))
    lengths = LENGTHS if ragged else np.full(BATCH, STEPS)
    valid = np.arange(STEPS)[:, None] < lengths
    dy = rng.standard_normal((STEPS, BATCH, layer.output_size)) * valid[..., None]
    y, _, cache = layer.forward(params, x, lengths=lengths if ragged else None)
    dparams, dx, _ = layer.backward(params, cache, dy)

    peer_x = torch.tensor(x, requires_grad=True)
    mask = torch.tensor(valid.T) if ragged else None
    peer_y = torch.swapaxes(peer_x, 0, 1)
    for peer in peers:
        for weight in peer.weights:
            weight.value.grad = None
        peer_y = peer(peer_y, mask=mask)
    peer_y = torch.swapaxes(peer_y, 0, 1)
    (peer_y * torch.tensor(dy)).sum().backward()
    # Past a sequence's length Keras repeats an output where ours is 0.
    close(y, peer_y * torch.tensor(valid[..., None]), "y")
    close(dx, peer_x.grad, "dx")
    weights = [weight for peer in peers for weight in peer.weights]
    gradients = as_keras(layer, dparams, all_ends(layer))
    for weight, gradient in zip(weights, gradients, strict=True):
        close(gradient, weight.value.grad, weight.path)


@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "ragged"])
@pytest.mark.parametrize("options", OPTIONS, ids=names)
@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_layers_both_ways(
    keras: Any, kind: str, options: dict[str, Any], ragged: bool
) -> None:
    peer = make(keras, kind, **options)
    randomize([peer])
    layer, params = interop.from_keras(peer)
    name, _, own = KINDS[kind]
    assert layer == OURS[name](INPUT, HIDDEN, **own, **options)
    check(layer, params, [peer], ragged=ragged)

    drawn = layer.init(7, dtype="float64")
    back = interop.to_keras(layer, drawn)
    assert type(back) is type(peer)
    assert back.dtype == "float64"
    check(layer, drawn, [back], ragged=ragged)
    assert interop.from_keras(back)[0] == layer


@pytest.mark.parametrize("two", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_states(keras: Any, kind: str, two: bool) -> None:
    """Initial and last states, and their gradients, in a ragged batch."""
    import torch

    peer = make(keras, kind, bidirectional=two, bias=True, return_state=True)
    randomize([peer])
    layer, params = interop.from_keras(peer)
    assert isinstance(layer, RNN | LSTM | GRU)
    rng = np.random.default_rng(2)
    x = rng.standard_normal((STEPS, BATCH, INPUT))
    shape = (layer.num_directions, BATCH, HIDDEN)
    state = [rng.standard_normal(shape) for _ in layer.equations.state]
    dstate = [rng.standard_normal(shape) for _ in state]
    form = tuple if isinstance(layer, LSTM) else next
    y, last, cache = layer.forward(params, x, form(iter(state)), lengths=LENGTHS)
    _, _, first = layer.backward(params, cache, np.zeros_like(y), form(iter(dstate)))

    parts = [torch.tensor(part, requires_grad=True) for part in state]
    given = [part[d] for d in range(layer.num_directions) for part in parts]
    mask = torch.arange(STEPS) < torch.tensor(LENGTHS)[:, None]
    _, *found = peer(torch.tensor(x.swapaxes(0, 1)), mask=mask, initial_state=given)
    stacked = [torch.stack(found[k :: len(parts)]) for k in range(len(parts))]
    loss = sum((a * torch.tensor(b)).sum() for a, b in zip(stacked, dstate, strict=True))
    loss.backward()
    for ours, theirs in zip(as_parts(last), stacked, strict=True):
        close(ours, theirs, "state")
    for ours, theirs in zip(as_parts(first), parts, strict=True):
        close(ours, theirs.grad, "dstate")


@pytest.mark.parametrize("two", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_stacked_layers_both_ways(keras: Any, kind: str, two: bool) -> None:
    peers = [make(keras, kind, bidirectional=two, bias=True) for _ in range(2)]
    randomize(peers[:1])
    randomize(peers[1:], HIDDEN * (1 + two))
    layer, params = interop.from_keras(peers)
    name, _, own = KINDS[kind]
    assert layer == OURS[name](INPUT, HIDDEN, 2, bidirectional=two, **own)
    check(layer, params, peers, ragged=True)
    back = interop.to_keras(layer, params)
    assert isinstance(back, keras.Sequential)
    check(layer, params, back.layers, ragged=True)
    again, same = interop.from_keras(back.layers)
    assert again == layer
    for key, value in params.items():
        np.testing.assert_array_equal(same[key], value, strict=True)


def test_dropout_between_levels(keras: Any) -> None:
    layer = GRU(INPUT, HIDDEN, 2, dropout=0.25)
    params = layer.init(0, dtype="float64")
    back = interop.to_keras(layer, params)
    assert [type(one).__name__ for one in back.layers] == ["GRU", "Dropout", "GRU"]
    assert back.layers[1].rate == 0.25
    check(layer, params, [back.layers[0], back.layers[2]], ragged=False)
    chain = Chain((("low", layer), ("dropout", Dropout(0.1))))
    model = interop.to_keras(chain, {f"low.{name}": value for name, value in params.items()})
    assert [one.name for one in model.layers] == ["low_l0", "low_dropout0", "low_l1", "dropout"]


@pytest.mark.parametrize("bias", [True, False])
def test_dense_both_ways(keras: Any, bias: bool) -> None:
    import torch

    peer = keras.layers.Dense(HIDDEN, use_bias=bias, dtype="float64")
    peer.build((None, INPUT))
    randomize([peer])
    layer, params = interop.from_keras(peer)
    assert layer == Linear(INPUT, HIDDEN, bias=bias)
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUT))
    for one in (peer, interop.to_keras(layer, params)):
        y, cache = layer.forward(params, x)
        dparams, _ = layer.backward(params, cache, np.cos(y))
        expected = one(torch.tensor(x))
        close(y, expected)
        (expected * torch.cos(expected.detach())).sum().backward()
        close(dparams["weight"].T, one.kernel.value.grad)
        if bias:
            close(dparams["bias"], one.bias.value.grad)


def test_embedding_both_ways(keras: Any) -> None:
    import torch

    peer = keras.layers.Embedding(7, 3, dtype="float64")
    peer.build()
    layer, params = interop.from_keras(peer)
    assert layer == Embedding(7, 3)
    x = np.random.default_rng(0).integers(0, 7, (STEPS, BATCH))
    for one in (peer, interop.to_keras(layer, params)):
        y, cache = layer.forward(params, x)
        dparams, _ = layer.backward(params, cache, np.cos(y))
        expected = one(torch.tensor(x))
        close(y, expected)
        (expected * torch.cos(expected.detach())).sum().backward()
        close(dparams["weight"], one.embeddings.value.grad)


# Whole models


def test_a_sequential_with_an_embedding_that_masks(keras: Any) -> None:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((None,), dtype="int32"),
            layers.Embedding(9, INPUT, mask_zero=True, dtype="float64", name="words"),
            layers.Bidirectional(
                layers.LSTM(4, return_sequences=True, dtype="float64"), dtype="float64", name="low"
            ),
            layers.Dropout(0.3, dtype="float64", name="drop"),
            layers.GRU(HIDDEN, dtype="float64", name="high"),
            layers.Dense(2, dtype="float64", name="out"),
        ]
    )
    randomize([model.get_layer("low"), model.get_layer("high")])
    chain, params = interop.from_keras(model)
    assert chain == Chain(
        (
            ("words", Embedding(9, INPUT)),
            ("low", LSTM(INPUT, 4, bidirectional=True)),
            ("drop", Dropout(0.3)),
            ("high", GRU(8, HIDDEN)),
            ("high_last", Pool("last")),
            ("out", Linear(HIDDEN, 2)),
        )
    )
    x = np.random.default_rng(0).integers(1, 9, (BATCH, STEPS))
    x[np.arange(STEPS) >= LENGTHS[:, None]] = 0
    lengths = interop.lengths_of_mask(model.get_layer("words").compute_mask(x))
    np.testing.assert_array_equal(lengths, LENGTHS)
    y, _ = chain(params, np.ascontiguousarray(x.T), lengths=lengths)
    close(y, model(x))


@pytest.mark.parametrize("two", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_a_sequential_that_masks(keras: Any, pool: str, two: bool) -> None:
    layers = keras.layers
    last = make(keras, "lstm", bidirectional=two, bias=True, return_sequences=pool == "mean")
    mean = [layers.GlobalAveragePooling1D(dtype="float64")] if pool == "mean" else []
    masking = layers.Masking(-1.0, dtype="float64")
    dense = layers.Dense(2, dtype="float64")
    model = keras.Sequential(
        [keras.Input((None, INPUT), dtype="float64"), masking, last, *mean, dense]
    )
    randomize([last])
    chain, params = interop.from_keras(model)
    x = np.random.default_rng(0).standard_normal((BATCH, STEPS, INPUT))
    x[np.arange(STEPS) >= LENGTHS[:, None]] = -1.0
    lengths = interop.lengths_of_mask(masking.compute_mask(x))
    np.testing.assert_array_equal(lengths, LENGTHS)
    y, _ = chain(params, np.ascontiguousarray(x.swapaxes(0, 1)), lengths=lengths)
    close(y, model(x))


@pytest.mark.parametrize("two", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("pool", ["mean", "last"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_our_models_to_keras(keras: Any, cell: str, pool: str, two: bool) -> None:
    options: dict[str, Any] = {"bidirectional": two, "pool": pool, "dropout": 0.1}
    chain = sequence_model(INPUT, 2, cell=cell, hidden_size=4, num_layers=2, **options)
    params = chain.init(0, dtype="float64")
    model = interop.to_keras(chain, params)
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUT))
    expected, _ = chain(params, x, lengths=LENGTHS)
    padded = np.where(np.arange(STEPS)[:, None] < LENGTHS[:, None, None], x.swapaxes(0, 1), -1.0)
    masking = keras.layers.Masking(-1.0, dtype="float64")
    first = keras.Input((None, INPUT), dtype="float64")
    close(expected, keras.Sequential([first, masking, *model.layers])(padded))
    again, same = interop.from_keras(model)
    y, _ = again(same, x, lengths=LENGTHS)
    np.testing.assert_allclose(y, expected, rtol=0, atol=tolerance())


def test_our_character_model_to_keras(keras: Any) -> None:
    chain = character_model(9, embedding_size=3, hidden_size=4)
    params = chain.init(0, dtype="float64")
    model = interop.to_keras(chain, params)
    assert [layer.name for layer in model.layers] == ["embedding", "recurrent", "linear"]
    x = np.random.default_rng(0).integers(0, 9, (STEPS, BATCH))
    y, _ = chain(params, x)
    close(y.swapaxes(0, 1), model(x.T))


# dtypes, backends, copies


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32"])
def test_dtypes(keras: Any, kind: str) -> None:
    peer = keras.layers.GRU(3, dtype=kind, recurrent_initializer="glorot_uniform")
    peer.build((None, None, 2))
    layer, params = interop.from_keras(peer)
    wide = "float32" if kind == "bfloat16" else kind
    assert {str(value.dtype) for value in params.values()} == {wide}
    _, on_torch = interop.from_keras(peer, backend="torch", dtype=kind)
    back = interop.to_keras(layer, on_torch)
    assert back.dtype == kind
    for a, b in zip(back.weights, peer.weights, strict=True):
        assert (a.value == b.value).all()


def test_what_comes_back_are_copies(keras: Any) -> None:
    peer = keras.layers.Dense(2)
    peer.build((None, 3))
    _, params = interop.from_keras(peer)
    params["weight"][...] = 9.0
    assert not (peer.kernel.value == 9.0).any()


ON_JAX = """
import keras
import numpy as np
from rnn_xp import interop

assert keras.backend.backend() == "jax"
peer = keras.layers.Bidirectional(keras.layers.GRU(5, return_sequences=True, dtype="float64"))
x = np.random.default_rng(0).standard_normal((4, 6, 3))
expected = np.asarray(peer(x))
layer, params = interop.from_keras(peer, dtype="float64")
y, _ = layer(params, np.ascontiguousarray(x.swapaxes(0, 1)))
print(np.abs(y.swapaxes(0, 1) - expected).max())
print(np.abs(np.asarray(interop.to_keras(layer, params)(x)) - expected).max())
"""


def run(code: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"KERAS_HOME": str(home)} | variables
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )


def test_keras_on_jax(keras: Any, tmp_path: Path) -> None:
    need("jax")
    found = run(ON_JAX, tmp_path, KERAS_BACKEND="jax", JAX_ENABLE_X64="1")
    assert found.returncode == 0, found.stderr
    # In float32, to which Keras rounds on JAX whatever the dtype.
    assert max(map(float, found.stdout.split())) < 1e-6


def test_without_keras(tmp_path: Path) -> None:
    code = "import sys\nsys.modules['keras'] = None\nfrom rnn_xp import interop\n"
    line = "ImportError: Keras is not installed: pip install 'rnn-xp[keras]'"
    for call in ("from_keras(None)", "to_keras(None, {})"):
        found = run(f"{code}interop.{call}", tmp_path)
        assert found.stderr.strip().splitlines()[-1] == line


def test_keras_without_its_library(keras: Any, tmp_path: Path) -> None:
    code = "import sys\nsys.modules['tensorflow'] = None\nfrom rnn_xp import interop\n"
    found = run(f"{code}interop.from_keras(None)", tmp_path, KERAS_BACKEND="tensorflow")
    line = found.stderr.strip().splitlines()[-1]
    assert line.startswith("ImportError: Keras is installed, but the library that it computes with")
    assert "KERAS_BACKEND" in line


# What cannot be carried


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("SimpleRNN", {"activation": "sigmoid"}, "activation='sigmoid' cannot .* 'tanh' or 'relu'"),
        ("LSTM", {"activation": "relu"}, "activation='relu' cannot be carried, expected 'tanh'"),
        ("GRU", {"recurrent_activation": "hard_sigmoid"}, "recurrent_activation='hard_sigmoid'"),
        ("LSTM", {"recurrent_activation": None}, "recurrent_activation='linear'"),
        ("GRU", {"go_backwards": True}, "go_backwards=True"),
        ("LSTM", {"stateful": True}, "stateful=True"),
        ("GRU", {"dropout": 0.2}, "dropout=0.2"),
        ("LSTM", {"recurrent_dropout": 0.3}, "recurrent_dropout=0.3"),
    ],
)
@pytest.mark.parametrize("two", [False, True], ids=["one", "both"])
def test_options_that_are_not_carried(
    keras: Any, name: str, options: dict[str, Any], message: str, two: bool
) -> None:
    peer = getattr(keras.layers, name)(3, name="inner", **options)
    if two and "go_backwards" not in options:
        peer = keras.layers.Bidirectional(peer)
    peer.build((1, 4, 2))
    with pytest.raises(InteropError, match=rf"Keras layer '\w*inner': {message}"):
        interop.from_keras(peer)


def test_options_without_effect_are_carried(keras: Any) -> None:
    kind = keras.layers.LSTM
    peer = kind(3, unit_forget_bias=False, unroll=True, zero_output_for_mask=True, seed=1)
    peer.build((None, 4, 2))
    assert interop.from_keras(peer)[0] == LSTM(2, 3)


def test_a_dropout_that_is_switched_off_is_carried(keras: Any) -> None:
    peer = keras.layers.GRU(3, dropout=0.2)
    peer.build((None, None, 2))
    peer.cell.dropout = 0.0
    assert interop.from_keras(peer)[0] == GRU(2, 3)


@pytest.mark.parametrize("mode", ["sum", "mul", "ave", None])
def test_merge_modes_that_are_not_carried(keras: Any, mode: str | None) -> None:
    peer = keras.layers.Bidirectional(keras.layers.GRU(3), merge_mode=mode, name="two")
    with pytest.raises(InteropError, match=f"'two': merge_mode={mode!r} cannot be carried"):
        interop.from_keras(peer)


def test_directions_that_differ(keras: Any) -> None:
    layers = keras.layers
    backward = layers.GRU(4, go_backwards=True)
    peer = layers.Bidirectional(layers.GRU(3), backward_layer=backward, name="two")
    peer.build((None, None, 2))
    with pytest.raises(InteropError, match="'two': its two directions differ"):
        interop.from_keras(peer)


def test_weights_beside_the_layer_s_own_are_not_carried(keras: Any) -> None:
    dense, table = keras.layers.Dense(3, name="a"), keras.layers.Embedding(5, 2, name="b")
    for peer, size in ((dense, (None, 4)), (table, (None,))):
        peer.build(size)
        peer.enable_lora(1)
        with pytest.raises(InteropError, match=f"'{peer.name}' has the weights .*lora.*LoRA"):
            interop.from_keras(peer)


def test_layers_that_are_not_carried(keras: Any) -> None:
    layers = keras.layers
    for peer, message in (
        (layers.Flatten(name="a"), "Keras layer 'a' is of the kind Flatten: expected SimpleRNN"),
        (layers.Dense(2, "softmax", name="a"), "'a': activation='softmax' .* expected 'linear'"),
        (layers.Dropout(0.1, noise_shape=(1, 2), name="a"), r"'a': noise_shape=\(1, 2\)"),
        (layers.GlobalAveragePooling1D(keepdims=True, name="a"), "'a': keepdims=True"),
        (layers.LSTM(2, name="a"), "Keras layer 'a' has no weights yet: build it, or call it"),
        (
            [layers.Dense(2, name="a")],
            "'a' is of the kind Dense: expected SimpleRNN, LSTM, GRU or a",
        ),
        (
            type("LSTM", (layers.LSTM,), {})(2, name="a"),
            "Keras layer 'a' is of the kind LSTM: expected",
        ),
        ([], "an empty list"),
        (3, "3 is no Keras layer: expected SimpleRNN, LSTM, GRU, Bidirectional, Dense"),
        ([3], "3 is no Keras layer: expected SimpleRNN, LSTM, GRU or a Bidirectional"),
    ):
        with pytest.raises(InteropError, match=message):
            interop.from_keras(peer)


def test_layers_that_do_not_stack(keras: Any) -> None:
    layers = keras.layers
    below = layers.GRU(3, name="below")
    above = layers.GRU(3, name="above")
    wide = layers.GRU(4, name="wide")
    narrow = layers.GRU(3, return_sequences=True, name="narrow")
    for layer in (below, above, wide):
        layer.build((None, None, 3))
    narrow.build((None, None, 2))
    with pytest.raises(InteropError, match="'below': return_sequences=False, but a layer follows"):
        interop.from_keras([below, above])
    with pytest.raises(InteropError, match="'wide' differs from the one before"):
        interop.from_keras([below, wide])
    with pytest.raises(InteropError, match=r"weight_ih_l1 has shape \(9, 2\), expected \(9, 3\)"):
        interop.from_keras([narrow, narrow])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (LSTM(2, 3, peephole=True), "LSTM: peephole=True cannot be carried"),
        (LSTM(2, 3, proj_size=1), "LSTM: proj_size=1 cannot be carried"),
        (
            Chain((("a", LSTM(2, 3, bidirectional=True)), ("b", Pool("last")))),
            r"Pool\(kind='last', bidirectional=False\) cannot be carried",
        ),
        (Chain((("a", Linear(2, 3)), ("b", Pool("last")))), "Pool.* cannot be carried"),
    ],
)
def test_ours_that_are_not_carried(keras: Any, layer: Any, message: str) -> None:
    with pytest.raises(InteropError, match=message):
        interop.to_keras(layer, layer.init(0))


def test_params_that_do_not_fit(keras: Any) -> None:
    with pytest.raises(ValueError, match="bias missing"):
        interop.to_keras(Linear(2, 3), {"weight": np.zeros((3, 2))})


def test_masks_that_are_no_lengths() -> None:
    def lengths(*rows: str) -> HostArray:
        return interop.lengths_of_mask(np.asarray([[c == "1" for c in row] for row in rows]))

    assert lengths("1100", "1111", "1000").tolist() == [2, 4, 1]
    with pytest.raises(ValueError, match="a valid step behind an invalid one in sequence 1"):
        lengths("1100", "0111")
    with pytest.raises(ValueError, match="a valid step behind an invalid one in sequence 0"):
        lengths("1010", "1111")
    with pytest.raises(ValueError, match="no valid step in sequence 1: padding must stand at the"):
        lengths("1111", "0000")
    with pytest.raises(ValueError, match=r"mask must have shape \(B, T\), got \(3,\)"):
        interop.lengths_of_mask(np.ones(3, dtype=bool))
