"""Every cell, option and library: values, kinds of arrays, and what the layers promise."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from check_layer import (
    BATCH,
    CELLS,
    HIDDEN,
    INPUT,
    LENGTHS,
    OPTIONS,
    PROJECTED,
    STEPS,
    Problem,
    as_parts,
    as_state,
    assert_close,
    assert_same,
    make_layer,
    make_problem,
    named,
    run_both,
    without_state,
)
from reference import HostArray, Result
from targets import Target, make_target

from rnn_xp.layers import GRU, LSTM, RNN

STACKED = OPTIONS["stacked_bidirectional"]
NUMPY = Target("numpy", "numpy", None, np, "cpu")

each_cell = pytest.mark.parametrize("cell", CELLS)
# Where JAX would compile everything again: two cells that have every kind of line between them.
few_cells = pytest.mark.parametrize("cell", ["lstm_peephole_projected", "gru"])


@cache
def expected(cell: str, options: str, lengths: tuple[int, ...] | None) -> Result:
    return make_problem(cell, lengths=lengths, **OPTIONS[options]).reference()


# Values


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("options", OPTIONS)
@each_cell
def test_agrees_with_the_oracle(
    target: Target, cell: str, options: str, lengths: tuple[int, ...] | None
) -> None:
    problem = make_problem(cell, lengths=lengths, **OPTIONS[options])
    assert_close(run_both(problem, target), expected(cell, options, lengths))


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@each_cell
def test_chunks_change_nothing(
    small_chunks: int, cell: str, lengths: tuple[int, ...] | None
) -> None:
    problem = make_problem(cell, lengths=lengths, **STACKED)
    assert_close(run_both(problem, NUMPY), expected(cell, "stacked_bidirectional", lengths))
    y, state = call(problem, NUMPY)
    result = run_both(problem, NUMPY)
    assert_same(y, result.y)
    for part, of_forward in zip(state, result.state, strict=True):
        assert_same(part, of_forward)


@each_cell
def test_smallest_sizes(target: Target, cell: str) -> None:
    problem = make_problem(cell, steps=1, batch=1, bidirectional=True)
    assert_close(run_both(problem, target), problem.reference())


@pytest.mark.parametrize("layer", [RNN(1, 1), LSTM(1, 1), LSTM(1, 1, peephole=True), GRU(1, 1)])
def test_one_unit(layer: Any) -> None:
    kinds: dict[Any, str] = {RNN: "rnn_tanh", LSTM: "lstm", GRU: "gru"}
    kind = kinds[type(layer)]
    rng = np.random.default_rng(0)
    parts = tuple(rng.standard_normal((1, 1, 1)) for _ in range(2 if kind == "lstm" else 1))
    params = {name: rng.standard_normal(shape) for name, shape in layer.shapes.items()}
    x = rng.standard_normal((3, 1, 1))
    problem = Problem(layer, kind, params, x, parts, x + 1, parts, None)
    assert_close(run_both(problem, NUMPY), problem.reference())


@each_cell
def test_inputs_need_not_be_contiguous(target: Target, cell: str) -> None:
    problem = make_problem(cell, lengths=LENGTHS, **STACKED)
    assert_close(
        run_both(problem, Strided(**vars(target))),
        expected(cell, "stacked_bidirectional", LENGTHS),
    )


class Strided(Target):
    """A target whose arrays are transposed views."""

    def asarray(self, array: Any, dtype: str | None = None) -> Any:
        view = super().asarray(np.transpose(array), dtype)
        return self.xp.permute_dims(view, tuple(reversed(range(view.ndim))))


@each_cell
def test_float32_stays_float32(target: Target, cell: str) -> None:
    problem = make_problem(cell, lengths=LENGTHS, bidirectional=True)
    actual = run_both(problem, target, "float32")
    assert_close(actual, expected(cell, "bidirectional", LENGTHS), 2e-5)


@few_cells
def test_float16_stays_float16(target: Target, cell: str) -> None:
    if target.backend == "strict":
        pytest.skip("array-api-strict has no float16")
    problem = make_problem(cell, lengths=LENGTHS)
    actual = run_both(problem, target, "float16")
    assert_close(actual, expected(cell, "one_level", LENGTHS), 2e-2)


@pytest.mark.parametrize("name", ["torch", "jax"])
@few_cells
def test_bfloat16(name: str, cell: str) -> None:
    target = make_target(name)
    problem = make_problem(cell, lengths=LENGTHS)
    params = to_bfloat16(target, problem.params)
    x, dy = to_bfloat16(target, problem.x), to_bfloat16(target, problem.dy)
    y, _, kept = problem.layer.forward(params, x, lengths=LENGTHS)
    dparams, dx, dstate = problem.layer.backward(params, kept, dy)
    for array in (y, dx, *dparams.values(), *as_parts(dstate)):
        assert array.dtype == target.xp.bfloat16
    reference = replace(
        without_state(problem), dstate=tuple(np.zeros_like(part) for part in problem.dstate)
    ).reference()
    as_float = target.xp.astype(y, target.xp.float32)
    np.testing.assert_allclose(target.to_numpy(as_float), reference.y, atol=0.1)


def to_bfloat16(target: Target, arrays: Any) -> Any:
    if isinstance(arrays, dict):
        return {name: to_bfloat16(target, value) for name, value in arrays.items()}
    return target.xp.astype(target.asarray(arrays), target.xp.bfloat16)


# The forms of the arguments


def call(problem: Problem, target: Target) -> tuple[HostArray, tuple[HostArray, ...]]:
    """Inference on a target: y and the parts of the state, on the host."""
    y, state = problem.layer(
        target.tree(problem.params),
        target.asarray(problem.x),
        as_state(target.tree(problem.state)),
        lengths=problem.lengths,
    )
    return target.to_numpy(y), tuple(target.to_numpy(part) for part in as_parts(state))


@each_cell
def test_no_batch(target: Target, cell: str) -> None:
    batched = make_problem(cell, batch=1, bidirectional=True)
    problem = replace(
        batched,
        x=batched.x[:, 0],
        dy=batched.dy[:, 0],
        state=tuple(part[:, 0] for part in batched.state),
        dstate=tuple(part[:, 0] for part in batched.dstate),
    )
    want = batched.reference()
    want = Result(
        want.y[:, 0],
        tuple(part[:, 0] for part in want.state),
        want.dparams,
        want.dx[:, 0],
        tuple(part[:, 0] for part in want.dstate),
    )
    assert_close(run_both(problem, target), want)
    y, state = call(problem, target)
    np.testing.assert_allclose(y, want.y, rtol=1e-12, atol=1e-12)
    assert [part.shape for part in state] == [part.shape for part in problem.state]


@each_cell
def test_no_state_is_zeros(target: Target, cell: str) -> None:
    problem = without_state(make_problem(cell, lengths=LENGTHS, **STACKED))
    params, x = target.tree(problem.params), target.asarray(problem.x)
    dy, dstate = target.asarray(problem.dy), as_state(target.tree(problem.dstate))
    y, state, kept = problem.layer.forward(params, x, lengths=LENGTHS)
    dparams, dx, dfirst = problem.layer.backward(params, kept, dy, dstate)
    result = run_both(problem, target)
    assert_same(target.to_numpy(y), result.y)
    assert_same(target.to_numpy(dx), result.dx)
    for parts, of_zeros in ((state, result.state), (dfirst, result.dstate)):
        for part, other in zip(as_parts(parts), of_zeros, strict=True):
            assert_same(target.to_numpy(part), other)
    for name, value in dparams.items():
        assert_same(target.to_numpy(value), result.dparams[name], name)


GIVEN = {"none": (), "dh": (0,), "dc": (1,), "both": (0, 1)}


@pytest.mark.parametrize(
    ("cell", "given"),
    [(c, g) for c in CELLS for g in GIVEN if c.startswith("lstm") or max(GIVEN[g], default=0) == 0],
)
def test_left_out_dstate_is_zeros(target: Target, cell: str, given: str) -> None:
    problem = make_problem(cell, **STACKED)
    count = len(problem.state)
    full = replace(
        problem,
        dstate=tuple(
            part if k in GIVEN[given] else np.zeros_like(part)
            for k, part in enumerate(problem.dstate)
        ),
    )
    params = target.tree(problem.params)
    parts = [target.asarray(problem.dstate[k]) if k in GIVEN[given] else None for k in range(count)]
    forms = [as_state(parts)] if GIVEN[given] or count == 1 else [as_state(parts), None]
    for dstate in forms:
        _, _, kept = problem.layer.forward(
            params, target.asarray(problem.x), as_state(target.tree(problem.state))
        )
        dparams, dx, dfirst = problem.layer.backward(
            params, kept, target.asarray(problem.dy), dstate
        )
        result = run_both(full, target)
        assert_same(target.to_numpy(dx), result.dx)
        for part, other in zip(as_parts(dfirst), result.dstate, strict=True):
            assert_same(target.to_numpy(part), other)
        for name, value in dparams.items():
            assert_same(target.to_numpy(value), result.dparams[name], name)


# Ragged batches


@pytest.mark.parametrize("order", [(2, 5, 3), (5, 3, 2), (2, 3, 5), (1, 1, 4)], ids=str)
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm_projected", "gru"])
def test_lengths_in_any_order(target: Target, cell: str, order: tuple[int, ...]) -> None:
    problem = make_problem(cell, lengths=order, **STACKED)
    assert_close(run_both(problem, target), problem.reference())


@pytest.mark.parametrize("form", ["list", "int32", "int64", "uint8", "target"])
@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm", "gru"])
def test_lengths_in_any_form(target: Target, cell: str, form: str) -> None:
    problem = make_problem(cell, lengths=LENGTHS, **STACKED)
    lengths: Any = list(LENGTHS)
    if form == "target":
        lengths = target.asarray(np.array(LENGTHS))
    elif form != "list":
        lengths = np.array(LENGTHS, dtype=form)
    result = run_both(problem, target)
    y, state = problem.layer(
        target.tree(problem.params),
        target.asarray(problem.x),
        as_state(target.tree(problem.state)),
        lengths=lengths,
    )
    assert_same(target.to_numpy(y), result.y)
    for part, other in zip(as_parts(state), result.state, strict=True):
        assert_same(target.to_numpy(part), other)


@each_cell
def test_full_lengths_are_no_lengths(target: Target, cell: str) -> None:
    problem = make_problem(cell, **STACKED)
    with_lengths = run_both(replace(problem, lengths=(STEPS,) * BATCH), target)
    for (name, a), (_, b) in zip(
        named(with_lengths), named(run_both(problem, target)), strict=True
    ):
        assert_same(a, b, name)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e300], ids=str)
@each_cell
def test_what_stands_past_the_length_is_not_seen(target: Target, cell: str, garbage: float) -> None:
    clean = make_problem(cell, lengths=LENGTHS, **STACKED)
    past = np.arange(STEPS)[:, None] >= np.array(LENGTHS)[None, :]
    dirty = replace(clean, x=clean.x.copy(), dy=clean.dy.copy())
    dirty.x[past] = garbage
    dirty.dy[past] = garbage
    result = run_both(dirty, target)
    for (name, a), (_, b) in zip(named(result), named(run_both(clean, target)), strict=True):
        assert_same(a, b, name)
    assert not result.y[past].any()
    assert not result.dx[past].any()
    assert result.y[~past].all() or cell == "rnn_relu"


@each_cell
def test_ragged_batch_is_each_sequence_alone(target: Target, cell: str) -> None:
    options = OPTIONS["bidirectional"] if target.backend == "jax" else STACKED
    problem = make_problem(cell, lengths=LENGTHS, **options)
    result = run_both(problem, target)
    total = {name: np.zeros_like(value) for name, value in problem.params.items()}
    for b, n in enumerate(LENGTHS):
        one = slice(b, b + 1)
        alone = run_both(
            replace(
                problem,
                x=problem.x[:n, one],
                dy=problem.dy[:n, one],
                state=tuple(part[:, one] for part in problem.state),
                dstate=tuple(part[:, one] for part in problem.dstate),
                lengths=None,
            ),
            target,
        )
        together = Result(
            result.y[:n, one],
            tuple(part[:, one] for part in result.state),
            {},
            result.dx[:n, one],
            tuple(part[:, one] for part in result.dstate),
        )
        assert_close(together, alone._replace(dparams={}))
        for name, value in alone.dparams.items():
            total[name] += value
    for name, value in result.dparams.items():
        np.testing.assert_allclose(value, total[name], rtol=1e-12, atol=1e-12, err_msg=name)


@each_cell
def test_batch_larger_than_one_chunk(small_chunks: int, cell: str) -> None:
    batch = small_chunks + 2
    lengths = tuple(1 + k % STEPS for k in range(batch))
    problem = make_problem(cell, batch=batch, lengths=lengths, **STACKED)
    assert_close(run_both(problem, NUMPY), problem.reference())


# Runs that follow each other


@each_cell
def test_carried_state(target: Target, cell: str) -> None:
    problem = make_problem(cell, num_layers=2)
    layer, params = problem.layer, target.tree(problem.params)
    first, second = target.asarray(problem.x[:2]), target.asarray(problem.x[2:])
    state = as_state(target.tree(problem.state))
    y_1, state, kept_1 = layer.forward(params, first, state)
    y_2, state, kept_2 = layer.forward(params, second, state)
    d_2, dx_2, dstate = layer.backward(
        params, kept_2, target.asarray(problem.dy[2:]), as_state(target.tree(problem.dstate))
    )
    d_1, dx_1, dstate = layer.backward(params, kept_1, target.asarray(problem.dy[:2]), dstate)
    host = target.to_numpy
    in_two = Result(
        np.concatenate((host(y_1), host(y_2))),
        tuple(host(part) for part in as_parts(state)),
        {name: host(d_1[name]) + host(d_2[name]) for name in d_1},
        np.concatenate((host(dx_1), host(dx_2))),
        tuple(host(part) for part in as_parts(dstate)),
    )
    assert_close(in_two, run_both(problem, target))


@each_cell
def test_one_step_at_a_time(target: Target, cell: str) -> None:
    problem = make_problem(cell, num_layers=2)
    prepared = problem.layer.prepare(target.tree(problem.params))
    state = as_state(target.tree(problem.state))
    steps = []
    for t in range(STEPS):
        y, state = problem.layer(prepared, target.asarray(problem.x[t : t + 1]), state)
        steps.append(target.to_numpy(y))
    result = expected(cell, "stacked", None)
    np.testing.assert_allclose(np.concatenate(steps), result.y, rtol=1e-12, atol=1e-12)
    for part, other in zip(as_parts(state), result.state, strict=True):
        np.testing.assert_allclose(target.to_numpy(part), other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@each_cell
def test_inference_equals_training_bit_for_bit(
    target: Target, cell: str, lengths: tuple[int, ...] | None
) -> None:
    problem = make_problem(cell, lengths=lengths, **STACKED)
    y, state = call(problem, target)
    result = run_both(problem, target)
    assert_same(y, result.y)
    for part, other in zip(state, result.state, strict=True):
        assert_same(part, other)


@each_cell
def test_results_of_one_call_outlive_the_next(target: Target, cell: str) -> None:
    problem = make_problem(cell, lengths=LENGTHS, **STACKED)
    other = make_problem(cell, seed=1, **STACKED)
    params = target.tree(problem.params)
    x, state = target.asarray(problem.x), as_state(target.tree(problem.state))
    dy, dstate = target.asarray(problem.dy), as_state(target.tree(problem.dstate))
    y, last, kept = problem.layer.forward(params, x, state, lengths=LENGTHS)
    run_both(other, target)
    problem.layer(params, target.asarray(other.x), last)
    dparams, dx, dfirst = problem.layer.backward(params, kept, dy, dstate)
    run_both(other, target)
    late = Result(
        target.to_numpy(y),
        tuple(target.to_numpy(part) for part in as_parts(last)),
        {name: target.to_numpy(value) for name, value in dparams.items()},
        target.to_numpy(dx),
        tuple(target.to_numpy(part) for part in as_parts(dfirst)),
    )
    assert_close(late, expected(cell, "stacked_bidirectional", LENGTHS))


@each_cell
def test_results_share_no_memory(target: Target, cell: str) -> None:
    if target.backend == "jax":
        pytest.skip("JAX arrays do not change")
    for steps in (1, STEPS):
        problem = make_problem(cell, steps=steps)
        y, last = problem.layer(target.tree(problem.params), target.asarray(problem.x))
        parts = as_parts(last)
        before = [np.array(target.to_numpy(part)) for part in parts]
        y[...] = 7.0
        for part, other in zip(parts, before, strict=True):
            assert_same(target.to_numpy(part), other)


@pytest.mark.parametrize("full", [True, False], ids=["full", "ragged"])
@each_cell
def test_what_the_caller_changes_between_the_runs(target: Target, cell: str, full: bool) -> None:
    """Results and lengths are the caller's: the backward run does not read them."""
    if full and target.backend == "jax":
        pytest.skip("JAX arrays do not change")
    problem = make_problem(cell, batch=1, **({} if full else STACKED))
    params, x = target.tree(problem.params), target.asarray(problem.x)

    def gradients(*, changed: bool) -> dict[str, HostArray]:
        lengths = np.asarray([STEPS - 1])
        y, last, kept = problem.layer.forward(params, x, lengths=None if full else lengths)
        if changed:
            lengths[0] = STEPS
            for array in (y, *as_parts(last)) if target.backend != "jax" else ():
                array[...] = 0
        dparams, _, _ = problem.layer.backward(params, kept, target.asarray(problem.dy))
        return {name: target.to_numpy(value) for name, value in dparams.items()}

    unchanged = gradients(changed=False)
    for name, value in gradients(changed=True).items():
        np.testing.assert_array_equal(value, unchanged[name])


@each_cell
def test_cache_serves_one_backward_call(target: Target, cell: str) -> None:
    problem = make_problem(cell)
    params, dy = target.tree(problem.params), target.asarray(problem.dy)
    _, _, kept = problem.layer.forward(params, target.asarray(problem.x))
    problem.layer.backward(params, kept, dy)
    with pytest.raises(ValueError, match="cache was used"):
        problem.layer.backward(params, kept, dy)


@each_cell
def test_a_refused_gradient_leaves_the_cache_fresh(target: Target, cell: str) -> None:
    problem = make_problem(cell)
    params, dy = target.tree(problem.params), target.asarray(problem.dy)
    _, _, kept = problem.layer.forward(params, target.asarray(problem.x))
    state = target.asarray(np.zeros((1, 1, 1)))
    for wrong, dstate, message in (
        (dy[:-1, ...], None, "dy must have shape"),
        (None, None, "dy must be an array"),
        (dy, state, "dstate"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            problem.layer.backward(params, kept, wrong, dstate)
    problem.layer.backward(params, kept, dy)


def test_a_layer_is_a_description_after_every_call(target: Target) -> None:
    """A copy and a pickle hold what was given, not what the calls made of it."""
    layers = (GRU(3, 4), LSTM(3, 4, proj_size=2), RNN(3, 4, 2, bidirectional=True))
    for layer in layers:
        params = layer.init(0, backend=target.backend, device=target.device_name)
        x = target.asarray(np.ones((2, 1, 3)), "float32")
        y, _, cache = layer.forward(params, x)
        layer.backward(params, cache, y)
        expected, _ = layer(layer.prepare(params), x)
        for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
            assert other == layer
            assert other is not layer
            found, _ = other(params, x)
            np.testing.assert_array_equal(target.to_numpy(found), target.to_numpy(expected))


# Prepared parameters


@each_cell
def test_prepared_parameters(target: Target, cell: str) -> None:
    problem = make_problem(cell, lengths=LENGTHS, **STACKED)
    prepared = problem.layer.prepare(target.tree(problem.params))
    y, state = problem.layer(
        prepared,
        target.asarray(problem.x),
        as_state(target.tree(problem.state)),
        lengths=LENGTHS,
    )
    want_y, want_state = call(problem, target)
    assert_same(target.check(y, want_y.shape, "float64"), want_y)
    for part, want in zip(as_parts(state), want_state, strict=True):
        assert_same(target.check(part, want.shape, "float64"), want)


@pytest.mark.parametrize("bias", [True, False])
@each_cell
def test_prepared_parameters_do_not_follow_the_originals(cell: str, bias: bool) -> None:
    problem = make_problem(cell, bias=bias)
    want, _ = call(problem, NUMPY)
    params = NUMPY.tree(problem.params)
    prepared = problem.layer.prepare(params)
    for value in params.values():
        value *= 0.5
    y, _ = problem.layer(prepared, problem.x, as_state(problem.state))
    assert_same(y, want)


# Dropout


def identity_stack(levels: int, rate: float) -> tuple[RNN, dict[str, HostArray]]:
    """A relu layer whose level 0 gives ones, and whose other levels repeat their input."""
    size = 40
    layer = RNN(1, size, levels, nonlinearity="relu", dropout=rate)
    params = {name: np.zeros(shape) for name, shape in layer.shapes.items()}
    params["bias_ih_l0"] += 1.0
    for level in range(1, levels):
        params[f"weight_ih_l{level}"] += np.eye(size)
    return layer, params


def test_dropout_zeroes_and_scales_each_element(target: Target) -> None:
    layer, params = identity_stack(2, 0.25)
    x = np.zeros((20, 10, 1))
    y, _, _ = layer.forward(target.tree(params), target.asarray(x), dropout_seed=5)
    mask = target.check(y, (20, 10, 40), "float64")
    assert set(np.unique(mask)) == {0.0, 1 / (1 - 0.25)}
    dropped = mask == 0.0
    assert np.mean(dropped) == pytest.approx(0.25, abs=0.02)
    for axes in ((1, 2), (0, 2), (0, 1)):  # not one mask for all steps, sequences or units
        assert np.std(np.mean(dropped, axis=axes)) > 0.0
        assert np.all(np.mean(dropped, axis=axes) < 0.5)


def test_dropout_differs_from_level_to_level() -> None:
    layer, params = identity_stack(3, 0.5)
    y, _, _ = layer.forward(params, np.zeros((20, 10, 1)), dropout_seed=5)
    assert np.mean(y == 4.0) == pytest.approx(0.25, abs=0.02)
    assert np.mean(y == 0.0) == pytest.approx(0.75, abs=0.02)


@each_cell
def test_one_seed_is_one_mask_everywhere(target: Target, cell: str) -> None:
    problem = make_problem(cell, dropout=0.5, **STACKED)

    def dropped(on: Target, seed: int | None) -> HostArray:
        y, _, _ = problem.layer.forward(
            on.tree(problem.params), on.asarray(problem.x), dropout_seed=seed
        )
        return on.to_numpy(y)

    np.testing.assert_allclose(dropped(target, 3), dropped(NUMPY, 3), rtol=1e-12, atol=1e-12)
    assert_same(dropped(target, 3), dropped(target, 3))
    assert np.abs(dropped(target, 3) - dropped(target, 4)).max() > 1e-3
    assert np.abs(dropped(target, 3) - dropped(target, None)).max() > 1e-3


@each_cell
def test_no_dropout_without_a_seed_nor_in_inference(target: Target, cell: str) -> None:
    plain = make_problem(cell, **STACKED)
    with_rate = replace(plain, layer=make_layer(cell, dropout=0.5, **STACKED))
    want, _ = call(plain, target)
    assert_same(call(with_rate, target)[0], want)
    y, _, _ = with_rate.layer.forward(
        target.tree(plain.params), target.asarray(plain.x), as_state(target.tree(plain.state))
    )
    assert_same(target.to_numpy(y), want)


def test_dropout_leaves_the_only_level_alone(target: Target) -> None:
    layer = make_layer("gru", dropout=0.9)
    problem = make_problem("gru")
    params, x = target.tree(problem.params), target.asarray(problem.x)
    y, _, _ = layer.forward(params, x, dropout_seed=1)
    assert_same(target.to_numpy(y), target.to_numpy(layer(params, x)[0]))


@each_cell
def test_dropout_of_everything(target: Target, cell: str) -> None:
    """With rate 1 the second level sees zeros, and passes nothing back."""
    problem = make_problem(cell, num_layers=2, dropout=1.0)
    params = target.tree(problem.params)
    y, _, kept = problem.layer.forward(params, target.asarray(problem.x), dropout_seed=0)
    dparams, dx, _ = problem.layer.backward(params, kept, target.asarray(problem.dy))
    top = make_layer(cell)
    zeros = {
        name.replace("_l1", "_l0"): value
        for name, value in problem.params.items()
        if name.endswith("_l1")
    }
    zeros["weight_ih_l0"] = zeros["weight_ih_l0"][:, :INPUT]
    want, _ = top(zeros, np.zeros_like(problem.x))
    np.testing.assert_allclose(target.to_numpy(y), want, rtol=1e-12, atol=1e-12)
    assert not target.to_numpy(dx).any()
    assert not target.to_numpy(dparams["weight_hh_l0"]).any()


# Initial parameters


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scheme", ["uniform", "glorot", "orthogonal"])
@each_cell
def test_one_seed_draws_the_same_numbers_everywhere(
    target: Target, cell: str, scheme: str, dtype: str
) -> None:
    layer = make_layer(cell, **STACKED)
    drawn = layer.init(
        7, backend=target.backend, device=target.device_name, dtype=dtype, scheme=scheme
    )
    on_numpy = layer.init(7, dtype=dtype, scheme=scheme)
    assert list(drawn) == list(layer.shapes)
    for name, value in drawn.items():
        assert_same(target.check(value, layer.shapes[name], dtype, name), on_numpy[name], name)


def test_init_draws_float32_on_numpy_by_default() -> None:
    for value in LSTM(2, 3).init(0).values():
        assert type(value) is np.ndarray
        assert value.dtype == np.float32


@each_cell
def test_seeds_and_parameters_are_independent(cell: str) -> None:
    layer = make_layer(cell, **STACKED)
    first, second = (layer.init(seed, dtype="float64") for seed in (0, 1))
    values = np.concatenate(
        [value.ravel() for params in (first, second) for value in params.values()]
    )
    assert len(np.unique(values)) == values.size


@each_cell
def test_uniform_scheme(cell: str) -> None:
    """U(-1/√H, 1/√H) for everything, as PyTorch."""
    layer = make_layer(cell, hidden=64)
    for name, value in layer.init(0, dtype="float64").items():
        assert np.abs(value).max() <= 1 / 8, name
        if value.size >= 100:
            assert np.abs(value).max() > 0.9 / 8, name
            assert abs(value.mean()) < 0.3 / 8, name


@each_cell
def test_glorot_scheme(cell: str) -> None:
    layer = make_layer(cell, hidden=64)
    out = PROJECTED if "projected" in cell else 64
    bounds = {"weight_ih": (64, INPUT), "weight_hh": (64, out), "weight_hr": (PROJECTED, 64)}
    for name, value in layer.init(0, dtype="float64", scheme="glorot").items():
        kind = name.removesuffix("_l0")
        if kind in bounds:
            bound = np.sqrt(6 / sum(bounds[kind]))
            assert 0.9 * bound < np.abs(value).max() <= bound, name
        else:
            assert not value.any(), name


@each_cell
def test_orthogonal_scheme(cell: str) -> None:
    layer = make_layer(cell, hidden=8)
    params = layer.init(0, dtype="float64", scheme="orthogonal")
    weight = params["weight_hh_l0"]
    for gate in range(weight.shape[0] // 8):
        q = weight[8 * gate : 8 * (gate + 1)]
        np.testing.assert_allclose(q.T @ q, np.eye(q.shape[1]), atol=1e-12)
    assert not params["bias_ih_l0"].any()


@pytest.mark.parametrize("scheme", ["uniform", "glorot"])
def test_forget_bias(target: Target, scheme: str) -> None:
    layer = LSTM(2, 3, 2, bidirectional=True)
    library, device = target.backend, target.device_name
    params = layer.init(0, backend=library, device=device, scheme=scheme, forget_bias=1.5)
    plain = layer.init(0, dtype="float32", scheme=scheme)
    for name, value in params.items():
        want = plain[name].copy()
        if name.startswith("bias"):
            want[3:6] = 1.5 if name.startswith("bias_ih") else 0.0
        assert_same(target.check(value, want.shape, "float32", name), want, name)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_forget_bias_in_bfloat16(name: str) -> None:
    target = make_target(name)
    params = LSTM(2, 3).init(0, backend=name, dtype="bfloat16", forget_bias=1.5)
    assert params["bias_ih_l0"].dtype == target.xp.bfloat16
    assert [float(value) for value in params["bias_ih_l0"][3:6]] == [1.5] * 3


def test_hidden_size_names_the_outputs() -> None:
    assert LSTM(2, HIDDEN, proj_size=2, bidirectional=True).output_size == 4
    assert GRU(2, HIDDEN, bidirectional=True).output_size == 2 * HIDDEN
    assert RNN(2, HIDDEN).output_size == HIDDEN


def test_a_layer_is_freed_at_once() -> None:
    """Nothing that it keeps for its calls refers to it."""
    layer, x = LSTM(3, 4, 2), np.zeros((4, 2, 3), dtype=np.float32)
    params = layer.init(0)
    layer(params, x)
    layer.forward(params, x)
    layer.prepare(params)
    alive = weakref.ref(layer)
    gc.disable()
    try:
        del layer
        assert alive() is None
    finally:
        gc.enable()
