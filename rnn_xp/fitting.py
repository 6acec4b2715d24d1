"""Training on separate examples: epochs of shuffled batches.

`training` trains on one long text; this module serves every model whose examples stand alone:
labelled sequences, windows of a series, pictures with captions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from rnn_xp import optim
from rnn_xp.backend import Array, Backend, are_finite, to_floats
from rnn_xp.batches import Batch, move
from rnn_xp.random import Seed, generator, spawn

Params = dict[str, Array]
Indices = np.ndarray[Any, np.dtype[np.int64]]

_ORDER, _DROPOUT = 0, 1  # the streams of random numbers under the seed


@dataclass(frozen=True)
class Gradients:
    """The mean loss of some examples, and its gradients."""

    backend: Backend
    """Where they are computed; as the parameters."""
    dtype: str
    """Of floating-point arrays there."""
    load: Callable[[Indices, Seed], Batch]
    """(the examples, a seed for noise) → the batch, on the host."""
    of: Callable[[Params, Batch, Seed], tuple[Array, Params]]
    """(params, the batch on the backend, a seed for dropout) → mean loss, gradients."""

    def __call__(self, params: Params, indices: Indices, seed: Seed) -> tuple[Array, Params]:
        """Return the mean loss of these examples, and its gradients."""
        with closing(self.batches([(indices, seed)])) as batches:
            return self.of(params, next(batches), seed)

    def batches(self, drawn: Iterable[tuple[Indices, Seed]]) -> Generator[Batch, None, None]:
        """Yield batches on the backend."""
        return move(self.backend, self.dtype, (self.load(*each) for each in drawn))


@dataclass(frozen=True)
class Settings:
    """How a model is fitted."""

    epochs: int = 30
    """How often every example is seen."""
    batch_size: int = 32
    learning_rate: float = 0.003
    """The peak, of Adam."""
    final_rate: float = 0.05
    """Where the cosine schedule ends, as a part of `learning_rate`."""
    clip: float = 1.0
    """The largest global norm of the gradient."""
    weight_decay: float = 0.0
    """Above 0: AdamW with this decay instead of Adam."""
    patience: int | None = None
    """Stop after so many epochs without a better validation loss; None: never."""
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """One epoch, for a line of progress or of a log."""

    epoch: int
    epochs: int
    train_loss: float
    """Mean over the epoch's batches."""
    validation_loss: float | None
    """None where nothing is held out."""
    best: bool
    learning_rate: float
    gradient_norm: float
    """Of the last batch, before clipping."""
    examples_per_second: float


class Fitted(NamedTuple):
    """What `fit` returns."""

    params: Params
    """The best ones by the validation loss; the last ones where nothing is held out."""
    outcome: str
    """`finished`, `early stop`, `stopped`, or `diverged`: a loss or parameter is not finite."""
    epoch: int
    """The epoch that `params` are from; 0 before the first one ended."""
    validation_loss: float | None


def fit(
    params: Params,
    gradients: Gradients,
    count: int,
    settings: Settings,
    *,
    validate: Callable[[Params], float] | None = None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
) -> Fitted:
    """Fit parameters to `count` examples with Adam, clipping and a cosine schedule.

    Parameters
    ----------
    params : dict of arrays
        Where to begin.
    gradients : Gradients
        Of the mean loss of some examples.
    count : int
        The number of examples; each epoch draws a new order of 0..count-1.
    settings : Settings
    validate : function, optional
        params → a loss on what is held out; the parameters with the lowest one are kept.
    on_epoch : function, optional
        Called after every epoch.
    stop : function, optional
        Asked before every batch; True ends the training.

    Raises
    ------
    ValueError
        If the loss or a parameter is not finite after the very first epoch.
    """
    batches = math.ceil(count / settings.batch_size)
    total = settings.epochs * batches
    peak = settings.learning_rate
    rate = optim.warmup_cosine(peak, total, 0, peak * settings.final_rate)
    optimizer: optim.Adam | optim.AdamW = (
        optim.AdamW(rate, weight_decay=settings.weight_decay)
        if settings.weight_decay
        else optim.Adam(rate)
    )
    state = optimizer.init(params)
    best, best_epoch, best_loss = params, 0, math.inf
    for epoch in range(1, settings.epochs + 1):
        order = generator(spawn(settings.seed, _ORDER, epoch)).permutation(count)
        start, losses = perf_counter(), list[Array]()
        drawn = [
            (
                order[k * settings.batch_size : (k + 1) * settings.batch_size],
                spawn(settings.seed, _DROPOUT, epoch, k),
            )
            for k in range(batches)
        ]
        with closing(gradients.batches(drawn)) as moved:
            for (_, seed), batch in zip(drawn, moved, strict=True):
                if stop():
                    return _fitted(best, "stopped", best_epoch, best_loss)
                loss, found = gradients.of(params, batch, seed)
                found, norm = optim.clip_by_global_norm(found, settings.clip)
                params, state = optimizer.update(found, state, params)
                losses.append(loss)
        # A GPU is not waited for before this line.
        total_loss = _total(losses, count, settings.batch_size)
        speed = count / (perf_counter() - start)
        held_out = None if validate is None else validate(params)
        finite = math.isfinite(total_loss + (held_out or 0.0)) and are_finite(params)
        better = finite and (held_out is None or held_out < best_loss)
        if better:
            best, best_epoch = params, epoch
            best_loss = math.inf if held_out is None else held_out
        on_epoch(
            Epoch(
                epoch,
                settings.epochs,
                total_loss / count,
                held_out,
                better,
                rate(epoch * batches - 1),
                float(norm),
                speed,
            )
        )
        if not finite:
            if best_epoch:
                return _fitted(best, "diverged", best_epoch, best_loss)
            raise ValueError(
                "the training diverged in its first epoch, its numbers are not finite: lower the "
                "learning rate, or look for values that are too large"
            )
        if settings.patience is not None and epoch - best_epoch >= settings.patience:
            return _fitted(best, "early stop", best_epoch, best_loss)
    return _fitted(best, "finished", best_epoch, best_loss)


def _total(losses: list[Array], count: int, batch_size: int) -> float:
    """Return the sum over all examples, from the mean of each batch."""
    sizes = [min(batch_size, count - start) for start in range(0, count, batch_size)]
    return sum(mean * size for mean, size in zip(to_floats(losses), sizes, strict=True))


def _fitted(params: Params, outcome: str, epoch: int, loss: float) -> Fitted:
    return Fitted(params, outcome, epoch, None if loss == math.inf else loss)
