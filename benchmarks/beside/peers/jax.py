"""JAX: the recurrences written for `lax.scan`, under `jit`.

The input product stands before the loop, or in it (the mode `in-loop`): which is faster depends on
the shape. Loops of at most `_UNROLLED` steps are unrolled: faster there, slower beyond. Dispatch is
synchronous: faster for short calls, and every call waits for its result anyway.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import numpy as np

from ..cases import Case, Data
from .base import Call, HostArray, Peer

_UNROLLED = 10


class Library(Peer):
    """Functions of JAX arrays on the CPU."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        self.jax = jax

    @staticmethod
    def modes(case: Case) -> tuple[str, ...]:
        """Return `` (the input product hoisted) and `in-loop`."""
        return ("",) if case.task == "streaming" else ("", "in-loop")

    def versions(self) -> dict[str, str]:
        """Return JAX's."""
        return {"JAX": self.jax.__version__}

    def make(self, case: Case, mode: str, data: Data) -> Call:
        """Make a case ready."""
        jax, jnp = self.jax, self.jax.numpy
        jax.config.update("jax_enable_x64", case.dtype == "float64")
        params = {name: jnp.asarray(value) for name, value in data.params.items()}
        x = jnp.asarray(data.x)
        network = Network(jax, case, hoisted=not mode)
        valid = None
        if data.lengths is not None:
            steps = np.arange(len(data.x))[:, None, None]
            valid = jnp.asarray(steps < data.lengths[:, None])
        if case.task == "training":

            def train(params: Any, x: Any, dy: Any) -> Any:
                def forward(params: Any, x: Any) -> Any:
                    return network.run(network.fold(params), x, valid)

                y, back = jax.vjp(forward, params, x)
                return y, *back(dy)

            arguments = (params, x, jnp.asarray(data.dy))
            step, seconds = compiled(jax, train, *arguments)

            def gradients() -> dict[str, HostArray]:
                y, dparams, dx = step(*arguments)
                named = {f"d{name}": np.asarray(value) for name, value in dparams.items()}
                return {"y": np.asarray(y), "dx": np.asarray(dx), **named}

            return Call(lambda: jax.block_until_ready(step(*arguments)), gradients, seconds)
        weights = jax.jit(network.fold)(params)
        if case.task == "inference":
            infer, seconds = compiled(jax, lambda w, x: network.run(w, x, valid), weights, x)
            return Call(
                lambda: jax.block_until_ready(infer(weights, x)),
                lambda: {"y": np.asarray(infer(weights, x))},
                seconds,
            )
        return self._streaming(network, weights, list(x))

    def _streaming(self, network: Network, weights: Any, steps: list[Any]) -> Call:
        jax = self.jax
        own = weights[0]
        start = network.start(steps[0])

        def one(own: Any, x: Any, state: Any) -> Any:
            return network.step(own, state, x @ own["w"] + own["b"])

        step, seconds = compiled(jax, one, own, steps[0], start)

        def run() -> list[Any]:
            state, outputs = start, []
            for x_t in steps:
                state = step(own, x_t, state)
                outputs.append(state[0].block_until_ready())
            return outputs

        return Call(run, lambda: {"y": np.stack([np.asarray(y) for y in run()])}, seconds)


def compiled(jax: Any, function: Any, *arguments: Any) -> tuple[Any, float]:
    """Compile a function for these arguments; return it, and the seconds that it took."""
    start = perf_counter()
    done = jax.jit(function).lower(*arguments).compile()
    return done, perf_counter() - start


class Network:
    """The forward pass: levels and directions of one cell."""

    def __init__(self, jax: Any, case: Case, *, hoisted: bool) -> None:
        self.jax = jax
        self.case = case
        self.hoisted = hoisted
        self.step = {
            "rnn": self._rnn,
            "lstm": self._lstm,
            "gru": self._gru,
            "gru-before": self._gru_before,
        }[case.cell]

    def fold(self, params: Any) -> list[dict[str, Any]]:
        """Return the weights of each run: `w` (I, G*H), `u` (H, G*H), `b` (G*H,).

        Of a GRU that resets after the product, `q` is the bias inside; of one that resets before,
        `u` is parted into the gates' `u` and the candidate's `v`: slicing it in the loop is slow.
        """
        hidden = self.case.shape[3]
        runs = []
        for level in range(self.case.layers):
            for end in ("", "_reverse")[: 1 + self.case.bidirectional]:
                w, u, b_ih, b_hh = (
                    params[f"{name}_l{level}{end}"]
                    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                )
                run = {"w": w.T, "u": u.T, "b": b_ih + b_hh}
                if self.case.cell == "gru":  # its last bias stands inside the reset product
                    outside = b_hh.at[2 * hidden :].set(0)
                    run |= {"b": b_ih + outside, "q": b_hh[2 * hidden :]}
                if self.case.cell == "gru-before":
                    run |= {"u": u.T[:, : 2 * hidden], "v": u.T[:, 2 * hidden :]}
                runs.append(run)
        return runs

    def run(self, weights: Any, x: Any, valid: Any) -> Any:
        """Return y of x (T, B, I); `valid` (T, B, 1) or None."""
        each = 1 + self.case.bidirectional
        for level in range(self.case.layers):
            own = weights[level * each : (level + 1) * each]
            outputs = [self._scan(w, x, valid, reverse=k == 1) for k, w in enumerate(own)]
            x = outputs[0] if each == 1 else self.jax.numpy.concatenate(outputs, axis=2)
        return x

    def start(self, x: Any) -> tuple[Any, ...]:
        """Return the state before the first step."""
        hidden = self.case.shape[3]
        zeros = self.jax.numpy.zeros((x.shape[-2], hidden), dtype=x.dtype)
        return (zeros, zeros) if self.case.cell == "lstm" else (zeros,)

    def _scan(self, w: Any, x: Any, valid: Any, *, reverse: bool) -> Any:
        where = self.jax.numpy.where

        def step(state: Any, now: Any) -> Any:
            new = self.step(w, state, now if self.hoisted else now @ w["w"] + w["b"])
            return new, new[0]

        def masked(state: Any, now: Any) -> Any:
            x, ok = now
            new, _ = step(state, x)
            new = tuple(where(ok, after, before) for after, before in zip(new, state, strict=True))
            return new, where(ok, new[0], 0)

        unroll = len(x) if len(x) <= _UNROLLED else 1
        start = self.start(x)
        if self.hoisted:
            x = x @ w["w"] + w["b"]
        over = (step, x) if valid is None else (masked, (x, valid))
        return self.jax.lax.scan(over[0], start, over[1], reverse=reverse, unroll=unroll)[1]

    # The cells: from the state and the input's part of the pre-activations to the new state

    def _rnn(self, w: Any, state: Any, a: Any) -> tuple[Any, ...]:
        return (self.jax.numpy.tanh(a + state[0] @ w["u"]),)

    def _lstm(self, w: Any, state: Any, a: Any) -> tuple[Any, ...]:
        sigmoid, tanh = self.jax.nn.sigmoid, self.jax.numpy.tanh
        h, c = state
        i, f, g, o = self.jax.numpy.split(a + h @ w["u"], 4, axis=-1)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        return sigmoid(o) * tanh(c), c

    def _gru(self, w: Any, state: Any, a: Any) -> tuple[Any, ...]:
        sigmoid, tanh = self.jax.nn.sigmoid, self.jax.numpy.tanh
        (h,) = state
        r_x, z_x, n_x = self.jax.numpy.split(a, 3, axis=-1)
        r_h, z_h, q = self.jax.numpy.split(h @ w["u"], 3, axis=-1)
        z = sigmoid(z_x + z_h)
        n = tanh(n_x + sigmoid(r_x + r_h) * (q + w["q"]))
        return ((1 - z) * n + z * h,)

    def _gru_before(self, w: Any, state: Any, a: Any) -> tuple[Any, ...]:
        sigmoid, tanh = self.jax.nn.sigmoid, self.jax.numpy.tanh
        (h,) = state
        two = 2 * h.shape[-1]
        r, z = self.jax.numpy.split(sigmoid(a[..., :two] + h @ w["u"]), 2, axis=-1)
        n = tanh(a[..., two:] + (r * h) @ w["v"])
        return ((1 - z) * n + z * h,)
