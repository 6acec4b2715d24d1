"""An oracle for the recurrent layers: scalar loops, written from the equations.

Every number is a Python float and every sum a loop. A batch is taken apart first, so that each
sequence runs alone with its own length, and the backward pass undoes the forward pass line by
line. Nothing here knows of gates in blocks, chunks, columns or padding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Vector = list[float]
Matrix = list[list[float]]
HostArray = np.ndarray[Any, Any]
Weights = dict[str, Any]
"""The weights of one run as nested lists, by their names without layer and direction."""


@dataclass(frozen=True)
class Config:
    """Which layer; sizes, biases and projection follow from the parameters' shapes."""

    kind: str
    """A name in `STEPS`."""
    num_layers: int = 1
    bidirectional: bool = False


class Result(NamedTuple):
    y: HostArray
    state: tuple[HostArray, ...]
    dparams: dict[str, HostArray]
    dx: HostArray
    dstate: tuple[HostArray, ...]


def sigmoid(a: float) -> float:
    if a >= 0:
        return 1 / (1 + math.exp(-a))
    return math.exp(a) / (1 + math.exp(a))


def product(weight: Matrix, row: int, v: Vector) -> float:
    total = 0.0
    for k, value in enumerate(v):
        total += weight[row][k] * value
    return total


def product_back(
    weight: Matrix, row: int, v: Vector, d: float, dweight: Matrix, dv: Vector
) -> None:
    """Undo `product`: d is the gradient of its result; add to those of weight and v."""
    for k, value in enumerate(v):
        dweight[row][k] += d * value
        dv[k] += d * weight[row][k]


def bias_of(w: Weights, name: str, row: int) -> float:
    return float(w[name][row]) if name in w else 0.0


def bias_back(w: Weights, dw: Weights, name: str, row: int, d: float) -> None:
    if name in w:
        dw[name][row] += d


def input_and_state(w: Weights, row: int, x: Vector, h: Vector) -> float:
    """W_ih x + b_ih + W_hh h + b_hh, at one row."""
    a = product(w["weight_ih"], row, x) + bias_of(w, "bias_ih", row)
    return a + product(w["weight_hh"], row, h) + bias_of(w, "bias_hh", row)


def input_and_state_back(
    w: Weights, dw: Weights, row: int, x: Vector, h: Vector, d: float, dx: Vector, dh: Vector
) -> None:
    product_back(w["weight_ih"], row, x, d, dw["weight_ih"], dx)
    product_back(w["weight_hh"], row, h, d, dw["weight_hh"], dh)
    bias_back(w, dw, "bias_ih", row, d)
    bias_back(w, dw, "bias_hh", row, d)


# A step takes the weights, x and the state, and returns the new state and what its backward step
# needs; the backward step takes dx, a vector to add to, and returns the gradient of the old state.

State = tuple[Vector, ...]
Tape = dict[str, Any]


def elman(w: Weights, x: Vector, state: State, relu: bool) -> tuple[State, Tape]:
    (h,) = state
    new = []
    slopes = []
    for j in range(len(h)):
        a = input_and_state(w, j, x, h)
        if relu:
            new.append(a if a > 0 else 0.0)
            slopes.append(1.0 if a > 0 else 0.0)
        else:
            new.append(math.tanh(a))
            slopes.append(1 / math.cosh(a) ** 2)
    return (new,), {"x": x, "h": h, "slopes": slopes}


def elman_back(w: Weights, dw: Weights, tape: Tape, dnew: State, dx: Vector) -> State:
    x, h = tape["x"], tape["h"]
    dh = [0.0] * len(h)
    for j in range(len(h)):
        da = dnew[0][j] * tape["slopes"][j]
        input_and_state_back(w, dw, j, x, h, da, dx, dh)
    return (dh,)


def lstm(w: Weights, x: Vector, state: State) -> tuple[State, Tape]:
    h, c = state
    size = len(c)
    units = []
    c_new = []
    m = []
    for j in range(size):
        a_i = input_and_state(w, j, x, h)
        a_f = input_and_state(w, size + j, x, h)
        a_g = input_and_state(w, 2 * size + j, x, h)
        a_o = input_and_state(w, 3 * size + j, x, h)
        if "weight_peephole" in w:
            a_i += w["weight_peephole"][0][j] * c[j]
            a_f += w["weight_peephole"][1][j] * c[j]
        i = sigmoid(a_i)
        f = sigmoid(a_f)
        g = math.tanh(a_g)
        new = f * c[j] + i * g
        if "weight_peephole" in w:
            a_o += w["weight_peephole"][2][j] * new
        o = sigmoid(a_o)
        units.append((i, f, g, o, new))
        c_new.append(new)
        m.append(o * math.tanh(new))
    h_new = m
    if "weight_hr" in w:
        h_new = [product(w["weight_hr"], p, m) for p in range(len(w["weight_hr"]))]
    return (h_new, c_new), {"x": x, "h": h, "c": c, "units": units, "m": m}


def lstm_back(w: Weights, dw: Weights, tape: Tape, dnew: State, dx: Vector) -> State:
    x, h, c = tape["x"], tape["h"], tape["c"]
    dh_new, dc_new = dnew
    size = len(c)
    dm = [0.0] * size
    if "weight_hr" in w:
        for p, d in enumerate(dh_new):
            product_back(w["weight_hr"], p, tape["m"], d, dw["weight_hr"], dm)
    else:
        for j in range(size):
            dm[j] += dh_new[j]
    dh = [0.0] * len(h)
    dc = [0.0] * size
    for j in range(size):
        i, f, g, o, new = tape["units"][j]
        tanh_new = math.tanh(new)
        do = dm[j] * tanh_new
        dnew_c = dc_new[j] + dm[j] * o * (1 - tanh_new**2)
        da_o = do * o * (1 - o)
        if "weight_peephole" in w:
            dw["weight_peephole"][2][j] += da_o * new
            dnew_c += da_o * w["weight_peephole"][2][j]
        df = dnew_c * c[j]
        di = dnew_c * g
        dg = dnew_c * i
        dc[j] += dnew_c * f
        da_i = di * i * (1 - i)
        da_f = df * f * (1 - f)
        da_g = dg * (1 - g**2)
        if "weight_peephole" in w:
            dw["weight_peephole"][0][j] += da_i * c[j]
            dw["weight_peephole"][1][j] += da_f * c[j]
            dc[j] += da_i * w["weight_peephole"][0][j] + da_f * w["weight_peephole"][1][j]
        for gate, da in enumerate((da_i, da_f, da_g, da_o)):
            input_and_state_back(w, dw, gate * size + j, x, h, da, dx, dh)
    return dh, dc


def gru(w: Weights, x: Vector, state: State, reset_after: bool) -> tuple[State, Tape]:
    (h,) = state
    size = len(h)
    r = [sigmoid(input_and_state(w, j, x, h)) for j in range(size)]
    z = [sigmoid(input_and_state(w, size + j, x, h)) for j in range(size)]
    u = [r[j] * h[j] for j in range(size)]
    q = []
    n = []
    new = []
    for j in range(size):
        row = 2 * size + j
        a_x = product(w["weight_ih"], row, x) + bias_of(w, "bias_ih", row)
        seen = h if reset_after else u
        q.append(product(w["weight_hh"], row, seen) + bias_of(w, "bias_hh", row))
        n.append(math.tanh(a_x + (r[j] * q[j] if reset_after else q[j])))
        new.append((1 - z[j]) * n[j] + z[j] * h[j])
    return (new,), {"x": x, "h": h, "r": r, "z": z, "n": n, "q": q, "u": u}


def gru_back(
    w: Weights, dw: Weights, tape: Tape, dnew: State, dx: Vector, reset_after: bool
) -> State:
    x, h, r, z, n = (tape[name] for name in "xhrzn")
    size = len(h)
    dh = [0.0] * size
    dr = [0.0] * size
    du = [0.0] * size
    for j in range(size):
        row = 2 * size + j
        d = dnew[0][j]
        dz = d * (h[j] - n[j])
        dn = d * (1 - z[j])
        dh[j] += d * z[j]
        da_n = dn * (1 - n[j] ** 2)
        product_back(w["weight_ih"], row, x, da_n, dw["weight_ih"], dx)
        bias_back(w, dw, "bias_ih", row, da_n)
        if reset_after:
            dq = da_n * r[j]
            dr[j] += da_n * tape["q"][j]
            product_back(w["weight_hh"], row, h, dq, dw["weight_hh"], dh)
        else:
            dq = da_n
            product_back(w["weight_hh"], row, tape["u"], dq, dw["weight_hh"], du)
        bias_back(w, dw, "bias_hh", row, dq)
        da_z = dz * z[j] * (1 - z[j])
        input_and_state_back(w, dw, size + j, x, h, da_z, dx, dh)
    for j in range(size):
        dr[j] += du[j] * h[j]
        dh[j] += du[j] * r[j]
        da_r = dr[j] * r[j] * (1 - r[j])
        input_and_state_back(w, dw, j, x, h, da_r, dx, dh)
    return (dh,)


Step = Callable[[Weights, Vector, State], tuple[State, Tape]]
BackStep = Callable[[Weights, Weights, Tape, State, Vector], State]

STEPS: dict[str, tuple[Step, BackStep]] = {
    "rnn_tanh": (lambda w, x, s: elman(w, x, s, relu=False), elman_back),
    "rnn_relu": (lambda w, x, s: elman(w, x, s, relu=True), elman_back),
    "lstm": (lstm, lstm_back),
    "gru": (
        lambda w, x, s: gru(w, x, s, reset_after=True),
        lambda w, dw, tape, d, dx: gru_back(w, dw, tape, d, dx, reset_after=True),
    ),
    "gru_reset_before": (
        lambda w, x, s: gru(w, x, s, reset_after=False),
        lambda w, dw, tape, d, dx: gru_back(w, dw, tape, d, dx, reset_after=False),
    ),
}


def run_of(params: dict[str, HostArray], suffix: str) -> Weights:
    return {
        name.removesuffix(suffix): value.tolist()
        for name, value in params.items()
        if name.endswith(suffix)
    }


def zeros_like(nested: Any) -> Any:
    return [zeros_like(inner) for inner in nested] if isinstance(nested, list) else 0.0


def suffixes(config: Config) -> list[list[str]]:
    """The ends of the parameters' names: one list a level, one end a direction."""
    ends = ["", "_reverse"] if config.bidirectional else [""]
    return [[f"_l{level}{end}" for end in ends] for level in range(config.num_layers)]


def one_sequence(
    config: Config,
    runs: dict[str, Weights],
    druns: dict[str, Weights],
    x: Matrix,
    state: list[State],
    dy: Matrix,
    dstate: list[State],
) -> tuple[Matrix, list[State], Matrix, list[State]]:
    """Forward and backward for one sequence of full length; adds to `druns`.

    `state` and `dstate` have one entry for each level and direction.
    """
    step, step_back = STEPS[config.kind]
    steps = len(x)
    inputs = x
    tapes: dict[str, list[Tape]] = {}
    last: list[State] = []
    for level, ends in enumerate(suffixes(config)):
        outputs: list[Vector] = [[] for _ in range(steps)]
        for direction, suffix in enumerate(ends):
            now = state[level * len(ends) + direction]
            tapes[suffix] = [{}] * steps
            for t in order(steps, direction):
                now, tapes[suffix][t] = step(runs[suffix], inputs[t], now)
                outputs[t] = outputs[t] + now[0]
            last.append(now)
        inputs = outputs
    y = inputs

    dfirst: list[State] = list(dstate)
    doutputs = dy
    for level, ends in reversed(list(enumerate(suffixes(config)))):
        dinputs: Matrix = []
        for t in range(steps):
            dinputs.append([0.0] * len(tapes[ends[0]][t]["x"]))
        width = len(doutputs[0]) // len(ends)
        for direction, suffix in enumerate(ends):
            index = level * len(ends) + direction
            d = dstate[index]
            for t in reversed(order(steps, direction)):
                part = doutputs[t][direction * width : (direction + 1) * width]
                dh = [a + b for a, b in zip(d[0], part, strict=True)]
                d = step_back(
                    runs[suffix], druns[suffix], tapes[suffix][t], (dh, *d[1:]), dinputs[t]
                )
            dfirst[index] = d
        doutputs = dinputs
    return y, last, doutputs, dfirst


def order(steps: int, direction: int) -> list[int]:
    return list(reversed(range(steps))) if direction else list(range(steps))


def column(state: Sequence[HostArray], b: int) -> list[State]:
    """The state of one sequence: from (L*D, B, H) arrays to one entry for each run."""
    runs = state[0].shape[0]
    return [tuple(part[k, b].tolist() for part in state) for k in range(runs)]


def reference(
    config: Config,
    params: dict[str, HostArray],
    x: HostArray,
    state: Sequence[HostArray],
    dy: HostArray,
    dstate: Sequence[HostArray],
    lengths: Sequence[int] | None = None,
) -> Result:
    """Run forward and backward.

    Parameters
    ----------
    x : (T, B, I)
    state, dstate : (L*D, B, H) arrays: h, or h and c
    dy : (T, B, D*H)
    """
    steps, batch = x.shape[:2]
    runs = {suffix: run_of(params, suffix) for ends in suffixes(config) for suffix in ends}
    druns = {
        suffix: {name: zeros_like(value) for name, value in weights.items()}
        for suffix, weights in runs.items()
    }
    y, dx = np.zeros_like(dy), np.zeros_like(x)
    last = tuple(np.zeros_like(part) for part in state)
    dfirst = tuple(np.zeros_like(part) for part in state)
    for b in range(batch):
        n = steps if lengths is None else lengths[b]
        y_b, last_b, dx_b, dfirst_b = one_sequence(
            config,
            runs,
            druns,
            x[:n, b].tolist(),
            column(state, b),
            dy[:n, b].tolist(),
            column(dstate, b),
        )
        y[:n, b], dx[:n, b] = y_b, dx_b
        for arrays, values in ((last, last_b), (dfirst, dfirst_b)):
            for k, parts in enumerate(values):
                for array, part in zip(arrays, parts, strict=True):
                    array[k, b] = part
    dparams = {
        name + suffix: np.array(value)
        for suffix, dweights in druns.items()
        for name, value in dweights.items()
    }
    return Result(y, last, dparams, dx, dfirst)
