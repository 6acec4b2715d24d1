"""Ragged sequences, and the three kinds of files that they are read from."""

from __future__ import annotations

import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnn_xp.sequence_files import read_sequences
from rnn_xp.sequences import SequenceError, Sequences
from rnn_xp.table import TableError

A = np.asarray([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
B = np.asarray([[7.0, 8.0]])

TS = """#Two channels, two classes
@problemName Small
@timeStamps false
@missing false
@univariate false
@dimensions 2
@equalLength false
@classLabel true yes no
@data
1,3,5:2,4,6:yes
# a remark

7:8:no
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def write_npz(path: Path, **changes: Any) -> Path:
    arrays = {
        "frames": np.concatenate([A, B]),
        "offsets": np.asarray([0, 3, 4]),
        "labels": np.asarray([1, 0]),
        **changes,
    }
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def write_folder(path: Path, labels: str | None = "file,label\na.csv,yes\nb.csv,no\n") -> Path:
    path.mkdir()
    write(path / "a.csv", "x,y\n1,2\n3,4\n5,6\n")
    write(path / "b.csv", "x,y\n7,8\n")
    if labels is not None:
        write(path / "labels.csv", labels)
    return path


def check(sequences: Sequences, labels: tuple[str, ...] | None) -> None:
    assert len(sequences) == 2
    assert sequences.channels == 2
    assert np.array_equal(sequences.values[0], A)
    assert np.array_equal(sequences.values[1], B)
    assert all(value.dtype == np.float64 for value in sequences.values)
    assert sequences.labels == labels


def test_take_and_pad() -> None:
    whole = Sequences((A, B), ("a", "b"), ("one", "two"))
    assert whole.lengths.tolist() == [3, 1]
    turned = whole.take([1, 0])
    assert (turned.labels, turned.names) == (("b", "a"), ("two", "one"))
    assert turned.name(0) == "two"
    assert Sequences((A, B)).take([1]).name(0) == "0"
    expected = [[[1, 2], [7, 8]], [[3, 4], [0, 0]], [[5, 6], [0, 0]]]
    assert whole.padded().tolist() == expected


@pytest.mark.parametrize(
    ("values", "labels", "names", "message"),
    [
        ((), None, None, "there is no sequence"),
        ((A, A[0]), None, None, r"sequence 1 must have shape \(T, C\), got \(2,\)"),
        ((A, A[:0]), None, None, r"got \(0, 2\)"),
        ((A, A[:, :1]), None, None, "sequence 1 has 1 channels, the first one 2"),
        ((A, np.asarray([[1.0, np.nan]])), None, None, "sequence 1 has nan at step 0, channel 1"),
        ((A, B), ("a",), None, "2 sequences have 1 labels"),
        ((A, B), None, ("a",), "2 sequences have 1 names"),
    ],
)
def test_what_no_sequences_are(values: Any, labels: Any, names: Any, message: str) -> None:
    with pytest.raises(SequenceError, match=message):
        Sequences(values, labels, names)


def test_ts(tmp_path: Path) -> None:
    parts = read_sequences(write(tmp_path / "small.ts", TS))
    check(parts.sequences, ("yes", "no"))
    assert parts.test is None


def test_ts_in_other_words(tmp_path: Path) -> None:
    header = "\ufeff@classlabel TRUE\r\n@UNIVARIATE true\r\n@whatever 3\r\n"
    path = write(tmp_path / "one.TS", header + "@data\r\n 1 , 2e0:a\r\n3:b c\r\n")
    found = read_sequences(path).sequences
    assert [value.tolist() for value in found.values] == [[[1.0], [2.0]], [[3.0]]]
    assert found.labels == ("a", "b c")


def test_ts_without_labels(tmp_path: Path) -> None:
    text = TS.replace("true yes no", "false").replace(":yes", "").replace(":no", "")
    path = write(tmp_path / "small.ts", text)
    check(read_sequences(path, labelled=False).sequences, None)
    with pytest.raises(SequenceError, match=r"small.ts has no labels \(@classLabel is false\)"):
        read_sequences(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("@timeStamps false", "@timeStamps true", "has time stamps"),
        ("@timeStamps false", "@timeStamps", "has @timestamps '': expected true or false"),
        ("@dimensions 2", "@dimensions two", "has @dimensions 'two': expected an integer >= 1"),
        ("@classLabel true yes no", "", "no @classLabel line: expected '@classLabel true'"),
        ("@classLabel true yes no", "@targetLabel true", "numbers as targets"),
        ("@problemName Small", "Small", "line 2 is no header line"),
        ("@data\n", "", "line 9 is no header line: expected '@name value', or '@data' before it"),
        (TS[TS.index("@data") :], "", "has no line '@data'"),
        (TS[TS.index("1,3") :], "", "has no sequence after @data"),
        ("7:8:no", "7:no", "line 13 has 1 dimensions, expected 2"),
        ("7:8:no", "7:8:9:no", "line 13 has 3 dimensions, expected 2"),
        ("2,4,6:yes", "2,4:yes", "line 10 has 2 steps in dimension 2, but 3 in the first"),
        ("7:8:no", "7:8", r"line 13 ends with '8', expected one of the classes yes, no"),
        ("7:8:no", "7:8:maybe", "ends with 'maybe'"),
        ("7:8:no", "7:?:no", "line 13 has a missing value in dimension 2"),
        ("7:8:no", "7:NaN:no", "line 13 has a missing value in dimension 2"),
        ("7:8:no", "7::no", "line 13 has a missing value in dimension 2"),
        ("7:8:no", "7:inf:no", "line 13 has 'inf' in dimension 2, expected a finite number"),
        ("1,3,5", "1,x,5", "line 10 has 'x' in dimension 1, expected a finite number"),
        ("@equalLength false", "@equalLength true", "line 13 has 1 steps, but all have 3"),
        (
            "@equalLength false",
            "@equalLength true\n@seriesLength 2",
            "line 11 has 3 steps, but all have 2",
        ),
    ],
)
def test_what_is_wrong_with_a_ts_file(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in TS
    with pytest.raises(SequenceError, match=f"small.ts.*{message}"):
        read_sequences(write(tmp_path / "small.ts", TS.replace(old, new)))


def test_ts_without_a_list_of_classes(tmp_path: Path) -> None:
    text = TS.replace("true yes no", "true")
    check(read_sequences(write(tmp_path / "small.ts", text)).sequences, ("yes", "no"))
    with pytest.raises(SequenceError, match="line 13 has no label"):
        read_sequences(write(tmp_path / "small.ts", text.replace("8:no", "8:")))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "small.ts").write_bytes(b"@data\n\xff")
    with pytest.raises(SequenceError, match="not UTF-8 text: byte 6"):
        read_sequences(tmp_path / "small.ts")


def test_npz(tmp_path: Path) -> None:
    parts = read_sequences(write_npz(tmp_path / "a.npz"))
    check(parts.sequences, ("1", "0"))
    assert parts.test is None
    words = np.asarray(["yes", "no"])
    check(read_sequences(write_npz(tmp_path / "b.npz", labels=words)).sequences, ("yes", "no"))
    bare = write_npz(tmp_path / "c.npz", labels=None)
    check(read_sequences(bare, labelled=False).sequences, None)
    with pytest.raises(SequenceError, match="has no array 'labels': it holds frames, offsets"):
        read_sequences(bare)


def test_npz_that_says_what_to_test_on(tmp_path: Path) -> None:
    path = write_npz(tmp_path / "a.npz", is_test=np.asarray([True, False]))
    train, test = read_sequences(path)
    assert test is not None
    assert (train.labels, train.names) == (("0",), ("1",))
    assert (test.labels, test.names) == (("1",), ("0",))
    assert np.array_equal(train.values[0], B)
    assert np.array_equal(test.values[0], A)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": None}, "has no array 'frames': it holds offsets, labels"),
        ({"frames": np.arange(8).reshape(4, 2)}, r"'frames' must be \(ΣT, C\), floating-point"),
        ({"frames": np.ones(4)}, r"got \(4,\), float64"),
        ({"frames": np.full((4, 2), np.nan)}, "sequence 0 has nan at step 0, channel 0"),
        ({"offsets": np.asarray([0.0, 4.0])}, r"'offsets' must be \(N \+ 1,\), integers"),
        ({"offsets": np.asarray([0])}, r"'offsets' must be"),
        ({"offsets": np.asarray([0, 3, 5])}, "offsets must grow from 0 to 4"),
        ({"offsets": np.asarray([1, 3, 4])}, "offsets must grow from 0 to 4"),
        ({"offsets": np.asarray([0, 4, 4])}, "offsets must grow from 0 to 4"),
        ({"offsets": np.asarray([0, 5, 4], dtype=np.uint64)}, "offsets must grow from 0 to 4"),
        ({"labels": np.asarray([1])}, r"'labels' must be \(2,\), integers or strings"),
        ({"labels": np.asarray([1.0, 2.0])}, r"got \(2,\), float64"),
        ({"labels": np.asarray([1, "x"], dtype=object)}, "no usable .npz file"),
        ({"is_test": np.asarray([0, 1])}, r"'is_test' must be \(2,\), booleans"),
        ({"is_test": np.asarray([True, True])}, "is_test must be true for some"),
    ],
)
def test_what_is_wrong_with_an_npz_file(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(SequenceError, match=f"a.npz.*{message}"):
        read_sequences(write_npz(tmp_path / "a.npz", **changes))


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    good = write_npz(path).read_bytes()
    for data in (b"", b"no archive", good[: len(good) // 2], b"PK\x03\x04 cut"):
        path.write_bytes(data)
        with pytest.raises(SequenceError, match=r"a.npz is no usable .npz file \("):
            read_sequences(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("frames.npy", b"no array")
    with pytest.raises(SequenceError, match="has no array 'frames'"):
        read_sequences(path)
    np.savez_compressed(path, frames=np.zeros((1000, 2)), offsets=np.asarray([0, 1000]))
    packed = path.read_bytes()
    path.write_bytes(packed[:60] + b"\xff" * 10 + packed[70:])
    with pytest.raises(SequenceError, match=r"no usable .npz file"):
        read_sequences(path)
    with open(path, "wb") as file:
        np.save(file, A)
    with pytest.raises(SequenceError, match=r"no usable .npz file"):
        read_sequences(path)


def test_folder(tmp_path: Path) -> None:
    found = read_sequences(write_folder(tmp_path / "folder")).sequences
    check(found, ("yes", "no"))
    assert found.names == ("a.csv", "b.csv")
    for name in "ab":  # the same without a header, and with another delimiter
        path = tmp_path / "folder" / f"{name}.csv"
        write(path, path.read_text().replace("x,y\n", "").replace(",", ";"))
    check(read_sequences(tmp_path / "folder").sequences, ("yes", "no"))


def test_folder_without_labels(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "folder", None)
    found = read_sequences(folder, labelled=False).sequences
    check(found, None)
    assert found.names == ("a.csv", "b.csv")
    with pytest.raises(SequenceError, match=r"folder has no labels.csv"):
        read_sequences(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SequenceError, match="empty has no CSV file"):
        read_sequences(tmp_path / "empty", labelled=False)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("labels.csv", "file,label\na.csv,yes\nc.csv,no\n", "line 3 names 'c.csv', which is no"),
        ("labels.csv", "file,label\na.csv,\n", "labels.csv, line 2 has no label"),
        ("labels.csv", "file,class\na.csv,yes\n", "has no column 'label': its columns are file"),
        ("labels.csv", "file,label\n", "labels.csv has a header, but no row of data"),
        ("b.csv", "x,z\n7,8\n", "b.csv has the columns x, z, but .*a.csv has x, y"),
        ("b.csv", "x,y,z\n7,8,9\n", "b.csv has the columns x, y, z, but .*a.csv has x, y"),
        ("b.csv", "x,y\n7,8\n9\n", "b.csv, line 3 has 1 fields, but the first row has 2"),
        ("b.csv", "x,y\n7,eight\n", "b.csv, line 2: the column 'y' has 'eight'"),
        ("b.csv", "x,y\n7,8\n7,nan\n", "b.csv, line 3 has no value in the column 'y'"),
        ("b.csv", "", "b.csv is empty"),
    ],
)
def test_what_is_wrong_with_a_folder(tmp_path: Path, file: str, text: str, message: str) -> None:
    folder = write_folder(tmp_path / "folder")
    write(folder / file, text)
    with pytest.raises((SequenceError, TableError), match=message):
        read_sequences(folder)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(SequenceError, match=r"a.txt is neither a .ts file, nor"):
        read_sequences(write(tmp_path / "a.txt", TS))
    for name in ("missing.ts", "missing.npz", "missing", "missing.txt"):
        with pytest.raises(FileNotFoundError):
            read_sequences(tmp_path / name)


def test_the_three_kinds_say_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = [rng.normal(size=(steps, 3)) for steps in (4, 1, 7)]
    labels = ("b", "a", "b")
    offsets = np.cumsum([0, *map(len, values)])
    np.savez(
        tmp_path / "x.npz",
        frames=np.concatenate(values),
        offsets=offsets,
        labels=np.asarray(labels),
    )
    folder = tmp_path / "x"
    folder.mkdir()
    for k, value in enumerate(values):
        write(
            folder / f"{k}.csv", "".join(f"{','.join(map(repr, row))}\n" for row in value.tolist())
        )
    rows = "".join(f"{k}.csv,{label}\n" for k, label in enumerate(labels))
    write(folder / "labels.csv", "file,label\n" + rows)
    lines = [
        ":".join(",".join(map(repr, channel)) for channel in value.T.tolist()) + f":{label}"
        for value, label in zip(values, labels, strict=True)
    ]
    write(tmp_path / "x.ts", "@classLabel true\n@data\n" + "\n".join(lines))
    assert all(a < b for a, b in pairwise(offsets))
    for name in ("x.npz", "x", "x.ts"):
        found = read_sequences(tmp_path / name).sequences
        assert found.labels == labels
        for value, expected in zip(found.values, values, strict=True):
            assert np.array_equal(value, expected), name
