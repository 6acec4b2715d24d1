"""`inspect` end to end: in a pipe, on a terminal, as a page and as a picture."""

from __future__ import annotations

import os
import re
import subprocess
import unicodedata
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from targets import need, need_module
from test_cli import command, fails, run

from rnn_xp.backend import select
from rnn_xp.checkpoint import save
from rnn_xp.cli.traces import Trace, as_lines, as_page, visible, width_of
from rnn_xp.models import character_model, sequence_model
from rnn_xp.tasks.inspection import hidden_units
from rnn_xp.text import Vocabulary

TEXT = (
    "국민 is\n<b>&amp;</b> and a longer line that is wider than a terminal of eighty columns: yes."
)
ANSI = re.compile(r"\x1b\[[0-9;]*m")
SIZES: dict[str, Any] = {"embedding_size": 4, "hidden_size": 6, "num_layers": 2}


def write_model(path: Path, vocabulary: Vocabulary, cell: str = "gru") -> np.ndarray:
    """Save a new model; return its hidden units along `TEXT`."""
    model = character_model(len(vocabulary), cell=cell, **SIZES)
    params = model.init(0, dtype="float64")
    task = {"kind": "text", "unit": vocabulary.unit}
    save(path, model, params, vocabulary=vocabulary.characters, task=task)
    return hidden_units(model, params, select("numpy"), vocabulary.encode(TEXT))


def columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


@pytest.fixture
def values(tmp_path: Path) -> np.ndarray:
    return write_model(tmp_path / "m.st", Vocabulary.of(TEXT))


def test_a_line_of_digits_in_a_pipe(tmp_path: Path, values: np.ndarray) -> None:
    code, out, err = run(tmp_path, "inspect", "m.st", "--text", TEXT, "--units", "5", "0")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    scale = np.abs(values[:, [5, 0]]).max()
    assert lines[:4] == [
        "m.st, recurrent/1: h of GRU units",
        "units 5, 0",
        f"a digit for each character: 0 is {-scale:.3f}, 9 is {scale:.3f}",
        "",
    ]
    blocks = [lines[k : k + 3] for k in range(4, len(lines), 4)]
    assert all(line == "" for line in lines[7::4])
    assert max(columns(line) for line in lines) <= 80
    assert "".join(block[0][7:] for block in blocks) == TEXT.replace("\n", "↵")
    assert blocks[0][0] == "       국민 is↵"  # a line ends where the text's does
    for row, unit in ((1, 5), (2, 0)):
        found = ""
        for block in blocks:
            assert block[row].startswith(f"unit {unit} ")
            assert len(block[row]) == columns(block[0])
            found += block[row][7:]
        expected = ""
        for character, value in zip(TEXT, values[:, unit] / scale, strict=True):
            expected += str(min(9, int((value + 1) / 2 * 10))) * columns(character)
        assert found == expected


def test_the_units_that_vary_most(tmp_path: Path, values: np.ndarray) -> None:
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    _, out, _ = run(tmp_path, "inspect", "m.st", "--file", "t.txt", "--top", "3")
    first = sorted(range(6), key=lambda unit: -values[:, unit].var())[:3]
    names = ", ".join(map(str, first))
    assert f"units {names}: largest variance over the {len(TEXT)} characters\n" in out
    _, out, _ = run(tmp_path, "inspect", "m.st", "--text", TEXT, "--layer", "recurrent/0")
    assert out.startswith("m.st, recurrent/0: h of GRU units\n")
    assert len(re.findall(r"\d+", out.splitlines()[1].partition(":")[0])) == 5


def test_colours_on_request(tmp_path: Path, values: np.ndarray) -> None:
    arguments = ["inspect", "m.st", "--text", TEXT, "--units", "2", "--color", "always"]
    code, out, err = run(tmp_path, *arguments, env={"NO_COLOR": "1"})
    assert (code, err) == (0, "")
    lines = out.splitlines()[4:]
    assert "".join(ANSI.sub("", line)[7:] for line in lines) == TEXT.replace("\n", "↵")
    # Which background each character has: blue for positive, orange for negative values.
    signs: list[int] = []
    for line in lines:
        for level, part in re.findall(r"(?:\x1b\[48;5;(\d+);38;5;16m)?([^\x1b]+)", line[7:]):
            if part := part.removeprefix("[0m"):
                sign = 0 if not level else 1 if int(level) in (195, 153, 117, 75, 33) else -1
                signs += [sign] * len(part)
    assert len(signs) == len(TEXT)
    scaled = values[:, 2] / np.abs(values[:, 2]).max()
    np.testing.assert_array_equal(signs, np.sign(scaled) * (np.abs(scaled) > 0.1))


@pytest.mark.skipif(os.name == "nt", reason="there is no pseudo-terminal")
def test_colours_on_a_terminal(tmp_path: Path, values: np.ndarray) -> None:
    import pty

    def on_a_terminal(*arguments: str, **env: str) -> str:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            command("inspect", "m.st", "--text", "국민 is", *arguments),
            cwd=tmp_path,
            stdout=theirs,
            env={**os.environ, "TERM": "xterm", "NO_COLOR": "", **env},
        )
        os.close(theirs)
        data = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            data += part
        os.close(ours)
        assert process.wait(timeout=60) == 0
        return data.decode()

    assert ANSI.search(on_a_terminal())
    assert not ANSI.search(on_a_terminal(NO_COLOR="1"))
    assert not ANSI.search(on_a_terminal("--color", "never"))


class Page(HTMLParser):
    """The rows of a page, and the class of each character in them."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self.rows: list[list[tuple[str, str]]] = []
        self.heads: list[str] = []
        self.style = ""
        self.title = ""
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert not values.keys() & {"src", "href", "onclick"}
        self.tags.add(tag)
        if tag == "meta":
            return
        self.open.append((tag, values.get("class") or ""))
        if tag == "td":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.open]
        if "td" in tags:
            name = self.open[-1][1] if tags[-1] == "span" else ""
            self.rows[-1] += [(character, name) for character in data]
        elif "th" in tags:
            self.heads.append(data)
        elif tags[-1:] == ["style"]:
            self.style += data
        elif tags[-1:] == ["title"]:
            self.title += data


def test_a_page(tmp_path: Path, values: np.ndarray) -> None:
    (tmp_path / "<&>.st").write_bytes((tmp_path / "m.st").read_bytes())
    code, out, err = run(
        tmp_path, "inspect", "<&>.st", "--text", TEXT, "--units", "1", "4", "--out", "u.html"
    )
    assert (code, err) == (0, "")
    assert out == "units 1, 4; saved to u.html\n"
    text = (tmp_path / "u.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    page.close()
    assert text.startswith("<!DOCTYPE html>")
    assert page.open == []
    assert not page.tags & {"script", "link", "img", "b"}
    assert page.title == "<&>.st, recurrent/1: h of GRU units"
    assert page.heads == ["unit 1", "unit 4"]
    assert "prefers-color-scheme: dark" in page.style
    scale = np.abs(values[:, [1, 4]]).max()
    for row, unit in zip(page.rows, (1, 4), strict=True):
        shown = "".join(character for character, _ in row)
        assert shown == TEXT.replace("\n", "↵\n")
        names = [name for character, name in row if character != "\n"]
        for name, value in zip(names, values[:, unit] / scale, strict=True):
            level = round(float(value) * 8)
            assert name == (f"{'p' if level > 0 else 'm'}{abs(level)}" if level else "")
            assert not name or f".{name} {{ background: rgba(" in page.style
    assert f"{scale:+.2f}" in text
    assert f"{-scale:+.2f}" in text


def test_a_picture(tmp_path: Path, values: np.ndarray) -> None:
    need_module("matplotlib")
    code, out, err = run(tmp_path, "inspect", "m.st", "--text", TEXT, "--out", "u.png")
    assert (code, err) == (0, "")
    assert out.endswith("saved to u.png\n")
    assert (tmp_path / "u.png").read_bytes().startswith(b"\x89PNG")
    assert "--force" in fails(tmp_path, "inspect", "m.st", "--text", TEXT, "--out", "u.png")


def test_a_model_of_bytes(tmp_path: Path) -> None:
    values = write_model(tmp_path / "b.st", Vocabulary.of(b""), cell="lstm")
    arguments = ["inspect", "b.st", "--text", TEXT, "--units", "3"]
    code, out, err = run(tmp_path, *arguments)
    assert (code, err) == (0, "")
    ends = np.cumsum([len(character.encode()) for character in TEXT]) - 1
    seen = values[ends, 3] / np.abs(values[ends, 3]).max()
    first = "".join(str(min(9, int((v + 1) * 5))) * 2 for v in seen[:2])
    assert out.splitlines()[5].startswith(f"unit 3 {first}")
    code, out, err = run(tmp_path, *arguments, "--state", "c", "--layer", "recurrent/0")
    assert (code, err) == (0, "")
    assert out.startswith("b.st, recurrent/0: c of LSTM units\n")


@pytest.mark.parametrize("name", ["strict", "torch", "jax"])
def test_every_backend_shows_the_same(tmp_path: Path, values: np.ndarray, name: str) -> None:
    need(name)
    arguments = ["inspect", "m.st", "--text", "국민 is", "--dtype", "float32", "--backend"]
    found = run(tmp_path, *arguments, name)
    assert found == run(tmp_path, *arguments, "numpy")
    assert found[0] == 0


def test_what_is_asked_wrongly(tmp_path: Path, values: np.ndarray) -> None:
    def wrong(*arguments: str) -> str:
        return fails(tmp_path, "inspect", *arguments)

    assert "never seen '한' (U+D55C)" in wrong("m.st", "--text", "한")
    assert "no character is left" in wrong("m.st", "--text", "")
    assert "there is no unit 6: this level has the units 0 to 5" in wrong(
        "m.st", "--text", "is", "--units", "0", "6"
    )
    assert "no level 'recurrent/2'" in wrong("m.st", "--text", "is", "--layer", "recurrent/2")
    assert "a GRU has no cell state c" in wrong("m.st", "--text", "is", "--state", "c")
    assert "u.gif must end in one of .html" in wrong("m.st", "--text", "is", "--out", "u.gif")
    assert "no/u.html" in wrong("m.st", "--text", "is", "--out", "no/u.html")
    assert "one of the arguments --text --file is required" in wrong("m.st")
    assert "not allowed with" in wrong("m.st", "--text", "is", "--file", "t.txt")
    assert "No such file" in wrong("m.st", "--file", "t.txt")
    assert "No such file" in wrong("missing.st", "--text", "is")
    model = sequence_model(2, 3)
    save(tmp_path / "other.st", model, model.init(0), task={"kind": "classify"})
    assert "it is no text model" in wrong("other.st", "--text", "is")


def test_a_model_that_has_gone_astray(tmp_path: Path) -> None:
    model = character_model(2, **SIZES)
    params = {name: value * np.nan for name, value in model.init(0).items()}
    save(tmp_path / "nan.st", model, params, vocabulary="ab", task={"kind": "text"})
    assert "not finite" in fails(tmp_path, "inspect", "nan.st", "--text", "ab")


def test_without_matplotlib_a_page_is_written_and_a_picture_is_not(
    tmp_path: Path, values: np.ndarray
) -> None:
    env = without_matplotlib(tmp_path)
    arguments = ["inspect", "m.st", "--text", "is", "--out"]
    assert "pip install 'rnn-xp[plot]'" in fails(tmp_path, *arguments, "u.png", env=env)
    assert run(tmp_path, *arguments, "u.html", env=env)[0] == 0


def without_matplotlib(folder: Path) -> dict[str, str]:
    """Return the environment of a process that finds no matplotlib."""
    (folder / "empty").mkdir()
    (folder / "empty" / "matplotlib.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'matplotlib'\", name='matplotlib')\n"
    )
    path = os.environ.get("PYTHONPATH")
    joined = os.pathsep.join([str(folder / "empty"), *([path] if path else [])])
    return {"PYTHONPATH": joined, "PYTHONDONTWRITEBYTECODE": "1"}


def test_help_shows_an_example(tmp_path: Path) -> None:
    code, out, _ = run(tmp_path, "inspect", "--help")
    assert code == 0
    assert "example:\n  rnn-xp inspect " in out


@pytest.mark.parametrize(
    ("character", "shown", "width"),
    [
        ("a", "a", 1),
        ("한", "한", 2),
        ("\n", "↵", 1),
        ("\t", "⇥", 1),
        ("\x00", "␀", 1),
        ("\x1b", "␛", 1),
        ("\x7f", "<7F>", 4),
        ("\u0301", "◌\u0301", 1),
        ("\u200b", "<200B>", 6),
        ("\u2028", "<2028>", 6),
        ("\ue000", "<E000>", 6),
    ],
)
def test_every_character_is_seen(character: str, shown: str, width: int) -> None:
    assert visible(character) == shown
    assert width_of(shown) == width


def test_values_that_are_all_zero() -> None:
    trace = Trace("t", ["a", "b"], [0], np.zeros((2, 1)))
    assert as_lines(trace, 80, colour=True) == ["unit 0 ab"]
    assert as_lines(trace, 80, colour=False) == ["       ab", "unit 0 55", ""]
    assert '<td class="text" lang="">ab</td>' in as_page(trace)
