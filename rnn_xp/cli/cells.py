"""Cells of the user's own, from files that he names: their code is run, and it is said so."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

from rnn_xp.backend import select
from rnn_xp.engines import engine
from rnn_xp.errors import first_line
from rnn_xp.layers.recurrent import Factory
from rnn_xp.models import CELLS
from rnn_xp.testing import check_form


def cell_of(options: argparse.Namespace) -> str | Factory:
    """Return the cell that a training was asked for: one of `models.CELLS`, or the user's own.

    Raises
    ------
    ValueError
        As `own_cell`, or if a step of it is not as it should be, or cannot be trained there.
    """
    chosen: str = options.cell
    if chosen in CELLS:
        return chosen
    found = own_cell(chosen)
    backend = select(options.backend, options.device)
    try:
        cell = check_form(found, options.hidden_size)
    except AssertionError as error:
        raise ValueError(f"--cell {chosen}: {error}") from error
    like = backend.asarray([0.0], options.dtype)
    if not cell.has_backward and not engine(cell, like).derives:
        raise ValueError(
            f"--cell {chosen} has no step_backward: write it, or take --backend torch or jax, "
            "which derive it"
        )
    return found


def own_cells(options: argparse.Namespace) -> list[Factory]:
    """Return the user's own cells that the options name."""
    named = getattr(options, "cell", None) or []
    return [own_cell(name) for name in ([named] if isinstance(named, str) else named)]


def own_cell(name: str) -> Factory:
    """Return what a file defines, FILE.py:NAME; its code is run, once.

    Raises
    ------
    ValueError
        If there is no such file, its code fails, or it does not define that name as a cell.
    """
    file, _, own = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"--cell {name}: there is no file {file}")
    module = run(path.resolve())
    found: Any = getattr(module, own, None)
    if not callable(found):
        what = "is no class or function" if hasattr(module, own) else "is not defined there"
        raise ValueError(f"--cell {name}: {own} {what}")
    return found  # type: ignore[no-any-return]


@cache
def run(path: Path) -> Any:
    """Run the code of a file, and return it as a module; see `own_cell`."""
    if path.stem in sys.modules:
        raise ValueError(f"--cell: a module {path.stem} is in use already: rename {path.name}")
    print(f"--cell: running the code of {path}", file=sys.stderr)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.parent))  # as Python does with a script
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[path.stem]
        if isinstance(error, KeyboardInterrupt):
            raise
        where = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"--cell: the code of {path.name} fails: {where}") from error
    finally:
        sys.path.remove(str(path.parent))
    return module
