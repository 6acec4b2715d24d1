"""Time series: how many sunspots will there be in the next four years?

Trains a GRU on the years up to 1946, measures its forecasts on those from 1947 to 2008, and
forecasts what comes after, with intervals of 80 %.
"""

import numpy as np

from rnn_xp import sequence_model
from rnn_xp.backend import select
from rnn_xp.datasets import load_sunspots
from rnn_xp.fitting import Settings, fit
from rnn_xp.tasks.examples import gradients_of
from rnn_xp.tasks.rolling import evaluate, parts_of
from rnn_xp.tasks.scores import naive_scale
from rnn_xp.tasks.series import Forecaster
from rnn_xp.tasks.windows import series_of, times_after

series = series_of(load_sunspots(), "SUNACTIVITY", time="YEAR")
forecaster = Forecaster("SUNACTIVITY", horizon=4, window=11, season=11, relative="none")
parts = parts_of(forecaster, series)
forecaster = forecaster.learn(series, parts.train)  # the scale of what is read and written
windows, targets = forecaster.examples(series, parts.train)

backend = select("numpy")
model = sequence_model(forecaster.channels, forecaster.outputs, hidden_size=16, pool="last")
gradients = gradients_of(model, backend, "float32", windows, targets, forecaster.loss)
settings = Settings(epochs=15, learning_rate=0.01)
fitted = fit(model.init(seed=0), gradients, len(targets), settings)

arguments = (model, fitted.params, backend, "float32", series)
scale = naive_scale(series.values[: parts.training_rows, 0], forecaster.season)
found = evaluate(forecaster, *arguments, parts.held_out, scale)
print(f"MASE {found.overall.mase:.2f}, of seasonal naive {found.naive_overall.mase:.2f}")
ahead = forecaster.forecast(*arguments, np.asarray([len(series) - 1]))[0]
for year, (low, middle, high) in zip(times_after(series.times, 4), ahead, strict=True):
    print(f"{year}: {middle:5.1f} sunspots, from {low:5.1f} to {high:5.1f}")
