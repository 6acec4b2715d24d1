"""`eval` and `predict`: what a model is for decides what they do."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rnn_xp.backend import Backend
from rnn_xp.checkpoint import Checkpoint, CheckpointError
from rnn_xp.cli.caption import add_show, add_writing, eval_captioner, write_for
from rnn_xp.cli.classify import eval_classifier, predict_classes
from rnn_xp.cli.console import load_model
from rnn_xp.cli.options import add_backend, add_command, add_own_cells
from rnn_xp.cli.series import eval_series, predict_series
from rnn_xp.cli.text import eval_text

Use = Callable[[argparse.Namespace, Backend, Checkpoint], int]

# What each kind of model does with a file; a kind that is not in PREDICT only evaluates.
EVAL: dict[str, Use] = {
    "text": eval_text,
    "classify": eval_classifier,
    "series": eval_series,
    "caption": eval_captioner,
}
PREDICT: dict[str, Use] = {
    "classify": predict_classes,
    "series": predict_series,
    "caption": write_for,
}
# Options that only one kind of model has a use for.
ONLY = {
    "skip_unknown": "text",
    "confusion": "classify",
    "index": "caption",
    "beam": "caption",
    "max_length": "caption",
    "show": "caption",
}


def add_eval(commands: Any) -> None:
    """Add `eval`."""
    command = add_command(
        commands,
        "eval",
        lambda options: _use(EVAL, options),
        "measure a model on a file, or on the held-out part of the built-in data",
        "eval model.safetensors other.txt",
    )
    _add_files(command, "the data (default: the part of the built-in data not trained on)")
    command.add_argument(
        "--skip-unknown",
        action="store_true",
        help="of a text, leave out characters the model has never seen",
    )
    command.add_argument(
        "--confusion",
        type=Path,
        metavar="FILE",
        help="of a classifier, write the confusion matrix to this CSV file",
    )
    command.add_argument("--force", action="store_true", help="replace the CSV file if it exists")
    add_backend(command, dtype=None)


def add_predict(commands: Any) -> None:
    """Add `predict`."""
    command = add_command(
        commands,
        "predict",
        lambda options: _use(PREDICT, options),
        "apply a model to a file, or to the held-out part of the built-in data",
        "predict model.safetensors unlabelled.ts --out labels.csv",
    )
    _add_files(command, "the data (default: the part of the built-in data not trained on)")
    command.add_argument(
        "--out", type=Path, metavar="FILE", help="write a CSV file instead of printing a table"
    )
    command.add_argument("--force", action="store_true", help="replace the CSV file if it exists")
    add_writing(command)
    add_show(command)
    add_backend(command, dtype=None)


def _add_files(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("model", type=Path, metavar="MODEL", help="what train wrote")
    command.add_argument("file", nargs="?", type=Path, metavar="FILE", help=what)
    add_own_cells(command)


def _use(table: dict[str, Use], options: argparse.Namespace) -> int:
    backend, checkpoint = load_model(options)
    kind = checkpoint.task.get("kind")
    if kind not in table:
        raise CheckpointError(
            f"{options.model} is a model of the kind {kind!r}: expected one of {', '.join(table)}"
        )
    for name, owner in ONLY.items():
        if getattr(options, name, None) and kind != owner:
            option = name.replace("_", "-")
            raise ValueError(
                f"--{option} is for models of the kind {owner!r}; {options.model} is of the kind "
                f"{kind!r}"
            )
    return table[kind](options, backend, checkpoint)
