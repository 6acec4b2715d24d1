"""Windows, forecasts and scores of a series against plain loops; and nothing from the future."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from targets import HostArray, Target

from rnn_xp.backend import select
from rnn_xp.fitting import Settings, fit
from rnn_xp.models import sequence_model
from rnn_xp.table import Table, TableError, parse_table
from rnn_xp.tasks.examples import gradients_of
from rnn_xp.tasks.rolling import PRESETS, evaluate, parts_of
from rnn_xp.tasks.scores import coverage, errors_of, mean_pinball, naive_scale
from rnn_xp.tasks.series import RELATIVE, Forecaster
from rnn_xp.tasks.windows import (
    MISSING,
    Filled,
    Series,
    SeriesError,
    seasonal_naive,
    series_of,
    times_after,
)

NUMPY = select("numpy")


def wavy(rows: int = 60, *, gaps: bool = True, seed: int = 0) -> Series:
    """Return two columns, one a noisy wave with a trend; some values are missing."""
    rng = np.random.default_rng(seed)
    t = np.arange(rows)
    wave = 3.0 * np.sin(2 * np.pi * t / 6) + 0.1 * t + rng.normal(0.0, 0.3, rows)
    values = np.stack((wave, rng.standard_normal(rows)), axis=1)
    if gaps:
        for row, column in ((7, 0), (8, 0), (20, 1), (33, 0), (41, 0), (55, 0), (56, 0)):
            values[row, column] = math.nan
    return Series("wavy", ("wave", "noise"), values, tuple(str(k) for k in t))


def forecaster(**changes: Any) -> Forecaster:
    plain = Forecaster("wave", 4, 5, 6, ("noise",), relative="none")
    return replace(plain, **changes)


def known(values: HostArray, row: int, origin: int, missing: str) -> float:
    """Return a value as a forecaster at `origin` may know it, by looking about, row by row."""
    before = row
    while math.isnan(values[before]):
        before -= 1
    if before == row or missing != "linear":
        return float(values[before])
    after = row
    while after <= origin and math.isnan(values[after]):
        after += 1
    if after > origin:
        return float(values[before])
    part = (row - before) / (after - before)
    return float(values[before] + part * (values[after] - values[before]))


@pytest.mark.parametrize("relative", RELATIVE)
@pytest.mark.parametrize("missing", MISSING)
def test_windows_and_targets_are_those_of_a_scalar_loop(missing: str, relative: str) -> None:
    series = wavy()
    described = forecaster(missing=missing, relative=relative)
    described = described.learn(series, described.origins(0, 40))
    origins = described.origins(40, 60)
    x, y = described.inputs(series, origins), described.targets(series, origins)
    base = described.base(series, origins)
    values = series.values
    for k, origin in enumerate(range(39, 56)):
        assert origins[k] == origin
        last = known(values[:, 0], origin, origin, missing)
        for step in range(5):
            row = origin - 4 + step
            one = known(values[:, 0], row, origin, missing)
            if relative == "last":
                one -= last
            if relative == "season":
                one -= known(values[:, 0], row - 6, origin, missing)
            expected = [one, known(values[:, 1], row, origin, missing)]
            expected = [
                (v - m) / s
                for v, m, s in zip(expected, described.means, described.scales, strict=False)
            ]
            if missing == "mask":
                expected += [float(not math.isnan(v)) for v in values[row]]
            np.testing.assert_allclose(x[k, step], expected, rtol=0, atol=1e-12)
        for step in range(1, 5):
            under = {
                "none": 0.0,
                "last": last,
                "season": known(values[:, 0], origin + step - 6, origin, missing),
            }[relative]
            assert base[k, step - 1] == pytest.approx(under, abs=1e-12)
            distance = values[origin + step, 0] - under
            expected_target = (distance - described.target_mean) / described.target_scale
            np.testing.assert_allclose(y[k, step - 1], expected_target, rtol=0, atol=1e-12)
    assert len(origins) == 17


def test_what_is_learnt_has_mean_0_and_deviation_1_on_the_training_part() -> None:
    series = wavy()
    described = forecaster(missing="mask", relative="last")
    origins = described.origins(0, 40)
    described = described.learn(series, origins)
    x, y = described.inputs(series, origins), described.targets(series, origins)
    np.testing.assert_allclose(x[:, :, :2].mean(axis=(0, 1)), 0.0, atol=1e-12)
    np.testing.assert_allclose(x[:, :, :2].std(axis=(0, 1)), 1.0, rtol=1e-12)
    assert set(np.unique(x[:, :, 2:])) == {0.0, 1.0}
    assert np.nanmean(y) == pytest.approx(0.0, abs=1e-12)
    assert np.nanstd(y) == pytest.approx(1.0)


@pytest.mark.parametrize("relative", RELATIVE)
@pytest.mark.parametrize("missing", MISSING)
def test_the_future_changes_neither_scales_nor_forecasts(missing: str, relative: str) -> None:
    series = wavy()
    described = forecaster(missing=missing, relative=relative)
    parts = parts_of(described, series)
    learnt = described.learn(series, parts.train)
    last_seen = int(parts.train[-1]) + described.horizon
    changed = replace(series, values=series.values.copy())
    changed.values[last_seen + 1 :] = 1e6
    assert described.learn(changed, parts.train) == learnt
    model = sequence_model(learnt.channels, learnt.outputs, hidden_size=4, pool="last")
    params = model.init(0)
    for origin in parts.held_out:
        changed = replace(series, values=series.values.copy())
        changed.values[origin + 1 :] = 1e6
        one = np.asarray([origin])
        first, second = (
            learnt.forecast(model, params, NUMPY, "float32", given, one)
            for given in (series, changed)
        )
        assert np.array_equal(first, second), origin
        assert np.array_equal(learnt.naive(series, one), learnt.naive(changed, one))


def test_a_part_s_targets_lie_in_the_part() -> None:
    parts = parts_of(forecaster(), wavy(), held_out=0.25, validation=0.2)
    assert parts.training_rows == 45
    assert (parts.held_out[0], parts.held_out[-1]) == (44, 55)  # targets 45..59
    assert (parts.validation[0], parts.validation[-1]) == (35, 40)  # targets 36..44
    assert (parts.train[0], parts.train[-1]) == (5, 31)  # targets 6..35; a season before 5


def test_seasonal_naive_over_more_than_a_season() -> None:
    values = np.arange(20.0)
    found = seasonal_naive(Filled(values, "last"), np.asarray([9, 12]), 7, 3)
    assert found.tolist() == [[7, 8, 9, 7, 8, 9, 7], [10, 11, 12, 10, 11, 12, 10]]
    naive = seasonal_naive(Filled(values, "last"), np.asarray([9]), 3, 1)
    assert naive.tolist() == [[9, 9, 9]]


def test_rolling_origin_evaluation_is_that_of_a_plain_loop() -> None:
    series = wavy()
    described = forecaster(relative="season")
    parts = parts_of(described, series)
    described = described.learn(series, parts.train)
    model = sequence_model(described.channels, described.outputs, hidden_size=4, pool="last")
    params = model.init(1)
    changes = [
        abs(series.values[t, 0] - series.values[t - 6, 0]) for t in range(6, parts.training_rows)
    ]
    changes = [change for change in changes if not math.isnan(change)]
    scale = naive_scale(series.values[: parts.training_rows, 0], 6)
    assert scale == pytest.approx(sum(changes) / len(changes))
    found = evaluate(described, model, params, NUMPY, "float32", series, parts.held_out, scale)

    errors: list[list[float]] = [[] for _ in range(4)]
    naive: list[float] = []
    losses: list[float] = []
    inside: list[bool] = []
    for origin in parts.held_out:
        one = described.forecast(model, params, NUMPY, "float32", series, np.asarray([origin]))[0]
        for k in range(4):
            actual = series.values[origin + 1 + k, 0]
            if math.isnan(actual):
                continue
            low, middle, high = (float(v) for v in one[k])
            assert low <= middle <= high
            errors[k].append(abs(actual - middle))
            before = known(series.values[:, 0], origin + 1 + k - 6, origin, "linear")
            naive.append(abs(actual - before))
            inside.append(low <= actual <= high)
            for q, value in zip((0.1, 0.5, 0.9), one[k], strict=True):
                losses.append(max(q * (actual - value), (q - 1) * (actual - value)))
    flat = [error for step in errors for error in step]
    mean = sum(flat) / len(flat)
    assert found.origins == len(parts.held_out)
    assert found.overall.mae == pytest.approx(mean, rel=1e-5)
    assert found.overall.rmse == pytest.approx(
        math.sqrt(sum(e * e for e in flat) / len(flat)), rel=1e-5
    )
    assert found.overall.mase == pytest.approx(mean / scale, rel=1e-5)
    expected = [sum(step) / len(step) for step in errors]
    np.testing.assert_allclose(found.steps.mae, expected, rtol=1e-5)
    np.testing.assert_allclose(found.steps.mase, np.asarray(expected) / scale, rtol=1e-5)
    assert found.ratio == pytest.approx(mean / (sum(naive) / len(naive)), rel=1e-5)
    assert found.coverage == pytest.approx(sum(inside) / len(inside))
    assert found.pinball == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_a_step_without_a_value_has_no_score() -> None:
    actual = np.asarray([[1.0, math.nan], [3.0, math.nan]])
    steps, overall = errors_of(np.zeros((2, 2)), actual, 4.0)
    assert steps.mae[0] == 2.0
    assert math.isnan(steps.mae[1])
    assert [float(v) for v in (overall.mae, overall.mase)] == [2.0, 0.5]
    assert float(overall.rmse) == pytest.approx(math.sqrt(5.0))
    assert coverage(np.zeros((2, 2)), np.full((2, 2), 2.0), actual) == 0.5
    assert mean_pinball(np.zeros((2, 2, 1)), actual, (0.9,)) == pytest.approx(1.8)


def test_amplitudes_multiply_window_and_target() -> None:
    for relative in RELATIVE:
        series = wavy()
        described = forecaster(relative=relative)
        origins = described.origins(0, 40)
        described = described.learn(series, origins)
        windows, targets = described.examples(series, origins, (1.0, 2.0))
        count = len(origins)
        x = np.stack(windows.values) * described.scales + described.means
        y = targets * described.target_scale + described.target_mean
        np.testing.assert_allclose(x[count:, :, 0], 2.0 * x[:count, :, 0], rtol=0, atol=1e-9)
        np.testing.assert_allclose(x[count:, :, 1], x[:count, :, 1], rtol=0, atol=1e-12)
        np.testing.assert_allclose(y[count:], 2.0 * y[:count], rtol=0, atol=1e-9)


def test_every_library_trains_and_forecasts_alike(target: Target) -> None:
    series = wavy()
    described = forecaster(missing="mask", relative="last", window=3)
    parts = parts_of(described, series)
    described = described.learn(series, parts.train)
    model = sequence_model(
        described.channels, described.outputs, cell="rnn", hidden_size=3, pool="last"
    )

    def trained(name: str, device: str | None) -> HostArray:
        backend = select(name, device)
        windows, targets = described.examples(series, parts.train[::2], (1.0,))
        gradients = gradients_of(model, backend, "float64", windows, targets, described.loss)
        params = model.init(0, backend=name, device=device, dtype="float64")
        fitted = fit(params, gradients, len(targets), Settings(epochs=2, batch_size=8))
        return described.forecast(model, fitted.params, backend, "float64", series, parts.held_out)

    found = trained(target.backend, target.device_name)
    np.testing.assert_allclose(found, trained("numpy", None), rtol=0, atol=1e-9)


def test_a_forecaster_learns_a_wave() -> None:
    """Of a wave with a trend and gaps, no forecast of the same season knows the trend."""
    series = wavy(200)
    described = forecaster(window=12, relative="last")
    parts = parts_of(described, series)
    described = described.learn(series, parts.train)
    model = sequence_model(described.channels, described.outputs, hidden_size=16, pool="last")
    windows, targets = described.examples(series, parts.train)
    fitted = fit(
        model.init(0),
        gradients_of(model, NUMPY, "float32", windows, targets, described.loss),
        len(targets),
        Settings(epochs=30, learning_rate=0.01),
    )
    scale = naive_scale(series.values[: parts.training_rows, 0], 6)
    found = evaluate(
        described, model, fitted.params, NUMPY, "float32", series, parts.held_out, scale
    )
    assert found.overall.mase < 0.9
    assert found.ratio < 0.9
    assert 0.5 < found.coverage < 0.95


def test_describe_and_build() -> None:
    import json

    described = forecaster(missing="mask", quantiles=(0.25, 0.5))
    described = described.learn(wavy(), described.origins(0, 40))
    assert Forecaster.build(json.loads(json.dumps(described.describe()))) == described
    with pytest.raises(ValueError, match="no forecaster"):
        Forecaster.build({"column": "wave"})


def test_presets_are_series_with_their_known_gaps() -> None:
    found = {
        name: series_of(preset.load(), preset.column, time=preset.time)
        for name, preset in PRESETS.items()
    }
    assert {name: (len(one), sum(one.missing.values())) for name, one in found.items()} == {
        "sunspots": (309, 0),
        "co2": (2284, 59),
    }
    assert (found["co2"].times[0], found["co2"].times[-1]) == ("1958-03-29", "2001-12-29")


def test_times() -> None:
    assert times_after(("1999", "2000", "2001"), 2) == ("2002", "2003")
    assert times_after(("0.5", "0.75"), 2) == ("1", "1.25")
    assert times_after(("2001-12-22", "2001-12-29"), 2) == ("2002-01-05", "2002-01-12")
    assert times_after(("jan", "feb"), 2) == ("+1", "+2")
    assert times_after(("1", "2", "4"), 1) == ("+1",)
    assert times_after(("2001-01-01", "2001-02-01", "2001-03-01"), 1) == ("+1",)
    assert times_after(("5",), 1) == ("+1",)
    assert times_after(("9999-12-29", "9999-12-30"), 1) == ("9999-12-31",)
    assert times_after(("9999-12-29", "9999-12-30"), 2) == ("+1", "+2")


def table(text: str) -> Table:
    return parse_table(text, "t.csv")


def test_series_of_a_table() -> None:
    series = series_of(table("when,a,b\nx,,1\ny,2,3\nz,4,\n"), "a", ("b",))
    assert series.names == ("a", "b")
    assert series.dropped == 1
    assert series.times == ("y", "z")
    assert series.missing == {"a": 0, "b": 1}
    np.testing.assert_array_equal(series.values, [[2.0, 3.0], [4.0, math.nan]])
    assert series_of(table("a,b\n5,1\n6,2\n"), "a").times == ("0", "1")
    assert series_of(table("a,b\n5,1\n6,2\n"), "a", time="b").times == ("1", "2")
    dated = table("d,a\n20011222,1\n20011229,2\n")
    assert series_of(dated, "a", time="d").times == ("2001-12-22", "2001-12-29")


@pytest.mark.parametrize(
    ("times", "wrong"),
    [
        (("2001-01-03", "2001-01-02", "2001-01-01"), "2001-01-02 stands after 2001-01-03"),
        (("2001-01-01", "2001-01-02", "2001-01-02"), "2001-01-02 stands after 2001-01-02"),
        (("2001-11", "2001-12", "2001-10"), "2001-10 stands after 2001-12"),
        (("2001-01-01T09:00", "2001-01-01T08:00", "2001-01-02"), "T08:00 stands after 2001-01-01T"),
        (("9", "10", "1"), "1 stands after 10"),
    ],
)
def test_times_rise(times: tuple[str, ...], wrong: str) -> None:
    rows = list(zip(times, ("1", "3", "2"), strict=True))
    with pytest.raises(SeriesError, match=f"times in the column 'when' must rise .*{wrong}"):
        series_of(table("when,a\n" + "".join(f"{t},{v}\n" for t, v in rows)), "a", time="when")
    rising = [f"{t},{v}\n" for t, v in sorted(rows, key=lambda row: (len(row[0]) - 10, row[0]))]
    if len(set(times)) == 3 and "T" not in times[0]:
        series_of(table("when,a\n" + "".join(rising)), "a", time="when")
    # What is neither time nor number is a label, in any order.
    assert series_of(table("when,a\nc,1\na,2\nb,3\n"), "a").times == ("c", "a", "b")


def test_errors_of_a_table() -> None:
    with pytest.raises(TableError, match=r"t.csv, line 3: the column 'a' has 'x', expected"):
        series_of(table("a\n1\nx\n"), "a")
    with pytest.raises(TableError, match="no column 'c'"):
        series_of(table("a,b\n1,2\n"), "a", ("c",))
    with pytest.raises(TableError, match="no column 'c'"):
        series_of(table("a,b\n1,2\n2,3\n"), "a", time="c")
    with pytest.raises(SeriesError, match="exogenous column 'a' is the column to forecast"):
        series_of(table("a,b\n1,2\n"), "a", ("a",))
    with pytest.raises(SeriesError, match="exogenous column 'b' is named twice"):
        series_of(table("a,b\n1,2\n"), "a", ("b", "b"))
    with pytest.raises(SeriesError, match="all values of the column 'a' are missing"):
        series_of(table("a,b\n,2\nNA,3\n"), "a")
    with pytest.raises(SeriesError, match="'b' is constant, it is 2 in every row"):
        series_of(table("a,b\n1,2\n3,2\n"), "a", ("b",))
    with pytest.raises(SeriesError, match="no row has a value in all of a, b"):
        series_of(table("a,b\n1,\n2,\n,1\n,2\n"), "a", ("b",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"season": 0}, "season must be at least 1, got 0"),
        ({"relative": "first"}, "relative must be one of none, last, season, got 'first'"),
        ({"missing": "zero"}, "missing must be one of linear, last, mask, got 'zero'"),
        ({"quantiles": (0.5, 1.0)}, "between 0 and 1, got 0.5, 1"),
        ({"quantiles": (0.0, 0.5)}, "between 0 and 1, got 0, 0.5"),
        ({"quantiles": (0.9, 0.5, 0.1)}, "quantiles must rise"),
        ({"quantiles": (0.1, 0.9)}, "quantiles must hold 0.5"),
        ({"quantiles": ()}, "quantiles must hold 0.5"),
    ],
)
def test_errors_of_a_forecaster(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        forecaster(**changes)


def test_errors_of_parts_and_scores() -> None:
    with pytest.raises(SeriesError, match="60, of which 3 are held out; a window of 5, a season"):
        parts_of(forecaster(), wavy(), held_out=0.05)
    with pytest.raises(SeriesError, match="2 are to validate on"):
        parts_of(forecaster(), wavy(), validation=0.05)
    with pytest.raises(SeriesError, match="to train on"):
        parts_of(forecaster(window=50), wavy())
    with pytest.raises(SeriesError, match="no value with another one a season of 6"):
        naive_scale(np.arange(5.0), 6)
    with pytest.raises(SeriesError, match="MASE is not defined"):
        naive_scale(np.tile([1.0, 2.0, 3.0], 4), 3)
    with pytest.raises(ValueError, match="missing must be one of"):
        Filled(np.arange(3.0), "zero")


def test_errors_of_learning_and_evaluation() -> None:
    series = wavy()
    described = forecaster()
    with pytest.raises(SeriesError, match="too few rows, 60, for a window of 5"):
        described.learn(series, described.origins(50, 52))
    flat = replace(series, values=series.values.copy())
    for value in (2.0, 0.1):  # the mean of the latter is rounded
        flat.values[:40, 1] = value
        with pytest.raises(SeriesError, match="'noise' is constant in the part to train on"):
            described.learn(flat, described.origins(0, 40))
    empty = replace(series, values=series.values.copy())
    empty.values[20:, 0] = math.nan
    with pytest.raises(SeriesError, match="all values to forecast in the part to train on"):
        described.learn(empty, described.origins(20, 40))
    described = described.learn(series, described.origins(0, 40))
    model = sequence_model(described.channels, described.outputs, hidden_size=2, pool="last")
    arguments = (described, model, model.init(0), NUMPY, "float32")
    with pytest.raises(SeriesError, match="a forecast reads 6 and is compared with the 4 after"):
        evaluate(*arguments, series, described.origins(0, 8), 1.0)
    with pytest.raises(SeriesError, match="all values to be forecast are missing"):
        evaluate(*arguments, empty, described.origins(20, 40), 1.0)
