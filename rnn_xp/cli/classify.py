"""`train classify`, and the use of a classifier of sequences."""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rnn_xp.backend import Backend, dtype_name, select
from rnn_xp.checkpoint import Checkpoint, CheckpointError
from rnn_xp.cli.cells import cell_of
from rnn_xp.cli.console import (
    INTERRUPTED,
    as_csv,
    check_log,
    check_output,
    check_outputs,
    print_table,
    reading,
    say,
)
from rnn_xp.cli.fit import add_fitting, run_fit, save_fitted
from rnn_xp.cli.options import add_command, number
from rnn_xp.files import replace_file
from rnn_xp.fitting import Fitted, Params, Settings
from rnn_xp.layers.pool import KINDS
from rnn_xp.losses import softmax_cross_entropy
from rnn_xp.models import Chain, sequence_model
from rnn_xp.random import spawn
from rnn_xp.sequence_files import read_sequences
from rnn_xp.sequences import SequenceError, Sequences
from rnn_xp.tasks.classify import (
    Encoding,
    confusion_matrix,
    cross_entropy,
    labels_of,
    probabilities,
    stratified_split,
)
from rnn_xp.tasks.examples import gradients_of, outputs_of

HostArray = np.ndarray[Any, Any]

DEFAULT = Settings(epochs=60, batch_size=32, learning_rate=0.003)
_PARAMS, _SPLIT = 2, 3  # the streams of random numbers under the seed, after the fitting's


def add_train_classify(kinds: Any) -> None:
    """Add `train classify`."""
    command = add_command(
        kinds,
        "classify",
        _train,
        "train a classifier of sequences",
        "train classify speech_TRAIN.ts --test speech_TEST.ts --out speech.safetensors",
    )
    command.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="a .ts file, a .npz file, or a folder of CSV files with labels.csv "
        "(default: utterances of nine speakers of Japanese)",
    )
    command.add_argument(
        "--test", type=Path, metavar="FILE", help="measure the trained model on this file"
    )
    command.add_argument(
        "--validation",
        type=number(0.0, 0.5, open_below=True),
        metavar="PART",
        help="hold out this part of each class, and keep the epoch that is best on it",
    )
    model = add_fitting(command, DEFAULT, cell="gru", hidden_size=64, dropout=0.5)
    model.add_argument(
        "--bidirectional",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read a sequence from both ends",
    )
    model.add_argument(
        "--pool",
        choices=KINDS,
        default="last",
        help="what the classes are told from: the mean over the steps, or the last step",
    )
    model.add_argument(
        "--noise",
        type=number(0.0),
        default=0.75,
        help="Gaussian noise on the inputs in training, in standard deviations of a channel",
    )


def _train(options: argparse.Namespace) -> int:
    backend = select(options.backend, options.device)
    backend.dtype(options.dtype)
    check_output(options)
    check_log(options)
    train, held_out, test = _training_data(options)
    with _source(options.file):
        encoding = Encoding.of(train)
    with _source(options.test or options.file):  # what is wrong with it, before the training
        examples = None if test is None else encoding.encode(test)
    model = sequence_model(
        train.channels,
        len(encoding.classes),
        cell=cell_of(options),
        hidden_size=options.hidden_size,
        num_layers=options.layers,
        bidirectional=options.bidirectional,
        dropout=options.dropout,
        pool=options.pool,
    )
    size = sum(math.prod(shape) for shape in model.shapes.values())
    say(
        f"{_summary(train)}, {len(encoding.classes)} classes; {len(held_out or ())} held out, "
        f"{len(test or ())} to test on\n"
        f"{size:,} parameters, {options.dtype}, backend {backend.name} ({backend.device_name})",
    )
    fitted = _fit(options, backend, model, encoding, train, held_out)
    task = {"kind": "classify", **encoding.describe()}
    if not save_fitted(options, model, fitted, task, built_in=options.file is None):
        return INTERRUPTED
    if examples is not None:
        logits = outputs_of(model, fitted.params, backend, options.dtype, examples[0])
        print(f"test: {_score(logits, examples[1])}")
    return 0


def _training_data(
    options: argparse.Namespace,
) -> tuple[Sequences, Sequences | None, Sequences | None]:
    """Return what is trained on, held out, and tested on."""
    train, test = _parts(options.file)
    if options.test is not None:
        if options.file is not None and test is not None:
            raise ValueError(f"{options.file} says itself what to test on: leave out --test")
        test = _to_use(options.test)
    if options.validation is None:
        return train, None, test
    with _source(options.file):
        kept, out = stratified_split(
            labels_of(train), options.validation, spawn(options.seed, _SPLIT)
        )
    return train.take(kept), train.take(out), test


def _fit(
    options: argparse.Namespace,
    backend: Backend,
    model: Chain,
    encoding: Encoding,
    train: Sequences,
    held_out: Sequences | None,
) -> Fitted:
    dtype = options.dtype
    params = model.init(
        spawn(options.seed, _PARAMS), backend=backend.name, device=options.device, dtype=dtype
    )
    inputs, targets = encoding.encode(train)
    gradients = gradients_of(
        model, backend, dtype, inputs, targets, softmax_cross_entropy, noise=options.noise
    )
    if held_out is None:
        return run_fit(options, params, gradients, len(targets))
    others, expected = encoding.encode(held_out)

    def validate(params: Params) -> float:
        return cross_entropy(outputs_of(model, params, backend, dtype, others), expected)

    return run_fit(options, params, gradients, len(targets), validate=validate)


def eval_classifier(options: argparse.Namespace, backend: Backend, checkpoint: Checkpoint) -> int:
    """Print a classifier's accuracy and confusion matrix; write the matrix on request."""
    check_output(options, "confusion")
    encoding = _encoding(options, checkpoint)
    sequences = _data(options, checkpoint, labelled=True)
    with _source(options.file):
        inputs, targets = encoding.encode(sequences)
    logits = _logits(backend, checkpoint, inputs)
    matrix = confusion_matrix(targets, logits.argmax(axis=1), len(encoding.classes))
    rows = [
        ("true", *encoding.classes),
        *((name, *row) for name, row in zip(encoding.classes, matrix.tolist(), strict=True)),
    ]
    print(f"{_summary(sequences)}: {_score(logits, targets)}")
    print("\nHow often each class (row) was taken for each class (column):\n")
    print_table(rows)
    if options.confusion is not None:
        replace_file(options.confusion, as_csv(rows))
    return 0


def predict_classes(options: argparse.Namespace, backend: Backend, checkpoint: Checkpoint) -> int:
    """Print the likeliest class of each sequence and its probability, or write them."""
    check_output(options)
    encoding = _encoding(options, checkpoint)
    sequences = _data(options, checkpoint, labelled=False)
    with _source(options.file):
        inputs = encoding.standardise(sequences)
    found = probabilities(_logits(backend, checkpoint, inputs))
    rows: list[tuple[Any, ...]] = [("sequence", "label", "probability")]
    for k, row in enumerate(found):
        best = int(row.argmax())
        rows.append((sequences.name(k), encoding.classes[best], f"{row[best]:.4f}"))
    if options.out is None:
        print_table(rows)
    else:
        replace_file(options.out, as_csv(rows))
    return 0


def _parts(path: Path | None) -> tuple[Sequences, Sequences | None]:
    """Return what to train on, and what to test on where that is said."""
    if path is not None:
        return read_sequences(path)
    from rnn_xp.datasets import load_japanese_vowels

    return load_japanese_vowels()


def _to_use(path: Path | None, *, labelled: bool = True) -> Sequences:
    """Return what to test on, else all there is."""
    everything, test = _parts(None) if path is None else read_sequences(path, labelled=labelled)
    return everything if test is None else test


def _data(options: argparse.Namespace, checkpoint: Checkpoint, *, labelled: bool) -> Sequences:
    if options.file is None and not checkpoint.training.get("built_in"):
        raise CheckpointError(f"{options.model} was trained on a file: give a FILE")
    return _to_use(options.file, labelled=labelled)


def _encoding(options: argparse.Namespace, checkpoint: Checkpoint) -> Encoding:
    with reading(options.model):
        encoding = Encoding.restore(checkpoint.task)
    check_outputs(options.model, checkpoint.model, len(encoding.classes), "classes")
    return encoding


def _logits(backend: Backend, checkpoint: Checkpoint, inputs: Sequences) -> HostArray:
    dtype = dtype_name(next(iter(checkpoint.params.values())).dtype)
    return outputs_of(checkpoint.model, checkpoint.params, backend, dtype, inputs)


def _summary(sequences: Sequences) -> str:
    steps = sequences.lengths
    return (
        f"{len(sequences):,} sequences of {steps.min():,} to {steps.max():,} steps, "
        f"{sequences.channels:,} channels"
    )


def _score(logits: HostArray, targets: HostArray) -> str:
    right, count = int((logits.argmax(axis=1) == targets).sum()), len(targets)
    return (
        f"accuracy {100 * right / count:.2f} % ({right:,} of {count:,}), "
        f"cross-entropy {cross_entropy(logits, targets):.4f}"
    )


@contextlib.contextmanager
def _source(path: Path | None) -> Iterator[None]:
    """Say in an error of the sequences which file they are from."""
    try:
        yield
    except SequenceError as error:
        raise SequenceError(f"{path or 'the built-in data'}: {error}") from error
