"""Losses against finite differences, exact values and PyTorch, on every library."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from targets import HostArray, Target, make_target, need

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
    assert target.backend != "numpy" or type(loss) is np.ndarray
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


@pytest.mark.parametrize("offset", [-1e4, -87.0, -31.0, 0.0, 31.0, 87.0, 1e4])
def test_softmax_far_from_zero(target: Target, offset: float) -> None:
    """Logits whose exponentials fit the dtype, or do not, and a row beside them that is small."""
    rows = np.array([[0.0, 0.5, -0.75], [1.0, -2.0, 0.25]], dtype="float32")
    logits = rows + np.array([[offset], [0.0]], dtype="float32")
    loss, gradient = losses.softmax_cross_entropy(
        target.asarray(logits), target.asarray([2, 0], "int64"), reduction="sum"
    )
    expected = 0.0
    for row, kind, found in zip(
        logits.tolist(), (2, 0), target.check(gradient, (2, 3), "float32"), strict=True
    ):
        sizes = [math.exp(a - max(row)) for a in row]
        expected += math.log(sum(sizes)) + max(row) - row[kind]
        p = [size / sum(sizes) for size in sizes]
        p[kind] -= 1.0
        np.testing.assert_allclose(found, p, rtol=0, atol=1e-6)
    assert float(target.check(loss, (), "float32")) == pytest.approx(expected, abs=5e-6)


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
@pytest.mark.filterwarnings("error")
def test_autograd_through_a_loss(name: str) -> None:
    target = make_target("torch")
    logits, targets, mask = map(target.asarray, problem(name))
    _, expected = LOSSES[name](logits, targets, mask=mask)
    loss, _ = LOSSES[name](logits.requires_grad_(), targets, mask=mask)
    loss.backward()
    np.testing.assert_allclose(logits.grad, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_beside_arrays_that_are_not_traced(name: str, masked: bool) -> None:
    """The targets are closed over: JAX traces the logits alone."""
    target = make_target("jax")
    jax = importlib.import_module("jax")
    logits, targets, mask = map(target.asarray, problem(name))
    given = {"mask": mask} if masked else {}

    def loss(a: Any) -> Any:
        return LOSSES[name](a, targets, **given)[0]

    _, expected = LOSSES[name](logits, targets, **given)
    for gradient in (jax.grad(loss), jax.jit(jax.grad(loss))):
        np.testing.assert_allclose(gradient(logits), expected, rtol=0, atol=1e-12)
    both = jax.vmap(loss)(jax.numpy.stack([logits, logits]))
    np.testing.assert_allclose(both, [float(loss(logits))] * 2, rtol=1e-12)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_what_does_not_count_may_be_anything(
    target: Target, name: str, reduction: str, wrong: float
) -> None:
    logits, targets, mask = problem(name)
    given = {"mask": target.asarray(mask), "reduction": reduction}
    outcomes = []
    for fill in (0.0, wrong):
        values, wanted = logits.copy(), targets.copy()
        values[~mask] = fill
        if name != "softmax_cross_entropy":
            wanted[~mask] = fill
        loss, gradient = LOSSES[name](target.asarray(values), target.asarray(wanted), **given)
        outcomes.append((float(loss), target.to_numpy(gradient)))
    assert outcomes[0][0] == outcomes[1][0]
    np.testing.assert_array_equal(outcomes[0][1], outcomes[1][1])
    assert not outcomes[1][1][~mask].any()


def test_a_class_that_is_ruled_out_beside_masked_targets(target: Target) -> None:
    """-inf for padding's own class; what is masked has that class as its target."""
    logits = np.array([[-np.inf, 0.0, 1.0], [-np.inf, 2.0, 0.0]])
    loss, gradient = losses.softmax_cross_entropy(
        target.asarray(logits),
        target.asarray([1, 0], "int64"),
        mask=target.asarray(np.array([True, False])),
    )
    p = 1.0 / (1.0 + math.e)
    assert float(target.check(loss, (), "float64")) == pytest.approx(-math.log(p), rel=1e-14)
    found = target.check(gradient, (2, 3), "float64")
    np.testing.assert_allclose(found, [[0.0, p - 1.0, 1.0 - p], [0.0, 0.0, 0.0]], atol=1e-15)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_counts(target: Target, name: str) -> None:
    logits, targets, mask = problem(name)
    loss, gradient = LOSSES[name](
        target.asarray(logits), target.asarray(targets), mask=target.asarray(mask & False)
    )
    assert float(target.to_numpy(loss)) == 0.0
    assert not target.to_numpy(gradient).any()


def test_a_target_that_does_not_count_may_be_anything(target: Target) -> None:
    logits = target.asarray(np.zeros((3, 3)))
    targets, mask = target.asarray([2, -1, 900], "int64"), target.asarray([True, False, False])
    loss, gradient = losses.softmax_cross_entropy(logits, targets, mask=mask)
    assert float(target.check(loss, (), "float64")) == pytest.approx(math.log(3.0))
    assert not target.check(gradient, (3, 3), "float64")[1:].any()


@pytest.mark.parametrize("wrong", [-1, 3])
def test_a_target_out_of_range(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"targets must lie in 0\.\.2, got {wrong}"):
        losses.softmax_cross_entropy(np.zeros((2, 3)), np.array([1, wrong]))


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
)
def test_integer_dtypes(target: Target, dtype: str) -> None:
    """More classes than int8 and uint8 can count."""
    logits = np.random.default_rng(5).standard_normal((4, 300))
    targets = np.array([0, 3, 44, 127])
    expected, expected_gradient = losses.softmax_cross_entropy(logits, targets)
    assert (expected_gradient < 0).nonzero()[1].tolist() == targets.tolist()
    loss, gradient = losses.softmax_cross_entropy(
        target.asarray(logits), target.asarray(targets, dtype)
    )
    assert float(target.check(loss, (), "float64")) == pytest.approx(float(expected), rel=1e-14)
    found = target.check(gradient, logits.shape, "float64")
    np.testing.assert_allclose(found, expected_gradient, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision(target: Target, name: str, dtype: str) -> None:
    """A count of elements that float16 cannot hold."""
    if not hasattr(target.xp, dtype):
        pytest.skip(f"{target.backend} has no {dtype}")
    rng = np.random.default_rng(6)
    logits, rows = rng.standard_normal((70_000, 2)).astype("float16"), 70_000
    targets = rng.random((rows, 2)).astype("float16")
    mask = np.ones((rows, 2), dtype=bool)
    if name.startswith("softmax"):
        targets, mask = rng.integers(0, 2, rows), mask[:, 0]

    def half(array: HostArray) -> Any:
        given = target.asarray(array)
        return given if array.dtype != "float16" else target.xp.astype(given, target.dtype(dtype))

    wide = [a.astype("float32") if a.dtype == "float16" else a for a in (logits, targets)]
    expected, _ = LOSSES[name](*wide, mask=mask, reduction="mean")
    loss, gradient = LOSSES[name](
        half(logits), half(targets), mask=target.asarray(mask), reduction="mean"
    )
    assert loss.dtype == gradient.dtype == target.dtype(dtype)
    assert float(loss) == pytest.approx(float(expected), rel=1e-2)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_reductions(target: Target, name: str, masked: bool) -> None:
    logits, targets, mask = problem(name)
    count = int(mask.sum()) if masked else mask.size
    given = {"mask": target.asarray(mask)} if masked else {}
    arrays = target.asarray(logits), target.asarray(targets)
    mean, dmean = LOSSES[name](*arrays, reduction="mean", **given)
    total, dtotal = LOSSES[name](*arrays, reduction="sum", **given)
    mean, total = target.to_numpy(mean), target.to_numpy(total)
    np.testing.assert_allclose(mean * count, total, rtol=1e-14)
    np.testing.assert_allclose(
        target.to_numpy(dmean) * count, target.to_numpy(dtotal), rtol=1e-12, atol=1e-15
    )
    default = float(LOSSES[name](*arrays, **given)[0])
    assert default == float(total if "squared" in name else mean)


@pytest.mark.parametrize("name", LOSSES)
def test_arguments_stay_as_they_are(target: Target, name: str) -> None:
    given = [target.asarray(array) for array in problem(name)]
    before = [target.to_numpy(array).copy() for array in given]
    _, gradient = LOSSES[name](given[0], given[1], mask=given[2])
    gradient += 1.0  # it is no view of an argument either
    for array, copy in zip(given, before, strict=True):
        assert np.array_equal(target.to_numpy(array), copy)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_no_elements(target: Target, name: str, masked: bool) -> None:
    logits, targets, mask = (array[:0] for array in problem(name))
    given = {"mask": target.asarray(mask)} if masked else {}
    loss, gradient = LOSSES[name](target.asarray(logits), target.asarray(targets), **given)
    assert float(target.check(loss, (), "float64")) == 0.0
    target.check(gradient, (0, 4, 5), "float64")


def test_one_element_without_a_batch(target: Target) -> None:
    loss, gradient = losses.softmax_cross_entropy(
        target.asarray([0.0, 0.0]), target.asarray(np.array(1))
    )
    assert float(target.check(loss, (), "float64")) == pytest.approx(math.log(2.0))
    assert target.check(gradient, (2,), "float64").tolist() == [0.5, -0.5]


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
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'sum', got 'none'"):
        loss(logits, targets, reduction="none")


def test_no_classes() -> None:
    with pytest.raises(ValueError, match=r"V >= 1, got \(3, 0\)"):
        losses.softmax_cross_entropy(np.zeros((3, 0)), np.zeros(3, dtype=int))
