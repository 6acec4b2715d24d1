"""An embedding and the recurrent layer above it, looked up: against the two one after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from targets import make_target

from rnn_xp.engines import native
from rnn_xp.layers import GRU, LSTM, RNN, Dropout, Embedding, Linear, Recurrent, lookup
from rnn_xp.models import Chain

STEPS, BATCH, VOCABULARY, SIZE = 30, 17, 11, 20
LENGTHS = tuple(1 + (7 * b) % STEPS for b in range(BATCH))
LAYERS: dict[str, Any] = {
    "rnn_tanh": lambda **options: RNN(SIZE, 19, **options),
    "rnn_relu": lambda **options: RNN(SIZE, 5, nonlinearity="relu", **options),
    "lstm": lambda **options: LSTM(SIZE, 33, **options),
    "gru": lambda **options: GRU(SIZE, 16, **options),
    "gru_reset_before": lambda **options: GRU(SIZE, 7, reset_after=False, **options),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "one_level": {},
    "no_bias": {"bias": False},
    "bidirectional": {"bidirectional": True},
    "stacked_bidirectional": {"num_layers": 2, "bidirectional": True},
    "dropout": {"num_layers": 2, "dropout": 0.4},
}
kernels = pytest.mark.skipif(
    not native.instruction_sets(), reason="the kernels are not built: no C++ compiler"
)


def chain(layer: Recurrent) -> Chain:
    return Chain(
        (
            ("embedding", Embedding(VOCABULARY, layer.input_size)),
            ("recurrent", layer),
            ("linear", Linear(layer.output_size, 3)),
        )
    )


def integers(steps: int = STEPS) -> Any:
    return np.random.default_rng(1).integers(0, VOCABULARY, (steps, BATCH))


def run(model: Chain, params: Any, lengths: Any, dtype: str) -> tuple[dict[str, Any], bool]:
    """All that comes out of a training step, and whether it was looked up."""
    rng = np.random.default_rng(2)
    parts: Any = model(params, integers())[1]["recurrent"]
    single = not isinstance(parts, tuple)
    state, dstate = (
        {"recurrent": draws[0] if single else tuple(draws)}
        for draws in (
            [rng.standard_normal(p.shape).astype(dtype) for p in ([parts] if single else parts)]
            for _ in range(2)
        )
    )
    y, after, cache = model.forward(params, integers(), state, lengths=lengths, dropout_seed=3)
    dy = rng.standard_normal(y.shape).astype(dtype)
    dparams, dx, before = model.backward(params, cache, dy, dstate)
    assert dx is None
    assert list(dparams) == list(params)
    found = {"y": y, **dparams}
    for name, states in (("state", after), ("dstate", before)):
        one = states["recurrent"]
        for k, part in enumerate((one,) if single else one):
            found[f"{name} {k}"] = part
    return found, cache.caches[0] is None


@kernels
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cell", LAYERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-13), ("float32", 1e-4)])
def test_same_as_one_after_the_other(
    cell: str,
    options: str,
    lengths: Any,
    dtype: str,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if cell == "rnn_relu" and dtype == "float32":
        pytest.skip("where relu's slope jumps, a rounding is enough to land on the other side")
    model = chain(LAYERS[cell](**OPTIONS[options]))
    params = model.init(0, dtype=dtype)
    found, looked_up = run(model, params, lengths, dtype)
    assert looked_up
    monkeypatch.setattr(lookup, "pays", lambda *_: False)
    expected, looked_up = run(model, params, lengths, dtype)
    assert not looked_up
    for name, value in expected.items():
        assert found[name].dtype == np.dtype(dtype), name
        size = max(1.0, float(np.abs(value).max()))
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance * size, err_msg=name)


@kernels
@pytest.mark.parametrize("name", ["embedding.weight", "recurrent.weight_ih_l0"])
def test_finite_differences(name: str) -> None:
    model, rng = chain(LSTM(SIZE, 6)), np.random.default_rng(3)
    params = model.init(0, dtype="float64")
    y, _, cache = model.forward(params, integers())
    assert cache.caches[0] is None
    dy = rng.standard_normal(y.shape)
    exact = model.backward(params, cache, dy)[0][name]
    way = rng.standard_normal(exact.shape)
    step = 1e-6
    up, down = (
        float((model.forward({**params, name: params[name] + d * way}, integers())[0] * dy).sum())
        for d in (step, -step)
    )
    assert (up - down) / (2 * step) == pytest.approx(float((exact * way).sum()), rel=1e-6)


@kernels
def test_the_integers_may_be_of_any_kind() -> None:
    model = chain(GRU(SIZE, 4))
    params = model.init(0)
    expected = model.forward(params, integers())[0]
    x = integers()
    spread = np.repeat(x, 2, axis=1)[:, ::2]
    for given in (x.astype(np.uint8), x.astype(np.int32), np.asfortranarray(x), spread):
        y, _, cache = model.forward(params, given)
        assert cache.caches[0] is None
        np.testing.assert_array_equal(y, expected)


@kernels
def test_the_integers_are_copied() -> None:
    """They are checked once and read again, without Python's lock and in the backward pass."""
    model, x = chain(GRU(SIZE, 4)), integers()
    params = model.init(0)
    y, _, cache = model.forward(params, x)
    expected, _, _ = model.backward(params, cache, y)
    y, _, cache = model.forward(params, x)
    x[...] = 10**9
    found, _, _ = model.backward(params, cache, y)
    for name, gradient in expected.items():
        np.testing.assert_array_equal(found[name], gradient)


@kernels
@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (integers() + 1, ValueError, r"x must lie in 0\.\.10, got values from 1 to 11"),
        (integers() - 1, ValueError, r"x must lie in 0\.\.10, got values from -1 to 9"),
        (integers() + 0.5, TypeError, "x must be integers, got float64"),
    ],
    ids=["too large", "negative", "not integers"],
)
def test_wrong_integers(wrong: Any, error: type[Exception], message: str) -> None:
    model = chain(GRU(SIZE, 4))
    with pytest.raises(error, match=message):
        model.forward(model.init(0), wrong)


@kernels
def test_wrong_parameters() -> None:
    model = chain(GRU(SIZE, 4))
    params = model.init(0)
    name = "recurrent.weight_ih_l0"
    with pytest.raises(
        ValueError, match=r"weight_ih_l0 must have shape \(12, 20\), got \(12, 19\)"
    ):
        model.forward({**params, name: params[name][:, 1:]}, integers())
    with pytest.raises(TypeError, match="x has dtype float64, the parameters have float32"):
        model.forward(
            {**params, "embedding.weight": np.ones((VOCABULARY, SIZE))},
            integers(),
        )
    y, _, cache = model.forward(params, integers())
    wide = model.init(0, dtype="float64")
    linear = {name: value for name, value in params.items() if name.startswith("linear")}
    with pytest.raises(TypeError, match="weight has dtype float64, the parameters have float32"):
        model.backward(wide, cache, y)
    y, _, cache = model.forward(params, integers())
    with pytest.raises(TypeError, match="weight_ih_l0 has dtype float64, the parameters have"):
        model.backward({**wide, **linear}, cache, y)


@kernels
def test_layers_that_do_not_fit() -> None:
    model = Chain((("embedding", Embedding(VOCABULARY, SIZE + 1)), ("recurrent", GRU(SIZE, 4))))
    with pytest.raises(ValueError, match="x has 21 features in its last axis, but this GRU has"):
        model.forward(model.init(0), integers())


def test_where_it_does_not_pay() -> None:
    embedding, layer = Embedding(VOCABULARY, SIZE), LSTM(SIZE, 4)
    params = embedding.init(0)
    assert lookup.pays(embedding, layer, params, integers()) == bool(native.instruction_sets())
    assert not lookup.pays(embedding, layer, params, integers(5))  # too few of them
    assert not lookup.pays(embedding, layer, params, integers()[:, 0])  # without a batch
    assert not lookup.pays(embedding, None, params, integers())
    assert not lookup.pays(embedding, Dropout(0.5), params, integers())
    assert not lookup.pays(embedding, LSTM(SIZE, 4, peephole=True), params, integers())
    assert not lookup.pays(embedding, layer, embedding.init(0, dtype="float16"), integers())
    assert not lookup.pays(embedding, layer, params, integers().tolist())


def test_not_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "choose", lambda: "off in this test")
    embedding = Embedding(VOCABULARY, SIZE)
    assert not lookup.pays(embedding, LSTM(SIZE, 4), embedding.init(0), integers())


@pytest.mark.parametrize("library", ["strict", "torch", "jax", "cupy"])
def test_not_in_other_libraries(library: str) -> None:
    target = make_target(library)
    embedding = Embedding(VOCABULARY, SIZE)
    params = embedding.init(0, backend=library)
    assert not lookup.pays(embedding, LSTM(SIZE, 4), params, target.asarray(integers()))
