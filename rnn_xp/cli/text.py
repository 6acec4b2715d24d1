"""`train text`, `sample`, and the evaluation of a text model."""

from __future__ import annotations

import argparse
import hashlib
import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from rnn_xp.backend import Backend, are_finite, select
from rnn_xp.checkpoint import Checkpoint, CheckpointError, load, save
from rnn_xp.cli.cells import cell_of, own_cells
from rnn_xp.cli.console import (
    INTERRUPTED,
    Bar,
    check_log,
    check_output,
    check_outputs,
    interrupt,
    load_model,
    log_file,
    reading,
    say,
)
from rnn_xp.cli.options import (
    POSITIVE,
    SEED,
    add_backend,
    add_cell,
    add_command,
    add_own_cells,
    count,
    number,
)
from rnn_xp.models import CELLS, character_model, recurrent_layer
from rnn_xp.sampling import sample
from rnn_xp.text import Text, TextError, Vocabulary, read
from rnn_xp.training import (
    Progress,
    Report,
    Settings,
    Trainer,
    evaluate,
    flatten,
    restore,
)


def add_train_text(kinds: Any) -> None:
    """Add `train text`."""
    command = add_command(
        kinds,
        "text",
        _train_text,
        "train a character model on a UTF-8 text file, or on the bytes of any file",
        "train text book.txt --out book.safetensors --backend numpy",
    )
    command.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="the text (default: nine plays of Shakespeare)",
    )
    command.add_argument(
        "--bytes",
        action="store_true",
        help="read and write bytes (UTF-8) instead of characters: any file, nothing is unknown",
    )
    command.add_argument(
        "--out", type=Path, default=Path("model.safetensors"), metavar="MODEL", help="file to write"
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="go on where the training that wrote MODEL was stopped, with its settings",
    )
    command.add_argument(
        "--force",
        action="store_true",
        help="replace MODEL if it exists, at the first evaluation or where training is interrupted",
    )
    command.add_argument("--log", type=Path, metavar="LOG", help="append JSON lines to this file")
    model = command.add_argument_group("model")
    add_cell(model, "gru")
    model.add_argument("--embedding-size", type=count(1), default=64, help="size of a character")
    model.add_argument("--hidden-size", type=count(1), default=256, help="units of a layer")
    model.add_argument("--layers", type=count(1), default=1, help="recurrent layers")
    model.add_argument(
        "--dropout", type=number(0.0, 1.0), default=0.0, help="after each recurrent layer"
    )
    training = command.add_argument_group("training")
    default = Settings()
    training.add_argument(
        "--passes", type=POSITIVE, default=default.passes, help="how often the text is read"
    )
    training.add_argument(
        "--max-steps", type=count(1), help="stop after so many steps, if that comes first"
    )
    training.add_argument(
        "--batch-size", type=count(1), default=default.batch_size, help="streams side by side"
    )
    training.add_argument(
        "--time-steps",
        type=count(1),
        default=default.time_steps,
        help="steps of truncated backpropagation through time",
    )
    training.add_argument(
        "--learning-rate", type=POSITIVE, default=default.learning_rate, help="peak, of Adam"
    )
    training.add_argument(
        "--final-rate",
        type=number(0.0, 1.0),
        default=default.final_rate,
        help="end of the cosine schedule, as a part of the peak",
    )
    training.add_argument(
        "--warmup-steps", type=count(0), default=default.warmup_steps, help="linear warm-up"
    )
    training.add_argument(
        "--clip", type=POSITIVE, default=default.clip, help="largest global norm of the gradient"
    )
    training.add_argument(
        "--weight-decay",
        type=number(0.0),
        default=default.weight_decay,
        help="above 0: AdamW with this decay",
    )
    training.add_argument(
        "--average",
        type=number(0.0, 1.0, open_above=True),
        default=default.average,
        help="above 0, 0.998 say: evaluate and keep a running mean of the weights with this decay",
    )
    training.add_argument(
        "--validation",
        type=number(0.0, 0.5, open_below=True),
        default=0.1,
        help="part of the text, its end, that is not trained on",
    )
    training.add_argument(
        "--patience",
        type=count(1),
        default=default.patience,
        help="stop after so many evaluations without a better validation loss",
    )
    training.add_argument(
        "--eval-every", type=count(1), help="steps between evaluations (default: one pass)"
    )
    training.add_argument("--seed", type=SEED, default=default.seed, help="of all that is drawn")
    add_backend(command)
    command.set_defaults(default_of=command.get_default)


def _train_text(options: argparse.Namespace) -> int:
    backend = select(options.backend, options.device)
    backend.dtype(options.dtype)
    out: Path = options.out
    check_output(options, force=options.resume, otherwise="go on with --resume, ")
    check_log(options)
    resumed = _resumable(options) if options.resume else None
    if resumed is None:
        text = _text(options.file, "byte" if options.bytes else "character")
        vocabulary = Vocabulary.of(text)
    else:
        vocabulary = vocabulary_of(out, resumed)
        text = _same_text(options, resumed, vocabulary.unit)

    split = len(text) - round(len(text) * options.validation)
    if resumed is None:
        model = character_model(
            len(vocabulary),
            cell=cell_of(options),
            embedding_size=options.embedding_size,
            hidden_size=options.hidden_size,
            num_layers=options.layers,
            dropout=options.dropout,
        )
        names = {field.name for field in fields(Settings)}
        settings = Settings(**{k: v for k, v in vars(options).items() if k in names})
        dtype = options.dtype
    else:
        model = resumed.model
        with reading(out):
            values = resumed.training
            settings, split = Settings(**values["settings"]), int(values["split"])
            dtype = str(values["dtype"])
            backend.dtype(dtype)
        _check_kept(options, resumed, settings, unit=vocabulary.unit, part=1.0 - split / len(text))
    codes, unit = vocabulary.encode(text), vocabulary.unit
    trainer = Trainer(model, backend, dtype, codes[:split], codes[split:], settings, unit)
    progress = trainer.start()
    if resumed is not None:
        with reading(out):
            begun = restore(resumed.training, resumed.tensors, resumed.params)
            trainer.check(begun, like=progress)
        progress = begun

    def write(*, finished: bool = False) -> None:
        values, tensors = flatten(progress, settings)
        values |= {"split": split, "dtype": dtype, "text": _digest(text)}
        values |= {"validation_loss": progress.best_loss, "finished": finished}
        # Before the first evaluation the best parameters are not yet known.
        params = progress.best_params if progress.best_step else progress.shown
        tensors = {} if finished else tensors
        save(
            out,
            model,
            params,
            vocabulary=vocabulary.characters,
            task={"kind": "text", "unit": unit},
            training=values,
            tensors=tensors,
        )

    size = sum(p.size if isinstance(p.size, int) else p.numel() for p in progress.params.values())
    say(
        f"{len(text):,} {unit}s, {len(set(text))} distinct; training on the first {split:,}\n"
        f"{size:,} parameters, {dtype}, backend {backend.name} ({backend.device_name}); "
        f"{trainer.last_step:,} steps, {trainer.steps_a_pass:,} a pass"
        + (f"; going on after step {progress.step:,}" if resumed else "")
    )
    with (
        log_file(options.log) as log,
        Bar(trainer.last_step, progress.step) as bar,
        interrupt() as asked,
    ):

        def on_report(report: Report, _: Progress) -> None:
            bar.line(
                f"step {report.step:6,}/{report.steps:,}  train loss {report.train_loss:.4f}  "
                f"validation loss {report.validation_loss:.4f}{' *' if report.best else '  '}  "
                f"rate {report.learning_rate:.2e}  {report.characters_per_second:,.0f} {unit}s/s"
            )
            if progress.best_step:
                write()
            log.write(report)

        outcome = trainer.run(
            progress,
            on_step=lambda now: bar.update(lambda: now.train_loss),
            on_report=on_report,
            stop=lambda: bool(asked),
        )
        if not progress.best_step and not are_finite(progress.shown):
            raise ValueError(
                f"the training diverged before its first evaluation, its numbers after step "
                f"{progress.step} are not finite: nothing is saved; lower --learning-rate"
            )
        write(finished=outcome != "stopped")
    if outcome == "stopped":
        again = f"rnn-xp train text {options.file or ''}".rstrip()
        again += "" if options.cell in CELLS else f" --cell {options.cell}"
        say(
            f"interrupted after step {progress.step:,}: saved to {out}; "
            f"go on with: {again} --out {out} --resume"
        )
        return INTERRUPTED
    say(
        f"{outcome} after step {progress.step:,}: best validation loss "
        f"{progress.best_loss:.4f} nats a {unit}, at step {progress.best_step:,}; saved to {out}"
    )
    say("A sample:\n")
    prompt = codes[:1] if "\n" not in vocabulary.characters else vocabulary.encode("\n")
    for character in sample(
        model, progress.best_params, vocabulary, backend, prompt, 300, temperature=0.8
    ):
        print(character, end="")
    print()
    return 0


def _text(path: Path | None, unit: str) -> Text:
    if path is not None:
        return read(path, unit)
    from rnn_xp.datasets import load_shakespeare

    text = load_shakespeare()
    return text.encode() if unit == "byte" else text


def _digest(text: Text) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def _resumable(options: argparse.Namespace) -> Checkpoint:
    given = [] if options.cell in CELLS else own_cells(options)
    where = {"backend": options.backend, "device": options.device}
    checkpoint = load(options.out, **where, cells=given)
    values = checkpoint.training
    if values.get("finished") or "settings" not in values:
        raise ValueError(f"{options.out} holds a finished training: there is nothing to go on with")
    return checkpoint


def _check_kept(
    options: argparse.Namespace, resumed: Checkpoint, settings: Settings, *, unit: str, part: float
) -> None:
    """Raise if an option asks for something else than what the training was begun with.

    One with its default is taken for not given.
    """
    same_part = math.isclose(part, options.validation, rel_tol=0.0, abs_tol=1e-3)
    (_, layer), *_ = [each for each in resumed.model.layers if each[1].has_state]
    like = {"dropout": layer.dropout}
    same = recurrent_layer(cell_of(options))(layer.input_size, layer.hidden_size, **like)
    own = layer.equations == same.equations
    sizes = {
        "cell": options.cell if own else type(layer.equations).__name__.lower(),
        "embedding_size": layer.input_size,
        "hidden_size": layer.hidden_size,
        "layers": layer.num_layers,
        "dropout": layer.dropout,
        "dtype": resumed.training["dtype"],
        "bytes": unit == "byte",
        "validation": options.validation if same_part else round(part, 6),
    }
    for name, kept in {**asdict(settings), **sizes}.items():
        asked = getattr(options, name)
        if asked not in (kept, options.default_of(name)):
            raise ValueError(
                f"--{name.replace('_', '-')} {asked} does not go with --resume: {options.out} was "
                f"begun with {kept}"
            )


def _same_text(options: argparse.Namespace, resumed: Checkpoint, unit: str) -> Text:
    text = _text(options.file, unit)
    if resumed.training.get("text") != _digest(text):
        raise ValueError(f"{options.out} was trained on another text: give the same FILE")
    return text


def eval_text(options: argparse.Namespace, backend: Backend, checkpoint: Checkpoint) -> int:
    """Print a text model's loss on a text."""
    vocabulary = vocabulary_of(options.model, checkpoint)
    unit = vocabulary.unit
    text = _text(options.file, unit)
    context = None
    if options.file is None:
        if checkpoint.training.get("text") != _digest(text):
            raise ValueError(f"{options.model} was trained on another text: give a FILE")
        split = checkpoint.training["split"]
        context, text = vocabulary.encode(text[:split]), text[split:]
    codes = vocabulary.encode(text, skip_unknown=options.skip_unknown)
    if len(codes) < 2:
        raise TextError(f"not enough text: a loss needs at least two {unit}s")
    loss = evaluate(checkpoint.model, checkpoint.params, backend, codes, context=context)
    print(
        f"{len(codes):,} {unit}s, {len(text) - len(codes):,} skipped: loss {loss:.4f} nats a "
        f"{unit}, {loss / math.log(2):.4f} bits, perplexity {np.exp(loss):.3f}"
    )
    return 0


def add_sample(commands: Any) -> None:
    """Add `sample`."""
    command = add_command(
        commands,
        "sample",
        _sample,
        "let a model write",
        "sample model.safetensors --prompt 'To be' --temperature 0.7 --length 500",
    )
    command.add_argument("model", type=Path, metavar="MODEL", help="what train wrote")
    add_own_cells(command)
    command.add_argument(
        "--prompt", metavar="TEXT", help="what the model reads first (default: a line end)"
    )
    command.add_argument(
        "--length", type=count(0), default=500, help="characters or bytes to write"
    )
    command.add_argument(
        "--temperature",
        type=number(0.0),
        default=0.8,
        help="below 1 more predictable, above 1 more varied, 0 always the most likely character",
    )
    command.add_argument("--top-k", type=count(1), help="draw among the k most likely characters")
    command.add_argument("--seed", type=SEED, default=0, help="of what is drawn")
    command.add_argument(
        "--skip-unknown",
        action="store_true",
        help="leave out characters of the prompt that the model has never seen",
    )
    add_backend(command, dtype=None)


def _sample(options: argparse.Namespace) -> int:
    backend, checkpoint = load_model(options)
    vocabulary = vocabulary_of(options.model, checkpoint)
    prompt = options.prompt
    if prompt is None:
        prompt = "\n" if "\n" in vocabulary.characters else vocabulary.characters[0]
    codes = vocabulary.encode(prompt, skip_unknown=options.skip_unknown)
    if not len(codes):
        raise TextError("the prompt has no character that the model knows")
    if prompt.strip():
        print(prompt, end="", flush=True)
    for character in sample(
        checkpoint.model,
        checkpoint.params,
        vocabulary,
        backend,
        codes,
        options.length,
        temperature=options.temperature,
        top_k=options.top_k,
        seed=options.seed,
    ):
        print(character, end="", flush=True)
    print()
    return 0


def vocabulary_of(path: Path, checkpoint: Checkpoint) -> Vocabulary:
    """Return a text model's vocabulary.

    Raises
    ------
    CheckpointError
        If it is no text model.
    """
    if checkpoint.vocabulary is None or checkpoint.task.get("kind", "text") != "text":
        raise CheckpointError(f"{path} has no vocabulary of characters: it is no text model")
    try:
        vocabulary = Vocabulary(checkpoint.vocabulary, checkpoint.task.get("unit", "character"))
    except ValueError as error:
        raise CheckpointError(f"{path} has a damaged vocabulary: {error}") from error
    check_outputs(path, checkpoint.model, len(vocabulary), "characters")
    return vocabulary
