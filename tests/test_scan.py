"""JAX's scan against the core on NumPy arrays and JAX's own gradients, and in its other tools."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from check_layer import (
    CELLS,
    LENGTHS,
    OPTIONS,
    Problem,
    as_parts,
    as_state,
    assert_close,
    make_layer,
    make_problem,
    run_both,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import HostArray
from targets import Target, make_target

from rnn_xp import GRU, LSTM, RNN
from rnn_xp.cells.lstm import LSTM as LSTMCell
from rnn_xp.engines import PLAIN, Ragged, Run, Stack, engine
from rnn_xp.layers.pool import Pool

each_cell = pytest.mark.parametrize("cell", CELLS)
BIDIRECTIONAL = OPTIONS["bidirectional"]


@pytest.fixture(scope="module")
def target() -> Target:
    return make_target("jax")


@pytest.fixture
def fresh(target: Target) -> Iterator[Any]:
    """JAX with nothing compiled, before and after."""
    import jax

    jax.clear_caches()
    yield jax
    jax.clear_caches()


def everything(problem: Problem, params: Any, x: Any, state: Any, dy: Any, dstate: Any) -> Any:
    """Forward and backward, as JAX's tools take it."""
    y, last, cache = problem.layer.forward(params, x, state, lengths=problem.lengths)
    return y, last, problem.layer.backward(params, cache, dy, dstate)


def arguments(problem: Problem, target: Target, dtype: str = "float64") -> tuple[Any, ...]:
    return (
        target.tree(problem.params, dtype),
        target.asarray(problem.x, dtype),
        as_state(target.tree(problem.state, dtype)),
        target.asarray(problem.dy, dtype),
        as_state(target.tree(problem.dstate, dtype)),
    )


def assert_trees_close(actual: Any, expected: Any, tolerance: float) -> None:
    import jax

    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


# Against the core


def run_engine(
    chosen: Any, xp: Any, cell: Any, weights: Any, data: Any, lengths: Any, reverse: bool
) -> list[HostArray]:
    """Every result of an engine's two runs, on the host."""
    x, state, dy, dstate = data
    ragged = None if lengths is None else Ragged.of(lengths, x.shape[0], x)
    stack = Stack(cell, x.shape[2], "bias_ih" in weights, reverse=(reverse,))
    state, dstate = (
        [None if a is None else a[None, ...] for a in part] for part in (state, dstate)
    )
    y, last, kept = chosen.run(Run(stack, ragged, keep=True), [[weights]], x, state)
    (made,), dx, first = chosen.run_backward(stack, [[weights]], kept, dy, dstate)
    ordered = [made[0][name] for name in weights]
    return [np.asarray(a) for a in (y, *last, dx, *first, *ordered)]


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    size = st.integers(1, 5)
    return {
        "cell": draw(st.sampled_from(list(CELLS))),
        "hidden": draw(st.integers(4, 6)),
        "bias": draw(st.booleans()),
        "reverse": draw(st.booleans()),
        "steps": draw(size),
        "batch": (batch := draw(st.integers(1, 3))),
        "lengths": draw(st.none() | st.lists(size, min_size=batch, max_size=batch)),
        "zero": draw(st.tuples(st.booleans(), st.booleans())),
        "seed": draw(st.integers(0, 99)),
    }


def compare(target: Target, case: dict[str, Any]) -> None:
    """Draw arrays for a case, and assert that scan and core agree."""
    rng = np.random.default_rng(case["seed"])
    layer = make_layer(case["cell"], hidden=case["hidden"], bias=case["bias"])
    cell, steps, batch = layer.equations, case["steps"], case["batch"]
    shapes = cell.shapes(layer.input_size, layer.bias)
    weights = {name: rng.uniform(-1.0, 1.0, shape) for name, shape in shapes.items()}
    states = [
        [None if zero else rng.standard_normal((batch, n)) for n in cell.state_sizes]
        for zero in case["zero"]
    ]
    x = rng.standard_normal((steps, batch, layer.input_size))
    dy = rng.standard_normal((steps, batch, cell.output_size))
    lengths = case["lengths"] and np.minimum(case["lengths"], steps)
    rest = (lengths, case["reverse"])
    data = (x, states[0], dy, states[1])
    expected = run_engine(PLAIN, np, cell, weights, data, *rest)
    on_jax = tuple(
        [None if a is None else target.asarray(a) for a in part]
        if isinstance(part, list)
        else target.asarray(part)
        for part in data
    )
    weights_jax = target.tree(weights)
    chosen = engine(cell, on_jax[0])
    assert chosen is not PLAIN
    actual = run_engine(chosen, target.xp, cell, weights_jax, on_jax, *rest)
    for a, b in zip(actual, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(case=runs())
def test_agrees_with_the_core(target: Target, case: dict[str, Any]) -> None:
    compare(target, case)


CASE = {
    "cell": "lstm",
    "hidden": 4,
    "bias": True,
    "reverse": False,
    "steps": 3,
    "batch": 2,
    "lengths": [3, 1],
    "zero": (False, False),
    "seed": 0,
}


def test_a_planted_bug_is_caught(
    target: Target, fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rnn_xp.engines import scan

    compare(target, CASE)
    fresh.clear_caches()
    monkeypatch.setattr(scan, "hold", lambda xp, valid, new, old: new)
    with pytest.raises(AssertionError, match="Mismatched elements"):
        compare(target, CASE)


# Under jit, against JAX's gradients


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@each_cell
def test_gradients_of_jax(target: Target, cell: str, lengths: tuple[int, ...] | None) -> None:
    check_gradients(target, make_problem(cell, lengths=lengths, **BIDIRECTIONAL), "float64", 1e-10)


@pytest.mark.parametrize("cell", ["rnn_relu", "lstm", "gru"])
def test_gradients_of_jax_in_float32(target: Target, cell: str) -> None:
    check_gradients(target, make_problem(cell, num_layers=2), "float32", 5e-5)


def check_gradients(target: Target, problem: Problem, dtype: str, tolerance: float) -> None:
    import jax

    params, x, state, dy, dstate = arguments(problem, target, dtype)

    def loss(params: Any, x: Any, state: Any) -> Any:
        y, last = problem.layer(params, x, state, lengths=problem.lengths)
        parts = zip(as_parts(last), as_parts(dstate), strict=True)
        return (y * dy).sum() + sum((part * d).sum() for part, d in parts)

    expected = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(params, x, state)
    jitted = jax.jit(lambda *given: everything(problem, *given))
    _, _, ours = jitted(params, x, state, dy, dstate)
    assert_trees_close(ours, expected, tolerance)


def test_jit_agrees_with_the_oracle(target: Target) -> None:
    import jax

    problem = make_problem("gru", lengths=LENGTHS, **OPTIONS["stacked_bidirectional"])
    y, last, (dparams, dx, dfirst) = jax.jit(lambda *given: everything(problem, *given))(
        *arguments(problem, target)
    )
    result = run_both(problem, target)
    assert_close(result, problem.reference())
    actual = (y, as_parts(last), dparams, dx, as_parts(dfirst))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(tuple(result)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def equations(jaxpr: Any) -> int:
    """Count a program's equations, with those of the programs inside it."""
    count = 0
    for equation in jaxpr.eqns:
        inner = [v for v in equation.params.values() if hasattr(v, "eqns") or hasattr(v, "jaxpr")]
        count += 1 + sum(equations(getattr(v, "jaxpr", v)) for v in inner)
    return count


@pytest.mark.parametrize("lengths", [False, True], ids=["full", "ragged"])
@each_cell
def test_the_program_does_not_grow_with_time(target: Target, cell: str, lengths: bool) -> None:
    import jax

    counts = []
    for steps in (3, 30):
        problem = make_problem(
            cell, steps=steps, lengths=(steps, 1, 2) if lengths else None, **BIDIRECTIONAL
        )
        program = jax.make_jaxpr(lambda *given, p=problem: everything(p, *given))
        counts.append(equations(program(*arguments(problem, target)).jaxpr))
    assert counts[0] == counts[1] > 20


def test_equal_cells_are_compiled_once(
    target: Target, fresh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    real = LSTMCell.step

    def counted(self: Any, *given: Any) -> Any:
        steps.append(self)
        return real(self, *given)

    monkeypatch.setattr(LSTMCell, "step", counted)
    for lengths in ((5, 2, 3), (1, 4, 5), (2, 2, 2)):
        problem = make_problem("lstm", lengths=lengths)
        run_both(problem, target)
        problem.layer(*arguments(problem, target)[:2], lengths=lengths)
    assert len(steps) == 1  # traced, by the first of six calls
    run_both(make_problem("lstm", lengths=(5, 2, 3), batch=3, steps=6), target)
    assert len(steps) == 2


def test_cells_are_values() -> None:
    a, b = LSTM(2, 4).equations, LSTM(3, 4).equations
    assert a is not b
    assert a == b
    assert hash(a) == hash(b)
    others = [LSTM(2, 5), LSTM(2, 4, peephole=True), LSTM(2, 4, proj_size=2), GRU(2, 4), RNN(2, 4)]
    assert not any(a == layer.equations for layer in others)


# Inside JAX's other tools


def test_what_is_closed_over(target: Target) -> None:
    import jax

    problem = make_problem("lstm")
    params, x, state, dy, _ = arguments(problem, target)
    layer, prepared = problem.layer, problem.layer.prepare(params)
    y, _ = layer(params, x, state)
    for kind in (params, prepared):
        np.testing.assert_allclose(jax.jit(lambda x, g=kind: layer(g, x, state)[0])(x), y)
    np.testing.assert_allclose(jax.jit(lambda p: layer(p, x, state)[0])(params), y)
    np.testing.assert_allclose(
        jax.jit(lambda p, x: layer(layer.prepare(p), x, state)[0])(params, x), y
    )
    grown = jax.grad(lambda p: (layer(p, x, state)[0] * dy).sum())(params)  # without jit
    cache = layer.forward(params, x, state)[2]
    assert_trees_close(grown, layer.backward(params, cache, dy)[0], 1e-10)


def test_vmap_over_sequences_and_over_parameters(target: Target) -> None:
    import jax

    problems = [make_problem("gru", seed=seed, lengths=LENGTHS) for seed in (0, 1)]
    each = [arguments(problem, target) for problem in problems]
    stacked = jax.tree.map(lambda *parts: target.xp.stack(parts), *each)
    together = jax.vmap(lambda *given: everything(problems[0], *given))(*stacked)
    for k, one in enumerate(each):
        alone = everything(problems[0], *one)
        assert_trees_close(jax.tree.map(lambda a, k=k: a[k], together), alone, 1e-12)


def test_donated_parameters(target: Target) -> None:
    import jax

    problem = make_problem("rnn_tanh")
    params, *rest = arguments(problem, target)

    def step(params: Any, *rest: Any) -> Any:
        _, _, (dparams, _, _) = everything(problem, params, *rest)
        return {name: value - 0.1 * dparams[name] for name, value in params.items()}

    expected = step(params, *rest)
    given = {name: target.asarray(value) for name, value in problem.params.items()}
    assert_trees_close(jax.jit(step, donate_argnums=0)(given, *rest), expected, 1e-12)
    assert all(value.is_deleted() for value in given.values())


@pytest.mark.parametrize("cell", ["lstm_peephole_projected", "gru"])
def test_traced_lengths(target: Target, cell: str) -> None:
    import jax

    problem = make_problem(cell, lengths=LENGTHS, **BIDIRECTIONAL)
    layer, (params, x, state, dy, dstate) = problem.layer, arguments(problem, target)
    traces = []

    def step(lengths: Any) -> Any:
        traces.append(lengths)
        y, last, cache = layer.forward(params, x, state, lengths=lengths)
        return y, last, layer.backward(params, cache, dy, dstate)

    jitted = jax.jit(step)
    for lengths in (LENGTHS, (5, 1, 4), (5, 5, 5)):
        given = Problem(**{**vars(problem), "lengths": lengths})
        expected = everything(given, params, x, state, dy, dstate)
        assert_trees_close(jitted(target.asarray(np.array(lengths))), expected, 1e-12)
    assert len(traces) == 1
    beyond = jitted(target.asarray(np.array([9, 5, 5])))
    assert_trees_close(beyond, expected, 1e-12)


@pytest.mark.parametrize("pool", [Pool(), Pool("last"), Pool("last", bidirectional=True)])
def test_traced_lengths_in_pool(target: Target, pool: Pool) -> None:
    import jax

    x, lengths = target.asarray(np.arange(24.0).reshape(4, 3, 2)), np.array([2, 4, 1])
    y = jax.jit(lambda x, n: pool({}, x, lengths=n))(x, target.asarray(lengths))
    np.testing.assert_allclose(y, pool({}, x, lengths=lengths), rtol=1e-6)


def test_errors_while_tracing(target: Target) -> None:
    import jax

    problem = make_problem("gru")
    layer, (params, x, *_) = problem.layer, arguments(problem, target)
    call = jax.jit(lambda x, n: layer(params, x, lengths=n))
    with pytest.raises(ValueError, match="x has 1 features in its last axis"):
        call(x[:, :, :1], None)
    with pytest.raises(TypeError, match="lengths must be integers, got float64"):
        call(x, target.asarray(np.ones(3)))
    with pytest.raises(ValueError, match=r"lengths must have shape \(3,\), got \(2,\)"):
        call(x, target.asarray(np.ones(2, dtype=np.int64)))
    with pytest.raises(TypeError, match="x is a numpy ndarray but params is a jax"):
        jax.jit(lambda p: layer(p, problem.x))(params)


# As a user has it: another process, JAX's own settings


USER = """
import jax, numpy as np
from rnn_xp import GRU, LSTM, RNN

for layer in (RNN(3, 5), LSTM(3, 5, bidirectional=True), GRU(3, 5, 2)):
    params = layer.init(0, backend="jax")
    x = jax.random.normal(jax.random.key(0), (7, 4, 3))
    y, state, cache = layer.forward(params, x)
    again, _ = layer(params, x)
    assert y.dtype == np.float32 and (y == again).all()
    host, _ = layer(layer.init(0), np.array(x))
    np.testing.assert_allclose(y, host, atol=1e-6)
    ours, dx, _ = layer.backward(params, cache, 2 * y)
    theirs = jax.jit(jax.grad(lambda p, x: (layer(p, x)[0] ** 2).sum(), (0, 1)))(params, x)
    for a, b in zip(jax.tree.leaves((ours, dx)), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
print("agree")
"""


SHARDED = """
import jax, numpy as np
from jax.sharding import Mesh, PartitionSpec as P
from rnn_xp import LSTM

mesh, each, shared = Mesh(np.array(jax.devices()), ("d",)), P(None, "d"), P()
assert mesh.size == 2
layer = LSTM(3, 4, 2)
params, x = layer.init(0), np.random.default_rng(0).standard_normal((5, 4, 3), dtype="float32")

def step(params, x):
    y, _, cache = layer.forward(params, x)
    gradients, dx, _ = layer.backward(params, cache, 2 * y)
    return jax.lax.psum(gradients, "d"), dx

found = jax.jit(
    jax.shard_map(step, mesh=mesh, in_specs=(shared, each), out_specs=(shared, each))
)(params, x)
y, _, cache = layer.forward(params, x)
expected = layer.backward(params, cache, 2 * y)[:2]
for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
print("agree")
"""


@pytest.mark.parametrize(
    ("code", "flags"),
    [(USER, ""), (SHARDED, "--xla_force_host_platform_device_count=2")],
    ids=["one device", "sequences shared out to two"],
)
def test_with_the_settings_of_jax(target: Target, code: str, flags: str) -> None:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XLA_", "JAX_"))}
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=env | {"XLA_FLAGS": flags},
        check=False,
    )
    assert (run.returncode, run.stdout) == (0, "agree\n"), run.stderr


def test_other_arrays_import_no_library() -> None:
    code = """
import sys, numpy as np
from rnn_xp import GRU
layer = GRU(2, 3)
params = layer.init(0)
x = np.ones((4, 2, 2), dtype=np.float32)
y, _, cache = layer.forward(params, x, lengths=[4, 2])
layer.backward(params, cache, y)
assert not {"jax", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
