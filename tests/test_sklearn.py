"""The scikit-learn estimators: its own checks, its tools around them, and real data."""

from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from targets import need, need_module

from rnn_xp.backend import BackendError
from rnn_xp.datasets import load_japanese_vowels
from rnn_xp.sequences import SequenceError

HostArray = np.ndarray[Any, Any]


@pytest.fixture(autouse=True)
def estimators() -> Any:
    """The module under test, which needs scikit-learn."""
    need_module("sklearn")
    import rnn_xp.sklearn

    return rnn_xp.sklearn


SMALL: dict[str, Any] = {
    "hidden_size": 6,
    "epochs": 12,
    "learning_rate": 0.03,
    "random_state": 0,
    "dtype": "float64",
}


def waves(count: int = 40, seed: int = 0) -> tuple[list[HostArray], HostArray, HostArray]:
    """Ragged sequences (T, 2) of two kinds: rising and falling; their labels and their slopes."""
    rng = np.random.default_rng(seed)
    slopes = rng.uniform(0.5, 1.5, count) * np.where(np.arange(count) % 2, 1, -1)
    x = []
    for slope in slopes:
        steps = np.linspace(-1, 1, int(rng.integers(4, 12)))[:, None]
        x.append(np.hstack((slope * steps, 5.0 + 0.0 * steps)) + 0.1 * rng.standard_normal())
    return x, np.where(slopes > 0, "up", "down"), slopes


# scikit-learn's own checks


@pytest.mark.parametrize("name", ["RNNClassifier", "RNNRegressor"])
def test_scikit_learn_s_checks(estimators: Any, name: str) -> None:
    """All of them pass; skipped is what needs pandas where it is absent, or SCIPY_ARRAY_API."""
    from sklearn.utils.estimator_checks import check_estimator

    # Predictions of one sequence and of many are compared at 1e-7: float64, as in SMALL. The target
    # of a regression depends on one of ten features, at a step that must be told from the others.
    options = SMALL | ({"hidden_size": 8, "epochs": 60} if name == "RNNRegressor" else {})
    results = check_estimator(getattr(estimators, name)(**options), on_fail=None, on_skip=None)
    assert len(results) > 40
    fine = ("passed", "skipped")
    bad = [(r["check_name"], r["exception"]) for r in results if r["status"] not in fine]
    assert not bad


# The forms of X


@pytest.mark.parametrize("name", ["RNNClassifier", "RNNRegressor"])
def test_forms_of_x(estimators: Any, name: str) -> None:
    """A table, its sequences (N, T, 1), a list and an object array of them: one network."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((12, 5))
    y = np.arange(12) % 3
    ragged = list(table[:, :, None])
    objects = np.empty(12, dtype=object)
    objects[:] = ragged
    forms = (table, table.tolist(), table[:, :, None], ragged, objects, table[:, :, None].tolist())
    found = []
    for x in forms:
        estimator = getattr(estimators, name)(**SMALL).fit(x, y)
        assert estimator.n_features_in_ == (5 if np.ndim(x[0]) == 1 else 1)
        found.append(estimator.predict(x))
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_a_fit_to_one_form_and_a_use_of_another(estimators: Any) -> None:
    x, labels, _ = waves(6)
    table = np.arange(12.0).reshape(6, 2)
    with pytest.raises(ValueError, match="X is a table, but this RNNClassifier was fitted"):
        estimators.RNNClassifier(**SMALL).fit(x, labels).predict(table)
    with pytest.raises(ValueError, match="X is sequences, but this RNNClassifier was fit"):
        estimators.RNNClassifier(**SMALL).fit(table, labels).predict(x)
    with pytest.raises(ValueError, match="X has 1 channels, but this RNNClassifier was fitted"):
        estimators.RNNClassifier(**SMALL).fit(x, labels).predict([value[:, :1] for value in x])


def test_a_data_frame(estimators: Any) -> None:
    pandas = need_module("pandas")
    x, labels, _ = waves(6)
    frame = pandas.DataFrame(np.arange(12.0).reshape(6, 2), columns=["a", "b"])
    estimator = estimators.RNNClassifier(**SMALL).fit(frame, labels)
    assert list(estimator.feature_names_in_) == ["a", "b"]
    estimator.predict(frame)
    with pytest.raises(ValueError, match="feature names"):
        estimator.predict(frame.rename(columns={"a": "c"}))
    assert not hasattr(estimator.fit(x, labels), "feature_names_in_")


# What is learnt


def test_classes_and_probabilities(estimators: Any) -> None:
    x, labels, _ = waves()
    estimator = estimators.RNNClassifier(**SMALL | {"epochs": 30}).fit(x, labels)
    assert estimator.classes_.tolist() == ["down", "up"]
    assert estimator.n_features_in_ == 2
    assert len(estimator.loss_curve_) == 30
    assert estimator.loss_curve_[-1] < estimator.loss_curve_[0]
    found, expected, _ = waves(30, seed=1)
    chances = estimator.predict_proba(found)
    assert chances.shape == (30, 2)
    np.testing.assert_allclose(chances.sum(axis=1), 1.0, rtol=1e-12)
    assert np.array_equal(estimator.predict(found), estimator.classes_[chances.argmax(axis=1)])
    assert estimator.score(found, expected) == 1.0


def test_targets_of_any_scale(estimators: Any) -> None:
    x, _, slopes = waves()
    found, _, expected = waves(30, seed=1)
    estimator = estimators.RNNRegressor(**SMALL | {"epochs": 40}).fit(x, 1e6 + 1e4 * slopes)
    assert estimator.score(found, 1e6 + 1e4 * expected) > 0.9
    small = estimators.RNNRegressor(**SMALL | {"epochs": 40}).fit(x, slopes)
    np.testing.assert_allclose(
        (estimator.predict(found) - 1e6) / 1e4, small.predict(found), rtol=0, atol=1e-7
    )


def test_several_targets(estimators: Any) -> None:
    x, _, slopes = waves()
    y = np.stack((slopes, np.full(len(slopes), 3.0), -slopes), axis=1)
    estimator = estimators.RNNRegressor(**SMALL | {"epochs": 40}).fit(x, y)
    predicted = estimator.predict(x)
    assert predicted.shape == y.shape
    assert np.corrcoef(predicted[:, 0], slopes)[0, 1] > 0.95
    assert np.corrcoef(predicted[:, 2], slopes)[0, 1] < -0.95
    assert abs(predicted[:, 1] - 3.0).max() < 0.5  # a constant one is not divided by its deviation
    assert estimators.RNNRegressor(**SMALL).fit(x, y[:, :1]).predict(x).shape == (len(x), 1)


def test_channels_are_standardised(estimators: Any) -> None:
    x, labels, _ = waves()
    estimator = estimators.RNNClassifier(**SMALL).fit(x, labels)
    frames = np.concatenate(x)
    np.testing.assert_allclose(estimator.mean_, frames.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(estimator.scale_, frames.std(axis=0), rtol=1e-12)
    moved = [value * [100.0, 1.0] - [0.0, 7.0] for value in x]
    other = estimators.RNNClassifier(**SMALL).fit(moved, labels)
    np.testing.assert_allclose(
        other.predict_proba(moved), estimator.predict_proba(x), rtol=0, atol=1e-9
    )
    # 0.1 is no sum of powers of two: the rounding of its mean is no deviation.
    steady = [np.column_stack([value, np.full(len(value), 0.1)]) for value in x]
    assert estimators.RNNClassifier(**SMALL).fit(steady, labels).scale_[-1] == 1.0
    raw = estimators.RNNClassifier(**SMALL, standardize=False).fit(x, labels)
    assert raw.mean_.tolist() == [0.0, 0.0]
    assert raw.scale_.tolist() == [1.0, 1.0]


def test_every_parameter_reaches_the_network(estimators: Any) -> None:
    x, labels, _ = waves(8)
    options: dict[str, Any] = {"cell": "lstm", "num_layers": 2, "bidirectional": True}
    options |= {"dropout": 0.2, "pool": "last", "hidden_size": 3, "epochs": 2, "batch_size": 3}
    estimator = estimators.RNNClassifier(**SMALL | options).fit(x, labels)
    recurrent, pool, dropout, linear = (layer for _, layer in estimator.model_.layers)
    assert repr(recurrent).startswith("LSTM(input_size=2, hidden_size=3, num_layers=2")
    assert recurrent.bidirectional
    assert (pool.kind, dropout.rate, linear.output_size) == ("last", 0.2, 2)
    assert len(estimator.loss_curve_) == 2
    assert {str(value.dtype) for value in estimator.params_.values()} == {"float64"}
    for name, value in (("weight_decay", 0.5), ("clip", 1e-3), ("learning_rate", 1e-4)):
        changed = estimators.RNNClassifier(**SMALL | options | {name: value}).fit(x, labels)
        assert not np.array_equal(changed.predict_proba(x), estimator.predict_proba(x)), name


def test_random_state(estimators: Any) -> None:
    x, labels, _ = waves(8)

    def fitted(state: Any) -> HostArray:
        options = SMALL | {"random_state": state, "epochs": 1}
        found = estimators.RNNClassifier(**options).fit(x, labels).predict_proba(x)
        return np.asarray(found)

    assert np.array_equal(fitted(3), fitted(3))
    assert not np.array_equal(fitted(3), fitted(4))
    state = np.random.RandomState(3)
    first = fitted(state)
    assert np.array_equal(first, fitted(3))
    assert not np.array_equal(first, fitted(state))
    assert not np.array_equal(fitted(None), fitted(None))


@pytest.mark.parametrize("backend", ["strict", "torch"])
def test_backends(estimators: Any, backend: str) -> None:
    need(backend)
    x = np.random.default_rng(0).standard_normal((8, 5, 2))
    labels = np.arange(8) % 2
    options = SMALL | {"dtype": "float32", "epochs": 3}
    expected = estimators.RNNClassifier(**options).fit(x, labels)
    found = estimators.RNNClassifier(**options, backend=backend).fit(x, labels)
    # The same random numbers; float32 sums in another order, over three updates.
    np.testing.assert_allclose(found.predict_proba(x), expected.predict_proba(x), rtol=0, atol=1e-4)
    assert all(type(value) is np.ndarray for value in found.params_.values())
    again = pickle.loads(pickle.dumps(found)).set_params(backend="numpy")
    np.testing.assert_allclose(again.predict_proba(x), found.predict_proba(x), rtol=0, atol=1e-5)


# scikit-learn's tools


@pytest.mark.parametrize("name", ["RNNClassifier", "RNNRegressor"])
def test_clone_and_pickle(estimators: Any, name: str) -> None:
    from sklearn.base import clone

    x, labels, slopes = waves(8)
    estimator = getattr(estimators, name)(**SMALL)
    estimator.fit(x, labels if name == "RNNClassifier" else slopes)
    copy = clone(estimator)
    assert copy.get_params() == estimator.get_params()
    assert not hasattr(copy, "params_")
    again = pickle.loads(pickle.dumps(estimator))
    np.testing.assert_array_equal(again.predict(x), estimator.predict(x))
    assert estimator.set_params(hidden_size=9).hidden_size == 9
    with pytest.raises(ValueError, match="Invalid parameter 'units'"):
        estimator.set_params(units=3)


def test_a_pipeline_over_a_table(estimators: Any) -> None:
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    table = 100.0 + rng.standard_normal((60, 8)) * 3
    table[:, 2:6] += np.where(y[:, None], 1, -1) * np.asarray([2.0, 4.0, 4.0, 2.0])
    estimator = estimators.RNNClassifier(**SMALL | {"epochs": 30})
    pipeline = make_pipeline(StandardScaler(), estimator)
    assert cross_val_score(pipeline, table, y, cv=3).mean() > 0.8


def test_japanese_vowels_in_a_grid_search(estimators: Any) -> None:
    """Real, ragged sequences: chosen by cross-validation on the training part, then tested."""
    from sklearn.model_selection import GridSearchCV

    train, test = load_japanese_vowels()
    search = GridSearchCV(
        estimators.RNNClassifier(epochs=8, learning_rate=0.01, random_state=0),
        {"hidden_size": np.asarray([8, 32]), "bidirectional": [True]},
        cv=3,
    )
    search.fit(list(train.values), train.labels)
    assert search.best_params_["hidden_size"] == 32
    assert search.best_estimator_.classes_.tolist() == [str(k) for k in range(1, 10)]
    # The mean vector of each speaker gives 0.938, and so many epochs are few.
    assert search.score(list(test.values), test.labels) > 0.93
    assert search.best_estimator_.score(test, test.labels) > 0.93  # Sequences, too


# What is wrong


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cell": "elman"}, "cell must be one of rnn, lstm, gru, .*got 'elman'"),
        ({"hidden_size": 0}, "hidden_size must be an integer >= 1, got 0"),
        ({"num_layers": 1.5}, "num_layers must be an integer >= 1, got 1.5"),
        ({"dropout": 2.0}, "dropout must be a number in 0..1, got 2.0"),
        ({"pool": "max"}, "kind must be one of mean, last, got 'max'"),
        ({"epochs": 0}, "epochs must be an integer >= 1, got 0"),
        ({"batch_size": 2.0}, "batch_size must be an integer >= 1, got 2.0"),
        ({"learning_rate": 0.0}, "learning_rate must be a number above 0, got 0.0"),
        ({"clip": -1.0}, "clip must be a number above 0, got -1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be a number from 0, got -0.1"),
        ({"learning_rate": "a"}, "learning_rate must be a number, got 'a'"),
        ({"clip": None}, "clip must be a number, got None"),
        ({"weight_decay": None}, "weight_decay must be a number, got None"),
        ({"random_state": "x"}, "'x' cannot be used to seed"),
        ({"dtype": "int7"}, "dtype int7 does not exist"),
        ({"backend": "abacus"}, "unknown backend 'abacus'"),
    ],
)
def test_parameters_out_of_range(estimators: Any, options: dict[str, Any], message: str) -> None:
    x, labels, _ = waves(4)
    with pytest.raises((ValueError, TypeError, BackendError), match=message):
        estimators.RNNClassifier(**SMALL | options).fit(x, labels)


def test_what_diverges_late(estimators: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameters from before are kept, and a warning says so."""
    x, _, targets = waves(8)
    calls = []

    def finite(params: Any) -> bool:
        calls.append(params)
        return len(calls) < 3

    monkeypatch.setattr("rnn_xp.fitting.are_finite", finite)
    from sklearn.exceptions import ConvergenceWarning

    with pytest.warns(ConvergenceWarning, match="not finite after epoch 2, whose parameters"):
        estimator = estimators.RNNRegressor(**SMALL).fit(x, targets)
    assert len(estimator.loss_curve_) == 3
    for name, value in calls[1].items():
        np.testing.assert_array_equal(estimator.params_[name], value)


def test_sequences_that_are_not_real(estimators: Any) -> None:
    x, labels, _ = waves(4)
    with pytest.raises(ValueError, match="sequences of X must be real"):
        estimators.RNNClassifier(**SMALL).fit([value + 1j for value in x], labels)


def test_sequences_that_cannot_be_used(estimators: Any) -> None:
    x, labels, _ = waves(4)
    fit = estimators.RNNClassifier(**SMALL).fit
    with pytest.raises(SequenceError, match="sequence 2 has nan at step 1, channel 0"):
        fit([*x[:2], np.asarray([[1.0, 2.0], [np.nan, 3.0]]), x[3]], labels)
    with pytest.raises(SequenceError, match="sequence 1 has 3 channels, the first one 2"):
        fit([x[0], np.ones((4, 3)), *x[2:]], labels)
    with pytest.raises(SequenceError, match=r"sequence 1 must have shape \(T, C\), got \(0, 2\)"):
        fit([x[0], np.ones((0, 2)), *x[2:]], labels)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        fit(x, labels[:3])
    with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
        fit(x, None)
    with pytest.raises(ValueError, match="Expected 2D array, got 1D array instead"):
        fit([], [])
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        fit(x, [0.1, 0.2, 0.3, 0.4])
    with pytest.raises(ValueError, match="contains NaN"):
        estimators.RNNRegressor(**SMALL).fit(x, [1.0, np.nan, 2.0, 3.0])


def test_a_use_before_the_fit(estimators: Any) -> None:
    from sklearn.exceptions import NotFittedError

    for call in ("predict", "predict_proba"):
        with pytest.raises(NotFittedError, match="RNNClassifier instance is not fitted yet"):
            getattr(estimators.RNNClassifier(), call)(waves(2)[0])


def test_without_scikit_learn() -> None:
    code = "import sys; sys.modules['sklearn'] = None; import rnn_xp.sklearn"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    line = "ImportError: scikit-learn is not installed: pip install 'rnn-xp[sklearn]'"
    assert run.stderr.strip().splitlines()[-1] == line
