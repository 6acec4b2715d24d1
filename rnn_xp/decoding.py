"""Writing captions with a captioner: greedy and beam search."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rnn_xp.backend import Array, Backend, array_namespace, on_its_device, to_numpy
from rnn_xp.captioner import END, Captioner, PreparedCaptioner
from rnn_xp.layers.checks import check_count
from rnn_xp.models import State

HostArray = np.ndarray[Any, Any]


class Caption(NamedTuple):
    """A caption, and what the model thinks of it."""

    words: tuple[int, ...]
    """The words' numbers, without `END`."""
    log_probability: float
    """Of the words and the end after them, in nats."""


def greedy(
    model: Captioner, params: dict[str, Array], backend: Backend, images: Array, max_length: int
) -> list[Caption]:
    """Write one caption a picture, the most likely word at each step.

    Parameters
    ----------
    model, params, backend
        As from a checkpoint.
    images : (B, P), of the parameters' library and dtype
    max_length : int
        The most words of a caption. One that reaches it ends there; what the model gives to this
        end counts, so that captions of every length compare.

    Raises
    ------
    ValueError
        If `max_length` is less than 1, or the shape of the images is wrong.
    """
    check_count("max_length", max_length)
    return _search(model, model.prepare(params), backend, images, 1, max_length)


def beam_search(
    model: Captioner,
    params: dict[str, Array],
    backend: Backend,
    images: Array,
    beam: int,
    max_length: int,
) -> list[Caption]:
    """Write one caption a picture, the likeliest of those that a beam finds.

    At each step the `beam` likeliest beginnings go on, by the sum of their words' log-probabilities
    (nothing is divided by the length); of equal ones the earlier, then that with the word of lower
    number. A beam can lose the beginning that greedy search would follow, and end worse: the
    greedy caption is returned where it is not beaten, so that **the log-probability is never below
    the one of `greedy`**. Every beginning of every picture runs in one batch.

    Parameters
    ----------
    model, params, backend, images, max_length
        As in `greedy`.
    beam : int
        The beginnings that go on; 1 is greedy search. With as many as there are captions up to
        `max_length`, the result is the likeliest caption of all.

    Raises
    ------
    ValueError
        If `beam` or `max_length` is less than 1, or the shape of the images is wrong.
    """
    check_count("beam", beam)
    check_count("max_length", max_length)
    prepared = model.prepare(params)
    least = _search(model, prepared, backend, images, 1, max_length)
    found = _search(model, prepared, backend, images, beam, max_length)
    return [
        wide if wide.log_probability > narrow.log_probability else narrow
        for wide, narrow in zip(found, least, strict=True)
    ]


def _search(
    model: Captioner,
    prepared: PreparedCaptioner,
    backend: Backend,
    images: Array,
    beam: int,
    max_length: int,
) -> list[Caption]:
    """Plain beam search; see `beam_search`.

    A caption that ended stays in the beam, followed by `END` at no cost, and competes with the
    others. Their log-probabilities can only fall: once the first place has ended, it has won.
    """
    batch, vocabulary = images.shape[0], model.vocabulary_size
    rows = np.arange(batch)[:, None]
    state = _take(backend, model.start(prepared, images), np.repeat(rows, beam))
    scores = np.full((batch, beam), -np.inf)
    scores[:, 0] = 0.0  # all begin alike: one of them is enough
    word = np.full((batch, beam), vocabulary)
    words = np.empty((batch, beam, 0), dtype=np.int64)
    for length in range(max_length + 1):
        logits, state = model.step(prepared, backend.asarray(word.reshape(-1)), state)
        gains = _log_softmax(to_numpy(logits)).reshape(batch, beam, vocabulary)
        ended = word == END
        gains[ended, END] = 0.0
        others = ended[:, :, None] | (length == max_length)
        gains[:, :, END + 1 :] = np.where(others, -np.inf, gains[:, :, END + 1 :])
        candidates = (scores[:, :, None] + gains).reshape(batch, -1)
        chosen = np.argsort(-candidates, axis=1, kind="stable")[:, :beam]
        scores = np.take_along_axis(candidates, chosen, axis=1)
        parent, word = np.divmod(chosen, vocabulary)
        words = np.concatenate([words[rows, parent], word[:, :, None]], axis=2)
        if (word[:, 0] == END).all():
            break
        state = _take(backend, state, (rows * beam + parent).reshape(-1))
    first = [line[: line.index(END)] for line in words[:, 0].tolist()]
    return [Caption(tuple(w), float(s)) for w, s in zip(first, scores[:, 0], strict=True)]


def _take(backend: Backend, state: State, rows: HostArray) -> State:
    """Return the state of these rows of the batch, in this order."""
    index = backend.asarray(rows)

    @on_its_device
    def take(part: Array) -> Array:
        return array_namespace(part=part).take(part, index, axis=1)

    return {
        name: tuple(take(p) for p in value) if isinstance(value, tuple) else take(value)
        for name, value in state.items()
    }


def _log_softmax(logits: HostArray) -> HostArray:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    result: HostArray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return result
