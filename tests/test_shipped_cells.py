"""The cells that stand beside the layers: values, gradients, libraries, and what each promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
from cell_oracles import ORACLES
from check_layer import as_parts, as_state
from reference import HostArray
from targets import Target, need_module
from test_gradients import deviation

from rnn_xp import Recurrent
from rnn_xp.cells.indrnn import IndRNN
from rnn_xp.cells.layer_norm import LayerNormGRU, LayerNormLSTM
from rnn_xp.cells.min_gru import MinGRU
from rnn_xp.cells.min_lstm import MinLSTM
from rnn_xp.cells.slstm import SLSTM

STEPS, BATCH, INPUT, HIDDEN = 5, 3, 2, 4
LENGTHS = (2, 5, 3)

# How each is made, and how many parts its state has.
CELLS: dict[str, tuple[Callable[[int], Any], int]] = {
    "LayerNormLSTM": (LayerNormLSTM, 2),
    "LayerNormGRU": (LayerNormGRU, 1),
    "IndRNN": (IndRNN, 1),
    "MinGRU": (MinGRU, 1),
    "MinLSTM": (MinLSTM, 1),
    "SLSTM": (SLSTM, 4),
    "SLSTM, 2 heads": (partial(SLSTM, heads=2), 4),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "one_level": {},
    "no_bias": {"bias": False},
    "stacked_bidirectional": {"num_layers": 2, "bidirectional": True},
}
each_cell = pytest.mark.parametrize("cell", CELLS)
each_option = pytest.mark.parametrize("options", OPTIONS)
with_lengths = pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])


class Problem(NamedTuple):
    """A layer and host arrays for one forward and one backward call."""

    layer: Any
    params: dict[str, HostArray]
    x: HostArray
    state: tuple[HostArray, ...]
    dy: HostArray
    dstate: tuple[HostArray, ...]


def make_problem(cell: str, options: str = "one_level", seed: int = 0) -> Problem:
    (make, parts), rng = CELLS[cell], np.random.default_rng(seed)
    layer = Recurrent(make, INPUT, HIDDEN, **OPTIONS[options])
    ways = 2 if options == "stacked_bidirectional" else 1
    shape = (ways * ways, BATCH, HIDDEN)
    state = [rng.standard_normal(shape) for _ in range(parts)]
    if parts == 4:
        state[2] = abs(state[2]) + 0.5  # the normaliser of a past that is not empty
    return Problem(
        layer,
        {name: rng.uniform(-1.0, 1.0, shape) for name, shape in layer.shapes.items()},
        rng.standard_normal((STEPS, BATCH, INPUT)),
        tuple(state),
        rng.standard_normal((STEPS, BATCH, ways * HIDDEN)),
        tuple(rng.standard_normal(shape) for _ in range(parts)),
    )


def named(arrays: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """The arrays of (parameters, x, state), or of their gradients, with their names."""
    params, x, state = arrays
    yield from params.items()
    yield "x", x
    yield from ((f"state[{k}]", part) for k, part in enumerate(as_parts(state)))


def backward(problem: Problem, lengths: Any = None) -> Any:
    layer, params, x, state, dy, dstate = problem
    _, _, cache = layer.forward(params, x, as_state(state), lengths=lengths)
    return layer.backward(params, cache, dy, as_state(dstate))


def oracle(
    cell: str, problem: Problem, lengths: Sequence[int] | None
) -> tuple[HostArray, list[HostArray]]:
    """Run each sequence alone, each level and direction after the other."""
    y, last = np.zeros_like(problem.dy), [np.zeros_like(part) for part in problem.state]
    ends = ["", "_reverse"][: problem.dy.shape[2] // HIDDEN]
    for b in range(BATCH):
        steps = STEPS if lengths is None else lengths[b]
        inputs = problem.x[:steps, b].tolist()
        for run in range(0, len(last[0]), len(ends)):
            outputs: list[list[float]] = [[] for _ in inputs]
            for way, end in enumerate(ends):
                order = slice(None, None, -1 if way else 1)
                suffix = f"_l{run // len(ends)}{end}"
                weights = {
                    name.removesuffix(suffix): value.tolist()
                    for name, value in problem.params.items()
                    if name.endswith(suffix)
                }
                state = tuple(part[run + way, b].tolist() for part in problem.state)
                made, state = ORACLES[cell.partition(",")[0]](weights, inputs[order], state)
                outputs = [a + h for a, h in zip(outputs, made[order], strict=True)]
                for array, part in zip(last, state, strict=True):
                    array[run + way, b] = part
            inputs = outputs
        y[:steps, b] = inputs
    return y, last


@with_lengths
@each_option
@each_cell
def test_agrees_with_the_oracle(
    target: Target, cell: str, options: str, lengths: tuple[int, ...] | None
) -> None:
    problem = make_problem(cell, options)
    expected_y, expected = oracle(cell, problem, lengths)
    for dtype, tolerance in (("float64", 1e-12), ("float32", 1e-4)):
        params, state = target.tree(problem.params, dtype), target.tree(problem.state, dtype)
        x, dy = target.asarray(problem.x, dtype), target.asarray(problem.dy, dtype)
        dstate = as_state(target.tree(problem.dstate, dtype))
        y, last, cache = problem.layer.forward(params, x, as_state(state), lengths=lengths)
        found = [target.check(y, y.shape, dtype, "y")]
        found += [target.check(part, part.shape, dtype, "state") for part in as_parts(last)]
        for a, b in zip(found, (expected_y, *expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
        of_target = named(problem.layer.backward(params, cache, dy, dstate))
        of_numpy = named(backward(problem, lengths))
        for (name, d), (other, e) in zip(of_target, of_numpy, strict=True):
            assert name == other
            d = target.check(d, e.shape, dtype, name)
            np.testing.assert_allclose(d, e, rtol=10 * tolerance, atol=10 * tolerance, err_msg=name)


@with_lengths
@each_option
@each_cell
def test_finite_differences(cell: str, options: str, lengths: tuple[int, ...] | None) -> None:
    problem = make_problem(cell, options)
    layer, params, x, state, dy, dstate = problem

    def loss() -> float:
        y, last = layer(params, x, as_state(state), lengths=lengths)
        parts = zip(as_parts(last), dstate, strict=True)
        return float((y * dy).sum() + sum((part * d).sum() for part, d in parts))

    found = dict(named(backward(problem, lengths)))
    for name, array in named((params, x, state)):
        expected = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            value = array[index]
            array[index] = value + 1e-5
            above = loss()
            array[index] = value - 1e-5
            expected[index] = (above - loss()) / 2e-5
            array[index] = value
        assert np.linalg.norm(expected) > 1e-3, f"{name} has no gradient to compare"
        assert deviation(found[name], expected) < 1e-6, name


@pytest.mark.parametrize("start", ["given", "zero"])
@each_option
@each_cell
def test_agrees_with_autograd(cell: str, options: str, start: str) -> None:
    torch = need_module("torch")
    problem = make_problem(cell, options)
    if start == "zero":
        problem = problem._replace(state=tuple(0 * part for part in problem.state))

    def leaf(array: HostArray) -> Any:
        return torch.tensor(array, requires_grad=True)

    params = {name: leaf(value) for name, value in problem.params.items()}
    x, state = leaf(problem.x), tuple(leaf(part) for part in problem.state)
    y, last = problem.layer(params, x, as_state(state))
    loss = (y * torch.tensor(problem.dy)).sum()
    for part, d in zip(as_parts(last), problem.dstate, strict=True):
        loss = loss + (part * torch.tensor(d)).sum()
    loss.backward()
    found = dict(named(backward(problem)))
    for name, array in named((params, x, state)):
        np.testing.assert_allclose(found[name], array.grad, rtol=1e-10, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("size", [1e2, 1e4])
@each_cell
def test_huge_inputs_stay_finite(target: Target, cell: str, size: float) -> None:
    problem = make_problem(cell)
    params = {name: 0.2 * value for name, value in problem.params.items()}  # no unit explodes
    params["weight_ih_l0"] = np.sign(params["weight_ih_l0"])
    x = size * np.sign(problem.x)
    params, x, dy = (target.tree(each, "float32") for each in (params, x, problem.dy))
    for state in (None, as_state(target.tree(problem.state, "float32"))):
        y, last, cache = problem.layer.forward(params, x, state)
        made = problem.layer.backward(params, cache, dy)
        for array in (y, *as_parts(last), *(each for _, each in named(made))):
            assert np.isfinite(target.to_numpy(array)).all()


@pytest.mark.parametrize("cell", ["LayerNormLSTM", "LayerNormGRU"])
def test_layer_norm_of_equal_units(cell: str) -> None:
    problem = make_problem(cell)
    zeros = [0 * part for part in problem.state]
    made = backward(problem._replace(x=0 * problem.x, state=tuple(zeros)))
    assert all(np.isfinite(array).all() for _, array in named(made))


@pytest.mark.parametrize("cell", ["LayerNormLSTM", "LayerNormGRU"])
def test_layer_norm_starts_as_plain(cell: str) -> None:
    made, drawn = CELLS[cell][0](HIDDEN), np.array([-0.5, 0.0, 0.5])
    for name in made.shapes(INPUT, True):
        expected = drawn if "_ln_" not in name else 1.0 * np.full(3, name.startswith("weight"))
        np.testing.assert_array_equal(made.initial(name, drawn), expected)
        assert np.signbit(made.initial(name, drawn)).any() == ("_ln_" not in name)  # no -0.0


def test_both_gates_closed() -> None:
    """Of f and i so small that both are 0 in floating point, the ratio still counts."""
    layer = Recurrent(MinLSTM, 1, 1, bias=False)
    params = {"weight_ih_l0": np.array([[-1e4], [-1e4], [1.0]])}
    y, _ = layer(params, np.ones((1, 1, 1)), np.full((1, 1, 1), 3.0))
    assert y[0, 0, 0] == 2.0


def test_heads_are_blocks() -> None:
    """With h heads it is the cell with one head, and zeros in W_hh outside the blocks."""
    whole = make_problem("SLSTM")
    for heads in (1, 2, HIDDEN):
        layer = Recurrent(partial(SLSTM, heads=heads), INPUT, HIDDEN)
        width = HIDDEN // heads
        mask = np.kron(np.eye(heads), np.ones((width, width)))[None]
        dense = whole.params["weight_hh_l0"].reshape(4, HIDDEN, HIDDEN) * mask
        blocks = [dense[:, k : k + width, k : k + width] for k in range(0, HIDDEN, width)]
        narrow = np.concatenate(blocks, axis=1).reshape(4 * HIDDEN, width)
        expected = whole._replace(
            params=whole.params | {"weight_hh_l0": dense.reshape(4 * HIDDEN, HIDDEN)}
        )
        found = whole._replace(layer=layer, params=whole.params | {"weight_hh_l0": narrow})
        for problem in (expected, found):
            assert problem.params["weight_hh_l0"].shape == problem.layer.shapes["weight_hh_l0"]
        (of_found, *rest), (of_expected, *other) = backward(found), backward(expected)
        full = of_expected.pop("weight_hh_l0").reshape(4, HIDDEN, HIDDEN)
        own = [full[:, k : k + width, k : k + width] for k in range(0, HIDDEN, width)]
        of_expected["weight_hh_l0"] = np.concatenate(own, axis=1).reshape(4 * HIDDEN, width)
        expected_arrays = dict(named((of_expected, *other)))
        for name, array in named((of_found, *rest)):
            np.testing.assert_allclose(array, expected_arrays[name], rtol=1e-12, atol=1e-12)


def test_heads_of_one_unit_are_scalars() -> None:
    """With a head a unit, each unit is a layer of its own."""
    problem = make_problem("SLSTM")
    whole = Recurrent(partial(SLSTM, heads=HIDDEN), INPUT, HIDDEN)
    params = problem.params | {"weight_hh_l0": problem.params["weight_hh_l0"][:, :1]}
    y, _ = whole(params, problem.x, problem.state)
    for j in range(HIDDEN):
        alone = {name: value[j::HIDDEN] for name, value in params.items()}
        state = tuple(part[:, :, j : j + 1] for part in problem.state)
        y_j, _ = Recurrent(SLSTM, INPUT, 1)(alone, problem.x, state)
        np.testing.assert_allclose(y[:, :, j : j + 1], y_j, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("heads", [0, -1, 3, 8])
def test_heads_must_divide(heads: int) -> None:
    with pytest.raises(ValueError, match="heads must divide hidden_size=4"):
        SLSTM(4, heads=heads)


def test_the_normaliser_starts_at_one() -> None:
    """An empty past weighs nothing: n is at least 1, however small the first input gate."""
    problem = make_problem("SLSTM")
    params = problem.params | {"bias_ih_l0": np.repeat([-1e4, 0.0, 0.5, 0.5], HIDDEN)}
    y, (_, c, n, _) = problem.layer(params, problem.x[:1])
    np.testing.assert_array_equal(n, np.ones_like(n))
    assert (abs(c) > 1e-3).all()
    assert (y != 0).all()
    _, (_, c, n, _) = problem.layer(problem.params, problem.x)
    assert (n >= 1).all()
    assert (abs(c) <= n).all()
