"""Who speaks? The Japanese Vowels utterances: cross-validation, five seeds, and two baselines.

    python benchmarks/speech.py > benchmarks/results/speech.md

The settings are chosen by cross-validation on the training part alone; the test part decides
nothing. It measures the models that `rnn-xp train classify` trains with its defaults.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import contextlib
import io
import platform
import re
import tempfile
from dataclasses import replace
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import numpy as np

from rnn_xp import losses, sequence_model
from rnn_xp.backend import select
from rnn_xp.cli import main as command_line
from rnn_xp.cli.classify import DEFAULT
from rnn_xp.cli.options import Parser
from rnn_xp.datasets import load_japanese_vowels
from rnn_xp.doctor.machine import processor, usable
from rnn_xp.fitting import fit
from rnn_xp.random import generator, spawn
from rnn_xp.sequences import Sequences
from rnn_xp.tasks.classify import Encoding, cross_entropy
from rnn_xp.tasks.examples import gradients_of, outputs_of

Array = np.ndarray[Any, Any]

FOLDS, REPEATS, SEEDS = 5, 2, 5


class Choice(NamedTuple):
    """What is chosen among; all else is as the command's defaults."""

    cell: str
    pool: str
    noise: float
    hidden_size: int = 64
    epochs: int = 60


GRID = [Choice(*values) for values in product(("gru", "lstm"), ("mean", "last"), (0.0, 0.5, 1.0))]
# Tried on the best one of the grid, one at a time.
CHANGES: tuple[dict[str, Any], ...] = (
    {"noise": 0.75},
    {"hidden_size": 128},
    {"epochs": 120},
)


def logits_of(choice: Choice, train: Sequences, other: Sequences, seed: int) -> Array:
    """Train on one part, and return the outputs on another."""
    backend = select("numpy")
    encoding = Encoding.of(train)
    inputs, targets = encoding.encode(train)
    model = sequence_model(
        train.channels,
        len(encoding.classes),
        cell=choice.cell,
        hidden_size=choice.hidden_size,
        bidirectional=True,
        dropout=0.5,
        pool=choice.pool,
    )
    gradients = gradients_of(
        model,
        backend,
        "float32",
        inputs,
        targets,
        losses.softmax_cross_entropy,
        noise=choice.noise,
    )
    settings = replace(DEFAULT, epochs=choice.epochs, seed=seed)
    fitted = fit(model.init(spawn(seed, 2)), gradients, len(targets), settings)
    return outputs_of(model, fitted.params, backend, "float32", encoding.standardise(other))


def folds(targets: Array, seed: int) -> Array:
    """Return the fold of each example, each class spread evenly."""
    rng = generator(seed)
    result = np.empty(len(targets), dtype=np.int64)
    for k in np.unique(targets):
        members = rng.permutation(np.flatnonzero(targets == k))
        result[members] = np.arange(len(members)) % FOLDS
    return result


def cross_validate(choice: Choice, data: Sequences) -> tuple[float, float]:
    """Return accuracy and cross-entropy on what was held out, over all folds and repeats."""
    _, targets = Encoding.of(data).encode(data)
    right, loss = [], []
    for repeat in range(REPEATS):
        fold = folds(targets, repeat)
        for k in range(FOLDS):
            kept, out = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
            logits = logits_of(choice, data.take(kept), data.take(out), seed=k)
            right.extend(logits.argmax(axis=1) == targets[out])
            loss.append(cross_entropy(logits, targets[out]) * len(out))
    return float(np.mean(right)), sum(loss) / len(right)


def test_accuracy(seed: int) -> tuple[float, float]:
    """Train with the command's defaults; return accuracy and cross-entropy on the test part."""
    out = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(out):
        model = str(Path(folder) / "model.safetensors")
        arguments = ["train", "classify", "--seed", str(seed), "--backend", "numpy", "--out", model]
        code = command_line(arguments)
    found = re.search(r"test: accuracy .*\((\d+) of (\d+)\), cross-entropy (\S+)", out.getvalue())
    if code or not found:
        raise SystemExit(f"rnn-xp {' '.join(arguments)} failed: {out.getvalue()}")
    return int(found[1]) / int(found[2]), float(found[3])


def mean_vectors(data: Sequences) -> Array:
    return np.stack([value.mean(axis=0) for value in data.values]).astype(np.float64)


def nearest_mean_vector(train: Sequences, test: Sequences) -> float:
    """Classify by the nearest neighbour of the mean vector."""
    distance = ((mean_vectors(test)[:, None, :] - mean_vectors(train)) ** 2).sum(axis=2)
    return agreement(np.asarray(train.labels)[distance.argmin(axis=1)], test)


def linear_discriminant(train: Sequences, test: Sequences) -> float:
    """Classify mean vectors by the nearest class mean, in the metric of the shared covariance."""
    x, y = mean_vectors(train), np.asarray(train.labels)
    names, numbers = np.unique(y, return_inverse=True)
    centres = np.stack([x[numbers == k].mean(axis=0) for k in range(len(names))])
    within = x - centres[numbers]
    root = np.linalg.cholesky(np.linalg.inv(within.T @ within / (len(x) - len(names))))
    away = (mean_vectors(test)[:, None, :] - centres) @ root
    return agreement(names[(away**2).sum(axis=2).argmin(axis=1)], test)


def nearest_class_mean(train: Sequences, test: Sequences) -> float:
    """Classify mean vectors by the nearest class mean."""
    x, y = mean_vectors(train), np.asarray(train.labels)
    names = np.unique(y)
    centres = np.stack([x[y == name].mean(axis=0) for name in names])
    distance = ((mean_vectors(test)[:, None, :] - centres) ** 2).sum(axis=2)
    return agreement(names[distance.argmin(axis=1)], test)


def nearest_utterance(train: Sequences, test: Sequences) -> float:
    """Classify by the nearest neighbour under dynamic time warping of all channels together."""
    known, lengths = train.padded().astype(np.float64), train.lengths
    found = [warped(value.astype(np.float64), known, lengths).argmin() for value in test.values]
    return agreement(np.asarray(train.labels)[found], test)


def warped(value: Array, known: Array, lengths: Array) -> Array:
    """Return the cost of the cheapest warping path from (T, C) to each of (T', N, C)."""
    cost = ((value[:, None, None, :] - known) ** 2).sum(axis=3)
    steps, others, count = cost.shape
    total = np.full((steps + 1, others + 1, count), np.inf)
    total[0, 0] = 0.0
    for i in range(steps):
        for j in range(others):
            before = np.minimum(total[i, j], np.minimum(total[i, j + 1], total[i + 1, j]))
            total[i + 1, j + 1] = cost[i, j] + before
    return total[steps, lengths, np.arange(count)]


def agreement(found: Array, test: Sequences) -> float:
    return float(np.mean(found == np.asarray(test.labels)))


BASELINES = {
    "nearest class mean of the mean vectors": nearest_class_mean,
    "1-nearest neighbour of the mean vectors": nearest_mean_vector,
    "linear discriminant of the mean vectors": linear_discriminant,
    "1-nearest neighbour, dynamic time warping": nearest_utterance,
}


def main() -> None:
    train, test = load_japanese_vowels()
    print(
        f"{processor()}, {len(usable())} CPUs; Python {platform.python_version()}, NumPy "
        f"{np.__version__}, float32\n\n"
        f"## Cross-validation on the {len(train)} training utterances\n\n"
        f"{REPEATS} x {FOLDS} folds, classes spread evenly; bidirectional, dropout 0.5. First the "
        "grid, then\none change at a time of what was best in it by the cross-entropy.\n\n"
        f"| {' | '.join(Choice._fields)} | accuracy, % | cross-entropy |\n|{'---|' * 7}"
    )
    found: dict[Choice, float] = {}
    for choice in GRID:
        found[choice] = tried(choice, train)
    best = min(found, key=found.__getitem__)
    for change in CHANGES:
        choice = best._replace(**change)
        found[choice] = tried(choice, train)
    best = min(found, key=found.__getitem__)
    print(
        f"\nThe lowest cross-entropy: {', '.join(map(str, best))}.\n\n"
        f"## The {len(test)} test utterances\n\n"
        "`rnn-xp train classify --seed N`, all else as its defaults:\n\n"
        "| seed | accuracy, % | cross-entropy | CPU seconds |\n|---|---|---|---|"
    )
    results = []
    for seed in range(SEEDS):
        start = process_time()
        results.append(test_accuracy(seed))
        row = (seed, f"{100 * results[-1][0]:.2f}", f"{results[-1][1]:.4f}")
        print(f"| {' | '.join(map(str, row))} | {process_time() - start:.1f} |", flush=True)
    accuracy, loss = np.mean(results, axis=0)
    print(f"| **mean** | **{100 * accuracy:.2f}** | {loss:.4f} | |\n")
    print("| baseline | accuracy, % |\n|---|---|")
    for name, baseline in BASELINES.items():
        print(f"| {name} | {100 * baseline(train, test):.2f} |", flush=True)


def tried(choice: Choice, train: Sequences) -> float:
    """Print a row of the table; return the cross-entropy."""
    accuracy, loss = cross_validate(choice, train)
    print(f"| {' | '.join(map(str, choice))} | {100 * accuracy:.2f} | {loss:.4f} |", flush=True)
    return loss


if __name__ == "__main__":
    Parser(description=__doc__.splitlines()[0]).parse_args()
    main()
