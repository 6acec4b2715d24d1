"""Cells of the user's own, from files that he names: their code is run, and it is said so."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from functools import cache
from pathlib import Path
from typing import Any

from rnn_xp.errors import first_line
from rnn_xp.layers.recurrent import Factory
from rnn_xp.models import CELLS


def cell_of(options: argparse.Namespace) -> str | Factory:
    """Return the cell that a training was asked for: one of `models.CELLS`, or the user's own."""
    chosen: str = options.cell
    return chosen if chosen in CELLS else own_cell(chosen)


def own_cells(options: argparse.Namespace) -> list[Factory]:
    """Return the user's own cells that the options name."""
    named = getattr(options, "cell", None) or []
    return [own_cell(name) for name in ([named] if isinstance(named, str) else named)]


@cache
def own_cell(name: str) -> Factory:
    """Run a file, and return what it defines: FILE.py:NAME.

    Raises
    ------
    ValueError
        If there is no such file, its code fails, or it does not define that name as a cell.
    """
    file, _, own = name.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"--cell {name}: there is no file {file}")
    print(f"--cell {name}: running the code of {path.resolve()}", file=sys.stderr)
    module = _run(path, name)
    found: Any = getattr(module, own, None)
    if not callable(found):
        what = "is no class or function" if hasattr(module, own) else "is not defined there"
        raise ValueError(f"--cell {name}: {own} {what}")
    return found  # type: ignore[no-any-return]


def _run(path: Path, name: str) -> Any:
    if path.stem in sys.modules:
        raise ValueError(f"--cell {name}: a module {path.stem} is in use already: rename the file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[path.stem]
        if isinstance(error, KeyboardInterrupt):
            raise
        where = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"--cell {name}: the code of {path} fails: {where}") from error
    return module
