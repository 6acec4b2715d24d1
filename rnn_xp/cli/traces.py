"""Hidden units along a text: for a terminal, for a pipe, and as an HTML page."""

from __future__ import annotations

import html
import unicodedata
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

HostArray = np.ndarray[Any, Any]

# Backgrounds of a terminal of 256 colours, from weak to strong: blue and orange, which colour-blind
# readers tell apart, all light enough for black letters.
_POSITIVE = (195, 153, 117, 75, 33)
_NEGATIVE = (230, 223, 216, 209, 202)
_LEVELS = 8  # of a colour, in HTML


class Trace(NamedTuple):
    """What there is to show."""

    title: str
    characters: list[str]
    """N of them."""
    units: list[int]
    """U of them."""
    values: HostArray
    """(N, U)"""

    @property
    def scale(self) -> float:
        """The largest magnitude of all values: the strongest colour."""
        return float(np.abs(self.values).max()) or 1.0


def visible(character: str) -> str:
    """Return what stands for a character: itself, or something seen where it has no shape.

    A combining mark stands on a dotted circle, so that each character has a place of its own.
    """
    code, category = ord(character), unicodedata.category(character)
    if character in "\n\t":
        return {"\n": "↵", "\t": "⇥"}[character]
    if code < 0x20:
        return chr(0x2400 + code)
    if category in ("Mn", "Me"):
        return "◌" + character
    if category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return f"<{code:X}>"
    return character


def width_of(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(
        0
        if unicodedata.category(character) in ("Mn", "Me")
        else 1 + (unicodedata.east_asian_width(character) in "WF")
        for character in text
    )


def as_lines(trace: Trace, columns: int, *, colour: bool) -> list[str]:
    """Return lines for a terminal or a pipe, at most `columns` wide where that is possible.

    With colour each unit has the text in its colours. Without, the text stands once, and below it
    each unit has a digit under each character: 0 for -scale, 9 for +scale.
    """
    cells = [visible(character) for character in trace.characters]
    labels = [f"unit {unit} " for unit in trace.units]
    margin = max(map(len, labels))
    lines = []
    for start, stop in _breaks(trace.characters, cells, columns - margin):
        row = cells[start:stop]
        if not colour:
            lines.append(" " * margin + "".join(row))
        for k, label in enumerate(labels):
            values = trace.values[start:stop, k] / trace.scale
            shown = _coloured(row, values) if colour else _digits(row, values)
            lines.append(label.rjust(margin) + shown)
        if len(labels) > 1 or not colour:
            lines.append("")
    return lines


def _breaks(characters: list[str], cells: list[str], columns: int) -> list[tuple[int, int]]:
    """Return where each line of the text starts and stops: after line ends, or where it is full."""
    lines, start, used = [], 0, 0
    for k, cell in enumerate(cells):
        if used and (used + width_of(cell) > columns or characters[k - 1] == "\n"):
            lines.append((start, k))
            start, used = k, 0
        used += width_of(cell)
    return [*lines, (start, len(cells))]


def _digits(cells: list[str], values: HostArray) -> str:
    numbers = np.clip((values + 1.0) * 5.0, 0, 9).astype(int)
    return "".join(str(n) * width_of(cell) for n, cell in zip(numbers, cells, strict=True))


def _coloured(cells: list[str], values: HostArray) -> str:
    levels = np.rint(values * len(_POSITIVE)).astype(int)
    parts = []
    for level, run in groupby(zip(levels.tolist(), cells, strict=True), key=lambda pair: pair[0]):
        text = "".join(cell for _, cell in run)
        parts.append(f"{_code(level)}{text}\x1b[0m" if level else text)
    return "".join(parts)


def _code(level: int) -> str:
    background = _POSITIVE[level - 1] if level > 0 else _NEGATIVE[-level - 1]
    return f"\x1b[48;5;{background};38;5;16m"


_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --plus: 70, 160, 240; --minus: 250, 150, 50; }}
@media (prefers-color-scheme: dark) {{ :root {{ --plus: 20, 100, 190; --minus: 180, 85, 0; }} }}
body {{ font-family: sans-serif; margin: 2em; }}
table {{ border-collapse: collapse; }}
th, td {{ border-top: 1px solid gray; padding: .6em .8em; text-align: left; }}
th {{ vertical-align: top; white-space: nowrap; }}
.text {{ font-family: monospace; line-height: 1.5; white-space: pre-wrap; }}
td.text {{ overflow-wrap: anywhere; }}
{classes}
</style>
</head>
<body>
<h1>{title}</h1>
<p>After each character: <span class="text">{legend}</span></p>
<table>
{rows}
</table>
</body>
</html>
"""


def as_page(trace: Trace) -> str:
    """Return an HTML page that needs no other file: one row for each unit, and a legend."""
    levels = range(1, _LEVELS + 1)
    classes = [
        f".{sign[0]}{level} {{ background: rgba(var(--{sign}), {level / _LEVELS:g}); }}"
        for sign in ("plus", "minus")
        for level in levels
    ]
    steps = [-_LEVELS, -_LEVELS // 2, 0, _LEVELS // 2, _LEVELS]
    legend = "".join(_span(n, f" {n / _LEVELS * trace.scale:+.2f} ") for n in steps)
    rows = [
        f'<tr><th scope="row">unit {unit}</th>\n<td class="text" lang="">'
        f"{_marked(trace, k)}</td></tr>"
        for k, unit in enumerate(trace.units)
    ]
    return _PAGE.format(
        title=html.escape(trace.title),
        classes="\n".join(classes),
        legend=legend,
        rows="\n".join(rows),
    )


def _marked(trace: Trace, k: int) -> str:
    levels = np.rint(trace.values[:, k] / trace.scale * _LEVELS).astype(int).tolist()
    cells = [visible(c) + ("\n" if c == "\n" else "") for c in trace.characters]
    runs = groupby(zip(levels, cells, strict=True), key=lambda pair: pair[0])
    return "".join(_span(level, "".join(cell for _, cell in run)) for level, run in runs)


def _span(level: int, text: str) -> str:
    text = html.escape(text)
    if not level:
        return text
    return f'<span class="{"p" if level > 0 else "m"}{abs(level)}">{text}</span>'
