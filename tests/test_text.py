"""Vocabularies of characters and of bytes, and the model of bytes on the command line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from test_cli import SMALL, command, fails, run

from rnn_xp.backend import select
from rnn_xp.checkpoint import load
from rnn_xp.layers import Embedding, Linear
from rnn_xp.models import Chain
from rnn_xp.sampling import sample
from rnn_xp.text import TextError, Vocabulary, read, read_bytes
from rnn_xp.training import Settings, Trainer

KOREAN = "모든 국민은 법 앞에 평등하다.\n"
BYTES = Vocabulary.of(b"")


@given(st.binary())
def test_bytes_are_their_own_numbers(data: bytes) -> None:
    codes = BYTES.encode(data)
    assert codes.dtype == np.int64
    assert codes.tolist() == list(data)


@given(st.binary())
def test_bytes_are_written_as_utf8(data: bytes) -> None:
    assert "".join(BYTES.decode(list(data))) == data.decode("utf-8", "replace")


@given(st.text())
def test_text_is_read_as_utf8_and_written_again(text: str) -> None:
    assert BYTES.encode(text).tolist() == list(text.encode())
    assert "".join(BYTES.decode(BYTES.encode(text).tolist())) == text


def test_a_character_comes_with_its_last_byte() -> None:
    assert list(BYTES.decode("가a".encode())) == ["", "", "가", "a", ""]
    assert list(BYTES.decode(b"\xea\xb0")) == ["", "", "�"]


def test_an_argument_that_is_no_utf8_is_its_bytes() -> None:
    argument = b"a\xff\xea".decode("utf-8", "surrogateescape")  # as in sys.argv
    assert BYTES.encode(argument).tolist() == [97, 255, 234]


def test_a_vocabulary_of_bytes_knows_everything() -> None:
    assert len(BYTES) == 256
    assert [ord(character) for character in BYTES.characters] == list(range(256))
    assert BYTES.unit == "byte"
    assert Vocabulary.of("banana").unit == "character"


def test_wrong_vocabularies() -> None:
    with pytest.raises(ValueError, match="unit must be one of character, byte, got 'word'"):
        Vocabulary("abc", "word")
    with pytest.raises(ValueError, match=r"bytes must have the characters U\+0000 to U\+00FF"):
        Vocabulary("abc", "byte")
    with pytest.raises(TypeError, match="got bytes"):
        Vocabulary("abc").encode(b"abc")
    with pytest.raises(TextError, match="never seen 'x'"):
        Vocabulary("abc").encode("abx")


def test_reading_files(tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\xff")
    assert read(path, "byte") == b"\xef\xbb\xbfa\r\nb\xff"
    with pytest.raises(TextError, match=r"not UTF-8 text: byte 7 .* --bytes"):
        read(path, "character")
    path.write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read(path, "character") == "a\nb"
    path.write_bytes(b"")
    with pytest.raises(TextError, match="is empty"):
        read_bytes(path)


def test_sampling_bytes_writes_text() -> None:
    # A model that knows one thing: which byte follows which in a circle of distinct bytes.
    circle = "a한é\n".encode()
    assert len(set(circle)) == len(circle)
    weight = np.zeros((256, 256))
    for k, byte in enumerate(circle):
        weight[circle[(k + 1) % len(circle)], byte] = 1.0
    model = Chain((("embedding", Embedding(256, 256)), ("linear", Linear(256, 256))))
    params = {
        "embedding.weight": np.eye(256),
        "linear.weight": weight,
        "linear.bias": np.zeros(256),
    }
    prompt = BYTES.encode("a")
    pieces = list(sample(model, params, BYTES, select("numpy"), prompt, 9, temperature=0.0))
    assert pieces == ["", "", "한", "", "é", "\n", "a", "", "", "�"]


def test_errors_of_the_trainer_name_the_unit() -> None:
    codes = BYTES.encode("short")
    model = Chain((("embedding", Embedding(256, 4)),))
    with pytest.raises(TextError, match="5 bytes to train on"):
        Trainer(model, select("numpy"), "float32", codes, codes, Settings(), "byte")


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.bin"
    path.write_bytes(KOREAN.encode() * 40 + b"\xff\xfe\x00\r\n" * 100)
    return path


def test_train_eval_sample_on_bytes(tmp_path: Path, book: Path) -> None:
    code, out, err = run(tmp_path, "train", "text", book, "--bytes", *SMALL, "--passes", "6")
    assert (code, err) == (0, "")
    size, split = book.stat().st_size, round(book.stat().st_size * 0.9)
    distinct = len(set(book.read_bytes()))
    assert f"{size:,} bytes, {distinct} distinct; training on the first {split:,}" in out
    assert "bytes/s" in out
    assert "nats a byte, at step" in out
    checkpoint = load(tmp_path / "model.safetensors")
    assert checkpoint.task == {"kind": "text", "unit": "byte"}
    assert checkpoint.params["embedding.weight"].shape[0] == 256

    code, out, err = run(tmp_path, "eval", "model.safetensors", book)
    assert (code, err) == (0, "")
    found = re.fullmatch(
        r"([\d,]+) bytes, 0 skipped: loss (\S+) nats a byte, (\S+) bits, perplexity (\S+)\n", out
    )
    assert found is not None, out
    assert found[1] == f"{size:,}"
    loss = float(found[2])
    assert loss < np.log(distinct)
    assert float(found[3]) == pytest.approx(loss / np.log(2), abs=2e-4)
    assert float(found[4]) == pytest.approx(np.exp(loss), rel=1e-3)

    arguments = ["--prompt", "국민", "--length", "60", "--temperature", "0.3"]
    code, out, err = run(tmp_path, "sample", "model.safetensors", *arguments)
    assert (code, err) == (0, "")
    assert out.startswith("국민")
    assert re.search("[가-힣]", out[2:])  # what was drawn makes syllables
    code, out, err = run(tmp_path, "sample", "model.safetensors", "--prompt", "x\U0001f600")
    assert (code, err) == (0, "")  # nothing is unknown


def test_a_text_that_is_no_utf8_needs_bytes(tmp_path: Path, book: Path) -> None:
    assert "train text --bytes" in fails(tmp_path, "train", "text", book)


def test_interrupted_training_on_bytes_goes_on_bit_for_bit(tmp_path: Path, book: Path) -> None:
    arguments = ["--bytes", *SMALL, "--passes", "30", "--eval-every", "40", "--patience", "99"]
    assert run(tmp_path, "train", "text", book, *arguments, "--out", "whole.st")[0] == 0
    process = subprocess.Popen(
        command("train", "text", book, *arguments, "--out", "part.st"),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert process.stdout is not None
    while line := process.stdout.readline():
        if line.startswith("step     40/"):
            break
    time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    assert "go on with" in process.communicate(timeout=60)[0]
    (tmp_path / "other.bin").write_bytes(b"\xff" + book.read_bytes())
    again = ["--out", "part.st", "--resume"]
    assert "another text" in fails(tmp_path, "train", "text", "other.bin", *again)
    code, out, err = run(tmp_path, "train", "text", book, *again)
    assert (code, err) == (0, ""), out
    assert "nats a byte" in out  # the model says what it reads
    whole, part = load(tmp_path / "whole.st"), load(tmp_path / "part.st")
    assert part.training == whole.training
    assert part.task == whole.task
    for name, value in whole.params.items():
        assert np.array_equal(part.params[name], value), name


def test_a_damaged_vocabulary(tmp_path: Path, book: Path) -> None:
    arguments = ["--bytes", *SMALL, "--max-steps", "1", "--out", "m.st"]
    assert run(tmp_path, "train", "text", book, *arguments)[0] == 0
    with safe_open(tmp_path / "m.st", framework="np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata["vocabulary"] = json.dumps("abc")
    save_file(tensors, tmp_path / "m.st", metadata)
    assert "m.st has a damaged vocabulary" in fails(tmp_path, "sample", "m.st")
