"""`plot`: pictures of trainings, forecasts, confusion matrices, gradients and units."""

from __future__ import annotations

import argparse
import logging
import math
from pathlib import Path
from typing import Any

from rnn_xp import plotting
from rnn_xp.backend import select
from rnn_xp.checkpoint import CheckpointError
from rnn_xp.cli.caption import BEAM, add_writing, captions_of
from rnn_xp.cli.console import check_output, load_model
from rnn_xp.cli.inspect import add_text_source, add_units, text_of, trace_of
from rnn_xp.cli.options import (
    POSITIVE,
    SEED,
    Help,
    add_backend,
    add_command,
    add_own_cells,
    cell_name,
    count,
)
from rnn_xp.cli.plot_data import read_confusion, read_forecast, read_log
from rnn_xp.cli.text import vocabulary_of
from rnn_xp.tasks.gradient_flow import new_network_norms, text_norms

_PICTURES = 12  # that `plot captions` draws where none is named
# Of `plot gradient` without a model.
_NEW: dict[str, Any] = {
    "cell": ["rnn", "lstm", "gru"],
    "hidden_size": 64,
    "time_steps": 100,
    "scale": [0.5, 1.0, 1.5],
    "forget_bias": 1.0,
    "seed": 0,
}


def add_plot(commands: Any) -> None:
    """Add `plot` and its kinds."""
    plot = commands.add_parser(
        "plot", help="draw a picture (needs matplotlib)", formatter_class=Help
    )
    kinds = plot.add_subparsers(title="what to draw", required=True, metavar="KIND")
    command = _kind(kinds, "loss", _loss, "draw loss curves from logs", "log.jsonl --out loss.png")
    command.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="what train --log wrote")
    command = _kind(
        kinds,
        "forecast",
        _forecast,
        "draw a forecast with its intervals",
        "forecast.csv --out forecast.png",
    )
    _file(command, "columns time, actual, forecast, and quantiles q0.1, q0.9, … (predict --out)")
    command = _kind(
        kinds,
        "confusion",
        _confusion,
        "draw a confusion matrix",
        "confusion.csv --out confusion.png",
    )
    _file(command, "a column true, and one for each predicted class (eval --confusion)")
    _add_captions(kinds)
    _add_gradient(kinds)
    command = _kind(
        kinds,
        "activations",
        _activations,
        "draw the hidden units of a text model along a text",
        "model.safetensors --text 'To be' --out units.png",
    )
    command.add_argument("model", type=Path, metavar="MODEL", help="what train text wrote")
    add_own_cells(command)
    add_text_source(command, required=True)
    add_units(command, top=None)
    add_backend(command, dtype=None)


def _kind(kinds: Any, name: str, draw: Any, summary: str, example: str) -> argparse.ArgumentParser:
    """Add a kind of picture; `draw` makes the figure of the options."""

    def run(options: argparse.Namespace) -> int:
        out: Path = options.out
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # where its caches are
        plotting.require()
        plotting.check_suffix(out)
        check_output(options)
        plotting.write(draw(options), out)
        print(f"saved to {out}")
        return 0

    command = add_command(kinds, name, run, summary, f"plot {name} {example}")
    command.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PICTURE",
        help=f"file to write, one of {', '.join(plotting.SUFFIXES)}",
    )
    command.add_argument("--force", action="store_true", help="replace PICTURE if it exists")
    return command


def _file(command: argparse.ArgumentParser, what: str) -> None:
    command.add_argument("file", type=Path, metavar="FILE", help=f"CSV: {what}")


def _loss(options: argparse.Namespace) -> plotting.Figure:
    logs = [read_log(path) for path in options.logs]
    for path, log in zip(options.logs, logs, strict=True):
        if log.step != logs[0].step:
            raise ValueError(
                f"{options.logs[0]} counts {logs[0].step}s, {path} {log.step}s: they do not fit "
                "one picture"
            )
    unit = "nats" if logs[0].step == "step" else ""
    return plotting.loss([log.curve for log in logs], step=logs[0].step, unit=unit)


def _forecast(options: argparse.Namespace) -> plotting.Figure:
    data = read_forecast(options.file)
    title = f"Forecast: {options.file.name}"
    return plotting.forecast(
        data.time,
        data.actual,
        data.predicted,
        data.bands,
        title=title,
        time_label=data.time_label,
    )


def _confusion(options: argparse.Namespace) -> plotting.Figure:
    return plotting.confusion(*read_confusion(options.file))


def _activations(options: argparse.Namespace) -> plotting.Figure:
    backend, checkpoint = load_model(options)
    trace = trace_of(options, backend, checkpoint)
    return plotting.activations(trace.values, trace.characters, trace.units, title=trace.title)


def _add_captions(kinds: Any) -> None:
    command = _kind(
        kinds,
        "captions",
        _captions,
        "draw pictures with the captions that a model writes",
        "model.safetensors --index 1500 1501 1502 --out captions.png",
    )
    command.add_argument("model", type=Path, metavar="MODEL", help="what train caption wrote")
    add_own_cells(command)
    command.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="FILE",
        help=f"the pictures (default: the held-out digits); the first {_PICTURES} without --index",
    )
    add_writing(command)
    add_backend(command, dtype=None)


def _captions(options: argparse.Namespace) -> plotting.Figure:
    backend, checkpoint = load_model(options)
    kind = checkpoint.task.get("kind")
    if kind != "caption":
        raise CheckpointError(f"{options.model} is a model of the kind {kind!r}: expected caption")
    beam = options.beam or BEAM
    pictures, numbers, found = captions_of(options, backend, checkpoint, {beam}, most=_PICTURES)
    return plotting.captions(
        pictures.images,
        [written.caption for written in found[beam]],
        pictures.captions,
        [f"picture {k}" for k in numbers],
    )


def _add_gradient(kinds: Any) -> None:
    command = _kind(
        kinds,
        "gradient",
        _gradient,
        "draw the gradient's norm through time, where it vanishes or explodes",
        "--cell rnn lstm --time-steps 200 --out gradient.png",
    )
    command.add_argument(
        "models",
        nargs="*",
        type=Path,
        metavar="MODEL",
        help="what train text wrote, to draw the loss at a text's last character (default: new "
        "networks on random sequences, the loss at the last step)",
    )
    add_text_source(command, required=False)
    new = command.add_argument_group("new networks, without MODEL")

    def add(name: str, what: str, **arguments: Any) -> None:
        default = _NEW[name.replace("-", "_")]
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        new.add_argument(f"--{name}", help=f"{what} (default: {shown})", **arguments)

    what = "kinds of recurrent layers, rnn, lstm or gru; with MODEL, FILE.py:NAME of its own cell"
    add("cell", what, nargs="+", type=cell_name)
    add("hidden-size", "units", type=count(1))
    add("time-steps", "length of the sequences", type=count(1))
    add("scale", "of the recurrent matrices, orthogonal ones", nargs="+", type=POSITIVE)
    add("forget-bias", "of an LSTM", type=float)
    add("seed", "of all that is drawn", type=SEED)
    add_backend(command, dtype="float64")


def _gradient(options: argparse.Namespace) -> plotting.Figure:
    panels = _of_models(options) if options.models else _of_new_networks(options)
    step = "character" if options.models else "step"
    for name, lines in panels.items():
        for label, norms in lines.items():
            back = f"{norms[0]:.2e} {len(norms) - 1} {step}s back"
            print(f"{label} ({name}): {norms[-1]:.2e} at the loss, {back}")
    if options.models:
        return plotting.gradient(panels, step=step)
    size = options.hidden_size or _NEW["hidden_size"]
    return plotting.gradient(panels, title=f"How far back the gradient reaches: {size} new units")


Panels = dict[str, dict[str, Any]]


def _of_new_networks(options: argparse.Namespace) -> Panels:
    if options.text is not None or options.file is not None:
        raise ValueError("--text and --file are for a MODEL, and none is given")
    given = {k: v for k, v in vars(options).items() if k in _NEW and v is not None}
    values = _NEW | given
    cells, scales, bias = values.pop("cell"), values.pop("scale"), values["forget_bias"]
    if not math.isfinite(bias):
        raise ValueError(f"--forget-bias must be a finite number, got {bias}")
    names = {"rnn": "Elman", "lstm": f"LSTM, forget bias {bias:g}", "gru": "GRU"}
    for cell in cells:
        if cell not in names:
            raise ValueError(f"--cell of new networks is {', '.join(names)}, got {cell}")
    backend = select(options.backend, options.device)
    return {
        f"recurrent weights × {scale:g}": {
            names[cell]: new_network_norms(
                cell, backend, scale=scale, dtype=options.dtype, **values
            )
            for cell in cells
        }
        for scale in scales
    }


def _of_models(options: argparse.Namespace) -> Panels:
    for name in _NEW:
        value = getattr(options, name)
        if value is not None and not (name == "cell" and all(":" in each for each in value)):
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is for new networks: give it without MODEL")
    if options.text is None and options.file is None:
        raise ValueError("a MODEL needs a text: give --text or --file")
    lines = {}
    for path in options.models:
        options.model = path
        backend, checkpoint = load_model(options)
        vocabulary = vocabulary_of(path, checkpoint)
        codes = vocabulary.encode(text_of(options, vocabulary))
        lines[str(path)] = text_norms(checkpoint.model, checkpoint.params, backend, codes)
    return {"the loss at a text's last character": lines}
