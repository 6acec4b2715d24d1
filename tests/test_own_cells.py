"""Cells from outside the package: layers, training, files and the command line take them."""

from __future__ import annotations

import re
import runpy
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from targets import Target

from rnn_xp import GRU, Cell, Recurrent, load, save, testing
from rnn_xp.cells import SLSTM, MinGRU, of_product, product, sigmoid, split
from rnn_xp.checkpoint import CheckpointError
from rnn_xp.cli import main
from rnn_xp.cli.cells import run as run_file
from rnn_xp.layers.base import Layer
from rnn_xp.models import Chain, character_model, sequence_model
from rnn_xp.training import Trainer

SOURCE = """
from rnn_xp import Cell
from rnn_xp.cells import of_product, sigmoid, split

class Own(Cell):
    gates = 2

    def shapes(self, input_size, bias):
        return {k: v for k, v in super().shapes(input_size, bias).items() if k.endswith("ih")}

    def step(self, xp, w, a, state):
        (h,) = state
        z, n = split(a, 2)
        z = sigmoid(xp, z)
        return ((1 - z) * h + z * n,), (z, n, h)

    def step_backward(self, xp, w, dstate, kept):
        (dh,), (z, n, h) = dstate, kept
        da = xp.concat((dh * (n - h) * z * (1 - z), dh * z), axis=1)
        return (dh * (1 - z),), (da,)

    def gradients(self, xp, w, x, h, kept, da):
        return of_product(xp, w, "ih", da[0], x)

NUMBER = 3
"""


NUMPY_S: Any = np.int64(2)


FAULTY = """
from my_cells import Own  # the folder of the file is searched, as of a script

class Typo(Own):
    def step(self, xp, w, a, state):
        return xp.tahn(a)

class Bare(Own):
    def step(self, xp, w, a, state):
        return a[:, :8]

class Forward(Own):
    step_backward = Own.__mro__[1].step_backward
"""


class Own(Cell):
    """A minimal GRU, and the file's twin."""

    gates = 2

    def shapes(self, input_size: int, bias: bool) -> Any:
        return {k: v for k, v in super().shapes(input_size, bias).items() if k.endswith("ih")}

    def step(self, xp: Any, w: Any, a: Any, state: Any) -> Any:
        (h,) = state
        z, n = split(a, 2)
        z = sigmoid(xp, z)
        return ((1 - z) * h + z * n,), (z, n, h)

    def step_backward(self, xp: Any, w: Any, dstate: Any, kept: Any) -> Any:
        (dh,), (z, n, h) = dstate, kept
        da = xp.concat((dh * (n - h) * z * (1 - z), dh * z), axis=1)
        return (dh * (1 - z),), (da,)

    def gradients(self, xp: Any, w: Any, x: Any, h: Any, kept: Any, da: Any) -> Any:
        return of_product(xp, w, "ih", da[0], x)


class Derived(Own):
    """The same without its backward step."""

    step_backward = Cell.step_backward


class GatedLSTM(Cell):
    """An LSTM without its backward step: two parts of state, and a recurrent product."""

    gates = 4
    state = ("h", "c")

    def step(self, xp: Any, w: Any, a: Any, state: Any) -> Any:
        h, c = state
        i, f, g, o = split(a + product(w, "hh", h), 4)
        c = sigmoid(xp, f) * c + sigmoid(xp, i) * xp.tanh(g)
        return (sigmoid(xp, o) * xp.tanh(c), c), ()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder with a file of cells, and forget afterwards what it ran."""
    (tmp_path / "my_cells.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    run_file.cache_clear()
    for name in ("my_cells", "faulty"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


# Layers


def test_a_layer_of_a_cell_is_the_layer_of_that_name() -> None:
    from rnn_xp.cells import GRU as GRUCell

    own, layer = Recurrent(GRUCell, 3, 4, 2, bidirectional=True), GRU(3, 4, 2, bidirectional=True)
    assert own.shapes == layer.shapes
    params, x = layer.init(0), np.ones((5, 2, 3), np.float32)
    np.testing.assert_array_equal(own(own.init(0), x)[0], layer(params, x)[0])
    assert own.equations == layer.equations
    assert own == Recurrent(GRUCell, 3, 4, 2, bidirectional=True)
    assert own != Recurrent(MinGRU, 3, 4, 2, bidirectional=True)
    options = [Recurrent(partial(SLSTM, heads=heads), 3, 4) for heads in (1, 2, 2)]
    assert options[1] == options[2] != options[0]


@pytest.mark.parametrize(
    ("cell", "error", "said"),
    [
        (3, TypeError, "cell must be a Cell class, or return a Cell when it is called with"),
        (Own(4), TypeError, "not the cell Own(4): give its class"),
        (lambda size: size, TypeError, "which returns 4"),
        (partial(SLSTM, heads=3), ValueError, "heads must divide hidden_size=4, got 3"),
        (type("NoGates", (Own,), {"gates": None}), TypeError, "NoGates must have gates"),
        (type("NoInit", (Own,), {"__init__": lambda *_: None}), TypeError, "must have hidden_size"),
        (type("NoName", (Own,), {"state": ()}), ValueError, "NoName.state must be a tuple of diff"),
        (type("Zero", (Own,), {"gates": 0}), ValueError, "Zero.gates must be an integer >= 1"),
        (lambda size: Own(size + 1), ValueError, "returns a cell of 5 units"),
        (type("NoStep", (Cell,), {"gates": 1}), TypeError, "abstract"),
    ],
)
def test_what_is_no_cell_is_said(cell: Any, error: Any, said: str) -> None:
    with pytest.raises(error, match=re.escape(said)):
        Recurrent(cell, 3, 4)


def results(layer: Any, target: Target, lengths: Any = None) -> dict[str, Any]:
    """Return all results of a layer, on the host."""
    rng = np.random.default_rng(0)

    def put(*shape: int) -> Any:
        return target.asarray(rng.standard_normal(shape))

    params = {name: put(*shape) for name, shape in layer.shapes.items()}
    runs = layer.num_layers * layer.num_directions
    states = [tuple(put(runs, 3, 4) for _ in layer.equations.state) for _ in range(2)]
    state, dstate = (s if len(s) > 1 else s[0] for s in states)
    x, dy = put(5, 3, 2), put(5, 3, layer.output_size)
    y, last, cache = layer.forward(params, x, state, lengths=lengths)
    dparams, dx, first = layer.backward(params, cache, dy, dstate)
    for a in (dx, *dparams.values()):
        assert target.check(a, tuple(a.shape), "float64", "a gradient") is not None
    flat = [*(last if isinstance(last, tuple) else (last,))]
    flat += first if isinstance(first, tuple) else (first,)
    made = {"y": y, "dx": dx, **dparams} | {f"state {k}": a for k, a in enumerate(flat)}
    return {name: target.to_numpy(a) for name, a in made.items()}


@pytest.mark.parametrize("lengths", [None, (2, 5, 3)], ids=["full", "ragged"])
@pytest.mark.parametrize("pair", [(Derived, Own), (GatedLSTM, "lstm")], ids=["own", "lstm"])
def test_a_gradient_that_the_library_derives(target: Target, pair: Any, lengths: Any) -> None:
    from named_cells import CELLS
    from targets import make_target

    derived = Recurrent(pair[0], 2, 4, 2, bidirectional=True)
    written = Recurrent(CELLS.get(pair[1], pair[1]), 2, 4, 2, bidirectional=True)
    if target.backend not in ("torch", "jax"):
        said = f"{pair[0].__name__} has no step_backward, and only JAX and PyTorch derive one"
        with pytest.raises(NotImplementedError, match=said):
            results(derived, target, lengths)
        return
    expected = results(written, make_target("numpy"), lengths)
    for name, value in results(derived, target, lengths).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-12, atol=1e-13, err_msg=name)


class Skip(Cell):
    """An Elman cell that keeps the h before as a part of the state."""

    gates = 1
    state = ("h", "old")

    def step(self, xp: Any, w: Any, a: Any, state: Any) -> Any:
        h, old = state
        new = xp.tanh(a + product(w, "hh", h) + 0.5 * old)
        return (new, h), (new,)

    def step_backward(self, xp: Any, w: Any, dstate: Any, kept: Any) -> Any:
        (dh, dold), (new,) = dstate, kept
        da = dh * (1 - new * new)
        return (da @ w["weight_hh"] + dold, 0.5 * da), (da,)


def test_a_part_of_the_state_may_stay_as_it_is() -> None:
    testing.check_cell(Skip, backends=["numpy"])
    layer = Recurrent(Skip, 2, 4)
    state = (np.ones((1, 3, 4), np.float32), np.zeros((1, 3, 4), np.float32))
    for params in (layer.init(0), layer.prepare(layer.init(0))):
        _, last = layer(params, np.ones((1, 3, 2), np.float32), state)
        assert not np.shares_memory(last[1], state[0])


@pytest.mark.parametrize(
    ("methods", "error", "said"),
    [
        ({"step": lambda *a: (Own.step(*a)[0][0], ())}, TypeError, "step must return two tuples"),
        ({"step": lambda *a: (Own.step(*a)[0] * 2, ())}, TypeError, "step must return two tuples"),
        (
            {"gradients": lambda *a: {k: v.T for k, v in Own.gradients(*a).items()}},
            ValueError,
            "gradients must return a gradient of weight_ih of the shape (8, 2), got (2, 8)",
        ),
        ({"gradients": lambda *_: {}}, ValueError, "gradient of weight_ih of the shape (8, 2), go"),
        ({"initial": lambda *_: 1.0}, ValueError, "initial('weight_ih', ...) must return an array"),
    ],
)
def test_what_a_cell_returns_wrongly_is_said(methods: Any, error: Any, said: str) -> None:
    layer = Recurrent(type("Wrong", (Own,), methods), 2, 4)

    def train() -> None:
        params = layer.init(0)
        y, _, cache = layer.forward(params, np.ones((1, 2, 2), np.float32))
        layer.backward(params, cache, y)

    with pytest.raises(error, match=re.escape(said)):
        train()


# Files


def test_a_file_holds_the_cell_s_name(tmp_path: Path) -> None:
    path, layer = tmp_path / "m.safetensors", Recurrent(Own, 3, 4, 2, dropout=0.5)
    save(path, layer, layer.init(0))
    assert load(path, cells=[MinGRU, Own]).model == layer
    with pytest.raises(CheckpointError, match=r"has the cell test_own_cells:Own, and it is not g"):
        load(path)
    other = type("Own", (Own,), {"__module__": "elsewhere"})
    wrong = type(
        "Own", (Own,), {"step": lambda self, xp, w, a, state: Own.step(self, xp, w, -a, state)}
    )
    with pytest.raises(CheckpointError, match="gives other numbers than when the model was saved"):
        load(path, cells=[wrong])
    for cells in (Own, ["Own"], [Own(4)]):
        with pytest.raises(TypeError, match="cells must be a list of Cell classes"):
            load(path, cells=cells)  # type: ignore[arg-type]
    assert load(path, cells=[other]).model.equations == other(4)  # by its name alone
    assert load(path, cells=[other, Own]).model == layer
    more = type("Own", (Own,), {"__module__": "also_elsewhere"})
    with pytest.raises(CheckpointError, match="2 cells of that name are given"):
        load(path, cells=[other, more])


@pytest.mark.parametrize("cell", [MinGRU, partial(SLSTM, heads=2)], ids=["class", "partial"])
def test_the_library_s_own_cells_are_known(cell: Any, tmp_path: Path) -> None:
    path, layer = tmp_path / "m.safetensors", Recurrent(cell, 3, 4)
    save(path, layer, layer.init(0))
    assert load(path).model == layer


@pytest.mark.parametrize(
    "cell", [lambda n: Own(n), partial(SLSTM, heads=NUMPY_S)], ids=["lambda", "no plain value"]
)
def test_what_load_would_not_know_is_not_saved(cell: Any, tmp_path: Path) -> None:
    layer = Recurrent(cell, 3, 4)
    with pytest.raises(TypeError, match="cannot be saved"):
        save(tmp_path / "m.safetensors", layer, layer.init(0))

    class Mine(GRU):
        pass

    with pytest.raises(TypeError, match=r"cannot be saved: it is none of RNN, LSTM, GRU, "):
        save(tmp_path / "m.safetensors", Mine(3, 4), Mine(3, 4).init(0))
    assert not list(tmp_path.iterdir())


def test_code_that_a_file_names_is_not_imported(tmp_path: Path) -> None:
    """A hostile file names a module; one that names a cell of the library gets only a cell."""
    import json

    from safetensors.numpy import save_file

    layer: Layer = Recurrent(MinGRU, 3, 4)
    arrays = layer.init(0)
    for name in ("os:system", "antigravity:x", "rnn_xp.cells.base:ABC", "rnn_xp.cells:product"):
        entry = {"name": "", "type": "Recurrent", "cell": name, "input_size": 3, "hidden_size": 4}
        metadata = {"format": "rnn_xp 1", "model": json.dumps(entry)}
        save_file(arrays, tmp_path / "m.safetensors", metadata)
        with pytest.raises(CheckpointError):
            load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("cell", [Own, "mingru", "slstm"])
def test_models_take_a_cell(cell: Any, tmp_path: Path) -> None:
    for model in (character_model(5, cell=cell), sequence_model(3, 2, cell=cell)):
        assert isinstance(model, Chain)
        path = tmp_path / "m.safetensors"
        save(path, model, model.init(0))
        assert load(path, cells=[Own]).model == model


# The command line


def run(*arguments: str) -> int:
    return main(list(arguments))


TEXT = "To be, or not to be: that is the question. " * 20


@pytest.mark.usefixtures("folder")
def test_a_text_model_of_a_cell_from_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    cell = ("--cell", "my_cells.py:Own")
    train = ("train", "text", "text.txt", "--backend", "numpy", "--hidden-size", "8", *cell)
    assert run(*train, "--max-steps", "3", "--batch-size", "2", "--time-steps", "8") == 0
    said = capsys.readouterr()
    assert f"--cell: running the code of {Path('my_cells.py').resolve()}" in said.err
    for command in (
        ("eval", "model.safetensors", "text.txt"),
        ("sample", "model.safetensors", "--length", "5"),
        ("inspect", "model.safetensors", "--text", "To be"),
    ):
        assert run(*command, *cell) == 0
        capsys.readouterr()
        assert run(*command) == 2
        assert "has the cell my_cells:Own, and it is not given" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("task", ["classify", "series", "caption"])
def test_the_other_trainings_take_a_cell_from_a_file(
    task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = ("--cell", "my_cells.py:Own")
    assert run("train", task, "--epochs", "1", "--hidden-size", "8", *cell) == 0
    assert run("predict" if task != "caption" else "eval", "model.safetensors", *cell) == 0
    capsys.readouterr()
    assert run("eval", "model.safetensors") == 2
    assert "has the cell my_cells:Own" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("my_cells.py", "expected rnn, lstm, gru, "),
        ("nothere.py:Own", "there is no file nothere.py"),
        ("my_cells.py:Other", "Other is not defined there"),
        ("my_cells.py:NUMBER", "NUMBER is no class or function"),
        ("broken.py:Own", "the code of broken.py fails: ZeroDivisionError: division by zero"),
        ("wrong.py:Own", "the code of wrong.py fails: SyntaxError"),
        ("numpy.py:Own", "a module numpy is in use already: rename numpy.py"),
        ("my_cells.py:sigmoid", "cell must be a Cell class, or return a Cell"),
        ("faulty.py:Typo", "step: AttributeError: module 'numpy' has no attribute 'tahn'"),
        ("faulty.py:Bare", "step must return two tuples, got array"),
        ("faulty.py:Bare.step", "expected rnn, lstm, gru, "),
        ("faulty.py:Forward", "has no step_backward: write it, or take --backend torch or jax"),
    ],
)
def test_a_wrong_cell_is_one_line(cell: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.py").write_text("1 / 0", encoding="utf-8")
    Path("wrong.py").write_text("class", encoding="utf-8")
    Path("faulty.py").write_text(FAULTY, encoding="utf-8")
    Path("numpy.py").write_text("", encoding="utf-8")
    try:
        code = run("train", "series", "--backend", "numpy", "--epochs", "1", "--cell", cell)
    except SystemExit as ended:  # argparse's own
        code = int(ended.code or 0)
    lines = capsys.readouterr().err.strip().splitlines()
    assert code == 2
    assert said in lines[-1]
    assert not any(line.startswith("Traceback") for line in lines)
    assert not Path("model.safetensors").exists()


@pytest.mark.usefixtures("folder")
def test_going_on_with_a_cell_from_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.txt").write_text(TEXT, encoding="utf-8")
    train: tuple[str, ...] = ("train", "text", "text.txt", "--backend", "numpy")
    train += ("--hidden-size", "8")
    train += ("--batch-size", "2", "--time-steps", "8", "--max-steps", "9")
    cell = ("--cell", "my_cells.py:Own")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "run", lambda *_, **__: "stopped")
        assert run(*train, *cell) == 130
    assert (
        "go on with: rnn-xp train text text.txt --cell my_cells.py:Own" in capsys.readouterr().out
    )
    assert run(*train, *cell, "--resume") == 0
    assert "after step 9: best validation loss" in capsys.readouterr().out


def test_the_docs_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[1] / "docs" / "cells.md"
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 6
    monkeypatch.chdir(tmp_path)
    code = tmp_path / "page.py"
    code.write_text("\n".join(blocks), encoding="utf-8")
    assert "Gated" in runpy.run_path(str(code), run_name="page")
