"""The nine mistakes of the teaching script: its formula fails a check that ours passes.

The script's network: s_t = tanh(U x_t + W s_{t-1} + b), o_t = σ(V s_t + c), and the error
Σ (y_t - o_t)² / 2, with s_{-1} = 0.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from rnn_xp import RNN, Chain, Linear, losses, optim

T, I, H, O = 10, 3, 5, 2  # noqa: E741 - the script's sizes
RNG = np.random.default_rng(0)
X, Y = RNG.random((T, I)), RNG.random((T, O))
MODEL = Chain((("rnn", RNN(I, H)), ("linear", Linear(H, O))))
PARAMS = MODEL.init(1, dtype="float64")
Array = np.ndarray[Any, Any]
Grads = dict[str, Array]


def sigmoid(a: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-a))


def script(params: Grads) -> tuple[Array, Array]:
    """Return o and s of the script's forward pass."""
    u, w = params["rnn.weight_ih_l0"], params["rnn.weight_hh_l0"]
    b = params["rnn.bias_ih_l0"] + params["rnn.bias_hh_l0"]
    s = np.zeros((T + 1, H))
    for t in range(T):
        s[t] = np.tanh(u @ X[t] + w @ s[t - 1] + b)
    return sigmoid(s[:T] @ params["linear.weight"].T + params["linear.bias"]), s


def script_backward(params: Grads, *, through_time: bool, slope: bool, output_slope: bool) -> Grads:
    """The script's backward pass, with each of three mistakes made right on request."""
    o, s = script(params)
    u, w, v = params["rnn.weight_ih_l0"], params["rnn.weight_hh_l0"], params["linear.weight"]
    du, dw, dv = np.zeros_like(u), np.zeros_like(w), np.zeros_like(v)
    later = np.zeros(H)
    for t in reversed(range(T)):
        delta_o = o[t] - Y[t]
        if output_slope:
            delta_o = delta_o * o[t] * (1.0 - o[t])
        delta = v.T @ delta_o
        if through_time:
            delta = delta + w.T @ later
        delta = delta * (1.0 - (s[t] if slope else np.tanh(s[t])) ** 2)
        later = delta
        dv += np.outer(delta_o, s[t])
        du += np.outer(delta, X[t])
        dw += np.outer(delta, s[t - 1])
    return {"rnn.weight_ih_l0": du, "rnn.weight_hh_l0": dw, "linear.weight": dv}


def error(params: Grads) -> float:
    logits, _ = MODEL(params, X)
    return float(losses.sigmoid_squared_error(logits, Y)[0])


def ours() -> Grads:
    logits, _, cache = MODEL.forward(PARAMS, X)
    _, dlogits = losses.sigmoid_squared_error(logits, Y)
    return MODEL.backward(PARAMS, cache, dlogits)[0]


def worst(grads: Grads) -> float:
    """Return the largest relative deviation from finite differences of the error."""
    deviations = []
    for name, gradient in grads.items():
        numeric = np.zeros_like(gradient)
        for index in np.ndindex(gradient.shape):
            values = []
            for step in (1e-6, -1e-6):
                moved = {key: value.copy() for key, value in PARAMS.items()}
                moved[name][index] += step
                values.append(error(moved))
            numeric[index] = (values[0] - values[1]) / 2e-6
        deviations.append(np.abs(gradient - numeric).max() / np.abs(numeric).max())
    return float(max(deviations))


def test_the_forward_pass_is_the_script_s() -> None:
    o, _ = script(PARAMS)
    np.testing.assert_allclose(losses.sigmoid(MODEL(PARAMS, X)[0]), o, rtol=0, atol=1e-15)
    assert error(PARAMS) == pytest.approx(float(((Y - o) ** 2).sum() / 2), rel=1e-14)


def test_our_gradients_are_right() -> None:
    assert worst(ours()) < 1e-6


RIGHT = {"through_time": True, "slope": True, "output_slope": True}


def test_the_script_made_right_is_right() -> None:
    assert worst(script_backward(PARAMS, **RIGHT)) < 1e-6


@pytest.mark.parametrize(
    "mistake", ["through_time", "slope", "output_slope"], ids=["mistake1", "mistake2", "mistake3"]
)
def test_one_wrong_formula_is_found(mistake: str) -> None:
    assert worst(script_backward(PARAMS, **(RIGHT | {mistake: False}))) > 1e-3


def test_mistake3_is_the_gradient_of_another_loss() -> None:
    logits, _ = MODEL(PARAMS, X)
    o = losses.sigmoid(logits)
    _, of_cross_entropy = losses.binary_cross_entropy(logits, Y)
    _, of_squared_error = losses.sigmoid_squared_error(logits, Y)
    np.testing.assert_allclose(of_cross_entropy * logits.size, o - Y, rtol=0, atol=1e-15)
    np.testing.assert_allclose(of_squared_error, (o - Y) * o * (1 - o), rtol=0, atol=1e-15)


def test_mistake4_training_assigned_to_names_it_did_not_own() -> None:
    code = "U = 1.0\ndef train():\n    U -= 0.1 * U\ntrain()\n"
    with pytest.raises(UnboundLocalError):
        exec(code, {})
    opt = optim.SGD(0.1)
    before = {name: value.copy() for name, value in PARAMS.items()}
    new, _ = opt.update(ours(), opt.init(PARAMS), PARAMS)
    assert error(new) < error(PARAMS)
    for name, value in before.items():
        assert np.array_equal(PARAMS[name], value)


def test_mistake5_gradients_were_unpacked_by_position() -> None:
    def backward_propagation() -> tuple[int, ...]:
        return 1, 2, 3, 4, 5

    with pytest.raises(ValueError, match="too many values"):
        _du, _dw, _dv = backward_propagation()
    assert list(ours()) == list(PARAMS)


def test_mistake6_the_biases_were_dropped() -> None:
    biases = [name for name in PARAMS if "bias" in name]
    assert len(biases) == 3
    without = {name: value * ("bias" not in name) for name, value in PARAMS.items()}
    assert abs(error(without) - error(PARAMS)) > 1e-3
    assert worst({name: ours()[name] for name in biases}) < 1e-6


def saturated(weight: Array) -> float:
    """Return the part of the units whose tanh has a slope under 0.01 after ten steps."""
    hidden = weight.shape[0]
    h = np.zeros(hidden)
    for _ in range(10):
        h = np.tanh(weight @ h + np.random.default_rng(1).random(hidden))
    return float((1.0 - h * h < 0.01).mean())


@pytest.mark.parametrize("scheme", ["uniform", "glorot", "orthogonal"])
def test_mistake7_weights_from_0_to_1_saturate(scheme: str) -> None:
    hidden = 200
    theirs = np.random.default_rng(0).random((hidden, hidden))
    weight = RNN(3, hidden).init(0, dtype="float64", scheme=scheme)["weight_hh_l0"]
    assert saturated(theirs) == 1.0
    assert saturated(weight) < 0.05
    assert abs(weight.mean()) < 0.01 < theirs.mean()


def test_mistake8_sigmoid_overflowed() -> None:
    x = np.asarray([-1000.0, 0.0, 1000.0])
    with pytest.warns(RuntimeWarning, match="overflow"):
        sigmoid(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert losses.sigmoid(x).tolist() == [0.0, 0.5, 1.0]


def test_mistake9_the_initial_state_was_an_accident() -> None:
    _, s = script(PARAMS)
    s[T] = 0.5  # whoever writes the last row changes the first step
    u, w = PARAMS["rnn.weight_ih_l0"], PARAMS["rnn.weight_hh_l0"]
    b = PARAMS["rnn.bias_ih_l0"] + PARAMS["rnn.bias_hh_l0"]
    first = np.tanh(u @ X[0] + w @ s[-1] + b)
    assert np.abs(first - s[0]).max() > 1e-3

    state = {"rnn": np.full((1, H), 0.5)}
    logits, _, cache = MODEL.forward(PARAMS, X, state)
    _, dlogits = losses.sigmoid_squared_error(logits, Y)
    _, _, dstate = MODEL.backward(PARAMS, cache, dlogits)
    for unit in range(H):
        values = []
        for step in (1e-6, -1e-6):
            moved = state["rnn"].copy()
            moved[0, unit] += step
            y, _ = MODEL(PARAMS, X, {"rnn": moved})
            values.append(float(losses.sigmoid_squared_error(y, Y)[0]))
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(dstate["rnn"][0, unit], abs=1e-8)
