"""Sequence classification: which class is each sequence of?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnn_xp import losses
from rnn_xp.random import Seed, generator
from rnn_xp.scaling import mean_and_deviation
from rnn_xp.sequences import SequenceError, Sequences

HostArray = np.ndarray[Any, Any]
Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Encoding:
    """How labelled sequences become numbers: what a classifier's use needs beside its parameters.

    Attributes
    ----------
    classes : tuple of str
        Class k of the model's outputs.
    mean, deviation : tuple of float
        Of each channel over all steps of the training part; sequences are standardised by them.
    """

    classes: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, sequences: Sequences) -> Encoding:
        """Learn the classes and the scale of the channels from training sequences.

        The classes are in the order of their numbers where all are integers, else of their letters.

        Raises
        ------
        SequenceError
            If they have no labels, or fewer than two classes.
        """
        names = set(labels_of(sequences))
        if len(names) < 2:
            raise SequenceError(
                f"all sequences are of the class {names.pop()!r}: expected two or more"
            )
        frames = np.concatenate(sequences.values)
        mean, deviation = mean_and_deviation(frames)
        return cls(
            tuple(sorted(names, key=int) if all(map(_is_integer, names)) else sorted(names)),
            tuple(mean.tolist()),
            tuple(np.where(deviation > 0, deviation, 1.0).tolist()),
        )

    @classmethod
    def restore(cls, values: Mapping[str, Any]) -> Encoding:
        """Make an encoding from what `describe` returned."""
        return cls(*(tuple(values[name]) for name in ("classes", "mean", "deviation")))

    def describe(self) -> dict[str, Any]:
        """Return the encoding as plain values."""
        return {
            "classes": list(self.classes),
            "mean": list(self.mean),
            "deviation": list(self.deviation),
        }

    def standardise(self, sequences: Sequences) -> Sequences:
        """Return (x - mean) / deviation of each channel, float64.

        Raises
        ------
        SequenceError
            If there are more or fewer channels than those that the scale was learnt from.
        """
        if sequences.channels != len(self.mean):
            raise SequenceError(
                f"the sequences have {sequences.channels} channels, but the model reads "
                f"{len(self.mean)}"
            )
        mean, deviation = np.asarray(self.mean), np.asarray(self.deviation)
        values = tuple((value - mean) / deviation for value in sequences.values)
        return Sequences(values, sequences.labels, sequences.names)

    def encode(self, sequences: Sequences) -> tuple[Sequences, Integers]:
        """Return the standardised sequences, and the number of each one's class (N,).

        Raises
        ------
        SequenceError
            As `standardise`; if they have no labels, or one of a class that is not in `classes`.
        """
        numbers = {name: k for k, name in enumerate(self.classes)}
        labels = labels_of(sequences)
        for k, label in enumerate(labels):
            if label not in numbers:
                raise SequenceError(
                    f"sequence {sequences.name(k)} is of the class {label!r}, which training has "
                    f"never seen: the classes are {', '.join(self.classes)}"
                )
        targets = np.asarray([numbers[label] for label in labels], dtype=np.int64)
        return self.standardise(sequences), targets


def labels_of(sequences: Sequences) -> tuple[str, ...]:
    """Return the labels, SequenceError where there are none."""
    if sequences.labels is None:
        raise SequenceError("the sequences have no labels")
    return sequences.labels


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def probabilities(logits: HostArray) -> HostArray:
    """Return softmax(logits), (N, K) float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    result: HostArray = powers / powers.sum(axis=1, keepdims=True)
    return result


def cross_entropy(logits: HostArray, targets: Integers) -> float:
    """Return the mean of -log softmax(logits)[target] in nats."""
    return float(losses.softmax_cross_entropy(logits.astype(np.float64), targets)[0])


def confusion_matrix(targets: Integers, predicted: Integers, classes: int) -> Integers:
    """Return how often class i (row) was taken for class j (column), (K, K)."""
    counts = np.bincount(targets * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def stratified_split(labels: Sequence[str], part: float, seed: Seed) -> tuple[Integers, Integers]:
    """Return two sets of indices; the second one has about `part` of each class.

    Of every class at least one example stays in the first set, and of a class with two or more at
    least one goes into the second.

    Raises
    ------
    SequenceError
        If no class has two examples.
    """
    rng = generator(seed)
    names, numbers = np.unique(np.asarray(labels), return_inverse=True)
    held_out: list[Integers] = []
    for k in range(len(names)):
        members = rng.permutation(np.flatnonzero(numbers == k))
        count = min(max(round(len(members) * part), 1), len(members) - 1)
        held_out.append(members[:count])
    second = np.sort(np.concatenate(held_out))
    if not len(second):
        raise SequenceError("no class has two sequences: there is nothing to hold out")
    return np.setdiff1d(np.arange(len(numbers)), second), second
