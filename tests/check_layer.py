"""The list of cells that the layer tests run over, and what they check about each.

A new cell is proven by the same tests as the others: it needs a line in `CELLS`, and a scalar
loop in `reference`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from reference import Config, HostArray, Result, reference
from targets import Target

from rnn_xp.layers import GRU, LSTM, RNN, Recurrent

STEPS, BATCH, INPUT, HIDDEN, PROJECTED = 5, 3, 2, 4, 3
LENGTHS = (2, 5, 3)


@dataclass(frozen=True)
class CellCase:
    """A cell: how a layer with it is made, and its name in the oracle."""

    kind: str
    layer: Callable[..., Recurrent]
    options: dict[str, Any]


CELLS = {
    "rnn_tanh": CellCase("rnn_tanh", RNN, {}),
    "rnn_relu": CellCase("rnn_relu", RNN, {"nonlinearity": "relu"}),
    "lstm": CellCase("lstm", LSTM, {}),
    "lstm_peephole": CellCase("lstm", LSTM, {"peephole": True}),
    "lstm_projected": CellCase("lstm", LSTM, {"proj_size": PROJECTED}),
    "lstm_peephole_projected": CellCase("lstm", LSTM, {"peephole": True, "proj_size": PROJECTED}),
    "gru": CellCase("gru", GRU, {}),
    "gru_reset_before": CellCase("gru_reset_before", GRU, {"reset_after": False}),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "one_level": {},
    "no_bias": {"bias": False},
    "bidirectional": {"bidirectional": True},
    "stacked": {"num_layers": 2},
    "stacked_bidirectional": {"num_layers": 2, "bidirectional": True},
}


@dataclass(frozen=True)
class Problem:
    """A layer and host arrays for one forward and one backward call."""

    layer: Recurrent
    kind: str
    params: dict[str, HostArray]
    x: HostArray
    state: tuple[HostArray, ...]
    dy: HostArray
    dstate: tuple[HostArray, ...]
    lengths: tuple[int, ...] | None

    def reference(self) -> Result:
        config = Config(self.kind, self.layer.num_layers, self.layer.bidirectional)
        return reference(
            config, self.params, self.x, self.state, self.dy, self.dstate, self.lengths
        )


def make_layer(cell: str, *, hidden: int = HIDDEN, **options: Any) -> Recurrent:
    case = CELLS[cell]
    return case.layer(INPUT, hidden, **case.options, **options)


def make_problem(
    cell: str,
    *,
    lengths: tuple[int, ...] | None = None,
    steps: int = STEPS,
    batch: int = BATCH,
    seed: int = 0,
    **options: Any,
) -> Problem:
    """Draw everything for a layer, in float64; large enough values for gates to bend."""
    rng = np.random.default_rng(seed)
    layer = make_layer(cell, **options)
    directions = 2 if layer.bidirectional else 1
    runs = layer.num_layers * directions
    out = CELLS[cell].options.get("proj_size", HIDDEN)
    sizes = (out, HIDDEN) if CELLS[cell].layer is LSTM else (out,)
    return Problem(
        layer,
        CELLS[cell].kind,
        {name: rng.uniform(-1.0, 1.0, shape) for name, shape in layer.shapes.items()},
        rng.standard_normal((steps, batch, INPUT)),
        tuple(rng.standard_normal((runs, batch, size)) for size in sizes),
        rng.standard_normal((steps, batch, directions * out)),
        tuple(rng.standard_normal((runs, batch, size)) for size in sizes),
        lengths,
    )


def as_state(parts: Sequence[Any]) -> Any:
    """A state as the layer spells it: h alone, or the pair (h, c)."""
    return parts[0] if len(parts) == 1 else tuple(parts)


def as_parts(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def run_both(problem: Problem, target: Target, dtype: str = "float64") -> Result:
    """Run forward and backward on a target, checking what comes back but the values."""
    layer = problem.layer
    params = target.tree(problem.params, dtype)
    x = target.asarray(problem.x, dtype)
    state = as_state(target.tree(problem.state, dtype))
    dy = target.asarray(problem.dy, dtype)
    dstate = as_state(target.tree(problem.dstate, dtype))
    y, last, cache = layer.forward(params, x, state, lengths=problem.lengths)
    dparams, dx, dfirst = layer.backward(params, cache, dy, dstate)

    assert list(dparams) == list(params)
    assert type(last) is type(state)
    assert type(dfirst) is type(state)
    result = Result(
        target.check(y, problem.dy.shape, dtype, "y"),
        tuple(
            target.check(part, given.shape, dtype, "state")
            for part, given in zip(as_parts(last), problem.state, strict=True)
        ),
        {
            name: target.check(value, problem.params[name].shape, dtype, name)
            for name, value in dparams.items()
        },
        target.check(dx, problem.x.shape, dtype, "dx"),
        tuple(
            target.check(part, given.shape, dtype, "dstate")
            for part, given in zip(as_parts(dfirst), problem.state, strict=True)
        ),
    )
    # No input was changed.
    for name, given in params.items():
        assert_same(target.to_numpy(given), problem.params[name].astype(dtype), name)
    assert_same(target.to_numpy(x), problem.x.astype(dtype), "x")
    assert_same(target.to_numpy(dy), problem.dy.astype(dtype), "dy")
    for given, host in zip(
        (*as_parts(state), *as_parts(dstate)), (*problem.state, *problem.dstate), strict=True
    ):
        assert_same(target.to_numpy(given), host.astype(dtype), "state")
    return result


def assert_same(actual: HostArray, expected: HostArray, name: str = "") -> None:
    """Assert equality bit for bit."""
    np.testing.assert_array_equal(actual, expected, err_msg=name, strict=True)


def assert_close(actual: Result, expected: Result, tolerance: float = 1e-12) -> None:
    """Assert that all values agree, absolutely and for large ones relatively."""
    for (name, a), (other, b) in zip(named(actual), named(expected), strict=True):
        assert name == other
        assert a.shape == b.shape, name
        np.testing.assert_allclose(
            a.astype(np.float64), b, rtol=tolerance, atol=tolerance, err_msg=name
        )


def named(result: Result) -> list[tuple[str, HostArray]]:
    """Every array of a result with its name."""
    arrays = [("y", result.y), ("dx", result.dx)]
    arrays += [(f"state[{k}]", part) for k, part in enumerate(result.state)]
    arrays += [(f"dstate[{k}]", part) for k, part in enumerate(result.dstate)]
    return arrays + [(f"d{name}", result.dparams[name]) for name in sorted(result.dparams)]


def without_state(problem: Problem) -> Problem:
    """The same problem with an initial state of zeros."""
    return replace(problem, state=tuple(np.zeros_like(part) for part in problem.state))
