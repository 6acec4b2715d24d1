"""Text as numbers: reading files, and the vocabulary of a character model.

A model reads a text's characters, or the bytes of any file: its vocabulary says which.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rnn_xp.files import read_utf8

Codes = np.ndarray[Any, np.dtype[np.int64]]
Text = str | bytes
"""Characters, or bytes."""

UNITS = ("character", "byte")
"""What a model reads and writes one of at a time."""


class TextError(ValueError):
    """A text cannot be used: one line that says why."""


def read_text(path: str | os.PathLike[str]) -> str:
    """Read a UTF-8 file; line ends become line feeds.

    Raises
    ------
    TextError
        If the file is empty or not UTF-8.
    OSError
        If it cannot be read.
    """
    try:
        text = read_utf8(path, TextError)
    except TextError as error:
        raise TextError(f"{error} (a model of bytes reads any file: train text --bytes)") from None
    if not text:
        raise TextError(f"{path} is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Read any file, as it is.

    Raises
    ------
    TextError
        If the file is empty.
    OSError
        If it cannot be read.
    """
    data = Path(path).read_bytes()
    if not data:
        raise TextError(f"{path} is empty")
    return data


def read(path: str | os.PathLike[str], unit: str) -> Text:
    """Read a file as a model of this unit sees it: see `read_text` and `read_bytes`."""
    return read_bytes(path) if unit == "byte" else read_text(path)


@dataclass(frozen=True)
class Vocabulary:
    """The characters that a model knows, in the order of their numbers.

    A vocabulary of bytes has all 256, each as the character of its number (Latin-1): it reads a
    text as UTF-8, knows every file, and writes UTF-8.

    Raises
    ------
    ValueError
        If `unit` is not one of `UNITS`, or the characters of a vocabulary of bytes are not these.
    """

    characters: str
    unit: str = "character"

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ValueError(f"unit must be one of {', '.join(UNITS)}, got {self.unit!r}")
        if self.unit == "byte" and self.characters != "".join(map(chr, range(256))):
            raise ValueError("a vocabulary of bytes must have the characters U+0000 to U+00FF")

    @classmethod
    def of(cls, text: Text) -> Vocabulary:
        """Return the characters of a text, in the order of their code points; of bytes, all."""
        if isinstance(text, bytes):
            return cls("".join(map(chr, range(256))), "byte")
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.characters)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {character: number for number, character in enumerate(self.characters)}

    def encode(self, text: Text, *, skip_unknown: bool = False) -> Codes:
        """Return the number of each character, as int64; of each byte of the UTF-8 text, if so.

        Raises
        ------
        TextError
            If a character is not in the vocabulary, unless `skip_unknown` leaves it out.
        TypeError
            If bytes are given to a vocabulary of characters.
        """
        if self.unit == "byte":
            # What was no UTF-8 on the command line comes as lone surrogates: it is bytes again.
            data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
            return np.frombuffer(data, dtype=np.uint8).astype(np.int64)
        if isinstance(text, bytes):
            raise TypeError("text must be str for a vocabulary of characters, got bytes")
        unknown = sorted(set(text) - self._numbers.keys())
        if unknown and not skip_unknown:
            shown = ", ".join(
                f"{character!r} (U+{ord(character):04X})" for character in unknown[:5]
            )
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise TextError(f"the model has never seen {shown}{more}")
        numbers = self._numbers
        return np.asarray([numbers[c] for c in text if c in numbers], dtype=np.int64)

    def decode(self, codes: Iterable[int]) -> Iterator[str]:
        """Yield the text of each number, of a byte "" until it makes a character whole.

        Bytes that are no UTF-8 become U+FFFD; the rest of an unfinished one comes at the end.
        """
        if self.unit == "character":
            yield from (self.characters[code] for code in codes)
            return
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for code in codes:
            yield decoder.decode(bytes((code,)))
        yield decoder.decode(b"", final=True)
