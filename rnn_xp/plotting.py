"""Pictures, with matplotlib: one function a picture, from plain data to a figure.

Figures are made without pyplot: nothing global changes, and no display is needed. `write` saves
one; the same data give the same file, byte for byte, under one version of matplotlib.
"""

from __future__ import annotations

import io
import math
import os
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rnn_xp.files import replace_file

Figure = Any
"""A `matplotlib.figure.Figure`."""
HostArray = np.ndarray[Any, Any]

# Colours that colour-blind readers tell apart (M. Okabe, K. Ito, 2008), from dark to light; lines
# differ in their markers and dashes too, for print in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SUFFIXES = (".png", ".svg", ".pdf")
MOST_CHARACTERS = 1000
"""Of a text that is drawn."""
MOST_PICTURES = 40
"""With captions, in one figure."""
_A_ROW = 80  # characters of a text side by side
# Fonts that have what matplotlib's own lacks, on the usual systems.
_FONTS = (
    "Noto Sans CJK KR",
    "Noto Sans KR",
    "NanumGothic",
    "Malgun Gothic",
    "Apple SD Gothic Neo",
    "AppleGothic",
    "UnDotum",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Droid Sans Fallback",
    "Arial Unicode MS",
)


class PlotError(ValueError):
    """A picture cannot be made: one line that says why."""


class Curve(NamedTuple):
    """The losses of one training."""

    name: str
    steps: Sequence[float]
    train: Sequence[float]
    validation: Sequence[float]
    """NaN where nothing was held out; a NaN step ends one training and begins another."""


class Band(NamedTuple):
    """An interval of a forecast."""

    name: str
    low: Sequence[float]
    high: Sequence[float]


def require() -> None:
    """Raise `PlotError` where there is no matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise PlotError(f"matplotlib is installed but broken: {error}") from error
        raise PlotError("matplotlib is not installed: pip install 'rnn-xp[plot]'") from error
    except ImportError as error:
        raise PlotError(f"matplotlib is installed but does not import: {error}") from error


def check_suffix(path: Path) -> None:
    """Raise `PlotError` if a file's name does not say that it is a picture."""
    if path.suffix.lower() not in SUFFIXES:
        raise PlotError(f"{path} must end in one of {', '.join(SUFFIXES)}")


def write(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure as PNG, SVG or PDF, as a whole or not at all.

    Raises
    ------
    PlotError
        If the name ends in none of `SUFFIXES`.
    OSError
        If the file cannot be written.
    """
    import matplotlib

    path = Path(path)
    check_suffix(path)
    kind = path.suffix.lower()[1:]
    undated = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}[kind]
    buffer = io.BytesIO()
    with warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "rnn_xp"}):
        # A name may have characters that no font here has: they are drawn as boxes.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from", UserWarning)
        figure.savefig(buffer, format=kind, dpi=150, metadata={undated: None})
    replace_file(path, buffer.getvalue())


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, width and height in inches."""
    require()
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


def without_frame(axes: Any) -> None:
    """Draw a grid, and no frame at the top and the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def _in_legend(name: str) -> str:
    """Return a name as the legend has it: matplotlib leaves out what begins with `_`."""
    return f" {name}" if name.startswith("_") else name


def _some(values: Any) -> int:
    """Return how many points of a line to go from one marker to the next."""
    return max(1, len(values) // 8)


def loss(curves: Sequence[Curve], *, step: str = "step", unit: str = "") -> Figure:
    """Draw losses over training: training dashed, validation solid, its lowest value marked.

    Parameters
    ----------
    curves : at least one
    step : str
        What the steps are.
    unit : str
        Of the loss.
    """
    figure = new_figure(8, 4.5)
    axes = figure.add_subplot()
    for k, curve in enumerate(curves):
        colour, marker = COLOURS[k % len(COLOURS)], MARKERS[k % len(MARKERS)]
        name = _in_legend(curve.name)
        axes.plot(curve.steps, curve.train, "--", color=colour, lw=1.2, label=f"{name}: training")
        held_out = np.asarray(curve.validation, dtype=np.float64)
        if np.isnan(held_out).all():
            continue
        best = int(np.nanargmin(held_out))
        label = f"{name}: validation, lowest {held_out[best]:.4g}"
        axes.plot(
            curve.steps,
            held_out,
            color=colour,
            lw=1.8,
            marker=marker,
            markevery=_some(held_out),
            ms=5,
            label=label,
        )
        axes.plot(curve.steps[best], held_out[best], marker, color=colour, ms=10, mec="black")
    axes.set_title("Loss during training")
    axes.set_xlabel(step)
    axes.set_ylabel(f"loss ({unit})" if unit else "loss")
    _named(*axes.legend(frameon=False).get_texts())
    without_frame(axes)
    return figure


def forecast(
    time: Any,
    actual: Sequence[float] | HostArray,
    predicted: Sequence[float] | HostArray,
    bands: Sequence[Band] = (),
    *,
    title: str = "Forecast",
    time_label: str = "time",
) -> Figure:
    """Draw a series and its forecast; NaN where there is none.

    Parameters
    ----------
    time : (N,) numbers or `datetime64`
    actual, predicted : (N,)
    bands : intervals (N,), the widest first
    title, time_label : str
    """
    figure = new_figure(9, 4.5)
    axes = figure.add_subplot()
    for k, band in enumerate(bands):
        shade = 0.18 + 0.22 * k
        axes.fill_between(
            time, band.low, band.high, color=COLOURS[1], alpha=shade, lw=0, label=band.name
        )
    axes.plot(time, actual, color=COLOURS[0], lw=1.5, label="actual")
    axes.plot(time, predicted, "--", color=COLOURS[1], lw=1.8, label="forecast")
    _named(axes.set_title(title))
    axes.set_xlabel(time_label)
    axes.set_ylabel("value")
    axes.legend(frameon=False)
    axes.margins(x=0.01)
    without_frame(axes)
    return figure


def confusion(matrix: HostArray, classes: Sequence[str]) -> Figure:
    """Draw a confusion matrix: counts in the cells, shaded by their part of the row.

    Parameters
    ----------
    matrix : integers (K, K)
        Rows are true classes, columns predicted ones.
    classes : K names
    """
    size = len(classes)
    totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    part = matrix / totals
    figure = new_figure(max(4.5, 1.8 + 0.52 * size), max(4.0, 1.3 + 0.52 * size))
    axes = figure.add_subplot()
    image = axes.imshow(part, cmap="Blues", vmin=0.0, vmax=1.0)
    for row, column in np.ndindex(matrix.shape):
        colour = "white" if part[row, column] > 0.5 else "black"
        count = f"{matrix[row, column]:d}"
        axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=9)
    longest = max(map(len, classes))
    axes.set_xticks(range(size), classes, rotation=90 if longest > 3 else 0)
    axes.set_yticks(range(size), classes)
    _named(*axes.get_xticklabels(), *axes.get_yticklabels())
    right, total = int(np.trace(matrix)), int(matrix.sum())
    axes.set_title(f"Accuracy {right / max(total, 1):.1%} ({right:,} of {total:,})")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    figure.colorbar(image, ax=axes, label="part of the true class", shrink=0.8)
    return figure


def captions(
    images: HostArray, written: Sequence[str], true: Sequence[str] | None, names: Sequence[str]
) -> Figure:
    """Draw pictures with the captions that a model wrote, and the true ones where these differ.

    Parameters
    ----------
    images : (N, rows, columns)
        Drawn darker where the number is higher.
    written, names : N each
        A caption of each picture, and what the picture is called.
    true : N, optional

    Raises
    ------
    PlotError
        If there are more than `MOST_PICTURES`, or they do not have two axes.
    """
    if len(images) > MOST_PICTURES:
        raise PlotError(f"{len(images):,} pictures are too many to draw: choose {MOST_PICTURES}")
    if images.ndim != 3:
        raise PlotError(f"pictures to draw must have two axes, got the shape {images.shape[1:]}")
    columns = min(4, len(images))
    rows = math.ceil(len(images) / columns)
    figure = new_figure(2.4 * columns, 2.6 * rows)
    for k, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if k >= len(images):
            continue
        axes.imshow(images[k], cmap="Greys")
        lines = [names[k], *textwrap.wrap(written[k], 24)]
        right = true is None or written[k] == true[k]
        if true is not None and not right:
            lines += ["true:", *textwrap.wrap(true[k], 24)]
        axes.set_title("\n".join(lines), fontsize=8, color="black" if right else COLOURS[1])
        _named(axes.title)
    return figure


def gradient(
    panels: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    title: str = "How far back the gradient reaches",
    step: str = "step",
) -> Figure:
    """Draw gradient norms through time, one panel for each entry, one line for each in it.

    Parameters
    ----------
    panels : title → name → norms (T + 1,), as from `gradient_flow.gradient_norms`
    title : str
    step : str
        What the steps are.
    """
    figure = new_figure(1.6 + 3.4 * len(panels) if len(panels) > 1 else 7, 4.2)
    figure.suptitle(title)
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, lines) in zip(every, panels.items(), strict=True):
        axes.axhline(1.0, color="0.6", lw=1)
        for k, (label, norms) in enumerate(lines.items()):
            back = np.arange(len(norms))[::-1]
            # A norm that has underflowed to zero has no place on this axis: the line ends there.
            shown = np.where(np.asarray(norms) > 0.0, norms, np.nan)
            axes.plot(
                back,
                shown,
                color=COLOURS[k % len(COLOURS)],
                marker=MARKERS[k % len(MARKERS)],
                markevery=_some(norms),
                ms=5,
                lw=1.8,
                label=_in_legend(label),
            )
        axes.set_yscale("log")
        axes.set_title(name, fontsize=11)
        axes.set_xlabel(f"{step}s before the loss")
        without_frame(axes)
    every[0].set_ylabel("norm of the gradient with respect to the state")
    _named(*every[0].legend(frameon=False).get_texts())
    return figure


def activations(
    values: HostArray, characters: Sequence[str], units: Sequence[int], *, title: str
) -> Figure:
    """Draw hidden units along a text: a row for each unit, a column for each character.

    A long text is broken into rows of 80 characters. A character that no font here has stands as
    its code point.

    Parameters
    ----------
    values : (N, U)
    characters : N strings, N <= `MOST_CHARACTERS`
    units : U numbers
    title : str

    Raises
    ------
    PlotError
        If the text is too long.
    """
    if len(characters) > MOST_CHARACTERS:
        raise PlotError(
            f"the text has {len(characters):,} characters, too many to draw: give at most "
            f"{MOST_CHARACTERS:,}"
        )
    require()
    from matplotlib.colors import LinearSegmentedColormap

    count = math.ceil(len(characters) / _A_ROW)
    columns = min(len(characters), _A_ROW)
    height = 0.2 * len(units) if len(units) <= 24 else 4.8
    figure = new_figure(max(5.0, 1.8 + 0.13 * columns), 0.9 + (height + 0.45) * count)
    _named(figure.suptitle(title))
    scale = float(np.abs(values).max()) or 1.0
    colours = LinearSegmentedColormap.from_list("signed", (COLOURS[1], "white", COLOURS[0]))
    every = figure.subplots(count, 1, squeeze=False)[:, 0]
    for k, axes in enumerate(every):
        part = slice(k * _A_ROW, (k + 1) * _A_ROW)
        image = axes.imshow(
            values[part].T,
            cmap=colours,
            vmin=-scale,
            vmax=scale,
            aspect="auto",
            interpolation="nearest",
        )
        axes.set_xlim(-0.5, columns - 0.5)
        _label(axes, characters[part])
        if len(units) <= 24:
            axes.set_yticks(range(len(units)), [str(unit) for unit in units], fontsize=8)
        axes.set_ylabel("unit")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    every[-1].set_xlabel("value after each character of the text")
    figure.colorbar(image, ax=list(every), label="activation", pad=0.01, aspect=40)
    return figure


def _label(axes: Any, characters: Sequence[str]) -> None:
    """Write a character under each column."""
    labels = [_drawn(character) for character in characters]
    axes.set_xticks(range(len(labels)), labels)
    for label, text in zip(axes.get_xticklabels(), labels, strict=True):
        label.set(parse_math=False, fontfamily=_monospace())
        long = len(text) > 1
        label.set(fontsize=5 if long else 9, rotation=90 if long else 0)


def _drawn(character: str) -> str:
    """Return what is drawn for a character: itself if a font has it, else its code point."""
    shown = {"\n": "↵", "\t": "⇥"}.get(character, character)
    if shown.isprintable() and any(ord(shown) in _glyphs(name) for name in _monospace()):
        return shown
    return f"{ord(character):04X}"


def _named(*texts: Any) -> None:
    """Let texts that hold somebody's names be drawn as they are, in fonts that have them."""
    for text in texts:
        text.set(parse_math=False, fontfamily=_families())


def _monospace() -> list[str]:
    return ["DejaVu Sans Mono", *_families()]


@cache
def _families() -> list[str]:
    """Return the fonts for any text, each for what those before it lack."""
    from matplotlib import font_manager

    here = {entry.name for entry in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _FONTS if name in here)]


@cache
def _glyphs(family: str) -> frozenset[int]:
    """Return the code points that a font has."""
    from matplotlib import font_manager, ft2font

    path = font_manager.findfont(font_manager.FontProperties(family=family))
    return frozenset(ft2font.FT2Font(path).get_charmap())
