"""`Linear`, `Embedding` and `Dropout`: init, call, forward and backward, without a state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rnn_xp import init as init_
from rnn_xp.backend import (
    Array,
    Namespace,
    array_namespace,
    copy_of,
    device_of,
    dtype_name,
    is_floating,
    like_dtype,
    on_its_device,
    same_device,
    sum_of_rows,
    widened,
)
from rnn_xp.engines.around import product
from rnn_xp.layers.base import Cache, Layer, Params
from rnn_xp.layers.checks import (
    check_cache,
    check_count,
    check_flag,
    check_given,
    check_params,
    check_rate,
    check_same_kind,
    use_once,
)
from rnn_xp.random import Seed, dropout_mask, generator


@dataclass(frozen=True)
class Linear(Layer):
    """Affine map of the last axis: y = x Wᵀ + b, with `weight` (output, input) and `bias`.

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer >= 1.
    """

    input_size: int
    output_size: int
    bias: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        check_count("input_size", self.input_size)
        check_count("output_size", self.output_size)
        check_flag("bias", self.bias)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter."""
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.output_size, self.input_size)}
        return shapes | {"bias": (self.output_size,)} if self.bias else shapes

    def _drawn(self, seed: Seed) -> dict[str, Any]:
        """Draw all from U(-1/√I, 1/√I), as PyTorch."""
        rng, bound = generator(seed), self.input_size**-0.5
        return {name: init_.uniform(rng, shape, bound) for name, shape in self.shapes.items()}

    def __call__(self, params: Params, x: Array) -> Array:
        """Return y (..., output) for x (..., input)."""
        return self.forward(params, x)[0]

    @on_its_device
    def forward(self, params: Params, x: Array) -> tuple[Array, Cache]:
        """Return y and what `backward` needs; it refers to x: do not change x before."""
        xp = array_namespace(params=params.get("weight"), x=x)
        check_params(self, params)
        weight = params["weight"]
        check_same_kind("x", x, weight)
        if x.ndim < 1 or x.shape[-1] != self.input_size:
            raise ValueError(f"x must have shape (..., {self.input_size}), got {tuple(x.shape)}")
        rows = xp.reshape(x, (-1, self.input_size))
        y = product(xp, rows, weight.T, params.get("bias"))
        shape = tuple(x.shape)
        return xp.reshape(y, (*shape[:-1], self.output_size)), Cache(self, rows, shape, weight)

    @on_its_device
    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Params, Array]:
        """Return dparams and dx: the gradients of sum(y * dy)."""
        xp = check_params(self, params)
        check_cache(self, cache)
        check_given("weight", params["weight"], self.shapes["weight"], cache.like)
        check_given("dy", dy, (*cache.shape[:-1], self.output_size), cache.like)
        use_once(cache)
        rows = xp.reshape(dy, (-1, self.output_size))
        dparams = {"weight": product(xp, rows.T, cache.kept)}
        if self.bias:
            dparams["bias"] = sum_of_rows(xp, rows)
        return dparams, xp.reshape(product(xp, rows, params["weight"]), cache.shape)


@dataclass(frozen=True)
class Embedding(Layer):
    """Table of vectors: integers (...) in 0..V-1 become rows of `weight` (V, size).

    The gradient of a row is the sum of the gradients where it was taken: a scatter-add.

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer >= 1.
    """

    num_embeddings: int
    embedding_size: int

    def __post_init__(self) -> None:
        check_count("num_embeddings", self.num_embeddings)
        check_count("embedding_size", self.embedding_size)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every parameter."""
        return {"weight": (self.num_embeddings, self.embedding_size)}

    def _drawn(self, seed: Seed) -> dict[str, Any]:
        """Draw from the standard normal distribution, as PyTorch."""
        return {"weight": generator(seed).standard_normal(self.shapes["weight"])}

    @on_its_device
    def __call__(self, params: Params, x: Array) -> Array:
        """Return the vectors (..., size) of the integers x (...)."""
        return self._vectors(params, x)[0]

    @on_its_device
    def forward(self, params: Params, x: Array) -> tuple[Array, Cache]:
        """Return the vectors and what `backward` needs.

        Raises
        ------
        TypeError
            If x is not an array of integers of the parameters' library.
        ValueError
            On NumPy, if an integer is not in 0..V-1. Elsewhere that would cost a wait for the
            device, and the result is what the library's `take` makes of it.
        """
        vectors, flat = self._vectors(params, x)
        # A copy: the caller may change his before the backward run.
        flat = copy_of(array_namespace(x=flat), flat)
        return vectors, Cache(self, flat, tuple(x.shape), params["weight"])

    def _vectors(self, params: Params, x: Array) -> tuple[Array, Array]:
        """Return the vectors, and the integers as one row."""
        xp = self.check(params, x)
        weight, shape = params["weight"], tuple(x.shape)
        flat = xp.reshape(x, (-1,))
        if xp.iinfo(x.dtype).bits < 32:  # too small for PyTorch
            flat = xp.astype(flat, xp.int32)
        vectors = xp.reshape(xp.take(weight, flat, axis=0), (*shape, self.embedding_size))
        return vectors, flat

    def check(self, params: Params, x: Array) -> Namespace:
        """Raise unless `forward` can take these; return their namespace."""
        xp = array_namespace(params=params.get("weight"), x=x)
        check_params(self, params)
        weight = params["weight"]
        if is_floating(x) or not xp.isdtype(x.dtype, "integral"):
            raise TypeError(f"x must be integers, got {dtype_name(x.dtype)}")
        if not same_device(x, weight):
            raise ValueError(f"x is on the device {device_of(x)}, weight on {device_of(weight)}")
        if isinstance(x, np.ndarray) and x.size and not 0 <= x.min() <= x.max() < len(weight):
            raise ValueError(
                f"x must lie in 0..{len(weight) - 1}, got values from {x.min()} to {x.max()}"
            )
        return xp

    @on_its_device
    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Params, None]:
        """Return dparams, and None for the integers."""
        xp = check_params(self, params)
        check_cache(self, cache)
        check_given("dy", dy, (*cache.shape, self.embedding_size), cache.like)
        use_once(cache)
        rows = xp.reshape(dy, (-1, self.embedding_size))
        return {"weight": scatter_add(xp, rows, cache.kept, self.num_embeddings)}, None


def scatter_add(xp: Namespace, rows: Array, index: Array, count: int) -> Array:
    """Return (count, K): line v is the sum of those rows (N, K) whose index (N,) is v.

    16 bits are added in 32.
    """
    wide, device = widened(xp, rows), device_of(rows)
    if xp is np:
        total = _sorted_sums(wide, index, count)
    elif hasattr(wide, "index_add"):  # PyTorch
        zeros = xp.zeros((count, wide.shape[1]), dtype=wide.dtype, device=device)
        total = zeros.index_add(0, xp.astype(index, xp.int64), wide)
    elif hasattr(wide, "at"):  # JAX
        total = xp.zeros((count, wide.shape[1]), dtype=wide.dtype).at[index].add(wide)
    elif hasattr(xp.add, "at"):  # CuPy
        total = xp.zeros((count, wide.shape[1]), dtype=wide.dtype)
        xp.add.at(total, index, wide)
    else:
        numbers = xp.arange(count, dtype=index.dtype, device=device)
        total = xp.astype(numbers[:, None] == index[None, :], wide.dtype) @ wide
    return like_dtype(xp, total, rows)


def _sorted_sums(rows: Any, index: Any, count: int) -> Any:
    """Return `scatter_add` of NumPy arrays.

    Sorted, each sum is over neighbours: eight times as fast as add.at, and than a product with
    one-hot rows 1.4 times at 80 lines and six times at 1,000. Short integers sort faster, and
    `take` moves rows twice as fast as an index.
    """
    short = index.astype(np.uint16) if count <= 65536 else index
    counts = np.bincount(index, minlength=count)
    lines = np.flatnonzero(counts)
    first = (np.cumsum(counts) - counts)[lines]
    total = np.zeros((count, rows.shape[1]), dtype=rows.dtype)
    if first.size:
        order = np.argsort(short, kind="stable")
        total[lines] = np.add.reduceat(rows.take(order, axis=0), first, axis=0)
    return total


@dataclass(frozen=True)
class Dropout(Layer):
    """In training, zeroes elements with probability `rate` and scales the others by 1 / (1 - rate).

    Raises
    ------
    TypeError, ValueError
        If `rate` is not a number in 0..1.
    """

    rate: float
    takes = ("dropout_seed",)

    def __post_init__(self) -> None:
        check_rate("rate", self.rate)

    def _drawn(self, seed: Seed) -> dict[str, Any]:
        return {}

    def __call__(self, params: Params, x: Array) -> Array:
        """Return x."""
        return x

    @on_its_device
    def forward(
        self, params: Params, x: Array, *, dropout_seed: Seed | None = None
    ) -> tuple[Array, Cache]:
        """Return x with dropout, and what `backward` needs; without a seed, x as it is."""
        array_namespace(x=x)
        if not is_floating(x):
            raise TypeError(f"x must be floating-point, got {dtype_name(x.dtype)}")
        shape = tuple(x.shape)
        if dropout_seed is None or not self.rate:
            return x, Cache(self, None, shape, x)
        mask = dropout_mask(dropout_seed, self.rate, x)
        return x * mask, Cache(self, mask, shape, x)

    @on_its_device
    def backward(self, params: Params, cache: Cache, dy: Array) -> tuple[Params, Array]:
        """Return no dparams, and dx."""
        check_cache(self, cache)
        check_given("dy", dy, cache.shape, cache.like)
        use_once(cache)
        return {}, dy if cache.kept is None else dy * cache.kept
