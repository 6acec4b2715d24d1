"""The loops in PyTorch that a reader of a textbook writes first, without autograd.

Forward and backward through time, tensors (T, B, ·), PyTorch's own sigmoid, new tensors
everywhere. The benchmark of other libraries' arrays measures the core on tensors against them.
"""

from __future__ import annotations

from typing import Any

import torch

Tensor = Any
Params = dict[str, Tensor]


def weights(params: Params) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    w_ih, w_hh, b_ih, b_hh = (params[name] for name in names)
    return w_ih, w_hh, b_ih, b_hh


def rnn_forward(params: Params, x: Tensor) -> tuple[Tensor, list[Any]]:
    w_ih, w_hh, b_ih, b_hh = weights(params)
    h = x.new_zeros((x.shape[1], w_hh.shape[1]))
    outputs, tape = [], []
    for x_t in x:
        new = torch.tanh(x_t @ w_ih.T + b_ih + h @ w_hh.T + b_hh)
        tape.append((x_t, h, new))
        h = new
        outputs.append(h)
    return torch.stack(outputs), tape


def rnn_backward(params: Params, tape: list[Any], dy: Tensor) -> tuple[Params, Tensor]:
    w_ih, w_hh, _, _ = weights(params)
    grads = {name: torch.zeros_like(value) for name, value in params.items()}
    dh = torch.zeros_like(dy[0])
    dx = []
    for (x_t, h, new), dy_t in zip(reversed(tape), reversed(dy.unbind()), strict=True):
        da = (dh + dy_t) * (1.0 - new * new)
        accumulate(grads, da, da, x_t, h)
        dx.append(da @ w_ih)
        dh = da @ w_hh
    return grads, torch.stack(dx[::-1])


def lstm_forward(params: Params, x: Tensor) -> tuple[Tensor, list[Any]]:
    w_ih, w_hh, b_ih, b_hh = weights(params)
    h = x.new_zeros((x.shape[1], w_hh.shape[1]))
    c = torch.zeros_like(h)
    outputs, tape = [], []
    for x_t in x:
        a_i, a_f, a_g, a_o = (x_t @ w_ih.T + b_ih + h @ w_hh.T + b_hh).chunk(4, dim=1)
        i, f, g, o = torch.sigmoid(a_i), torch.sigmoid(a_f), torch.tanh(a_g), torch.sigmoid(a_o)
        c_new = f * c + i * g
        tanh_c = torch.tanh(c_new)
        tape.append((x_t, h, c, i, f, g, o, tanh_c))
        h, c = o * tanh_c, c_new
        outputs.append(h)
    return torch.stack(outputs), tape


def lstm_backward(params: Params, tape: list[Any], dy: Tensor) -> tuple[Params, Tensor]:
    w_ih, w_hh, _, _ = weights(params)
    grads = {name: torch.zeros_like(value) for name, value in params.items()}
    dh, dc = torch.zeros_like(dy[0]), torch.zeros_like(dy[0])
    dx = []
    for (x_t, h, c, i, f, g, o, tanh_c), dy_t in zip(
        reversed(tape), reversed(dy.unbind()), strict=True
    ):
        dh = dh + dy_t
        dc = dc + dh * o * (1.0 - tanh_c * tanh_c)
        da = torch.cat(
            (
                dc * g * i * (1.0 - i),
                dc * c * f * (1.0 - f),
                dc * i * (1.0 - g * g),
                dh * tanh_c * o * (1.0 - o),
            ),
            dim=1,
        )
        accumulate(grads, da, da, x_t, h)
        dx.append(da @ w_ih)
        dh, dc = da @ w_hh, dc * f
    return grads, torch.stack(dx[::-1])


def gru_forward(params: Params, x: Tensor) -> tuple[Tensor, list[Any]]:
    w_ih, w_hh, b_ih, b_hh = weights(params)
    h = x.new_zeros((x.shape[1], w_hh.shape[1]))
    outputs, tape = [], []
    for x_t in x:
        r_x, z_x, n_x = (x_t @ w_ih.T + b_ih).chunk(3, dim=1)
        r_h, z_h, q = (h @ w_hh.T + b_hh).chunk(3, dim=1)
        r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + r * q)
        tape.append((x_t, h, r, z, n, q))
        h = (1.0 - z) * n + z * h
        outputs.append(h)
    return torch.stack(outputs), tape


def gru_backward(params: Params, tape: list[Any], dy: Tensor) -> tuple[Params, Tensor]:
    w_ih, w_hh, _, _ = weights(params)
    grads = {name: torch.zeros_like(value) for name, value in params.items()}
    dh = torch.zeros_like(dy[0])
    dx = []
    for (x_t, h, r, z, n, q), dy_t in zip(reversed(tape), reversed(dy.unbind()), strict=True):
        dh = dh + dy_t
        da_n = dh * (1.0 - z) * (1.0 - n * n)
        da_z = dh * (h - n) * z * (1.0 - z)
        da_r = da_n * q * r * (1.0 - r)
        da_x = torch.cat((da_r, da_z, da_n), dim=1)
        da_h = torch.cat((da_r, da_z, da_n * r), dim=1)
        accumulate(grads, da_x, da_h, x_t, h)
        dx.append(da_x @ w_ih)
        dh = dh * z + da_h @ w_hh
    return grads, torch.stack(dx[::-1])


def accumulate(grads: Params, da_x: Tensor, da_h: Tensor, x: Tensor, h: Tensor) -> None:
    grads["weight_ih_l0"] += da_x.T @ x
    grads["weight_hh_l0"] += da_h.T @ h
    grads["bias_ih_l0"] += da_x.sum(dim=0)
    grads["bias_hh_l0"] += da_h.sum(dim=0)


FORWARD = {"RNN": rnn_forward, "LSTM": lstm_forward, "GRU": gru_forward}
BACKWARD = {"RNN": rnn_backward, "LSTM": lstm_backward, "GRU": gru_backward}
