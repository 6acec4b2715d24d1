"""The command line: each command is a thin call into the library.

Exit codes: 0 done, 1 a check of `doctor` failed or a backend that it was to check cannot be used, 2
bad input (one line on the error stream), 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from rnn_xp import __version__
from rnn_xp.backend import BackendError, select
from rnn_xp.cli.backends import add_backends
from rnn_xp.cli.caption import add_train_caption
from rnn_xp.cli.classify import add_train_classify
from rnn_xp.cli.console import INTERRUPTED, to_nobody
from rnn_xp.cli.demo import add_demo
from rnn_xp.cli.doctor import add_doctor
from rnn_xp.cli.inspect import add_inspect
from rnn_xp.cli.options import Help, Parser
from rnn_xp.cli.plot import add_plot
from rnn_xp.cli.series import add_train_series
from rnn_xp.cli.text import add_sample, add_train_text
from rnn_xp.cli.use import add_eval, add_predict


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    return carry_out(_parser(), arguments)


def carry_out(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Do what the arguments ask for, `run` of the parsed options; return the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    options, name = parser.parse_args(arguments), parser.prog
    try:
        # What is not finite is looked at where it matters, and said in one line.
        with np.errstate(all="ignore"), _device(options):
            return int(options.run(options))
    except BrokenPipeError:  # the reader of a pipe went away: no error of ours
        to_nobody()
        return 0
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (BackendError, ValueError, TypeError) as error:
        return _bad_input(name, str(error))
    except OverflowError as error:
        return _bad_input(name, f"a number is too large: {error}")
    except MemoryError as error:
        return _bad_input(name, f"out of memory: {error}" if str(error) else "out of memory")
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _bad_input(name, reason)


def _device(options: argparse.Namespace) -> contextlib.AbstractContextManager[Any]:
    """Return the context of the device that is asked for, of the one backend."""
    backend, device = (getattr(options, name, None) for name in ("backend", "device"))
    return select(backend, device).scope() if backend and device else contextlib.nullcontext()


def _bad_input(name: str, reason: str) -> int:
    print(f"{name}: error: {' '.join(reason.split())}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="rnn-xp",
        description="Train and run recurrent networks on NumPy, CuPy, PyTorch or JAX arrays.",
        epilog="example:\n  rnn-xp train text --backend numpy",
        formatter_class=Help,
    )
    parser.add_argument("--version", action="version", version=f"rnn-xp {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_demo(commands)
    train = commands.add_parser("train", help="train a model", formatter_class=Help)
    kinds = train.add_subparsers(title="what to train", required=True, metavar="KIND")
    add_train_text(kinds)
    add_train_classify(kinds)
    add_train_caption(kinds)
    add_train_series(kinds)
    add_eval(commands)
    add_predict(commands)
    add_sample(commands)
    add_inspect(commands)
    add_plot(commands)
    add_backends(commands)
    add_doctor(commands)
    return parser
