"""Reading sequences from files, with errors that name the file and the line.

NAME.ts    the text format of the time-series archives
NAME.npz   NumPy arrays `frames`, `offsets`, `labels`, and optionally `is_test`
a folder   CSV files, one a sequence, and `labels.csv` with the columns `file` and `label`
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from rnn_xp.files import read_npz, read_utf8
from rnn_xp.sequences import SequenceError, Sequences
from rnn_xp.table import as_number, read_table

HostArray = np.ndarray[Any, Any]

LABELS = "labels.csv"
"""The file of a folder that says which class each of its CSV files is of."""


class Parts(NamedTuple):
    """What a file holds."""

    sequences: Sequences
    """All of them, or those to train on where the file says which ones are for the test."""
    test: Sequences | None


def read_sequences(path: str | os.PathLike[str], *, labelled: bool = True) -> Parts:
    """Read the sequences of a `.ts` file, a `.npz` file or a folder of CSV files.

    `.ts` : a header of `@name value` lines, then after `@data` a line for each sequence: its
    channels with `:` between them, the steps of a channel with `,`, and last the label.

    `.npz` : `frames` (ΣT, C), floating-point, the steps of all sequences one after the other;
    `offsets` (N + 1,), integers: sequence k is `frames[offsets[k]:offsets[k + 1]]`; `labels` (N,),
    integers or strings; optionally `is_test` (N,), booleans.

    A folder : `labels.csv` names its files; each row is a step, each column a channel, and the
    first row may hold the channels' names.

    Parameters
    ----------
    path : path-like
    labelled : bool
        Whether labels must be there. Without them `labels` is None, and a folder without
        `labels.csv` is all of its CSV files in the order of their names.

    Raises
    ------
    SequenceError, TableError
        If the file is not as described, labels are missing, or a value is no finite number.
    OSError
        If it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return Parts(_read_folder(path, labelled), None)
    if path.suffix.lower() == ".ts":
        return Parts(_read_ts(path, labelled), None)
    if path.suffix.lower() == ".npz":
        return _read_npz(path, labelled)
    path.stat()  # OSError where there is none
    raise SequenceError(f"{path} is neither a .ts file, nor a .npz file, nor a folder of CSV files")


def _read_ts(path: Path, labelled: bool) -> Sequences:
    lines = enumerate(read_utf8(path, SequenceError).splitlines(), start=1)
    header = _read_header(path, lines)
    if labelled and not header.has_labels:
        raise SequenceError(f"{path} has no labels (@classLabel is false)")
    values: list[HostArray] = []
    labels: list[str] = []
    for number, line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split(":")
        if header.has_labels:
            labels.append(_label(path, number, fields.pop(), header.classes))
        expected = header.channels or (values[0].shape[1] if values else None)
        if expected is not None and len(fields) != expected:
            _wrong(path, number, f"has {len(fields)} dimensions, expected {expected}")
        values.append(_channels(path, number, fields))
        if header.steps == 0:  # all alike, but the header does not say how long
            header = header._replace(steps=len(values[0]))
        if header.steps and len(values[-1]) != header.steps:
            _wrong(path, number, f"has {len(values[-1])} steps, but all have {header.steps}")
    if not values:
        raise SequenceError(f"{path} has no sequence after @data")
    return Sequences(tuple(values), tuple(labels) if header.has_labels else None)


class _Header(NamedTuple):
    has_labels: bool
    classes: tuple[str, ...]
    channels: int | None
    steps: int | None
    """Of every sequence; 0: of equal length, but not said which; None: of any length."""


def _read_header(path: Path, lines: Iterator[tuple[int, str]]) -> _Header:
    """Read up to `@data`; names are in any case of letters, unknown ones are passed over."""
    found: dict[str, list[str]] = {}
    for number, line in lines:
        words = line.split()
        if not words or line.startswith("#"):
            continue
        name = words[0].lower()
        if not name.startswith("@"):
            _wrong(path, number, "is no header line: expected '@name value', or '@data' before it")
        if name == "@data":
            break
        found[name] = words[1:]
    else:
        raise SequenceError(f"{path} has no line '@data': it is no .ts file, or is truncated")

    def flag(name: str) -> bool:
        value = " ".join(found.get(name, ["false"])[:1]).lower()
        if value not in ("true", "false"):
            raise SequenceError(f"{path} has {name} {value!r}: expected true or false")
        return value == "true"

    def size(name: str) -> int | None:
        if name not in found:
            return None
        text = " ".join(found[name])
        if not text.isdecimal() or int(text) < 1:
            raise SequenceError(f"{path} has {name} {text!r}: expected an integer >= 1")
        return int(text)

    if flag("@timestamps"):
        raise SequenceError(f"{path} has time stamps (@timeStamps is true): expected steps alone")
    if "@classlabel" not in found:
        what = (
            "numbers as targets (@targetLabel)" if flag("@targetlabel") else "no @classLabel line"
        )
        raise SequenceError(f"{path} has {what}: expected '@classLabel true' and the classes")
    channels = size("@dimensions") or size("@dimension") or (1 if flag("@univariate") else None)
    steps = (size("@serieslength") or 0) if flag("@equallength") else None
    return _Header(flag("@classlabel"), tuple(found["@classlabel"][1:]), channels, steps)


def _label(path: Path, number: int, field: str, classes: tuple[str, ...]) -> str:
    label = field.strip()
    if classes and label not in classes:
        reason = f"ends with {label[:40]!r}, expected one of the classes {', '.join(classes)}"
        _wrong(path, number, reason)
    if not label:
        _wrong(path, number, "has no label")
    return label


def _channels(path: Path, number: int, fields: list[str]) -> HostArray:
    """Return the channels of a line, `1,2,3` each, as (T, C) float64."""
    channels = []
    for k, field in enumerate(fields, start=1):
        texts = field.split(",")
        if len(texts) != len(fields[0].split(",")):
            first = len(fields[0].split(","))
            _wrong(
                path, number, f"has {len(texts)} steps in dimension {k}, but {first} in the first"
            )
        values = [as_number(text) for text in texts]
        for text, value in zip(texts, values, strict=True):
            if value is None or math.isnan(value):
                what = "a missing value" if value is not None else repr(text.strip()[:40])
                _wrong(path, number, f"has {what} in dimension {k}, expected a finite number")
        channels.append(values)
    return np.asarray(channels, dtype=np.float64).T


def _wrong(path: Path, number: int, reason: str) -> NoReturn:
    raise SequenceError(f"{path}, line {number} {reason}")


def _read_npz(path: Path, labelled: bool) -> Parts:
    arrays = read_npz(path, SequenceError)
    for name in ("frames", "offsets", *(("labels",) if labelled else ())):
        if name not in arrays:
            held = ", ".join(arrays) or "nothing"
            raise SequenceError(f"{path} has no array {name!r}: it holds {held}")
    frames, offsets = arrays["frames"], arrays["offsets"]
    labels, is_test = arrays.get("labels"), arrays.get("is_test")
    if frames.ndim != 2 or frames.dtype.kind != "f":
        _unlike(path, "frames", frames, "(ΣT, C), floating-point")
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or len(offsets) < 2:
        _unlike(path, "offsets", offsets, "(N + 1,), integers")
    if offsets[0] != 0 or offsets[-1] != len(frames) or (offsets[1:] <= offsets[:-1]).any():
        raise SequenceError(f"{path}: offsets must grow from 0 to {len(frames)}, the frames")
    count = len(offsets) - 1
    if labels is not None and (labels.shape != (count,) or labels.dtype.kind not in "iuU"):
        _unlike(path, "labels", labels, f"({count},), integers or strings")
    if is_test is not None and (is_test.shape != (count,) or is_test.dtype.kind != "b"):
        _unlike(path, "is_test", is_test, f"({count},), booleans")
    try:
        whole = Sequences(
            tuple(frames[a:b] for a, b in pairwise(offsets)),
            None if labels is None else tuple(str(label) for label in labels),
            tuple(str(k) for k in range(count)),
        )
    except SequenceError as error:
        raise SequenceError(f"{path}: {error}") from None
    if is_test is None:
        return Parts(whole, None)
    if is_test.all() or not is_test.any():
        raise SequenceError(
            f"{path}: is_test must be true for some sequences, and false for others"
        )
    return Parts(whole.take(np.flatnonzero(~is_test)), whole.take(np.flatnonzero(is_test)))


def _unlike(path: Path, name: str, array: HostArray, expected: str) -> NoReturn:
    shape = f"{array.shape}, {array.dtype}"
    raise SequenceError(f"{path}: the array {name!r} must be {expected}, got {shape}")


def _read_folder(folder: Path, labelled: bool) -> Sequences:
    listed = folder / LABELS
    labels: tuple[str, ...] | None = None
    if listed.exists():
        table = read_table(listed)
        paths = [folder / name for name in table.text("file")]
        labels = table.text("label")
        for line, file, label in zip(table.lines, paths, labels, strict=True):
            if not label:
                _wrong(listed, line, "has no label")
            if not file.is_file():
                _wrong(listed, line, f"names {file.name!r}, which is no file of {folder}")
    elif labelled:
        raise SequenceError(f"{folder} has no {LABELS}: expected its columns 'file' and 'label'")
    else:
        paths = sorted(folder.glob("*.csv"))
        if not paths:
            raise SequenceError(f"{folder} has no CSV file")
    names: tuple[str, ...] = ()
    values = []
    for path in paths:
        own, value = _read_csv(path)
        names = names or own
        if own != names:
            first, here = ", ".join(names), ", ".join(own)
            raise SequenceError(f"{path} has the columns {here}, but {paths[0]} has {first}")
        values.append(value)
    return Sequences(tuple(values), labels, tuple(path.name for path in paths))


def _read_csv(path: Path) -> tuple[tuple[str, ...], HostArray]:
    """Return the names of the columns, and the values (T, C) in float64."""
    table = read_table(path, header=None)
    columns = {name: table.numbers(name) for name in table.columns}
    for name, column in columns.items():
        if np.isnan(column).any():
            line = table.lines[int(np.argmax(np.isnan(column)))]
            _wrong(path, line, f"has no value in the column {name!r}")
    return tuple(columns), np.stack(list(columns.values()), axis=1)
