"""Central finite differences in float64, for every cell and option: relative error under 1e-6."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from check_layer import CELLS, OPTIONS, Problem, as_parts, as_state, make_problem, named, run_both
from reference import HostArray
from targets import make_target

STEP = 1e-5


def loss(problem: Problem) -> float:
    y, state = problem.layer(
        problem.params, problem.x, as_state(problem.state), lengths=problem.lengths
    )
    parts = zip(as_parts(state), problem.dstate, strict=True)
    return float((y * problem.dy).sum() + sum((part * d).sum() for part, d in parts))


def numeric(problem: Problem, array: HostArray) -> HostArray:
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        kept = array[index]
        array[index] = kept + STEP
        above = loss(problem)
        array[index] = kept - STEP
        gradient[index] = (above - loss(problem)) / (2.0 * STEP)
        array[index] = kept
    return gradient


def deviation(found: HostArray, expected: HostArray) -> float:
    """Return |a - b| / (|a| + |b|), by norms."""
    scale = float(np.linalg.norm(found) + np.linalg.norm(expected))
    return float(np.linalg.norm(found - expected)) / max(scale, 1e-8)


@pytest.mark.parametrize("lengths", [None, (2, 5, 3)], ids=["full", "ragged"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_finite_differences(
    cell: str, options: dict[str, Any], lengths: tuple[int, ...] | None
) -> None:
    problem = make_problem(cell, lengths=lengths, **options)
    gradients = dict(named(run_both(problem, make_target("numpy"))))
    arrays = {f"d{name}": value for name, value in problem.params.items()}
    arrays["dx"] = problem.x
    arrays |= {f"dstate[{k}]": part for k, part in enumerate(problem.state)}
    for name, array in arrays.items():
        expected = numeric(problem, array)
        assert np.linalg.norm(expected) > 1e-3, f"{name} has no gradient to compare"
        assert deviation(gradients[name], expected) < 1e-6, name
        wrong = gradients[name].copy()
        wrong[np.unravel_index(np.abs(wrong).argmax(), wrong.shape)] *= 1.0001
        assert deviation(wrong, expected) > 1e-6, f"{name}: the check cannot fail"
