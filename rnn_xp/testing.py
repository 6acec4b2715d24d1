"""Checks for a cell or a layer of one's own: the first fault is told in one message.

    form       what `shapes`, `step`, `step_backward` and `gradients` return, for one step
    calls      `forward` and a plain call agree
    gradients  central finite differences in float64, first of one step, then through time
    ragged     a batch with lengths equals each of its sequences alone
    carried    two halves, the state carried over, equal the whole
    places     every array library here gives NumPy's numbers, in float64 and float32

A wrong gradient of one step points to its line: dx and the weights' gradients follow from da, and
dstate0 from the state that `step_backward` returns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from rnn_xp.backend import (
    Array,
    Backend,
    array_namespace,
    available,
    dtype_name,
    same_device,
    select,
    to_numpy,
)
from rnn_xp.cells.base import Cell
from rnn_xp.errors import first_line
from rnn_xp.layers.recurrent import Recurrent
from rnn_xp.layers.recurrent import made as cell_made
from rnn_xp.random import generator

Host = np.ndarray[Any, Any]
Results = dict[str, Any]
"""Arrays by their names."""
Layer = Any
"""A recurrent layer: has `init`, a call, `forward`, `backward` and `shapes`."""

BATCH = 3
LENGTHS = (3, 5, 1, 4)
ALLOWED = 1e-6
"""The error of a gradient, over the largest of all."""
STEP = 1e-5
"""How far a difference quotient reaches."""
ROUNDING = {"float64": 1e-11, "float32": 1e-4}
"""How far two runs may be apart, over the largest number of all."""


def check_cell(
    cell: Callable[[int], Cell],
    *,
    input_size: int = 3,
    hidden_size: int = 4,
    backends: Sequence[str] | None = None,
) -> None:
    """Check a cell: its form, its gradients, and its layers on every array library here.

    Parameters
    ----------
    cell : a `Cell` class, or anything called with `hidden_size` that returns a `Cell`
    input_size, hidden_size : int
        I and H of the layers that are made of it; the time grows with the number of weights.
    backends : sequence of str, optional
        Names as `backend.select` takes them; None is every one that can be used here.

    Raises
    ------
    AssertionError
        At the first fault: what is wrong, where and by how much.
    BackendError
        If one of `backends` cannot be used.
    """
    places = _places(backends)
    made = check_form(cell, hidden_size, input_size)
    single = [Recurrent(cell, input_size, hidden_size, bias=bias) for bias in (True, False)]
    both = Recurrent(cell, input_size, hidden_size, bidirectional=True)
    deep = Recurrent(cell, input_size, hidden_size, 2, bidirectional=True)
    _check_layers(repr(made), single, both, deep, places)


def check_form(cell: Callable[[int], Cell], hidden_size: int = 4, input_size: int = 3) -> Cell:
    """Check what a cell's own functions take and return, for one step on NumPy; return the cell.

    Raises
    ------
    AssertionError
        At the first fault.
    """
    with _told("the cell"):
        made = cell_made(cell, hidden_size)
    _check_form(made, input_size)
    return made


def check_layer(layer: Layer, *, backends: Sequence[str] | None = None) -> None:
    """Check a recurrent layer, with the levels and directions that it has.

    Parameters
    ----------
    layer : an RNN, LSTM, GRU or `Recurrent`, or another object with their calls
        A small one: the time grows with the number of weights.
    backends : as in `check_cell`

    Raises
    ------
    AssertionError, BackendError
        As `check_cell`.
    """
    right = not isinstance(layer, type) and getattr(layer, "has_state", True)
    right = right and all(hasattr(layer, name) for name in ("forward", "backward", "shapes"))
    _expect(right, f"expected a recurrent layer, got {layer!r}")
    places, cell = _places(backends), _cell_of(layer)
    if cell is not None:
        _check_form(cell, layer.input_size)
    _check_layers(repr(layer), [layer], layer, layer, places)


def _places(names: Sequence[str] | None) -> list[Backend]:
    """Return the backends to check, NumPy first."""
    if isinstance(names, str):
        names = [names]
    if names is None:
        names = [name for name, status in available().items() if status.usable]
    return [select(name) for name in dict.fromkeys(("numpy", *names))]


def _check_layers(
    who: str, single: Sequence[Layer], both: Layer, deep: Layer, places: Sequence[Backend]
) -> None:
    """Check layers of one cell: of one level, of both directions, of two levels."""
    home = _home(who, single[0], places)
    for layer in (*single, deep):
        _check_calls(f"{who}, {_options(layer)}", layer, home)
    for steps in (1, 4):
        for layer in single:
            _check_gradients(f"{who}, {_options(layer)}, T={steps}", layer, home, steps)
    _check_ragged(f"{who}, {_options(deep)}", deep, home)
    _check_carried(who, single[0])
    for place in places:
        _check_place(f"{who} on {place.name}", both, place, home)


def _cell_of(layer: Layer) -> Cell | None:
    """Return the equations of a layer; None if it has none of them to show."""
    found = getattr(layer, "equations", None)
    return found if isinstance(found, Cell) else None


def _options(layer: Layer) -> str:
    levels, bias = getattr(layer, "num_layers", 1), getattr(layer, "bias", True)
    both = " in both directions" if getattr(layer, "num_directions", 1) == 2 else ""
    return f"{levels} level{'s' * (levels > 1)}{both}{'' if bias else ' without bias'}"


def _expect(right: Any, text: str) -> None:
    if not right:
        raise AssertionError(text)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Let an error of somebody's code say where."""
    try:
        yield
    except AssertionError:
        raise
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {first_line(error)}") from error


def _check_like(what: str, found: Any, like: Array, shape: tuple[int, ...]) -> None:
    """Check an array's library, device, dtype and shape."""
    with _told(what):
        array_namespace(expected=like, found=found)
    one, other = dtype_name(found.dtype), dtype_name(like.dtype)
    _expect(one == other, f"{what} has dtype {one}, expected {other}")
    _expect(same_device(found, like), f"{what} is on another device than the inputs")
    _expect(tuple(found.shape) == shape, f"{what} has shape {tuple(found.shape)}, expected {shape}")


def _compare(what: str, found: Results, expected: Results, dtype: str, why: str) -> None:
    """Check that host arrays agree up to rounding."""
    scale = max(float(np.abs(value).max()) for value in expected.values()) or 1.0
    for name, value in expected.items():
        own = found[name]
        _expect(own.shape == value.shape, f"{what}: {name} is {own.shape}, {why} {value.shape}")
        off = np.abs(own - value) / scale
        at = tuple(int(n) for n in np.unravel_index(off.argmax(), off.shape))
        text = f"{name} is off by {off[at]:.2g}: at {list(at)} {own[at]:.6g}, {why} {value[at]:.6g}"
        _expect(off.max() <= ROUNDING[dtype], f"{what}: {text}")  # not so with NaN


def _same(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(some, others, strict=True))


# --------------------------------------------------------------------------------------------
# The form of a cell: one step, on NumPy


def _check_form(cell: Cell, input_size: int) -> None:
    name, gates = repr(cell), cell.gates
    for bias in (True, False):
        with _told(f"{name}: shapes({input_size}, bias={bias})"):
            shapes: Any = cell.shapes(input_size, bias)
        _expect(isinstance(shapes, dict), f"{name}: shapes must be a dict, got {shapes!r}")
        for weight, shape in shapes.items():
            right = type(shape) is tuple and all(type(n) is int and n > 0 for n in shape)
            _expect(right, f"{name}: shapes[{weight!r}] must be a tuple of ints, got {shape!r}")
        own, first = (gates * cell.hidden_size, input_size), shapes.get("weight_ih")
        _expect(first == own, f"{name}: shapes['weight_ih'] must be (G*H, I) = {own}, got {first}")
        for dtype in (np.float64, np.float32):
            _check_step(f"{name} in {dtype.__name__}", cell, shapes, dtype)


def _check_step(name: str, cell: Cell, shapes: Any, dtype: Any) -> None:
    """Check what `step` takes and returns, and what comes back from it."""
    rng, rows = generator(0), cell.gates * cell.hidden_size

    def draw(*shape: int) -> Host:
        return rng.standard_normal(shape).astype(dtype)

    w = {weight: draw(*shape) for weight, shape in shapes.items()}
    a, x = draw(BATCH, rows), draw(BATCH, w["weight_ih"].shape[1])
    state, dstate = (tuple(draw(BATCH, size) for size in cell.state_sizes) for _ in range(2))
    new, kept = _called(f"{name}: step", cell, cell.step, w, {"a": a}, state)
    _check_repeats(f"{name}: step", cell, w, a, state, (new, kept))
    if cell.has_backward:
        _check_backward(name, cell, w, (a, x, state, dstate), kept)


def _check_backward(name: str, cell: Cell, w: Results, drawn: Any, kept: Any) -> None:
    """Check what `step_backward` and `gradients` take and return."""
    a, x, state, dstate = drawn
    inputs = {f"kept[{k}]": each for k, each in enumerate(kept)}
    what = f"{name}: step_backward"
    _, da = _called(what, cell, cell.step_backward, w, inputs, dstate, kept)
    _expect(da, f"{what} must return at least one gradient of the pre-activations")
    _check_like(f"{what}: da[0]", da[0], a, a.shape)
    inputs |= {"x": x, "h": state[0]} | {f"da[{k}]": each for k, each in enumerate(da)}
    what, args = f"{name}: gradients", (x, state[0], list(kept), da)
    made = _unchanged(what, w, inputs, lambda: cell.gradients(np, w, *args))
    _expect(isinstance(made, dict), f"{what} must return a dict, got {type(made).__name__}")
    _expect(made.keys() == w.keys(), f"{what} must have {list(w)}, got {list(made)}")
    for weight, value in w.items():
        _check_like(f"{what}: d{weight}", made[weight], value, value.shape)


def _called(
    what: str, cell: Cell, function: Any, w: Results, inputs: Results, state: Any, *kept: Any
) -> tuple[Any, Any]:
    """Call `step` or `step_backward` and check the form of what it returns."""
    word, args = ("dstate", (state, *kept)) if kept else ("state", (inputs["a"], state))
    watched = inputs | {f"{word} {p!r}": part for p, part in zip(cell.state, state, strict=True)}
    made = _unchanged(what, w, watched, lambda: function(np, w, *args))
    two = type(made) is tuple and len(made) == 2 and all(type(each) is tuple for each in made)
    _expect(two, f"{what} must return two tuples, got {_kind(made)}")
    new, others = made
    _expect(len(new) == len(state), f"{what} must return {cell.state}, got {_kind(new)}")
    for part, one, old in zip(cell.state, new, state, strict=True):
        _check_like(f"{what}: {word} {part!r}", one, old, old.shape)
    for k, each in enumerate(others):
        right = type(each) is np.ndarray and each.shape[:1] == (BATCH,)
        which = f"{'da' if kept else 'kept'}[{k}]"
        _expect(right, f"{what}: {which} must be an array (B, ...), got {_kind(each)}")
    return new, others


def _unchanged(what: str, w: Results, inputs: Results, call: Callable[[], Any]) -> Any:
    """Call a function of a cell and check that it writes into none of its inputs."""
    watched = w | inputs
    before = {name: value.copy() for name, value in watched.items()}
    with _told(what):
        made = call()
    for name, value in watched.items():
        _expect(_same([before[name]], [value]), f"{what} changes its input {name} in place")
    return made


def _check_repeats(what: str, cell: Cell, w: Results, a: Host, state: Any, made: Any) -> None:
    """Check that a step depends on its inputs alone, sequence by sequence."""
    new, kept = made
    before = [each.copy() for each in (*new, *kept)]
    with _told(what):
        cell.step(np, w, a[::-1], tuple(part[::-1] for part in state))
        _expect(_same(before, (*new, *kept)), f"{what} changes what it returned before")
        again = cell.step(np, w, a, state)
        alone, _ = cell.step(np, w, a[:1], tuple(part[:1] for part in state))
    repeats = _same(before, (*again[0], *again[1]))
    _expect(repeats, f"{what} returns other numbers when it is called again: it remembers")
    one, all_ = ({p: s[:1] for p, s in zip(cell.state, ss, strict=True)} for ss in (alone, new))
    _compare(f"{what} with other sequences beside", all_, one, a.dtype.name, "alone")


def _kind(made: Any) -> str:
    if isinstance(made, tuple | list):
        return f"{type(made).__name__} ({', '.join(map(_kind, made))})"
    return f"array {made.shape}" if isinstance(made, np.ndarray) else type(made).__name__


# --------------------------------------------------------------------------------------------
# Layers: numbers for a run, and its results by their names


class Given(NamedTuple):
    """Host arrays in float64 for one run: numbers that float32 has too."""

    parts: tuple[str, ...]
    """The names of the parts of the state."""
    params: Results
    x: Host
    state: tuple[Host, ...]
    """(L*D, B, size) each"""
    dy: Host
    dstate: tuple[Host, ...]

    def named(self, before: str, parts: Any) -> Results:
        """Return the parts of a state by their names."""
        parts = parts if isinstance(parts, tuple) else (parts,)
        return {f"{before} {p!r}": part for p, part in zip(self.parts, parts, strict=True)}

    def inputs(self) -> Results:
        """Return what has a gradient, by the name of that."""
        weights = {f"d{name}": a for name, a in self.params.items()}
        return weights | {"dx": self.x} | self.named("dstate0", self.state)

    def alone(self, b: int, count: int) -> Given:
        """Return the first steps of one sequence."""
        state, dstate = (tuple(p[:, b : b + 1] for p in s) for s in (self.state, self.dstate))
        x, dy = (a[:count, b : b + 1] for a in (self.x, self.dy))
        return self._replace(x=x, dy=dy, state=state, dstate=dstate)

    def ends(self) -> Iterator[tuple[str, Given]]:
        """Yield the gradient of y, and of each part of the last state, without the others."""
        zeros = tuple(map(np.zeros_like, self.dstate))
        yield "y", self._replace(dstate=zeros)
        for k, (name, part) in enumerate(self.named("state", self.dstate).items()):
            dstate = (*zeros[:k], part, *zeros[k + 1 :])
            yield name, self._replace(dy=np.zeros_like(self.dy), dstate=dstate)


def _draw(layer: Layer, steps: int, batch: int = BATCH) -> Given:
    rng = generator(0)

    def draw(*shape: int, scale: float = 1.0) -> Host:
        return (rng.standard_normal(shape) * scale).astype(np.float32).astype(np.float64)

    params = {
        name: draw(*shape, scale=min(0.75, 1.5 / math.sqrt(shape[-1])))
        for name, shape in layer.shapes.items()
    }
    x = draw(steps, batch, layer.input_size)
    with _told(f"{layer!r}, called"):
        y, last = layer(params, x)
    shapes = [part.shape for part in (last if isinstance(last, tuple) else (last,))]
    cell = _cell_of(layer)
    names = tuple(map(str, range(len(shapes)))) if cell is None else cell.state
    state, dstate = (tuple(draw(*shape) for shape in shapes) for _ in range(2))
    return Given(names, params, x, state, draw(*y.shape), dstate)


def _call(layer: Layer, given: Given) -> Results:
    """Return y and the state of a plain call on NumPy."""
    with _told(f"{layer!r}, called"):
        y, last = layer(given.params, given.x, _spelt(given.state))
    return {"y": y} | given.named("state", last)


def _spelt(parts: tuple[Any, ...]) -> Any:
    """Return a state as a layer takes it."""
    return parts[0] if len(parts) == 1 else parts


def _run(
    who: str, layer: Layer, given: Given, place: Backend, dtype: str, lengths: Any = None
) -> Results:
    """Run forward and backward; return y, the state and all gradients on the host.

    Without the gradients where a cell has no `step_backward` and the library derives none.
    """

    def move(*hosts: Host) -> tuple[Array, ...]:
        return tuple(place.asarray(host.astype(dtype)) for host in hosts)  # of copies

    params = dict(zip(given.params, move(*given.params.values()), strict=True))
    (x, dy), state, dstate = move(given.x, given.dy), move(*given.state), move(*given.dstate)
    cell, gradients = _cell_of(layer), {}
    with _told(who), place.scope():
        try:
            y, last, cache = layer.forward(params, x, _spelt(state), lengths=lengths)
            dparams, dx, dfirst = layer.backward(params, cache, dy, _spelt(dstate))
            gradients = {"dx": dx} | given.named("dstate0", dfirst)
            _expect(dparams.keys() == params.keys(), f"{who}: dparams has {list(dparams)}")
            gradients |= {f"d{name}": dparams[name] for name in params}
        except NotImplementedError:
            if cell is None or cell.has_backward:
                raise
            y, last = layer(params, x, _spelt(state), lengths=lengths)
    made = {"y": y} | given.named("state", last) | gradients
    shapes = {"y": given.dy} | given.named("state", given.state) | given.inputs()
    for name, value in made.items():
        _check_like(f"{who}: {name}", value, x, shapes[name].shape)
    sent = zip(given.inputs().items(), (*params.values(), x, *state), strict=True)
    for name, host, array in ((n.removeprefix("d"), host, array) for (n, host), array in sent):
        same = _same([to_numpy(array)], [host.astype(dtype)])
        _expect(same, f"{who}: forward or backward changes {name} in place")
    return {name: to_numpy(value) for name, value in made.items()}


def _home(who: str, layer: Layer, places: Sequence[Backend]) -> Backend:
    """Return where gradients in float64 come from: NumPy, unless the library has to derive them."""
    given = _draw(layer, 1)
    for place in filter(_has_float64, places):
        if "dx" in _run(f"{who} on {place.name}", layer, given, place, "float64"):
            return place
    raise AssertionError(
        f"{who} has no step_backward, and nothing here derives its gradients in float64 (of "
        f"{', '.join(place.name for place in places)}): write step_backward, or install PyTorch"
    )


def _has_float64(place: Backend) -> bool:
    try:
        return place.dtype("float64") is not None
    except ValueError:  # switched off in JAX
        return False


# --------------------------------------------------------------------------------------------
# The checks of layers


def _check_calls(who: str, layer: Layer, home: Backend) -> None:
    """Compare `forward` with a plain call."""
    given = _draw(layer, 4)
    made, called = _run(who, layer, given, home, "float64"), _call(layer, given)
    _expect(called["y"].shape == (4, BATCH, layer.output_size), f"{who}: y is {called['y'].shape}")
    for name, value in called.items():
        _expect(np.isfinite(value).all(), f"{who}: {name} has numbers that are not finite")
    _compare(f"{who}: forward", made, called, "float64", "of a call")


def _check_gradients(who: str, layer: Layer, home: Backend, steps: int) -> None:
    """Compare all gradients, of y and of each part of the last state alone, with quotients."""
    given, right = _draw(layer, steps), []
    faults: dict[str, tuple[str, str]] = {}
    ends, alone = zip(*given.ends(), strict=True)
    found = [_run(who, layer, each, home, "float64") for each in alone]
    inputs = given.inputs()
    numeric: dict[str, Host] = {
        term: np.stack([_quotient(layer, given, a, at, STEP) for at in np.ndindex(a.shape)], -1)
        for term, a in inputs.items()
    }
    scale = max(float(np.abs(each).max()) for each in numeric.values()) or 1.0
    for term, a in inputs.items():
        exact, rates = np.stack([each[term].reshape(-1) for each in found]), numeric[term]
        # A quotient across a kink comes right when it is short; a wrong gradient stays wrong.
        for k in np.flatnonzero(~(np.abs(exact - rates) <= ALLOWED * scale).all(axis=0)):
            rates[:, k] = _quotient(layer, given, a, np.unravel_index(k, a.shape), STEP / 100)
        off = np.abs(exact - rates) / scale
        if off.max() <= ALLOWED:  # not so with NaN
            right.append(term)
            continue
        end, k = np.unravel_index(off.argmax(), off.shape)
        at = [int(n) for n in np.unravel_index(k, a.shape)]
        faults[term] = (
            f"{off[end, k]:.2g}",
            f"of {ends[end]} alone, at {at} it is "
            + (f"{exact[end, k]:.6g}, by differences {rates[end, k]:.6g}"),
        )
    if faults:
        raise AssertionError(f"{who}: {_verdict(faults, right)}")


def _verdict(faults: dict[str, tuple[str, str]], right: Sequence[str]) -> str:
    """Say which gradients are wrong, the most wrong one first, and which are right."""
    first, *others = sorted(faults, key=lambda term: -float(faults[term][0]))
    off, where = faults[first]
    also = ", ".join(f"{term} by {faults[term][0]}" for term in others) or "nothing"
    return (
        f"{first} is wrong by {off} of the largest gradient: {where}; also wrong: {also}; "
        f"right: {', '.join(right) or 'nothing'}"
    )


def _quotient(layer: Layer, given: Given, a: Host, at: Any, step: float) -> list[float]:
    """Return the derivatives of sum(y * dy), and of its like for the state, by one number of a."""
    kept, ends = a[at], (given.dy, *given.dstate)
    a[at] = kept + step
    above = _call(layer, given).values()
    a[at] = kept - step
    below = _call(layer, given).values()
    a[at] = kept
    each = zip(above, below, ends, strict=True)
    return [float(((p - m) * d).sum()) / (2 * step) for p, m, d in each]


def _check_ragged(who: str, layer: Layer, home: Backend) -> None:
    """Compare a batch with lengths, and NaN past each, with its sequences alone."""
    given = _draw(layer, max(LENGTHS), len(LENGTHS))
    valid = (np.arange(max(LENGTHS))[:, None] < np.asarray(LENGTHS))[:, :, None]
    x, dy = (np.where(valid, a, np.nan) for a in (given.x, given.dy))
    made = _run(who, layer, given._replace(x=x, dy=dy), home, "float64", LENGTHS)
    expected = {name: np.zeros_like(value) for name, value in made.items()}
    for b, count in enumerate(LENGTHS):
        for name, value in _run(who, layer, given.alone(b, count), home, "float64").items():
            if name in ("y", "dx"):
                expected[name][:count, b : b + 1] = value
            elif name.startswith(("state ", "dstate0 ")):
                expected[name][:, b : b + 1] = value
            else:
                expected[name] += value
    _compare(f"{who} with lengths={LENGTHS}", made, expected, "float64", "each sequence alone")


def _check_carried(who: str, layer: Layer) -> None:
    """Compare two halves with the whole, where nothing runs from the last step to the first."""
    if getattr(layer, "num_directions", 1) > 1:
        return
    given = _draw(layer, 6)
    one = _call(layer, given._replace(x=given.x[:4]))
    middle = tuple(value for name, value in one.items() if name != "y")
    two = _call(layer, given._replace(x=given.x[4:], state=middle))
    halves = two | {"y": np.concatenate((one["y"], two["y"]))}
    _compare(f"{who} in two halves", halves, _call(layer, given), "float64", "at once")


def _check_place(who: str, layer: Layer, place: Backend, home: Backend) -> None:
    """Compare an array library's results with those at home, ragged, in both dtypes."""
    given = _draw(layer, max(LENGTHS), len(LENGTHS))
    expected = _run(who, layer, given, home, "float64", LENGTHS)
    for dtype in ("float64", "float32") if _has_float64(place) else ("float32",):
        what = f"{who} in {dtype}"
        made = _run(what, layer, given, place, dtype, LENGTHS)
        own = {name: expected[name] for name in made}
        _compare(what, made, own, dtype, f"{home.name} in float64")
