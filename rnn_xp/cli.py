"""The command line: each command is a thin call into the library.

Exit codes: 0 done, 2 bad input (one line on the error stream), 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from rnn_xp import __version__, losses, optim
from rnn_xp.backend import BACKENDS, Backend, BackendError, available, select
from rnn_xp.checkpoint import Checkpoint, CheckpointError, load, save
from rnn_xp.layers import RNN, Linear
from rnn_xp.models import CELLS, Chain, character_model
from rnn_xp.random import generator, spawn
from rnn_xp.sampling import sample
from rnn_xp.text import TextError, Vocabulary, read_text
from rnn_xp.training import (
    Progress,
    Report,
    Settings,
    Trainer,
    evaluate,
    flatten,
    restore,
)

INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults, and leaves the examples as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False) or action.default is argparse.SUPPRESS:
            return action.help
        return super()._get_help_string(action)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except BrokenPipeError:  # the reader of a pipe went away: no error of ours
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("rnn-xp: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (BackendError, CheckpointError, TextError, ValueError, TypeError) as error:
        return _bad_input(str(error))
    except MemoryError as error:
        return _bad_input(f"out of memory: {error}")
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _bad_input(reason)


def _bad_input(reason: str) -> int:
    print(f"rnn-xp: error: {' '.join(reason.split())}", file=sys.stderr)
    return 2


# --------------------------------------------------------------------------------------------
# Options


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rnn-xp",
        description="Train and run recurrent networks on NumPy, CuPy, PyTorch or JAX arrays.",
        epilog="example:\n  rnn-xp train text --backend numpy",
        formatter_class=_Help,
    )
    parser.add_argument("--version", action="version", version=f"rnn-xp {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_demo(commands)
    train = commands.add_parser("train", help="train a model", formatter_class=_Help)
    kinds = train.add_subparsers(title="what to train", required=True, metavar="KIND")
    _add_train_text(kinds)
    _add_eval(commands)
    _add_sample(commands)
    command = _add(
        commands, "backends", _backends, "show which array libraries can be used here", ""
    )
    command.set_defaults(run=_backends)
    return parser


def _add(commands: Any, name: str, run: Any, summary: str, example: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  rnn-xp {example or name}",
        formatter_class=_Help,
    )
    command.set_defaults(run=run)
    return command


def _add_backend(command: argparse.ArgumentParser, *, dtype: str | None = "float32") -> None:
    group = command.add_argument_group("where to compute")
    group.add_argument(
        "--backend",
        choices=("auto", *BACKENDS),
        default="auto",
        help="array library; auto is $RNN_XP_BACKEND, else CuPy where a GPU works, else NumPy",
    )
    group.add_argument("--device", help="device of that library, such as cpu or cuda:1")
    group.add_argument(
        "--dtype",
        choices=("float32", "float64"),
        default=dtype,
        help="floating-point type" + ("" if dtype else " (default: as it was saved)"),
    )


def _count(least: int) -> Any:
    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected an integer >= {least}, got {value}")
        return value

    return integer


def _number(least: float, most: float = float("inf"), *, open_below: bool = False) -> Any:
    def number(text: str) -> float:
        value = float(text)
        if not least <= value <= most or (open_below and value == least) or value == float("inf"):
            bounds = f"{'>' if open_below else '>='} {least:g}"
            bounds += f" and <= {most:g}" if most != float("inf") else ""
            raise argparse.ArgumentTypeError(f"expected a number {bounds}, got {text}")
        return value

    return number


_POSITIVE = _number(0.0, open_below=True)


# --------------------------------------------------------------------------------------------
# demo


def _add_demo(commands: Any) -> None:
    command = _add(
        commands,
        "demo",
        _demo,
        "train an Elman network on one random sequence, as the teaching script meant to",
        "demo --iterations 1000 --learning-rate 0.1",
    )
    command.add_argument("--iterations", type=_count(1), default=100, help="gradient steps")
    command.add_argument("--learning-rate", type=_POSITIVE, default=0.01, help="step size")
    command.add_argument("--input-size", type=_count(1), default=3, help="n_input")
    command.add_argument("--hidden-size", type=_count(1), default=5, help="n_hidden")
    command.add_argument("--output-size", type=_count(1), default=2, help="n_output")
    command.add_argument("--time-steps", type=_count(1), default=10, help="length of the sequence")
    command.add_argument("--seed", type=_count(0), default=0, help="of data and parameters")
    command.add_argument(
        "--show-parameters",
        action="store_true",
        help="print each parameter's name here, in the script, and its shape",
    )
    _add_backend(command)


def _demo(options: argparse.Namespace) -> int:
    backend = select(options.backend, options.device)
    seed = options.seed
    model = Chain(
        (
            ("rnn", RNN(options.input_size, options.hidden_size)),
            ("linear", Linear(options.hidden_size, options.output_size)),
        )
    )
    params = model.init(
        spawn(seed, 0), backend=backend.name, device=options.device, dtype=options.dtype
    )
    rng = generator(spawn(seed, 1))
    steps = options.time_steps
    x = backend.asarray(rng.random((steps, 1, options.input_size)), options.dtype)
    targets = backend.asarray(rng.random((steps, 1, options.output_size)), options.dtype)
    if options.show_parameters:
        script = ("U", "W", "b", "b (a second one, added to the first)", "V", "c")
        for (name, shape), letter in zip(model.shapes.items(), script, strict=True):
            print(f"{name:18} {letter:36} {shape}")
    optimizer = optim.SGD(options.learning_rate)
    state = optimizer.init(params)
    for iteration in range(options.iterations):
        logits, _, cache = model.forward(params, x)
        error, dlogits = losses.sigmoid_squared_error(logits, targets)
        print(f"Iteration {iteration}, Error: {float(error)}")
        gradients, _, _ = model.backward(params, cache, dlogits)
        params, state = optimizer.update(gradients, state, params)
    return 0


# --------------------------------------------------------------------------------------------
# train text


def _add_train_text(kinds: Any) -> None:
    command = _add(
        kinds,
        "text",
        _train_text,
        "train a character model on a UTF-8 text file",
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
        "--out", type=Path, default=Path("model.safetensors"), metavar="MODEL", help="file to write"
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="go on where the training that wrote MODEL was stopped",
    )
    command.add_argument("--force", action="store_true", help="replace MODEL if it exists")
    command.add_argument("--log", type=Path, metavar="FILE", help="append JSON lines to this file")
    model = command.add_argument_group("model")
    model.add_argument("--cell", choices=CELLS, default="gru", help="kind of recurrent layer")
    model.add_argument("--embedding-size", type=_count(1), default=64, help="size of a character")
    model.add_argument("--hidden-size", type=_count(1), default=256, help="units of a layer")
    model.add_argument("--layers", type=_count(1), default=1, help="recurrent layers")
    model.add_argument(
        "--dropout", type=_number(0.0, 1.0), default=0.0, help="after each recurrent layer"
    )
    training = command.add_argument_group("training")
    default = Settings()
    training.add_argument(
        "--passes", type=_POSITIVE, default=default.passes, help="how often the text is read"
    )
    training.add_argument(
        "--max-steps", type=_count(1), help="stop after so many steps, if that comes first"
    )
    training.add_argument(
        "--batch-size", type=_count(1), default=default.batch_size, help="streams side by side"
    )
    training.add_argument(
        "--time-steps",
        type=_count(1),
        default=default.time_steps,
        help="steps of truncated backpropagation through time",
    )
    training.add_argument(
        "--learning-rate", type=_POSITIVE, default=default.learning_rate, help="peak, of Adam"
    )
    training.add_argument(
        "--final-rate",
        type=_number(0.0, 1.0),
        default=default.final_rate,
        help="end of the cosine schedule, as a part of the peak",
    )
    training.add_argument(
        "--warmup-steps", type=_count(0), default=default.warmup_steps, help="linear warm-up"
    )
    training.add_argument(
        "--clip", type=_POSITIVE, default=default.clip, help="largest global norm of the gradient"
    )
    training.add_argument(
        "--weight-decay",
        type=_number(0.0),
        default=default.weight_decay,
        help="above 0: AdamW with this decay",
    )
    training.add_argument(
        "--validation",
        type=_number(0.0, 0.5, open_below=True),
        default=0.1,
        help="part of the text, its end, that is not trained on",
    )
    training.add_argument(
        "--patience",
        type=_count(1),
        default=default.patience,
        help="stop after so many evaluations without a better validation loss",
    )
    training.add_argument(
        "--eval-every", type=_count(1), help="steps between evaluations (default: one pass)"
    )
    training.add_argument(
        "--seed", type=_count(0), default=default.seed, help="of all that is drawn"
    )
    _add_backend(command)


def _train_text(options: argparse.Namespace) -> int:
    backend = select(options.backend, options.device)
    backend.dtype(options.dtype)
    out: Path = options.out
    text = _text(options.file)
    resumed = _resumable(options, text) if options.resume else None
    if resumed is None and out.exists() and not options.force:
        raise ValueError(
            f"{out} exists: go on with --resume, replace it with --force, or give another --out"
        )
    _check_writable(out)

    split = len(text) - round(len(text) * options.validation)
    if resumed is None:
        vocabulary = Vocabulary.of(text)
        model = character_model(
            len(vocabulary),
            cell=options.cell,
            embedding_size=options.embedding_size,
            hidden_size=options.hidden_size,
            num_layers=options.layers,
            dropout=options.dropout,
        )
        names = {field.name for field in fields(Settings)}
        settings = Settings(**{k: v for k, v in vars(options).items() if k in names})
        dtype = options.dtype
    else:
        vocabulary = Vocabulary(resumed.vocabulary or "")
        model = resumed.model
        values = resumed.training
        settings, split, dtype = Settings(**values["settings"]), values["split"], values["dtype"]
    codes = vocabulary.encode(text)
    trainer = Trainer(model, backend, dtype, codes[:split], codes[split:], settings)
    if resumed is None:
        progress = trainer.start()
    else:
        progress = restore(resumed.training, resumed.tensors, resumed.params)

    def write(*, finished: bool = False) -> None:
        values, tensors = flatten(progress, settings)
        values |= {"split": split, "dtype": dtype, "text": _digest(text)}
        values |= {"validation_loss": progress.best_loss, "finished": finished}
        # Before the first evaluation the best parameters are not yet known.
        params = progress.best_params if progress.best_step else progress.params
        tensors = {} if finished else tensors
        save(out, model, params, vocabulary=vocabulary.characters, training=values, tensors=tensors)

    size = sum(p.size if isinstance(p.size, int) else p.numel() for p in progress.params.values())
    print(
        f"{len(text):,} characters, {len(vocabulary)} distinct; training on the first {split:,}\n"
        f"{size:,} parameters, {dtype}, backend {backend.name} ({backend.device_name}); "
        f"{trainer.last_step:,} steps, {trainer.steps_a_pass:,} a pass"
        + (f"; going on after step {progress.step:,}" if resumed else ""),
        flush=True,
    )
    with (
        _log_file(options.log) as log,
        _Bar(trainer.last_step, progress.step) as bar,
        _interrupt() as asked,
    ):

        def on_report(report: Report, _: Progress) -> None:
            bar.line(
                f"step {report.step:6,}/{report.steps:,}  train loss {report.train_loss:.4f}  "
                f"validation loss {report.validation_loss:.4f}{' *' if report.best else '  '}  "
                f"rate {report.learning_rate:.2e}  {report.characters_per_second:,.0f} characters/s"
            )
            if log is not None:
                log.write(json.dumps(asdict(report)) + "\n")
                log.flush()
            write()

        outcome = trainer.run(
            progress, on_step=bar.update, on_report=on_report, stop=lambda: bool(asked)
        )
        write(finished=outcome != "stopped")
    if outcome == "stopped":
        again = f"rnn-xp train text {options.file or ''}".rstrip()
        print(
            f"interrupted after step {progress.step:,}: saved to {out}; "
            f"go on with: {again} --out {out} --resume"
        )
        return INTERRUPTED
    print(
        f"{outcome} after step {progress.step:,}: best validation loss "
        f"{progress.best_loss:.4f} nats a character, at step {progress.best_step:,}; saved to {out}"
    )
    print("A sample:\n")
    prompt = codes[:1] if "\n" not in vocabulary.characters else vocabulary.encode("\n")
    for character in sample(
        model, progress.best_params, vocabulary, backend, prompt, 300, temperature=0.8
    ):
        print(character, end="")
    print()
    return 0


def _text(path: Path | None) -> str:
    if path is not None:
        return read_text(path)
    from rnn_xp.datasets import load_shakespeare

    return load_shakespeare()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _resumable(options: argparse.Namespace, text: str) -> Checkpoint:
    checkpoint = load(options.out, backend=options.backend, device=options.device)
    values = checkpoint.training
    if values.get("finished") or "settings" not in values:
        raise ValueError(f"{options.out} holds a finished training: there is nothing to go on with")
    if values.get("text") != _digest(text):
        raise ValueError(f"{options.out} was trained on another text: give the same FILE")
    return checkpoint


def _check_writable(path: Path) -> None:
    """Raise OSError now rather than after an hour of training."""
    if path.is_dir():
        raise IsADirectoryError(21, "is a folder, expected a file to write", str(path))
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OSError(error.errno, f"cannot write there: {error.strerror}", str(path)) from error


@contextlib.contextmanager
def _log_file(path: Path | None) -> Iterator[IO[str] | None]:
    if path is None:
        yield None
        return
    with open(path, "a", encoding="utf-8") as file:
        yield file


@contextlib.contextmanager
def _interrupt() -> Iterator[list[int]]:
    """Yield a list that gets an entry on Ctrl-C; a second Ctrl-C interrupts at once."""
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        asked.append(number)
        signal.signal(number, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


class _Bar:
    """A progress bar on a terminal, plain lines elsewhere."""

    def __init__(self, total: int, start: int) -> None:
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, progress: Progress) -> None:
        """Show one more step."""
        if self._bar is not None:
            self._bar.set_postfix(loss=f"{progress.train_loss:.3f}", refresh=False)
            self._bar.update(1)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.write(text)
        else:
            print(text, flush=True)


# --------------------------------------------------------------------------------------------
# eval, sample, backends


def _add_eval(commands: Any) -> None:
    command = _add(
        commands,
        "eval",
        _eval,
        "print a model's loss on a text",
        "eval model.safetensors other.txt",
    )
    command.add_argument("model", type=Path, metavar="MODEL", help="what train wrote")
    command.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help="the text (default: the part of the built-in text that was not trained on)",
    )
    command.add_argument(
        "--skip-unknown", action="store_true", help="leave out characters the model has never seen"
    )
    _add_backend(command, dtype=None)


def _eval(options: argparse.Namespace) -> int:
    backend, checkpoint, vocabulary = _load_text_model(options)
    text = _text(options.file)
    context = None
    if options.file is None:
        if checkpoint.training.get("text") != _digest(text):
            raise ValueError(f"{options.model} was trained on another text: give a FILE")
        split = checkpoint.training["split"]
        context, text = vocabulary.encode(text[:split]), text[split:]
    codes = vocabulary.encode(text, skip_unknown=options.skip_unknown)
    if len(codes) < 2:
        raise TextError("not enough text: a loss needs at least two characters")
    loss = evaluate(checkpoint.model, checkpoint.params, backend, codes, context=context)
    print(
        f"{len(codes):,} characters, {len(text) - len(codes):,} skipped: loss {loss:.4f} nats a "
        f"character, {loss / 0.6931471805599453:.4f} bits, perplexity {2.718281828459045**loss:.3f}"
    )
    return 0


def _add_sample(commands: Any) -> None:
    command = _add(
        commands,
        "sample",
        _sample,
        "let a model write",
        "sample model.safetensors --prompt 'To be' --temperature 0.7 --length 500",
    )
    command.add_argument("model", type=Path, metavar="MODEL", help="what train wrote")
    command.add_argument(
        "--prompt", default="\n", help="what the model reads first (default: a line end)"
    )
    command.add_argument("--length", type=_count(0), default=500, help="characters to write")
    command.add_argument(
        "--temperature",
        type=_number(0.0),
        default=0.8,
        help="below 1 bolder, above 1 freer, 0 always the most likely character",
    )
    command.add_argument("--top-k", type=_count(1), help="draw among the k most likely characters")
    command.add_argument("--seed", type=_count(0), default=0, help="of what is drawn")
    command.add_argument(
        "--skip-unknown",
        action="store_true",
        help="leave out characters of the prompt that the model has never seen",
    )
    _add_backend(command, dtype=None)


def _sample(options: argparse.Namespace) -> int:
    backend, checkpoint, vocabulary = _load_text_model(options)
    prompt = options.prompt
    if prompt == "\n" and prompt not in vocabulary.characters:
        prompt = vocabulary.characters[0]
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


def _load_text_model(options: argparse.Namespace) -> tuple[Backend, Checkpoint, Vocabulary]:
    backend = select(options.backend, options.device)
    checkpoint = load(
        options.model, backend=backend.name, device=options.device, dtype=options.dtype
    )
    if checkpoint.vocabulary is None:
        raise CheckpointError(f"{options.model} has no vocabulary: it is no text model")
    return backend, checkpoint, Vocabulary(checkpoint.vocabulary)


def _backends(_: argparse.Namespace) -> int:
    rows = [("name", "version", "device", "usable")]
    for status in available().values():
        usable = "yes" if status.usable else f"no: {status.reason}"
        rows.append((status.name, status.version or "-", status.device or "-", usable))
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    for row in rows:
        start = "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False))
        print(f"{start}  {row[3]}")
    return 0
