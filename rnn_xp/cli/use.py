"""`eval` and `predict`: what a model is for decides what they do."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rnn_xp.backend import Backend
from rnn_xp.checkpoint import Checkpoint, CheckpointError
from rnn_xp.cli.console import load_model
from rnn_xp.cli.options import add_backend, add_command
from rnn_xp.cli.text import eval_text

Use = Callable[[argparse.Namespace, Backend, Checkpoint], int]

# What each kind of model does with a file; a kind that is not in PREDICT only evaluates.
EVAL: dict[str, Use] = {"text": eval_text}


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
    add_backend(command, dtype=None)


def _add_files(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("model", type=Path, metavar="MODEL", help="what train wrote")
    command.add_argument("file", nargs="?", type=Path, metavar="FILE", help=what)


def _use(table: dict[str, Use], options: argparse.Namespace) -> int:
    backend, checkpoint = load_model(options)
    kind = checkpoint.task.get("kind")
    if kind not in table:
        raise CheckpointError(
            f"{options.model} is a model of the kind {kind!r}: expected one of {', '.join(table)}"
        )
    return table[kind](options, backend, checkpoint)
