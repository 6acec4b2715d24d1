"""Layers on arguments that nobody has checked, and on checked ones: the same bits."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from rnn_xp import GRU, LSTM
from rnn_xp.doctor.parity import CELLS
from rnn_xp.engines import native
from rnn_xp.layers import Recurrent

pytestmark = pytest.mark.skipif(
    not native.instruction_sets(), reason="the kernels are not built: no C++ compiler"
)


SIZES = ((1, 1, 1, 1), (1, 1, 5, 37), (6, 3, 4, 16), (9, 40, 7, 130))


@contextmanager
def door(*, shut: bool = False) -> Iterator[list[bool]]:
    """Yield, for each call, whether the kernels took its arguments as they were; or `shut` it."""
    taken: list[bool] = []
    attempt = native.Native.attempt_forward

    def watched(*args: Any) -> Any:
        done = None if shut else attempt(*args)
        taken.append(done is not None)
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native.Native, "attempt_forward", watched)
        if shut:
            patch.setattr(native.Native, "attempt", lambda *_: None)
            patch.setattr(native.Native, "attempt_backward", lambda *_: None)
        yield taken


class Pair:
    """A prepared layer, through the door and with it shut."""

    def __init__(self, layer: Recurrent, dtype: str = "float32") -> None:
        self.layer = layer
        self.prepared = layer.prepare(layer.init(0, dtype=dtype))

    def same(self, x: Any, state: Any = None, **options: Any) -> bool:
        """Assert that both give the same; tell whether the arguments were taken as they were."""
        taken, attempt = list[bool](), self.prepared.attempt

        def watched(*args: Any) -> Any:
            done = attempt and attempt(*args)
            taken.append(done is not None)
            return done

        found = self.layer(replace(self.prepared, attempt=watched), x, state, **options)
        expected = self.layer(replace(self.prepared, attempt=None), x, state, **options)
        for a, b in zip(flat(found), flat(expected), strict=True):
            assert type(a) is type(b)
            assert (a.shape, a.dtype, a.flags.writeable) == (b.shape, b.dtype, True)
            np.testing.assert_array_equal(a, b)
        return taken == [True]


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
    assert pair.same(np.ones((3, 2, 8), np.float32)[..., 4:])  # rows at one distance
    with pytest.raises(TypeError, match="must be a plain array, got test_door Other"):
        pair.same(x.view(Other))
    for state in ([h, h], (h, h[..., ::-1])):
        assert not pair.same(x, state)
    assert not pair.same(x, lengths=[3, 1])
    for layer in (LSTM(4, 6, 2), LSTM(4, 6, peephole=True)):
        assert not Pair(layer).same(x)
    assert Pair(LSTM(4, 6, bidirectional=True)).same(x)


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
    prepared = layer.prepare(layer.init(0))
    assert prepared.attempt is not None
    assert prepared.attempt(x, state) is None
    with pytest.raises(error, match=said):
        layer(prepared, x, state)


def test_no_reference_is_kept() -> None:
    layer = LSTM(4, 6)
    prepared: Any = layer.prepare(layer.init(0))
    x, h, c = (np.ones(shape, np.float32) for shape in ((1, 2, 4), (1, 2, 6), (1, 2, 6)))
    state = (h, c)
    held = (x, h, c, state, x.dtype, np.empty, prepared.weights[0][-1])

    def counts() -> list[int]:
        return [sys.getrefcount(each) for each in held]

    before = counts()
    for _ in range(100):
        y, (new_h, new_c) = layer(prepared, x, state)
        for wrong in (h, (h, x)):
            assert prepared.attempt(x, wrong) is None
        del wrong
        assert [sys.getrefcount(each) for each in (y, new_h, new_c)] == [4, 4, 4]
        del y, new_h, new_c
    assert counts() == before


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
        parts = [normal(1, batch, layer.hidden_size) for _ in layer.equations.state]
        self.state = parts[0] if len(parts) == 1 else tuple(parts)

    def run(self, **changed: Any) -> tuple[Any, ...]:
        """Return all results of a step."""
        given = vars(self) | {"dstate": None, "lengths": None, "again": self.params} | changed
        given["again"] = changed.get("again", given["params"])
        y, state, cache = self.layer.forward(
            given["params"], given["x"], given["state"], lengths=given["lengths"]
        )
        dparams, dx, dstate = self.layer.backward(
            given["again"], cache, given["dy"], given["dstate"]
        )
        assert list(dparams) == list(self.layer.shapes)
        return (y, state, *dparams.values(), dx, dstate)

    def same(self, **changed: Any) -> bool:
        """Assert that both ways give the same; tell whether the arguments were taken."""
        with door() as taken:
            found = self.run(**changed)
        with door(shut=True):
            expected = self.run(**changed)
        for a, b in zip(flat(found), flat(expected), strict=True):
            assert type(a) is type(b) is np.ndarray
            assert (a.shape, a.dtype, a.flags.writeable) == (b.shape, b.dtype, True)
            np.testing.assert_array_equal(a, b)
        return taken == [True]


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
        y, _ = layer(case.params, case.x, case.state)
        with door(shut=True):
            np.testing.assert_array_equal(y, layer(case.params, case.x, case.state)[0])


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
        assert not Training(layer, 3, 2).same(state=None)


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
    for shut in (False, True):
        with door(shut=shut), pytest.raises(error, match=said):
            case.run(**given)


def test_training_keeps_no_reference() -> None:
    case = Training(LSTM(4, 6), 3, 2)
    held = (case.x, case.dy, *case.state, *case.params.values(), case.x.dtype, np.empty, np.ndarray)

    def counts() -> list[int]:
        return [sys.getrefcount(each) for each in held]

    case.run(dstate=case.state)
    before = counts()
    for _ in range(100):
        results = case.run(dstate=case.state)
        arrays = flat(results)
        del results
        assert {sys.getrefcount(arrays[k]) for k in range(len(arrays))} == {2}
        del arrays
        with pytest.raises(ValueError, match="dy must have shape"):
            case.run(dy=case.x)
    assert counts() == before


def test_the_arguments_of_the_kernels_are_checked() -> None:
    """The module is the last to look before memory is read: it must not trust its caller."""
    case = Training(LSTM(4, 6), 3, 2)
    kernels, weights = native._kernels, tuple(case.params.values())
    sizes = (0, 2, 4, 4, 6, 0, 0)
    start = (sizes, 1, 0, np.ndarray, np.empty, case.x.dtype)
    packed = kernels.pack(*start, weights)
    y, (h, c), kept = kernels.forward(*start, weights, case.x, None, None, np.empty)
    assert (y.shape, h.shape, c.shape) == ((3, 2, 6), (1, 2, 6), (1, 2, 6))
    again = kernels.forward(*start, packed, case.x, None)
    np.testing.assert_array_equal(again[0], y)
    assert kernels.forward(*start, weights, case.x, None, None, None)[2] is None
    calls = {
        kernels.pack: (weights,),
        kernels.forward: (weights, case.x, None, None, np.empty),
        kernels.backward: (weights, case.x, None, kept, case.dy, None),
    }
    for call, rest in calls.items():
        assert call(*start, *rest) is not None
        with pytest.raises(TypeError, match=f"expected {6 + len(rest)} arguments, got 3"):
            call(*start[:3])
        for place, wrong in ((0, 9), (1, 9), (2, 2), (3, 0), (4, 2**61), (5, 3), (6, 2)):
            with pytest.raises(ValueError, match="unknown kernels, cell or sizes"):
                call((*sizes[:place], wrong, *sizes[place + 1 :]), *start[1:], *rest)
        for wrong_sizes in (sizes[:-1], [*sizes], None):
            with pytest.raises(ValueError, match="expected a tuple of sizes"):
                call(wrong_sizes, *start[1:], *rest)
        with pytest.raises(ValueError, match="unknown kernels, cell or sizes"):
            call(*start[:3], np.empty, *start[4:], *rest)
        with pytest.raises(TypeError, match="makes other arrays"):
            call(*start[:5], np.dtype("float64"), *rest)
        with pytest.raises(TypeError, match="makes other arrays"):
            call(*start[:4], lambda _, dtype: np.empty(2, dtype), start[5], *rest)
        with pytest.raises(ZeroDivisionError):
            call(*start[:4], lambda *_: 1 / 0, start[5], *rest)
        for other in (list(weights), weights[:3], weights[::-1], (*weights[:3], case.x), None):
            assert call(*start, other, *rest[1:]) is None

    def forward(x: Any = case.x, state: Any = None, lengths: Any = None, own: Any = weights) -> Any:
        return kernels.forward(*start, own, x, state, lengths, None)

    long, h = np.ones((6, 2, 4), "f"), np.ones((1, 2, 6), "f")
    for x in (case.x.astype("d"), long[..., ::-1], long[::-1], long[:, ::2, :3], case.x[0], None):
        assert forward(x) is None
    for x in (long[::2][:, :1], long[:, :1], np.ones((3, 2, 9), "f")[..., 5:]):
        assert forward(x)[0].shape == (*x.shape[:2], 6)
    assert forward(np.ones((3, 4, 4), "f")[:, ::2])[0].shape == (3, 2, 6)
    for state in ((h,), (h, None), (h, h[:, :1]), [h, h], h, (h, h, h)):
        assert forward(state=state) is None
    assert forward(state=(h, h)) is not None
    assert forward(np.array([[1, 3], [0, 2]])) is None  # indices, and nobody said so
    look_up = ((*sizes[:6], 1), *start[1:], weights)
    assert kernels.forward(*look_up, np.array([[1, 3], [0, 2]]), None, None, None) is not None
    for indices in ([[4]], [[-1]], [1, 2], [[[1]]]):
        assert kernels.forward(*look_up, np.array(indices), None, None, None) is None
    for x in (np.array([[1]], dtype="i"), case.x):
        assert kernels.forward(*look_up, x, None, None, None) is None
    for lengths in ([3, -1], [4, 1], [3], [[3, 1]]):
        assert forward(lengths=np.array(lengths)) is None
    assert forward(lengths=np.array([3, 1], dtype="i")) is None
    assert forward(lengths=np.array([3, 1])) is not None
    for own in (packed[:-80], packed[:1], np.zeros(packed.shape, "d")):
        assert forward(own=own) is None
    moved = np.empty(packed.size + 1, "f")[1:]
    moved[...] = packed  # wherever it lies
    np.testing.assert_array_equal(forward(own=moved)[0], y)

    def backward(x: Any = case.x, kept: Any = kept, dy: Any = case.dy, dstate: Any = None) -> Any:
        return kernels.backward(*start, weights, x, None, kept, dy, dstate)

    with pytest.raises(ValueError, match="what the forward pass kept is of another call"):
        backward(kept=kept[:9])
    changes: list[dict[str, Any]] = [{"x": case.x[:2]}, {"dy": case.dy[:2]}, {"dy": case.x}]
    for changed in (*changes, {"dstate": (h,)}):
        assert backward(**changed) is None
    assert backward(dstate=(h, None)) is not None


def test_two_directions_are_each_alone() -> None:
    """Each direction's half of y, of its gradients and of its states is its own run's."""
    layer = LSTM(4, 6, bidirectional=True)
    params, rng = layer.init(0, dtype="float64"), np.random.default_rng(0)
    x, dy = rng.standard_normal((5, 3, 4)), rng.standard_normal((5, 3, 12))
    y, (h, c), cache = layer.forward(params, x)
    dparams, dx, (dh, dc) = layer.backward(params, cache, dy)
    one, total = LSTM(4, 6), np.zeros_like(x)
    for d, (end, order) in enumerate((("", 1), ("_reverse", -1))):
        own = {name: params[name + end] for name in one.shapes}
        half = slice(6 * d, 6 * d + 6)
        y_d, (h_d, c_d), cache = one.forward(own, x[::order])
        made, dx_d, (dh_d, dc_d) = one.backward(own, cache, dy[::order, :, half])
        pairs = [(y[..., half], y_d[::order]), (h[d], h_d[0]), (c[d], c_d[0])]
        pairs += [(dh[d], dh_d[0]), (dc[d], dc_d[0])]
        pairs += [(dparams[name + end], made[name]) for name in made]
        for a, b in pairs:
            np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14)
        total += dx_d[::order]
    np.testing.assert_allclose(dx, total, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("copied", [pickle.loads, copy.deepcopy], ids=["pickle", "deepcopy"])
def test_what_is_prepared_can_be_copied(copied: Any) -> None:
    layer = LSTM(4, 6, 2, bidirectional=True)
    prepared, x = layer.prepare(layer.init(0)), np.ones((5, 3, 4), np.float32)
    given: Any = pickle.dumps(prepared) if copied is pickle.loads else prepared
    np.testing.assert_array_equal(layer(copied(given), x)[0], layer(prepared, x)[0])


@pytest.mark.parametrize("copied", [pickle.loads, copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("lengths", [None, [5, 2, 3]], ids=["full", "ragged"])
def test_a_cache_can_be_copied(copied: Any, lengths: Any) -> None:
    """What the kernels keep may lie otherwise in a copy: it says where it begins."""
    for layer in (LSTM(4, 6), LSTM(4, 6, 2, bidirectional=True)):
        params, x = layer.init(0), np.ones((5, 3, 4), np.float32)
        y, _, cache = layer.forward(params, x, lengths=lengths)
        given: Any = pickle.dumps(cache) if copied is pickle.loads else cache
        caches = [copied(given) for _ in range(4)]
        expected, dx, _ = layer.backward(params, cache, y)
        for each in caches:
            found, again, _ = layer.backward(params, each, y)
            np.testing.assert_array_equal(again, dx)
            for name, value in found.items():
                np.testing.assert_array_equal(value, expected[name])


def test_integers_are_no_indices() -> None:
    layer = GRU(3, 5)
    params, x = layer.init(0), np.zeros((6, 3), np.int64)
    for given in (params, layer.prepare(params)):
        with pytest.raises(TypeError, match="x has dtype int64, the parameters have float32"):
            layer(given, x)
    with pytest.raises(TypeError, match="x has dtype int64, the parameters have float32"):
        layer.forward(params, x)


def unaligned(a: Any) -> Any:
    """Return a copy that begins at an odd address."""
    moved = np.frombuffer(b"h" + a.tobytes(), offset=1, dtype=a.dtype).reshape(a.shape)
    assert not moved.flags.aligned
    return moved


@pytest.mark.parametrize("lengths", [None, [5, 2, 3]], ids=["full", "ragged"])
def test_numbers_at_odd_addresses(lengths: Any) -> None:
    layer = LSTM(4, 6, 2, bidirectional=True)
    params, rng = layer.init(0, dtype="float64"), np.random.default_rng(0)
    x, dy = rng.standard_normal((5, 3, 4)), rng.standard_normal((5, 3, 12))
    state, dstate = (tuple(rng.standard_normal((4, 3, 6)) for _ in range(2)) for _ in range(2))

    def run(put: Any) -> list[Any]:
        own = {name: put(a) for name, a in params.items()}
        y, last, cache = layer.forward(own, put(x), tuple(map(put, state)), lengths=lengths)
        dparams, dx, first = layer.backward(own, cache, put(dy), tuple(map(put, dstate)))
        prepared = layer.prepare(own)
        return [y, *last, *dparams.values(), dx, *first, layer(prepared, put(x))[0]]

    for a, b in zip(run(unaligned), run(np.copy), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "u8"])
@pytest.mark.parametrize("peephole", [False, True])
def test_lengths_of_few_bits(dtype: str, peephole: bool) -> None:
    layer = LSTM(3, 5, peephole=peephole)
    params, x = layer.init(0), np.ones((300, 2, 3), np.float32)
    y, _, cache = layer.forward(params, x, lengths=np.array([100, 10], dtype))
    expected, _, other = layer.forward(params, x, lengths=[100, 10])
    np.testing.assert_array_equal(y, expected)
    for a, b in zip(
        layer.backward(params, cache, y)[0].values(),
        layer.backward(params, other, y)[0].values(),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_parameters_in_any_order_are_checked() -> None:
    layer, x = LSTM(4, 6), np.ones((3, 2, 4), np.float32)
    params = layer.init(0)
    for wrong in (None, [1.0], params["weight_ih_l0"].astype("e"), params["weight_ih_l0"] > 0):
        with pytest.raises(TypeError, match="weight_ih_l0"):
            layer.forward(dict(reversed((params | {"weight_ih_l0": wrong}).items())), x)
