"""Every script of `examples/` runs, and prints something."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from targets import need_module

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
EXTRAS = ("matplotlib", "onnx", "sklearn")


def test_there_is_one_for_each_field() -> None:
    assert {path.stem for path in EXAMPLES} >= {"captions", "series", "speech", "text"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "an example says what it shows"
    imported = {
        (node.module or "").partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    for extra in imported & set(EXTRAS):
        need_module(extra)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert done.stdout.strip()
    assert not list(tmp_path.iterdir()), "an example leaves no files behind"
