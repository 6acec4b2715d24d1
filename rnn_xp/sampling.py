"""Writing text with a character model, one character at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rnn_xp.backend import Array, Backend, to_numpy
from rnn_xp.layers.checks import check_count
from rnn_xp.models import Chain
from rnn_xp.random import Seed, generator
from rnn_xp.text import Codes, Vocabulary


def sample(
    model: Chain,
    params: dict[str, Array],
    vocabulary: Vocabulary,
    backend: Backend,
    prompt: Codes,
    length: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: Seed = 0,
) -> Iterator[str]:
    """Yield the text of `length` characters, each drawn after the model has read all before it.

    A model of bytes draws `length` bytes, and yields "" until a character's last byte is there.

    Parameters
    ----------
    model, params, vocabulary, backend
        As from a checkpoint.
    prompt : integers (N,), N >= 1
        What the model reads first.
    length : int
        Number of characters, or of bytes.
    temperature : float
        Divides the logits: below 1 bolder, above 1 freer; 0 takes the most likely character.
    top_k : int, optional
        Draw among the k most likely characters only.
    seed : int

    Raises
    ------
    TypeError, ValueError
        If `temperature` is not at least 0, or `top_k` no integer of at least 1.
    """
    if not temperature >= 0.0:
        raise ValueError(f"temperature must be a number >= 0, got {temperature}")
    if top_k is not None:
        check_count("top_k", top_k)

    def codes() -> Iterator[int]:
        prepared = model.prepare(params)
        rng = generator(seed)
        new, state = prompt, None
        for _ in range(length):
            logits, state = model(prepared, backend.asarray(new[:, None]), state)
            last = to_numpy(logits[-1, 0, :]).astype(np.float64)
            code = _draw(last, temperature, top_k, rng)
            yield code
            new = np.asarray([code], dtype=np.int64)

    return vocabulary.decode(codes())


def _draw(
    logits: np.ndarray[tuple[int], np.dtype[np.float64]],
    temperature: float,
    top_k: int | None,
    rng: np.random.Generator,
) -> int:
    if temperature == 0.0:
        return int(logits.argmax())
    if top_k is not None and top_k < logits.size:
        least = np.partition(logits, -top_k)[-top_k]
        logits = np.where(logits < least, -np.inf, logits)
    scaled = (logits - logits.max()) / temperature
    weights = np.exp(scaled)
    return int(rng.choice(logits.size, p=weights / weights.sum()))
