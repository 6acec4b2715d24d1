"""Classifiers of sequences: numbers of labels and channels, splits, gradients, parity."""

from __future__ import annotations

import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from targets import Target

from rnn_xp import backend
from rnn_xp.fitting import Settings, fit
from rnn_xp.losses import softmax_cross_entropy
from rnn_xp.models import sequence_model
from rnn_xp.sequences import SequenceError, Sequences
from rnn_xp.tasks.classify import (
    Encoding,
    confusion_matrix,
    cross_entropy,
    probabilities,
    stratified_split,
)
from rnn_xp.tasks.examples import gradients_of, outputs_of

EXAMPLES = Path(__file__).parent.parent / "examples"


def ragged(lengths: list[int], channels: int = 3, seed: int = 0) -> Sequences:
    rng = np.random.default_rng(seed)
    labels = tuple("abc"[k % 3] for k in range(len(lengths)))
    return Sequences(tuple(rng.normal(size=(steps, channels)) for steps in lengths), labels)


def test_encoding_standardises_by_the_training_part() -> None:
    first = np.asarray([[1.0, 5.0], [3.0, 5.0]])
    second = np.asarray([[8.0, 5.0]])
    encoding = Encoding.of(Sequences((first, second), ("10", "9")))
    assert encoding.classes == ("9", "10")
    assert encoding.mean == (4.0, 5.0)
    # Of 1, 3, 8 around 4: (9 + 1 + 16) / 3; a channel that never changes is only shifted.
    assert encoding.deviation == pytest.approx(((26 / 3) ** 0.5, 1.0), rel=1e-15)
    steady = tuple(np.full((7, 1), 0.1) for _ in range(2))  # the mean of such is rounded
    assert Encoding.of(Sequences(steady, ("a", "b"))).deviation == (1.0,)
    other = Sequences((np.asarray([[4.0, 6.0]]),), ("10",), ("name",))
    inputs, targets = encoding.encode(other)
    assert inputs.values[0].tolist() == [[0.0, 1.0]]
    assert inputs.name(0) == "name"
    assert targets.tolist() == [1]
    assert Encoding.restore(encoding.describe()) == encoding


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (("b", "a", "b"), ("a", "b")),
        (("10", "9", "-1"), ("-1", "9", "10")),
        (("10", "9", "x"), ("10", "9", "x")),
    ],
)
def test_the_order_of_the_classes(labels: tuple[str, ...], classes: tuple[str, ...]) -> None:
    assert Encoding.of(Sequences((np.ones((1, 1)),) * 3, labels)).classes == classes


def test_what_cannot_be_encoded() -> None:
    data = ragged([2, 3, 4])
    with pytest.raises(SequenceError, match="all sequences are of the class 'a': expected two"):
        Encoding.of(Sequences(data.values, ("a",) * 3))
    with pytest.raises(SequenceError, match="the sequences have no labels"):
        Encoding.of(Sequences(data.values))
    encoding = Encoding.of(data)
    with pytest.raises(SequenceError, match="have 2 channels, but the model reads 3"):
        encoding.encode(ragged([2, 3], channels=2))
    unknown = Sequences(data.values, ("a", "z", "b"))
    with pytest.raises(SequenceError, match=r"sequence 1 .* 'z', which .*never seen: .* a, b, c"):
        encoding.encode(unknown)
    with pytest.raises(SequenceError, match=r"sequence two .* 'z'"):
        encoding.encode(Sequences(data.values, unknown.labels, ("one", "two", "three")))


def test_scores_by_hand() -> None:
    logits = np.log(np.asarray([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]))
    assert probabilities(logits + 1000.0) == pytest.approx(np.exp(logits), abs=1e-12)
    targets = np.asarray([0, 1])
    assert cross_entropy(logits, targets) == pytest.approx(-(np.log(0.5) + np.log(0.2)) / 2)
    matrix = confusion_matrix(np.asarray([0, 0, 2, 2, 2]), np.asarray([0, 1, 2, 0, 2]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 2]]


def test_stratified_split() -> None:
    labels = ["a"] * 10 + ["b"] * 5 + ["c"] * 2 + ["d"]
    first, second = stratified_split(labels, 0.2, 0)
    assert sorted([*first, *second]) == list(range(18))
    assert [sum(labels[k] == name for k in second) for name in "abcd"] == [2, 1, 1, 0]
    again = stratified_split(labels, 0.2, 0)
    assert np.array_equal(again[1], second)
    assert not np.array_equal(stratified_split(labels, 0.2, 1)[1], second)
    with pytest.raises(SequenceError, match="nothing to hold out"):
        stratified_split(["a", "b"], 0.5, 0)


@pytest.mark.parametrize("pool", ["mean", "last"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_gradients_of_the_whole_classifier(cell: str, pool: str) -> None:
    """Central differences in float64, over a padded batch, dropout and noise as drawn."""
    data = ragged([5, 1, 3])
    targets = np.asarray([0, 1, 2])
    model = sequence_model(
        3, 3, cell=cell, hidden_size=4, num_layers=2, bidirectional=True, dropout=0.3, pool=pool
    )
    params = model.init(1, dtype="float64")
    gradients = gradients_of(
        model,
        backend.select("numpy"),
        "float64",
        data,
        targets,
        softmax_cross_entropy,
        noise=0.2,
    )
    indices = np.arange(3)
    _, found = gradients(params, indices, (7,))
    rng = np.random.default_rng(2)
    step = 1e-5
    for name, value in params.items():
        direction = rng.normal(size=value.shape)
        sides = [
            float(gradients({**params, name: value + sign * direction}, indices, (7,))[0])
            for sign in (step, -step)
        ]
        expected = (sides[0] - sides[1]) / (2 * step)
        inner = float(np.sum(found[name] * direction))
        assert inner == pytest.approx(expected, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_padding_does_not_matter(pool: str) -> None:
    data = ragged([9, 1, 4, 7, 2])
    numpy = backend.select("numpy")
    model = sequence_model(3, 2, hidden_size=5, num_layers=2, bidirectional=True, pool=pool)
    params = model.init(0, dtype="float64")
    together = outputs_of(model, params, numpy, "float64", data)
    for k in range(len(data)):
        alone, _ = model(params, data.values[k][:, None, :])
        assert together[k] == pytest.approx(alone[0], rel=1e-12)
    assert outputs_of(model, params, numpy, "float64", data, batch_size=2) == pytest.approx(
        together, rel=1e-12
    )


def test_noise_is_only_in_training_and_drawn_anew() -> None:
    data = ragged([4, 4])
    model = sequence_model(3, 2, hidden_size=4)
    params = model.init(0)
    plain, noisy = (
        gradients_of(
            model,
            backend.select("numpy"),
            "float32",
            data,
            np.asarray([0, 1]),
            softmax_cross_entropy,
            noise=noise,
        )
        for noise in (0.0, 1.0)
    )
    both = np.arange(2)
    losses = [float(noisy(params, both, (seed,))[0]) for seed in (0, 0, 1)]
    assert losses[0] == losses[1]
    assert len({*losses, float(plain(params, both, (0,))[0])}) == 3
    kept = [value.copy() for value in data.values]
    assert all(np.array_equal(a, b) for a, b in zip(kept, data.values, strict=True))


def test_one_seed_trains_the_same_on_every_backend(target: Target) -> None:
    data = ragged([5, 2, 7, 3, 4, 6])
    encoding = Encoding.of(data)
    inputs, targets = encoding.encode(data)
    model = sequence_model(3, 3, hidden_size=6, bidirectional=True, dropout=0.5)
    settings = Settings(epochs=3, batch_size=6, weight_decay=0.01)

    def trained(name: str, device: str | None) -> np.ndarray[Any, Any]:
        chosen = backend.select(name, device)
        params = model.init(5, backend=name, device=device)
        gradients = gradients_of(
            model, chosen, "float32", inputs, targets, softmax_cross_entropy, noise=0.5
        )
        fitted = fit(params, gradients, len(data), settings)
        return outputs_of(model, fitted.params, chosen, "float32", inputs)

    expected = trained("numpy", None)
    found = trained(target.backend, target.device_name)
    assert type(found) is np.ndarray
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_it_learns_what_only_the_order_of_the_steps_says() -> None:
    rng = np.random.default_rng(3)
    values, labels = [], []
    for k in range(60):
        rising = np.sort(rng.normal(size=(rng.integers(5, 12), 1)), axis=0)
        values.append(rising if k % 2 else rising[::-1])
        labels.append("rises" if k % 2 else "falls")
    data = Sequences(tuple(values), tuple(labels))
    inputs, targets = Encoding.of(data).encode(data)
    model = sequence_model(1, 2, hidden_size=8)
    chosen = backend.select("numpy")
    gradients = gradients_of(model, chosen, "float32", inputs, targets, softmax_cross_entropy)
    fitted = fit(model.init(0), gradients, 40, Settings(epochs=100, learning_rate=0.01))
    logits = outputs_of(model, fitted.params, chosen, "float32", inputs)[40:]
    assert (logits.argmax(axis=1) == targets[40:]).all()


def test_what_diverges() -> None:
    data = ragged([3, 4, 5, 6])
    inputs, targets = Encoding.of(data).encode(data)
    model, chosen = sequence_model(3, 3, hidden_size=2), backend.select("numpy")
    gradients = gradients_of(model, chosen, "float32", inputs, targets, softmax_cross_entropy)
    held_out = iter([3.0, 2.0, math.nan])
    fitted = fit(model.init(0), gradients, 4, Settings(), validate=lambda _: next(held_out))
    assert (fitted.outcome, fitted.epoch, fitted.validation_loss) == ("diverged", 2, 2.0)
    assert all(np.isfinite(value).all() for value in fitted.params.values())
    with pytest.raises(ValueError, match=r"diverged in its first epoch.*lower the learning rate"):
        fit(model.init(0), gradients, 4, Settings(), validate=lambda _: math.inf)
    # Of one batch an epoch, the first epoch's loss is that of the drawn parameters.
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="diverged"):
        fit(model.init(0), gradients, 4, Settings(learning_rate=1e300))


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "speech.py"), run_name="__main__")
    words = capsys.readouterr().out.split()
    assert float(words[words.index("%") - 1]) > 90.0
