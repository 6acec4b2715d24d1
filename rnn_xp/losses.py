"""Losses: each returns the loss and its gradient with respect to its first argument.

The loss is an array without axes, of the library, dtype and device of the logits. All are finite
for any finite logits.
"""

from __future__ import annotations

import numpy as np

from rnn_xp.backend import (
    Array,
    Namespace,
    array_namespace,
    device_of,
    dtype_name,
    is_floating,
    operations,
)


def softmax_cross_entropy(
    logits: Array, targets: Array, *, mask: Array = None
) -> tuple[Array, Array]:
    """Mean of -log softmax(logits)[target] over the elements that count.

    With p = softmax(a), the gradient of -log p_k is p - e_k: PyTorch's `cross_entropy`.

    Parameters
    ----------
    logits : (..., V)
    targets : (...) integers in 0..V-1
    mask : (...) boolean, optional
        Only elements with True count; where none does, loss and gradient are 0.

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
    if logits.ndim < 1:
        raise ValueError("logits must have shape (..., V), got ()")
    shape, classes = tuple(logits.shape), logits.shape[-1]
    _check_like("targets", targets, shape[:-1], logits)
    if not xp.isdtype(targets.dtype, "integral"):
        raise TypeError(f"targets must be integers, got {dtype_name(targets.dtype)}")
    ops = operations(xp)
    flat = xp.reshape(logits, (-1, classes))
    numbers = xp.reshape(targets, (-1, 1))
    weights = _weights(xp, mask, shape[:-1], logits, mean=True)
    if isinstance(targets, np.ndarray) and targets.size:
        wrong = (targets < 0) | (targets >= classes)
        if mask is not None:
            numbers = np.where(wrong.reshape(-1, 1), 0, numbers)
            wrong &= mask
        if wrong.any():
            raise ValueError(
                f"targets must lie in 0..{classes - 1}, got {targets[wrong].reshape(-1)[0]}"
            )
    shifted = flat - xp.max(flat, axis=1, keepdims=True)
    picked = xp.take_along_axis(shifted, numbers, axis=1)
    powers = xp.exp(shifted)
    sums = xp.sum(powers, axis=1, keepdims=True)
    loss = xp.sum((xp.log(sums) - picked) * weights)
    p = ops.multiply(powers, weights / sums, out=powers)
    index = xp.arange(classes, dtype=targets.dtype, device=device_of(logits))
    hit = xp.where(index[None, :] == numbers, weights, _zero(xp, logits))
    return loss, xp.reshape(ops.subtract(p, hit, out=p), shape)


def binary_cross_entropy(
    logits: Array, targets: Array, *, mask: Array = None
) -> tuple[Array, Array]:
    """Mean of -(y log σ(a) + (1 - y) log(1 - σ(a))) over the elements that count.

    Computed as max(a, 0) - a y + log(1 + exp(-|a|)); the gradient is σ(a) - y. As
    `torch.nn.functional.binary_cross_entropy_with_logits`.

    Parameters
    ----------
    logits : a, (...)
    targets : y, (...), floating, in 0..1
    mask : (...) boolean, optional
        As in `softmax_cross_entropy`.

    Returns
    -------
    loss : ()
    dlogits : (...)

    Raises
    ------
    TypeError, ValueError
        As in `softmax_cross_entropy`.
    """
    xp, weights = _elementwise(logits, targets, mask, "logits", mean=True)
    zero = _zero(xp, logits)
    loss = xp.maximum(logits, zero) - logits * targets + xp.log1p(xp.exp(-xp.abs(logits)))
    return xp.sum(loss * weights), (sigmoid(logits) - targets) * weights


def squared_error(predictions: Array, targets: Array, *, mask: Array = None) -> tuple[Array, Array]:
    """Sum of (o - y)² / 2 over the elements that count; the gradient is o - y.

    Parameters
    ----------
    predictions : o, (...)
    targets : y, (...), floating
    mask : (...) boolean, optional

    Returns
    -------
    loss : ()
    dpredictions : (...)

    Raises
    ------
    TypeError, ValueError
        As in `softmax_cross_entropy`.
    """
    xp, weights = _elementwise(predictions, targets, mask, "predictions", mean=False)
    difference = (predictions - targets) * weights
    return 0.5 * xp.sum(difference * difference), difference


def sigmoid_squared_error(
    logits: Array, targets: Array, *, mask: Array = None
) -> tuple[Array, Array]:
    """Sum of (o - y)² / 2 with o = σ(a); the gradient is (o - y) o (1 - o).

    Parameters
    ----------
    logits : a, (...)
    targets : y, (...), floating
    mask : (...) boolean, optional

    Returns
    -------
    loss : ()
    dlogits : (...)

    Raises
    ------
    TypeError, ValueError
        As in `softmax_cross_entropy`.
    """
    xp, weights = _elementwise(logits, targets, mask, "logits", mean=False)
    o = sigmoid(logits)
    difference = (o - targets) * weights
    return 0.5 * xp.sum(difference * difference), difference * o * (1.0 - o)


def sigmoid(a: Array) -> Array:
    """Return σ(a) = (1 + tanh(a / 2)) / 2, which cannot overflow."""
    xp = array_namespace(a=a)
    return xp.tanh(a * 0.5) * 0.5 + 0.5


def _elementwise(
    values: Array, targets: Array, mask: Array, name: str, *, mean: bool
) -> tuple[Namespace, Array]:
    xp = array_namespace(**{name: values}, targets=targets, mask=mask)
    _check_floating(name, values)
    shape = tuple(values.shape)
    _check_like("targets", targets, shape, values)
    if targets.dtype != values.dtype:
        raise TypeError(
            f"targets has dtype {dtype_name(targets.dtype)}, {name} {dtype_name(values.dtype)}"
        )
    weights = _weights(xp, mask, shape, values, mean=mean)
    return xp, xp.reshape(weights, shape) if weights.shape[0] > 1 else weights[0, 0]


def _weights(
    xp: Namespace, mask: Array, shape: tuple[int, ...], like: Array, *, mean: bool
) -> Array:
    """Return what each element counts as a column (N, 1), or (1, 1) where all count alike."""
    count = int(np.prod(shape, dtype=np.int64))
    device = device_of(like)
    if mask is None:
        value = 1.0 / max(count, 1) if mean else 1.0
        return xp.full((1, 1), value, dtype=like.dtype, device=device)
    _check_like("mask", mask, shape, like)
    if not xp.isdtype(mask.dtype, "bool"):
        raise TypeError(f"mask must be boolean, got {dtype_name(mask.dtype)}")
    weights = xp.reshape(xp.astype(mask, like.dtype), (-1, 1))
    if not mean:
        return weights
    one = xp.ones((), dtype=like.dtype, device=device)
    return weights / xp.maximum(xp.sum(weights), one)


def _zero(xp: Namespace, like: Array) -> Array:
    return xp.zeros((), dtype=like.dtype, device=device_of(like))


def _check_floating(name: str, array: Array) -> None:
    if not is_floating(array):
        raise TypeError(f"{name} must be floating-point, got {dtype_name(array.dtype)}")


def _check_like(name: str, array: Array, shape: tuple[int, ...], like: Array) -> None:
    if tuple(array.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(array.shape)}")
    if device_of(array) != device_of(like):
        raise ValueError(f"{name} is on the device {device_of(array)}, not {device_of(like)}")
