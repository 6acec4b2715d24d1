"""The quantile loss against a loop, finite differences and scikit-learn, on every library."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from targets import HostArray, Target, need_module

from rnn_xp import losses

QUANTILES = (0.1, 0.5, 0.9)


def problem() -> tuple[HostArray, HostArray, HostArray]:
    """Return predictions (3, 4, Q), targets (3, 4), and a mask with NaN where it is False."""
    rng = np.random.default_rng(3)
    predictions, targets = rng.standard_normal((3, 4, 3)), rng.standard_normal((3, 4))
    return predictions, targets, rng.random((3, 4)) < 0.6


def scalar(predictions: HostArray, targets: HostArray, mask: HostArray) -> tuple[float, int]:
    """Return the sum over the elements that count and the quantiles, and how many these are."""
    total, count = 0.0, 0
    for index in np.ndindex(targets.shape):
        if mask[index]:
            for k, q in enumerate(QUANTILES):
                error = float(targets[index] - predictions[index][k])
                total += q * error if error > 0 else (q - 1) * error
                count += 1
    return total, count


@pytest.mark.parametrize("masked", [False, True])
def test_as_a_scalar_loop(target: Target, masked: bool) -> None:
    predictions, targets, mask = problem()
    given: dict[str, Any] = {}
    if masked:
        targets[~mask] = math.nan
        given["mask"] = target.asarray(mask)
    else:
        mask[:] = True
    arrays = target.asarray(predictions), target.asarray(targets)
    total, count = scalar(predictions, targets, mask)
    for reduction, expected in (("sum", total), ("mean", total / count)):
        loss, gradient = losses.quantile_loss(*arrays, QUANTILES, reduction=reduction, **given)
        assert float(target.check(loss, (), "float64")) == pytest.approx(expected, rel=1e-14)
        found = target.check(gradient, predictions.shape, "float64")
        assert np.isfinite(found).all()
        for index in np.ndindex(predictions.shape):
            values = []
            for step in (1e-6, -1e-6):
                moved = predictions.copy()
                moved[index] += step
                values.append(scalar(moved, targets, mask)[0] * expected / total)
            assert abs((values[0] - values[1]) / 2e-6 - found[index]) < 1e-8
    assert float(losses.quantile_loss(*arrays, QUANTILES, **given)[0]) == pytest.approx(
        total / count
    )


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_does_not_count_may_be_anything(target: Target, wrong: float) -> None:
    predictions, targets, mask = problem()
    given = {"mask": target.asarray(mask)}
    outcomes = []
    for fill in (0.0, wrong):
        for array in (predictions, targets):
            array[~mask] = fill
        arrays = target.asarray(predictions), target.asarray(targets)
        loss, gradient = losses.quantile_loss(*arrays, QUANTILES, **given)
        outcomes.append((float(loss), target.to_numpy(gradient).tolist()))
    assert outcomes[0] == outcomes[1]


def test_the_least_loss_is_at_the_quantile() -> None:
    values = np.arange(1.0, 12.0)
    for q, expected in ((0.1, 2.0), (0.5, 6.0), (0.9, 10.0)):
        tried = [
            float(losses.quantile_loss(np.full((11, 1), guess), values, (q,))[0])
            for guess in values
        ]
        assert values[int(np.argmin(tried))] == expected


def test_where_prediction_and_target_are_equal(target: Target) -> None:
    loss, gradient = losses.quantile_loss(
        target.asarray([[2.0, 2.0]]), target.asarray([2.0]), (0.2, 0.8)
    )
    assert float(target.check(loss, (), "float64")) == 0.0
    assert not target.check(gradient, (1, 2), "float64").any()


def test_nothing_counts_and_nothing_there(target: Target) -> None:
    predictions, targets, mask = problem()
    for rows, keep in ((3, False), (0, True)):
        given = target.asarray(mask[:rows] & keep)
        loss, gradient = losses.quantile_loss(
            target.asarray(predictions[:rows]),
            target.asarray(targets[:rows]),
            QUANTILES,
            mask=given,
        )
        assert float(target.check(loss, (), "float64")) == 0.0
        assert not target.check(gradient, (rows, 4, 3), "float64").any()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes(target: Target, dtype: str) -> None:
    if not hasattr(target.xp, dtype):
        pytest.skip(f"{target.backend} has no {dtype}")
    predictions, targets, _ = problem()
    expected = float(losses.quantile_loss(predictions, targets, QUANTILES)[0])
    o, y = (target.xp.astype(target.asarray(a), target.dtype(dtype)) for a in problem()[:2])
    loss, gradient = losses.quantile_loss(o, y, QUANTILES)
    assert loss.dtype == gradient.dtype == target.dtype(dtype)
    assert float(loss) == pytest.approx(expected, rel=1e-5 if dtype == "float32" else 2e-2)


def test_as_scikit_learn() -> None:
    metrics = need_module("sklearn.metrics")
    predictions, targets, _ = problem()
    for k, q in enumerate(QUANTILES):
        expected = metrics.mean_pinball_loss(targets.ravel(), predictions[..., k].ravel(), alpha=q)
        loss, _ = losses.quantile_loss(predictions[..., k : k + 1], targets, (q,))
        assert float(loss) == pytest.approx(expected, rel=1e-14)


def test_errors() -> None:
    predictions, targets, mask = problem()
    with pytest.raises(ValueError, match="quantiles must lie between 0 and 1, got 1"):
        losses.quantile_loss(predictions, targets, (0.1, 0.5, 1.0))
    with pytest.raises(ValueError, match=r"each of the 2 quantiles .* got the shape \(3, 4, 3\)"):
        losses.quantile_loss(predictions, targets, (0.1, 0.5))
    with pytest.raises(ValueError, match="each of the 0 quantiles"):
        losses.quantile_loss(predictions, targets, ())
    with pytest.raises(ValueError, match=r"targets must have shape \(3, 4\)"):
        losses.quantile_loss(predictions, targets[:2], QUANTILES)
    with pytest.raises(ValueError, match=r"mask must have shape \(3, 4\)"):
        losses.quantile_loss(predictions, targets, QUANTILES, mask=mask[:2])
    with pytest.raises(TypeError, match="mask must be boolean"):
        losses.quantile_loss(predictions, targets, QUANTILES, mask=mask.astype("int64"))
    with pytest.raises(TypeError, match="predictions must be floating-point"):
        losses.quantile_loss(predictions.astype("int64"), targets, QUANTILES)
    with pytest.raises(TypeError, match="targets has dtype float32, predictions float64"):
        losses.quantile_loss(predictions, targets.astype("float32"), QUANTILES)
    with pytest.raises(ValueError, match="reduction must be"):
        losses.quantile_loss(predictions, targets, QUANTILES, reduction="none")
