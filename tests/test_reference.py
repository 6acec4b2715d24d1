"""The oracle itself: its backward pass against differences of its own forward pass."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from check_layer import (
    CELLS,
    Problem,
    make_problem,
    named,
)
from reference import HostArray

EPSILON = 1e-6


def loss(problem: Problem) -> float:
    result = problem.reference()
    total = float(np.sum(result.y * problem.dy))
    pairs = zip(result.state, problem.dstate, strict=True)
    return total + sum(float(np.sum(part * d)) for part, d in pairs)


def changed(problem: Problem, name: str, array: HostArray) -> Problem:
    if name == "dx":
        return replace(problem, x=array)
    if name.startswith("dstate"):
        which = int(name[len("dstate[") : -1])
        parts = [array if k == which else part for k, part in enumerate(problem.state)]
        return replace(problem, state=tuple(parts))
    return replace(problem, params=problem.params | {name[1:]: array})


def given(problem: Problem, name: str) -> HostArray:
    if name == "dx":
        return problem.x
    if name.startswith("dstate"):
        return problem.state[int(name[len("dstate[") : -1])]
    return problem.params[name[1:]]


@pytest.mark.parametrize("cell", CELLS)
def test_backward_undoes_forward(cell: str) -> None:
    problem = make_problem(cell, lengths=(3, 2), steps=3, batch=2, num_layers=2, bidirectional=True)
    rng = np.random.default_rng(1)
    for name, gradient in named(problem.reference()):
        if name == "y" or name.startswith("state"):
            continue
        direction = rng.standard_normal(gradient.shape)
        value = given(problem, name)
        up = loss(changed(problem, name, value + EPSILON * direction))
        down = loss(changed(problem, name, value - EPSILON * direction))
        expected = (up - down) / (2 * EPSILON)
        assert np.sum(gradient * direction) == pytest.approx(expected, rel=1e-6, abs=1e-8), name
