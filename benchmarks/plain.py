"""The plainest NumPy loops of the three cells: what a reader of a textbook writes first.

Forward and backward through time, arrays (T, B, ·), one product for the input and one for the
recurrence at every step, new arrays everywhere. The benchmark measures the library against them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Params = dict[str, Array]


def sigmoid(a: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-a))


def weights(params: Params) -> tuple[Array, Array, Array, Array]:
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    w_ih, w_hh, b_ih, b_hh = (params[name] for name in names)
    return w_ih, w_hh, b_ih, b_hh


def rnn_forward(params: Params, x: Array) -> tuple[Array, list[Any]]:
    w_ih, w_hh, b_ih, b_hh = weights(params)
    h = np.zeros((x.shape[1], w_hh.shape[1]), dtype=x.dtype)
    outputs, tape = [], []
    for x_t in x:
        new = np.tanh(x_t @ w_ih.T + b_ih + h @ w_hh.T + b_hh)
        tape.append((x_t, h, new))
        h = new
        outputs.append(h)
    return np.stack(outputs), tape


def rnn_backward(params: Params, tape: list[Any], dy: Array) -> tuple[Params, Array]:
    w_ih, w_hh, _, _ = weights(params)
    grads = {name: np.zeros_like(value) for name, value in params.items()}
    dh = np.zeros_like(dy[0])
    dx = []
    for (x_t, h, new), dy_t in zip(reversed(tape), dy[::-1], strict=True):
        da = (dh + dy_t) * (1.0 - new * new)
        accumulate(grads, da, da, x_t, h)
        dx.append(da @ w_ih)
        dh = da @ w_hh
    return grads, np.stack(dx[::-1])


def lstm_forward(params: Params, x: Array) -> tuple[Array, list[Any]]:
    w_ih, w_hh, b_ih, b_hh = weights(params)
    h = np.zeros((x.shape[1], w_hh.shape[1]), dtype=x.dtype)
    c = np.zeros_like(h)
    outputs, tape = [], []
    for x_t in x:
        a_i, a_f, a_g, a_o = np.split(x_t @ w_ih.T + b_ih + h @ w_hh.T + b_hh, 4, axis=1)
        i, f, g, o = sigmoid(a_i), sigmoid(a_f), np.tanh(a_g), sigmoid(a_o)
        c_new = f * c + i * g
        tanh_c = np.tanh(c_new)
        tape.append((x_t, h, c, i, f, g, o, tanh_c))
        h, c = o * tanh_c, c_new
        outputs.append(h)
    return np.stack(outputs), tape


def lstm_backward(params: Params, tape: list[Any], dy: Array) -> tuple[Params, Array]:
    w_ih, w_hh, _, _ = weights(params)
    grads = {name: np.zeros_like(value) for name, value in params.items()}
    dh, dc = np.zeros_like(dy[0]), np.zeros_like(dy[0])
    dx = []
    for (x_t, h, c, i, f, g, o, tanh_c), dy_t in zip(reversed(tape), dy[::-1], strict=True):
        dh = dh + dy_t
        dc = dc + dh * o * (1.0 - tanh_c * tanh_c)
        da = np.concatenate(
            (
                dc * g * i * (1.0 - i),
                dc * c * f * (1.0 - f),
                dc * i * (1.0 - g * g),
                dh * tanh_c * o * (1.0 - o),
            ),
            axis=1,
        )
        accumulate(grads, da, da, x_t, h)
        dx.append(da @ w_ih)
        dh, dc = da @ w_hh, dc * f
    return grads, np.stack(dx[::-1])


def gru_forward(params: Params, x: Array) -> tuple[Array, list[Any]]:
    w_ih, w_hh, b_ih, b_hh = weights(params)
    h = np.zeros((x.shape[1], w_hh.shape[1]), dtype=x.dtype)
    outputs, tape = [], []
    for x_t in x:
        r_x, z_x, n_x = np.split(x_t @ w_ih.T + b_ih, 3, axis=1)
        r_h, z_h, q = np.split(h @ w_hh.T + b_hh, 3, axis=1)
        r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
        n = np.tanh(n_x + r * q)
        tape.append((x_t, h, r, z, n, q))
        h = (1.0 - z) * n + z * h
        outputs.append(h)
    return np.stack(outputs), tape


def gru_backward(params: Params, tape: list[Any], dy: Array) -> tuple[Params, Array]:
    w_ih, w_hh, _, _ = weights(params)
    grads = {name: np.zeros_like(value) for name, value in params.items()}
    dh = np.zeros_like(dy[0])
    dx = []
    for (x_t, h, r, z, n, q), dy_t in zip(reversed(tape), dy[::-1], strict=True):
        dh = dh + dy_t
        da_n = dh * (1.0 - z) * (1.0 - n * n)
        da_z = dh * (h - n) * z * (1.0 - z)
        da_r = da_n * q * r * (1.0 - r)
        da_x = np.concatenate((da_r, da_z, da_n), axis=1)
        da_h = np.concatenate((da_r, da_z, da_n * r), axis=1)
        accumulate(grads, da_x, da_h, x_t, h)
        dx.append(da_x @ w_ih)
        dh = dh * z + da_h @ w_hh
    return grads, np.stack(dx[::-1])


def accumulate(grads: Params, da_x: Array, da_h: Array, x: Array, h: Array) -> None:
    grads["weight_ih_l0"] += da_x.T @ x
    grads["weight_hh_l0"] += da_h.T @ h
    grads["bias_ih_l0"] += da_x.sum(axis=0)
    grads["bias_hh_l0"] += da_h.sum(axis=0)


FORWARD = {"RNN": rnn_forward, "LSTM": lstm_forward, "GRU": gru_forward}
BACKWARD = {"RNN": rnn_backward, "LSTM": lstm_backward, "GRU": gru_backward}
