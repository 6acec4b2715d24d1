"""Text as numbers: reading files, and the vocabulary of a character model."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

Codes = np.ndarray[Any, np.dtype[np.int64]]


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
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TextError(f"{path} is not UTF-8 text: byte {error.start} is no part of it") from None
    if not text:
        raise TextError(f"{path} is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")


@dataclass(frozen=True)
class Vocabulary:
    """The characters that a model knows, in the order of their numbers."""

    characters: str

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """Return the characters of a text, in the order of their code points."""
        return cls("".join(sorted(set(text))))

    def __len__(self) -> int:
        return len(self.characters)

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {character: number for number, character in enumerate(self.characters)}

    def encode(self, text: str, *, skip_unknown: bool = False) -> Codes:
        """Return the number of each character, as int64.

        Raises
        ------
        TextError
            If a character is not in the vocabulary, unless `skip_unknown` leaves it out.
        """
        unknown = sorted(set(text) - self._numbers.keys())
        if unknown and not skip_unknown:
            shown = ", ".join(
                f"{character!r} (U+{ord(character):04X})" for character in unknown[:5]
            )
            more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise TextError(f"the model has never seen {shown}{more}")
        numbers = self._numbers
        return np.asarray([numbers[c] for c in text if c in numbers], dtype=np.int64)
