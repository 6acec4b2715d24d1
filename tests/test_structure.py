"""The rules of the package's structure, held by reading its source and by importing it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rnn_xp

PACKAGE = Path(rnn_xp.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
LIBRARIES = {"cupy", "cupyx", "torch", "jax", "jaxlib", "array_api_strict"}
# From what uses to what is used; an import goes to the right only. Modules of one group may
# import each other.
ORDER = (
    {"cli"},
    {"plotting", "sklearn", "doctor", "testing"},
    {"tasks"},
    {"training", "fitting", "sampling", "decoding", "onnx", "interop"},
    {"checkpoint"},
    {"captioner", "models"},
    {"batches", "layers", "losses", "optim", "text", "datasets"},
    {"engines"},
    {"recurrence", "init", "random", "sequences", "sequence_files", "table"},
    {"cells", "files", "scaling"},
    {"backend"},
    {"errors"},
)


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, and every string given to `import_module`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and "import" in ast.unparse(node.func):
            values = (a.value for a in node.args if isinstance(a, ast.Constant))
            yield from (value for value in values if isinstance(value, str))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_only_the_backend_names_an_array_library(path: Path) -> None:
    special = {"engines", "interop", "doctor"}
    if path.name == "backend.py" or special & set(path.parts):
        return  # the last two import a tool inside the function that needs it
    assert not {name.partition(".")[0] for name in imports(path)} & LIBRARIES
    assert not any(
        isinstance(node, ast.Constant) and node.value in LIBRARIES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own in ("__init__", "__main__"):
        return
    rank = {module: k for k, group in enumerate(ORDER) for module in group}
    assert own in rank, f"{own} has no place in the order"
    for name in imports(path):
        first, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        if first == "rnn_xp" and other in rank:
            assert rank[other] >= rank[own], f"{own} imports {other}"


def test_what_import_pulls_in() -> None:
    code = "import sys, numpy; before = set(sys.modules); import rnn_xp; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pulled = {name.partition(".")[0] for name in run.stdout.split()}
    assert {"numpy", "array_api_compat"} <= pulled
    others = {"matplotlib", "onnx", "safetensors", "tqdm", "scipy", "pandas", "sklearn"}
    assert not pulled & (LIBRARIES | others)
    assert not {"array_api_compat.numpy", "rnn_xp.doctor"} & set(run.stdout.split())
    assert "numpy.random" not in run.stdout.split()


@pytest.mark.parametrize("package", ["interop", "doctor"])
def test_tools_are_imported_inside_functions(package: str) -> None:
    names = [name_of(path)[:-3].replace("/", ".") for path in (PACKAGE / package).rglob("*.py")]
    modules = ", ".join(f"rnn_xp.{name.removesuffix('.__init__')}" for name in names)
    code = f"import sys, {modules}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pulled = {name.partition(".")[0] for name in run.stdout.split()}
    assert not pulled & (LIBRARIES | {"keras", "onnx", "onnxruntime"})


def test_the_loop_sees_no_gate() -> None:
    words = set((PACKAGE / "recurrence.py").read_text(encoding="utf-8").lower().split())
    assert not words & {"lstm", "gru", "sigmoid", "tanh", "forget", "reset", "peephole"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "cells").glob("*.py")), ids=name_of)
def test_a_cell_sees_no_time(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.For | ast.While)]
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"t", "time", "lengths", "reverse", "ragged", "valid"}


def test_the_public_names() -> None:
    for name in rnn_xp.__all__:
        assert hasattr(rnn_xp, name)
        assert name in ("init", "__version__") or getattr(rnn_xp, name).__doc__
