"""Oracles for the cells that stand beside the layers: scalar loops, written from the papers.

One sequence, one direction, forward only. Every number is a Python float. Each function takes the
weights of one run as nested lists, x as a list of vectors, and the state as a tuple of vectors; it
returns the outputs and the last state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Vector = list[float]
State = tuple[Vector, ...]
Weights = dict[str, Any]
Result = tuple[list[Vector], State]

EPSILON = 1e-5


def sigmoid(a: float) -> float:
    return 1 / (1 + math.exp(-a))


def times(weight: list[Vector], v: Vector) -> Vector:
    """W v."""
    made = []
    for row in weight:
        total = 0.0
        for number, value in zip(row, v, strict=True):
            total += number * value
        made.append(total)
    return made


def of_input(w: Weights, x: Vector) -> Vector:
    """W_ih x + b_ih."""
    made = times(w["weight_ih"], x)
    bias = w.get("bias_ih", [0.0] * len(made))
    return [a + b for a, b in zip(made, bias, strict=True)]


def layer_norm(w: Weights, name: str, u: Vector, first: int = 0) -> Vector:
    """LN(u; gain, bias), with the gains and biases from `first` on."""
    mean = math.fsum(u) / len(u)
    variance = math.fsum((each - mean) ** 2 for each in u) / len(u)
    made = []
    for k, each in enumerate(u):
        y = (each - mean) / math.sqrt(variance + EPSILON) * w[f"weight_ln_{name}"][first + k]
        if f"bias_ln_{name}" in w:
            y += w[f"bias_ln_{name}"][first + k]
        made.append(y)
    return made


def layer_norm_lstm(w: Weights, x: list[Vector], state: State) -> Result:
    h, c = state
    size, y = len(h), []
    for now in x:
        from_x = layer_norm(w, "ih", times(w["weight_ih"], now))
        from_h = layer_norm(w, "hh", times(w["weight_hh"], h))
        new_c, o = [], []
        for j in range(size):
            i, f, g = (from_x[k * size + j] + from_h[k * size + j] for k in range(3))
            new_c.append(sigmoid(f) * c[j] + sigmoid(i) * math.tanh(g))
            o.append(sigmoid(from_x[3 * size + j] + from_h[3 * size + j]))
        c = new_c
        h = [o[j] * math.tanh(v) for j, v in enumerate(layer_norm(w, "c", c))]
        y.append(h)
    return y, (h, c)


def layer_norm_gru(w: Weights, x: list[Vector], state: State) -> Result:
    (h,) = state
    size, y = len(h), []
    for now in x:
        from_x, from_h = times(w["weight_ih"], now), times(w["weight_hh"], h)
        rz_x = layer_norm(w, "ih", from_x[: 2 * size])
        rz_h = layer_norm(w, "hh", from_h[: 2 * size])
        n_x = layer_norm(w, "ih", from_x[2 * size :], 2 * size)
        n_h = layer_norm(w, "hh", from_h[2 * size :], 2 * size)
        new = []
        for j in range(size):
            r = sigmoid(rz_x[j] + rz_h[j])
            z = sigmoid(rz_x[size + j] + rz_h[size + j])
            new.append((1 - z) * math.tanh(n_x[j] + r * n_h[j]) + z * h[j])
        h = new
        y.append(h)
    return y, (h,)


def indrnn(w: Weights, x: list[Vector], state: State) -> Result:
    (h,) = state
    y = []
    for now in x:
        a = of_input(w, now)
        h = [max(0.0, a[j] + w["weight_hh"][j] * h[j]) for j in range(len(h))]
        y.append(h)
    return y, (h,)


def min_gru(w: Weights, x: list[Vector], state: State) -> Result:
    (h,) = state
    size, y = len(h), []
    for now in x:
        a = of_input(w, now)
        z = [sigmoid(each) for each in a[:size]]
        h = [(1 - z[j]) * h[j] + z[j] * a[size + j] for j in range(size)]
        y.append(h)
    return y, (h,)


def min_lstm(w: Weights, x: list[Vector], state: State) -> Result:
    (h,) = state
    size, y = len(h), []
    for now in x:
        a = of_input(w, now)
        new = []
        for j in range(size):
            f, i = sigmoid(a[j]), sigmoid(a[size + j])
            new.append(f / (f + i) * h[j] + i / (f + i) * a[2 * size + j])
        h = new
        y.append(h)
    return y, (h,)


def slstm(w: Weights, x: list[Vector], state: State) -> Result:
    """The equations before they are stabilised, c = e^-m C and n = e^-m N; m beside them."""
    h, scaled_c, scaled_n, m = state
    size, width, y = len(h), len(w["weight_hh"][0]), []
    large_c = [each * math.exp(m[j]) for j, each in enumerate(scaled_c)]
    large_n = [each * math.exp(m[j]) for j, each in enumerate(scaled_n)]
    m = list(m)
    for now in x:
        a, new = of_input(w, now), []
        for j in range(size):
            start = j // width * width  # of the unit's own head
            gates = []
            for gate in range(4):
                total = a[gate * size + j]
                for k in range(width):
                    total += w["weight_hh"][gate * size + j][k] * h[start + k]
                gates.append(total)
            i, f = math.exp(gates[0]), sigmoid(gates[1])
            past = large_n[j] > 0
            m[j] = max(math.log(f) + m[j], gates[0]) if past else gates[0]
            large_c[j] = f * large_c[j] + i * math.tanh(gates[2])
            large_n[j] = f * large_n[j] + i
            new.append(sigmoid(gates[3]) * large_c[j] / large_n[j])
        h = new
        y.append(h)
    c = [each * math.exp(-m[j]) for j, each in enumerate(large_c)]
    n = [each * math.exp(-m[j]) for j, each in enumerate(large_n)]
    return y, (h, c, n, m)


ORACLES: dict[str, Callable[[Weights, list[Vector], State], Result]] = {
    "LayerNormLSTM": layer_norm_lstm,
    "LayerNormGRU": layer_norm_gru,
    "IndRNN": indrnn,
    "MinGRU": min_gru,
    "MinLSTM": min_lstm,
    "SLSTM": slstm,
}
