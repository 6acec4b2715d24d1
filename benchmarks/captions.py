"""Captions of the 8x8 digits: the settings' choice, five seeds, and four baselines.

    python benchmarks/captions.py > benchmarks/results/captions.md

The settings are chosen on the last fifth of the training part, by models trained on the rest of
it; the held-out part decides nothing. It measures the models that `rnn-xp train caption` trains
with its defaults.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import contextlib
import io
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import numpy as np

from rnn_xp.backend import select
from rnn_xp.captioner import caption_model
from rnn_xp.checkpoint import load
from rnn_xp.cli import main as command_line
from rnn_xp.cli.caption import DEFAULT
from rnn_xp.cli.options import Parser
from rnn_xp.doctor.machine import processor, usable
from rnn_xp.fitting import fit
from rnn_xp.random import spawn
from rnn_xp.tasks.caption import (
    Pictures,
    Reader,
    gradients_of,
    load_digit_pictures,
    loss_of,
    split,
    write_captions,
)
from rnn_xp.tasks.digit_captions import accuracies, baselines

SEEDS, CHOICE_SEEDS, BEAMS = 5, 2, (1, 2, 5, 10)
BACKEND = select("numpy")


class Choice(NamedTuple):
    """What is chosen among; all else is as the command's defaults."""

    cell: str
    learning_rate: float
    weight_decay: float
    layers: int = 1
    dropout: float = 0.3
    epochs: int = 40


GRID = [Choice("gru", *values) for values in product((0.003, 0.006), (0.0, 0.1, 0.5))]
# Tried on the best one of the grid, one at a time.
CHANGES: tuple[dict[str, Any], ...] = (
    {"cell": "lstm"},
    {"cell": "rnn"},
    {"layers": 2},
    {"dropout": 0.5},
    {"epochs": 80},
)


def tried(choice: Choice, train: Pictures, other: Pictures) -> float:
    """Print a row of the table; return the mean loss of a word."""
    reader = Reader.of(train, (*(train.captions or ()), *(other.captions or ())))
    model = caption_model(
        train.images[0].size,
        len(reader.words) + 1,
        cell=choice.cell,
        num_layers=choice.layers,
        dropout=choice.dropout,
    )
    losses, exact = [], []
    for seed in range(CHOICE_SEEDS):
        settings = replace(
            DEFAULT,
            epochs=choice.epochs,
            learning_rate=choice.learning_rate,
            weight_decay=choice.weight_decay,
            seed=seed,
        )
        gradients = gradients_of(model, BACKEND, "float32", reader, train)
        params = fit(model.init(spawn(seed, 2)), gradients, len(train), settings).params
        losses.append(loss_of(model, params, BACKEND, reader, other))
        written = write_captions(model, params, BACKEND, reader, other.images)
        exact.append(accuracies([w.caption for w in written], other.captions or ())["exact"])
    loss = float(np.mean(losses))
    print(
        f"| {' | '.join(map(str, choice))} | {loss:.4f} | {100 * np.mean(exact):.1f} |", flush=True
    )
    return loss


def test_seed(seed: int, test: Pictures) -> dict[int, tuple[dict[str, float], float]]:
    """Train with the command's defaults; for each beam return accuracies and log-probability."""
    out = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(out):
        path = str(Path(folder) / "model.safetensors")
        arguments = ["train", "caption", "--seed", str(seed), "--backend", "numpy", "--out", path]
        if command_line(arguments):
            raise SystemExit(f"rnn-xp {' '.join(arguments)} failed: {out.getvalue()}")
        found = load(path)
    reader = Reader.restore(found.task)
    results = {}
    for beam in BEAMS:
        written = write_captions(found.model, found.params, BACKEND, reader, test.images, beam=beam)
        right = accuracies([w.caption for w in written], test.captions or ())
        results[beam] = right, float(np.mean([w.log_probability for w in written]))
    return results


def main() -> None:
    train, test = split(load_digit_pictures())
    inner, outer = split(train)
    print(
        f"{processor()}, {len(usable())} CPUs; Python {platform.python_version()}, NumPy "
        f"{np.__version__}, float32\n\n"
        f"## The choice, on {len(outer)} of the {len(train)} training pictures\n\n"
        f"Trained on the other {len(inner)}; mean of {CHOICE_SEEDS} seeds; 128 hidden units. First "
        "the grid, then one change at a\ntime of what was best in it by the loss.\n\n"
        f"| {' | '.join(Choice._fields)} | loss of a word | exact match, % |\n|{'---|' * 8}"
    )
    found = {choice: tried(choice, inner, outer) for choice in GRID}
    best = min(found, key=found.__getitem__)
    for change in CHANGES:
        choice = best._replace(**change)
        found[choice] = tried(choice, inner, outer)
    best = min(found, key=found.__getitem__)
    print(f"\nThe lowest loss: {', '.join(map(str, best))}.\n")
    print(
        f"## The {len(test)} held-out pictures\n\n"
        "`rnn-xp train caption --seed N`, all else as its defaults, greedy search:\n\n"
        "| seed | exact match, % | digit | weight | slant | width | CPU seconds |\n"
        f"|{'---|' * 7}"
    )
    seeds = []
    for seed in range(SEEDS):
        start = process_time()
        seeds.append(test_seed(seed, test))
        print(f"| {seed} | {row(seeds[-1][1][0])} | {process_time() - start:.0f} |", flush=True)
    mean = {name: float(np.mean([s[1][0][name] for s in seeds])) for name in seeds[0][1][0]}
    print(
        f"| **mean** | {row(mean)} | |\n\n| baseline | exact match, % | digit | weight | slant |"
        f" width |\n|{'---|' * 6}"
    )
    known = baselines(train.images, train.captions or (), test.images, test.captions or ())
    for name, written in known.items():
        print(f"| {name} | {row(accuracies(written, test.captions or ()))} |")
    print(
        "\nBeam search, means over the seeds:\n\n"
        "| beam | exact match, % | log-probability of what is written |\n|---|---|---|"
    )
    for beam in BEAMS:
        exact = np.mean([s[beam][0]["exact"] for s in seeds])
        score = np.mean([s[beam][1] for s in seeds])
        print(f"| {beam} | {100 * exact:.2f} | {score:.4f} |")


def row(values: Mapping[str, float]) -> str:
    return " | ".join(f"{100 * value:.1f}" for value in values.values())


if __name__ == "__main__":
    Parser(description=__doc__.splitlines()[0]).parse_args()
    main()
