"""`train classify`, `eval` and `predict` of a classifier, in a subprocess, as a user runs them."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from targets import need
from test_cli import command, fails, run

from rnn_xp.checkpoint import load, save

SMALL = "--hidden-size 8 --batch-size 8 --backend numpy".split()  # noqa: SIM905
HEADER = "@problemName Waves\n@timeStamps false\n@univariate false\n@dimensions 2\n"


def waves(count: int, seed: int, labels: str = "true up down", shift: float = 0.0) -> str:
    """Return a .ts file: 5 to 9 steps of two channels that rise or fall, far from 0."""
    rng = np.random.default_rng(seed)
    lines = []
    for k in range(count):
        slope = 1 if k % 2 else -1
        steps = np.arange(rng.integers(5, 10))
        channels = [
            100 + slope * steps + rng.normal(size=len(steps), scale=0.2),
            50 - slope * steps + shift,
        ]
        fields = [",".join(f"{v:.4f}" for v in channel) for channel in channels]
        if labels != "false":
            fields.append("up" if k % 2 else "down")
        lines.append(":".join(fields))
    return f"{HEADER}@classLabel {labels}\n@data\n" + "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with data and a model that tells up from down."""
    folder = tmp_path_factory.mktemp("waves")
    (folder / "train.ts").write_text(waves(24, 0))
    (folder / "test.ts").write_text(waves(11, 1))
    (folder / "bare.ts").write_text(waves(4, 2, "false"))
    arguments = [*SMALL, "--epochs", "15", "--learning-rate", "0.02", "--log", "log.jsonl"]
    code, out, err = run(
        folder, "train", "classify", "train.ts", "--test", "test.ts", *arguments, "--out", "m.st"
    )
    assert (code, err) == (0, ""), out
    assert out.startswith("24 sequences of 5 to 9 steps, 2 channels, 2 classes; 0 held out, 11 to")
    assert "the parameters of epoch 15 are saved to m.st\n" in out
    assert "test: accuracy 100.00 % (11 of 11), cross-entropy 0." in out
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(records) == 15
    assert records[-1]["train_loss"] < records[0]["train_loss"]
    return folder


@pytest.fixture
def folder(ready: Path, tmp_path: Path) -> Path:
    """Return a copy of `ready` of its own."""
    return shutil.copytree(ready, tmp_path / "waves")


def rows_of(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_eval_prints_the_accuracy_and_the_confusion_matrix(folder: Path) -> None:
    text = (folder / "test.ts").read_text()
    (folder / "test.ts").write_text(text.replace(":down\n", ":up\n", 1))  # one wrong label
    code, out, err = run(folder, "eval", "m.st", "test.ts", "--confusion", "c.csv")
    assert (code, err) == (0, "")
    assert "accuracy 90.91 % (10 of 11)" in out
    table = [line.split() for line in out.splitlines()[-3:]]
    assert table == [["true", "down", "up"], ["down", "5", "0"], ["up", "1", "5"]]
    assert rows_of(folder / "c.csv") == table
    said = fails(folder, "eval", "m.st", "test.ts", "--confusion", "c.csv")
    assert "--confusion c.csv exists: replace it with --force, or give another --conf" in said
    assert run(folder, "eval", "m.st", "test.ts", "--confusion", "c.csv", "--force")[0] == 0


def test_predict_prints_or_writes_a_label_a_sequence(folder: Path) -> None:
    code, out, err = run(folder, "predict", "m.st", "bare.ts")
    assert (code, err) == (0, "")
    printed = [line.split() for line in out.splitlines()]
    assert printed[0] == ["sequence", "label", "probability"]
    expected = [["0", "down"], ["1", "up"], ["2", "down"], ["3", "up"]]
    assert [row[:2] for row in printed[1:]] == expected
    assert all(0.5 < float(row[2]) <= 1.0 for row in printed[1:])
    code, out, err = run(folder, "predict", "m.st", "bare.ts", "--out", "p.csv")
    assert (code, out, err) == (0, "", "")
    assert rows_of(folder / "p.csv") == printed
    assert "p.csv exists" in fails(folder, "predict", "m.st", "bare.ts", "--out", "p.csv")
    assert run(folder, "predict", "m.st", "bare.ts", "--out", "p.csv", "--force")[0] == 0
    assert "no/such" in fails(folder, "predict", "m.st", "bare.ts", "--out", "no/such/p.csv")


def test_the_scale_is_that_of_the_training_part(folder: Path) -> None:
    """The model file keeps it: of a file far away from it, the answer is another one."""
    task = load(folder / "m.st").task
    assert (task["kind"], task["classes"]) == ("classify", ["down", "up"])
    frames = np.concatenate(
        [
            np.asarray([channel.split(",") for channel in line.split(":")[:2]], dtype=float).T
            for line in (folder / "train.ts").read_text().splitlines()[6:]
        ]
    )
    np.testing.assert_allclose(task["mean"], frames.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(task["deviation"], frames.std(axis=0), rtol=1e-12)
    (folder / "far.ts").write_text(waves(11, 1, shift=1000.0))
    _, near, _ = run(folder, "eval", "m.st", "test.ts")
    _, far, _ = run(folder, "eval", "m.st", "far.ts")
    assert "100.00 %" in near
    assert "100.00 %" not in far


def test_a_folder_names_its_files(folder: Path) -> None:
    data = folder / "data"
    data.mkdir()
    (data / "late.csv").write_text("a,b\n100,50\n101,49\n102,48\n103,47\n104,46\n")
    (data / "early.csv").write_text("a,b\n100,50\n99,51\n98,52\n97,53\n96,54\n")
    _, out, err = run(folder, "predict", "m.st", "data")
    assert err == ""
    assert [line.split()[:2] for line in out.splitlines()[1:]] == [
        ["early.csv", "down"],
        ["late.csv", "up"],
    ]
    assert "data has no labels.csv" in fails(folder, "eval", "m.st", "data")
    (data / "labels.csv").write_text("file,label\nlate.csv,up\nearly.csv,down\n")
    _, out, _ = run(folder, "eval", "m.st", "data")
    assert "accuracy 100.00 % (2 of 2)" in out
    code, out, err = run(folder, "train", "classify", "data", *SMALL, "--epochs", "1")
    assert (code, err) == (0, "")


def test_an_npz_file_that_says_what_to_test_on(folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        folder / "x.npz",
        frames=rng.normal(size=(40, 2)),
        offsets=np.arange(0, 41, 4),
        labels=np.arange(10) % 2,
        is_test=np.arange(10) >= 6,
    )
    code, out, err = run(folder, "train", "classify", "x.npz", *SMALL, "--epochs", "1")
    assert (code, err) == (0, "")
    assert out.startswith("6 sequences of 4 to 4 steps, 2 channels, 2 classes; 0 held out, 4 to")
    found = re.search(r"test: (.*)\n", out)
    assert found is not None
    _, out, _ = run(folder, "eval", "model.safetensors", "x.npz")
    assert out.startswith(f"4 sequences of 4 to 4 steps, 2 channels: {found[1]}")
    _, out, _ = run(folder, "predict", "model.safetensors", "x.npz")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["6", "7", "8", "9"]
    assert "says itself what to test on: leave out --test" in fails(
        folder, "train", "classify", "x.npz", "--test", "test.ts", "--out", "other.st"
    )


def test_the_built_in_utterances(tmp_path: Path) -> None:
    arguments = ["--epochs", "8", "--validation", "0.2", "--backend", "numpy", "--seed", "3"]
    code, out, err = run(tmp_path, "train", "classify", *arguments)
    assert (code, err) == (0, "")
    assert out.startswith(
        "216 sequences of 7 to 26 steps, 12 channels, 9 classes; 54 held out, 370"
    )
    saved = re.search(r"the parameters of epoch (\d), validation loss (\S+), are saved", out)
    assert saved is not None
    held_out = re.findall(r"epoch +\d/8 .* validation loss (\d\.\d{4})", out)
    assert float(saved[2]) == min(map(float, held_out))
    tested = re.search(r"test: (accuracy (\d\d\.\d\d) %.*)\n", out)
    assert tested is not None
    assert float(tested[2]) > 80
    code, out, err = run(tmp_path, "eval", "model.safetensors")
    assert (code, err) == (0, "")
    assert tested[1] in out
    matrix = [line.split() for line in out.splitlines()[-10:]]
    assert matrix[0] == ["true", *"123456789"]
    totals = [sum(map(int, row[1:])) for row in matrix[1:]]
    assert totals == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    code, out, err = run(tmp_path, "predict", "model.safetensors")
    assert (code, err, out.count("\n")) == (0, "", 371)


@pytest.mark.parametrize("name", ["strict", "torch"])
def test_every_backend_trains_the_same_classifier(folder: Path, name: str) -> None:
    need(name)
    for backend in ("numpy", name):
        code, _, err = run(
            folder,
            *("train", "classify", "train.ts", "--hidden-size", "8", "--epochs", "2"),
            *("--cell", "lstm", "--pool", "mean", "--layers", "2", "--no-bidirectional"),
            *("--backend", backend, "--out", f"{backend}.st"),
        )
        assert (code, err) == (0, "")
    expected, found = load(folder / "numpy.st"), load(folder / f"{name}.st")
    for key, value in expected.params.items():
        np.testing.assert_allclose(found.params[key], value, rtol=0, atol=1e-4)
    results = [
        run(folder, "eval", f"{b}.st", "test.ts", "--backend", b)[1] for b in ("numpy", name)
    ]
    assert results[0] == results[1]


def test_an_interrupt_saves_what_there_is(folder: Path) -> None:
    process = subprocess.Popen(
        command("train", "classify", *SMALL, "--epochs", "400", "--out", "part.st"),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None
    while "epoch " not in (line := process.stdout.readline()):
        assert line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert re.search(r"interrupted: the parameters of epoch \d+ are saved to part.st", out)
    assert "test:" not in out
    assert "accuracy" in run(folder, "eval", "part.st")[1]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("@classLabel true up down", "@classLabel false", "bad.ts has no labels"),
        ("@timeStamps false", "@timeStamps true", "bad.ts has time stamps"),
        (":up\n", "\n", "bad.ts, line 8 ends with"),
        (":up\n", ":1:up\n", "bad.ts, line 8 has 3 dimensions, expected 2"),
        (",", ",?,", "bad.ts, line 7 has a missing value in dimension 1"),
        ("up", "down", "all sequences are of the class 'down': expected two or more"),
    ],
)
def test_bad_training_data(folder: Path, old: str, new: str, message: str) -> None:
    text = waves(4, 0)
    (folder / "bad.ts").write_text(text.replace(old, new, -1 if old == "up" else 1))
    assert message in fails(folder, "train", "classify", "bad.ts", *SMALL)


def test_bad_test_data_is_seen_before_the_training(folder: Path) -> None:
    text = (folder / "test.ts").read_text().replace("true up down", "true")
    (folder / "bad.ts").write_text(text.replace(":up\n", ":sideways\n", 1))
    message = "bad.ts: sequence 1 is of the class 'sideways', which training has never seen"
    assert message in fails(folder, "train", "classify", "train.ts", "--test", "bad.ts", *SMALL)
    assert message in fails(folder, "eval", "m.st", "bad.ts")
    one = "@univariate true\n@classLabel true up down\n@data\n1,2,3:up\n"
    (folder / "one.ts").write_text(one)
    message = "one.ts: the sequences have 1 channels, but the model reads 2"
    assert message in fails(folder, "train", "classify", "train.ts", "--test", "one.ts", *SMALL)
    assert message in fails(folder, "eval", "m.st", "one.ts")
    assert message in fails(folder, "predict", "m.st", "one.ts")


def test_bad_files_and_options(folder: Path) -> None:
    assert "No such file" in fails(folder, "train", "classify", "missing.ts")
    assert "neither a .ts file" in fails(folder, "train", "classify", "log.jsonl")
    (folder / "two.ts").write_text(waves(2, 0))
    assert "two.ts: no class has two sequences" in fails(
        folder, "train", "classify", "two.ts", "--validation", "0.5"
    )
    assert "m.st exists" in fails(folder, "train", "classify", "train.ts", "--out", "m.st")
    assert "m.st was trained on a file: give a FILE" in fails(folder, "eval", "m.st")
    assert "m.st was trained on a file: give a FILE" in fails(folder, "predict", "m.st")
    assert "bare.ts has no labels" in fails(folder, "eval", "m.st", "bare.ts")
    assert "--skip-unknown is for models of the kind 'text'" in fails(
        folder, "eval", "m.st", "test.ts", "--skip-unknown"
    )
    assert "it is no text model" in fails(folder, "sample", "m.st")
    model = load(folder / "m.st")
    save(folder / "bad.st", model.model, model.params, task={"kind": "classify", "classes": []})
    assert "bad.st has a damaged description: KeyError: 'mean'" in fails(
        folder, "eval", "bad.st", "test.ts"
    )


def test_help_shows_an_example(folder: Path) -> None:
    for name in ("train classify", "predict"):
        code, out, _ = run(folder, *name.split(), "--help")
        assert code == 0
        assert f"example:\n  rnn-xp {name}" in out
