"""The operators around the recurrent ones: what is supported of each, and what it computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from rnn_xp.backend import Array, Backend, dtype_name, is_floating, to_numpy

Attributes = Mapping[str, Any]


class Operator(NamedTuple):
    """What is known of an operator."""

    since: int
    """The first version of ONNX's operators that it is supported of."""
    attributes: tuple[str, ...]
    compute: Callable[..., Any]
    """(backend, attributes, *inputs) -> output, or a tuple of them; an input left out is None."""


def _integers(array: Array) -> list[int]:
    return [int(k) for k in to_numpy(array).reshape(-1)]


def _constant(b: Backend, a: Attributes) -> Array:
    (name, value), *_ = a.items()
    dtype = {"float": "float32", "int": "int64"}.get(name.removeprefix("value_").rstrip("s"))
    return b.asarray(np.asarray(value, dtype=dtype))


def _constant_of_shape(b: Backend, a: Attributes, shape: Array) -> Array:
    value = a.get("value", np.zeros(1, np.float32))
    return b.asarray(np.full(_integers(shape), value.item(), value.dtype))


def _divide(b: Backend, a: Attributes, x: Array, y: Array) -> Array:
    if not is_floating(x):
        raise ValueError(f"division of {dtype_name(x.dtype)} is not supported")
    return x / y


def _expand(b: Backend, a: Attributes, x: Array, shape: Array) -> Array:
    return b.xp.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(_integers(shape))))


def _gather(b: Backend, a: Attributes, data: Array, indices: Array) -> Array:
    xp, axis = b.xp, a.get("axis", 0) % data.ndim
    size, shape = data.shape[axis], tuple(indices.shape)
    flat = xp.reshape(indices, (-1,))
    # Elsewhere than on NumPy the check would cost a wait for the device, as in `Embedding`.
    if type(flat) is np.ndarray and flat.size and not -size <= flat.min() <= flat.max() < size:
        raise ValueError(
            f"indices must lie in {-size}..{size - 1}, got values from {flat.min()} to {flat.max()}"
        )
    # The array API does not say what `take` makes of negative indices.
    taken = xp.take(data, xp.where(flat < 0, flat + size, flat), axis=axis)
    return xp.reshape(taken, (*data.shape[:axis], *shape, *data.shape[axis + 1 :]))


def _gemm(b: Backend, a: Attributes, x: Array, y: Array, c: Array | None = None) -> Array:
    x, y = x.T if a.get("transA") else x, y.T if a.get("transB") else y
    product = a.get("alpha", 1.0) * (x @ y)
    return product if c is None else product + a.get("beta", 1.0) * c


def _range(b: Backend, a: Attributes, start: Array, limit: Array, delta: Array) -> Array:
    first, last, step = (to_numpy(v) for v in (start, limit, delta))
    return b.asarray(np.arange(first.item(), last.item(), step.item(), dtype=first.dtype))


def _reduce_mean(b: Backend, a: Attributes, x: Array, axes: Array | None = None) -> Array:
    return b.xp.mean(x, axis=_axes(a, axes), keepdims=bool(a.get("keepdims", 1)))


def _reduce_sum(b: Backend, a: Attributes, x: Array, axes: Array | None = None) -> Array:
    keepdims = bool(a.get("keepdims", 1))
    return b.xp.sum(x, axis=_axes(a, axes), keepdims=keepdims, dtype=x.dtype)


def _given(a: Attributes, name: str, array: Array | None) -> list[int] | None:
    """Return integers that are an attribute or, in later versions, an input; None if neither is."""
    return _integers(array) if array is not None else a.get(name)


def _axes(a: Attributes, axes: Array | None) -> tuple[int, ...] | None:
    """Return the axes; None for all."""
    return tuple(_given(a, "axes", axes) or ()) or None


def _reshape(b: Backend, a: Attributes, data: Array, shape: Array) -> Array:
    sizes = _integers(shape)
    if not a.get("allowzero"):
        sizes = [size or data.shape[k] for k, size in enumerate(sizes)]
    return b.xp.reshape(data, tuple(sizes))


def _slice(
    b: Backend,
    a: Attributes,
    x: Array,
    starts: Array,
    ends: Array,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Array:
    first, last = _integers(starts), _integers(ends)
    along = range(len(first)) if axes is None else _integers(axes)
    by = [1] * len(first) if steps is None else _integers(steps)
    kept = [slice(None)] * x.ndim
    for axis, start, stop, step in zip(along, first, last, by, strict=True):
        kept[axis] = slice(start, stop, step)
    return x[tuple(kept)]


def _softmax(b: Backend, a: Attributes, x: Array) -> Array:
    xp, axis = b.xp, a.get("axis", -1)
    e = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    return e / xp.sum(e, axis=axis, keepdims=True)


def _split(b: Backend, a: Attributes, x: Array, sizes: Array | None = None) -> tuple[Array, ...]:
    wanted = _given(a, "split", sizes)
    if wanted is None:
        raise ValueError("Split without the sizes of its parts is not supported")
    axis = a.get("axis", 0) % x.ndim
    ends = [0, *np.cumsum(wanted).tolist()]
    before = (slice(None),) * axis
    return tuple(x[(*before, slice(i, j), ...)] for i, j in pairwise(ends))


def _squeeze(b: Backend, a: Attributes, x: Array, axes: Array | None = None) -> Array:
    wanted = _given(a, "axes", axes)
    if wanted is None:
        wanted = [k for k, size in enumerate(x.shape) if size == 1]
    return b.xp.squeeze(x, axis=tuple(wanted))


def _transpose(b: Backend, a: Attributes, x: Array) -> Array:
    return b.xp.permute_dims(x, tuple(a.get("perm", range(x.ndim)[::-1])))


def _unsqueeze(b: Backend, a: Attributes, x: Array, axes: Array | None = None) -> Array:
    wanted = _given(a, "axes", axes)
    if wanted is None:
        raise ValueError("Unsqueeze needs axes")
    for axis in sorted(axis % (x.ndim + len(wanted)) for axis in wanted):
        x = b.xp.expand_dims(x, axis=axis)
    return x


OPERATORS = {
    "Add": Operator(7, (), lambda b, a, x, y: x + y),
    "Cast": Operator(9, ("to",), lambda b, a, x: b.xp.astype(x, b.dtype(a["to"]))),
    "Concat": Operator(4, ("axis",), lambda b, a, *x: b.xp.concat(list(x), axis=a["axis"])),
    "Constant": Operator(
        1, ("value", "value_float", "value_floats", "value_int", "value_ints"), _constant
    ),
    "ConstantOfShape": Operator(9, ("value",), _constant_of_shape),
    "Div": Operator(7, (), _divide),
    "Equal": Operator(7, (), lambda b, a, x, y: x == y),
    "Expand": Operator(8, (), _expand),
    "Gather": Operator(1, ("axis",), _gather),
    "Gemm": Operator(7, ("alpha", "beta", "transA", "transB"), _gemm),
    "Identity": Operator(1, (), lambda b, a, x: x),
    "Less": Operator(7, (), lambda b, a, x, y: x < y),
    "MatMul": Operator(1, (), lambda b, a, x, y: x @ y),
    "Range": Operator(11, (), _range),
    "ReduceMean": Operator(1, ("axes", "keepdims"), _reduce_mean),
    "ReduceSum": Operator(1, ("axes", "keepdims"), _reduce_sum),
    "Reshape": Operator(5, ("allowzero",), _reshape),
    "Shape": Operator(1, (), lambda b, a, x: b.asarray(np.asarray(x.shape))),
    "Slice": Operator(10, (), _slice),
    "Softmax": Operator(13, ("axis",), _softmax),
    "Split": Operator(2, ("axis", "split"), _split),
    "Squeeze": Operator(1, ("axes",), _squeeze),
    "Sub": Operator(7, (), lambda b, a, x, y: x - y),
    "Transpose": Operator(1, ("perm",), _transpose),
    "Unsqueeze": Operator(1, ("axes",), _unsqueeze),
    "Where": Operator(9, (), lambda b, a, condition, x, y: b.xp.where(condition, x, y)),
}
