"""`Linear`, `Embedding`, `Dropout` and `Chain`, on every library."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from targets import HostArray, Target, make_target

from rnn_xp import GRU, LSTM, Chain, Dropout, Embedding, Linear, character_model
from rnn_xp.random import dropout_mask

RNG = np.random.default_rng(5)


def numeric(function: Callable[[], float], array: HostArray) -> HostArray:
    """Return central finite differences with respect to `array`, changed in place."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + 1e-6
        above = function()
        array[index] = kept - 1e-6
        gradient[index] = (above - function()) / 2e-6
        array[index] = kept
    return gradient


def close(a: HostArray, b: HostArray) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(1.0, float(np.abs(b).max())))


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 5, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear(target: Target, shape: tuple[int, ...], bias: bool) -> None:
    layer = Linear(3, 2, bias=bias)
    params = layer.init(1, dtype="float64")
    x, dy = RNG.standard_normal(shape), RNG.standard_normal((*shape[:-1], 2))
    expected = np.einsum("...i,oi->...o", x, params["weight"]) + params.get("bias", 0.0)

    given = target.tree(params)
    y, cache = layer.forward(given, target.asarray(x))
    np.testing.assert_allclose(target.check(y, (*shape[:-1], 2), "float64"), expected, atol=1e-12)
    dparams, dx = layer.backward(given, cache, target.asarray(dy))
    assert list(dparams) == list(params)

    def loss() -> float:
        return float((layer(params, x) * dy).sum())

    close(target.check(dx, shape, "float64"), numeric(loss, x))
    for name, value in params.items():
        close(target.check(dparams[name], value.shape, "float64"), numeric(loss, value))
    with pytest.raises(ValueError, match="used by a backward call before"):
        layer.backward(given, cache, target.asarray(dy))


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("shape", [(), (0,), (6,), (3, 4)])
def test_embedding(target: Target, dtype: str, shape: tuple[int, ...]) -> None:
    layer = Embedding(5, 3)
    params = layer.init(1, dtype="float64")
    x, dy = RNG.integers(0, 5, shape), RNG.standard_normal((*shape, 3))
    given = target.tree(params)
    y, cache = layer.forward(given, target.asarray(x, dtype))
    found = target.check(y, (*shape, 3), "float64")
    assert np.array_equal(found, params["weight"][x])
    dparams, dx = layer.backward(given, cache, target.asarray(dy))
    assert dx is None
    expected = np.zeros((5, 3))
    np.add.at(expected, x, dy)
    np.testing.assert_allclose(
        target.check(dparams["weight"], (5, 3), "float64"), expected, atol=1e-12
    )


@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_embedding_of_more_rows_than_the_integers_reach(target: Target, dtype: str) -> None:
    layer, x = Embedding(40_000, 2), np.array([7, 120, 7])
    params = target.tree(layer.init(1))
    _, cache = layer.forward(params, target.asarray(x, dtype))
    dparams, _ = layer.backward(params, cache, target.asarray(np.ones((3, 2)), "float32"))
    found = target.check(dparams["weight"], (40_000, 2), "float32")
    assert {int(v): float(found[v, 1]) for v in np.flatnonzero(found[:, 0])} == {7: 2.0, 120: 1.0}


def test_linear_adds_half_precision_in_single() -> None:
    """NumPy's float16 stops growing at 2048 when it adds ones."""
    layer = Linear(1, 2)
    params = layer.init(0, dtype="float16")
    _, cache = layer.forward(params, np.ones((10_000, 1), "float16"))
    gradients, _ = layer.backward(params, cache, np.ones((10_000, 2), "float16"))
    assert gradients["bias"].dtype == np.float16
    assert gradients["bias"].tolist() == [10_000.0, 10_000.0]


def test_embedding_of_more_rows_than_sixteen_bits_count(target: Target) -> None:
    layer, x = Embedding(70_000, 2), np.array([69_999, 4_463, 69_999, 0])
    params = target.tree(layer.init(1))
    _, cache = layer.forward(params, target.asarray(x))
    dy = target.asarray([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0], [8.0, 0.0]], "float32")
    dparams, _ = layer.backward(params, cache, dy)
    found = target.check(dparams["weight"], (70_000, 2), "float32")[:, 0]
    lines = [int(line) for line in np.flatnonzero(found)]
    assert {line: float(found[line]) for line in lines} == {0: 8.0, 4_463: 2.0, 69_999: 5.0}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(0, 3), (1,), (3, 5, 7), (40, 50)])
@pytest.mark.parametrize("rate", [0.0, 1e-9, 0.25, 0.3, 0.999, 1.0 - 1e-9, 1.0])
def test_a_dropout_mask_is_drawn_from_the_seed(
    target: Target, rate: float, shape: tuple[int, ...], dtype: str
) -> None:
    mask = dropout_mask((5, 1), rate, target.asarray(np.zeros(shape), dtype))
    drawn = np.random.default_rng((5, 1)).random(shape, dtype="float32")
    kept = drawn >= np.float32(rate)
    scale = 1.0 / (1.0 - rate) if rate < 1.0 else 0.0
    expected = np.where(kept, scale, 0.0).astype(dtype)
    assert np.array_equal(target.check(mask, shape, dtype), expected)


def test_dropout(target: Target) -> None:
    layer, x, dy = Dropout(0.25), RNG.standard_normal((50, 40)), RNG.standard_normal((50, 40))
    given = target.asarray(x)
    y, cache = layer.forward({}, given, dropout_seed=3)
    found = target.check(y, x.shape, "float64")
    dropped = found == 0.0
    assert abs(dropped.mean() - 0.25) < 0.05
    np.testing.assert_allclose(found[~dropped], x[~dropped] / 0.75, rtol=1e-7)
    on_numpy, _ = layer.forward({}, x, dropout_seed=3)
    np.testing.assert_allclose(found, on_numpy, rtol=0, atol=1e-15)
    _, dx = layer.backward({}, cache, target.asarray(dy))
    np.testing.assert_allclose(
        target.check(dx, x.shape, "float64"), np.where(dropped, 0.0, dy / 0.75), rtol=1e-7
    )
    other, _ = layer.forward({}, given, dropout_seed=4)
    assert not np.array_equal(target.to_numpy(other) == 0.0, dropped)
    assert np.array_equal(target.to_numpy(layer({}, given)), x)
    assert np.array_equal(target.to_numpy(layer.forward({}, given)[0]), x)
    assert not target.to_numpy(Dropout(1.0).forward({}, given, dropout_seed=0)[0]).any()


def test_the_same_numbers_on_every_backend(target: Target) -> None:
    for layer in (Linear(4, 3), Embedding(4, 3), character_model(7, cell="lstm")):
        expected = layer.init(9)
        params = layer.init(9, backend=target.backend, device=target.device_name)
        for name, value in expected.items():
            assert np.array_equal(target.check(params[name], value.shape, "float32"), value)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_chain(target: Target, cell: str) -> None:
    model = character_model(
        5, cell=cell, embedding_size=3, hidden_size=4, num_layers=2, dropout=0.3
    )
    params = model.init(2, dtype="float64")
    x, dy = RNG.integers(0, 5, (4, 3)), RNG.standard_normal((4, 3, 5))
    _, state = model(params, RNG.integers(0, 5, (2, 3)))
    given, seen = target.tree(params), target.asarray(x)
    logits, after, cache = model.forward(given, seen, target.tree(state), dropout_seed=7)
    target.check(logits, (4, 3, 5), "float64")
    dparams, dx, dstate = model.backward(given, cache, target.asarray(dy))
    assert dx is None
    assert list(dparams) == list(params)
    assert list(dstate) == list(after) == ["recurrent"]

    def loss() -> float:
        return float((model.forward(params, x, state, dropout_seed=7)[0] * dy).sum())

    for name, value in params.items():
        close(target.check(dparams[name], value.shape, "float64"), numeric(loss, value))
    parts = state["recurrent"] if cell == "lstm" else (state["recurrent"],)
    found = dstate["recurrent"] if cell == "lstm" else (dstate["recurrent"],)
    for part, gradient in zip(parts, found, strict=True):
        close(target.check(gradient, part.shape, "float64"), numeric(loss, part))
    with pytest.raises(ValueError, match="used by a backward call before"):
        model.backward(given, cache, target.asarray(dy))


def test_a_prepared_chain_gives_the_same() -> None:
    model = character_model(5, num_layers=2)
    params, x = model.init(0), RNG.integers(0, 5, (4, 3))
    expected, state = model(params, x)
    prepared = model.prepare(params)
    first, carried = model(prepared, x[:1])
    rest, last = model(prepared, x[1:], carried)
    np.testing.assert_allclose(np.concatenate((first, rest)), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(last["recurrent"], state["recurrent"], rtol=0, atol=1e-6)


def test_a_prepared_chain_does_not_follow_its_parameters() -> None:
    model, x = character_model(5), RNG.integers(0, 5, (4, 3))
    params = model.init(0)
    prepared = model.prepare(params)
    expected, _ = model(prepared, x)
    for value in params.values():
        value *= 2.0
    np.testing.assert_array_equal(model(prepared, x)[0], expected)


def test_an_embedding_beside_arrays_that_are_not_traced() -> None:
    target = make_target("jax")
    jax = importlib.import_module("jax")
    model, x = character_model(5, hidden_size=4), target.asarray(RNG.integers(0, 5, (4, 3)))
    params = target.tree(model.init(0, dtype="float64"))

    def total(params: Any) -> Any:
        return model(params, x)[0].sum()

    y, _, cache = model.forward(params, x)
    expected, _, _ = model.backward(params, cache, jax.numpy.ones_like(y))
    for gradients in (jax.grad(total)(params), jax.jit(jax.grad(total))(params)):
        for name, value in expected.items():
            np.testing.assert_allclose(gradients[name], value, rtol=0, atol=1e-12)
    np.testing.assert_allclose(jax.jit(lambda k: model(params, k)[0])(x), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("count", [3, 400])  # so many that the table is looked up
def test_an_embedding_s_integers_may_change_between_the_runs(count: int) -> None:
    model = Chain((("embedding", Embedding(6, 50)), ("recurrent", GRU(50, 4))))
    params, x = model.init(0), RNG.integers(0, 6, (count, 2))
    gradients = []
    for changed in (False, True):
        integers = x.copy()
        y, _, cache = model.forward(params, integers)
        if changed:
            integers[...] = 99
        gradients.append(model.backward(params, cache, y)[0])
    for name, value in gradients[0].items():
        np.testing.assert_array_equal(gradients[1][name], value)


def test_a_refused_gradient_leaves_the_cache_fresh(target: Target) -> None:
    model = Chain((("in", Embedding(5, 3)), ("gru", GRU(3, 4)), ("out", Linear(4, 2))))
    params = target.tree(model.init(0))
    for layers in (model.layers, model.layers[:1], model.layers[2:], (("drop", Dropout(0.5)),)):
        part = Chain(layers)
        own = {name: params[name] for name in part.shapes}
        x = target.asarray(np.ones((3, 2, 4), "float32"))
        if layers[0][0] == "in":
            x = target.asarray(np.ones((3, 2), "int64"))
        y, _, cache = part.forward(own, x, dropout_seed=0)
        with pytest.raises(ValueError, match="dy must have shape"):
            part.backward(own, cache, y[:2, ...])
        part.backward(own, cache, y)
        with pytest.raises(ValueError, match="used by a backward call before"):
            part.backward(own, cache, y)


def test_layers_of_nested_names() -> None:
    """As PyTorch's nested modules have them."""
    plain = Chain((("lstm", LSTM(3, 4)), ("enc", Linear(4, 4)), ("out", Linear(4, 2))))
    names = ("enc.lstm", "enc", "a.b.c")
    nested = Chain(
        tuple((name, layer) for name, (_, layer) in zip(names, plain.layers, strict=True))
    )
    params, given = plain.init(0), nested.init(0)
    assert {name.rpartition(".")[0] for name in given} == set(names)
    x = RNG.standard_normal((3, 2, 3)).astype("float32")
    y, _, cache = nested.forward(given, x)
    expected, _, kept = plain.forward(params, x)
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(nested(nested.prepare(given), x)[0], expected)
    gradients, wanted = nested.backward(given, cache, y)[0], plain.backward(params, kept, y)[0]
    for name, other in zip(gradients, wanted, strict=True):
        np.testing.assert_array_equal(gradients[name], wanted[other])


def test_a_chain_s_description_builds_it() -> None:
    model = character_model(5, cell="lstm", num_layers=3, dropout=0.5)
    assert Chain.build(model.describe()) == model
    assert list(model.shapes)[:2] == ["embedding.weight", "recurrent.weight_ih_l0"]


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: Linear(0, 2), ValueError, "input_size must be an integer >= 1, got 0"),
        (lambda: Linear(2, True), TypeError, "output_size must be an integer >= 1, got True"),
        (lambda: Embedding(2.0, 2), TypeError, "num_embeddings must be an integer"),  # type: ignore[arg-type]
        (lambda: Dropout(1.5), ValueError, r"rate must be a number in 0\.\.1, got 1\.5"),
        (lambda: Dropout("a"), TypeError, "rate must be a number"),  # type: ignore[arg-type]
        (lambda: character_model(5, cell="cnn"), ValueError, "cell must be one of rnn, lstm, gru"),
        (lambda: Chain.build([{"type": "X"}]), ValueError, "unknown layer type 'X'"),
        (
            lambda: Chain((("a", Dropout(0.1)), ("b", Linear(1, 1)), ("b", Linear(1, 1)))),
            ValueError,
            "layers must have different names, but several are 'b'",
        ),
        (
            lambda: Chain.build([{"name": "a", "type": "Linear", "size": 1}]),
            ValueError,
            "wrong arguments for Linear",
        ),
    ],
)
def test_wrong_descriptions(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


def test_layers_do_not_change() -> None:
    for layer in (Linear(1, 1), Embedding(1, 1), Dropout(0.5), GRU(1, 1), LSTM(1, 1)):
        with pytest.raises(FrozenInstanceError):
            layer.rate = 0  # type: ignore[union-attr, misc]


def test_wrong_arguments() -> None:
    linear, embedding = Linear(3, 2), Embedding(5, 3)
    params, table = linear.init(0), embedding.init(0)
    x = np.zeros((4, 3), dtype="float32")
    with pytest.raises(ValueError, match=r"x must have shape \(\.\.\., 3\), got \(4, 2\)"):
        linear(params, x[:, :2])
    with pytest.raises(TypeError, match="x has dtype float64, the parameters have float32"):
        linear(params, x.astype("float64"))
    with pytest.raises(ValueError, match="weight missing"):
        linear({"bias": params["bias"]}, x)
    with pytest.raises(TypeError, match="x must be integers, got float32"):
        embedding(table, x)
    with pytest.raises(ValueError, match=r"x must lie in 0\.\.4, got values from 0 to 5"):
        embedding(table, np.asarray([0, 5]))
    with pytest.raises(ValueError, match=r"x must lie in 0\.\.4"):
        embedding(table, np.asarray([-1]))
    chain = Chain((("a", GRU(3, 3)), ("b", GRU(3, 3))))
    weights, steps = chain.init(0), x[:, None, :]
    _, state = chain(weights, steps)
    for run in (chain, chain.forward):
        with pytest.raises(ValueError, match="state has no 'b': expected the state of each"):
            run(weights, steps, {"a": state["a"]})
    _, cache = linear.forward(params, x)
    with pytest.raises(ValueError, match=r"dy must have shape \(4, 2\), got \(4, 3\)"):
        linear.backward(params, cache, x)
    _, cache = linear.forward(params, x)
    with pytest.raises(ValueError, match="cache is not from the forward call of"):
        Linear(3, 2, bias=False).backward({"weight": params["weight"]}, cache, x[:, :2])
    with pytest.raises(ValueError, match="there is no layer called 'more'"):
        character_model(5)({"more.weight": x}, np.zeros((1, 1), dtype="int64"))
