"""The checks that the layers share: each error names the argument, what was expected, what came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from rnn_xp.backend import (
    Array,
    Namespace,
    array_namespace,
    device_of,
    dtype_name,
    is_floating,
    is_traced,
    known_namespace,
    same_device,
    to_numpy,
)
from rnn_xp.cells.base import Cell


class HasSteps(Protocol):
    """A layer that reads steps."""

    @property
    def input_size(self) -> int:
        """I."""


class HasShapes(Protocol):
    """A layer: it knows the shapes of its parameters."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every parameter."""


def check_count(name: str, value: object, least: int = 1) -> None:
    """Raise unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer >= {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value}")


def check_flag(name: str, value: object) -> None:
    """Raise unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_rate(name: str, value: object) -> None:
    """Raise unless `value` is a probability."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number in 0..1, got {value!r}")
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be a number in 0..1, got {value}")


def check_params(layer: HasShapes, params: Any) -> Namespace:
    """Raise unless `params` are the layer's parameters; return their namespace."""
    shapes = layer.shapes
    at_once = _fitting(shapes, params)
    if at_once is not None:
        return at_once
    if not isinstance(params, Mapping):
        raise TypeError(
            f"params must be a dict of arrays, as from init, got {type(params).__name__}"
        )
    if params.keys() != shapes.keys():
        missing = [name for name in shapes if name not in params]
        extra = [name for name in params if name not in shapes]
        found = [
            f"{' and '.join(w)} {what}"
            for w, what in ((missing, "missing"), (extra, "not expected"))
            if w
        ]
        raise ValueError(f"params do not fit {layer}: {'; '.join(found)}")
    for name, array in params.items():
        check_is_given(name, array)
    xp = array_namespace(**params)
    like = next(iter(params.values()))
    if not is_floating(like):
        raise TypeError(f"params must be floating-point, got {dtype_name(like.dtype)}")
    if not getattr(like.dtype, "isnative", True):
        raise TypeError(f"params must be in this machine's byte order, got {like.dtype.str}")
    for name, shape in shapes.items():
        check_array(name, params[name], shape, like)
    return xp


def _fitting(shapes: Mapping[str, tuple[int, ...]], params: Any) -> Namespace | None:
    """Return the namespace at once if all is plainly well: a small layer's step is that short."""
    if type(params) is not dict or not params or len(params) != len(shapes):
        return None
    like: Array = next(iter(params.values()))
    xp = known_namespace(like)
    if xp is None or not is_floating(like):
        return None
    kind, dtype, device = type(like), like.dtype, device_of(like)
    if not getattr(dtype, "isnative", True):
        return None
    for name, shape in shapes.items():
        array: Array = params.get(name)
        if type(array) is not kind or array.shape != shape:
            return None
        if array.dtype is not dtype and array.dtype != dtype:
            return None
        if xp is not np and device_of(array) != device:
            return None
    return xp


def check_is_given(name: str, array: Array) -> None:
    """Raise if `array` is None."""
    if array is None:
        raise TypeError(f"{name} must be an array, got None")


def check_array(name: str, array: Array, shape: tuple[int, ...], like: Array) -> None:
    """Raise unless `array` has this shape, and the dtype and device of `like`."""
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(array.shape)}")
    check_same_kind(name, array, like)


def check_same_kind(name: str, array: Array, like: Array) -> None:
    """Raise unless `array` has the dtype and device of `like`, a parameter."""
    if array.dtype != like.dtype:
        found, expected = dtype_name(array.dtype), dtype_name(like.dtype)
        if found == expected:
            found += " in another byte order"
        raise TypeError(
            f"{name} has dtype {found}, the parameters have {expected}: cast one of them"
        )
    if not same_device(array, like):
        raise ValueError(
            f"{name} is on the device {device_of(array)}, the parameters on {device_of(like)}"
        )


def on_host(lengths: Sequence[int] | Array | None) -> Sequence[int] | Array | None:
    """Return lengths on the host, unless JAX traces them: a GPU is waited for once, not often."""
    return lengths if lengths is None or is_traced(lengths) else to_numpy(lengths)


def check_steps(layer: HasSteps, x: Array, like: Array) -> None:
    """Raise unless x is (T, B, I) or (T, I), and of the library, dtype and device of `like`."""
    if type(x) is type(like) and x.dtype == like.dtype and device_of(x) == device_of(like):
        shape = x.shape
        if len(shape) == 3 and shape[2] == layer.input_size and 0 not in shape:
            return  # all is well, at once
    check_is_given("x", x)
    array_namespace(params=like, x=x)
    size = layer.input_size
    if x.ndim not in (2, 3):
        raise ValueError(
            f"x must have shape (T, B, {size}), or (T, {size}) without a batch, got "
            f"{tuple(x.shape)}"
        )
    check_same_kind("x", x, like)
    if x.shape[-1] != size:
        raise ValueError(
            f"x has {x.shape[-1]} features in its last axis, but this {type(layer).__name__} has "
            f"input_size={size}"
        )
    if 0 in x.shape:
        raise ValueError(f"x must have at least one step and one sequence, got {tuple(x.shape)}")


def check_state(
    cell: Cell, name: str, state: Any, outer: tuple[int, ...], like: Array
) -> Sequence[Array | None]:
    """Raise unless the parts of a state, or of its gradient, are (*outer, size); return them.

    None is zeros; of a gradient, `dstate`, also in the place of a part.
    """
    sizes = cell.state_sizes
    if state is None:
        return [None] * len(sizes)
    if len(sizes) == 1:
        state = state if isinstance(state, tuple) and len(state) == 1 else (state,)
    elif not isinstance(state, (tuple, list)) or len(state) != len(sizes):
        what = "a pair" if len(sizes) == 2 else "a tuple"
        raise ValueError(
            f"{name} must be {what} ({', '.join(cell.state)}), got {type(state).__name__}"
        )
    for part, size, of in zip(state, sizes, cell.state, strict=True):
        if part is not None or name == "state":
            full = of if name == "state" else f"d{of} in dstate"
            check_given(full, part, (*outer, size), like)
    return list(state)


def check_lengths(lengths: Sequence[int] | Array | None, steps: int, batch: int) -> Array:
    """Raise unless `lengths` are `batch` integers in 1..`steps`; return them on the host.

    None stands for `steps` everywhere. Lengths that JAX traces are returned as they are: nobody
    knows their values, so that one above `steps` counts as `steps`, and one below 1 as 0.
    """
    if lengths is None:
        return np.full(batch, steps)
    traced = is_traced(lengths)
    host: Any = lengths if traced else np.asarray(to_numpy(lengths))
    if host.shape != (batch,):
        raise ValueError(f"lengths must have shape ({batch},), got {host.shape}")
    if host.dtype.kind not in "iu":
        raise TypeError(f"lengths must be integers, got {host.dtype}")
    if traced:
        return host
    wrong = host[(host < 1) | (host > steps)]
    if wrong.size:
        raise ValueError(f"lengths must lie in 1..{steps} (T), got {int(wrong[0])}")
    return host


def check_given(name: str, array: Array, shape: tuple[int, ...], like: Array) -> None:
    """Raise unless `array` is of the library of `like`, and passes `check_array`."""
    same = type(array) is type(like) and array.shape == shape and array.dtype == like.dtype
    if same and device_of(array) == device_of(like):  # all is well, at once
        return
    check_is_given(name, array)
    array_namespace(params=like, **{name: array})
    check_array(name, array, shape, like)


def check_cache(layer: object, cache: Any) -> None:
    """Raise unless `cache` is a fresh one of this layer."""
    made_by = getattr(cache, "layer", None)
    if made_by is not layer and made_by != layer:
        raise ValueError(f"cache is not from the forward call of {layer}")
    _check_fresh(cache)


def use_once(cache: Any) -> None:
    """Raise if `cache` was used; mark it as used, now that all arguments are known to be right."""
    _check_fresh(cache)
    cache.used = True


def _check_fresh(cache: Any) -> None:
    if cache.used:
        raise ValueError("cache was used by a backward call before: run forward again")
