"""The loops that one would write first: a step at a time, a new array for each result.

What `speed` times beside the engines, to show what they are worth: forward and backward through
time of one level in one direction, from zeros.
"""

from __future__ import annotations

from rnn_xp.backend import Array, Namespace

Arrays = dict[str, Array]


def lstm(xp: Namespace, params: Arrays, x: Array, dy: Array) -> Arrays:
    """Return y, dx and the gradients of an LSTM's parameters, `d` before their names."""
    w_ih, w_hh, b_ih, b_hh = _of(params)
    h, c = xp.zeros_like(dy[0, ...]), xp.zeros_like(dy[0, ...])
    size, outputs, tape = h.shape[1], [], []
    for t in range(len(x)):
        a = x[t, ...] @ w_ih.T + b_ih + h @ w_hh.T + b_hh
        i, f, o = (_sigmoid(xp, a[:, k * size : (k + 1) * size]) for k in (0, 1, 3))
        g = xp.tanh(a[:, 2 * size : 3 * size])
        before, (h, c) = (h, c), (h, f * c + i * g)
        squashed = xp.tanh(c)
        h = o * squashed
        tape.append((*before, i, f, g, o, squashed))
        outputs.append(h)
    sums, inputs = {name: xp.zeros_like(a) for name, a in params.items()}, []
    dh, dc = xp.zeros_like(h), xp.zeros_like(h)
    for t in reversed(range(len(x))):
        h, c, i, f, g, o, squashed = tape[t]
        dh = dh + dy[t, ...]
        dc = dc + dh * o * (1 - squashed * squashed)
        gates = (dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g))
        da = xp.concat((*gates, dh * squashed * o * (1 - o)), axis=1)
        inputs.append(da @ w_ih)
        _add(xp, sums, (da, x[t, ...]), (da, h))
        dh, dc = da @ w_hh, dc * f
    return _found(xp, outputs, inputs, sums)


def gru(xp: Namespace, params: Arrays, x: Array, dy: Array) -> Arrays:
    """Return the same of a GRU that resets after its product."""
    w_ih, w_hh, b_ih, b_hh = _of(params)
    h = xp.zeros_like(dy[0, ...])
    size, outputs, tape = h.shape[1], [], []
    for t in range(len(x)):
        a, q = x[t, ...] @ w_ih.T + b_ih, h @ w_hh.T + b_hh
        r, z = (_sigmoid(xp, (a + q)[:, k * size : (k + 1) * size]) for k in (0, 1))
        q = q[:, 2 * size :]
        n = xp.tanh(a[:, 2 * size :] + r * q)
        tape.append((h, r, z, n, q))
        h = (1 - z) * n + z * h
        outputs.append(h)
    sums, inputs = {name: xp.zeros_like(a) for name, a in params.items()}, []
    dh = xp.zeros_like(h)
    for t in reversed(range(len(x))):
        h, r, z, n, q = tape[t]
        dh = dh + dy[t, ...]
        dn = dh * (1 - z) * (1 - n * n)
        gates = (dn * q * r * (1 - r), dh * (h - n) * z * (1 - z))
        da, da_hh = (xp.concat((*gates, last), axis=1) for last in (dn, dn * r))
        inputs.append(da @ w_ih)
        _add(xp, sums, (da, x[t, ...]), (da_hh, h))
        dh = dh * z + da_hh @ w_hh
    return _found(xp, outputs, inputs, sums)


LOOPS = {"LSTM": lstm, "GRU": gru}
"""By the names of `parity.CELLS`."""


def _of(params: Arrays) -> list[Array]:
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    return [params[name] for name in names]


def _sigmoid(xp: Namespace, a: Array) -> Array:
    return (1 + xp.tanh(a / 2)) / 2


def _add(xp: Namespace, sums: Arrays, *products: tuple[Array, Array]) -> None:
    """Add a step's part to the gradients of the weights and of the biases."""
    for name, (da, of) in zip(("ih", "hh"), products, strict=True):
        sums[f"weight_{name}_l0"] = sums[f"weight_{name}_l0"] + da.T @ of
        sums[f"bias_{name}_l0"] = sums[f"bias_{name}_l0"] + xp.sum(da, axis=0)


def _found(xp: Namespace, outputs: list[Array], inputs: list[Array], sums: Arrays) -> Arrays:
    gradients = {f"d{name}": a for name, a in sums.items()}
    return {"y": xp.stack(outputs), "dx": xp.stack(inputs[::-1]), **gradients}
