"""Ragged sequences of vectors, each with or without a label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

HostArray = np.ndarray[Any, Any]


class SequenceError(ValueError):
    """Sequences cannot be used: one line with the file and the reason."""


@dataclass(frozen=True)
class Sequences:
    """Sequences of vectors with one number of channels, and their labels.

    Attributes
    ----------
    values : tuple of arrays, (T, C) each
        Floating-point and finite; T differs from sequence to sequence.
    labels : tuple of str, or None
        The class of each sequence; None where they are not known.
    names : tuple of str, or None
        What each sequence is called where it is from; None: its number, from 0.

    Raises
    ------
    SequenceError
        If there is no sequence, one has no step, another number of channels than the first or a
        value that is not finite, or the labels or names are not as many.
    """

    values: tuple[HostArray, ...]
    labels: tuple[str, ...] | None = None
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise SequenceError("there is no sequence")
        for k, value in enumerate(self.values):
            if value.ndim != 2 or 0 in value.shape:
                raise SequenceError(f"sequence {k} must have shape (T, C), got {value.shape}")
            if value.shape[1] != self.channels:
                raise SequenceError(
                    f"sequence {k} has {value.shape[1]} channels, the first one {self.channels}"
                )
            if not np.isfinite(value).all():
                step, channel = np.argwhere(~np.isfinite(value))[0]
                raise SequenceError(
                    f"sequence {k} has {value[step, channel]} at step {step}, channel {channel}: "
                    "expected finite numbers"
                )
        if self.labels is not None and len(self.labels) != len(self.values):
            raise SequenceError(f"{len(self.values)} sequences have {len(self.labels)} labels")
        if self.names is not None and len(self.names) != len(self.values):
            raise SequenceError(f"{len(self.values)} sequences have {len(self.names)} names")

    def __len__(self) -> int:
        return len(self.values)

    def name(self, k: int) -> str:
        """Return what sequence k is called."""
        return str(k) if self.names is None else self.names[k]

    @property
    def channels(self) -> int:
        """C, the size of every vector."""
        return int(self.values[0].shape[1])

    @property
    def lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """T of each sequence, (N,)."""
        return np.asarray([len(value) for value in self.values], dtype=np.int64)

    def take(self, indices: Sequence[int] | np.ndarray[Any, Any]) -> Sequences:
        """Return some of the sequences, in the order of `indices`."""
        labels = None if self.labels is None else tuple(self.labels[k] for k in indices)
        names = None if self.names is None else tuple(self.names[k] for k in indices)
        return Sequences(tuple(self.values[k] for k in indices), labels, names)

    def padded(self) -> HostArray:
        """Return all of them as (T, B, C), T the longest, with zeros past a sequence's end."""
        shape = (int(self.lengths.max()), len(self), self.channels)
        batch = np.zeros(shape, dtype=np.result_type(*{value.dtype for value in self.values}))
        for k, value in enumerate(self.values):
            batch[: len(value), k] = value
        return batch
