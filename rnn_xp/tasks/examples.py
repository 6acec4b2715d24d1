"""A model that makes one vector of each sequence: its gradients and its outputs over many."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np

from rnn_xp.backend import Array, Backend, to_numpy
from rnn_xp.batches import Batch, move
from rnn_xp.fitting import Gradients, Indices, Params
from rnn_xp.models import Chain
from rnn_xp.random import Seed, generator, spawn
from rnn_xp.sequences import Sequences

HostArray = np.ndarray[Any, Any]
Loss = Callable[[Array, Array], tuple[Array, Array]]
"""(outputs, targets) → mean loss, gradient with respect to the outputs."""


def gradients_of(
    model: Chain,
    backend: Backend,
    dtype: str,
    sequences: Sequences,
    targets: HostArray,
    loss: Loss,
    *,
    noise: float = 0.0,
) -> Gradients:
    """Return what `fit` takes: the loss over a batch of examples, and its gradients.

    Parameters
    ----------
    model : Chain
        From sequences (T, B, C) to vectors (B, K), such as `sequence_model`.
    backend, dtype
        Where the batches go; as the parameters.
    sequences : Sequences
        N of them.
    targets : (N, ...)
        Floating-point ones are cast to `dtype`.
    loss : function
        (outputs (B, K), targets (B, ...)) → mean loss, gradient (B, K).
    noise : float
        Standard deviation of Gaussian noise that every batch gets on its inputs, each time anew: a
        penalty on steep outputs (C. M. Bishop, "Training with noise is equivalent to Tikhonov
        regularization", Neural Computation 7 (1995) 108-116).
    """

    def load(indices: Indices, seed: Seed) -> Batch:
        batch = sequences.take(indices)
        values = batch.padded()
        if noise:
            drawn = generator(spawn(seed, len(model.layers))).standard_normal(values.shape)
            values = values + noise * drawn
        return Batch((values, targets[indices]), batch.lengths)

    def of(params: Params, batch: Batch, seed: Seed) -> tuple[Array, Params]:
        x, wanted = batch.arrays
        y, _, cache = model.forward(params, x, lengths=batch.lengths, dropout_seed=seed)
        mean, dy = loss(y, wanted)
        dparams, _, _ = model.backward(params, cache, dy)
        return mean, dparams

    return Gradients(backend, dtype, load, of)


def outputs_of(
    model: Chain,
    params: Params,
    backend: Backend,
    dtype: str,
    sequences: Sequences,
    *,
    batch_size: int = 256,
) -> HostArray:
    """Return the model's output (N, K) for every sequence, on the host.

    Sequences of like length run together: little is spent on padding.
    """
    prepared = model.prepare(params)
    order = np.argsort(sequences.lengths, kind="stable")

    def load(start: int) -> Batch:
        batch = sequences.take(order[start : start + batch_size])
        return Batch((batch.padded(),), batch.lengths)

    parts = []
    with closing(move(backend, dtype, map(load, range(0, len(order), batch_size)))) as batches:
        for batch in batches:
            y, _ = model(prepared, *batch.arrays, lengths=batch.lengths)
            parts.append(to_numpy(y))
    outputs = np.concatenate(parts)
    outputs[order] = outputs.copy()
    return outputs
