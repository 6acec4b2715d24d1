"""The picture of results: the ratios to the fastest peer, and how the cost grows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rnn_xp import plotting

from . import report
from .cases import CELLS, SWEEPS
from .peers import LIBRARIES
from .results import BenchError, Results


def picture(results: Results) -> plotting.Figure:
    """Draw results: the ratios to the fastest peer, and the growth."""
    ratios: dict[str, list[tuple[str, int, float]]] = {}
    for row in results.rows:
        if row.fastest is not None and not row.case.table.startswith("sweep"):
            title = report.TABLES[row.case.table][0]
            ratio = row.ratio(row.fastest)
            ratios.setdefault(title, []).append((report.label(row) or "all", row.threads, ratio))
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for cell in CELLS:  # a line of panels for each
        for axis in SWEEPS:
            places = (f"sweep {axis}", cell)
            rows = [row for row in results.rows if (row.case.table, row.case.cell) == places]
            for (_, _, peer), line in report.growth(rows, axis).items():
                panel = curves.setdefault(f"{CELLS[cell]}: {axis}", {})
                panel[LIBRARIES[peer].title] = line
    if not ratios and not curves:
        raise BenchError(
            f"there is nothing to draw: no row has a ratio to {report.JUDGES}, and none is of a "
            "sweep"
        )
    return _drawn(ratios, curves)


def _drawn(
    ratios: Mapping[str, Sequence[tuple[str, int, float]]],
    growth: Mapping[str, Mapping[str, Mapping[int, float]]],
) -> plotting.Figure:
    """Draw a benchmark: ratios to the fastest peer, rows below each other, and growing costs.

    Parameters
    ----------
    ratios : title → rows (label, threads, ratio)
        Rows of one label share a line, with a marker for each number of threads.
    growth : title → name → size → seconds
        One small panel for each title, a line for each name.
    """
    lines = {title: list(dict.fromkeys(row[0] for row in rows)) for title, rows in ratios.items()}
    heights = [len(labels) + 2.5 for labels in lines.values()]
    height = max(0.2 * sum(heights), 1.6 * math.ceil(len(growth) / 3), 3.0)
    widths = [7.0] * bool(ratios) + [9.0] * bool(growth)
    figure = plotting.new_figure(sum(widths), height)
    parts = iter(figure.subfigures(1, len(widths), width_ratios=widths, squeeze=False)[0])
    if ratios:
        every = next(parts).subplots(len(lines), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (title, labels) in zip(every, lines.items(), strict=True):
            _ratios(axes, title, labels, ratios[title])
    if growth:
        rows = math.ceil(len(growth) / 3)
        every = next(parts).subplots(rows, 3, squeeze=False).flat
        for axes, (title, curves) in zip(every, growth.items(), strict=False):
            _growth(axes, title, curves)
        for axes in every[len(growth) :]:
            axes.axis("off")
        every[0].legend(frameon=False, fontsize=7)
    return figure


def _ratios(
    axes: Any, title: str, labels: Sequence[str], rows: Sequence[tuple[str, int, float]]
) -> None:
    """Draw ratios on a logarithmic axis, those below 1 in another colour."""
    axes.axvline(1.0, color="black", lw=1)
    for k, threads in enumerate(sorted({row[1] for row in rows})):
        chosen = [row for row in rows if row[1] == threads]
        axes.scatter(
            [row[2] for row in chosen],
            [labels.index(row[0]) for row in chosen],
            c=[plotting.COLOURS[0] if row[2] >= 1.0 else plotting.COLOURS[1] for row in chosen],
            marker=plotting.MARKERS[k % len(plotting.MARKERS)],
            s=28,
        )
        label = f"{threads} thread{'s' if threads > 1 else ''}"
        axes.scatter(
            [],
            [],
            color="0.4",
            marker=plotting.MARKERS[k % len(plotting.MARKERS)],
            s=28,
            label=label,
        )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.5), max(high, 4.0))
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_title(f"{title}: fastest peer / rnn_xp", fontsize=10)
    axes.legend(frameon=False, fontsize=7)
    plotting.without_frame(axes)


def _growth(axes: Any, title: str, curves: Mapping[str, Mapping[int, float]]) -> None:
    """Draw seconds over size, both logarithmic."""
    for k, (name, line) in enumerate(curves.items()):
        axes.loglog(
            list(line),
            list(line.values()),
            color=plotting.COLOURS[k % len(plotting.COLOURS)],
            marker=plotting.MARKERS[k % len(plotting.MARKERS)],
            ms=3,
            lw=1.2,
            label=name,
        )
    axes.set_title(f"{title}, s", fontsize=9)
    axes.tick_params(labelsize=7)
    plotting.without_frame(axes)
