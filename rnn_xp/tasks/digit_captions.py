"""Captions of the 8x8 digits: composed from the label and from what can be measured in a picture.

A caption names the digit, then what sets the picture apart, in this order, nothing where it is
usual: "a four, bold, leaning left, wide". With the grey values g(r, c) of rows r (from the top) and
columns c, their sum n, and the moments m_rr, m_rc, m_cc of the ink about its centre,
m_rc = Σ g (r - r̄)(c - c̄) / n:

    fact    what is measured                                said
    weight  ink: mean of g / 16                             thin below 0.28, bold above 0.33
    slant   angle of the upright axis: atan(-m_rc / m_rr)   leaning left below -5°, right above 5°
    width   spread: sqrt(m_cc / m_rr)                       narrow below 0.50, wide above 0.63

The bounds of weight and width are the quartiles of the training part (0.278, 0.331; 0.504, 0.628),
rounded: a fact is said of about a quarter of the pictures at either end, and the other half is
usual. Upright is not what most writers do but 0°, so that the slant has one bound for both sides:
the median of the angle's absolute value (5.04°), rounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

HostArray = np.ndarray[Any, Any]

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
INK = (0.28, 0.33)
ANGLE = (-5.0, 5.0)
"""In degrees, positive to the right."""
SPREAD = (0.50, 0.63)

# The facts in the order of their words: what is said below the first bound, and above the second.
WORDS: dict[str, tuple[str, str]] = {
    "weight": ("thin", "bold"),
    "slant": ("leaning left", "leaning right"),
    "width": ("narrow", "wide"),
}
BOUNDS = {"weight": INK, "slant": ANGLE, "width": SPREAD}


class Measures(NamedTuple):
    """What is measured in each of N pictures: (N,) each, float64, under the facts' names."""

    weight: HostArray
    slant: HostArray
    width: HostArray


def measure(images: HostArray) -> Measures:
    """Measure ink, angle and spread of pictures (N, 8, 8) with values from 0 to 16.

    A picture without ink has no angle and no spread: they are NaN, and nothing is said of them.
    """
    grey = images.astype(np.float64)
    r, c = np.arange(grey.shape[1])[:, None], np.arange(grey.shape[2])[None, :]
    with np.errstate(invalid="ignore", divide="ignore"):
        density = grey / grey.sum(axis=(1, 2), keepdims=True)
        dr = r - (density * r).sum(axis=(1, 2), keepdims=True)
        dc = c - (density * c).sum(axis=(1, 2), keepdims=True)
        rr, rc, cc = ((density * a).sum(axis=(1, 2)) for a in (dr * dr, dr * dc, dc * dc))
        slant = np.degrees(np.arctan(-rc / rr))
        return Measures(grey.mean(axis=(1, 2)) / 16.0, slant, np.sqrt(cc / rr))


def compose(images: HostArray, labels: HostArray) -> tuple[str, ...]:
    """Return the caption of each picture (N, 8, 8) with its label (N,)."""
    measures = measure(images)
    captions = []
    for k, label in enumerate(labels):
        parts = [f"{'an' if label == 8 else 'a'} {DIGITS[label]}"]
        for name, (low, high) in WORDS.items():
            value, (least, most) = getattr(measures, name)[k], BOUNDS[name]
            parts += [low] if value < least else [high] if value > most else []
        captions.append(", ".join(parts))
    return tuple(captions)


def facts(caption: str) -> dict[str, tuple[str, ...]]:
    """Return what a caption says of the `digit`, and of each fact; () where it says nothing.

    Of a caption that says one thing twice, or contradicts itself, both are returned: no right
    caption has them.
    """
    parts = caption.split(", ")
    said = {"digit": tuple(p for p in parts if p.partition(" ")[2] in DIGITS)}
    return said | {name: tuple(p for p in parts if p in words) for name, words in WORDS.items()}


def accuracies(written: Sequence[str], true: Sequence[str]) -> dict[str, float]:
    """Return how often captions equal the true ones: `exact`, as a whole, and in each fact."""
    result = {"exact": float(np.mean([a == b for a, b in zip(written, true, strict=True)]))}
    ours, theirs = [facts(caption) for caption in written], [facts(caption) for caption in true]
    for name in ("digit", *WORDS):
        same = [a[name] == b[name] for a, b in zip(ours, theirs, strict=True)]
        result[name] = float(np.mean(same))
    return result


def baselines(
    images: HostArray, captions: Sequence[str], others: HostArray, truth: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Return what simple methods, which have seen pictures and captions, write about others.

    Parameters
    ----------
    images, captions : (N, 8, 8), N captions
        What they have seen.
    others : (M, 8, 8)
        What they write about.
    truth : M captions
        The true captions of the others, of which `label only` may know the digit.

    Returns
    -------
    dict
        Under the name of each method its M captions:

        - most frequent: the most frequent caption, for every picture;
        - label only: the most frequent caption of the picture's true digit;
        - nearest label: the same, of the digit of the nearest picture seen (Euclidean distance);
        - nearest caption: the caption of the nearest picture seen.
    """
    digits = [facts(caption)["digit"] for caption in captions]
    of_digit = {
        digit: _most_frequent([c for c, d in zip(captions, digits, strict=True) if d == digit])
        for digit in set(digits)
    }
    near = _nearest(others, images)
    return {
        "most frequent": (_most_frequent(captions),) * len(others),
        "label only": tuple(of_digit[facts(caption)["digit"]] for caption in truth),
        "nearest label": tuple(of_digit[digits[k]] for k in near),
        "nearest caption": tuple(captions[k] for k in near),
    }


def _most_frequent(captions: Sequence[str]) -> str:
    """Of equally frequent ones the first in the alphabet."""
    counts = Counter(captions)
    return min(counts, key=lambda caption: (-counts[caption], caption))


def _nearest(images: HostArray, others: HostArray) -> list[int]:
    """Return the number of the nearest of the others for each picture."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (images, others))
    distances = (b * b).sum(axis=1) - 2.0 * (a @ b.T)
    return [int(k) for k in distances.argmin(axis=1)]
