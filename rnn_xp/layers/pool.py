"""Pooling: one vector for each sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnn_xp.backend import (
    Array,
    array_namespace,
    device_of,
    dtype_name,
    is_floating,
    like_of,
    on_its_device,
    sum_of_rows,
)
from rnn_xp.layers.base import Cache, Layer, Params
from rnn_xp.layers.checks import (
    check_cache,
    check_flag,
    check_given,
    check_is_given,
    check_lengths,
    use_once,
)
from rnn_xp.random import Seed

KINDS = ("mean", "last")


@dataclass(frozen=True)
class Pool(Layer):
    """One vector for each sequence: Σ_t w_t x_t over its valid steps.

    Parameters
    ----------
    kind : str
        `mean`: w_t = 1 / length. `last`: w_t = 1 at the last valid step, else 0.
    bidirectional : bool
        The second half of the features comes from the last step to the first: its last step is
        step 0. No difference to `mean`.

    Raises
    ------
    TypeError, ValueError
        If an argument is not one of these.
    """

    kind: str = "mean"
    bidirectional: bool = False
    takes = ("lengths",)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        check_flag("bidirectional", self.bidirectional)

    def _drawn(self, seed: Seed) -> dict[str, Any]:
        return {}

    def __call__(
        self, params: Params, x: Array, *, lengths: Sequence[int] | Array | None = None
    ) -> Array:
        """Return the pooled vectors (B, F) of x (T, B, F)."""
        return self.forward(params, x, lengths=lengths)[0]

    @on_its_device
    def forward(
        self, params: Params, x: Array, *, lengths: Sequence[int] | Array | None = None
    ) -> tuple[Array, Cache]:
        """Return the pooled vectors and what `backward` needs.

        Parameters
        ----------
        params : {}
        x : (T, B, F)
        lengths : (B,) integers in 1..T; None: all are T

        Returns
        -------
        y : (B, F)
        cache

        Raises
        ------
        TypeError, ValueError
            If x has no three axes, or a length is no integer in 1..T.
        """
        check_is_given("x", x)
        xp = array_namespace(x=x)
        if not is_floating(x):
            raise TypeError(f"x must be floating-point, got {dtype_name(x.dtype)}")
        if x.ndim != 3 or 0 in x.shape:
            raise ValueError(f"x must have shape (T, B, F), none of them 0, got {tuple(x.shape)}")
        weights = self._weights(x, lengths)
        kept = xp.where(weights != 0, x, xp.zeros((), dtype=x.dtype, device=device_of(x)))
        return sum_of_rows(xp, kept * weights), Cache(self, weights, tuple(x.shape), x[:1, :1, :1])

    @on_its_device
    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Params, Array]:
        """Return no gradients of parameters, and dx (T, B, F): the gradient of sum(y * dy)."""
        check_cache(self, cache)
        check_given("dy", dy, cache.shape[1:], cache.like)
        use_once(cache)
        return {}, dy[None, :, :] * cache.kept

    def _weights(self, x: Array, lengths: Sequence[int] | Array | None) -> Array:
        """Return w, (T, B, 1), or (T, B, F) where it depends on the direction."""
        steps, batch, features = x.shape
        host = check_lengths(lengths, steps, batch)[None, :, None]
        xp = array_namespace(lengths=host)  # NumPy, unless JAX traces the lengths
        time = np.arange(steps)[:, None, None]
        if self.kind == "mean":
            weights = xp.where(time < host, 1.0 / host, 0.0)
        elif self.bidirectional:
            forward = np.arange(features)[None, None, :] < features // 2
            weights = xp.where(xp.where(forward, time == host - 1, time == 0), 1.0, 0.0)
        else:
            weights = xp.where(time == host - 1, 1.0, 0.0)
        return like_of(weights, x)
