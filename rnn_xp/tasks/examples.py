"""A model that makes one vector of each sequence: its gradients and its outputs over many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rnn_xp.backend import Array, Backend, to_numpy
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
    """Return the function that `fit` calls: the loss over a batch of examples, and its gradients.

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
    kind = dtype if targets.dtype.kind == "f" else None

    def gradients(params: Params, indices: Indices, seed: Seed) -> tuple[Array, Params]:
        batch = sequences.take(indices)
        values = batch.padded()
        if noise:
            drawn = generator(spawn(seed, len(model.layers))).standard_normal(values.shape)
            values = values + noise * drawn
        x = backend.asarray(values, dtype)
        y, _, cache = model.forward(params, x, lengths=batch.lengths, dropout_seed=seed)
        mean, dy = loss(y, backend.asarray(targets[indices], kind))
        dparams, _, _ = model.backward(params, cache, dy)
        return mean, dparams

    return gradients


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
    parts = []
    for start in range(0, len(order), batch_size):
        batch = sequences.take(order[start : start + batch_size])
        y, _ = model(prepared, backend.asarray(batch.padded(), dtype), lengths=batch.lengths)
        parts.append(to_numpy(y))
    outputs = np.concatenate(parts)
    outputs[order] = outputs.copy()
    return outputs
