"""CuPy's kernels between products, on the processor from the same source, against the core."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import elementwise_on_cpu
import numpy as np
import pytest
import standin
from named_cells import CELLS, make_cell

from rnn_xp.engines import PLAIN, Engine, Ragged, Run, Stack
from rnn_xp.engines.cuda import fused
from rnn_xp.engines.cuda.directions import Directions
from rnn_xp.engines.cuda.engine import Cuda, choose
from rnn_xp.recurrence import Loop

LIMITS = {"float64": 1e-12, "float32": 2e-5, "float16": 2e-2, "bfloat16": 2e-1}
"""How far from float64 the results may be."""
RUN_HERE = ("rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before")
HOST = np


class Case:
    """A run, and its arrays on the host."""

    def __init__(
        self,
        name: str,
        steps: int,
        batch: int,
        hidden: int,
        *,
        bias: bool = True,
        ways: int = 1,
        seed: int = 0,
    ) -> None:
        rng = np.random.default_rng(seed)
        self.cell, inputs = make_cell(name, hidden), 4
        self.weights = [
            {
                key: rng.uniform(-0.7, 0.7, shape)
                for key, shape in self.cell.shapes(inputs, bias).items()
            }
            for _ in range(ways)
        ]
        states = (ways, batch, hidden)
        self.x = rng.standard_normal((steps, batch, inputs))
        self.state: list[Any] = [rng.standard_normal(states) for _ in self.cell.state]
        wide = rng.standard_normal((steps, batch, (ways + 1) * hidden))
        self.dy = wide[:, :, hidden:]  # a view
        self.dstate: list[Any] = [rng.standard_normal(states) for _ in self.cell.state]
        self.lengths = rng.integers(1, steps + 1, batch)

    def run(self, engine: Any, xp: Any, put: Any, *, ragged: bool, reverse: bool) -> list[Any]:
        """Return y, the state, and all gradients; a second direction goes the other way."""
        engine = engine if isinstance(engine, Engine) else Directions(engine)
        weights = [{key: put(a) for key, a in own.items()} for own in self.weights]
        x, dy = self.x.copy(), self.dy.copy()
        if ragged:  # what stands past a sequence's end must not matter
            past = np.arange(len(x))[:, None] >= self.lengths[None, :]
            x[past], dy[past] = np.nan, np.nan
        kept = Ragged.of(self.lengths, len(x), self.x) if ragged else None
        if kept is not None:
            kept = kept._replace(valid=put(kept.valid))
        state, dstate = (
            [None if a is None else put(a) for a in part] for part in (self.state, self.dstate)
        )
        bias = "bias_ih" in weights[0]
        ways = tuple(reverse != (d == 1) for d in range(len(weights)))
        stack = Stack(self.cell, x.shape[2], bias, reverse=ways)
        y, last, chunks = engine.run(Run(stack, kept, keep=True), [weights], put(x), state)
        again, *_ = engine.run(Run(stack, kept), [weights], put(x), state)
        made, dx, first = engine.run_backward(stack, [weights], chunks, put(dy), dstate)
        assert [own.keys() for own in made[0]] == [own.keys() for own in weights]
        ordered = [own[key] for own in made[0] for key in weights[0]]
        return [y, again, *last, *ordered, dx, *first]


def trusted(results: list[Any], name: str, dtype: str) -> list[Any]:
    """Leave out gradients where relu's slope jumps: rounded so, many land on the other side."""
    return results[:3] if (name, dtype) == ("rnn_relu", "bfloat16") else results


def on_standin(dtype: str) -> Any:
    return lambda a: standin.Array(a.copy() if a.dtype == bool else a.astype(dtype))


def largest_error(found: list[Any], expected: list[Any]) -> float:
    """Return the largest error, relative to the largest value; NaN where there is one."""
    errors = [
        np.abs(a._host - b).max() / max(1.0, np.abs(b).max())
        for a, b in zip(found, expected, strict=True)
    ]
    return float(np.max(errors))


@pytest.mark.parametrize("name", RUN_HERE)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("sizes", [(5, 3, 7), (1, 1, 2), (3, 17, 37), (2, 2, 300)])
def test_values_and_all_gradients_are_the_core_s(
    name: str, reverse: bool, ragged: bool, sizes: tuple[int, ...], kernels: Any, xp: Any
) -> None:
    case, options = Case(name, *sizes), {"ragged": ragged, "reverse": reverse}
    expected = case.run(PLAIN, HOST, np.copy, **options)
    engine = Cuda(fused.Fused(kernels))
    for dtype, limit in LIMITS.items():
        found = case.run(engine, xp, on_standin(dtype), **options)
        assert {a.dtype.name for a in found} == {dtype}
        pairs = (trusted(each, name, dtype) for each in (found, expected))
        assert largest_error(*pairs) < limit, dtype
    assert not xp.reads


@pytest.mark.parametrize("name", RUN_HERE)
@pytest.mark.parametrize("bias", [False, True])
def test_zeros_for_none_and_no_bias(name: str, bias: bool, kernels: Any, xp: Any) -> None:
    case, options = Case(name, 4, 2, 5, bias=bias), {"ragged": False, "reverse": False}
    found = []
    for none in (False, True):
        zeros = [None if none else np.zeros_like(a) for a in case.state]
        case.state = case.dstate = zeros
        found.append(case.run(Cuda(fused.Fused(kernels)), xp, on_standin("float64"), **options))
    expected = case.run(PLAIN, HOST, lambda a: a, **options)
    assert largest_error(found[0], expected) < 1e-12
    assert largest_error(found[1], expected) < 1e-12


def launches(name: str, steps: int, part: str, kernels: Any, ragged: bool) -> Counter[str]:
    """Return what a forward or a backward run launches."""
    case, put = Case(name, steps, 3, 8), on_standin("float32")
    engine: Any = fused.Fused(kernels)
    cell = case.cell
    weights = {key: put(a) for key, a in case.weights[0].items()}
    lengths = np.minimum(np.asarray([2, 3, 1]), steps)
    valid = put(np.arange(steps)[:, None] < lengths) if ragged else None
    x, none = put(case.x), [None] * len(case.state)
    standin.xp.launches.clear()
    loop = Loop(cell, standin.xp, valid, reverse=False)
    _, _, chunks = engine.run(loop, weights, x, none, keep=part == "backward")
    if part == "backward":
        dy = put(case.dy)
        standin.xp.launches.clear()
        engine.run_backward(loop, weights, chunks, dy, none)
    return Counter(standin.xp.launches)


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("part", ["forward", "backward"])
@pytest.mark.parametrize("name", RUN_HERE)
def test_a_step_is_one_product_and_one_kernel(
    name: str, part: str, ragged: bool, kernels: Any, xp: Any
) -> None:
    short, long = (launches(name, steps, part, kernels, ragged) for steps in (5, 25))
    more = {key: count - short[key] for key, count in long.items() if count != short[key]}
    short_name = name.removeprefix("rnn_")
    expected = {"dot": 20, f"{short_name}_{part}": 20}
    if name == "gru_reset_before":  # it has two products a step
        expected = {"dot": 40, f"reset_{part}": 20, f"candidate_{part}": 20}
    assert more == expected
    outside = sum(short.values()) - sum(expected.values()) // 4
    assert outside <= (8 if part == "forward" else 16)


# In the kernels' source: what stands there, and a mistake instead.
FAULTS = {
    "gates swapped": (
        "ADDED(0), ADDED(1), ADDED(2), ADDED(3)",
        "ADDED(1), ADDED(0), ADDED(2), ADDED(3)",
    ),
    "one bias forgotten": (" +      \\\n   bias(bias_hh, gate * hidden + unit))", ")"),
    "the state not held": ("  state[after] = state[before];", ""),
    "a part of dh forgotten": ("  if (carry) whole += load(carry + at);", ""),
    "dy of a step that does not count": ("  if (counts) whole += load(dy", "  whole += load(dy"),
    "the state of another step": (
        "load(c + before * size + at), load(c + after",
        "load(c + after * size + at), load(c + after",
    ),
    "another sequence's gates": (
        "(t * size + row * hidden) * G",
        "(t * size + (row ? row - 1 : 0) * hidden) * G",
    ),
    "the last unit left out": ("if (unit >= hidden) return;", "if (unit >= hidden - 1) return;"),
    "dc not handed on": ("  store(dc + at, d.c);", ""),
    "q of another step": ("load(kept + t * size + at)", "load(kept + at)"),
    "du not added": ("load(carry + at) + d.h", "d.h"),
    "gradients past the end": ("if (!counts) zeros(g_hh, 3, hidden);", ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, xp: Any, tmp_path: Path) -> None:
    right, wrong = FAULTS[fault]
    text = fused.source()
    assert right in text
    made = elementwise_on_cpu.kernels(text.replace(right, wrong), tmp_path)
    worst = 0.0
    for name in RUN_HERE:
        case = Case(name, 5, 3, 7)
        expected = case.run(PLAIN, HOST, np.copy, ragged=True, reverse=True)
        found = case.run(fused.Fused(made), xp, on_standin("float64"), ragged=True, reverse=True)
        worst = np.maximum(worst, largest_error(found, expected))  # NaN stays
    assert not worst < 1e-3


def test_what_has_no_kernel_is_left_to_the_core(xp: Any, kernels: Any) -> None:
    engine, dtype = Cuda(fused.Fused(kernels)), np.dtype("float32")
    for name in CELLS:
        chosen = engine.able(make_cell(name, 5), dtype, (4, 2), HOST)[-1]
        assert (chosen == PLAIN) == (name not in RUN_HERE)
    assert engine.able(make_cell("lstm", 5, 2), dtype, (4, 2), HOST)[-1] == PLAIN
    assert engine.able(make_cell("lstm", 5), np.dtype("complex64"), (4, 2), HOST)[-1] == PLAIN
    case, options = Case("lstm_peephole", 3, 2, 5), {"ragged": True, "reverse": False}
    found = case.run(engine, xp, on_standin("float64"), **options)
    expected = case.run(PLAIN, HOST, np.copy, **options)
    assert largest_error(found, expected) < 1e-12


def test_the_core_by_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_XP_ACCELERATE", "0")
    choose.cache_clear()
    assert choose() == PLAIN
    monkeypatch.delenv("RNN_XP_ACCELERATE")
    choose.cache_clear()
    assert isinstance(choose(), Cuda)


def test_a_source_is_compiled_once_for_each_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, ...]] = []

    class Module:
        def __init__(self, *, code: str, options: tuple[str, ...]) -> None:
            assert code == fused.source()
            made.append(options)

        def get_function(self, name: str) -> str:
            return f"{name} of {len(made)}"

    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(RawModule=Module))
    compiled: Any = fused.compiled
    compiled.cache_clear()
    try:
        for name in ("lstm_forward", "lstm_forward", "gru_backward"):
            assert compiled("bfloat16")(name) == f"{name} of 1"
        assert compiled("float64")("lstm_forward") == "lstm_forward of 2"
    finally:
        compiled.cache_clear()
    assert made == [("--std=c++17", "-DBITS=16", "-DBRAIN"), ("--std=c++17", "-DBITS=64")]
