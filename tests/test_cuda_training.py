"""CuPy's kernels around the layers, on the processor from the same source, against NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import standin
from targets import need_module

from rnn_xp import character_model, losses, optim
from rnn_xp.backend import Backend
from rnn_xp.engines.cuda import engine, fused, training
from rnn_xp.engines.cuda.fused import Fused
from rnn_xp.engines.cuda.streams import one_by_one

DTYPES = ("float64", "float32", "float16", "bfloat16")
LIMITS = {"float64": 1e-12, "float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}
"""Of the largest element of a result."""


@pytest.fixture
def to(
    xp: Any, training_kernels: Any, steps: Fused, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Backend]:
    """Stand in for CuPy, with the kernels."""
    monkeypatch.setattr(training, "compiled", training_kernels)
    monkeypatch.setattr(engine, "choose", lambda: engine.Cuda(steps, None, one_by_one))
    training.choose.cache_clear()
    yield Backend("cupy", xp, standin.Device(0), "cuda:0")
    training.choose.cache_clear()


def close(found: Any, expected: Any, dtype: str, least: float = 0.0) -> None:
    """Compare with what NumPy has in float64; `least` is the smallest size that counts."""
    assert found.dtype.name == dtype
    assert found.shape == np.shape(expected)
    largest = np.abs(expected).max(initial=least)
    numbers = found._host.astype(np.float64)
    np.testing.assert_allclose(numbers, expected, rtol=0, atol=LIMITS[dtype] * largest)


def drawn(shape: tuple[int, ...], dtype: str, seed: int) -> Any:
    """Return numbers that are the same in this dtype and in float64."""
    names = {"bfloat16": np.float32}
    values = np.random.default_rng(seed).standard_normal(shape).astype(names.get(dtype, dtype))
    if dtype == "bfloat16":
        values = values.astype(need_module("ml_dtypes").bfloat16)
    return values.astype(np.float64)


SHAPES = [(1,), (3, 85), (257,), (), (0,), (300, 1000)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", [optim.Adam(), optim.AdamW(0.02, (0.7, 0.9), 1e-5)], ids=repr)
def test_an_update_by_adam(rule: optim.Adam, dtype: str, to: Backend, xp: Any) -> None:
    """One launch for each parameter."""
    params = {str(shape): drawn(shape, dtype, k) for k, shape in enumerate(SHAPES)}
    grads = {name: drawn(a.shape, dtype, 9) for name, a in params.items()}
    host, mine = rule.init(params), {name: to.asarray(a, dtype) for name, a in params.items()}
    state = rule.init(mine)
    for _ in range(2):
        xp.launches.clear()
        given = {name: to.asarray(a, dtype) for name, a in grads.items()}
        mine, state = rule.update(given, state, mine)
        assert xp.launches == {"adam": len(SHAPES)}
        params, host = rule.update(grads, host, params)
        for name, value in params.items():
            close(mine[name], value, dtype)
            for slot in ("m", "v"):
                close(state[slot][name], host[slot][name], dtype)
        params = {name: a._host.astype(np.float64) for name, a in mine.items()}  # as rounded
        for slot in ("m", "v"):
            host[slot] = {name: a._host.astype(np.float64) for name, a in state[slot].items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("most", [0.5, 1e6])
def test_clipping(dtype: str, most: float, to: Backend, xp: Any) -> None:
    grads = {str(shape): drawn(shape, dtype, k) for k, shape in enumerate(SHAPES)}
    given = {name: to.asarray(a, dtype) for name, a in grads.items()}
    xp.launches.clear()
    clipped, norm = optim.clip_by_global_norm(given, most)
    if dtype != "float64":
        count = len(SHAPES)
        assert xp.launches == {"squares": count, "sum": 1, "limit": 1, "scaled": count}
    expected, whole = optim.clip_by_global_norm(grads, most)
    close(norm, whole, dtype)
    for name, value in expected.items():
        close(clipped[name], value, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_beyond_the_range(dtype: str, to: Backend) -> None:
    """No square overflows; a norm that float16 cannot hold scales rightly nevertheless."""
    sizes = {"float64": (1e300, 1e-300), "float16": (6e4, 2.0**-24)}
    size, tiny = sizes.get(dtype, (1e30, 1e-30))
    small = 2.0**-10 if dtype == "float16" else 1e-6  # beside which the 1e-6 of the factor counts
    for value, most in ((size, size), (1e-3 * size, 1.0), (tiny, 1.0), (small, small)):
        a = to.asarray(np.full(7, value), dtype)
        clipped, norm = optim.clip_by_global_norm({"a": a}, most)
        true = float(a._host[0]) * 7**0.5
        with np.errstate(over="ignore"):
            assert float(norm._host) == pytest.approx(float(np.float64(true).astype(a.dtype)), 1e-2)
        factor = min(1.0, most / (true + 1e-6))
        close(clipped["a"], factor * a._host.astype(np.float64), dtype)
    for value in (np.nan, np.inf):
        a = to.asarray(np.asarray([1.0, value]), dtype)
        with np.errstate(invalid="ignore"):
            clipped, norm = optim.clip_by_global_norm({"a": a}, 1.0)
        assert not np.isfinite(norm._host)
        first = clipped["a"]._host[0]
        assert np.isnan(first) if np.isnan(value) else first == 0
    clipped, norm = optim.clip_by_global_norm({"a": to.asarray(np.zeros(3), dtype)}, 1.0)
    assert not norm._host.any()
    assert not clipped["a"]._host.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mean_of_the_parameters(dtype: str, to: Backend, xp: Any) -> None:
    before, after = ({str(s): drawn(s, dtype, k + n) for k, s in enumerate(SHAPES)} for n in (0, 9))
    average = optim.Average(0.3)
    state = average.init({name: to.asarray(a, dtype) for name, a in before.items()})
    xp.launches.clear()
    found = average.update(state, {name: to.asarray(a, dtype) for name, a in after.items()})
    assert xp.launches == {"moved": len(SHAPES)}
    expected = average.update(average.init(before), after)
    for name, value in expected["mean"].items():
        close(found["mean"][name], value, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3, 7), (257, 80), (0, 4), (3, 3000)])
def test_a_cross_entropy(
    shape: tuple[int, ...], reduction: str, masked: bool, dtype: str, to: Backend, xp: Any
) -> None:
    rng = np.random.default_rng(0)
    logits = 3 * drawn(shape, dtype, 0)
    targets = rng.integers(0, shape[-1], shape[:-1])
    mask = rng.uniform(size=shape[:-1]) < 0.7 if masked else None
    if mask is not None:
        logits[~mask], targets[~mask] = np.nan, -5
    how: dict[str, Any] = {"reduction": reduction}
    given = to.asarray(logits, dtype), to.asarray(targets)
    xp.launches.clear()
    loss, gradient = losses.softmax_cross_entropy(
        *given, mask=None if mask is None else to.asarray(mask), **how
    )
    if not masked and dtype in ("float32", "float64") and 0 not in shape:
        assert xp.launches == {"full": 1, "max": 1, "powers": 1, "sum": 2, "entropy": 1}
    exact = given[0]._host.astype(np.float64)
    expected = losses.softmax_cross_entropy(exact, targets, mask=mask, **how)
    close(loss, expected[0], dtype, 1.0)
    close(gradient, expected[1], dtype, 1e-3)


def test_a_target_out_of_range_writes_nothing_elsewhere(to: Backend) -> None:
    logits = drawn((3, 4), "float32", 0)
    _, gradient = losses.softmax_cross_entropy(
        to.asarray(logits, "float32"), to.asarray(np.asarray([1, 4, -1]))
    )
    exact = losses.softmax_cross_entropy(logits, np.asarray([1, 0, 0]))[1]
    close(gradient[0], exact[0], "float32")
    assert np.all(gradient._host[1:] > 0)  # p alone


def test_views_that_are_not_contiguous(to: Backend) -> None:
    wide = drawn((6, 8), "float32", 0)
    view, column = to.asarray(wide, "float32")[:, ::2].T, wide[:, ::2].T
    rule = optim.Adam(0.1)
    new, _ = rule.update({"a": view}, rule.init({"a": view}), {"a": view})
    exact, _ = rule.update({"a": column}, rule.init({"a": column}), {"a": column})
    close(new["a"], exact["a"], "float32")
    close(
        optim.clip_by_global_norm({"a": view}, 0.1)[0]["a"],
        column * 0.1 / np.sqrt(np.sum(column**2)),
        "float32",
    )
    mean, twice = optim.Average(0.3), {"a": view + view}
    found = mean.update(mean.init({"a": view}) | {"mean": {"a": view}}, twice)["mean"]["a"]
    close(found, mean.update(mean.init({"a": column}), {"a": 2 * column})["mean"]["a"], "float32")
    targets = np.asarray([0, 9, 5, 9, 3, 9, 1, 9])
    loss, gradient = losses.softmax_cross_entropy(view, to.asarray(targets)[::2])
    expected = losses.softmax_cross_entropy(column, targets[::2])
    close(loss, expected[0], "float32")
    close(gradient, expected[1], "float32")


def test_they_can_be_turned_off(to: Backend, xp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNN_XP_ACCELERATE", "0")
    training.choose.cache_clear()
    a = to.asarray(drawn((3, 4), "float32", 0), "float32")
    optim.Adam().update({"a": a}, optim.Adam().init({"a": a}), {"a": a})
    optim.clip_by_global_norm({"a": a}, 1.0)
    losses.softmax_cross_entropy(a, to.asarray(np.zeros(3, dtype=np.int64)))
    optim.Average().update(optim.Average().init({"a": a}), {"a": a})
    assert not set(xp.launches) & {"adam", "squares", "scaled", "powers", "moved"}


def test_the_launches_of_a_training_step(to: Backend, xp: Any) -> None:
    """Of those around the layer there are three for each parameter, and eight."""
    model = character_model(11, embedding_size=4, hidden_size=6)
    params = {name: to.asarray(a) for name, a in model.init(0).items()}
    rule, x = optim.AdamW(), to.asarray(np.zeros((5, 3), dtype=np.int64))
    state = rule.init(params)
    y, _, cache = model.forward(params, x)
    xp.launches.clear()
    _, dy = losses.softmax_cross_entropy(y, x)
    after_loss = sum(xp.launches.values())
    gradients, _, _ = model.backward(params, cache, dy)
    xp.launches.clear()
    gradients, _ = optim.clip_by_global_norm(gradients, 1.0)
    rule.update(gradients, state, params)
    assert after_loss == 6
    assert sum(xp.launches.values()) == 3 * len(params) + 2
    assert xp.reads == []


def test_the_source_has_no_includes() -> None:
    assert "#include" not in training.source()
    assert training.source().isascii()
    assert set(fused.NAMES.values()) == set(DTYPES)
