"""Optimizers against PyTorch's, on every library; clipping and schedules."""

from __future__ import annotations

import importlib
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from targets import HostArray, Target, make_target, need

from rnn_xp import optim

OPTIMIZERS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "sgd": (optim.SGD(0.1), "SGD", {"lr": 0.1}),
    "momentum": (optim.SGD(0.1, 0.9), "SGD", {"lr": 0.1, "momentum": 0.9}),
    "nesterov": (
        optim.SGD(0.1, 0.9, nesterov=True),
        "SGD",
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    ),
    "adam": (optim.Adam(), "Adam", {}),
    "adam_betas": (
        optim.Adam(0.02, betas=(0.5, 0.9), eps=1e-4),
        "Adam",
        {"lr": 0.02, "betas": (0.5, 0.9), "eps": 1e-4},
    ),
    "adamw": (optim.AdamW(0.01, weight_decay=0.1), "AdamW", {"lr": 0.01, "weight_decay": 0.1}),
    "rmsprop": (optim.RMSprop(), "RMSprop", {}),
}


def numbers(seed: int) -> dict[str, HostArray]:
    rng = np.random.default_rng(seed)
    return {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5)}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_as_pytorch(name: str) -> None:
    need("torch")
    import torch

    opt, peer_name, options = OPTIMIZERS[name]
    params = numbers(0)
    tensors = {key: torch.tensor(value, requires_grad=True) for key, value in params.items()}
    peer = getattr(torch.optim, peer_name)(tensors.values(), **options)
    state = opt.init(params)
    for step in range(20):
        grads = numbers(step + 1)
        for key, tensor in tensors.items():
            tensor.grad = torch.tensor(grads[key])
        peer.step()
        params, state = opt.update(grads, state, params)
    for key, tensor in tensors.items():
        np.testing.assert_allclose(params[key], tensor.detach().numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_on_every_library(target: Target, name: str, dtype: str) -> None:
    opt = OPTIMIZERS[name][0]
    params, given = numbers(0), target.tree(numbers(0), dtype)
    state, given_state = opt.init(params), opt.init(given)
    copies = {key: target.to_numpy(value).copy() for key, value in given.items()}
    first = given
    for step in range(3):
        grads = numbers(step + 1)
        params, state = opt.update(grads, state, params)
        given, given_state = opt.update(target.tree(grads, dtype), given_state, given)
    assert given_state["step"] == 3
    for key, value in params.items():
        found = target.check(given[key], value.shape, dtype)
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-5 if dtype == "float32" else 1e-14)
        assert np.array_equal(target.to_numpy(first[key]), copies[key])


def test_a_schedule_is_asked_for_each_step() -> None:
    asked: list[int] = []

    def schedule(step: int) -> float:
        asked.append(step)
        return 0.5 if step else 0.0

    params, grads = {"a": np.ones(2)}, {"a": np.ones(2)}
    opt = optim.SGD(schedule)
    params, state = opt.update(grads, opt.init(params), params)
    assert params["a"].tolist() == [1.0, 1.0]
    params, _ = opt.update(grads, state, params)
    assert params["a"].tolist() == [0.5, 0.5]
    assert asked == [0, 1]


def test_average(target: Target) -> None:
    average = optim.Average(0.6)
    state = average.init(target.tree(numbers(0)))
    expected = numbers(0)
    first = state["mean"]
    for step in range(15):  # after 11 updates (1 + t) / (10 + t) is above 0.6
        decay = min(0.6, (1 + step) / (10 + step))
        for name, value in numbers(step + 1).items():
            expected[name] = decay * expected[name] + (1 - decay) * value
        state = average.update(state, target.tree(numbers(step + 1)))
    assert state["step"] == 15
    for name, value in expected.items():
        found = target.check(state["mean"][name], value.shape, "float64")
        np.testing.assert_allclose(found, value, rtol=1e-13)
        assert np.array_equal(target.to_numpy(first[name]), numbers(0)[name])


def test_average_of_pytorch() -> None:
    """PyTorch has no warm-up, and takes the first update's parameters whole."""
    need("torch")
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    module = torch.nn.Linear(3, 4, dtype=torch.float64)
    peer = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.05))
    average = optim.Average(0.05)  # so small that there is no warm-up
    state: optim.State = {}
    for step in range(6):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn_like(parameter))
        params = {name: p.detach().numpy().copy() for name, p in module.named_parameters()}
        peer.update_parameters(module)
        state = average.update(state, params) if step else average.init(params)
    for name, tensor in peer.module.named_parameters():
        np.testing.assert_allclose(state["mean"][name], tensor.detach().numpy(), rtol=1e-13)


@pytest.mark.parametrize("max_norm", [0.1, 3.0, 1e6])
def test_clipping(target: Target, max_norm: float) -> None:
    grads = numbers(3)
    clipped, norm = optim.clip_by_global_norm(target.tree(grads), max_norm)
    expected = math.sqrt(sum(float((g * g).sum()) for g in grads.values()))
    assert float(target.check(norm, (), "float64")) == pytest.approx(expected, rel=1e-14)
    factor = min(1.0, max_norm / (expected + 1e-6))
    for name, value in grads.items():
        found = target.check(clipped[name], value.shape, "float64")
        np.testing.assert_allclose(found, value * factor, rtol=1e-13)


def test_clipping_large_and_zero_gradients() -> None:
    grads = {"a": np.full(4, 1e30, dtype="float32")}
    clipped, norm = optim.clip_by_global_norm(grads, 1.0)
    assert float(norm) == pytest.approx(2e30)
    np.testing.assert_allclose(clipped["a"], 0.5, rtol=1e-6)
    clipped, norm = optim.clip_by_global_norm({"a": np.zeros(3)}, 1.0)
    assert float(norm) == 0.0
    assert not clipped["a"].any()


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        ("float16", 1e-4),
        ("float16", 1e-3),
        ("float16", 1.0),
        ("float16", 200.0),
        ("float32", 1e-30),
        ("float32", 1e-18),
        ("float32", 1.0),
        ("float32", 7e18),
        ("float32", 1e30),
        ("float64", 1e-200),
        ("float64", 1e200),
    ],
)
def test_a_norm_whose_square_has_no_room(dtype: str, scale: float) -> None:
    grads = {name: (value * scale).astype(dtype) for name, value in numbers(3).items()}
    values = [float(x) for g in grads.values() for x in g.flat]
    _, norm = optim.clip_by_global_norm(grads, 1.0)
    assert norm.dtype == dtype
    assert float(norm) == pytest.approx(math.hypot(*values), rel=4 * float(np.finfo(dtype).eps))


def test_clipping_in_half_precision_has_room() -> None:
    """The squares of 70,000 ones are more than float16 holds, their norm is not."""
    clipped, norm = optim.clip_by_global_norm({"a": np.ones(70_000, "float16")}, 1.0)
    assert float(norm) == pytest.approx(math.sqrt(70_000), rel=1e-3)
    np.testing.assert_allclose(clipped["a"], 1 / math.sqrt(70_000), rtol=2e-3)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_clipping_what_is_not_finite_as_pytorch() -> None:
    for dtype in ("float32", "float64"):
        clipped, norm = optim.clip_by_global_norm({"a": np.array([1.0, np.inf], dtype)}, 1.0)
        assert norm == np.inf
        np.testing.assert_array_equal(clipped["a"], [0.0, np.nan])
        clipped, norm = optim.clip_by_global_norm({"a": np.array([1.0, np.nan], dtype)}, 1.0)
        assert np.isnan(norm)
        assert np.isnan(clipped["a"]).all()


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1.0, 1e30])
def test_clipping_beside_an_empty_array(target: Target, scale: float) -> None:
    grads = {"none": np.zeros((0, 3), "float32"), "some": np.full(4, scale, "float32")}
    clipped, norm = optim.clip_by_global_norm(target.tree(grads), 0.5)
    assert float(target.check(norm, (), "float32")) == pytest.approx(2 * scale)
    target.check(clipped["none"], (0, 3), "float32")
    found = target.check(clipped["some"], (4,), "float32")
    np.testing.assert_allclose(found, min(scale, 0.25), rtol=1e-5)
    clipped, norm = optim.clip_by_global_norm(target.tree({"none": grads["none"]}), 0.5)
    assert float(target.check(norm, (), "float32")) == 0.0


NUMBERS = (np.float32, np.float64)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    "make",
    [
        lambda n: optim.SGD(n(0.1), n(0.9)),
        lambda n: optim.SGD(n(0.1), n(0.9), nesterov=True),
        lambda n: optim.Adam(n(0.1), (n(0.8), n(0.9)), n(1e-6)),
        lambda n: optim.AdamW(n(0.1), weight_decay=n(0.1)),
        lambda n: optim.RMSprop(n(0.1), n(0.9), n(1e-6)),
    ],
)
def test_numpy_s_numbers_change_no_dtype(make: Any, number: Any, target: Target) -> None:
    given, plain, mean = make(number), make(float), optim.Average(number(0.5))
    for dtype in ("float32", "float64"):
        params = expected = target.tree(numbers(0), dtype)
        state, other, average = given.init(params), plain.init(params), mean.init(params)
        for step in range(3):
            grads = target.tree(numbers(step + 1), dtype)
            grads, _ = optim.clip_by_global_norm(grads, number(0.5))
            params, state = given.update(grads, state, params)
            expected, other = plain.update(grads, other, expected)
            average = mean.update(average, params)
        for name, value in numbers(0).items():
            found = target.check(params[name], value.shape, dtype)
            np.testing.assert_allclose(found, target.to_numpy(expected[name]), rtol=1e-5)
            target.check(average["mean"][name], value.shape, dtype)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_arrays_without_axes(target: Target, name: str) -> None:
    opt, mean = OPTIMIZERS[name][0], optim.Average()
    for dtype in ("float32", "float64"):
        rows, lone = (target.tree({"a": np.full(shape, 2.0)}, dtype) for shape in ((1,), ()))
        states, average = [opt.init(rows), opt.init(lone)], mean.init(lone)
        for step in range(3):
            grads = [target.tree({"a": np.full(p, step + 0.5)}, dtype) for p in ((1,), ())]
            rows, states[0] = opt.update(grads[0], states[0], rows)
            clipped, _ = optim.clip_by_global_norm(grads[1], 100.0)
            lone, states[1] = opt.update(clipped, states[1], lone)
            average = mean.update(average, lone)
        (expected,) = target.check(rows["a"], (1,), dtype)
        assert float(target.check(lone["a"], (), dtype)) == pytest.approx(float(expected), rel=1e-5)
        for value in (lone["a"], average["mean"]["a"], *(states[1][s]["a"] for s in opt._slots())):
            assert target.backend != "numpy" or type(value) is np.ndarray


@pytest.mark.parametrize(
    ("other", "error"),
    [
        (np.ones((2, 3)), ValueError),
        (np.ones((1, 3)), ValueError),
        (np.ones(3, "float32"), TypeError),
        ([1.0, 2.0, 3.0], TypeError),
    ],
)
def test_an_average_of_other_arrays(other: Any, error: type[Exception]) -> None:
    state = optim.Average().init({"a": np.zeros(3)})
    with pytest.raises(error):
        optim.Average().update(state, {"a": other})


SCHEDULES = (
    0.1,
    optim.constant(0.1),
    optim.warmup_cosine(0.1, 9, 3, 0.01),
    optim.warmup_cosine(0.1, 4),
    optim.step_decay(0.1, 2),
)


@pytest.mark.parametrize("rate", SCHEDULES, ids=str)
def test_under_jit(rate: Any) -> None:
    """The step is traced there, like all of the state."""
    target = make_target("jax")
    jax = importlib.import_module("jax")
    opt, mean = optim.Adam(rate), optim.Average(0.3)
    update, average = jax.jit(opt.update), jax.jit(mean.update)
    params = traced = target.tree(numbers(0))
    state, traced_state = opt.init(params), opt.init(traced)
    kept, traced_kept = mean.init(params), mean.init(traced)
    for step in range(6):
        grads = target.tree(numbers(step + 1))
        params, state = opt.update(grads, state, params)
        traced, traced_state = update(grads, traced_state, traced)
        kept, traced_kept = mean.update(kept, params), average(traced_kept, traced)
    for name, value in numbers(0).items():
        for found, expected in (
            (traced[name], params[name]),
            (traced_kept["mean"][name], kept["mean"][name]),
        ):
            found = target.check(found, value.shape, "float64")
            np.testing.assert_allclose(found, target.to_numpy(expected), rtol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_autograd_records_no_update(name: str) -> None:
    """As PyTorch's own optimizers: else every step's graph would stay."""
    need("torch")
    import torch

    opt, mean = OPTIMIZERS[name][0], optim.Average()
    params = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in numbers(0).items()}
    grads = {k: (value * 2.0).detach().requires_grad_() * 3.0 for k, value in params.items()}
    state, average = opt.init(params), mean.init(params)
    grads, norm = optim.clip_by_global_norm(grads, 0.1)
    params, state = opt.update(grads, state, params)
    average = mean.update(average, params)
    slots = [value for slot in opt._slots() for value in state[slot].values()]
    for tensor in (norm, *grads.values(), *params.values(), *average["mean"].values(), *slots):
        assert not tensor.requires_grad


def test_an_average_is_its_own() -> None:
    params = {"a": np.ones(3)}
    state = optim.Average().init(params)
    params["a"] += 5.0
    assert state["mean"]["a"].tolist() == [1.0, 1.0, 1.0]


def test_schedules() -> None:
    assert optim.constant(0.3)(7) == 0.3
    cosine = optim.warmup_cosine(1.0, 110, warmup=10, floor=0.1)
    assert [cosine(k) for k in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert cosine(10) == 1.0
    assert cosine(60) == pytest.approx(0.55)
    assert cosine(110) == cosine(500) == pytest.approx(0.1)
    step = optim.step_decay(1.0, 10, 0.5)
    assert [step(k) for k in (0, 9, 10, 25)] == [1.0, 1.0, 0.5, 0.25]
    assert pickle.loads(pickle.dumps(cosine)) == cosine


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optim.SGD(-1.0), "learning_rate must be a number >= 0.0, got -1.0"),
        (lambda: optim.SGD(math.nan), "learning_rate must be a number"),
        (lambda: optim.SGD(0.1, 1.0), "momentum must lie in 0 <= momentum < 1, got 1.0"),
        (lambda: optim.SGD(0.1, nesterov=True), "nesterov needs a momentum"),
        (lambda: optim.Adam(betas=(0.9, 1.0)), r"betas\[1\] must lie in"),
        (lambda: optim.Adam(eps=-1.0), "eps must be"),
        (lambda: optim.AdamW(weight_decay=-1.0), "weight_decay must be"),
        (lambda: optim.Average(1.0), "decay must lie in 0 <= decay < 1, got 1.0"),
        (
            lambda: optim.Average().update({"step": 0, "mean": {"a": 1}}, {"b": 1}),
            "the mean and params must have the same names, but differ in a, b",
        ),
        (lambda: optim.RMSprop(alpha=2.0), "alpha must lie in"),
        (lambda: optim.warmup_cosine(1.0, 0), "steps must be a number >= 1, got 0"),
        (lambda: optim.warmup_cosine(1.0, 5, 5), r"warmup must lie in 0\.\.4"),
        (lambda: optim.step_decay(1.0, 0), "every must be"),
        (lambda: optim.clip_by_global_norm({"a": np.ones(1)}, 0.0), "max_norm must be > 0, got 0"),
    ],
)
def test_wrong_numbers(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_gradients() -> None:
    params, opt = numbers(0), optim.Adam()
    state = opt.init(params)
    with pytest.raises(ValueError, match="differ in b"):
        opt.update({"a": params["a"]}, state, params)
    with pytest.raises(ValueError, match=r"gradient of a must have shape \(3, 4\), got \(5,\)"):
        opt.update({"a": params["b"], "b": params["b"]}, state, params)


def test_gradients_and_states_of_another_dtype_are_refused() -> None:
    """Else the parameters would silently change theirs."""
    params, opt = numbers(0), optim.Adam()
    single = {name: a.astype(np.float32) for name, a in params.items()}
    mixed = {**params, "b": single["b"]}
    state = opt.init(params)
    for rule in (opt, optim.SGD(0.1)):
        line = "the gradient of b has dtype float32, the parameters have float64"
        with pytest.raises(TypeError, match=line):
            rule.update(mixed, rule.init(params), params)
    with pytest.raises(TypeError, match="the state's m of a has dtype float32, the parameters"):
        opt.update(params, opt.init(single), params)
    with pytest.raises(TypeError, match="the gradient of a must be an array, got builtins list"):
        opt.update({**params, "a": params["a"].tolist()}, state, params)
    line = "the gradient of b is float32 on cpu, that of a float64 on cpu: expected the same"
    with pytest.raises(TypeError, match=line):
        optim.clip_by_global_norm(mixed, 1.0)
