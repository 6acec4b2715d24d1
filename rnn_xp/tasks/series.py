"""Forecasts of a time series: all K steps at once, with quantiles, by a recurrent network.

The network reads a window of the past and writes K steps times Q quantiles (a direct multi-step
forecast). It is trained with the quantile loss, so that 0.1 and 0.9 bound an interval that shall
hold 80 % of what comes (R. Wen et al., "A Multi-Horizon Quantile Recurrent Forecaster", 2017).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from rnn_xp import losses
from rnn_xp.backend import Array, Backend, array_namespace, on_its_device
from rnn_xp.fitting import Params
from rnn_xp.models import Chain
from rnn_xp.scaling import mean_and_deviation
from rnn_xp.sequences import Sequences
from rnn_xp.tasks.examples import outputs_of
from rnn_xp.tasks.windows import (
    MISSING,
    Filled,
    Numbers,
    Rows,
    Series,
    SeriesError,
    future_rows,
    past_rows,
    seasonal_naive,
)

AMPLITUDES = (0.7, 1.0, 1.4)
"""The multiples of its own height at which every window is trained on."""

RELATIVE = ("none", "last", "season")
"""What the network reads and writes: the values themselves; their distance to the last value of
the window; their difference to the season before."""


@dataclass(frozen=True)
class Forecaster:
    """All that a forecast needs beside the network: plain values, kept in the model's file.

    Attributes
    ----------
    column, exog, time
        As `windows.series_of` takes them; exogenous values are used up to the origin alone.
    window : int
        W, the rows of the past that the network reads.
    horizon : int
        K, the rows that it forecasts.
    season : int
        m, of the seasonal naive forecast; 1: of the naive one.
    quantiles : tuple of float
        Q of them, rising, 0.5 among them: it is the forecast itself.
    relative : str
        One of `RELATIVE`, for the column to forecast.
    missing : str
        One of `windows.MISSING`.
    means, scales : tuple of float
        Of each channel of the windows, learnt by `learn`.
    target_mean, target_scale : float
        Of what the network writes, learnt by `learn`.

    Raises
    ------
    ValueError
        If a size is below 1, the quantiles are not as above, or a name is unknown.
    """

    column: str
    horizon: int
    window: int
    season: int = 1
    exog: tuple[str, ...] = ()
    time: str | None = None
    quantiles: tuple[float, ...] = (0.1, 0.5, 0.9)
    relative: str = "last"
    missing: str = "linear"
    means: tuple[float, ...] = ()
    scales: tuple[float, ...] = ()
    target_mean: float = 0.0
    target_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("horizon", "window", "season"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name, known in (("relative", RELATIVE), ("missing", MISSING)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )
        for low, high in zip((0.0, *self.quantiles), (*self.quantiles, 1.0), strict=True):
            if not low < high:
                raise ValueError(
                    f"quantiles must rise and lie between 0 and 1, got {_text(self.quantiles)}"
                )
        if 0.5 not in self.quantiles:
            raise ValueError(
                f"quantiles must hold 0.5, the forecast itself, got {_text(self.quantiles)}"
            )

    def describe(self) -> dict[str, Any]:
        """Return plain values; `build` makes the same forecaster of them."""
        return asdict(self)

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Forecaster:
        """Make a forecaster from what `describe` returned, JSON's lists included.

        Raises
        ------
        ValueError
            If a value is missing, unknown or wrong.
        """
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        try:
            return cls(**plain)
        except TypeError as error:
            raise ValueError(f"no forecaster: {error}") from error

    @property
    def channels(self) -> int:
        """What the network reads at each step."""
        return (1 + len(self.exog)) * (2 if self.missing == "mask" else 1)

    @property
    def outputs(self) -> int:
        """What the network writes: K times Q."""
        return self.horizon * len(self.quantiles)

    @cached_property
    def median(self) -> int:
        """Where 0.5 stands among the quantiles."""
        return self.quantiles.index(0.5)

    @property
    def first_origin(self) -> int:
        """The first row whose window, and whose season before it, lies inside the series."""
        return max(self.window + (self.season if self.relative == "season" else 0), self.season) - 1

    def origins(self, start: int, stop: int) -> Rows:
        """Return the origins whose K rows after them all lie in `start` .. `stop` - 1."""
        return np.arange(max(start - 1, self.first_origin), stop - self.horizon)

    def learn(self, series: Series, origins: Rows) -> Forecaster:
        """Return the forecaster with means and scales of these origins' windows and targets.

        Raises
        ------
        SeriesError
            If there is no origin, no target, or a column is constant over all of them.
        """
        plain = replace(self, means=(0.0,) * self.channels, scales=(1.0,) * self.channels)
        if not len(origins):
            raise SeriesError(
                f"{series.source}: too few rows, {len(series)}, for a window of {self.window}, a "
                f"season of {self.season} and a horizon of {self.horizon}"
            )
        x = plain.inputs(series, origins)
        means, scales = mean_and_deviation(x, axis=(0, 1))
        targets = plain.targets(series, origins)
        columns = len(series.names)
        means[columns:], scales[columns:] = 0.0, 1.0  # 0 or 1: whether a value is there
        for name, scale in zip(series.names, scales, strict=False):
            if not scale > 0.0:
                raise SeriesError(
                    f"{series.source}: the column {name!r} is constant in the part to train on"
                )
        if np.isnan(targets).all():
            raise SeriesError(
                f"{series.source}: all values to forecast in the part to train on are missing"
            )
        target_mean, target_scale = mean_and_deviation(targets[~np.isnan(targets)])
        return replace(
            self,
            means=tuple(means.tolist()),
            scales=tuple(scales.tolist()),
            target_mean=float(target_mean),
            target_scale=float(target_scale) or float(scales[0]),
        )

    def inputs(self, series: Series, origins: Rows) -> Numbers:
        """Return what the network reads, standardised: (O, W, channels)."""
        rows = past_rows(origins, self.window)
        columns = [Filled(one, self.missing) for one in series.values.T]
        parts = [column.seen(origins, rows) for column in columns]
        if self.relative == "last":
            parts[0] = parts[0] - parts[0][:, -1:]
        elif self.relative == "season":
            parts[0] = parts[0] - columns[0].seen(origins, rows - self.season)
        if self.missing == "mask":
            parts += [column.known[rows].astype(np.float64) for column in columns]
        x: Numbers = (np.stack(parts, axis=2) - np.asarray(self.means)) / np.asarray(self.scales)
        return x

    def base(self, series: Series, origins: Rows) -> Numbers:
        """Return what the network's outputs are relative to: (O, K)."""
        if self.relative == "none":
            return np.zeros((len(origins), self.horizon))
        season = self.season if self.relative == "season" else 1
        return self.naive(series, origins, season)

    def naive(self, series: Series, origins: Rows, season: int | None = None) -> Numbers:
        """Return the seasonal naive forecast, (O, K)."""
        filled = Filled(series.values[:, 0], self.missing)
        return seasonal_naive(filled, origins, self.horizon, season or self.season)

    def actual(self, series: Series, origins: Rows) -> Numbers:
        """Return what came: (O, K), NaN where it is missing."""
        values: Numbers = series.values[future_rows(origins, self.horizon), 0]
        return values

    def targets(self, series: Series, origins: Rows) -> Numbers:
        """Return what the network shall write, standardised: (O, K), NaN where it is missing."""
        distance = self.actual(series, origins) - self.base(series, origins)
        return (distance - self.target_mean) / self.target_scale

    @on_its_device
    def loss(self, outputs: Array, targets: Array) -> tuple[Array, Array]:
        """Return the mean quantile loss, and its gradient with respect to the outputs.

        Parameters
        ----------
        outputs : (B, K * Q)
        targets : (B, K)
            NaN does not count.
        """
        xp = array_namespace(outputs=outputs, targets=targets)
        shape = (*targets.shape, len(self.quantiles))
        mean, gradient = losses.quantile_loss(
            xp.reshape(outputs, shape), targets, self.quantiles, mask=~xp.isnan(targets)
        )
        return mean, xp.reshape(gradient, outputs.shape)

    def examples(
        self, series: Series, origins: Rows, amplitudes: Sequence[float] = AMPLITUDES
    ) -> tuple[Sequences, Numbers]:
        """Return windows and targets to train on: those at `origins`, once for each amplitude.

        The column to forecast is multiplied by the amplitude, about zero or about what it is
        relative to, in the window and in the target alike: a network that has seen few ups and
        downs learns that higher and lower ones have the same form.
        """
        x, y = self.inputs(series, origins), self.targets(series, origins)
        shift, target_shift = self.means[0] / self.scales[0], self.target_mean / self.target_scale
        windows, targets = [], []
        for amplitude in amplitudes:
            changed = x.copy()
            changed[:, :, 0] = amplitude * x[:, :, 0] + (amplitude - 1.0) * shift
            windows += list(changed)
            targets.append(amplitude * y + (amplitude - 1.0) * target_shift)
        return Sequences(tuple(windows)), np.concatenate(targets)

    def forecast(
        self,
        model: Chain,
        params: Params,
        backend: Backend,
        dtype: str,
        series: Series,
        origins: Rows,
    ) -> Numbers:
        """Return the quantiles of the rows after each origin, in the series' own unit.

        The network may write a higher number for a lower quantile; sorted, they do not cross, and
        their loss is no higher (V. Chernozhukov, I. Fernández-Val, A. Galichon, "Quantile and
        probability curves without crossing", Econometrica 78 (2010) 1093-1125).

        Returns
        -------
        (O, K, Q), float64
        """
        windows = Sequences(tuple(self.inputs(series, origins)))
        found = outputs_of(model, params, backend, dtype, windows).astype(np.float64)
        quantiles = np.sort(found.reshape(len(origins), self.horizon, -1), axis=2)
        scaled: Numbers = quantiles * self.target_scale + self.target_mean
        return scaled + self.base(series, origins)[:, :, None]


def _text(quantiles: Sequence[float]) -> str:
    return ", ".join(f"{quantile:g}" for quantile in quantiles)
