"""Nothing of the user's is lost: own files, logs, closed pipes, divergence, damaged models."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from test_cli import SMALL, TEXT, called, command, fails, run

from rnn_xp import GRU, Chain, Embedding
from rnn_xp.checkpoint import load, save
from rnn_xp.cli.console import Log

FOR_EVER = ("--passes", "9999", "--patience", "999999")
SERIES = "\n".join(f"{k},{np.sin(k / 3):.4f}" for k in range(120))
FITTED = "--hidden-size 2 --epochs 2 --batch-size 64 --backend numpy".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a model of each kind, and one whose training was interrupted."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("book.txt", "page.html"):
        (folder / name).write_text(TEXT, encoding="utf-8")
    (folder / "s.csv").write_text(f"t,y\n{SERIES}\n", encoding="utf-8")
    rng = np.random.default_rng(0)
    images = rng.random((30, 4, 4))
    np.savez(folder / "p.npz", images=images, captions=np.asarray(["light", "dark"] * 15))
    frames, labels = rng.random((200, 2)), np.asarray(["a", "b"] * 20)
    np.savez(folder / "c.npz", frames=frames, offsets=np.arange(0, 201, 5), labels=labels)
    for arguments in (
        f"text book.txt {' '.join(SMALL)} --max-steps 3 --out t.st",
        f"series s.csv --column y --horizon 2 --season 6 {' '.join(FITTED)} --out s.st",
        f"caption p.npz {' '.join(FITTED)} --embedding-size 3 --out p.st",
        f"classify c.npz {' '.join(FITTED)} --out c.st",
    ):
        code, out, err = called(folder, "train", *arguments.split())
        assert (code, err) == (0, ""), (arguments, out)
    process = subprocess.Popen(
        command("train", "text", "book.txt", *SMALL, *FOR_EVER, "--out", "i.st"),
        cwd=folder,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step "):
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=60)
    assert process.returncode == 130
    return folder


@pytest.fixture
def folder(models: Path, tmp_path: Path) -> Path:
    """Their copies."""
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("train text book.txt --out book.txt --force", "--out book.txt is also FILE"),
        ("train text book.txt --out x.st --log book.txt", "--log book.txt is also FILE"),
        ("train text book.txt --out x.st --log x.st", "--out x.st is also --log"),
        (
            "train series s.csv --column y --horizon 2 --out s.csv",
            "--out s.csv is also FILE",
        ),
        ("train classify c.npz --test ./c.npz --out c.npz --force", "--out c.npz is also FILE"),
        ("predict s.st --out s.st --force", "--out s.st is also MODEL"),
        ("predict s.st s.csv --out s.csv --force", "--out s.csv is also FILE"),
        ("eval c.st c.npz --confusion c.st --force", "--confusion c.st is also MODEL"),
        ("inspect t.st --file page.html --out page.html --force", "page.html is also FILE"),
    ],
)
def test_no_command_writes_over_what_it_reads(folder: Path, arguments: str, said: str) -> None:
    assert said in fails(folder, *arguments.split())


@pytest.mark.parametrize("name", ["t.st", "book.txt", "numbers.txt", "list.txt"])
@pytest.mark.parametrize("kind", ["text book.txt", "series s.csv --column y --horizon 2"])
def test_only_a_log_is_appended_to(folder: Path, name: str, kind: str) -> None:
    (folder / "numbers.txt").write_text("1\n2\n", encoding="utf-8")
    (folder / "list.txt").write_text('["a"]\n', encoding="utf-8")
    if kind.startswith("text") and name == "book.txt":
        pytest.skip("it is FILE")
    said = fails(folder, "train", *kind.split(), "--out", "new.st", "--log", name)
    assert f"--log {name} is there, and its last line is no line of a log" in said


def test_a_log_goes_on(folder: Path) -> None:
    for k in (1, 2):
        arguments = [*SMALL, "--max-steps", "2", "--out", f"{k}.st", "--log", "log.jsonl"]
        assert called(folder, "train", "text", "book.txt", *arguments)[0] == 0
        assert len((folder / "log.jsonl").read_text().splitlines()) == k


def test_an_interrupted_training_that_diverged_saves_nothing(folder: Path) -> None:
    before = (folder / "t.st").read_bytes()
    arguments = [*SMALL, *FOR_EVER, "--out", "t.st", "--force"]
    arguments += ["--learning-rate", "1e300", "--eval-every", "1000000"]
    process = subprocess.Popen(
        command("train", "text", "book.txt", *arguments),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(3.0)  # some steps
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "the training diverged before its first evaluation" in err
    assert (folder / "t.st").read_bytes() == before


@dataclass
class Entry:
    train_loss: float
    best: bool = True


class Full:
    """A file on a disk that has room for so many bytes more; it fails, or writes less."""

    def __init__(self, file: Any, room: int, *, silent: bool) -> None:
        self._file, self._room, self._silent = file, room, silent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        written: int = self._file.write(data[: max(self._room, 0)])
        self._room -= written
        if written < len(data) and not self._silent:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written


def test_a_log_without_a_line_end_gets_one(folder: Path) -> None:
    (folder / "log.jsonl").write_text('{"step": 1, "train_loss": 1, "validation_loss": 1}')
    arguments = [*SMALL, "--max-steps", "2", "--out", "x.st", "--log", "log.jsonl"]
    assert called(folder, "train", "text", "book.txt", *arguments)[0] == 0
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_a_log_may_be_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    arguments = [*SMALL, "--max-steps", "2", "--out", "x.st", "--log", "pipe"]
    process = subprocess.Popen(command("train", "text", "book.txt", *arguments), cwd=folder)
    assert json.loads((folder / "pipe").read_text())["step"] == 2
    assert process.wait(timeout=60) == 0


def test_a_training_outlives_a_full_output(folder: Path) -> None:
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            command("train", "classify", "c.npz", *FITTED, "--out", "x.st"),
            cwd=folder,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    said = "rnn-xp: the output: No space left on device: nothing more is printed\n"
    assert (done.returncode, done.stderr) == (0, said)
    assert load(folder / "x.st").params


def test_built_in_data_is_no_file(folder: Path) -> None:
    arguments = [*FITTED, "--out", "sunspots"]
    assert called(folder, "train", "series", "sunspots", *arguments)[0] == 0


@pytest.mark.parametrize("silent", [False, True])
def test_a_full_disk_ends_the_log_with_a_whole_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], silent: bool
) -> None:
    path = tmp_path / "log"
    with path.open("ab", buffering=0) as file:
        log = Log(path, Full(file, 50, silent=silent))  # type: ignore[arg-type]
        for loss in (1.0, np.nan, 3.0, 4.0):
            log.write(Entry(loss))
    assert path.read_text() == '{"train_loss": 1.0, "best": true}\n'
    said = f"rnn-xp: {path}: No space left on device: the log ends here\n"
    assert capsys.readouterr().err == said


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab", buffering=0) as file:
        Log(tmp_path / "log", file).write(Entry(float("inf")))
    assert json.loads((tmp_path / "log").read_text()) == {"train_loss": None, "best": True}


@pytest.mark.parametrize(
    "arguments",
    [
        f"text book.txt {' '.join(SMALL)} --max-steps 40 --eval-every 2",
        f"classify c.npz {' '.join(FITTED)} --epochs 30",
    ],
)
def test_a_training_outlives_its_reader(folder: Path, arguments: str) -> None:
    process = subprocess.Popen(
        command("train", *arguments.split(), "--out", "new.st"),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(timeout=120) == 0
    assert load(folder / "new.st").params


@pytest.mark.parametrize(
    "arguments",
    [
        f"text book.txt {' '.join(SMALL)} --max-steps 3 --out t.st",
        f"series s.csv --column y --horizon 2 {' '.join(FITTED)} --out s.st",
        f"caption p.npz {' '.join(FITTED)} --out p.st",
        f"classify c.npz {' '.join(FITTED)} --out c.st",
    ],
)
def test_a_training_that_diverges_saves_nothing(folder: Path, arguments: str) -> None:
    *words, name = arguments.split()
    before = (folder / name).read_bytes()
    code, _, err = called(folder, "train", *words, name, "--force", "--learning-rate", "1e300")
    assert code == 2
    assert err.count("\n") == 1
    assert "the training diverged" in err
    assert (folder / name).read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            "train text book.txt --layers 99999999999999999999",
            "an integer <= 2147483647",
        ),
        (
            "train text book.txt --passes 1e308 --hidden-size 4",
            "passes must be less than 2**53",
        ),
        ("predict p.st p.npz --beam 9223372036854775808", "an integer <= 2147483647"),
    ],
)
def test_numbers_beyond_all_bounds(folder: Path, arguments: str, said: str) -> None:
    arguments += "" if "--out" in arguments or "predict" in arguments else " --out new.st"
    assert said in fails(folder, *arguments.split())


@pytest.mark.parametrize(
    "option",
    [
        "--hidden-size 99",
        "--embedding-size 9",
        "--layers 2",
        "--cell lstm",
        "--dropout 0.5",
        "--dtype float64",
        "--passes 2",
        "--max-steps 2",
        "--seed 5",
        "--bytes",
        "--validation 0.3",
    ],
)
def test_resume_takes_no_other_settings(folder: Path, option: str) -> None:
    said = fails(folder, "train", "text", "book.txt", "--out", "i.st", "--resume", *option.split())
    assert f"{option.split()[0]} " in said
    assert " does not go with --resume: i.st was begun with" in said


def damage(path: Path, key: str, value: Any) -> None:
    """Change one value of a model's description, or of a dict in it, or remove it (None)."""
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    outer, _, inner = key.partition(".")
    held = json.loads(metadata[outer])
    if not inner:
        held = value
    elif value is None:
        del held[inner]
    else:
        held[inner] = value
    metadata[outer] = json.dumps(held)
    save_file(load_file(path), path, metadata)


@pytest.mark.parametrize("key", ["model", "task", "training", "vocabulary", "bfloat16"])
def test_a_description_of_no_end(folder: Path, key: str) -> None:
    path = folder / "t.st"
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata | {key: "[" * 100_000})
    assert "t.st has a damaged model description" in fails(folder, "eval", "t.st", "book.txt")


def test_a_model_that_ends_in_its_recurrent_layer(folder: Path) -> None:
    vocabulary = load(folder / "t.st").vocabulary
    assert vocabulary is not None
    size = len(vocabulary)
    model = Chain((("embedding", Embedding(size, 3)), ("recurrent", GRU(3, size))))
    save(folder / "x.st", model, model.init(0), vocabulary=vocabulary, task={"kind": "text"})
    assert called(folder, "eval", "x.st", "book.txt")[0] == 0


@pytest.mark.parametrize("value", [None, 3, "x", [], True, float("nan")])
@pytest.mark.parametrize("key", ["task", "training", "vocabulary"])
@pytest.mark.parametrize("name", ["t.st", "s.st", "p.st", "c.st"])
def test_parts_of_a_description_of_another_kind(
    folder: Path, name: str, key: str, value: Any
) -> None:
    path = folder / name
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    metadata[key] = json.dumps(value)
    save_file(load_file(path), path, metadata)
    data = {"t.st": "book.txt", "s.st": "s.csv", "p.st": "p.npz", "c.st": "c.npz"}[name]
    code, _, err = called(folder, "eval", name, data)
    if key == "vocabulary" and name != "t.st" and value in (None, "x"):  # of no use there
        assert code == 0
    else:
        assert (code, err.count("\n"), name in err) == (2, 1, True), err


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        *(("s.st", f"task.{key}", None) for key in ("digest", "held_out", "naive_scale")),
        *(("s.st", f"task.{key}", float("inf")) for key in ("held_out", "validation")),
        ("s.st", "task.held_out", "x"),
        ("s.st", "task.forecaster", {"season": float("nan")}),
        ("c.st", "task.classes", "x"),
        ("p.st", "task.words", "x"),
        ("t.st", "vocabulary", "x"),
        ("t.st", "vocabulary", ""),
    ],
)
def test_values_of_a_description_that_are_wrong(
    folder: Path, name: str, key: str, value: Any
) -> None:
    damage(folder / name, key, value)
    data = {"t.st": "book.txt", "s.st": "s.csv", "p.st": "p.npz", "c.st": "c.npz"}[name]
    assert name in fails(folder, "eval", name, data)


@pytest.mark.parametrize("value", [None, -1, "x", []])
@pytest.mark.parametrize(
    "key",
    [
        "step",
        "best_loss",
        "best_step",
        "waited",
        "train_loss",
        "optimizer",
        "split",
        "dtype",
        "settings",
    ],
)
def test_a_training_that_cannot_go_on(folder: Path, key: str, value: Any) -> None:
    if value == -1 and key in ("best_loss", "best_step", "waited", "train_loss"):
        pytest.skip("a number is a number")
    damage(folder / "i.st", f"training.{key}", value)
    fails(folder, "train", "text", "book.txt", "--out", "i.st", "--resume")


@pytest.mark.parametrize("key", ["batch_size", "time_steps", "passes", "learning_rate"])
@pytest.mark.parametrize("value", [0, -1, "x"])
def test_settings_that_are_wrong(folder: Path, key: str, value: Any) -> None:
    if (key, value) in (("passes", 0), ("passes", -1), ("learning_rate", 0)):
        pytest.skip("one step, or none of any length")
    settings = load(folder / "i.st").training["settings"] | {key: value}
    damage(folder / "i.st", "training.settings", settings)
    fails(folder, "train", "text", "book.txt", "--out", "i.st", "--resume")


@pytest.mark.parametrize(
    "missing", ["params.linear.bias", "optimizer.m.linear.bias", "optimizer.v."]
)
def test_a_tensor_that_is_missing(folder: Path, missing: str) -> None:
    path = folder / "i.st"
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    kept = {n: a for n, a in tensors.items() if not n.startswith(f"training.{missing}")}
    assert len(kept) < len(tensors)
    save_file(kept, path, metadata)
    assert "i.st" in fails(folder, "train", "text", "book.txt", "--out", "i.st", "--resume")
    name = f"training.{missing}" if missing[-1] != "." else "training.optimizer.v.linear.bias"
    save_file(tensors | {name: np.zeros(1, "float32")}, path, metadata)
    assert "shape" in fails(folder, "train", "text", "book.txt", "--out", "i.st", "--resume")


def test_an_interrupted_training_that_is_whole_goes_on(folder: Path) -> None:
    """The other tests of `i.st` fail for what was damaged."""
    process = subprocess.Popen(
        command("train", "text", "book.txt", "--out", "i.st", "--resume"),
        cwd=folder,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None
    assert "going on after step" in process.stdout.readline() + process.stdout.readline()
    assert process.stdout.readline().startswith("step ")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_prompt_is_said_once(tmp_path: Path) -> None:
    _, out, _ = run(tmp_path, "sample", "--help")
    assert "what the model reads first (default: a line end)\n" in out
