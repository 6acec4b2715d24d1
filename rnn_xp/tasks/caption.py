"""Captions of pictures: from pictures and texts to a measured captioner."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from rnn_xp.backend import Array, Backend, dtype_name, to_floats
from rnn_xp.batches import Batch, move
from rnn_xp.captioner import END, Captioner
from rnn_xp.datasets import load_digits
from rnn_xp.decoding import beam_search, greedy
from rnn_xp.files import read_npz
from rnn_xp.fitting import Gradients, Indices, Params
from rnn_xp.losses import softmax_cross_entropy
from rnn_xp.random import Seed
from rnn_xp.scaling import mean_and_deviation
from rnn_xp.tasks.digit_captions import compose

HostArray = np.ndarray[Any, Any]

HELD_OUT = 0.2
"""The part of the pictures, their end, that no model is trained on."""
_WORD = re.compile(r"[^\s,.;:!?]+|[,.;:!?]")


def tidy(caption: str) -> str:
    """Return a caption with one space between words and none before a punctuation mark."""
    return _joined(_WORD.findall(caption))


def _joined(words: Sequence[str]) -> str:
    return re.sub(r" ([,.;:!?])", r"\1", " ".join(words))


class CaptionError(ValueError):
    """Pictures or captions cannot be used: one line with the file and the reason."""


@dataclass(frozen=True)
class Pictures:
    """Pictures of one size, and their captions.

    Attributes
    ----------
    images : (N, ...)
        Numbers, finite; N >= 1.
    captions : tuple of str, or None
        The caption of each picture; None where they are not known.

    Raises
    ------
    CaptionError
        If there is no picture, a number is not finite, a caption has no word, or the captions are
        not as many.
    """

    images: HostArray
    captions: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.images.dtype.kind not in "fiub":
            raise CaptionError(f"images must be numbers, got {self.images.dtype}")
        if self.images.ndim < 2 or not self.images.size:
            raise CaptionError(f"images must have shape (N, ...), got {self.images.shape}")
        finite = np.isfinite(self.images.reshape(len(self), -1)).all(axis=1)
        if not finite.all():
            raise CaptionError(f"image {int(finite.argmin())} has a number that is not finite")
        if self.captions is None:
            return
        if len(self.captions) != len(self):
            raise CaptionError(f"{len(self)} images have {len(self.captions)} captions")
        for k, caption in enumerate(self.captions):
            if not _WORD.search(caption):
                raise CaptionError(f"caption {k} is empty")

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: Sequence[int] | HostArray) -> Pictures:
        """Return some of the pictures, in the order of `indices`."""
        captions = self.captions
        return Pictures(
            self.images[np.asarray(indices)],
            None if captions is None else tuple(captions[k] for k in indices),
        )


def load_digit_pictures() -> Pictures:
    """Return the 8x8 digits with the captions of `digit_captions`, (1797, 8, 8)."""
    images, labels = load_digits()
    return Pictures(images, compose(images, labels))


def read_pictures(path: str | os.PathLike[str]) -> Pictures:
    """Read pictures, and captions where there are any, from an `.npz` file.

    Its arrays are `images` (N, ...), numbers, and `captions` (N,), strings (`np.array([...])` of
    Python strings), which become as `tidy` writes them. Nothing in it is unpickled.

    Raises
    ------
    CaptionError
        If it is no such file, or `Pictures` cannot hold what is in it.
    OSError
        If it cannot be read.
    """
    found = read_npz(path, CaptionError)
    if "images" not in found:
        raise CaptionError(f"{path} has no array 'images': it holds {', '.join(found) or 'none'}")
    captions = found.get("captions")
    if captions is not None and (captions.ndim != 1 or captions.dtype.kind != "U"):
        raise CaptionError(
            f"{path}: captions must be strings (N,), got {captions.shape}, {captions.dtype}"
        )
    try:
        return Pictures(
            found["images"], None if captions is None else tuple(map(tidy, captions.tolist()))
        )
    except CaptionError as error:
        raise CaptionError(f"{path}: {error}") from None


def split(pictures: Pictures, part: float = HELD_OUT) -> tuple[Pictures, Pictures]:
    """Cut pictures in two: the last `part` is held out; neither side is empty.

    Raises
    ------
    CaptionError
        If there are fewer than two.
    """
    count = len(pictures)
    if count < 2:
        raise CaptionError("not enough pictures: training needs at least two")
    first = min(max(count - round(count * part), 1), count - 1)
    return pictures.take(range(first)), pictures.take(range(first, count))


class Encoded(NamedTuple):
    """Captions as numbers, padded to the longest: T is its words and the end."""

    words: HostArray
    """(T, B): what the model reads."""
    targets: HostArray
    """(T, B): the word that follows each, `END` at last."""
    lengths: HostArray
    """(B,)"""

    @property
    def mask(self) -> HostArray:
        """(T, B): True up to the end of each caption."""
        mask: HostArray = np.arange(len(self.words))[:, None] < self.lengths[None, :]
        return mask


@dataclass(frozen=True)
class Reader:
    """How pictures and captions become numbers: what a captioner's use needs beside its parameters.

    A caption is cut into words and punctuation marks; spaces are not kept.

    Attributes
    ----------
    words : tuple of str
        Word k + 1 of the model; `END` is 0.
    shape : tuple of int
        Of a picture.
    mean, deviation : float
        Of the training pictures' numbers; pictures are standardised by them.
    longest : int
        The words of the longest caption.
    """

    words: tuple[str, ...]
    shape: tuple[int, ...]
    mean: float
    deviation: float
    longest: int

    @classmethod
    def of(cls, pictures: Pictures, captions: Sequence[str]) -> Reader:
        """Learn the scale from training pictures, and the words from captions."""
        cut = [_WORD.findall(caption) for caption in captions]
        mean, deviation = mean_and_deviation(pictures.images, axis=None)
        return cls(
            tuple(sorted({word for caption in cut for word in caption})),
            pictures.images.shape[1:],
            float(mean),
            float(deviation) or 1.0,
            max(map(len, cut)),
        )

    @classmethod
    def restore(cls, values: Mapping[str, Any]) -> Reader:
        """Make a reader from what `describe` returned."""
        return cls(
            tuple(values["words"]),
            tuple(values["shape"]),
            values["mean"],
            values["deviation"],
            values["longest"],
        )

    def describe(self) -> dict[str, Any]:
        """Return the reader as plain values."""
        return asdict(self)

    def pixels(self, images: HostArray) -> HostArray:
        """Return pictures as standardised rows (N, P), float64.

        Raises
        ------
        CaptionError
            If they are of another shape than those that the reader learnt from.
        """
        if images.shape[1:] != self.shape:
            raise CaptionError(
                f"the images have shape {images.shape[1:]}, the model reads {self.shape}"
            )
        rows = images.reshape(len(images), -1).astype(np.float64)
        result: HostArray = (rows - self.mean) / self.deviation
        return result

    def encode(self, captions: Sequence[str]) -> Encoded:
        """Return captions as numbers.

        Raises
        ------
        CaptionError
            If a caption has a word that the reader does not know.
        """
        numbers = {word: k for k, word in enumerate(self.words, start=1)}
        start = len(self.words) + 1
        rows = []
        for k, caption in enumerate(captions):
            cut = _WORD.findall(caption)
            unknown = [word for word in cut if word not in numbers]
            if unknown:
                raise CaptionError(f"caption {k}: the model has never seen the word {unknown[0]!r}")
            rows.append([numbers[word] for word in cut])
        lengths = np.asarray([len(row) + 1 for row in rows])
        targets = np.full((lengths.max(), len(rows)), END)
        for k, row in enumerate(rows):
            targets[: len(row), k] = row
        words = np.concatenate([np.full((1, len(rows)), start), targets[:-1]])
        return Encoded(words, targets, lengths)

    def decode(self, words: Sequence[int]) -> str:
        """Return words as a caption, as `tidy` writes it."""
        return _joined([self.words[k - 1] for k in words])


def gradients_of(
    model: Captioner, backend: Backend, dtype: str, reader: Reader, pictures: Pictures
) -> Gradients:
    """Return what `fit` takes: the mean loss of a word, and its gradients."""
    pixels = reader.pixels(pictures.images)
    captions = pictures.captions or ()

    def load(indices: Indices, _: Seed) -> Batch:
        return _batch(pixels[indices], reader.encode([captions[k] for k in indices]))

    def of(params: Params, batch: Batch, seed: Seed) -> tuple[Array, Params]:
        images, words, targets, mask = batch.arrays
        logits, cache = model.forward(
            params, images, words, lengths=batch.lengths, dropout_seed=seed
        )
        mean, dlogits = softmax_cross_entropy(logits, targets, mask=mask)
        return mean, model.backward(params, cache, dlogits)[0]

    return Gradients(backend, dtype, load, of)


def _batch(pixels: HostArray, captions: Encoded) -> Batch:
    """Return pictures, what the model reads, what follows, and where there is something."""
    arrays = pixels, captions.words, captions.targets, captions.mask
    return Batch(arrays, captions.lengths)


def loss_of(
    model: Captioner, params: Params, backend: Backend, reader: Reader, pictures: Pictures
) -> float:
    """Return the mean loss of a word, in nats, the end of a caption among the words."""
    pixels, captions = reader.pixels(pictures.images), pictures.captions or ()
    parts = [(pixels[part], reader.encode(captions[part])) for part in _parts(len(pixels))]
    sums, loaded = [], (_batch(*part) for part in parts)
    with closing(move(backend, _dtype(params), loaded)) as batches:
        for batch in batches:
            images, words, targets, mask = batch.arrays
            logits, _ = model.forward(params, images, words, lengths=batch.lengths)
            loss, _ = softmax_cross_entropy(logits, targets, mask=mask, reduction="sum")
            sums.append(loss)
    return sum(to_floats(sums)) / sum(int(encoded.lengths.sum()) for _, encoded in parts)


class Written(NamedTuple):
    """A caption that a model wrote."""

    caption: str
    log_probability: float


def write_captions(
    model: Captioner,
    params: Params,
    backend: Backend,
    reader: Reader,
    images: HostArray,
    *,
    beam: int = 1,
    max_length: int | None = None,
) -> list[Written]:
    """Write a caption for each picture (N, ...).

    Parameters
    ----------
    model, params, backend
        As from a checkpoint.
    reader : Reader
    images : (N, ...)
    beam : int
        Above 1: beam search; see `rnn_xp.decoding`.
    max_length : int, optional
        The most words and punctuation marks; None: as many as the longest caption had that the
        reader learnt from.

    Raises
    ------
    CaptionError
        If the pictures are of another shape than the model's, or `Pictures` refuses them.
    ValueError
        If `beam` or `max_length` is less than 1.
    """
    longest = reader.longest if max_length is None else max_length
    pixels = reader.pixels(Pictures(images).images)
    written = []
    loaded = (Batch((pixels[part],)) for part in _parts(len(pixels)))
    with closing(move(backend, _dtype(params), loaded)) as batches:
        for batch in batches:
            (rows,) = batch.arrays
            found = (
                greedy(model, params, backend, rows, longest)
                if beam == 1
                else beam_search(model, params, backend, rows, beam, longest)
            )
            written += [Written(reader.decode(words), score) for words, score in found]
    return written


def _parts(count: int, size: int = 256) -> Iterator[slice]:
    """Yield slices that cut so many pictures into batches."""
    return (slice(start, start + size) for start in range(0, count, size))


def _dtype(params: Params) -> str:
    return dtype_name(next(iter(params.values())).dtype)
