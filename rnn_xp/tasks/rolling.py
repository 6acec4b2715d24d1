"""Training and judging a forecaster: parts of a series, and the evaluation at a rolling origin.

The last part of a series is held out. Every row from which all K steps lie in that part is an
origin: the network forecasts from it, knowing what comes before, and is not fitted again (L. J.
Tashman, "Out-of-sample tests of forecasting accuracy", International Journal of Forecasting 16
(2000) 437-450).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from rnn_xp.backend import Backend
from rnn_xp.datasets import load_co2, load_sunspots
from rnn_xp.fitting import Params
from rnn_xp.models import Chain
from rnn_xp.table import Table
from rnn_xp.tasks.scores import Scores, coverage, errors_of, mean_pinball
from rnn_xp.tasks.series import Forecaster
from rnn_xp.tasks.windows import Rows, Series, SeriesError


class Preset(NamedTuple):
    """A series that ships, and what is chosen for it."""

    load: Callable[[], Table]
    column: str
    time: str
    horizon: int
    window: int
    season: int
    relative: str


# The windows and `relative` were chosen on the training part: benchmarks/series.py shows how.
PRESETS: dict[str, Preset] = {
    # Four years: about what a cycle takes from its minimum to its maximum. Its period is 11.
    "sunspots": Preset(load_sunspots, "SUNACTIVITY", "YEAR", 4, 11, 11, "none"),
    # A year of weeks.
    "co2": Preset(load_co2, "co2", "date", 52, 104, 52, "last"),
}


class Parts(NamedTuple):
    """The origins of each part of a series, and where the held-out part begins."""

    train: Rows
    validation: Rows
    held_out: Rows
    training_rows: int
    """Rows before the held-out part, with the validation part."""


def parts_of(
    forecaster: Forecaster, series: Series, *, held_out: float = 0.2, validation: float = 0.2
) -> Parts:
    """Split a series: its last part is held out, the last part of the rest is to validate on.

    What is forecast from an origin lies in one part; the window before it may reach into the part
    before.

    Raises
    ------
    SeriesError
        If a part has too few rows for the window and the horizon.
    """
    rows = len(series)
    stop = rows - round(held_out * rows)
    middle = stop - round(validation * stop)
    origins = {
        "to train on": forecaster.origins(0, middle),
        "to validate on": forecaster.origins(middle, stop),
        "held out": forecaster.origins(stop, rows),
    }
    for (name, found), count in zip(
        origins.items(), (middle, stop - middle, rows - stop), strict=True
    ):
        if not len(found):
            raise SeriesError(
                f"{series.source}: too few rows: {rows}, of which {count} are {name}; a window of "
                f"{forecaster.window}, a season of {forecaster.season} and a horizon of "
                f"{forecaster.horizon} do not fit"
            )
    train, middle_part, last_part = origins.values()
    return Parts(train, middle_part, last_part, stop)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` returns: scores for each step ahead and overall, beside seasonal naive."""

    origins: int
    steps: Scores
    overall: Scores
    naive_steps: Scores
    naive_overall: Scores
    coverage: float
    """Which part of the values lies between the lowest and the highest quantile."""
    pinball: float
    """Mean quantile loss, over the quantiles too."""

    @property
    def ratio(self) -> float:
        """MAE divided by that of the seasonal naive forecast from the same origins."""
        return float(self.overall.mae / self.naive_overall.mae)


def evaluate(
    forecaster: Forecaster,
    model: Chain,
    params: Params,
    backend: Backend,
    dtype: str,
    series: Series,
    origins: Rows,
    scale: float,
) -> Evaluation:
    """Judge the forecasts from all `origins`; `scale` is `scores.naive_scale` of the training part.

    Raises
    ------
    SeriesError
        If there is no origin, or none of the values to forecast is there.
    """
    if not len(origins):
        raise SeriesError(
            f"{series.source}: too few rows, {len(series)}: a forecast reads "
            f"{forecaster.first_origin + 1} and is compared with the {forecaster.horizon} after "
            "them"
        )
    actual = forecaster.actual(series, origins)
    if (actual != actual).all():
        raise SeriesError(f"{series.source}: all values to be forecast are missing")
    found = forecaster.forecast(model, params, backend, dtype, series, origins)
    steps, overall = errors_of(found[:, :, forecaster.median], actual, scale)
    naive = errors_of(forecaster.naive(series, origins), actual, scale)
    return Evaluation(
        len(origins),
        steps,
        overall,
        *naive,
        coverage(found[:, :, 0], found[:, :, -1], actual),
        mean_pinball(found, actual, forecaster.quantiles),
    )
