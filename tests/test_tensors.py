"""Tensors through the compiled kernels; through the core where something watches them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from check_layer import (
    LENGTHS,
    OPTIONS,
    Problem,
    as_parts,
    as_state,
    assert_same,
    make_problem,
    named,
    run_both,
)
from targets import Target, make_target

from rnn_xp.engines import PLAIN, engine, native

NUMPY = Target("numpy", "numpy", None, np, "cpu")
STACKED = OPTIONS["stacked_bidirectional"]
each_cell = pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
with_kernels = pytest.mark.skipif(
    not isinstance(native.choose(), native.Native), reason="no compiled kernels"
)


@pytest.fixture(scope="module")
def target() -> Target:
    return make_target("torch")


def arguments(problem: Problem, target: Target) -> tuple[Any, ...]:
    """The parameters, x, the state, dy, and dstate."""
    return (
        target.tree(problem.params),
        target.asarray(problem.x),
        as_state(target.tree(problem.state)),
        target.asarray(problem.dy),
        as_state(target.tree(problem.dstate)),
    )


def watch(tree: Any) -> Any:
    """Let autograd record what happens to each tensor."""
    parts = tree.values() if isinstance(tree, dict) else as_parts(tree)
    for part in parts:
        part.requires_grad_()
    return tree


def total(problem: Problem, y: Any, last: Any, dy: Any, dstate: Any) -> Any:
    parts = zip(as_parts(last), as_parts(dstate), strict=True)
    return (y * dy).sum() + sum((part * d).sum() for part, d in parts)


@with_kernels
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@each_cell
def test_the_same_bits_as_numpy(target: Target, cell: str, lengths: tuple[int, ...] | None) -> None:
    problem = make_problem(cell, lengths=lengths, **STACKED)
    pairs = zip(named(run_both(problem, target)), named(run_both(problem, NUMPY)), strict=True)
    for (name, a), (_, b) in pairs:
        assert_same(a, b, name)


def test_who_runs_what(target: Target) -> None:
    from rnn_xp.engines import tensors

    kernels = isinstance(native.choose(), native.Native)
    for cell, dtype, hosted in (
        ("lstm", "float64", kernels),
        ("lstm", "float32", kernels),
        ("lstm", "float16", False),
        ("lstm_peephole", "float64", False),
    ):
        problem = make_problem(cell)
        params = target.tree(problem.params, dtype)
        assert engine(problem.layer.equations, params["weight_hh_l0"]) is tensors.TENSORS
        (w,) = problem.layer.prepare(params).weights
        assert isinstance(w, tensors.Hosted) is hosted
    assert engine(problem.layer.equations, problem.x) is PLAIN


# Watched by autograd


@pytest.mark.parametrize("watched", ["params", "x", "state"])
@each_cell
def test_autograd_through_forward(target: Target, cell: str, watched: str) -> None:
    import torch

    problem = make_problem(cell, lengths=LENGTHS, **STACKED)
    params, x, state, dy, dstate = arguments(problem, target)
    ours = run_both(problem, target)
    leaves = watch({"params": params, "x": {"x": x}, "state": state}[watched])
    leaves = leaves.values() if isinstance(leaves, dict) else as_parts(leaves)
    expected = {
        "params": [ours.dparams[name] for name in params],
        "x": [ours.dx],
        "state": list(ours.dstate),
    }[watched]
    prepared = problem.layer.prepare({name: a.detach() for name, a in params.items()})
    for given in (params,) if watched == "params" else (params, prepared):
        y, last = problem.layer(given, x, state, lengths=LENGTHS)
        found = torch.autograd.grad(total(problem, y, last, dy, dstate), tuple(leaves))
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a.numpy(), b, rtol=1e-10, atol=1e-10)


@each_cell
def test_autograd_through_backward(target: Target, cell: str) -> None:
    """dx is linear in dy: its derivative along v, times dy, is the product of dx and v."""
    import torch

    problem = make_problem(cell, lengths=LENGTHS, **STACKED)
    params, x, state, dy, _ = arguments(problem, target)
    v = torch.ones_like(x)
    with torch.no_grad():
        _, _, cache = problem.layer.forward(params, x, state, lengths=LENGTHS)
    watch({"dy": dy})
    _, dx, _ = problem.layer.backward(params, cache, dy)
    (along,) = torch.autograd.grad((dx * v).sum(), dy)
    torch.testing.assert_close((along * dy).sum(), (dx * v).sum())


@each_cell
def test_watched_parameters_without_recording(target: Target, cell: str) -> None:
    import torch

    problem = make_problem(cell, **STACKED)
    params, x, state, dy, dstate = arguments(problem, target)
    ours = run_both(problem, target)
    watch(params)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            y, _, cache = problem.layer.forward(params, x, state)
            dparams, dx, _ = problem.layer.backward(params, cache, dy, dstate)
        assert not y.requires_grad
        assert not dx.requires_grad
        np.testing.assert_allclose(y, ours.y, rtol=1e-12, atol=1e-12)
        for name, value in dparams.items():
            np.testing.assert_allclose(value, ours.dparams[name], rtol=1e-12, atol=1e-12)


# Within torch.func


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from inside jvp
@each_cell
def test_torch_func(target: Target, cell: str) -> None:
    import torch

    problem = make_problem(cell, **STACKED)
    params, x, state, dy, dstate = arguments(problem, target)
    ours = run_both(problem, target)

    def loss(params: Any, x: Any) -> Any:
        return total(problem, *problem.layer(params, x, state), dy, dstate)

    found = torch.func.grad(loss)(params, x)
    for name, value in found.items():
        np.testing.assert_allclose(value, ours.dparams[name], rtol=1e-10, atol=1e-10)
    v = torch.ones_like(x)
    _, along = torch.func.jvp(lambda x: loss(params, x), (x,), (v,))
    np.testing.assert_allclose(along, ours.dx.sum(), rtol=1e-10)
    both = torch.func.vmap(lambda x: problem.layer(params, x, state)[0])(torch.stack((x, 2 * x)))
    for k, scale in enumerate((1, 2)):
        y, _ = problem.layer(params, scale * x, state)
        np.testing.assert_allclose(both[k], y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("watched", [False, True])
def test_a_state_may_be_changed_before_backward(target: Target, watched: bool) -> None:
    """That the kernels ran, and autograd watches dy since: the core runs both again."""
    import torch

    problem = make_problem("gru", **STACKED)
    params, x, state, dy, dstate = arguments(problem, target)
    expected = run_both(problem, target)
    given = state.clone()
    _, _, cache = problem.layer.forward(params, x, given)
    given.zero_()
    dparams, _, _ = problem.layer.backward(params, cache, dy.requires_grad_(watched), dstate)
    for name, value in dparams.items():
        torch.testing.assert_close(value.detach(), torch.tensor(expected.dparams[name]))
