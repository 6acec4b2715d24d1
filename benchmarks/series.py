"""Sunspots and CO2: what is chosen on the training part, five seeds, and two baselines.

    python benchmarks/series.py > benchmarks/results/series.md

The held-out part, the last fifth of each series, is forecast by models that `rnn-xp train series`
trains with its defaults; the longer horizon of the sunspots is there to show where they end. The
baselines forecast from the same origins: the seasonal naive forecast, and an autoregression by
statsmodels, with its lags and its trend chosen by AIC, fitted once to all rows before the held-out
part and continued step by step from each origin.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import contextlib
import io
import platform
import tempfile
import warnings
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import statsmodels
from statsmodels.tsa.ar_model import AutoReg, ar_select_order

from rnn_xp.backend import select
from rnn_xp.checkpoint import load
from rnn_xp.cli import main as command_line
from rnn_xp.cli.options import Parser
from rnn_xp.cli.series import DEFAULT
from rnn_xp.fitting import fit
from rnn_xp.models import sequence_model
from rnn_xp.tasks.examples import gradients_of
from rnn_xp.tasks.rolling import PRESETS, Evaluation, evaluate, parts_of
from rnn_xp.tasks.scores import errors_of, naive_scale
from rnn_xp.tasks.series import AMPLITUDES, Forecaster
from rnn_xp.tasks.windows import Filled, Rows, Series, past_rows, series_of

Array = np.ndarray[Any, Any]

SEEDS, BLOCKS = 5, 5
HORIZONS = {"sunspots": (4, 11), "co2": (52,)}
TRIALS = {"sunspots": 2, "co2": 1}  # networks a block
MAX_LAG = {"sunspots": 40, "co2": 110}
NUMPY = select("numpy")


def series_called(name: str) -> Series:
    preset = PRESETS[name]
    return series_of(preset.load(), preset.column, time=preset.time)


def forecaster_for(name: str, **changes: Any) -> Forecaster:
    preset = PRESETS[name]
    return replace(
        Forecaster(
            preset.column, preset.horizon, preset.window, preset.season, relative=preset.relative
        ),
        **changes,
    )


def block_ratio(
    name: str, forecaster: Forecaster, amplitudes: tuple[float, ...], block: tuple[int, int]
) -> float:
    """Train on the training part without a block; return the MAE ratio to seasonal naive on it."""
    series = series_called(name)
    start, stop = block
    every = forecaster.origins(0, parts_of(forecaster, series).training_rows)
    apart = every[(every + forecaster.horizon < start) | (every + 1 >= stop)]
    learnt = forecaster.learn(series, apart)
    model = sequence_model(learnt.channels, learnt.outputs, hidden_size=16, pool="last")
    windows, targets = learnt.examples(series, apart, amplitudes)
    ratios = []
    for seed in range(TRIALS[name]):
        gradients = gradients_of(model, NUMPY, "float32", windows, targets, learnt.loss)
        fitted = fit(model.init((seed, 2)), gradients, len(targets), replace(DEFAULT, seed=seed))
        origins = learnt.origins(start, stop)
        found = evaluate(learnt, model, fitted.params, NUMPY, "float32", series, origins, 1.0)
        ratios.append(found.ratio)
    return float(np.mean(ratios))


def choose(name: str, windows: tuple[int, ...], relatives: tuple[str, ...], rows: int) -> None:
    """Print the mean and the worst ratio over blocks of the training part."""
    print(
        f"\n### {name}\n\n| window | relative | amplitudes | mean | worst |\n|---|---|---|---|---|"
    )
    first = max(windows) + PRESETS[name].season
    edges = np.linspace(first, rows, BLOCKS + 1).astype(int).tolist()
    amplitudes = ((1.0,), AMPLITUDES)
    for window, relative, heights in product(windows, relatives, amplitudes):
        described = forecaster_for(name, window=window, relative=relative)
        found = [block_ratio(name, described, heights, block) for block in pairwise(edges)]
        texts = " ".join(f"{height:g}" for height in heights)
        print(
            f"| {window} | {relative} | {texts} | {np.mean(found):.3f} | {max(found):.3f} |",
            flush=True,
        )


def trained(name: str, horizon: int, seed: int) -> tuple[Evaluation, float]:
    """Train by the command; return the scores on the held-out part, and the seconds it took."""
    series, start = series_called(name), perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.safetensors")
        arguments = ["train", "series", name, "--horizon", str(horizon), "--seed", str(seed)]
        with contextlib.redirect_stdout(io.StringIO()):
            code = command_line([*arguments, "--backend", "numpy", "--out", path])
        if code:
            raise SystemExit(f"rnn-xp {' '.join(arguments)} failed")
        seconds = perf_counter() - start
        model, params, *_, task = load(path)
    described = Forecaster.build(task["forecaster"])
    origins = parts_of(described, series).held_out
    scale = task["naive_scale"]
    return evaluate(described, model, params, NUMPY, "float32", series, origins, scale), seconds


def autoregression(series: Series, origins: Rows, horizon: int, rows: int, most: int) -> Any:
    """Return the forecasts (O, K) of an autoregression, and what it is."""
    filled = Filled(series.values[:, 0], "linear")
    known = filled.seen(np.asarray([rows - 1]), np.arange(rows)[None, :])[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a time index is not given, and not needed
        orders = {
            trend: ar_select_order(known, most, ic="aic", trend=trend).ar_lags
            for trend in ("c", "ct")
        }
        fits = [AutoReg(known, lags, trend=trend).fit() for trend, lags in orders.items()]
        hold = [AutoReg(known, lags, trend=t, hold_back=most).fit() for t, lags in orders.items()]
    best = int(np.argmin([one.aic for one in hold]))  # on the same rows, so that they compare
    trend, lags = list(orders.items())[best]
    values = np.asarray(fits[best].params)
    weights, constant = values[-len(lags) :][::-1], values[0]
    slope = values[1] if trend == "ct" else 0.0
    past = filled.seen(origins, past_rows(origins, len(lags)))
    for k in range(1, horizon + 1):
        time = origins + k + 1  # statsmodels counts the rows from 1
        new = constant + slope * time + past[:, -len(lags) :] @ weights
        past = np.concatenate((past, new[:, None]), axis=1)
    label = f"AR({len(lags)}){' with a trend' if slope else ''}"
    return past[:, len(lags) :], label


def compare(name: str, horizon: int) -> None:
    """Print the scores of five seeds beside those of the baselines."""
    series = series_called(name)
    described = forecaster_for(name, horizon=horizon)
    parts = parts_of(described, series)
    results = [trained(name, horizon, seed) for seed in range(SEEDS)]
    found = [one for one, _ in results]
    actual = described.actual(series, parts.held_out)
    scale = naive_scale(series.values[: parts.training_rows, 0], described.season)
    forecast, label = autoregression(
        series, parts.held_out, horizon, parts.training_rows, MAX_LAG[name]
    )
    steps, overall = errors_of(forecast, actual, scale)
    naive = found[0].naive_overall
    default = " (the default)" if horizon == PRESETS[name].horizon else ""
    print(
        f"\n### {name}, horizon {horizon}{default}\n\n"
        f"{len(parts.held_out)} origins, {series.times[parts.training_rows]} to "
        f"{series.times[-1]}; {max(s for _, s in results):.0f} s a training at most.\n\n"
        "| | MAE | RMSE | MASE | MAE / seasonal naive's | MASE, first step | MASE, last step |\n"
        f"|---|{'---|' * 6}"
    )

    def line(title: str, *columns: list[float]) -> None:
        print(f"| {title} | {' | '.join(spread(column) for column in columns)} |")

    line(
        f"rnn_xp, {SEEDS} seeds",
        *([float(getattr(one.overall, key)) for one in found] for key in ("mae", "rmse", "mase")),
        [one.ratio for one in found],
        *([float(one.steps.mase[k]) for one in found] for k in (0, -1)),
    )
    for title, whole, each in (
        (label, overall, steps),
        ("seasonal naive", naive, found[0].naive_steps),
    ):
        ratio = float(whole.mae / naive.mae)
        values = (whole.mae, whole.rmse, whole.mase, ratio, each.mase[0], each.mase[-1])
        line(title, *([float(value)] for value in values))
    print(
        f"\nMASE of each seed: {', '.join(f'{one.overall.mase:.3f}' for one in found)}. 80 % "
        f"intervals hold {spread([100 * one.coverage for one in found])} %; mean quantile loss "
        f"{spread([one.pinball for one in found])}."
    )


def spread(values: list[float]) -> str:
    """Return the mean, and the standard deviation over the seeds."""
    mean = f"{np.mean(values):.4g}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):.2g}"


def main() -> None:
    print(
        f"Python {platform.python_version()}, NumPy {np.__version__}, statsmodels "
        f"{statsmodels.__version__}, float32, one thread\n\n## Chosen on the training part\n\n"
        f"Each of {BLOCKS} blocks of the training part is forecast by networks "
        "that are trained on the rest of\nit: MAE divided by that of seasonal naive, mean and "
        "worst block. Taken is the lowest mean."
    )
    rows = parts_of(forecaster_for("sunspots"), series_called("sunspots")).training_rows
    choose("sunspots", (11, 22), ("none", "last", "season"), rows)
    rows = parts_of(forecaster_for("co2"), series_called("co2")).training_rows
    choose("co2", (104,), ("last", "season"), rows)
    print(
        "\n## The held-out part\n\nMean ± standard deviation over the seeds. MASE divides by the "
        "mean change over one season in\nthe training part; below 1 a forecast is better than "
        "seasonal naive was there. The horizon is a choice of the task:\nabout as far as the "
        "sunspots' MASE stays below 1 on the held-out years; at a whole cycle of 11 it\nis above, "
        "and the autoregression's too."
    )
    for name, horizons in HORIZONS.items():
        for horizon in horizons:
            compare(name, horizon)


if __name__ == "__main__":
    Parser(description=__doc__.splitlines()[0]).parse_args()
    main()
