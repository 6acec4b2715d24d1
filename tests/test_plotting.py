"""Pictures: the data that they draw, and the files that they become."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from targets import need_module

from rnn_xp import plotting
from rnn_xp.plotting import Band, Curve, PlotError

NAN = math.nan


@pytest.fixture(autouse=True, scope="module")
def matplotlib() -> Any:
    return need_module("matplotlib")


def drawn(line: Any) -> tuple[list[float], list[float]]:
    x, y = line.get_data()
    return list(x), list(y)


def test_loss_draws_every_log() -> None:
    curves = [
        Curve("a.jsonl", [1, 2, 3], [3.0, 2.0, 1.0], [3.5, 2.5, 2.75]),
        Curve("b.jsonl", [2, 4], [4.0, 3.0], [NAN, NAN]),
    ]
    (axes,) = plotting.loss(curves, step="epoch", unit="nats").axes
    train, held_out, best, other = axes.get_lines()
    assert drawn(train) == ([1, 2, 3], [3.0, 2.0, 1.0])
    assert drawn(held_out) == ([1, 2, 3], [3.5, 2.5, 2.75])
    assert drawn(best) == ([2], [2.5])
    assert drawn(other) == ([2, 4], [4.0, 3.0])
    assert (train.get_linestyle(), held_out.get_linestyle()) == ("--", "-")
    assert train.get_color() == held_out.get_color() != other.get_color()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [
        "a.jsonl: training",
        "a.jsonl: validation, lowest 2.5",
        "b.jsonl: training",
    ]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "loss (nats)")
    assert axes.get_title() == "Loss during training"


@pytest.mark.filterwarnings("error")
def test_names_that_matplotlib_would_leave_out() -> None:
    curve = plotting.Curve("_run", [1, 2], [2.0, 1.0], [2.0, 1.5])
    texts = [text.get_text().strip() for text in legend_of(plotting.loss([curve], step="step"))]
    assert texts == ["_run: training", "_run: validation, lowest 1.5"]
    panels = {"text": {"_m.st": [1.0, 1.0], "n.st": [1.0, 1.0]}}
    texts = [text.get_text().strip() for text in legend_of(plotting.gradient(panels))]
    assert texts == ["_m.st", "n.st"]


def legend_of(figure: plotting.Figure) -> Any:
    return figure.axes[0].get_legend().get_texts()


def test_forecast_draws_lines_and_intervals() -> None:
    time = np.asarray([1.0, 2.0, 3.0, 4.0])
    actual, predicted = [5.0, 6.0, NAN, NAN], [NAN, NAN, 7.0, 8.0]
    bands = [
        Band("80 % interval", [NAN, NAN, 6.0, 6.5], [NAN, NAN, 9.0, 9.5]),
        Band("50 % interval", [NAN, NAN, 6.5, 7.0], [NAN, NAN, 7.5, 8.5]),
    ]
    figure = plotting.forecast(time, actual, predicted, bands, title="$a$ 값", time_label="row")
    (axes,) = figure.axes
    first, second = axes.get_lines()
    np.testing.assert_array_equal(drawn(first), ([1, 2, 3, 4], actual))
    np.testing.assert_array_equal(drawn(second), ([1, 2, 3, 4], predicted))
    wide, narrow = axes.collections
    for area, band in ((wide, bands[0]), (narrow, bands[1])):
        (path,) = area.get_paths()
        corners = {tuple(map(float, point)) for point in path.vertices}
        low, high = zip(*[(band.low[k], band.high[k]) for k in (2, 3)], strict=True)
        assert corners == {(3.0, low[0]), (4.0, low[1]), (3.0, high[0]), (4.0, high[1])}
        assert area.get_label() == band.name
    assert wide.get_alpha() < narrow.get_alpha()
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("$a$ 값", "row", "value")
    assert not axes.title.get_parse_math()


def test_forecast_takes_dates() -> None:
    time = np.asarray(["1970-01-02", "1970-01-04"], dtype="datetime64[s]")
    figure = plotting.forecast(time, [1.0, NAN], [NAN, 2.0])
    line = figure.axes[0].get_lines()[0]
    assert line.get_xdata(orig=False).tolist() == [1.0, 3.0]  # matplotlib counts days from 1970


def test_confusion_shows_counts_and_accuracy() -> None:
    matrix = np.asarray([[8, 2, 0], [1, 1, 2], [0, 0, 0]])
    figure = plotting.confusion(matrix, ["a", "b", "c"])
    axes = figure.axes[0]
    np.testing.assert_allclose(
        axes.images[0].get_array(), [[0.8, 0.2, 0.0], [0.25, 0.25, 0.5], [0.0, 0.0, 0.0]]
    )
    counts = {text.get_position(): text.get_text() for text in axes.texts}
    assert counts == {(c, r): str(matrix[r, c]) for r in range(3) for c in range(3)}
    colours = {text.get_position(): text.get_color() for text in axes.texts}
    assert (colours[0, 0], colours[0, 1]) == ("white", "black")  # dark and light cells
    assert axes.get_title() == "Accuracy 64.3% (9 of 14)"
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["a", "b", "c"]


def test_captions_say_what_is_wrong() -> None:
    images = np.arange(45.0).reshape(5, 3, 3)
    written = ["a one", "a two", "a three", "a four, leaning to the left, wide", "a five"]
    figure = plotting.captions(images, written, [*written[:4], "a six"], list("abcde"))
    found = [axes for axes in figure.axes if axes.images]
    assert len(found) == 5
    for axes, image in zip(found, images, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
    titles = [axes.get_title() for axes in found]
    assert titles[:2] == ["a\na one", "b\na two"]
    assert titles[3:] == ["d\na four, leaning to the\nleft, wide", "e\na five\ntrue:\na six"]
    colours = [axes.title.get_color() for axes in found]
    assert colours[:4] == ["black"] * 4
    assert colours[4] != "black"
    alone = plotting.captions(images[:1], ["a one"], None, ["a"])
    assert alone.axes[0].get_title() == "a\na one"
    with pytest.raises(PlotError, match="too many to draw: choose 40"):
        plotting.captions(np.zeros((41, 2, 2)), ["a"] * 41, None, ["b"] * 41)
    with pytest.raises(PlotError, match="two axes"):
        plotting.captions(np.zeros((1, 4)), ["a"], None, ["b"])


def test_gradient_counts_back_from_the_loss() -> None:
    panels = {
        "half": {"Elman": [0.0, 0.25, 1.0], "LSTM": [0.5, 0.75, 1.0]},
        "one": {"Elman": [1.0, 1.0, 1.0]},
    }
    left, right = plotting.gradient(panels, step="character").axes
    reference, elman, lstm = left.get_lines()
    assert drawn(reference)[1] == [1.0, 1.0]
    assert drawn(lstm) == ([2, 1, 0], [0.5, 0.75, 1.0])
    # What has vanished altogether has no logarithm.
    np.testing.assert_array_equal(drawn(elman), ([2, 1, 0], [NAN, 0.25, 1.0]))
    assert len(right.get_lines()) == 2
    assert [axes.get_title() for axes in (left, right)] == ["half", "one"]
    assert {axes.get_yscale() for axes in (left, right)} == {"log"}
    assert left.get_xlabel() == "characters before the loss"
    assert left.get_ylim() == right.get_ylim()


def test_activations_in_rows_of_eighty_characters() -> None:
    characters = list("ab$\n한 " * 20)
    values = np.random.default_rng(0).uniform(-2, 2, (120, 3))
    figure = plotting.activations(values, characters, [7, 0, 12], title="units")
    first, second, bar = figure.axes
    np.testing.assert_array_equal(first.images[0].get_array(), values[:80].T)
    np.testing.assert_array_equal(second.images[0].get_array(), values[80:].T)
    scale = np.abs(values).max()
    assert {axes.images[0].get_clim() for axes in (first, second)} == {(-scale, scale)}
    labels = [label.get_text() for label in first.get_xticklabels()]
    known = has_korean()
    assert labels[:6] == ["a", "b", "$", "↵", "한" if known else "D55C", " "]
    assert len(labels) == 80
    assert [label.get_text() for label in second.get_yticklabels()] == ["7", "0", "12"]
    assert first.get_xlim() == second.get_xlim() == (-0.5, 79.5)
    assert bar.get_ylabel() == "activation"


def has_korean() -> bool:
    from matplotlib import font_manager, ft2font

    families = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist}
    return any(
        ord("한") in ft2font.FT2Font(families[name]).get_charmap()
        for name in plotting._FONTS
        if name in families
    )


def test_a_font_that_has_the_characters_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plotting._drawn("\u4e2d") in ("中", "4E2D")
    glyphs = {"DejaVu Sans Mono": {0x61}, "DejaVu Sans": {0x62}, "Mine": {0x4E2D}}
    monkeypatch.setattr(plotting, "_families", lambda: ["DejaVu Sans", "Mine"])
    monkeypatch.setattr(plotting, "_glyphs", lambda family: glyphs[family])
    assert [plotting._drawn(c) for c in "ab中한"] == ["a", "b", "中", "D55C"]


def test_a_text_that_is_too_long_to_draw() -> None:
    with pytest.raises(PlotError, match="1,001 characters, too many to draw: give at most 1,000"):
        plotting.activations(np.zeros((1001, 1)), ["a"] * 1001, [0], title="")


def test_units_that_are_all_zero() -> None:
    figure = plotting.activations(np.zeros((3, 40)), list("abc"), list(range(40)), title="")
    assert figure.axes[0].images[0].get_clim() == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".png", b"\x89PNG\r\n\x1a\n"), (".SVG", b"<?xml "), (".pdf", b"%PDF-")]
)
def test_files_are_of_their_kind_and_always_the_same(
    tmp_path: Path, suffix: str, magic: bytes
) -> None:
    written = []
    for k in range(2):
        figure = plotting.activations(
            np.eye(4), list("a한\n\u0301"), [0, 1, 2, 3], title="한글 $x_1$ \u0378"
        )
        path = tmp_path / f"{k}{suffix}"
        plotting.write(figure, path)
        written.append(path.read_bytes())
    assert written[0].startswith(magic)
    assert written[0] == written[1]
    assert b"Date" not in written[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"0{suffix}", f"1{suffix}"]


def test_nothing_global_changes(tmp_path: Path, matplotlib: Any) -> None:
    before = dict(matplotlib.rcParams)
    plotting.write(plotting.gradient({"": {"a": [1.0, 1.0]}}), tmp_path / "a.svg")
    assert dict(matplotlib.rcParams) == before


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    figure = plotting.gradient({"": {"a": [1.0, 1.0]}})
    with pytest.raises(PlotError, match=r"a\.gif must end in one of \.png, \.svg, \.pdf"):
        plotting.write(figure, tmp_path / "a.gif")
    with pytest.raises(FileNotFoundError):
        plotting.write(figure, tmp_path / "no" / "a.png")
    assert not list(tmp_path.iterdir())


def test_many_logs_differ_in_colour_or_marker() -> None:
    curves = [Curve(str(k), [1, 2], [1.0, 1.0], [2.0, 1.0]) for k in range(7)]
    lines = plotting.loss(curves).axes[0].get_lines()[1::3]
    assert len({(line.get_color(), line.get_marker()) for line in lines}) == 7
