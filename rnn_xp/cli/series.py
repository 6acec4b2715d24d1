"""`train series`, and the use of a forecaster."""

from __future__ import annotations

import argparse
import hashlib
import math
from typing import Any

import numpy as np

from rnn_xp.backend import Backend, dtype_name, select
from rnn_xp.checkpoint import Checkpoint, CheckpointError
from rnn_xp.cli.cells import cell_of
from rnn_xp.cli.console import (
    INTERRUPTED,
    as_csv,
    check_log,
    check_output,
    check_outputs,
    reading,
    say,
)
from rnn_xp.cli.fit import add_fitting, run_fit, save_fitted
from rnn_xp.cli.options import POSITIVE, add_command, count, number
from rnn_xp.files import replace_file
from rnn_xp.fitting import Fitted, Params, Settings
from rnn_xp.models import Chain, sequence_model
from rnn_xp.random import spawn
from rnn_xp.table import read_table
from rnn_xp.tasks.examples import gradients_of
from rnn_xp.tasks.rolling import PRESETS, Evaluation, Parts, Preset, evaluate, parts_of
from rnn_xp.tasks.scores import mean_pinball, naive_scale
from rnn_xp.tasks.series import AMPLITUDES, RELATIVE, Forecaster
from rnn_xp.tasks.windows import (
    MISSING,
    Series,
    SeriesError,
    series_of,
    times_after,
)

DEFAULT = Settings(epochs=20, learning_rate=0.01)
_PARAMS = 2  # the stream of random numbers under the seed, after the fitting's
_LINES = 12  # steps ahead that `train` prints; `eval` prints all


def add_train_series(kinds: Any) -> None:
    """Add `train series`."""
    command = add_command(
        kinds,
        "series",
        _train,
        "train a network to forecast a time series, and compare it with seasonal naive",
        "train series sales.csv --column units --exog price --horizon 12 --season 12",
    )
    command.add_argument(
        "file",
        nargs="?",
        default="sunspots",
        metavar="FILE",
        help="a CSV file with a row a time step, evenly spaced, or one of the built-in series "
        "sunspots (a row a year) and co2 (a row a week)",
    )
    data = command.add_argument_group(
        "data", "The built-in series bring values of their own for what is left out."
    )
    data.add_argument("--column", metavar="NAME", help="the column to forecast")
    data.add_argument(
        "--exog",
        nargs="+",
        metavar="NAME",
        help="more columns to read: their values up to the origin of a forecast, none after it",
    )
    data.add_argument(
        "--time",
        metavar="NAME",
        help="the column that labels the rows (default: the first one that is not all numbers, "
        "else the number of the row)",
    )
    data.add_argument(
        "--horizon", type=count(1), metavar="K", help="steps to forecast (sunspots: 4, co2: 52)"
    )
    data.add_argument(
        "--window",
        type=count(1),
        metavar="W",
        help="steps of the past that a forecast reads (sunspots: 11, co2: 104, else twice the "
        "season or the horizon, whichever is longer)",
    )
    data.add_argument(
        "--season",
        type=count(1),
        metavar="M",
        help="steps after which the series repeats itself, for the seasonal naive forecast and "
        "MASE (sunspots: 11, co2: 52, else 1, the naive forecast)",
    )
    data.add_argument(
        "--quantiles",
        type=float,
        nargs="+",
        default=(0.1, 0.5, 0.9),
        metavar="Q",
        help="rising, 0.5 among them; sorted in a forecast, so that they do not cross",
    )
    data.add_argument(
        "--relative",
        choices=RELATIVE,
        help="what the network reads and forecasts: the values, their distance to the last one "
        "(for a series with a trend), or their difference to the season before (sunspots: none, "
        "else last)",
    )
    data.add_argument(
        "--missing",
        choices=MISSING,
        default="linear",
        help="what stands for a missing value: the line between its neighbours (the last value "
        "where the next one is not known yet), the last value, or the last value and a channel "
        "that says so; never trained on as a value to forecast, nor counted",
    )
    data.add_argument(
        "--amplitudes",
        type=POSITIVE,
        nargs="+",
        default=AMPLITUDES,
        metavar="A",
        help="train on each window at these multiples of its height",
    )
    part = number(0.0, 0.9, open_below=True)
    data.add_argument(
        "--held-out", type=part, default=0.2, metavar="PART", help="the end, to be judged on"
    )
    data.add_argument(
        "--validation",
        type=part,
        default=0.2,
        metavar="PART",
        help="the end of the rest: the epoch that is best on it is kept",
    )
    add_fitting(command, DEFAULT, cell="gru", hidden_size=16)


def _train(options: argparse.Namespace) -> int:
    backend = select(options.backend, options.device)
    backend.dtype(options.dtype)
    check_output(options)
    check_log(options)
    preset = PRESETS.get(options.file)
    forecaster = _described(options, preset)
    series = _series(options.file, forecaster)
    parts = parts_of(forecaster, series, held_out=options.held_out, validation=options.validation)
    forecaster = forecaster.learn(series, parts.train)
    scale = _scale(series, parts, forecaster.season)
    model = sequence_model(
        forecaster.channels,
        forecaster.outputs,
        cell=cell_of(options),
        hidden_size=options.hidden_size,
        num_layers=options.layers,
        dropout=options.dropout,
        pool="last",
    )
    _introduce(options, backend, model, forecaster, series, parts)
    fitted = _fit(options, backend, model, forecaster, series, parts)
    task = {
        "kind": "series",
        "forecaster": forecaster.describe(),
        "naive_scale": scale,
        "built_in": options.file if preset else None,
        "digest": _digest(series),
        "held_out": options.held_out,
        "validation": options.validation,
    }
    if not save_fitted(options, model, fitted, task):
        return INTERRUPTED
    found = evaluate(
        forecaster, model, fitted.params, backend, options.dtype, series, parts.held_out, scale
    )
    print(f"\nThe held-out part, {_judged(series, parts)}:\n")
    _print_evaluation(found, forecaster, _LINES)
    return 0


def _described(options: argparse.Namespace, preset: Preset | None) -> Forecaster:
    """Return the forecaster that the options and the preset describe."""
    column = options.column or (preset.column if preset else None)
    if column is None:
        raise ValueError(f"{options.file}: say with --column which column to forecast")
    horizon = options.horizon or (preset.horizon if preset else None)
    if horizon is None:
        raise ValueError(f"{options.file}: say with --horizon how many steps to forecast")
    season = options.season or (preset.season if preset else 1)
    return Forecaster(
        column,
        horizon,
        options.window or (preset.window if preset else 2 * max(season, horizon)),
        season,
        tuple(options.exog or ()),
        options.time or (preset.time if preset else None),
        tuple(options.quantiles),
        options.relative or (preset.relative if preset else "last"),
        options.missing,
    )


def _series(source: str, forecaster: Forecaster) -> Series:
    table = PRESETS[source].load() if source in PRESETS else read_table(source)
    return series_of(table, forecaster.column, forecaster.exog, time=forecaster.time)


def _scale(series: Series, parts: Parts, season: int) -> float:
    try:
        return naive_scale(series.values[: parts.training_rows, 0], season)
    except SeriesError as error:
        raise SeriesError(f"{series.source}: {error}") from error


def _introduce(
    options: argparse.Namespace,
    backend: Backend,
    model: Chain,
    forecaster: Forecaster,
    series: Series,
    parts: Parts,
) -> None:
    """Say what is trained on what."""
    size = sum(math.prod(shape) for shape in model.shapes.values())
    gaps = ", ".join(f"{count} of {name}" for name, count in series.missing.items())
    how = {
        "linear": "filled by the line between their neighbours",
        "last": "filled by the last value before them",
        "mask": "masked: the last value, and a channel that says that it is missing",
    }[forecaster.missing]
    say(
        f"{series.source}: {len(series):,} rows, {series.times[0]} to {series.times[-1]}"
        + (f" ({series.dropped} before the first whole row left out)" if series.dropped else "")
        + f"; missing values: {gaps}"
        + (f", {how}" if any(series.missing.values()) else "")
        + f"\n{len(parts.train):,} windows of {forecaster.window} steps to train on, "
        f"{len(parts.validation):,} to validate on, {len(parts.held_out):,} held out; horizon "
        f"{forecaster.horizon}, season {forecaster.season}\n"
        f"{size:,} parameters, {options.dtype}, backend {backend.name} ({backend.device_name})",
    )


def _fit(
    options: argparse.Namespace,
    backend: Backend,
    model: Chain,
    forecaster: Forecaster,
    series: Series,
    parts: Parts,
) -> Fitted:
    dtype = options.dtype
    params = model.init(
        spawn(options.seed, _PARAMS), backend=backend.name, device=options.device, dtype=dtype
    )
    windows, targets = forecaster.examples(series, parts.train, options.amplitudes)
    actual = forecaster.actual(series, parts.validation)

    def validate(params: Params) -> float:
        found = forecaster.forecast(model, params, backend, dtype, series, parts.validation)
        return mean_pinball(found, actual, forecaster.quantiles)

    gradients = gradients_of(model, backend, dtype, windows, targets, forecaster.loss)
    return run_fit(options, params, gradients, len(targets), validate=validate)


def eval_series(options: argparse.Namespace, backend: Backend, checkpoint: Checkpoint) -> int:
    """Print the rolling-origin evaluation of a forecaster, every step ahead."""
    forecaster, series = _used(options, checkpoint)
    with reading(options.model):
        digest, scale = checkpoint.task["digest"], float(checkpoint.task["naive_scale"])
        shares = {name: float(checkpoint.task[name]) for name in ("held_out", "validation")}
        for name, share in shares.items():
            if not 0.0 < share < 1.0:
                raise ValueError(f"{name} is {share}")
    if _digest(series) == digest:
        parts = parts_of(forecaster, series, **shares)
        origins, what = parts.held_out, f"the held-out part, {_judged(series, parts)}"
    else:
        origins = forecaster.origins(0, len(series))
        what = f"all of its {len(series):,} rows, which are not those of the training"
    found = evaluate(
        forecaster,
        checkpoint.model,
        checkpoint.params,
        backend,
        _dtype(checkpoint),
        series,
        origins,
        scale,
    )
    print(f"{series.source}: {what}:\n")
    _print_evaluation(found, forecaster, forecaster.horizon)
    return 0


def predict_series(options: argparse.Namespace, backend: Backend, checkpoint: Checkpoint) -> int:
    """Print the forecast from the end of a series; write it to a CSV file on request."""
    check_output(options)
    forecaster, series = _used(options, checkpoint)
    origins = np.asarray([len(series) - 1])
    if origins[0] < forecaster.first_origin:
        raise SeriesError(
            f"{series.source}: too few rows, {len(series)}: a forecast reads "
            f"{forecaster.first_origin + 1}"
        )
    found = forecaster.forecast(
        checkpoint.model, checkpoint.params, backend, _dtype(checkpoint), series, origins
    )[0]
    rows = _forecast_rows(forecaster, series, found)
    width = max(len(time) for time, *_ in rows)
    names = [f"q{quantile:g}" for quantile in forecaster.quantiles]
    print(f"{'time':>{width}}  " + "  ".join(f"{name:>12}" for name in ("forecast", *names)))
    for time, _, *values in rows[-forecaster.horizon :]:
        print(f"{time:>{width}}  " + "  ".join(f"{value:>12}" for value in values))
    if options.out is not None:
        replace_file(options.out, as_csv([("time", "actual", "forecast", *names), *rows]))
        print(f"written to {options.out}")
    return 0


def _forecast_rows(
    forecaster: Forecaster, series: Series, found: np.ndarray[Any, Any]
) -> list[tuple[str, ...]]:
    """Return rows of time, actual, forecast and quantiles: the last observed ones, then K more."""
    empty = ("",) * (1 + len(forecaster.quantiles))
    start = max(0, len(series) - 3 * forecaster.horizon)
    rows = [
        (time, "" if math.isnan(value) else f"{value:.6g}", *empty)
        for time, value in zip(series.times[start:], series.values[start:, 0], strict=True)
    ]
    ahead = times_after(series.times, forecaster.horizon)
    for time, values in zip(ahead, found, strict=True):
        texts = [f"{value:.6g}" for value in values]
        rows.append((time, "", texts[forecaster.median], *texts))
    return rows


def _used(options: argparse.Namespace, checkpoint: Checkpoint) -> tuple[Forecaster, Series]:
    """Return the forecaster of a model, and the series to use it on."""
    with reading(options.model):
        forecaster = Forecaster.build(checkpoint.task["forecaster"])
        built_in = checkpoint.task["built_in"]
    check_outputs(options.model, checkpoint.model, forecaster.outputs, "quantiles of steps")
    if options.file is None and built_in is None:
        raise CheckpointError(f"{options.model} was trained on a file: give a FILE")
    return forecaster, _series(str(options.file or built_in), forecaster)


def _dtype(checkpoint: Checkpoint) -> str:
    return dtype_name(next(iter(checkpoint.params.values())).dtype)


def _digest(series: Series) -> str:
    """Return what tells the values of a series from others."""
    return hashlib.sha256(series.values.tobytes()).hexdigest()


def _judged(series: Series, parts: Parts) -> str:
    return (
        f"{series.times[parts.training_rows]} to {series.times[-1]}: forecasts from "
        f"{len(parts.held_out):,} origins, with nothing fitted again"
    )


def _print_evaluation(found: Evaluation, forecaster: Forecaster, lines: int) -> None:
    """Print scores for up to `lines` steps ahead, and overall, beside seasonal naive."""
    naive = "seasonal naive" if forecaster.season > 1 else "naive"
    names = f"{'MAE':>10} {'RMSE':>10} {'MASE':>6}"
    print(f"{'':11} {'network':>28}   {naive:>28}   {'ratio':>6}")
    print(f"{'steps ahead':11} {names}   {names}   {'of MAE':>6}")
    horizon = forecaster.horizon
    shown = np.unique(np.linspace(1, horizon, min(lines, horizon)).round().astype(int))
    for label, ours, theirs in [
        *((str(k), _row(found.steps, k - 1), _row(found.naive_steps, k - 1)) for k in shown),
        ("all", _row(found.overall), _row(found.naive_overall)),
    ]:
        scores = (f"{mae:10.4g} {rmse:10.4g} {mase:6.3f}" for mae, rmse, mase in (ours, theirs))
        print(f"{label:>11} {'   '.join(scores)}   {ours[0] / theirs[0]:6.3f}")
    low, high = forecaster.quantiles[0], forecaster.quantiles[-1]
    if len(forecaster.quantiles) > 1:
        print(
            f"\n{100 * (high - low):.3g} % interval (q{low:g} to q{high:g}) holds "
            f"{100 * found.coverage:.1f} %; ",
            end="",
        )
    print(f"mean quantile loss {found.pinball:.4g}")
    print(
        "MASE: MAE divided by the training part's mean change over one season of "
        f"{forecaster.season}."
    )


def _row(scores: Any, step: int | None = None) -> tuple[float, float, float]:
    values = (scores.mae, scores.rmse, scores.mase)
    mae, rmse, mase = (float(v if step is None else v[step]) for v in values)
    return mae, rmse, mase
