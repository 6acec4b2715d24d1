"""What the commands share: the parser, and the options' types."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from rnn_xp.backend import BACKENDS
from rnn_xp.models import CELLS


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Print one line, and exit with 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults, and leaves the examples as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False) or action.default is argparse.SUPPRESS:
            return action.help
        return super()._get_help_string(action)


def add_command(
    commands: Any, name: str, run: Any, summary: str, example: str = ""
) -> argparse.ArgumentParser:
    """Add a command with one example in its help."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  rnn-xp {example or name}",
        formatter_class=Help,
    )
    command.set_defaults(run=run)
    return command


def add_backend(command: argparse.ArgumentParser, *, dtype: str | None = "float32") -> None:
    """Add the options that say where to compute."""
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


def add_cell(group: Any, default: str) -> None:
    """Add the option of a training that chooses the cell."""
    group.add_argument(
        "--cell",
        type=cell_name,
        default=default,
        metavar="CELL",
        help=f"{', '.join(CELLS)}; or FILE.py:NAME, a cell of your own: runs the code of that file",
    )


def add_own_cells(command: argparse.ArgumentParser) -> None:
    """Add the option of what reads models that says where the cells of their own are."""
    command.add_argument(
        "--cell",
        type=_own_cell_name,
        action="append",
        metavar="FILE.py:NAME",
        help="a cell of your own that the model has: runs the code of that file",
    )


def cell_name(text: str) -> str:
    """Return the name of a cell, or where one of the user's own is."""
    return text if text in CELLS else _own_cell_name(text, ", ".join(CELLS) + " or ")


def _own_cell_name(text: str, others: str = "") -> str:
    path, _, name = text.rpartition(":")
    if not path.endswith(".py") or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"expected {others}FILE.py:NAME, got {text!r}")
    return text


def count(least: int, most: float = 2**31 - 1) -> Any:
    """Return a type of option: integers from `least` to `most`."""

    def integer(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"expected an integer >= {least}, got {value}")
        if value > most:
            raise argparse.ArgumentTypeError(f"expected an integer <= {most}, got {value}")
        return value

    return integer


SEED = count(0, float("inf"))


def number(
    least: float,
    most: float = float("inf"),
    *,
    open_below: bool = False,
    open_above: bool = False,
) -> Any:
    """Return a type of option: numbers from `least` to `most`; an open end is not among them."""

    def number(text: str) -> float:
        value = float(text)
        outside = (open_below and value == least) or (open_above and value == most)
        if not least <= value <= most or outside or value == float("inf"):
            bounds = f"{'>' if open_below else '>='} {least:g}"
            if most != float("inf"):
                bounds += f" and {'<' if open_above else '<='} {most:g}"
            raise argparse.ArgumentTypeError(f"expected a number {bounds}, got {text}")
        return value

    return number


POSITIVE = number(0.0, open_below=True)
