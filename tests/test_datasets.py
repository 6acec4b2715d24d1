"""The data sets that ship: shapes, counts, hashes, and what is said of them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from rnn_xp import datasets

FOLDER = Path(datasets.__file__).parent


def test_shakespeare() -> None:
    text = datasets.load_shakespeare()
    assert len(text) == 1_130_580
    assert len(set(text)) == 80
    assert text.isascii()
    digest = "0bbe794c3fc593ee68ab62b09e32ad6598c7fc3bb648cb67dc8f233736ae5bdc"
    assert hashlib.sha256(text.encode("ascii")).hexdigest() == digest
    assert digest == datasets.SHAKESPEARE_SHA256


def test_the_plays_cover_the_text() -> None:
    text = datasets.load_shakespeare()
    plays = datasets.SHAKESPEARE_PLAYS
    assert len(plays) == 9
    assert (plays[0][1], plays[-1][2]) == (0, len(text))
    for (_, _, end), (_, start, _) in pairwise(plays):
        assert text[end:start] == "\n"
    for title, start, end in plays:
        assert 90_000 < end - start < 180_000, title
        assert not text[start].isspace(), title
    assert plays[-1][1] <= len(text) * 9 // 10 <= plays[-1][2]


def test_japanese_vowels() -> None:
    train, test = datasets.load_japanese_vowels()
    assert (len(train), len(test)) == (270, 370)
    assert train.channels == test.channels == 12
    assert (train.lengths.min(), train.lengths.max()) == (7, 26)
    assert (test.lengths.min(), test.lengths.max()) == (7, 29)
    assert train.lengths.sum() + test.lengths.sum() == 9961
    assert all(value.dtype == np.float32 for value in train.values + test.values)
    speakers = [str(k) for k in range(1, 10)]
    assert train.labels is not None
    assert test.labels is not None
    assert Counter(train.labels) == dict.fromkeys(speakers, 30)
    counts = (31, 35, 88, 44, 29, 24, 40, 50, 29)
    assert Counter(test.labels) == dict(zip(speakers, counts, strict=True))
    # The first line of the archive's file: the first steps of the first three channels.
    assert train.values[0][:4, 0].tolist() == pytest.approx(
        [1.860936, 1.891651, 1.939205, 1.717517]
    )
    assert train.values[0][:3, 1].tolist() == pytest.approx([-0.207383, -0.193249, -0.239664])
    assert len(train.values[0]) == 20


def test_digits() -> None:
    images, labels = datasets.load_digits()
    assert (images.shape, images.dtype) == ((1797, 8, 8), np.float32)
    assert (labels.shape, labels.dtype) == ((1797,), np.int64)
    assert (images.min(), images.max()) == (0, 16)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert labels[:10].tolist() == list(range(10))
    assert images[0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_sunspots() -> None:
    table = datasets.load_sunspots()
    years, numbers = table.numbers("YEAR"), table.numbers("SUNACTIVITY")
    assert len(table) == 309
    assert list(table.columns) == ["YEAR", "SUNACTIVITY"]
    assert years.tolist() == list(range(1700, 2009))
    assert np.isfinite(numbers).all()
    assert numbers[:3].tolist() == [5, 11, 16]
    assert (numbers.min(), numbers.max()) == (0, 190.2)


def test_co2() -> None:
    table = datasets.load_co2()
    assert len(table) == 2284
    assert list(table.columns) == ["date", "co2"]
    dates, values = table.text("date"), table.numbers("co2")
    assert (dates[0], dates[-1]) == ("19580329", "20011229")
    days = np.asarray([f"{d[:4]}-{d[4:6]}-{d[6:]}" for d in dates], dtype="datetime64[D]")
    assert (np.diff(days).astype(int) == 7).all()
    assert np.isnan(values).sum() == 59
    assert 310 < np.nanmin(values) < np.nanmax(values) < 375


def test_every_set_names_its_source_and_licence() -> None:
    licences = (FOLDER / "LICENSES.md").read_text(encoding="utf-8")
    loaders = [name for name in datasets.__all__ if name.startswith("load_")]
    assert len(loaders) == 5
    for name in loaders:
        said = " ".join(getattr(datasets, name).__doc__.split())
        assert re.search("Public domain|CC BY 4.0", said), name
        assert "package" in said, name
    for file in FOLDER.iterdir():
        if file.suffix not in (".py", ".md", ".pyc", "") and file.is_file():
            assert file.name in licences


def test_a_damaged_or_missing_file_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rnn_xp.datasets.resources.files", lambda _: tmp_path)
    with pytest.raises(OSError, match=r"sunspots.csv of the installed package is missing: reinst"):
        datasets.load_sunspots()
    (tmp_path / "sunspots.csv").write_text("YEAR,SUNACTIVITY\n1700,5\n")
    with pytest.raises(OSError, match=r"damaged \(its SHA-256 is not the expected one\)"):
        datasets.load_sunspots()
    (tmp_path / "digits.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(OSError, match=r"digits.csv.gz .* is unreadable \("):
        datasets.load_digits()
    whole = (FOLDER / "shakespeare.txt.bz2").read_bytes()
    (tmp_path / "shakespeare.txt.bz2").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match="unreadable"):
        datasets.load_shakespeare()
