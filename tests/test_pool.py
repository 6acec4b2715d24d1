"""Pooling over the valid steps, and the whole sequence model with it."""

from __future__ import annotations

import numpy as np
import pytest
from targets import Target

from rnn_xp import losses, sequence_model
from rnn_xp.layers import GRU, Pool

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 3, 4))
LENGTHS = [5, 1, 3]


def expected(kind: str, bidirectional: bool, lengths: list[int]) -> np.ndarray:
    rows = []
    for b, length in enumerate(lengths):
        valid = X[:length, b]
        if kind == "mean":
            rows.append(valid.mean(axis=0))
        elif bidirectional:
            rows.append(np.concatenate((valid[-1, :2], valid[0, 2:])))
        else:
            rows.append(valid[-1])
    return np.stack(rows)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["mean", "last"])
def test_pool(target: Target, kind: str, bidirectional: bool, ragged: bool) -> None:
    layer = Pool(kind, bidirectional)
    lengths = LENGTHS if ragged else [5, 5, 5]
    given = X.copy()
    for b, length in enumerate(lengths):
        given[length:, b] = np.nan  # whatever stands past the end
    y, cache = layer.forward({}, target.asarray(given), lengths=lengths if ragged else None)
    found = target.check(y, (3, 4), "float64")
    np.testing.assert_allclose(found, expected(kind, bidirectional, lengths), rtol=1e-12)
    dy = RNG.standard_normal((3, 4))
    none, dx = layer.backward({}, cache, target.asarray(dy))
    assert none == {}
    gradient = target.check(dx, X.shape, "float64")
    for b, length in enumerate(lengths):
        assert (gradient[length:, b] == 0).all()
    inner = float((np.nan_to_num(given) * gradient).sum())  # y is linear in x
    np.testing.assert_allclose(inner, float((found * dy).sum()), rtol=1e-12)


def test_last_of_both_directions_is_their_final_state() -> None:
    layer = GRU(4, 2, bidirectional=True)
    params = layer.init(0, dtype="float64")
    y, h = layer(params, X, lengths=LENGTHS)
    pooled = Pool("last", bidirectional=True)({}, y, lengths=LENGTHS)
    np.testing.assert_array_equal(pooled, np.concatenate((h[0], h[1]), axis=1))


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "rnn", "pool": "last"},
        {"cell": "gru", "bidirectional": True},
        {"cell": "lstm", "num_layers": 2, "bidirectional": True, "pool": "last", "dropout": 0.4},
    ],
)
def test_sequence_model(target: Target, options: dict) -> None:  # type: ignore[type-arg]
    model = sequence_model(4, 3, hidden_size=5, **options)
    params = target.tree(model.init(0, dtype="float64"))
    labels = np.array([0, 2, 1])

    def loss(**changed: object) -> tuple:  # type: ignore[type-arg]
        logits, _, cache = model.forward(
            changed.get("params", params),  # type: ignore[arg-type]
            target.asarray(X),
            lengths=LENGTHS,
            dropout_seed=3,
        )
        target.check(logits, (3, 3), "float64")
        return *losses.softmax_cross_entropy(logits, target.asarray(labels)), cache

    _, dlogits, cache = loss()
    gradients, _, _ = model.backward(params, cache, dlogits)
    direction = {name: RNG.standard_normal(shape) for name, shape in model.shapes.items()}
    slope = sum((target.to_numpy(gradients[n]) * direction[n]).sum() for n in direction)
    ends = []
    for step in (1e-6, -1e-6):
        moved = {n: target.to_numpy(params[n]) + step * direction[n] for n in direction}
        ends.append(float(loss(params=target.tree(moved))[0]))
    assert abs((ends[0] - ends[1]) / 2e-6 - slope) < 1e-6 * abs(slope)


def test_a_mean_of_half_precision_is_added_in_single() -> None:
    y, _ = Pool().forward({}, np.ones((5000, 1, 2), "float16"))
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, 1.0, rtol=1e-3)


@pytest.mark.parametrize("layer", [Pool(), Pool("last"), Pool("last", True)], ids=repr)
def test_the_gradient_is_an_array_of_its_own(layer: Pool) -> None:
    y, cache = layer.forward({}, X)
    _, dx = layer.backward({}, cache, y)
    dx += 1.0


def test_a_cache_serves_one_backward_call() -> None:
    layer = Pool()
    y, cache = layer.forward({}, X)
    with pytest.raises(ValueError, match="dy must have shape"):
        layer.backward({}, cache, y[:1])
    layer.backward({}, cache, y)
    with pytest.raises(ValueError, match="used by a backward call before"):
        layer.backward({}, cache, y)
    with pytest.raises(ValueError, match="cache is not from the forward call of Pool"):
        Pool("last").backward({}, cache, y)


def test_errors() -> None:
    with pytest.raises(ValueError, match="kind must be one of mean, last, got 'max'"):
        Pool("max")
    with pytest.raises(TypeError, match="bidirectional must be True or False"):
        Pool("mean", 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x must have shape \(T, B, F\)"):
        Pool()({}, X[0])
    with pytest.raises(ValueError, match=r"lengths must lie in 1\.\.5 \(T\), got 0"):
        Pool()({}, X, lengths=[0, 1, 2])
    _, cache = Pool().forward({}, X)
    with pytest.raises(ValueError, match=r"dy must have shape \(3, 4\)"):
        Pool().backward({}, cache, X[0, :2])
    with pytest.raises(ValueError, match=r"cell must be one of rnn, lstm, gru, .*got 'elman'"):
        sequence_model(1, 1, cell="elman")


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="x must be floating-point, got int64"):
        Pool("mean")({}, np.full((4, 1, 2), 8))
