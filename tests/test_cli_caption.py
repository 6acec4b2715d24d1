"""`train caption`, `eval` and `predict` of a captioner, in a subprocess, as a user runs them."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from targets import need_module
from test_cli import command, fails, run

from rnn_xp import character_model
from rnn_xp.checkpoint import load, save

SMALL = "--hidden-size 32 --batch-size 8 --dropout 0.1 --backend numpy".split()  # noqa: SIM905
SIDES = ("a bar , on the left", "a bar, on the  right")


def write(path: Path, count: int, seed: int = 0, **changes: Any) -> None:
    """Write pictures with a bright column on the left or on the right."""
    images = np.random.default_rng(seed).integers(0, 30, (count, 4, 5))
    for k in range(count):
        images[k, :, 4 * (k % 2)] = 200
    captions = np.asarray([SIDES[k % 2] for k in range(count)])
    arrays = {"images": images, "captions": captions} | changes
    np.savez(path, **{name: a for name, a in arrays.items() if a is not None})


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with pictures and a model that tells left from right."""
    folder = tmp_path_factory.mktemp("bars")
    write(folder / "bars.npz", 50)
    write(folder / "bare.npz", 3, 1, captions=None)
    arguments = [*SMALL, "--epochs", "25", "--learning-rate", "0.01", "--log", "log.jsonl"]
    code, out, err = run(folder, "train", "caption", "bars.npz", *arguments, "--out", "m.st")
    assert (code, err) == (0, ""), out
    assert out.startswith("40 pictures of 4x5, 7 words; 0 to validate, 10 held out\n")
    assert "the parameters of epoch 25 are saved to m.st\n" in out
    assert out.endswith("held out: exact match 100.0 % (10 of 10), greedy\n")
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(records) == 25
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    return folder


@pytest.fixture
def folder(ready: Path, tmp_path: Path) -> Path:
    """Return a copy of `ready` of its own."""
    return shutil.copytree(ready, tmp_path / "bars")


def rows_of(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_eval_counts_right_captions(folder: Path) -> None:
    code, out, err = run(folder, "eval", "m.st", "bars.npz")
    assert (code, err) == (0, "")
    assert re.match(r"10 held-out pictures: loss 0\.\d{4} nats a word\n", out)
    assert out.endswith(
        "greedy: exact match 100.0 % (10 of 10)\nbeam 5: exact match 100.0 % (10 of 10)\n"
    )
    wrong = np.asarray([SIDES[k in (0, 2, 5)] for k in range(8)])  # 4, 5 and 6 are true
    write(folder / "other.npz", 8, 3, captions=wrong)
    _, out, _ = run(folder, "eval", "m.st", "other.npz")
    assert out.startswith("8 pictures: loss ")
    assert "greedy: exact match 37.5 % (3 of 8)\n" in out


def test_predict_prints_or_writes_a_caption_a_picture(folder: Path) -> None:
    code, out, err = run(folder, "predict", "m.st", "bare.npz", "--out", "p.csv")
    assert (code, out, err) == (0, "", "")
    rows = rows_of(folder / "p.csv")
    assert rows[0] == ["picture", "caption", "log_probability", "true"]
    left, right = "a bar, on the left", "a bar, on the right"
    assert [row[:2] for row in rows[1:]] == [["0", left], ["1", right], ["2", left]]
    assert all(-0.7 < float(row[2]) <= 0.0 and row[3] == "" for row in rows[1:])
    assert "p.csv exists" in fails(folder, "predict", "m.st", "bare.npz", "--out", "p.csv")
    assert run(folder, "predict", "m.st", "bare.npz", "--out", "p.csv", "--force")[0] == 0
    assert "no/such" in fails(folder, "predict", "m.st", "bare.npz", "--out", "no/such/p.csv")
    _, out, _ = run(folder, "predict", "m.st", "bars.npz", "--index", "7", "2", "--beam", "1")
    lines = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    assert [line[:2] + line[3:] for line in lines[1:]] == [["7", right, right], ["2", left, left]]
    _, out, _ = run(folder, "predict", "m.st", "bare.npz", "--index", "1", "--max-length", "2")
    assert re.split(r"  +", out.splitlines()[1].strip())[:2] == ["1", "a bar"]


def test_predict_draws_a_picture_with_its_captions(folder: Path) -> None:
    images = np.zeros((2, 4, 5))
    images[0, :, 0], images[0, 0, 1], images[0, 3, 2] = 180, 90, 20
    write(folder / "drawn.npz", 2, images=images)
    code, out, err = run(folder, "predict", "m.st", "drawn.npz", "--show", "--beam", "3")
    assert (code, err) == (0, "")
    assert out.startswith(
        "picture 0\n@@==\n@@\n@@\n@@  ..\ntrue     a bar, on the left\n"
        "greedy   a bar, on the left  (log-probability -"
    )
    assert "\nbeam 3   a bar, on the left  (log-probability -" in out
    assert "picture 1\n\n\n\n\ntrue " in out
    assert out.count("log-probability") == 4


def test_the_built_in_digits(tmp_path: Path) -> None:
    arguments = ["--epochs", "3", "--hidden-size", "32", "--backend", "numpy"]
    code, out, err = run(
        tmp_path, "train", "caption", *arguments, "--validation", "0.2", "--seed", "3"
    )
    assert (code, err) == (0, "")
    assert out.startswith("1,150 pictures of 8x8, 20 words; 288 to validate, 359 held out\n")
    saved = re.search(r"the parameters of epoch (\d), validation loss (\S+), are saved", out)
    assert saved is not None
    losses = re.findall(r"epoch +\d/3 .* validation loss (\d\.\d{4})", out)
    assert float(saved[2]) == min(map(float, losses))
    tested = re.search(r"held out: exact match (\S+) % \((\d+) of 359\), greedy\n", out)
    assert tested is not None
    code, out, err = run(tmp_path, "eval", "model.safetensors")
    assert (code, err) == (0, "")
    assert out.startswith("359 held-out pictures: loss ")
    lines = [re.split(r"  +", line.strip()) for line in out.splitlines()[4:]]
    assert lines[0] == ["exact", "digit", "weight", "slant", "width"]
    table = {name: [float(value) for value in values] for name, *values in lines[1:]}
    assert table["greedy"][0] == float(tested[1])
    assert list(table)[2:] == ["most frequent", "label only", "nearest label", "nearest caption"]
    assert table["label only"][1] == 100.0
    code, out, err = run(tmp_path, "predict", "model.safetensors")
    assert (code, err, out.count("\n")) == (0, "", 360)
    assert out.splitlines()[1].split()[0] == "1438"


def test_ctrl_c_saves_what_is_trained(tmp_path: Path) -> None:
    write(tmp_path / "bars.npz", 50)
    process = subprocess.Popen(
        command("train", "caption", "bars.npz", *SMALL, "--epochs", "100000", "--log", "log"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    log = tmp_path / "log"
    while not log.exists() or not log.read_text():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    found = re.search(r"interrupted: the parameters of epoch (\d+) are saved to model", out)
    assert found is not None
    assert load(tmp_path / "model.safetensors").training["epoch"] == int(found[1]) > 0
    assert run(tmp_path, "eval", "model.safetensors", "bars.npz")[0] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, "p.npz has no array 'images': it holds captions"),
        ({"captions": None}, "p.npz: there is no array 'captions'"),
        ({"captions": np.asarray(["a"])}, "p.npz: 6 images have 1 captions"),
        ({"captions": np.asarray(["a"] * 5 + [" "])}, "p.npz: caption 5 is empty"),
        ({"captions": np.asarray([{}] * 6)}, "p.npz is no usable .npz file (Object arrays cannot"),
        ({"images": np.full((6, 4, 5), np.inf)}, "p.npz: image 0 has a number that is not finite"),
        (
            {"images": np.ones((1, 4, 5)), "captions": np.asarray(["a"])},
            "p.npz: not enough pictures: training needs at least two",
        ),
    ],
)
def test_bad_files(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path / "p.npz", 6, **changes)
    assert message in fails(tmp_path, "train", "caption", "p.npz", *SMALL)


def test_bad_input(folder: Path) -> None:
    assert "m.st exists" in fails(folder, "train", "caption", "bars.npz", "--out", "m.st")
    assert "No such file" in fails(folder, "train", "caption", "missing.npz")
    (folder / "text.npz").write_text("this is no archive")
    assert "text.npz is no usable .npz file" in fails(folder, "predict", "m.st", "text.npz")
    assert "m.st was trained on a file: give a FILE" in fails(folder, "eval", "m.st")
    assert "m.st was trained on a file: give a FILE" in fails(folder, "predict", "m.st")
    assert "bare.npz: there is no array 'captions'" in fails(folder, "eval", "m.st", "bare.npz")
    write(folder / "new.npz", 2, captions=np.asarray(["a bar", "a cat"]))
    assert "new.npz: caption 1: the model has never seen the word 'cat'" in fails(
        folder, "eval", "m.st", "new.npz"
    )
    write(folder / "wide.npz", 2, images=np.ones((2, 4, 6)))
    for use in ("eval", "predict"):
        assert "wide.npz: the images have shape (4, 6), the model reads (4, 5)" in fails(
            folder, use, "m.st", "wide.npz"
        )
    predict = ("predict", "m.st", "bare.npz")
    assert "--index must lie in 0..2, got 3" in fails(folder, *predict, "--index", "1", "3")
    assert "expected an integer >= 0, got -1" in fails(folder, *predict, "--index", "-1")
    assert "expected an integer >= 1, got 0" in fails(folder, *predict, "--beam", "0")
    assert "expected an integer >= 1, got 0" in fails(folder, *predict, "--max-length", "0")
    write(folder / "flat.npz", 20, images=np.random.default_rng(0).normal(size=(20, 6)))
    arguments = ("flat.npz", *SMALL, "--epochs", "1", "--out", "flat.st")
    assert run(folder, "train", "caption", *arguments)[0] == 0
    assert "--show draws pictures of two axes, got 6" in fails(
        folder, "predict", "flat.st", "flat.npz", "--show"
    )


def test_models_of_another_kind(folder: Path) -> None:
    text = character_model(3, hidden_size=4)
    save(folder / "t.st", text, text.init(0), vocabulary="abc", task={"kind": "text"})
    message = "t.st is a model of the kind 'text'"
    assert message in fails(folder, "predict", "t.st", "bare.npz", "--beam", "2")
    save(folder / "x.st", text, text.init(0), task={"kind": "caption"})
    message = "x.st says that it writes captions, but is no captioner"
    assert message in fails(folder, "eval", "x.st", "bars.npz")
    found = load(folder / "m.st")
    save(folder / "y.st", found.model, found.params, task={"kind": "caption", "words": []})
    assert "y.st has a damaged description: KeyError: 'shape'" in fails(
        folder, "eval", "y.st", "bars.npz"
    )
    options = (("--index", "0"), ("--beam", "2"), ("--max-length", "2"), ("--show",))
    save(folder / "c.st", text, text.init(0), task={"kind": "classify"})
    for option in options:
        message = f"{option[0]} is for models of the kind 'caption'"
        assert message in fails(folder, "predict", "c.st", "bare.npz", *option)


def test_help_shows_an_example(tmp_path: Path) -> None:
    code, out, _ = run(tmp_path, "train", "caption", "--help")
    assert code == 0
    assert "example:\n  rnn-xp train caption pictures.npz" in out


def test_captions_are_drawn(folder: Path) -> None:
    need_module("matplotlib")
    code, out, err = run(folder, "plot", "captions", "m.st", "bars.npz", "--out", "c.svg")
    assert (code, out, err) == (0, "saved to c.svg\n", "")
    text = (folder / "c.svg").read_text()
    assert all(f"<!-- picture {k} -->" in text for k in range(12))
    assert "<!-- picture 12 -->" not in text
    arguments = ["--index", "30", "7", "--beam", "1", "--out", "two.svg"]
    assert run(folder, "plot", "captions", "m.st", "bare.npz", "--out", "b.png")[0] == 0
    assert run(folder, "plot", "captions", "m.st", "bars.npz", *arguments)[0] == 0
    text = (folder / "two.svg").read_text()
    assert text.index("<!-- picture 30 -->") < text.index("<!-- picture 7 -->")
    assert text.count("<!-- a bar, on the left -->") == 1
    assert text.count("<!-- a bar, on the right -->") == 1
    many = ("--index", *map(str, range(41)))
    assert "choose 40" in fails(
        folder, "plot", "captions", "m.st", "bars.npz", *many, "--out", "no.png"
    )
    assert "0..49, got 50" in fails(
        folder, "plot", "captions", "m.st", "bars.npz", "--index", "50", "--out", "no.png"
    )
    model = character_model(3, hidden_size=4)
    save(folder / "t.st", model, model.init(0), vocabulary="abc", task={"kind": "text"})
    assert "of the kind 'text': expected caption" in fails(
        folder, "plot", "captions", "t.st", "bars.npz", "--out", "no.png"
    )
