"""Prepared layers on plain arguments, run without a check of Python's: the same bits."""

from __future__ import annotations

import sys
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
    for steps, batch, inputs, hidden in (
        (1, 1, 1, 1),
        (1, 1, 5, 37),
        (6, 3, 4, 16),
        (9, 40, 7, 130),
    ):
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
