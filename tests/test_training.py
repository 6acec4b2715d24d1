"""The training loop and the evaluation, against what they should compute."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rnn_xp import character_model, losses, optim
from rnn_xp.backend import select
from rnn_xp.models import Chain
from rnn_xp.sampling import sample
from rnn_xp.text import TextError, Vocabulary
from rnn_xp.training import Progress, Report, Settings, Trainer, evaluate, flatten, restore

TEXT = "in the beginning was the word, and the word was with all.\n" * 40
VOCABULARY = Vocabulary.of(TEXT)
CODES = VOCABULARY.encode(TEXT)
NUMPY = select("numpy")
SMALL = Settings(passes=2, batch_size=4, time_steps=16, patience=3)


def small_model(**options: Any) -> Chain:
    return character_model(len(VOCABULARY), embedding_size=6, hidden_size=10, **options)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("length", [2, 3, 100, 1300])
@pytest.mark.parametrize("context", [0, 1, 255, 256, 700])
def test_evaluation_in_parts_is_the_loss_of_one_pass(cell: str, length: int, context: int) -> None:
    model = small_model(cell=cell, num_layers=2)
    params = model.init(1, dtype="float64")
    before, codes = CODES[:context], CODES[context : context + length]
    found = evaluate(
        model, params, NUMPY, codes, context=before if context else None, streams=8, warm=256
    )
    text = np.concatenate((before[-256:], codes))
    first = max(1, min(context, 256))
    logits, _ = model(params, text[:-1, None])
    targets = text[1:, None]
    mask = np.arange(1, len(text))[:, None] >= first
    expected, _ = losses.softmax_cross_entropy(logits, targets, mask=mask)
    # A part begins with the memory of 256 characters, not of all.
    assert found == pytest.approx(float(expected), rel=1e-9 if length < 1000 else 1e-3)


def test_a_step_is_truncated_backpropagation_with_the_state_carried() -> None:
    model = small_model()
    trainer = Trainer(model, NUMPY, "float64", CODES[:1000], CODES[1000:1200], SMALL)
    progress = trainer.start()
    seen: list[Progress] = []
    trainer.run(progress, on_step=lambda p: seen.append(Progress(**vars(p))))
    assert len(seen) == trainer.steps == 2 * trainer.steps_a_pass

    params = model.init((0, 0), dtype="float64")
    adam = optim.Adam(optim.warmup_cosine(0.004, trainer.steps, 0, 0.004 * 0.05))
    memory, state = adam.init(params), None
    length = 999 // 4
    streams = CODES[: 4 * length].reshape(4, length).T
    following = CODES[1 : 4 * length + 1].reshape(4, length).T
    for step, after in enumerate(seen):
        start = step % trainer.steps_a_pass * 16
        if start == 0:
            state = None
        logits, state, cache = model.forward(params, streams[start : start + 16], state)
        _, dlogits = losses.softmax_cross_entropy(logits, following[start : start + 16])
        grads, _, _ = model.backward(params, cache, dlogits)
        grads, _ = optim.clip_by_global_norm(grads, 1.0)
        params, memory = adam.update(grads, memory, params)
        for name, value in params.items():
            np.testing.assert_allclose(after.params[name], value, rtol=0, atol=1e-12)


def test_the_validation_loss_falls_and_the_best_is_kept() -> None:
    settings = Settings(passes=30, batch_size=4, time_steps=16, seed=3)
    trainer = Trainer(small_model(), NUMPY, "float32", CODES[:2000], CODES[2000:], settings)
    progress, reports = trainer.start(), list[Report]()
    outcome = trainer.run(progress, on_report=lambda report, _: reports.append(report))
    assert outcome == "finished"
    assert reports[-1].validation_loss < 0.5 * reports[0].validation_loss
    assert progress.best_loss == min(report.validation_loss for report in reports)
    again = evaluate(trainer.model, progress.best_params, NUMPY, CODES[2000:], context=CODES[:2000])
    assert again == progress.best_loss


def test_a_whole_pass_on_another_library_s_arrays() -> None:
    """The last step of a pass is shorter, and array-api-strict takes no slice beyond the end."""
    progress = []
    for name in ("numpy", "strict"):
        settings = Settings(passes=1, batch_size=4, time_steps=16)
        backend = select(name)
        trainer = Trainer(small_model(), backend, "float64", CODES[:500], CODES[500:560], settings)
        assert trainer.steps_a_pass * 16 > 500 // 4
        progress.append(trainer.start())
        assert trainer.run(progress[-1]) == "finished"
    assert progress[1].best_loss == pytest.approx(progress[0].best_loss, rel=1e-12)


def test_early_stop() -> None:
    settings = Settings(passes=50, batch_size=4, time_steps=16, patience=2, learning_rate=5.0)
    trainer = Trainer(small_model(), NUMPY, "float32", CODES[:500], CODES[500:600], settings)
    progress = trainer.start()
    assert trainer.run(progress) == "early stop"
    assert progress.waited == 2
    assert progress.step == progress.best_step + 2 * trainer.steps_a_pass


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("after", [1, 7, 20])
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_training_goes_on_from_flattened_progress_bit_for_bit(
    cell: str, after: int, average: float
) -> None:
    model = small_model(cell=cell, num_layers=2, dropout=0.3)
    settings = replace(SMALL, average=average)
    trainer = Trainer(model, NUMPY, "float32", CODES[:1000], CODES[1000:1100], settings)
    whole = trainer.start()
    trainer.run(whole)
    part = trainer.start()
    assert trainer.run(part, stop=lambda: part.step == after) == "stopped"
    values, arrays = flatten(part, settings)
    resumed = restore(values, {k: v.copy() for k, v in arrays.items()}, part.best_params)
    assert trainer.run(resumed) == "finished"
    assert resumed.best_loss == whole.best_loss
    for name, value in whole.params.items():
        assert np.array_equal(resumed.params[name], value)
        assert np.array_equal(resumed.best_params[name], whole.best_params[name])


def test_the_mean_of_the_parameters_is_evaluated_and_kept() -> None:
    settings = replace(SMALL, average=0.8)
    model = small_model()
    train, validation = CODES[:1000], CODES[1000:1100]
    trainer = Trainer(model, NUMPY, "float64", train, validation, settings)
    progress = trainer.start()
    mean, step = dict(progress.params), 0
    reports = list[Report]()

    def on_step(now: Progress) -> None:
        nonlocal mean, step
        decay = min(0.8, (1 + step) / (10 + step))
        mean = {k: decay * old + (1 - decay) * now.params[k] for k, old in mean.items()}
        step += 1

    trainer.run(progress, on_step=on_step, on_report=lambda report, _: reports.append(report))
    assert reports[-1].best
    for name, value in mean.items():
        np.testing.assert_allclose(progress.best_params[name], value, rtol=1e-12, atol=1e-14)
    loss = evaluate(model, mean, NUMPY, validation, context=train)
    assert reports[-1].validation_loss == pytest.approx(loss, rel=1e-12)
    plain = Trainer(model, NUMPY, "float64", train, validation, SMALL)
    other = plain.start()
    plain.run(other)
    for name, value in other.params.items():  # the mean does not act on the training
        assert np.array_equal(progress.params[name], value)


def test_progress_of_a_version_without_the_mean() -> None:
    trainer = Trainer(small_model(), NUMPY, "float32", CODES[:1000], CODES[1000:1100], SMALL)
    progress = trainer.start()
    values, arrays = flatten(progress, SMALL)
    del values["average"]
    assert restore(values, arrays, progress.best_params).average is None


def test_not_enough_text() -> None:
    with pytest.raises(TextError, match=r"64 characters to train on.* needs 65"):
        Trainer(small_model(), NUMPY, "float32", CODES[:64], CODES[64:90], SMALL)
    with pytest.raises(TextError, match="validate"):
        Trainer(small_model(), NUMPY, "float32", CODES[:65], CODES[65:66], SMALL)
    for name, value, message in (
        ("max_steps", 0, "max_steps must be an integer >= 1, got 0"),
        ("batch_size", 0, "batch_size must be an integer >= 1, got 0"),
        ("time_steps", -1, "time_steps must be an integer >= 1, got -1"),
        ("passes", 1e300, r"passes must be less than 2\*\*53 steps, got 1e\+300"),
    ):
        wrong = replace(SMALL, **{name: value})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=message):
            Trainer(small_model(), NUMPY, "float32", CODES, CODES, wrong)


def test_vocabulary() -> None:
    vocabulary = Vocabulary.of("banana")
    assert vocabulary.characters == "abn"
    assert vocabulary.encode("nab").tolist() == [2, 0, 1]
    with pytest.raises(TextError, match=r"never seen 'x' \(U\+0078\), 'é' \(U\+00E9\)"):
        vocabulary.encode("xabé")
    assert vocabulary.encode("xabé", skip_unknown=True).tolist() == [0, 1]


def write(length: int = 4000, **options: Any) -> str:
    model = character_model(len(VOCABULARY), cell="rnn", embedding_size=2, hidden_size=2)
    params = {name: 0 * value for name, value in model.init(0).items()}
    bias = np.linspace(0.0, 2.0, len(VOCABULARY), dtype="float32")
    params["linear.bias"] = bias
    return "".join(sample(model, params, VOCABULARY, NUMPY, CODES[:3], length, **options))


def test_samples_follow_the_model_s_distribution() -> None:
    for temperature in (0.5, 1.0, 3.0):
        text = write(temperature=temperature)
        weights = np.exp(np.linspace(0.0, 2.0, len(VOCABULARY)) / temperature)
        for share, character in zip(weights / weights.sum(), VOCABULARY.characters, strict=True):
            spread = 5.0 * math.sqrt(share * (1 - share) / len(text))
            assert abs(text.count(character) / len(text) - share) < spread


def test_sampling_options() -> None:
    assert set(write(100, temperature=0.0)) == {VOCABULARY.characters[-1]}
    assert set(write(300, top_k=2)) == set(VOCABULARY.characters[-2:])
    assert write(50, seed=1) == write(50, seed=1) != write(50, seed=2)
    assert write(0) == ""
    with pytest.raises(ValueError, match="temperature must be a number >= 0, got -1"):
        write(1, temperature=-1)
    for k in (0, -1):
        with pytest.raises(ValueError, match=f"top_k must be an integer >= 1, got {k}"):
            write(1, top_k=k)
