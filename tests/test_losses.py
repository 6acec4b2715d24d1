"""Losses against finite differences, exact values and PyTorch, on every library."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from targets import HostArray, Target, need

from rnn_xp import losses

Loss = Callable[..., tuple[Any, Any]]
ELEMENTWISE: dict[str, Loss] = {
    "binary_cross_entropy": losses.binary_cross_entropy,
    "squared_error": losses.squared_error,
    "sigmoid_squared_error": losses.sigmoid_squared_error,
}
LOSSES: dict[str, Loss] = {"softmax_cross_entropy": losses.softmax_cross_entropy, **ELEMENTWISE}


def problem(name: str, scale: float = 1.0) -> tuple[HostArray, HostArray, HostArray]:
    """Return logits, targets and a mask with False here and there."""
    rng = np.random.default_rng(len(name))
    logits = rng.standard_normal((3, 4, 5)) * scale
    if name == "softmax_cross_entropy":
        return logits, rng.integers(0, 5, (3, 4)), rng.random((3, 4)) < 0.6
    return logits, rng.random(logits.shape), rng.random(logits.shape) < 0.6


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_derivative_of_the_loss(target: Target, name: str, masked: bool) -> None:
    logits, targets, mask = problem(name)
    kept = {"mask": mask} if masked else {}
    given = {"mask": target.asarray(mask)} if masked else {}
    loss, gradient = LOSSES[name](target.asarray(logits), target.asarray(targets), **given)
    value = target.check(loss, (), "float64")
    found = target.check(gradient, logits.shape, "float64")
    again, _ = LOSSES[name](logits, targets, **kept)
    np.testing.assert_allclose(value, again, rtol=1e-14)
    for index in np.ndindex(logits.shape):
        values = []
        for step in (1e-6, -1e-6):
            moved = logits.copy()
            moved[index] += step
            values.append(float(LOSSES[name](moved, targets, **kept)[0]))
        assert abs((values[0] - values[1]) / 2e-6 - found[index]) < 1e-8


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmax_at_extremes(target: Target, dtype: str) -> None:
    logits = target.asarray([[1e4, -1e4, 0.0], [0.0, -1e4, 1e4]], dtype)
    loss, gradient = losses.softmax_cross_entropy(logits, target.asarray([1, 2], "int64"))
    assert float(target.check(loss, (), dtype)) == 1e4  # the mean of 2e4 and 0
    found = target.check(gradient, (2, 3), dtype)
    assert found.tolist() == [[0.5, -0.5, 0.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigmoid_losses_at_extremes(target: Target, dtype: str) -> None:
    logits = target.asarray([1e4, -1e4, 1e4, -1e4], dtype)
    targets = target.asarray([0.0, 1.0, 1.0, 0.0], dtype)
    loss, gradient = losses.binary_cross_entropy(logits, targets)
    assert float(target.check(loss, (), dtype)) == 5e3  # the mean of 1e4, 1e4, 0 and 0
    assert target.check(gradient, (4,), dtype).tolist() == [0.25, -0.25, 0.0, 0.0]
    loss, gradient = losses.sigmoid_squared_error(logits, targets)
    assert float(target.check(loss, (), dtype)) == 1.0
    assert target.check(gradient, (4,), dtype).tolist() == [0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("name", LOSSES)
def test_as_pytorch(name: str, scale: float, masked: bool) -> None:
    need("torch")
    import torch

    logits, targets, mask = problem(name, scale)
    if not masked:
        mask = np.ones_like(mask)
    a = torch.tensor(logits, requires_grad=True)
    y, keep = torch.tensor(targets), torch.tensor(mask)
    if name == "softmax_cross_entropy":
        expected = torch.nn.functional.cross_entropy(a[keep], y[keep])
    elif name == "binary_cross_entropy":
        expected = torch.nn.functional.binary_cross_entropy_with_logits(a[keep], y[keep])
    else:
        o = torch.sigmoid(a) if name.startswith("sigmoid") else a
        expected = 0.5 * ((o - y)[keep] ** 2).sum()
    expected.backward()
    loss, gradient = LOSSES[name](logits, targets, mask=mask)
    np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-12)
    peak = max(1.0, float(np.abs(gradient).max()))
    np.testing.assert_allclose(gradient, a.grad.numpy(), rtol=0, atol=1e-12 * peak)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_counts(target: Target, name: str) -> None:
    logits, targets, mask = problem(name)
    loss, gradient = LOSSES[name](
        target.asarray(logits), target.asarray(targets), mask=target.asarray(mask & False)
    )
    assert float(target.to_numpy(loss)) == 0.0
    assert not target.to_numpy(gradient).any()


def test_a_target_that_does_not_count_may_be_anything(target: Target) -> None:
    logits = target.asarray(np.zeros((2, 3)))
    targets, mask = target.asarray([2, -1], "int64"), target.asarray([True, False])
    if target.backend == "numpy":
        loss, gradient = losses.softmax_cross_entropy(logits, targets, mask=mask)
        assert float(loss) == pytest.approx(math.log(3.0))
        assert not gradient[1].any()
        with pytest.raises(ValueError, match=r"targets must lie in 0\.\.2, got -1"):
            losses.softmax_cross_entropy(logits, targets)


def test_sigmoid_does_not_overflow(target: Target) -> None:
    found = target.to_numpy(losses.sigmoid(target.asarray([-1e4, -1.0, 0.0, 1.0, 1e4])))
    np.testing.assert_allclose(
        found, [0.0, 1 / (1 + math.e), 0.5, math.e / (1 + math.e), 1.0], rtol=0, atol=1e-15
    )


@pytest.mark.parametrize("name", LOSSES)
def test_errors(name: str) -> None:
    logits, targets, mask = problem(name)
    loss = LOSSES[name]
    with pytest.raises(TypeError, match="must be floating-point, got int64"):
        loss(logits.astype("int64"), targets)
    with pytest.raises(ValueError, match=r"targets must have shape .* got \(2,"):
        loss(logits, targets[:2])
    with pytest.raises(ValueError, match=r"mask must have shape .* got \(2,"):
        loss(logits, targets, mask=mask[:2])
    with pytest.raises(TypeError, match="mask must be boolean, got int64"):
        loss(logits, targets, mask=mask.astype("int64"))
    with pytest.raises(TypeError, match="targets must be an array, got builtins list"):
        loss(logits, targets.tolist())
    wrong = targets.astype("float32")
    message = "integers, got float32" if name.startswith("softmax") else "targets has dtype float32"
    with pytest.raises(TypeError, match=message):
        loss(logits, wrong)
