"""`plot` end to end, what it reads, and what its pictures hold."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from targets import need_module
from test_cli import SMALL, TEXT, fails, run
from test_cli_inspect import without_matplotlib

from rnn_xp import plotting
from rnn_xp.backend import select
from rnn_xp.checkpoint import save
from rnn_xp.cli import main
from rnn_xp.cli.plot_data import LogError, read_confusion, read_forecast, read_log
from rnn_xp.models import character_model, sequence_model
from rnn_xp.table import TableError
from rnn_xp.tasks.gradient_flow import new_network_norms, text_norms
from rnn_xp.tasks.inspection import hidden_units
from rnn_xp.text import Vocabulary

NAN = math.nan
FORECAST = """time,actual,forecast,q0.1,q0.25,q0.5,q0.75,q0.9
2001-01,5,,,,,,
2001-02,,,,,,,
2001-03,6,7,5,6,7,8,9
2001-04,,8,6,7,8,9,10
"""


@pytest.fixture
def figure_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Return the function that runs `plot` and returns the figure that it writes."""
    need_module("matplotlib")
    figures: list[Any] = []
    monkeypatch.setattr(plotting, "write", lambda figure, _: figures.append(figure))
    monkeypatch.chdir(tmp_path)

    def figure_of(*arguments: str) -> Any:
        assert main(["plot", *arguments, "--out", "picture.png"]) == 0
        return figures.pop()

    return figure_of


@pytest.fixture
def wrong(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Return the function that runs a `plot` that must fail, and returns its one line."""
    need_module("matplotlib")
    monkeypatch.chdir(tmp_path)

    def wrong(*arguments: str) -> str:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*")}
        with contextlib.suppress(SystemExit):
            assert main(["plot", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert (err.count("\n"), err[:6]) == (1, "rnn-xp")
        assert {path: path.read_bytes() for path in tmp_path.rglob("*")} == before
        return err

    return wrong


def lines_of(axes: Any) -> list[tuple[list[float], list[float]]]:
    return [(list(x), list(y)) for x, y in (line.get_data() for line in axes.get_lines())]


def write_log(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def row(kind: str, step: int, train: Any, validation: Any) -> dict[str, Any]:
    return {kind: step, "train_loss": train, "validation_loss": validation, "best": True}


# What is read


def test_a_log_of_two_trainings(tmp_path: Path) -> None:
    rows = [row("step", 10, 3.0, 3.5), row("step", 20, 2.0, NAN), row("step", 10, 4, 4.5)]
    step, curve = read_log(write_log(tmp_path / "a.jsonl", rows))
    assert (step, curve.name) == ("step", "a.jsonl")
    np.testing.assert_array_equal(curve.steps, [10, 20, NAN, 10])
    np.testing.assert_array_equal(curve.train, [3.0, 2.0, NAN, 4.0])
    np.testing.assert_array_equal(curve.validation, [3.5, NAN, NAN, 4.5])


def test_a_log_without_validation(tmp_path: Path) -> None:
    rows = [
        row("epoch", 1, 3.0, None),
        row("epoch", 2, math.inf, None),
        row("epoch", 3, None, None),
    ]
    step, curve = read_log(write_log(tmp_path / "a.jsonl", rows))
    assert step == "epoch"
    np.testing.assert_array_equal(curve.train, [3.0, NAN, NAN])
    assert np.isnan(curve.validation).all()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ('{"step": 1, "train', "a.jsonl, line 2 is not JSON"),
        ("\xff", "a.jsonl, line 2 is not JSON"),
        ("[1, 2]", "a.jsonl, line 2 is no report of a training"),
        ('{"loss": 1}', "a.jsonl, line 2 is no report of a training"),
        ('{"step": 2, "train_loss": 1}', "a.jsonl, line 2 has no validation_loss"),
        (
            '{"step": 2, "train_loss": "x", "validation_loss": 1}',
            "a.jsonl, line 2: train_loss is 'x', expected a number",
        ),
        (
            '{"step": "2", "train_loss": 1, "validation_loss": 1}',
            "a.jsonl, line 2: step is '2', expected a number",
        ),
        (
            '{"epoch": 2, "train_loss": 1, "validation_loss": 1}',
            "a.jsonl, line 2 counts epochs, but the first one steps",
        ),
    ],
)
def test_damaged_logs(tmp_path: Path, damage: str, reason: str) -> None:
    path = write_log(tmp_path / "a.jsonl", [row("step", 1, 1.0, 1.0)])
    path.write_bytes(path.read_bytes() + damage.encode("latin-1") + b"\n")
    with pytest.raises(LogError, match=re.escape(reason)):
        read_log(path)


def test_an_empty_log(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(LogError, match=r"a\.jsonl is empty"):
        read_log(tmp_path / "a.jsonl")


def test_a_forecast(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(FORECAST)
    found = read_forecast(tmp_path / "f.csv")
    months = ["2001-01-01", "2001-02-01", "2001-03-01", "2001-04-01"]
    assert found.time.tolist() == np.asarray(months, dtype="datetime64[s]").tolist()
    np.testing.assert_array_equal(found.actual, [5, NAN, 6, NAN])
    np.testing.assert_array_equal(found.predicted, [NAN, NAN, 7, 8])
    wide, narrow = found.bands
    assert (wide.name, narrow.name) == ("80 % interval", "50 % interval")
    np.testing.assert_array_equal(wide.low, [NAN, NAN, 5, 6])
    np.testing.assert_array_equal(wide.high, [NAN, NAN, 9, 10])
    np.testing.assert_array_equal(narrow.low, [NAN, NAN, 6, 7])
    np.testing.assert_array_equal(narrow.high, [NAN, NAN, 8, 9])


@pytest.mark.parametrize(
    ("times", "expected", "label"),
    [
        (["1990", "1991.5"], [1990.0, 1991.5], "time"),
        (["a", "b"], [1, 2], "row"),
        (["2001-13", "2001-14"], [1, 2], "row"),
        (["", "1991"], [1, 2], "row"),
        (["2001-01-02", "2001-01-02 12:30"], ["2001-01-02", "2001-01-02T12:30"], "time"),
    ],
)
def test_times(tmp_path: Path, times: list[str], expected: list[Any], label: str) -> None:
    rows = "".join(f"{time},1,2\n" for time in times)
    (tmp_path / "f.csv").write_text(f"time,actual,forecast\n{rows}")
    found = read_forecast(tmp_path / "f.csv")
    if isinstance(expected[0], str):
        expected = np.asarray(expected, dtype="datetime64[s]").tolist()
    assert found.time.tolist() == expected
    assert found.time_label == label
    assert found.bands == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("time,actual\n1,2\n", "f.csv has no column 'forecast': its columns are time, actual"),
        ("when,actual,forecast\n1,2,3\n", "f.csv has no column 'time'"),
        ("time,actual,forecast\n1,2,\n", "f.csv has no number in the column 'forecast'"),
        ("time,actual,forecast\n1,2,x\n", "f.csv, line 2: the column 'forecast' has 'x'"),
        ("time,actual,forecast,q2\n1,2,3,4\n", "f.csv has a column 'q2': expected q and a number"),
        ("time,actual,forecast,qx\n1,2,3,4\n", "f.csv has a column 'qx': expected q and a number"),
        ("", "f.csv is empty"),
    ],
)
def test_files_that_are_no_forecast(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "f.csv").write_text(text)
    with pytest.raises(TableError, match=re.escape(reason)):
        read_forecast(tmp_path / "f.csv")


def test_a_confusion_matrix_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("true,a,b\nb,1,2\na,3,4\n")
    matrix, classes = read_confusion(tmp_path / "c.csv")
    assert classes == ["a", "b"]
    assert matrix.tolist() == [[3, 4], [1, 2]]
    assert matrix.dtype == np.int64


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("class,a\na,1\n", "c.csv has the columns class, a: expected true, and one for each"),
        ("true\na\n", "c.csv has the columns true: expected true, and one for each"),
        ("true,a,b\na,1,2\n", "c.csv has the true classes a, but the predicted classes a, b"),
        ("true,a\na,1.5\n", "c.csv, line 2: the column 'a' has 1.5, expected a count"),
        ("true,a\na,-1\n", "c.csv, line 2: the column 'a' has -1, expected a count"),
        ("true,a\na,\n", "c.csv, line 2: the column 'a' has nan, expected a count"),
    ],
)
def test_files_that_are_no_confusion_matrix(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(TableError, match=re.escape(reason)):
        read_confusion(tmp_path / "c.csv")


# What is drawn


def test_loss_of_a_real_training(tmp_path: Path) -> None:
    need_module("matplotlib")
    (tmp_path / "book.txt").write_text(TEXT)
    arguments = [*SMALL, "--max-steps", "30", "--eval-every", "10", "--log", "log.jsonl"]
    assert run(tmp_path, "train", "text", "book.txt", *arguments)[0] == 0
    code, out, err = run(tmp_path, "plot", "loss", "log.jsonl", "--out", "loss.svg")
    assert (code, out, err) == (0, "saved to loss.svg\n", "")
    assert (tmp_path / "loss.svg").read_bytes().startswith(b"<?xml")


def test_loss_of_several_logs(tmp_path: Path, figure_of: Any) -> None:
    write_log(tmp_path / "a.jsonl", [row("step", 1, 3.0, 3.5), row("step", 2, 2.0, 2.5)])
    write_log(tmp_path / "b.jsonl", [row("step", 5, 1.0, None)])
    (axes,) = figure_of("loss", "a.jsonl", "b.jsonl").axes
    assert lines_of(axes) == [
        ([1, 2], [3.0, 2.0]),
        ([1, 2], [3.5, 2.5]),
        ([2], [2.5]),
        ([5], [1.0]),
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("step", "loss (nats)")


def test_a_forecast_is_drawn(tmp_path: Path, figure_of: Any) -> None:
    (tmp_path / "f.csv").write_text(FORECAST)
    (axes,) = figure_of("forecast", "f.csv").axes
    np.testing.assert_array_equal(axes.get_lines()[1].get_ydata(), [NAN, NAN, 7, 8])
    assert axes.get_title() == "Forecast: f.csv"
    assert len(axes.collections) == 2


def test_a_confusion_matrix_is_drawn(tmp_path: Path, figure_of: Any) -> None:
    (tmp_path / "c.csv").write_text("true,a,b\na,3,1\nb,0,4\n")
    axes = figure_of("confusion", "c.csv").axes[0]
    assert axes.get_title() == "Accuracy 87.5% (7 of 8)"


def test_gradients_of_new_networks(figure_of: Any, capsys: pytest.CaptureFixture[str]) -> None:
    networks = ["--cell", "rnn", "lstm", "--scale", "0.5", "2", "--forget-bias", "2"]
    sizes = ["--hidden-size", "5", "--time-steps", "4", "--seed", "3"]
    figure = figure_of("gradient", *networks, *sizes, "--backend", "numpy")
    assert [axes.get_title() for axes in figure.axes] == [
        "recurrent weights × 0.5",
        "recurrent weights × 2",
    ]
    out = capsys.readouterr().out
    for axes, scale in zip(figure.axes, (0.5, 2.0), strict=True):
        names = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert names == ["Elman", "LSTM, forget bias 2"]
        for (x, y), cell, name in zip(lines_of(axes)[1:], ("rnn", "lstm"), names, strict=True):
            norms = new_network_norms(
                cell,
                select("numpy"),
                scale=scale,
                forget_bias=2.0,
                hidden_size=5,
                time_steps=4,
                seed=3,
            )
            assert (x, y) == ([4, 3, 2, 1, 0], norms.tolist())
            line = f"{name} (recurrent weights × {scale:g}): 1.00e+00 at the loss, {norms[0]:.2e}"
            assert f"{line} 4 steps back\n" in out


def write_model(path: Path, cell: str) -> tuple[Any, Any]:
    model = character_model(4, cell=cell, embedding_size=3, hidden_size=5)
    params = model.init(1, dtype="float64")
    save(path, model, params, vocabulary="한abc", task={"kind": "text", "unit": "character"})
    return model, params


def test_gradients_of_trained_models(tmp_path: Path, figure_of: Any) -> None:
    models = [write_model(tmp_path / f"{cell}.st", cell) for cell in ("rnn", "gru")]
    (tmp_path / "t.txt").write_text("abc한ca", encoding="utf-8")
    (axes,) = figure_of("gradient", "rnn.st", "gru.st", "--file", "t.txt").axes
    codes = Vocabulary("한abc").encode("abc한ca")
    for (x, y), (model, params) in zip(lines_of(axes)[1:], models, strict=True):
        assert x == [5, 4, 3, 2, 1, 0]
        assert y == text_norms(model, params, select("numpy"), codes).tolist()
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["rnn.st", "gru.st"]
    assert axes.get_xlabel() == "characters before the loss"


def test_activations_along_a_text(tmp_path: Path, figure_of: Any) -> None:
    model, params = write_model(tmp_path / "m.st", "lstm")
    codes = Vocabulary("한abc").encode("abc한")
    for state in "hc":
        axes = figure_of("activations", "m.st", "--text", "abc한", "--state", state).axes[0]
        expected = hidden_units(model, params, select("numpy"), codes, state=state)
        np.testing.assert_array_equal(axes.images[0].get_array(), expected.T)
    axes = figure_of("activations", "m.st", "--text", "abc한", "--units", "4", "0").axes[0]
    assert axes.images[0].get_array().shape == (2, 4)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["4", "0"]


@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_pictures_are_written(tmp_path: Path, suffix: str) -> None:
    need_module("matplotlib")
    write_model(tmp_path / "m.st", "lstm")
    arguments = ["plot", "activations", "m.st", "--text", "abc한", "--out", f"a.{suffix}"]
    code, out, err = run(tmp_path, *arguments)
    assert (code, out, err) == (0, f"saved to a.{suffix}\n", "")
    data = (tmp_path / f"a.{suffix}").read_bytes()
    assert data.startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[suffix])
    assert "--force" in fails(tmp_path, *arguments)
    assert run(tmp_path, *arguments, "--force")[0] == 0
    assert (tmp_path / f"a.{suffix}").read_bytes() == data


# What is asked wrongly


def test_wrong_files_and_options(tmp_path: Path, wrong: Callable[..., str]) -> None:
    write_log(tmp_path / "a.jsonl", [row("step", 1, 1.0, 1.0)])
    write_log(tmp_path / "b.jsonl", [row("epoch", 1, 1.0, 1.0)])
    assert "a.jsonl counts steps, b.jsonl epochs" in wrong(
        "loss", "a.jsonl", "b.jsonl", "--out", "l.png"
    )
    assert "No such file" in wrong("loss", "missing.jsonl", "--out", "l.png")
    assert "l.gif must end in one of .png, .svg, .pdf" in wrong("loss", "a.jsonl", "--out", "l.gif")
    assert "no/l.png" in wrong("loss", "a.jsonl", "--out", "no/l.png")
    assert "--out" in wrong("loss", "a.jsonl")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    assert "has no column 'time'" in wrong("forecast", "t.csv", "--out", "l.png")
    assert "expected true" in wrong("confusion", "t.csv", "--out", "l.png")
    assert "KIND" in wrong()


def test_wrong_models_and_texts(tmp_path: Path, wrong: Callable[..., str]) -> None:
    out = ("--out", "p.png")

    write_model(tmp_path / "m.st", "gru")
    model = sequence_model(2, 3)
    save(tmp_path / "other.st", model, model.init(0), task={"kind": "classify"})
    assert "it is no text model" in wrong("gradient", "other.st", "--text", "ab", *out)
    assert "it is no text model" in wrong("activations", "other.st", "--text", "ab", *out)
    assert "never seen 'x'" in wrong("gradient", "m.st", "--text", "ax", *out)
    assert "at least two characters" in wrong("gradient", "m.st", "--text", "a", *out)
    assert "a MODEL needs a text" in wrong("gradient", "m.st", *out)
    assert "--text and --file are for a MODEL" in wrong("gradient", "--text", "ab", *out)
    assert "--time-steps is for new networks" in wrong(
        "gradient", "m.st", "--text", "ab", "--time-steps", "5", *out
    )
    assert "--forget-bias must be a finite number" in wrong(
        "gradient", "--forget-bias", "nan", *out
    )
    assert "no unit 9" in wrong("activations", "m.st", "--text", "ab", "--units", "9", *out)
    assert "1,200 characters, too many to draw" in wrong(
        "activations", "m.st", "--text", "abc" * 400, *out
    )


def test_without_matplotlib(tmp_path: Path) -> None:
    write_log(tmp_path / "a.jsonl", [row("step", 1, 1.0, 1.0)])
    env = without_matplotlib(tmp_path)
    line = fails(tmp_path, "plot", "loss", "a.jsonl", "--out", "l.png", env=env)
    assert line == ("rnn-xp: error: matplotlib is not installed: pip install 'rnn-xp[plot]'\n")
    (tmp_path / "empty" / "matplotlib.py").write_text("import no_such_part_of_it\n")
    line = fails(tmp_path, "plot", "loss", "a.jsonl", "--out", "l.png", env=env)
    assert "matplotlib is installed but broken: No module named 'no_such_part_of_it'" in line


@pytest.mark.parametrize(
    "kind", ["loss", "forecast", "confusion", "captions", "gradient", "activations"]
)
def test_help_shows_an_example(tmp_path: Path, kind: str) -> None:
    code, out, _ = run(tmp_path, "plot", kind, "--help")
    assert code == 0
    assert f"example:\n  rnn-xp plot {kind} " in out
