"""`inspect`: how single hidden units of a text model follow a text."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from rnn_xp import plotting
from rnn_xp.backend import Backend
from rnn_xp.checkpoint import Checkpoint
from rnn_xp.cli.console import check_output, load_model
from rnn_xp.cli.options import add_backend, add_command, add_own_cells, count
from rnn_xp.cli.text import vocabulary_of
from rnn_xp.cli.traces import Trace, as_lines, as_page
from rnn_xp.files import replace_file
from rnn_xp.layers import Recurrent
from rnn_xp.tasks.inspection import (
    check_units,
    find_place,
    hidden_units,
    most_varied,
    readable,
    split,
)
from rnn_xp.text import Text, Vocabulary, read

_PAGES = (".html", ".htm")


def add_inspect(commands: Any) -> None:
    """Add `inspect`."""
    command = add_command(
        commands,
        "inspect",
        _inspect,
        "show how single hidden units follow a text",
        "inspect model.safetensors --text 'To be, or not to be' --top 3 --out units.html",
    )
    command.add_argument("model", type=Path, metavar="MODEL", help="what train text wrote")
    add_own_cells(command)
    add_text_source(command, required=True)
    add_units(command, top=5)
    command.add_argument(
        "--color",
        choices=("auto", "always", "never"),
        default="auto",
        help="colours; auto is on a terminal, unless $NO_COLOR is set; else a line of digits",
    )
    command.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"write a page (.html) or a picture ({', '.join(plotting.SUFFIXES)}) instead",
    )
    command.add_argument("--force", action="store_true", help="replace FILE if it exists")
    add_backend(command, dtype=None)


def add_text_source(command: argparse.ArgumentParser, *, required: bool) -> None:
    """Add `--text` and `--file`, of which one is given."""
    source = command.add_mutually_exclusive_group(required=required)
    source.add_argument("--text", help="the text")
    source.add_argument("--file", type=Path, help="a file with the text")


def add_units(command: argparse.ArgumentParser, *, top: int | None) -> None:
    """Add the options that say which hidden units; `top` of None is all."""
    command.add_argument(
        "--layer",
        metavar="NAME/LEVEL",
        help="the level to look at, such as recurrent/0 (default: the last one)",
    )
    command.add_argument(
        "--state", choices=("h", "c"), default="h", help="the output, or the cell state of an LSTM"
    )
    which = command.add_mutually_exclusive_group()
    which.add_argument("--units", nargs="+", type=count(0), metavar="UNIT", help="these units")
    which.add_argument(
        "--top",
        type=count(1),
        default=top,
        help="so many units, those whose value varies most over the text"
        + ("" if top else " (default: all units, by number)"),
    )


def text_of(options: argparse.Namespace, vocabulary: Vocabulary) -> Text:
    """Return the text that the options give."""
    text: Text = options.text if options.file is None else read(options.file, vocabulary.unit)
    return text


def trace_of(options: argparse.Namespace, backend: Backend, checkpoint: Checkpoint) -> Trace:
    """Return what `add_text_source` and `add_units` ask for.

    Raises
    ------
    ValueError
        If the model is no text model or has no such level or unit, or the text is not for it.
    """
    vocabulary = vocabulary_of(options.model, checkpoint)
    model = checkpoint.model
    codes = vocabulary.encode(text_of(options, vocabulary))
    place = find_place(model, options.layer)
    values = hidden_units(
        model, checkpoint.params, backend, codes, place=place, state=options.state
    )
    if not np.isfinite(values).all():
        raise ValueError(f"{options.model} has hidden units that are not finite numbers")
    characters, steps = readable(vocabulary, codes)
    values, size = values[steps], values.shape[1]
    units = list(range(size))
    if options.units:
        units = check_units(options.units, size)
    elif options.top:
        units = most_varied(values, options.top)
    layer = split(model, place.layer)[1]
    kind = type(layer.equations if type(layer) is Recurrent else layer).__name__
    title = f"{options.model.name}, {place}: {options.state} of {kind} units"
    return Trace(title, characters, units, values[:, units])


def _inspect(options: argparse.Namespace) -> int:
    out: Path | None = options.out
    if out is not None:
        _check_suffix(out)
        check_output(options)
    backend, checkpoint = load_model(options)
    trace = trace_of(options, backend, checkpoint)
    if out is None:
        _print(trace, options)
        return 0
    if out.suffix.lower() in _PAGES:
        replace_file(out, as_page(trace).encode())
    else:
        figure = plotting.activations(
            trace.values, trace.characters, trace.units, title=trace.title
        )
        plotting.write(figure, out)
    print(f"{_summary(trace, options)}; saved to {out}")
    return 0


def _check_suffix(out: Path) -> None:
    suffixes = (*_PAGES, *plotting.SUFFIXES)
    if out.suffix.lower() not in suffixes:
        raise ValueError(f"{out} must end in one of {', '.join(suffixes)}")
    if out.suffix.lower() not in _PAGES:
        plotting.require()


def _print(trace: Trace, options: argparse.Namespace) -> None:
    colour = _colour(options.color)
    print(trace.title)
    print(_summary(trace, options))
    if colour:
        print(f"blue is positive, orange negative, the strongest ±{trace.scale:.3f}\n")
    else:
        print(f"a digit for each character: 0 is {-trace.scale:.3f}, 9 is {trace.scale:.3f}\n")
    columns = shutil.get_terminal_size().columns
    print("\n".join(as_lines(trace, columns, colour=colour)))


def _summary(trace: Trace, options: argparse.Namespace) -> str:
    units = ", ".join(map(str, trace.units))
    if options.units:
        return f"units {units}"
    return f"units {units}: largest variance over the {len(trace.characters):,} characters"


def _colour(choice: str) -> bool:
    """Tell whether to write colours (https://no-color.org)."""
    if choice != "auto":
        return choice == "always"
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return sys.stdout.isatty() and not plain
