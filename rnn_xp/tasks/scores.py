"""How good forecasts are: MAE, RMSE, MASE, coverage and pinball loss, for each step and overall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rnn_xp.tasks.windows import Numbers, SeriesError


@dataclass(frozen=True)
class Scores:
    """Scores of forecasts from many origins; a value that is missing does not count.

    Each is an array: (K,) over the steps ahead, NaN where no value came, or () over all of them.
    """

    mae: Numbers
    """Mean |y - ŷ|."""
    rmse: Numbers
    """Square root of the mean (y - ŷ)²."""
    mase: Numbers
    """MAE divided by the MAE of the seasonal naive forecast one season ahead, on the training part
    (R. J. Hyndman, A. B. Koehler, "Another look at measures of forecast accuracy", International
    Journal of Forecasting 22 (2006) 679-688)."""


def naive_scale(values: Numbers, season: int) -> float:
    """Return the mean |y_t - y_{t - m}| over a training part: what MASE divides by.

    Raises
    ------
    SeriesError
        If no value has one a season before it, or all are equal to it.
    """
    differences = np.abs(values[season:] - values[:-season])
    present = differences[~np.isnan(differences)]
    if not len(present):
        raise SeriesError(
            f"the training part, {len(values)} rows, has no value with another one a season of "
            f"{season} rows before it"
        )
    scale = float(present.mean())
    if not scale:
        raise SeriesError(
            f"in the training part every value equals the one {season} rows before it: the "
            "seasonal naive forecast is exact, and MASE is not defined"
        )
    return scale


def errors_of(forecast: Numbers, actual: Numbers, scale: float) -> tuple[Scores, Scores]:
    """Return the scores of forecasts (O, K) for each step, and overall."""
    error = np.abs(forecast - actual)
    return _scores(error, 0, scale), _scores(error, None, scale)


def _scores(error: Numbers, axis: int | None, scale: float) -> Scores:
    mae = _mean(error, axis)
    return Scores(mae, np.sqrt(_mean(error**2, axis)), mae / scale)


def coverage(low: Numbers, high: Numbers, actual: Numbers) -> float:
    """Return which part of the values that came lie in low..high, all (O, K)."""
    inside = np.where(np.isnan(actual), np.nan, (low <= actual) & (actual <= high))
    return float(_mean(inside, None))


def mean_pinball(forecast: Numbers, actual: Numbers, quantiles: Sequence[float]) -> float:
    """Return the mean quantile loss of forecasts (O, K, Q), over quantiles too."""
    error = actual[:, :, None] - forecast
    levels = np.asarray(quantiles)
    return float(_mean(np.maximum(levels * error, (levels - 1.0) * error), None))


def _mean(values: Numbers, axis: int | None) -> Numbers:
    """Return the mean of what is no NaN; NaN, without a warning, where nothing is left."""
    present = ~np.isnan(values)
    count = np.sum(present, axis=axis)
    total = np.sum(np.where(present, values, 0.0), axis=axis)
    mean: Numbers = np.where(count > 0, total, np.nan) / np.maximum(count, 1)
    return mean
