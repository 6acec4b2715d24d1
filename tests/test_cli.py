"""The command line end to end, as a user runs it: in a subprocess, but for most bad input."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from targets import need, need_module

from rnn_xp.checkpoint import load
from rnn_xp.cli import main

SMALL = "--hidden-size 16 --embedding-size 8 --batch-size 4 --time-steps 16 --backend numpy".split()  # noqa: SIM905
TEXT = "the quick brown fox jumps over the lazy dog.\n" * 60


def command(*arguments: str | Path, module: str = "rnn_xp") -> list[str]:
    return [sys.executable, "-W", "error", "-m", module, *map(str, arguments)]


def run(
    folder: Path,
    *arguments: str | Path,
    env: dict[str, str] | None = None,
    module: str = "rnn_xp",
) -> tuple[int, str, str]:
    done = subprocess.run(
        command(*arguments, module=module),
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        env={**os.environ, **(env or {})},
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def called(folder: Path, *arguments: str | Path, by: Any = main) -> tuple[int, str, str]:
    """Do what `run` does within this process, which saves the start of another."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            code = by([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def fails(
    folder: Path, *arguments: str | Path, env: dict[str, str] | None = None, by: Any = main
) -> str:
    """Run a command that must fail as bad input does; return its one line."""
    before = {path: path.stat().st_size for path in folder.rglob("*")}
    code, out, err = run(folder, *arguments, env=env) if env else called(folder, *arguments, by=by)
    assert code == 2, (code, out, err)
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert {path: path.stat().st_size for path in folder.rglob("*")} == before
    return err


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_demo_prints_the_article_s_lines_and_the_error_falls(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "demo", "--backend", "numpy")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    errors = []
    for k, line in enumerate(lines):
        found = re.fullmatch(rf"Iteration {k}, Error: (\S+)", line)
        assert found is not None, line
        errors.append(float(found[1]))
    assert len(errors) == 100
    assert all(b < a for a, b in pairwise(errors))


def test_demo_shows_where_the_script_s_parameters_are(tmp_path: Path) -> None:
    _, out, _ = run(tmp_path, "demo", "--iterations", "1", "--show-parameters")
    assert re.search(r"rnn\.weight_ih_l0 +U +\(5, 3\)", out)
    assert re.search(r"linear\.weight +V +\(2, 5\)", out)


def test_backends_prints_every_backend(tmp_path: Path) -> None:
    code, out, _ = run(tmp_path, "backends")
    assert code == 0
    names = [line.split()[0] for line in out.splitlines()]
    assert names == ["name", "numpy", "cupy", "torch", "jax", "strict", "compiled"]
    _, out, _ = run(tmp_path, "backends", env={"RNN_XP_ACCELERATE": "0"})
    last = "compiled kernels for numpy: no: switched off by RNN_XP_ACCELERATE=0"
    assert out.splitlines()[-1] == last
    assert "'avx9'" in fails(tmp_path, "backends", env={"RNN_XP_ACCELERATE": "avx9"})
    assert re.search(rf"numpy +{re.escape(np.__version__)} +cpu +yes", out)


def test_train_eval_sample(tmp_path: Path, book: Path) -> None:
    code, out, err = run(
        tmp_path, "train", "text", book, *SMALL, "--passes", "12", "--log", "log.jsonl"
    )
    assert (code, err) == (0, "")
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [record["validation_loss"] for record in records]
    assert losses[-1] < losses[0] < 4.0
    assert "A sample:" in out
    best = re.search(r"best validation loss (\d\.\d{4})", out)
    assert best is not None
    assert float(best[1]) == pytest.approx(min(losses), abs=1e-4)

    code, out, err = run(tmp_path, "eval", "model.safetensors", book)
    assert (code, err) == (0, "")
    assert out.startswith("2,700 characters, 0 skipped: loss ")
    code, first, err = run(
        tmp_path, "sample", "model.safetensors", "--length", "40", "--prompt", "the"
    )
    assert (code, err) == (0, "")
    assert first.startswith("the")
    assert len(first) == 3 + 40 + 1
    _, second, _ = run(tmp_path, "sample", "model.safetensors", "--length", "40", "--prompt", "the")
    assert second == first
    _, other, _ = run(
        tmp_path,
        "sample",
        "model.safetensors",
        "--length",
        "40",
        "--prompt",
        "the",
        "--seed",
        "1",
        "--temperature",
        "2",
        "--top-k",
        "5",
    )
    assert other != first


@pytest.mark.parametrize("name", ["strict", "torch", "jax", "cupy"])
def test_every_backend_trains_the_same_model(tmp_path: Path, book: Path, name: str) -> None:
    need(name)
    arguments = [*SMALL[:-1], "numpy", "--max-steps", "3", "--cell", "lstm", "--out", "numpy.st"]
    assert run(tmp_path, "train", "text", book, *arguments)[0] == 0
    arguments = [*SMALL[:-1], name, "--max-steps", "3", "--cell", "lstm", "--out", "m.st"]
    code, _, err = run(tmp_path, "train", "text", book, *arguments)
    assert (code, err) == (0, "")
    expected, found = load(tmp_path / "numpy.st"), load(tmp_path / "m.st")
    for key, value in expected.params.items():
        np.testing.assert_allclose(found.params[key], value, rtol=0, atol=1e-4)
    code, _out, err = run(tmp_path, "sample", "m.st", "--backend", name, "--length", "9")
    assert (code, err) == (0, "")


def test_korean_text(tmp_path: Path) -> None:
    text = "모든 국민은 법 앞에 평등하다. 누구든지 차별을 받지 아니한다.\n" * 60
    (tmp_path / "ko.txt").write_text(text, encoding="utf-8")
    code, out, err = run(
        tmp_path, "train", "text", "ko.txt", *SMALL, "--max-steps", "4", "--out", "ko.st"
    )
    assert (code, err) == (0, "")
    code, out, err = run(tmp_path, "sample", "ko.st", "--prompt", "국민", "--length", "10")
    assert (code, err) == (0, "")
    assert out.startswith("국민")
    assert "'x' (U+0078)" in fails(tmp_path, "sample", "ko.st", "--prompt", "x국")
    code, out, _ = run(
        tmp_path, "sample", "ko.st", "--prompt", "x국", "--skip-unknown", "--length", "3"
    )
    assert code == 0


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_interrupted_training_goes_on_bit_for_bit(tmp_path: Path, book: Path, cell: str) -> None:
    arguments = [*SMALL, "--cell", cell, "--layers", "2", "--dropout", "0.2", "--passes", "25"]
    arguments += ["--eval-every", "50", "--patience", "100"]
    code, _, err = run(tmp_path, "train", "text", book, *arguments, "--out", "whole.st")
    assert code == 0, err
    process = subprocess.Popen(
        command("train", "text", book, *arguments, "--out", "part.st"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None
    seen = ""
    while "step     50/" not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, ""), (out, err)
    assert "saved to part.st; go on with: rnn-xp train text" in out
    assert not list(tmp_path.glob(".*.tmp"))
    code, out, err = run(tmp_path, "sample", "part.st", "--length", "5")
    assert (code, err) == (0, "")
    code, out, err = run(tmp_path, "train", "text", book, "--out", "part.st", "--resume")
    assert (code, err) == (0, ""), out
    whole, part = load(tmp_path / "whole.st"), load(tmp_path / "part.st")
    assert part.training == whole.training
    for name, value in whole.params.items():
        assert np.array_equal(part.params[name], value), name


def test_an_existing_model_is_not_replaced(tmp_path: Path, book: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    assert "--force" in fails(tmp_path, "train", "text", book, *SMALL)
    code, _, _ = run(tmp_path, "train", "text", book, *SMALL, "--max-steps", "1", "--force")
    assert code == 0


def test_resume_says_what_does_not_fit(tmp_path: Path, book: Path) -> None:
    assert "No such file" in fails(tmp_path, "train", "text", book, "--resume")
    assert run(tmp_path, "train", "text", book, *SMALL, "--max-steps", "1")[0] == 0
    assert "nothing to go on with" in fails(tmp_path, "train", "text", book, "--resume")


def test_bad_text_files(tmp_path: Path, book: Path) -> None:
    assert "No such file" in fails(tmp_path, "train", "text", "missing.txt")
    (tmp_path / "empty.txt").write_text("")
    assert "empty.txt is empty" in fails(tmp_path, "train", "text", "empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"abc\xff\xfe")
    assert "not UTF-8 text: byte 3" in fails(tmp_path, "train", "text", "binary.txt")
    (tmp_path / "short.txt").write_text("too short")
    assert "not enough text" in fails(tmp_path, "train", "text", "short.txt", *SMALL)
    assert "folder" in fails(tmp_path, "train", "text", book, "--out", ".", "--force")
    assert "directory" in fails(tmp_path, "train", "text", tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        "train text book.txt --out",
        "train classify --out",
        "train caption --out",
        "train series --out",
        "inspect missing.st --text a --out",
        "plot loss missing.jsonl --out",
        "doctor --json",
    ],
)
def test_only_a_file_is_replaced(tmp_path: Path, book: Path, arguments: str) -> None:
    *words, option = arguments.split()
    suffix = ".html"
    if words[0] == "plot":
        need_module("matplotlib")
        suffix = ".png"
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"old{suffix}").touch()
    os.mkfifo(tmp_path / f"pipe{suffix}")
    for asked in (words, [*words, "--force"]):
        said = fails(tmp_path, *asked, option, f"folder{suffix}")
        assert said.endswith(f" {option} folder{suffix} is a folder, expected a file to write\n")
        said = fails(tmp_path, *asked, option, f"pipe{suffix}")
        assert f"{option} pipe{suffix} is a device, a pipe or a socket, expected a file" in said
    assert f"{option} no/m{suffix}: cannot write there: " in fails(
        tmp_path, *words, option, f"no/m{suffix}"
    )
    if option != "--json" or words == ["doctor"]:
        said = fails(tmp_path, *words, option, f"old{suffix}")
        assert f"{option} old{suffix} exists: " in said
        assert said.endswith(f"replace it with --force, or give another {option}\n")


def test_a_resumed_training_is_a_file(tmp_path: Path, book: Path) -> None:
    os.mkfifo(tmp_path / "pipe.st")
    said = fails(tmp_path, "train", "text", book, "--out", "pipe.st", "--resume")
    assert "--out pipe.st is a device, a pipe or a socket" in said


def test_bad_options(tmp_path: Path, book: Path) -> None:
    assert "invalid choice" in fails(tmp_path, "demo", "--dtype", "int32")
    assert "invalid choice" in fails(tmp_path, "demo", "--backend", "tensorflow")
    assert "RNN_XP_BACKEND" in fails(tmp_path, "demo", env={"RNN_XP_BACKEND": "tensorflow"})
    assert ">= 1" in fails(tmp_path, "demo", "--iterations", "0")
    assert "> 0" in fails(tmp_path, "train", "text", book, "--learning-rate", "-1")
    assert "no/such" in fails(tmp_path, "train", "text", book, *SMALL, "--out", "no/such/m.st")
    assert "only device is 'cpu'" in fails(
        tmp_path, "demo", "--backend", "numpy", "--device", "cuda"
    )
    assert "COMMAND" in fails(tmp_path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="the superuser writes everywhere")
def test_unwritable_folder(tmp_path: Path, book: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o500)
    assert "cannot write there" in fails(
        tmp_path, "train", "text", book, *SMALL, "--out", folder / "m.st"
    )


def test_cupy_without_a_gpu(tmp_path: Path) -> None:
    from rnn_xp.backend import available

    status = available(["cupy"])["cupy"]
    if status.usable:
        pytest.skip("there is a GPU here")
    assert status.reason in fails(tmp_path, "demo", "--backend", "cupy")


def test_bad_models(tmp_path: Path, book: Path) -> None:
    assert "No such file" in fails(tmp_path, "eval", "missing.st")
    (tmp_path / "text.st").write_text("this is no model")
    assert "not a safetensors file" in fails(tmp_path, "sample", "text.st")
    assert run(tmp_path, "train", "text", book, *SMALL, "--max-steps", "1", "--out", "m.st")[0] == 0
    data = (tmp_path / "m.st").read_bytes()
    (tmp_path / "cut.st").write_bytes(data[: len(data) // 2])
    assert "truncated" in fails(tmp_path, "eval", "cut.st", book)
    assert "trained on another text" in fails(tmp_path, "eval", "m.st")
    (tmp_path / "greek.txt").write_text("αβγ", encoding="utf-8")
    assert "never seen" in fails(tmp_path, "eval", "m.st", "greek.txt")
    assert "not enough text" in fails(tmp_path, "eval", "m.st", "greek.txt", "--skip-unknown")


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    line = f"{sys.executable} -m rnn_xp demo --iterations 20000 | head -n 1"
    done = subprocess.run(
        line, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("Iteration 0, ")
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["demo", "train text", "eval", "sample", "backends"])
def test_help_shows_an_example(tmp_path: Path, name: str) -> None:
    code, out, _ = run(tmp_path, *name.split(), "--help")
    assert code == 0
    assert f"example:\n  rnn-xp {name}" in out
