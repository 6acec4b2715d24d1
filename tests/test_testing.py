"""The checks for cells and layers of one's own: right ones pass, planted faults are named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from targets import need

from rnn_xp import testing
from rnn_xp.backend import Array, BackendError
from rnn_xp.cells.base import Cell, of_product, product, split
from rnn_xp.cells.elman import Elman, ReluElman
from rnn_xp.cells.gru import GRU, ResetBeforeGRU
from rnn_xp.cells.lstm import LSTM
from rnn_xp.cells.min_gru import MinGRU
from rnn_xp.cells.peephole import PeepholeLSTM
from rnn_xp.cells.projected import Projected
from rnn_xp.layers import GRU as GRULayer
from rnn_xp.layers import LSTM as LSTMLayer
from rnn_xp.layers import RNN


class NoBackward(Cell):
    gates = 1

    def step(self, xp: Any, w: Any, a: Array, state: Any) -> Any:
        return (xp.tanh(a + product(w, "hh", state[0])),), ()


def projected(hidden_size: int) -> Cell:
    return Projected(LSTM(hidden_size, 2))


RIGHT = (Elman, ReluElman, LSTM, PeepholeLSTM, GRU, ResetBeforeGRU, projected, MinGRU)


@pytest.mark.parametrize("library", ["numpy", "torch", "jax", "strict"])
@pytest.mark.parametrize("cell", RIGHT, ids=lambda cell: cell.__name__)
def test_right_cells_pass(cell: Any, library: str) -> None:
    need(library)
    testing.check_cell(cell, backends=[library])


def test_other_sizes() -> None:
    testing.check_cell(GRU, input_size=1, hidden_size=1, backends=["numpy"])
    testing.check_cell(LSTM, input_size=5, hidden_size=2, backends=["numpy"])


def test_all_backends_are_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(testing, "_check_place", lambda who, layer, place, home: seen.append(who))
    testing.check_cell(MinGRU)
    assert seen[0] == "MinGRU(4) on numpy"
    with pytest.raises(BackendError, match="unknown backend 'abacus'"):
        testing.check_cell(MinGRU, backends=["abacus"])


def test_a_cell_without_step_backward() -> None:
    with pytest.raises(AssertionError, match=r"NoBackward\(4\) has no step_backward, and nothing"):
        testing.check_cell(NoBackward, backends=["numpy"])


LAYERS = {
    "rnn": RNN(2, 3),
    "rnn_relu": RNN(2, 3, 2, nonlinearity="relu", bias=False),
    "lstm": LSTMLayer(2, 3, bidirectional=True, dropout=0.5),
    "lstm_projected": LSTMLayer(2, 4, 2, proj_size=3),
    "lstm_peephole": LSTMLayer(2, 3, peephole=True),
    "gru": GRULayer(2, 3, 2, bidirectional=True),
    "gru_reset_before": GRULayer(3, 2, reset_after=False),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_right_layers_pass(layer: Any) -> None:
    testing.check_layer(layer, backends=["numpy"])


# --------------------------------------------------------------------------------------------
# Planted faults in cells: one mistake each


def fault(base: type[Cell], **methods: Any) -> type[Cell]:
    return type("Faulty", (base,), methods)


def backward_of(base: type[Cell], change: Callable[..., Any]) -> type[Cell]:
    """A cell whose `step_backward` returns what `change` makes of the right one's results."""

    def step_backward(self: Cell, xp: Any, w: Any, dstate: Any, kept: Any) -> Any:
        return change(xp, w, dstate, kept, *base.step_backward(self, xp, w, dstate, kept))

    return fault(base, step_backward=step_backward)


def step_of(base: type[Cell], change: Callable[..., Any]) -> type[Cell]:
    def step(self: Cell, xp: Any, w: Any, a: Any, state: Any) -> Any:
        return change(self, xp, a, state, *base.step(self, xp, w, a, state))

    return fault(base, step=step)


def gradients_of(base: type[Cell], change: Callable[..., Any]) -> type[Cell]:
    def gradients(self: Cell, xp: Any, w: Any, x: Any, h: Any, kept: Any, da: Any) -> Any:
        return change(base.gradients(self, xp, w, x, h, kept, da), xp, w, x, h, da)

    return fault(base, gradients=gradients)


def with_gate(k: int, change: Callable[[Any], Any]) -> Callable[..., Any]:
    """Change the gradient of gate k of an LSTM, for the weights and x alone."""

    def changed(xp: Any, w: Any, dstate: Any, kept: Any, before: Any, da: Any) -> Any:
        gates = split(da[0], 4)
        gates[k] = change(gates[k])
        return before, (xp.concat(gates, axis=1),)

    return changed


def dropped_tanh(self: Any, xp: Any, w: Any, dstate: Any, kept: Any) -> Any:
    (dh, dc), (i, f, g, o, c, tanh_c) = dstate, kept
    dc = dc + dh * o  # without 1 - tanh²
    da_i, da_f, da_g = dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g)
    da = xp.concat((da_i, da_f, da_g, dh * tanh_c * o * (1 - o)), axis=1)
    return (da @ w["weight_hh"], dc * f), (da,)


def in_place(self: Any, xp: Any, w: Any, dstate: Any, kept: Any) -> Any:
    dh, dc = dstate
    dc += dh * kept[3] * (1 - kept[5] * kept[5])
    return LSTM.step_backward(self, xp, w, (dh * 0, dc), kept)


def writes_into_a(self: Any, xp: Any, w: Any, a: Any, state: Any) -> Any:
    a += product(w, "hh", state[0])
    h = xp.tanh(a)
    return (h,), (h,)


class Remembers(Elman):
    def step(self, xp: Any, w: Any, a: Array, state: Any) -> Any:
        (h,), kept = super().step(xp, w, a, state)
        last = getattr(self, "last", 0.0)
        self.last = h[:1]
        return (h + 0.1 * last,), kept


class KeepsABuffer(Elman):
    buffer: Any = None

    def step(self, xp: Any, w: Any, a: Array, state: Any) -> Any:
        new, (h,) = super().step(xp, w, a, state)
        if self.buffer is None or (self.buffer.shape, self.buffer.dtype) != (h.shape, h.dtype):
            self.buffer = h + 0
        self.buffer[...] = h
        return new, (self.buffer,)


class NoGates(Elman):
    gates = 1.0  # type: ignore[assignment]


class StateInAString(Elman):
    state = "h"  # type: ignore[assignment]


class WrongShapes(Elman):
    def shapes(self, input_size: int, bias: bool) -> Any:
        return super().shapes(input_size, bias) | {"weight_ih": (input_size, self.hidden_size)}


class NumPyOnly(Elman):
    def step(self, xp: Any, w: Any, a: Array, state: Any) -> Any:
        h = xp.tanh(a + product(w, "hh", state[0]))
        return (h,), (np.ascontiguousarray(h),)


def zero_gradient(made: Any, xp: Any, w: Any, x: Any, h: Any, da: Any) -> Any:
    return made | {"bias_hh": made["bias_hh"] * 0} if "bias_hh" in made else made


WIDE = np.float64(1.0)
# A cell, and parts of the message that names its fault.
FAULTS: dict[str, tuple[Any, Sequence[str]]] = {
    "term dropped": (
        fault(LSTM, step_backward=dropped_tanh),
        ["Faulty(4), 1 level, T=1: dweight_hh_l0 is wrong by 0.24 of", "of state 'h' alone, at ["],
    ),
    "wrong sign of the last gate": (
        backward_of(LSTM, with_gate(3, lambda da: -da)),
        ["T=1: d", "is wrong by", "also wrong: ", "; right: dstate0 'h', dstate0 'c'"],
    ),
    "wrong gate for c": (
        backward_of(LSTM, lambda xp, w, d, kept, old, da: ((old[0], old[1] * 0 + d[1]), da)),
        ["T=1: dstate0 'c' is wrong by", "also wrong: nothing; right: dweight_ih_l0, dweight_hh"],
    ),
    "h not passed on": (
        backward_of(Elman, lambda xp, w, d, kept, old, da: ((old[0] * 0,), da)),
        [
            "T=1: dstate0 'h' is wrong by 0.58 of",
            "it is 0, by differences 1.8",
            "also wrong: nothing",
            "dweight_hh_l0, dbias_ih_l0",
        ],
    ),
    "slightly wrong": (
        backward_of(Elman, lambda xp, w, d, kept, old, da: ((old[0] * (1 + 1e-5),), da)),
        ["T=1: dstate0 'h' is wrong by 5.8e-06", "also wrong: nothing"],
    ),
    "update gate of MinGRU": (
        backward_of(MinGRU, lambda xp, w, d, kept, old, da: ((d[0] * kept[0],), da)),
        ["Faulty(4), 1 level, T=1: dstate0 'h' is wrong by", "also wrong: nothing"],
    ),
    "kink missed": (
        fault(ReluElman, step_backward=lambda s, xp, w, d, kept: ((d[0] @ w["weight_hh"],), d)),
        ["Faulty(4), 1 level, T=1: d", "right: nothing"],
    ),
    "bias gradient zero": (
        gradients_of(Elman, zero_gradient),
        [
            "T=1: dbias_hh_l0 is wrong by",
            "also wrong: nothing; right: dweight_ih_l0, dweight_hh_l0",
        ],
    ),
    "bias gradient a mean": (
        gradients_of(
            LSTM,
            lambda made, *_: {k: v / 3 if k == "bias_ih" else v for k, v in made.items()},
        ),
        ["dbias_ih_l0 is wrong by", "also wrong: nothing"],
    ),
    "weight without the reset path": (
        gradients_of(GRU, lambda made, xp, w, x, h, da: made | of_product(xp, w, "hh", da[0], h)),
        ["T=1: d", "_hh_l0 is wrong by", "also wrong: d", "right: dweight_ih_l0, dbias_ih_l0, dx"],
    ),
    "weight of u taken for that of h": (
        fault(ResetBeforeGRU, gradients=Cell.gradients),
        ["T=1: dweight_hh_l0 is wrong by", "also wrong: nothing"],
    ),
    "peephole forgotten in c": (
        fault(
            PeepholeLSTM,
            step_backward=lambda s, xp, w, d, kept: without_peephole(s, xp, w, d, kept),
        ),
        ["T=1: dstate0 'c' is wrong by", "also wrong: nothing"],
    ),
    "gradients without a weight": (
        gradients_of(LSTM, lambda made, *_: {k: v for k, v in made.items() if k != "weight_hh"}),
        ["gradients must have ['weight_ih', 'weight_hh', ", "got ['weight_ih', 'bias_ih'"],
    ),
    "gradient transposed": (
        gradients_of(LSTM, lambda made, *_: made | {"weight_ih": made["weight_ih"].T}),
        ["gradients: dweight_ih has shape (3, 16), expected (16, 3)"],
    ),
    "state in the wrong order": (
        step_of(LSTM, lambda s, xp, a, state, new, kept: (new[::-1], kept)),
        ["T=1: d", "is wrong by", "dstate0 'h'", "dstate0 'c'"],
    ),
    "sizes in the wrong order": (
        step_of(Projected, lambda s, xp, a, state, new, kept: (new[::-1], kept)),
        ["step: state 'h' has shape (3, 4), expected (3, 2)"],
    ),
    "a part too few": (
        step_of(LSTM, lambda s, xp, a, state, new, kept: (new[:1], kept)),
        ["step must return ('h', 'c'), got tuple (array (3, 4))"],
    ),
    "state without a tuple": (
        step_of(Elman, lambda s, xp, a, state, new, kept: (new[0], kept)),
        ["step must return two tuples, got tuple (array (3, 4), tuple (array (3, 4)))"],
    ),
    "keeps a number": (
        step_of(Elman, lambda s, xp, a, state, new, kept: (new, (*kept, 1.0))),
        ["step: kept[1] must be an array (B, ...), got float"],
    ),
    "widens": (
        step_of(Elman, lambda s, xp, a, state, new, kept: ((new[0] * WIDE,), kept)),
        ["Faulty(4) in float32: step: state 'h' has dtype float64, expected float32"],
    ),
    "widens backward": (
        backward_of(LSTM, lambda xp, w, d, kept, old, da: ((old[0], old[1] * WIDE), da)),
        ["in float32: step_backward: dstate 'c' has dtype float64"],
    ),
    "widens a gradient": (
        gradients_of(Elman, lambda made, *_: made | {"weight_hh": made["weight_hh"] * WIDE}),
        ["in float32: gradients: dweight_hh has dtype float64"],
    ),
    "has step_backward, and says that it has not": (
        fault(Elman, step_backward=lambda s, *_: Cell.step_backward(s, *_)),
        ["step_backward: NotImplementedError"],
    ),
    "writes into a": (
        fault(Elman, step=writes_into_a),
        ["step changes its input a in place"],
    ),
    "writes into dc": (
        fault(LSTM, step_backward=in_place),
        ["step_backward changes its input dstate 'c' in place"],
    ),
    "remembers": (Remembers, ["Remembers(4) in float64: step returns other numbers", "remembers"]),
    "keeps a buffer": (KeepsABuffer, ["KeepsABuffer(4)", "step changes what it returned before"]),
    "mean over the batch": (
        step_of(
            Elman,
            lambda s, xp, a, state, new, kept: ((new[0] - xp.mean(new[0], axis=0),), kept),
        ),
        ["step with other sequences beside: h is off by"],
    ),
    "no gates": (NoGates, ["NoGates.gates must be an integer >= 1, got 1.0"]),
    "state in a string": (StateInAString, ["state must be a tuple of different names, got 'h'"]),
    "wrong shapes": (WrongShapes, ["shapes['weight_ih'] must be (G*H, I) = (4, 3), got (3, 4)"]),
    "wrong product": (
        step_of(Elman, lambda s, xp, a, state, new, kept: (a @ state[0], kept)),
        ["Faulty(4) in float64: step: ValueError: matmul"],
    ),
}


def without_peephole(cell: Any, xp: Any, w: Any, dstate: Any, kept: Any) -> Any:
    (dh, _), da = PeepholeLSTM.step_backward(cell, xp, w, dstate, kept)
    (_, dc), _ = PeepholeLSTM.step_backward(cell, xp, w, dstate, kept)
    p_i = w["weight_peephole"][0, ...]
    return (dh, dc - p_i * split(da[0], 4)[0]), da


@pytest.mark.parametrize(("cell", "words"), FAULTS.values(), ids=FAULTS)
def test_planted_faults_are_named(cell: Any, words: Sequence[str]) -> None:
    made: Any = (lambda n: cell(LSTM(n, 2))) if issubclass(cell, Projected) else cell
    with pytest.raises(AssertionError) as caught:
        testing.check_cell(made, backends=["numpy"])
    for text in words:
        assert text in str(caught.value)


def test_a_cell_for_numpy_alone() -> None:
    need("strict")
    testing.check_cell(NumPyOnly, backends=["numpy"])
    with pytest.raises(AssertionError, match=r"NumPyOnly\(4\) on strict in float64: "):
        testing.check_cell(NumPyOnly, backends=["strict"])


class Derived(Elman):
    """A cell whose gradient PyTorch and JAX derive: not NumPy, nor array-api-strict."""

    step_backward = Cell.step_backward


def test_gradients_come_from_the_library_that_derives_them() -> None:
    need("torch")
    need("strict")
    testing.check_cell(Derived, backends=["strict", "torch"])


def test_a_kink_within_a_quotient_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(testing, "STEP", 0.02)  # wide enough to reach across some
    testing.check_cell(ReluElman, backends=["numpy"])
    with pytest.raises(AssertionError, match=r"T=1: .* is wrong by"):
        testing.check_cell(FAULTS["kink missed"][0], backends=["numpy"])
    monkeypatch.setattr(testing, "_quotient", wide(testing._quotient))
    with pytest.raises(AssertionError, match="is wrong by"):
        testing.check_cell(ReluElman, backends=["numpy"])


def wide(quotient: Callable[..., Any]) -> Callable[..., Any]:
    return lambda layer, given, a, at, step: quotient(layer, given, a, at, 0.02)


def test_something_else_is_told() -> None:
    with pytest.raises(AssertionError, match="return a Cell when it is called with hidden_size"):
        testing.check_cell(int)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="the cell: ZeroDivisionError"):
        testing.check_cell(lambda n: Elman(n // 0))


# --------------------------------------------------------------------------------------------
# Planted faults in layers


class Wrapped:
    """An LSTM layer as somebody's own object: no cell to look at."""

    def __init__(self, **options: Any) -> None:
        self.inner = LSTMLayer(2, 3, **options)
        self.shapes, self.input_size = self.inner.shapes, self.inner.input_size
        self.output_size = self.inner.output_size

    def __repr__(self) -> str:
        return "Wrapped"

    def __call__(self, params: Any, x: Any, state: Any = None, *, lengths: Any = None) -> Any:
        return self.inner(params, x, state, lengths=lengths)

    def forward(self, params: Any, x: Any, state: Any = None, *, lengths: Any = None) -> Any:
        return self.inner.forward(params, x, state, lengths=lengths)

    def backward(self, params: Any, cache: Any, dy: Any, dstate: Any = None) -> Any:
        return self.inner.backward(params, cache, dy, dstate)


class OtherForward(Wrapped):
    def forward(self, *args: Any, **options: Any) -> Any:
        y, state, cache = super().forward(*args, **options)
        return y * 1.001, state, cache


class WithoutLengths(Wrapped):
    def forward(self, params: Any, x: Any, state: Any = None, *, lengths: Any = None) -> Any:
        return super().forward(params, np.nan_to_num(x), state)

    def backward(self, params: Any, cache: Any, dy: Any, dstate: Any = None) -> Any:
        return super().backward(params, cache, np.nan_to_num(dy), dstate)


class LeaksPastTheEnd(Wrapped):
    def backward(self, params: Any, cache: Any, dy: Any, dstate: Any = None) -> Any:
        dparams, dx, first = super().backward(params, cache, dy, dstate)
        return dparams, dx + 0 * dy.sum(), first


class ForgetsState(Wrapped):
    def __call__(self, params: Any, x: Any, state: Any = None, *, lengths: Any = None) -> Any:
        short = len(x) == 2
        return super().__call__(params, x, None if short else state, lengths=lengths)


class Float64Only(Wrapped):
    def backward(self, params: Any, cache: Any, dy: Any, dstate: Any = None) -> Any:
        dparams, dx, first = super().backward(params, cache, dy, dstate)
        return dparams, dx * WIDE, first


class Overflows(Wrapped):
    def forward(self, params: Any, x: Any, *args: Any, **options: Any) -> Any:
        y, state, cache = super().forward(params, x, *args, **options)
        return (y if x.dtype == np.float64 else y * x.dtype.type(np.inf)), state, cache


class WritesIntoX(Wrapped):
    def forward(self, params: Any, x: Any, *args: Any, **options: Any) -> Any:
        y, state, cache = super().forward(params, x, *args, **options)
        x *= 2
        return y, state, cache


class SumsOneLess(Wrapped):
    def backward(self, params: Any, cache: Any, dy: Any, dstate: Any = None) -> Any:
        dparams, dx, first = super().backward(params, cache, dy, dstate)
        if "bias_hh_l1" in dparams:
            dparams["bias_hh_l1"][0] *= 1.01
        return dparams, dx, first


LAYER_FAULTS: list[tuple[Wrapped, str]] = [
    (OtherForward(), "Wrapped, 1 level: forward: y is off by"),
    (WithoutLengths(), r"with lengths=\(3, 5, 1, 4\): y is off by .*each sequence alone 0"),
    (LeaksPastTheEnd(), r"with lengths=.*: dx is off by nan"),
    (ForgetsState(), "Wrapped in two halves: y is off by"),
    (Float64Only(), "Wrapped on numpy in float32: dx has dtype float64, expected float32"),
    (Overflows(), "Wrapped on numpy in float32: y is off by"),
    (WritesIntoX(), "forward or backward changes x in place"),
    (SumsOneLess(num_layers=2), "dbias_hh_l1 is wrong by .*: of .* alone, at .0. .*wrong: nothing"),
]


def test_a_layer_without_a_cell_passes() -> None:
    testing.check_layer(Wrapped(), backends=["numpy"])
    testing.check_layer(Wrapped(num_layers=2, bidirectional=False), backends=["numpy"])


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize(("layer", "message"), LAYER_FAULTS, ids=lambda x: type(x).__name__)
def test_planted_faults_in_layers(layer: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        testing.check_layer(layer, backends=["numpy"])
