"""`Linear`, `Embedding` and `Dropout`: init, call, forward and backward, without a state."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rnn_xp import init as init_
from rnn_xp.accelerate import product
from rnn_xp.backend import (
    Array,
    Namespace,
    array_namespace,
    copy_of,
    device_of,
    dtype_name,
    is_floating,
    on_its_device,
    operations,
    same_device,
    select,
    sum_of_rows,
)
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

Params = dict[str, Array]


@dataclass
class Cache:
    """What `forward` keeps for one `backward`."""

    layer: Any
    kept: Array
    shape: tuple[int, ...]
    like: Array
    used: bool = False


@dataclass(frozen=True)
class Linear:
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

    def init(
        self,
        seed: Seed,
        *,
        backend: str = "numpy",
        device: str | None = None,
        dtype: str = "float32",
    ) -> Params:
        """Draw all from U(-1/√I, 1/√I), as PyTorch; the same numbers on every backend."""
        chosen, rng = select(backend, device), generator(seed)
        bound = self.input_size**-0.5
        drawn = {name: init_.uniform(rng, shape, bound) for name, shape in self.shapes.items()}
        return {name: chosen.asarray(value, dtype) for name, value in drawn.items()}

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
        y = product(operations(xp), rows, weight.T, params.get("bias"))
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
        ops = operations(xp)
        dparams = {"weight": product(ops, rows.T, cache.kept)}
        if self.bias:
            dparams["bias"] = sum_of_rows(xp, rows)
        return dparams, xp.reshape(product(ops, rows, params["weight"]), cache.shape)


@dataclass(frozen=True)
class Embedding:
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

    def init(
        self,
        seed: Seed,
        *,
        backend: str = "numpy",
        device: str | None = None,
        dtype: str = "float32",
    ) -> Params:
        """Draw from the standard normal distribution, as PyTorch; the same on every backend."""
        chosen = select(backend, device)
        drawn = generator(seed).standard_normal(self.shapes["weight"])
        return {"weight": chosen.asarray(drawn, dtype)}

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
        if dtype_name(x.dtype) in ("int8", "int16", "uint8", "uint16"):  # too small for torch
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
        weight = operations(xp).scatter_add(rows, cache.kept, self.num_embeddings)
        return {"weight": weight}, None


@dataclass(frozen=True)
class Dropout:
    """In training, zeroes elements with probability `rate` and scales the others by 1 / (1 - rate).

    Raises
    ------
    TypeError, ValueError
        If `rate` is not a number in 0..1.
    """

    rate: float

    def __post_init__(self) -> None:
        check_rate("rate", self.rate)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """No parameters."""
        return {}

    def init(
        self,
        seed: Seed,
        *,
        backend: str = "numpy",
        device: str | None = None,
        dtype: str = "float32",
    ) -> Params:
        """Return no parameters."""
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
