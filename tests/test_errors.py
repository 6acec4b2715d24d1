"""Wrong arguments of the layers: each error names the argument, what was expected, what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import array_api_strict
import numpy as np
import pytest

from rnn_xp import GRU, LSTM, RNN, Dropout, Linear
from rnn_xp.layers.checks import check_params

LAYER = LSTM(3, 4)
PARAMS = LAYER.init(0)
X = np.zeros((5, 2, 3), dtype="float32")
H = np.zeros((1, 2, 4), dtype="float32")


def changed(**changes: Any) -> dict[str, Any]:
    return {**PARAMS, **changes}


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in PARAMS.items() if key != name}


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: RNN(-1, 4), ValueError, "input_size must be an integer >= 1, got -1"),
        (lambda: GRU(3, True), TypeError, "hidden_size must be an integer >= 1, got True"),
        (lambda: GRU(3, 4.0), TypeError, "hidden_size must be an integer >= 1, got 4.0"),  # type: ignore[arg-type]
        (lambda: GRU(3, 4, 0), ValueError, "num_layers must be an integer >= 1, got 0"),
        (
            lambda: RNN(3, 4, dropout=1.5),
            ValueError,
            r"dropout must be a number in 0\.\.1, got 1.5",
        ),
        (lambda: RNN(3, 4, bias=1), TypeError, "bias must be True or False, got 1"),  # type: ignore[arg-type]
        (
            lambda: RNN(3, 4, nonlinearity="elu"),
            ValueError,
            "nonlinearity must be 'tanh' or 'relu'",
        ),
        (lambda: LSTM(3, 4, proj_size=4), ValueError, "proj_size must be less than hidden_size=4"),
        (lambda: LSTM(3, 4, proj_size=-1), ValueError, "proj_size must be an integer >= 0, got -1"),
        (lambda: LSTM(3, 4, peephole=None), TypeError, "peephole must be True or False"),  # type: ignore[arg-type]
        (lambda: GRU(3, 4, reset_after=0), TypeError, "reset_after must be True or False, got 0"),  # type: ignore[arg-type]
        (lambda: RNN(3, 4).init(0, scheme="he"), ValueError, "scheme must be one of .*got 'he'"),
        (lambda: RNN(3, 4).init(-1), ValueError, "seed must be an integer >= 0, got -1"),
        (lambda: RNN(3, 4).init("a"), TypeError, "seed must be an integer >= 0, got 'a'"),  # type: ignore[arg-type]
        (lambda: RNN(3, 4).init(True), TypeError, "seed must be an integer >= 0, got True"),
        (
            lambda: RNN(3, 4).init((1, 0.5)),  # type: ignore[arg-type]
            TypeError,
            r"seed must be an integer >= 0, got \(1, 0.5\)",
        ),
        (
            lambda: RNN(3, 4).init(np.arange(2)),  # type: ignore[arg-type]
            TypeError,
            "seed must be an integer >= 0, got array",
        ),
        (lambda: RNN(3, 4).init(0, dtype="float99"), ValueError, "dtype float99 does not exist"),
        (
            lambda: LSTM(3, 4, bias=False).init(0, forget_bias=1.0),
            ValueError,
            "forget_bias needs bias=True",
        ),
    ],
)
def test_descriptions(make: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()


CALLS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: LAYER(PARAMS, X[:, :, :2]),
        ValueError,
        "x has 2 features in its last axis, but this LSTM has input_size=3",
    ),
    (lambda: LAYER(PARAMS, X[0, 0]), ValueError, r"x must have shape \(T, B, 3\).* got \(3,\)"),
    (lambda: LAYER(PARAMS, X[:0]), ValueError, r"at least one step .* got \(0, 2, 3\)"),
    (lambda: LAYER(PARAMS, X[:, :0]), ValueError, r"one sequence, got \(5, 0, 3\)"),
    (lambda: LAYER(PARAMS, X.astype("int64")), TypeError, "x has dtype int64, the parameters have"),
    (lambda: LAYER(PARAMS, X.astype("float64")), TypeError, "x has dtype float64"),
    (lambda: LAYER(PARAMS, X.tolist()), TypeError, "x must be an array, got builtins list"),
    (
        lambda: LAYER(PARAMS, array_api_strict.asarray(X)),
        TypeError,
        "x is a array_api_strict Array but params is a numpy ndarray",
    ),
    (lambda: LAYER(PARAMS, X, H), ValueError, r"state must be a pair \(h, c\), got ndarray"),
    (
        lambda: LAYER(PARAMS, X, (H, H[:, :1])),
        ValueError,
        r"c must have shape \(1, 2, 4\), got \(1, 1, 4\)",
    ),
    (lambda: LAYER(PARAMS, X, (H, H.astype("float64"))), TypeError, "c has dtype float64"),
    (lambda: LAYER(PARAMS, X, (H, None)), TypeError, "c must be an array|c .*None"),
    (
        lambda: LAYER(PARAMS, X, lengths=[0, 5]),
        ValueError,
        r"lengths must lie in 1\.\.5 \(T\), got 0",
    ),
    (lambda: LAYER(PARAMS, X, lengths=[1, 6]), ValueError, r"lengths must lie in 1\.\.5 .*got 6"),
    (
        lambda: LAYER(PARAMS, X, lengths=[1.0, 2.0]),
        TypeError,
        "lengths must be integers, got float",
    ),
    (
        lambda: LAYER(PARAMS, X, lengths=[1]),
        ValueError,
        r"lengths must have shape \(2,\), got \(1,\)",
    ),
    (lambda: LAYER(PARAMS, X[:, 0], lengths=[1]), ValueError, "lengths needs a batch"),
    (lambda: LAYER(without("bias_hh_l0"), X), ValueError, "bias_hh_l0 missing"),
    (lambda: LAYER(changed(more=H), X), ValueError, "more not expected"),
    (lambda: LAYER([], X), TypeError, "params must be a dict of arrays"),  # type: ignore[arg-type]
    (
        lambda: LAYER(changed(bias_hh_l0=H), X),
        ValueError,
        r"bias_hh_l0 must have shape \(16,\), got \(1, 2, 4\)",
    ),
    (
        lambda: LAYER(changed(bias_hh_l0=np.zeros(16)), X),
        TypeError,
        "bias_hh_l0 has dtype float64",
    ),
    (
        lambda: LAYER(changed(bias_hh_l0=array_api_strict.zeros(16)), X),
        TypeError,
        "bias_hh_l0 is a array_api_strict Array but weight_ih_l0 is a numpy ndarray",
    ),
    (
        lambda: RNN(3, 4)(RNN(3, 4, bias=False).prepare(RNN(3, 4, bias=False).init(0)), X),
        ValueError,
        "params were prepared by",
    ),
    (
        lambda: LAYER.forward(cast(Any, LAYER.prepare(PARAMS)), X),
        TypeError,
        "params must be a dict of arrays, as from init, got Prepared",
    ),
]


@pytest.mark.parametrize("make", [np.ma.masked_array, lambda a: a.view(np.recarray)])
def test_kinds_of_numpy_arrays_that_are_more_than_numbers(make: Callable[[Any], Any]) -> None:
    """What was refused once is refused again."""
    params = {name: make(a) for name, a in PARAMS.items()}
    for _ in range(2):
        for call in (LAYER.prepare, lambda p: LAYER(p, X), lambda p: LAYER.forward(p, X)):
            with pytest.raises(TypeError, match="weight_ih_l0 must be a plain array, got numpy"):
                call(params)


def test_parameters_of_what_has_none() -> None:
    with pytest.raises(TypeError, match="expected at least one array, got none"):
        check_params(Dropout(0.5), {})


@pytest.mark.parametrize(("call", "kind", "message"), CALLS)
def test_calls(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


def test_integer_parameters() -> None:
    params = {name: value.astype("int64") for name, value in PARAMS.items()}
    with pytest.raises(TypeError, match="params must be floating-point, got int64"):
        LAYER(params, X.astype("int64"))


def test_another_device() -> None:
    other = array_api_strict.Device("device1")
    params = LAYER.init(0, backend="strict")
    with pytest.raises(ValueError, match=r"x is on the device .*device1.*the parameters on .*CPU"):
        LAYER(params, array_api_strict.asarray(X, device=other))


def test_backward() -> None:
    def cache() -> Any:
        return LAYER.forward(PARAMS, X)[2]

    dy = np.zeros((5, 2, 4), dtype="float32")
    with pytest.raises(ValueError, match=r"dy must have shape \(5, 2, 4\), got \(4, 2, 4\)"):
        LAYER.backward(PARAMS, cache(), dy[1:])
    with pytest.raises(TypeError, match="dy has dtype float64"):
        LAYER.backward(PARAMS, cache(), dy.astype("float64"))
    with pytest.raises(ValueError, match=r"dstate must be a pair \(h, c\), got ndarray"):
        LAYER.backward(PARAMS, cache(), dy, H)
    with pytest.raises(ValueError, match=r"dc in dstate must have shape \(1, 2, 4\)"):
        LAYER.backward(PARAMS, cache(), dy, (None, H[0]))
    for wrong in (None, GRU(3, 4).forward(GRU(3, 4).init(0), X)[2], Linear(3, 4)):
        with pytest.raises(ValueError, match="cache is not from the forward call of LSTM"):
            LAYER.backward(PARAMS, wrong, dy)  # type: ignore[arg-type]
    used = cache()
    LAYER.backward(PARAMS, used, dy)
    with pytest.raises(ValueError, match="used by a backward call before"):
        LAYER.backward(PARAMS, used, dy)


def test_backward_with_other_parameters() -> None:
    dy = np.ones((5, 2, 4), dtype="float32")

    def backward(params: Any) -> dict[str, Any]:
        return LAYER.backward(params, LAYER.forward(PARAMS, X)[2], dy)[0]

    expected = backward(PARAMS)
    for same in (dict(PARAMS), {name: value.copy() for name, value in PARAMS.items()}):
        for name, gradient in backward(same).items():
            np.testing.assert_array_equal(gradient, expected[name])
    with pytest.raises(TypeError, match="weight_ih_l0 has dtype float64, the parameters have"):
        backward({name: value.astype("float64") for name, value in PARAMS.items()})
    with pytest.raises(TypeError, match="weight_ih_l0 is a array_api_strict Array but params"):
        backward({name: array_api_strict.asarray(value) for name, value in PARAMS.items()})
    params = dict(PARAMS)
    cache = LAYER.forward(params, X)[2]
    params["bias_hh_l0"] = H
    with pytest.raises(ValueError, match=r"bias_hh_l0 must have shape \(16,\), got"):
        LAYER.backward(params, cache, dy)


def test_another_byte_order() -> None:
    layer = LSTM(3, 4)
    params, x = layer.init(0), np.ones((2, 1, 3), dtype=np.float32)
    other = x.dtype.newbyteorder()
    line = "x has dtype float32 in another byte order, the parameters have float32: cast one"
    for call in (layer, layer.forward):
        with pytest.raises(TypeError, match=line):
            call(params, x.astype(other))
        with pytest.raises(TypeError, match="params must be in this machine's byte order, got >f4"):
            call({name: a.astype(other) for name, a in params.items()}, x.astype(other))
