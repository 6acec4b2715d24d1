"""Layers on plain arguments, run without a check of Python's: the same bits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from rnn_xp import LSTM
from rnn_xp.accelerate import native
from rnn_xp.doctor.parity import CELLS
from rnn_xp.layers import Recurrent

pytestmark = pytest.mark.skipif(
    not native.instruction_sets(), reason="the kernels are not built: no C++ compiler"
)


SIZES = ((1, 1, 1, 1), (1, 1, 5, 37), (6, 3, 4, 16), (9, 40, 7, 130))


class Pair:
    """A prepared layer, with the way at once and without it."""

    def __init__(self, layer: Recurrent, dtype: str = "float32") -> None:
        self.layer = layer
        self.prepared: Any = layer.prepare(layer.init(0, dtype=dtype))
        self.slow = self.prepared._replace(at_once=None)
        self.taken: list[bool] = []
        self.quick = self.prepared
        if self.prepared.at_once is not None:
            self.quick = self.prepared._replace(at_once=self._seen)

    def _seen(self, x: Any, state: Any) -> Any:
        done = self.prepared.at_once(x, state)
        self.taken.append(done is not None)
        return done

    def same(self, x: Any, state: Any = None, **options: Any) -> bool:
        """Assert that both give the same; tell whether it was run at once."""
        self.taken.clear()
        found, expected = (self.layer(p, x, state, **options) for p in (self.quick, self.slow))
        for a, b in zip(flat(found), flat(expected), strict=True):
            assert type(a) is type(b)
            assert (a.shape, a.dtype, a.flags.writeable) == (b.shape, b.dtype, True)
            np.testing.assert_array_equal(a, b)
        return self.taken == [True]


def flat(value: Any) -> list[Any]:
    """Return the arrays of a result, in order."""
    return [a for part in value for a in flat(part)] if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CELLS)
def test_the_same_bits(name: str, dtype: str) -> None:
    rng = np.random.default_rng(1)
    for steps, batch, inputs, hidden in SIZES:
        pair = Pair(CELLS[name](inputs, hidden), dtype)
        x = rng.standard_normal((steps, batch, inputs)).astype(dtype)
        assert pair.same(x)
        _, state = pair.layer(pair.prepared, x)
        assert pair.same(x, state)
    assert pair.same(x, state)  # as it was: nothing has written to it


def test_a_stream_is_its_sequence() -> None:
    layer = LSTM(4, 20, bias=False)
    prepared, x = layer.prepare(layer.init(3)), np.ones((30, 2, 4), np.float32)
    whole, last = layer(prepared, x)
    state: Any = None
    steps = []
    for t in range(len(x)):
        y, state = layer(prepared, x[t : t + 1], state)
        steps.append(y)
    np.testing.assert_allclose(np.concatenate(steps), whole, rtol=0, atol=1e-6)
    for a, b in zip(state, last, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


class Other(np.ndarray[Any, Any]):
    """An array of another type."""


def test_what_is_not_plain_goes_the_other_way() -> None:
    pair = Pair(LSTM(4, 6))
    x, h = np.ones((3, 2, 4), np.float32), np.ones((1, 2, 6), np.float32)
    wide = np.ones((3, 2, 8), np.float32)[..., ::2]
    assert pair.same(x, (h, h))
    for other in (x[:, 0], wide, x[::-1]):
        assert not pair.same(other)
    with pytest.raises(TypeError, match="must be a plain array, got test_at_once Other"):
        pair.same(x.view(Other))
    for state in ([h, h], (h, h[..., ::-1])):
        assert not pair.same(x, state)
    assert not pair.same(x, lengths=[3, 1])
    for layer in (LSTM(4, 6, 2), LSTM(4, 6, bidirectional=True), LSTM(4, 6, peephole=True)):
        assert Pair(layer).prepared.at_once is None


@pytest.mark.parametrize(
    ("x", "state", "error", "said"),
    [
        (np.ones((3, 2, 4)), None, TypeError, "x has dtype float64"),
        (np.ones((3, 2, 4), ">f4"), None, TypeError, "x has dtype"),
        (np.ones((3, 2, 5), "f"), None, ValueError, "x has 5 features"),
        (np.ones((0, 2, 4), "f"), None, ValueError, "at least one step"),
        (np.ones(4, "f"), None, ValueError, "x must have shape"),
        (None, None, TypeError, "x must be an array, got None"),
        (b"abcd", None, TypeError, "x must be a"),
        (np.ones((3, 2, 4), "f"), np.ones((1, 2, 6), "f"), ValueError, "state must be a pair"),
        (np.ones((3, 2, 4), "f"), (np.ones((1, 2, 6), "f"),), ValueError, "state must be a pair"),
        (np.ones((3, 2, 4), "f"), (np.ones((1, 3, 6), "f"),) * 2, ValueError, "h must have shape"),
        (np.ones((3, 2, 4), "f"), (np.ones((1, 2, 6)),) * 2, TypeError, "h has dtype float64"),
        (np.ones((3, 2, 4), "f"), (np.ones((1, 2, 6), "f"), None), TypeError, "c must be an array"),
    ],
)
def test_what_is_wrong_is_said_as_ever(x: Any, state: Any, error: Any, said: str) -> None:
    layer = LSTM(4, 6)
    prepared: Any = layer.prepare(layer.init(0))
    assert prepared.at_once(x, state) is None
    with pytest.raises(error, match=said):
        layer(prepared, x, state)


def test_no_reference_is_kept() -> None:
    layer = LSTM(4, 6)
    prepared: Any = layer.prepare(layer.init(0))
    x, h, c = (np.ones(shape, np.float32) for shape in ((1, 2, 4), (1, 2, 6), (1, 2, 6)))
    state = (h, c)
    held = (x, h, c, state, prepared.like.dtype, np.empty, prepared.levels[0][0][0])

    def counts() -> list[int]:
        return [sys.getrefcount(each) for each in held]

    before = counts()
    for _ in range(100):
        y, (new_h, new_c) = layer(prepared, x, state)
        assert prepared.at_once(x, h) is None
        assert prepared.at_once(x, (h, x)) is None
        assert [sys.getrefcount(each) for each in (y, new_h, new_c)] == [4, 4, 4]
        del y, new_h, new_c
    assert counts() == before


def test_the_arguments_are_checked() -> None:
    prepared: Any = LSTM(4, 6).prepare(LSTM(4, 6).init(0))
    infer, (sizes, threads, packed, empty, dtype) = prepared.at_once.func, prepared.at_once.args
    x = np.ones((3, 2, 4), np.float32)
    with pytest.raises(TypeError, match="expected 7 arguments, got 3"):
        infer(sizes, threads, packed)
    with pytest.raises(ValueError, match="bytes, expected at least"):
        infer(sizes, threads, packed[:-1], empty, dtype, x, None)
    with pytest.raises(ValueError, match="unknown kernels"):
        infer((*sizes[:6], 0), threads, packed, empty, dtype, x, None)
    with pytest.raises(TypeError, match="makes other arrays"):
        infer(sizes, threads, packed, empty, np.dtype("float64"), x, None)
    with pytest.raises(ZeroDivisionError):
        infer(sizes, threads, packed, lambda *_: 1 / 0, dtype, x, None)


def slow(layer: Recurrent) -> Recurrent:
    """Return the same layer, that never runs at once."""
    made = replace(layer)
    object.__setattr__(made, "_at_once", lambda *_, **__: None)
    return made


class Training:
    """Numbers for a training step of a layer."""

    def __init__(self, layer: Recurrent, steps: int, batch: int, dtype: str = "float32") -> None:
        rng = np.random.default_rng(2)

        def normal(*shape: int) -> Any:
            return rng.standard_normal(shape).astype(dtype)

        self.layer = layer
        self.params = layer.init(0, dtype=dtype)
        self.x = normal(steps, batch, layer.input_size)
        self.dy = normal(steps, batch, layer.hidden_size)
        parts = [normal(1, batch, layer.hidden_size) for _ in layer.cell.state]
        self.state = parts[0] if len(parts) == 1 else tuple(parts)

    def run(self, layer: Recurrent, **changed: Any) -> tuple[tuple[Any, ...], bool]:
        """Return all results of a step, and whether it ran at once."""
        given = vars(self) | {"dstate": None, "lengths": None, "again": self.params} | changed
        given["again"] = changed.get("again", given["params"])
        y, state, cache = layer.forward(
            given["params"], given["x"], given["state"], lengths=given["lengths"]
        )
        at_once = cache.at_once
        dparams, dx, dstate = layer.backward(given["again"], cache, given["dy"], given["dstate"])
        assert list(dparams) == list(layer.shapes)
        return (y, state, *dparams.values(), dx, dstate), at_once

    def same(self, **changed: Any) -> bool:
        """Assert that both ways give the same; tell whether the forward pass ran at once."""
        (found, at_once), (expected, never) = (
            self.run(layer, **changed) for layer in (self.layer, slow(self.layer))
        )
        assert not never
        for a, b in zip(flat(found), flat(expected), strict=True):
            assert type(a) is type(b) is np.ndarray
            assert (a.shape, a.dtype, a.flags.writeable) == (b.shape, b.dtype, True)
            np.testing.assert_array_equal(a, b)
        return at_once


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_training_gives_the_same_bits(name: str, bias: bool, dtype: str) -> None:
    for steps, batch, inputs, hidden in SIZES:
        layer = replace(CELLS[name](inputs, hidden), bias=bias)
        case = Training(layer, steps, batch, dtype)
        assert case.same()
        assert case.same(state=None)
        assert case.same(dstate=case.state)
        np.testing.assert_array_equal(
            layer(case.params, case.x, case.state)[0],
            slow(layer)(case.params, case.x, case.state)[0],
        )


def test_training_takes_what_is_not_plain() -> None:
    case = Training(LSTM(4, 6), 3, 2)
    (h, c), dy = case.state, case.dy
    for dstate in ((None, c), (h, None), (None, None), [h, c], (h[..., ::-1], c)):
        assert case.same(dstate=dstate)
    for other in (dy[::-1], np.repeat(dy, 2, axis=2)[..., ::2]):
        assert case.same(dy=other)
    assert case.same(again={name: a.copy() for name, a in case.params.items()})
    assert case.same(again=MappingProxyType(case.params))

    wide = np.repeat(case.x, 2, axis=2)[..., ::2]
    turned = case.params | {"weight_hh_l0": np.asfortranarray(case.params["weight_hh_l0"])}
    for changed in (
        {"x": wide},
        {"state": [h, c]},
        {"lengths": [3, 1]},
        {"params": turned},
        {"params": MappingProxyType(case.params)},
        {"params": dict(reversed(case.params.items())), "x": case.x[::-1]},
    ):
        assert not case.same(**changed)
    assert case.same(params=dict(reversed(case.params.items())))
    for layer in (LSTM(4, 6, 2), LSTM(4, 6, peephole=True)):
        assert not Training(layer, 3, 2).run(layer, state=None)[1]


def without(name: str) -> Callable[[Any], Any]:
    return lambda params: {key: value for key, value in params.items() if key != name}


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"params": without("bias_hh_l0")}, ValueError, "bias_hh_l0 missing"),
        ({"params": lambda p: p | {"bias": 0}}, ValueError, "bias not expected"),
        ({"params": lambda p: p | {"weight_ih_l0": np.array(1, "f")}}, ValueError, "must have sha"),
        ({"params": lambda p: p | {"weight_hh_l0": None}}, TypeError, "weight_hh_l0 must be an"),
        ({"params": lambda p: p | {"weight_hh_l0": p["bias_hh_l0"]}}, ValueError, "must have shap"),
        ({"params": lambda p: p | {"bias_ih_l0": np.ones(24)}}, TypeError, "has dtype float64"),
        ({"params": lambda p: {k: a.astype("i") for k, a in p.items()}}, TypeError, "floating"),
        ({"x": np.ones((3, 2, 4))}, TypeError, "x has dtype float64"),
        ({"x": np.ones((3, 2, 5), "f")}, ValueError, "x has 5 features"),
        ({"x": np.ones((0, 2, 4), "f")}, ValueError, "at least one step"),
        ({"state": np.ones((1, 2, 6), "f")}, ValueError, "state must be a pair"),
        ({"state": (None, np.ones((1, 2, 6), "f"))}, TypeError, "h must be an array"),
        ({"dy": np.ones((3, 2, 6))}, TypeError, "dy has dtype float64"),
        ({"dy": np.ones((3, 2, 7), "f")}, ValueError, "dy must have shape"),
        ({"dy": None}, TypeError, "dy must be an array, got None"),
        ({"dstate": np.ones((1, 2, 6), "f")}, ValueError, "dstate must be a pair"),
        ({"dstate": (np.ones((1, 1, 6), "f"), None)}, ValueError, "dh in dstate must have shape"),
        ({"again": without("bias_hh_l0")}, ValueError, "bias_hh_l0 missing"),
    ],
)
def test_what_is_wrong_in_training_is_said_as_ever(change: Any, error: Any, said: str) -> None:
    case = Training(LSTM(4, 6), 3, 2)
    given = {k: value(case.params) if callable(value) else value for k, value in change.items()}
    for layer in (case.layer, slow(case.layer)):
        with pytest.raises(error, match=said):
            case.run(layer, **given)


def test_training_keeps_no_reference() -> None:
    case = Training(LSTM(4, 6), 3, 2)
    held = (case.x, case.dy, *case.state, *case.params.values(), case.x.dtype, np.empty, np.ndarray)

    def counts() -> list[int]:
        return [sys.getrefcount(each) for each in held]

    case.run(case.layer, dstate=case.state)
    before = counts()
    for _ in range(100):
        results, at_once = case.run(case.layer, dstate=case.state)
        assert at_once
        arrays = flat(results)
        del results
        assert {sys.getrefcount(arrays[k]) for k in range(len(arrays))} == {2}
        del arrays
        with pytest.raises(ValueError, match="dy must have shape"):
            case.run(case.layer, dy=case.x)
    assert counts() == before


def test_the_arguments_of_training_are_checked() -> None:
    case, runner = Training(LSTM(4, 6), 3, 2), native.choose()
    assert isinstance(runner, native.Native)
    kernels, weights = native._kernels, tuple(case.params.values())
    sizes = (0, 2, 4, 3, 2, 4, 6)
    start = (sizes, 1, 0, np.ndarray, np.empty, case.x.dtype, weights, case.x)
    _, _, kept = kernels.forward_at_once(*start, None, np.empty)
    assert kernels.forward_at_once(*start, None, None)[2] is None
    assert len(kernels.backward_at_once(*start, kept, case.dy, None)) == 3
    for call, most in ((kernels.forward_at_once, 10), (kernels.backward_at_once, 11)):
        with pytest.raises(TypeError, match=f"expected {most} arguments, got 3"):
            call(*start[:3])
        rest = (None, np.empty) if most == 10 else (kept, case.dy, None)
        with pytest.raises(ValueError, match="unknown kernels"):
            call((9, *sizes[1:]), *start[1:], *rest)
        with pytest.raises(ValueError, match="expected a type"):
            call(*start[:3], np.empty, *start[4:], *rest)
        with pytest.raises(TypeError, match="makes other arrays"):
            call(*start[:5], np.dtype("float64"), *start[6:], *rest)
        with pytest.raises(TypeError, match="makes other arrays"):
            call(*start[:4], lambda _, dtype: np.empty(2, dtype), *start[5:], *rest)
        with pytest.raises(ZeroDivisionError):
            call(*start[:4], lambda *_: 1 / 0, *start[5:], *rest)
        for wrong in (list(weights), weights[:3], weights[::-1], (*weights[:3], case.x)):
            assert call(*start[:6], wrong, case.x, *rest) is None
    with pytest.raises(ValueError, match="bytes, expected at least"):
        kernels.backward_at_once(*start, kept[:9], case.dy, None)
    assert kernels.backward_at_once(*start[:7], case.x[:2], kept, case.dy, None) is None
