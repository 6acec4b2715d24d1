"""Losses: each returns the loss and its gradient with respect to its first argument.

The loss is an array without axes, of the library, dtype and device of the logits; nothing is
copied to the host. All are stable: finite for any logits, as long as the loss itself is in the
dtype's range. float16 and bfloat16 are computed in float32, and rounded at the end.

The cross-entropies are means by default, as in PyTorch; the squared errors are sums, as in the
script that this package started from. `reduction` chooses: `mean` divides the sum by the number
of elements that count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from rnn_xp.backend import (
    Array,
    Namespace,
    array_namespace,
    device_of,
    dtype_name,
    is_floating,
    on_its_device,
    same_device,
    widened,
)
from rnn_xp.engines import around


@on_its_device
def softmax_cross_entropy(
    logits: Array, targets: Array, *, mask: Array = None, reduction: str = "mean"
) -> tuple[Array, Array]:
    """Mean of -log softmax(logits)[target] over the elements that count.

    With p = softmax(a), the gradient of -log p_k is p - e_k: PyTorch's `cross_entropy`.

    Parameters
    ----------
    logits : (..., V)
    targets : (...) integers in 0..V-1
        Only NumPy's are checked, since a look at a GPU's would wait for it: elsewhere, a target
        that counts and is out of range gives an undefined result, or the library's error.
    mask : (...) boolean, optional
        Only elements with True count. What the others are may be anything, NaN too, and their
        gradient is 0; where none counts, the loss is 0.
    reduction : str
        `mean` over the elements that count, or `sum`.

    Returns
    -------
    loss : ()
    dlogits : (..., V)

    Raises
    ------
    TypeError
        If an argument is not of its kind of dtype, or not of the library of the logits.
    ValueError
        If shapes or devices differ, or, on NumPy, a target that counts is not in 0..V-1.
    """
    xp = array_namespace(logits=logits, targets=targets, mask=mask)
    _check_floating("logits", logits)
    shape = tuple(logits.shape)
    if not shape or not shape[-1]:
        raise ValueError(f"logits must have shape (..., V) with V >= 1, got {shape}")
    classes = shape[-1]
    _check_like("targets", targets, shape[:-1], logits)
    if not xp.isdtype(targets.dtype, "integral"):
        raise TypeError(f"targets must be integers, got {dtype_name(targets.dtype)}")
    flat = xp.reshape(widened(xp, logits), (-1, classes))
    weights = _weights(xp, mask, shape[:-1], flat, reduction)
    on_gpu = around.training_on_gpu(flat)
    index = None if on_gpu else xp.arange(classes, device=device_of(logits))
    integer = xp.int64 if index is None else index.dtype
    numbers = xp.reshape(xp.astype(targets, integer, copy=False), (-1, 1))
    counts = None if mask is None else xp.reshape(mask, (-1, 1))
    if counts is not None:
        numbers = xp.where(counts, numbers, xp.zeros_like(numbers))
    on_host = isinstance(numbers, np.ndarray)
    if on_host and ((numbers < 0) | (numbers >= classes)).any():
        wrong = numbers[(numbers < 0) | (numbers >= classes)][0]
        raise ValueError(f"targets must lie in 0..{classes - 1}, got {wrong}")

    def formula(flat: Array) -> tuple[Array, Array]:
        if index is None:
            made: tuple[Array, Array] = on_gpu.cross_entropy(xp, flat, numbers, weights)
            return made
        small = on_host and _is_small(flat)
        shifted = flat if small else flat - xp.max(flat, axis=1, keepdims=True)
        # Not by `take_along_axis`, which the standard has since 2024 alone.
        chosen = None if on_host else index[None, :] == numbers
        picked = (
            shifted[np.arange(len(shifted)), numbers[:, 0]][:, None]
            if on_host
            else xp.sum(xp.where(chosen, shifted, xp.zeros_like(shifted)), axis=1, keepdims=True)
        )
        powers = xp.exp(shifted)
        if on_host:  # NumPy's reductions of short rows are slow: of 80, a product takes a sixth
            sums = powers @ np.ones((classes, 1), dtype=powers.dtype)
        else:
            sums = xp.sum(powers, axis=1, keepdims=True)
        loss = xp.sum((xp.log(sums) - picked) * weights)
        if on_host:  # the standard has no scatter; this is a third of the time on NumPy
            powers *= weights / sums
            powers[np.arange(len(powers)), numbers[:, 0]] -= weights[:, 0]
            return loss, powers
        p = powers * (weights / sums)
        return loss, p - xp.where(chosen, weights, xp.zeros_like(weights))

    loss, p = _of_what_counts(xp, formula, counts, flat)
    return _like(xp, loss, logits), _like(xp, xp.reshape(p, shape), logits)


@on_its_device
def binary_cross_entropy(
    logits: Array, targets: Array, *, mask: Array = None, reduction: str = "mean"
) -> tuple[Array, Array]:
    """Mean of -(y log σ(a) + (1 - y) log(1 - σ(a))) over the elements that count.

    Computed as max(a, 0) - a y + log(1 + exp(-|a|)); the gradient is σ(a) - y. As
    `torch.nn.functional.binary_cross_entropy_with_logits`.

    Parameters
    ----------
    logits : a, (...)
    targets : y, (...), in 0..1, of the dtype of the logits
    mask : (...) boolean, optional
    reduction : str
        As in `softmax_cross_entropy`.

    Returns
    -------
    loss : ()
    dlogits : (...)

    Raises
    ------
    TypeError, ValueError
        As in `softmax_cross_entropy`; the range of the targets is not checked.
    """

    def formula(xp: Namespace, weights: Array, a: Array, y: Array) -> tuple[Array, Array]:
        loss = xp.where(a > 0, a, xp.zeros_like(a)) - a * y + xp.log1p(xp.exp(-xp.abs(a)))
        return xp.sum(loss * weights), (sigmoid(a) - y) * weights

    return _over_elements(formula, "logits", logits, targets, mask, reduction)


@on_its_device
def squared_error(
    predictions: Array, targets: Array, *, mask: Array = None, reduction: str = "sum"
) -> tuple[Array, Array]:
    """Sum of (o - y)² / 2 over the elements that count; the gradient is o - y.

    Parameters
    ----------
    predictions : o, (...)
    targets : y, (...), of the dtype of the predictions
    mask : (...) boolean, optional
    reduction : str
        `sum` over the elements that count, or `mean`.

    Returns
    -------
    loss : ()
    dpredictions : (...)

    Raises
    ------
    TypeError, ValueError
        As in `softmax_cross_entropy`.
    """

    def formula(xp: Namespace, weights: Array, o: Array, y: Array) -> tuple[Array, Array]:
        difference = o - y
        gradient = difference * weights
        return 0.5 * xp.sum(gradient * difference), gradient

    return _over_elements(formula, "predictions", predictions, targets, mask, reduction)


@on_its_device
def sigmoid_squared_error(
    logits: Array, targets: Array, *, mask: Array = None, reduction: str = "sum"
) -> tuple[Array, Array]:
    """Sum of (o - y)² / 2 with o = σ(a); the gradient is (o - y) o (1 - o).

    Parameters
    ----------
    logits : a, (...)
    targets : y, (...), of the dtype of the logits
    mask : (...) boolean, optional
    reduction : str
        As in `squared_error`.

    Returns
    -------
    loss : ()
    dlogits : (...)

    Raises
    ------
    TypeError, ValueError
        As in `softmax_cross_entropy`.
    """

    def formula(xp: Namespace, weights: Array, a: Array, y: Array) -> tuple[Array, Array]:
        o = sigmoid(a)
        difference = o - y
        weighted = difference * weights
        return 0.5 * xp.sum(weighted * difference), weighted * o * (1.0 - o)

    return _over_elements(formula, "logits", logits, targets, mask, reduction)


@on_its_device
def quantile_loss(
    predictions: Array,
    targets: Array,
    quantiles: Sequence[float],
    *,
    mask: Array = None,
    reduction: str = "mean",
) -> tuple[Array, Array]:
    """Mean of max(q (y - o), (q - 1) (y - o)) over the elements that count and the quantiles.

    The pinball loss: the o that makes it least is the q-quantile of y (R. Koenker, G. Bassett,
    "Regression Quantiles", Econometrica 46 (1978) 33-50). The gradient is -q where o < y, 1 - q
    where o > y, and 0 where they are equal.

    Parameters
    ----------
    predictions : o, (..., Q)
        One for each quantile.
    targets : y, (...), of the dtype of the predictions
    quantiles : q, Q numbers between 0 and 1
    mask : (...) boolean, optional
        As in `softmax_cross_entropy`.
    reduction : str
        `mean` over the elements that count and the quantiles, or `sum`.

    Returns
    -------
    loss : ()
    dpredictions : (..., Q)

    Raises
    ------
    TypeError, ValueError
        As in `softmax_cross_entropy`, or if the quantiles are not Q numbers between 0 and 1.
    """
    xp = array_namespace(predictions=predictions, targets=targets, mask=mask)
    _check_floating("predictions", predictions)
    shape = tuple(predictions.shape)
    _check_quantiles(quantiles, shape)
    _check_like("targets", targets, shape[:-1], predictions)
    _check_dtype(targets, "predictions", predictions)
    o, y = widened(xp, predictions), widened(xp, targets)
    weights = _weights(xp, mask, shape[:-1], o, reduction)
    if reduction == "mean":
        weights = weights / len(quantiles)
    if mask is None:
        weights = xp.reshape(weights, ())
    else:
        weights, counts = xp.reshape(weights, (*shape[:-1], 1)), xp.expand_dims(mask, axis=-1)
        y, o = xp.where(mask, y, xp.zeros_like(y)), xp.where(counts, o, xp.zeros_like(o))
    q = xp.asarray(list(quantiles), dtype=o.dtype, device=device_of(o))
    difference = o - xp.expand_dims(y, axis=-1)
    zero = xp.zeros_like(difference)
    slope = xp.where(difference > 0, 1.0 - q, xp.where(difference < 0, -q, zero))
    gradient = slope * weights
    loss = xp.sum(gradient * difference)
    return _like(xp, loss, predictions), _like(xp, gradient, predictions)


@on_its_device
def sigmoid(a: Array) -> Array:
    """Return σ(a) = (1 + tanh(a / 2)) / 2, which cannot overflow."""
    xp = array_namespace(a=a)
    return xp.tanh(a * 0.5) * 0.5 + 0.5


def _is_small(logits: np.ndarray[Any, Any]) -> bool:
    """Tell whether the exponentials need no shift: e^±32 is far inside the range of float32."""
    return bool(logits.min(initial=0.0) > -32.0 and logits.max(initial=0.0) < 32.0)


def _over_elements(
    formula: Callable[[Namespace, Array, Array, Array], tuple[Array, Array]],
    name: str,
    values: Array,
    targets: Array,
    mask: Array,
    reduction: str,
) -> tuple[Array, Array]:
    """Check the arguments; return what (xp, what each element counts, values, targets) give."""
    xp = array_namespace(**{name: values}, targets=targets, mask=mask)
    _check_floating(name, values)
    shape = tuple(values.shape)
    _check_like("targets", targets, shape, values)
    _check_dtype(targets, name, values)
    wide = widened(xp, values)
    weights = _weights(xp, mask, shape, wide, reduction)
    weights = xp.reshape(weights, () if mask is None else shape)
    loss, gradient = _of_what_counts(
        xp, partial(formula, xp, weights), mask, wide, widened(xp, targets)
    )
    return _like(xp, loss, values), _like(xp, gradient, values)


def _of_what_counts(
    xp: Namespace, formula: Callable[..., tuple[Array, Array]], counts: Array, *arrays: Array
) -> tuple[Array, Array]:
    """Return loss and gradient of these arrays, whatever stands where `counts` is False.

    The weights are 0 there, but 0 times NaN is NaN. NumPy looks at the loss before it puts zeros
    there, which takes longer than the formula; a GPU would be waited for.
    """
    if counts is None:
        return formula(*arrays)
    if xp is np:
        with np.errstate(invalid="ignore"):
            loss, gradient = formula(*arrays)
        if np.isfinite(loss):
            return loss, gradient
    zero = xp.zeros((), dtype=arrays[0].dtype, device=device_of(arrays[0]))
    return formula(*(xp.where(counts, array, zero) for array in arrays))


def _weights(
    xp: Namespace, mask: Array, shape: tuple[int, ...], like: Array, reduction: str
) -> Array:
    """Return what each element counts as a column (N, 1), or (1, 1) where all count alike."""
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    device = device_of(like)
    if mask is None:
        value = 1.0 / max(math.prod(shape), 1) if reduction == "mean" else 1.0
        return xp.full((1, 1), value, dtype=like.dtype, device=device)
    _check_like("mask", mask, shape, like)
    if not xp.isdtype(mask.dtype, "bool"):
        raise TypeError(f"mask must be boolean, got {dtype_name(mask.dtype)}")
    weights = xp.reshape(xp.astype(mask, like.dtype), (-1, 1))
    if reduction == "sum":
        return weights
    count = xp.sum(weights)
    return weights / xp.where(count > 0, count, xp.ones_like(count))


def _like(xp: Namespace, array: Array, like: Array) -> Array:
    if xp is np:  # whose sums are numbers, not arrays
        return np.asarray(array, dtype=like.dtype)
    return xp.astype(array, like.dtype, copy=False)


def _check_floating(name: str, array: Array) -> None:
    if not is_floating(array):
        raise TypeError(f"{name} must be floating-point, got {dtype_name(array.dtype)}")


def _check_dtype(targets: Array, name: str, values: Array) -> None:
    if targets.dtype != values.dtype:
        raise TypeError(
            f"targets has dtype {dtype_name(targets.dtype)}, {name} {dtype_name(values.dtype)}"
        )


def _check_quantiles(quantiles: Sequence[float], shape: tuple[int, ...]) -> None:
    for quantile in quantiles:
        if not 0.0 < quantile < 1.0:
            raise ValueError(f"quantiles must lie between 0 and 1, got {quantile}")
    if not len(quantiles) or not shape or shape[-1] != len(quantiles):
        raise ValueError(
            f"predictions must have one value for each of the {len(quantiles)} quantiles in the "
            f"last axis, got the shape {shape}"
        )


def _check_like(name: str, array: Array, shape: tuple[int, ...], like: Array) -> None:
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(array.shape)}")
    if not same_device(array, like):
        raise ValueError(f"{name} is on the device {device_of(array)}, not {device_of(like)}")
