"""Any library that keeps the array API standard works: also one that the package has never seen.

Each run is a function of a library: it computes with that library's arrays alone, and what comes
back is compared with what NumPy makes of the same numbers. `Library` looks at what all of them
promise: results are of the library, dtype and device of what went in, and nothing was changed.
"""

from __future__ import annotations

import importlib
import inspect
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import array_api_compat
import numpy as np
import pytest
import standard_only
from check_layer import CELLS, LENGTHS, Problem, as_state, make_layer, make_problem
from targets import HostArray, need, need_module

import rnn_xp
from rnn_xp import Dropout, Embedding, Linear, Pool, backend, losses, optim
from rnn_xp.models import Chain, character_model, sequence_model

# --------------------------------------------------------------------------------------------
# Libraries


@dataclass
class Library:
    """An array library: makes arrays of NumPy's, remembers them, and looks at what comes back."""

    name: str
    xp: Any
    kind: Any
    make: Callable[[HostArray], Any]
    hosts: Callable[[Sequence[Any]], Sequence[HostArray]]
    """Copies on the host of some arrays: by a way that the package does not take."""
    scope: AbstractContextManager[Any] = field(default_factory=nullcontext)
    given: list[tuple[Any, HostArray]] = field(default_factory=list)

    @property
    def called(self) -> str:
        """What an error calls it."""
        return str(self.kind.__module__.partition(".")[0])

    def asarray(self, array: Any, dtype: str | None = None) -> Any:
        """Copy an array into the library."""
        host = np.array(array, dtype=dtype)
        made = self.make(host.copy())
        self.given.append((made, host))
        return made

    def tree(self, arrays: Any, dtype: str | None = None) -> Any:
        """`asarray` through dicts and tuples."""
        if isinstance(arrays, dict):
            return {name: self.tree(value, dtype) for name, value in arrays.items()}
        if isinstance(arrays, tuple):
            return tuple(self.tree(value, dtype) for value in arrays)
        return self.asarray(arrays, dtype)

    def dtype(self, name: str) -> Any:
        return np.dtype(name) if self.xp is np else getattr(self.xp, name)

    def host(self, array: Any) -> HostArray:
        return self.hosts([array])[0]

    def check(self, found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
        """Assert that arrays are this library's, and what NumPy says."""
        assert found.keys() == expected.keys()
        device = array_api_compat.device(self.given[0][0])
        for name, value in expected.items():
            array = found[name]
            number = self.xp is np and value.shape == () and isinstance(array, np.generic)
            assert number or type(array) is self.kind, f"{name} is a {type(array)}"
            if self.xp is not np:
                assert array_api_compat.array_namespace(array) is self.xp, name
            assert array_api_compat.device(array) == device, name
            assert array.dtype == self.dtype(value.dtype.name), f"{name} has another dtype"
            assert array.shape == value.shape, name
        hosts = self.hosts(list(found.values()))
        for name, host in zip(found, hosts, strict=True):
            np.testing.assert_allclose(
                host, expected[name], rtol=tolerance, atol=tolerance, err_msg=name
            )

    def check_given(self) -> None:
        """Assert that no array that was made has changed."""
        hosts = self.hosts([array for array, _ in self.given])
        for host, (_, expected) in zip(hosts, self.given, strict=True):
            np.testing.assert_array_equal(host, expected, strict=True)


def one_by_one(host: Callable[[Any], HostArray]) -> Callable[[Sequence[Any]], list[HostArray]]:
    return lambda arrays: [host(array) for array in arrays]


def numpy_library() -> Library:
    return Library("numpy", np, np.ndarray, np.array, one_by_one(np.array))


def standard_library(version: str = "2023.12") -> Library:
    xp = standard_only.make_namespace(version)
    return Library("standard", xp, type(xp.ones(1)), xp.asarray, one_by_one(standard_only.to_host))


def strict_library(version: str) -> Library:
    need("strict")
    xp = importlib.import_module("array_api_strict")
    scope = xp.ArrayAPIStrictFlags(
        api_version=version, boolean_indexing=False, data_dependent_shapes=False
    )
    hosts = one_by_one(lambda array: np.array(array._array))
    return Library("strict", xp, type(xp.ones(1)), xp.asarray, hosts, scope)


def dask_library(chunks: int | None = None) -> Library:
    dask = need_module("dask.array")
    xp = importlib.import_module("array_api_compat.dask.array")
    make = xp.asarray if chunks is None else partial(dask.from_array, chunks=chunks)
    compute = partial(need_module("dask").compute, scheduler="synchronous")
    return Library("dask", xp, dask.Array, make, lambda a: list(map(np.array, compute(*a))))


def marray_library() -> Library:
    xp = need_module("marray").masked_namespace(np)

    def host(array: Any) -> HostArray:
        assert not array.mask.any()
        return np.array(array.data)

    return Library("marray", xp, xp.MArray, xp.asarray, one_by_one(host))


LIBRARIES: dict[str, Callable[[], Library]] = {
    "numpy": numpy_library,  # so that the checks are right themselves
    "standard:2022.12": partial(standard_library, "2022.12"),
    "standard:2023.12": partial(standard_library, "2023.12"),
    "strict:2022.12": partial(strict_library, "2022.12"),
    "strict:2023.12": partial(strict_library, "2023.12"),
    "dask": dask_library,
    "dask:chunks": partial(dask_library, 2),
    "marray": marray_library,
}
SLOW = "dask:chunks"
"""What it costs to build its graphs grows with the chunks: of the cells, not every option."""
ONLY_LAYERS = ("standard:2022.12", "strict:2022.12")
"""Without the functions that came with 2023.12: what they have to be enough for are the layers."""


@pytest.fixture
def library(request: pytest.FixtureRequest) -> Iterator[Library]:
    """The library called so; one that is missing is a visible skip."""
    made = LIBRARIES[request.param]()
    with made.scope:
        yield made


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the arrays in nested dicts, tuples and lists under their paths; without None."""
    if value is None:
        return {}
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, tuple | list):
        parts = dict(enumerate(value)).items()
    else:
        return {name: value}
    return {k: v for key, part in parts for k, v in flat(part, f"{name}.{key}").items()}


# --------------------------------------------------------------------------------------------
# Runs: layers

Run = Callable[[Library], Any]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_bias": {"bias": False},
    "bidirectional": {"bidirectional": True},
    "two_levels": {"num_layers": 2},
    "ragged_list": {"bidirectional": True},
    "ragged_host": {"num_layers": 2},
    "ragged_own": {"num_layers": 2},
    "carried_state": {"num_layers": 2},
    "unbatched": {"bidirectional": True},
    "dropout": {"num_layers": 2, "dropout": 0.4},
    "float32": {"bidirectional": True},
}
NARROW = "float32"
"""What has this in its name is computed in float32: no sum, and no number, may widen it."""


def recurrent(cell: str, option: str, library: Library) -> Any:
    """One layer forward, backward, for inference, and prepared for it."""
    problem = make_problem(cell, **OPTIONS[option])
    if option == "unbatched":
        problem = without_batch(problem)
    layer, dtype = problem.layer, "float32" if option == NARROW else None
    params, x = library.tree(problem.params, dtype), library.asarray(problem.x, dtype)
    dy, state, dstate = library.asarray(problem.dy, dtype), None, None
    given = lengths_of(option, library)
    if option in ("carried_state", "unbatched", "ragged_own"):
        state = as_state(library.tree(problem.state, dtype))
        dstate = as_state(library.tree(problem.dstate, dtype))
    if option == "carried_state":
        _, state = layer(params, x, state)
    training = {"dropout_seed": 7} if option == "dropout" else {}
    y, last, cache = layer.forward(params, x, state, **given, **training)
    return {
        "y": y,
        "last": last,
        "backward": layer.backward(params, cache, dy, dstate),
        "inference": layer(params, x, state, **given),
        "prepared": layer(layer.prepare(params), x, state, **given),
    }


def lengths_of(option: str, library: Library) -> dict[str, Any]:
    if option == "ragged_list":
        return {"lengths": list(LENGTHS)}
    if option == "ragged_host":
        return {"lengths": np.array(LENGTHS)}
    if option == "ragged_own":
        return {"lengths": library.asarray(LENGTHS, "int64")}
    return {}


def without_batch(problem: Problem) -> Problem:
    return Problem(
        problem.layer,
        problem.kind,
        problem.params,
        problem.x[:, 0],
        tuple(part[:, 0] for part in problem.state),
        problem.dy[:, 0],
        tuple(part[:, 0] for part in problem.dstate),
        None,
    )


def draw(shape: tuple[int, ...], seed: int = 0) -> HostArray:
    return np.random.default_rng(seed).standard_normal(shape)


def params_of(library: Library, layer: Any, dtype: str | None = None) -> Any:
    """Drawn on the host and brought into the library: `init` is looked at by itself."""
    return library.tree({n: draw(s, k) for k, (n, s) in enumerate(layer.shapes.items())}, dtype)


def linear(shape: tuple[int, ...], bias: bool, dtype: str | None, library: Library) -> Any:
    layer = Linear(shape[-1], 4, bias=bias)
    params, x = params_of(library, layer, dtype), library.asarray(draw(shape, 1), dtype)
    y, cache = layer.forward(params, x)
    dy = library.asarray(draw((*shape[:-1], 4), 2), dtype)
    return y, layer.backward(params, cache, dy), layer(params, x)


def embedding(kind: str, dtype: str | None, library: Library) -> Any:
    layer = Embedding(6, 3)
    params = params_of(library, layer, dtype)
    x = library.asarray([[0, 5, 2], [2, 2, 1]], kind)
    y, cache = layer.forward(params, x)
    dy = library.asarray(draw((2, 3, 3), 2), dtype)
    return y, layer.backward(params, cache, dy), layer(params, x)


def dropout(rate: float, library: Library) -> Any:
    layer, x = Dropout(rate), library.asarray(draw((4, 3, 2)))
    y, cache = layer.forward({}, x, dropout_seed=3)
    return y, layer.backward({}, cache, library.asarray(draw((4, 3, 2), 1))), layer({}, x)


def pool(kind: str, bidirectional: bool, option: str, library: Library) -> Any:
    layer = Pool(kind, bidirectional)
    dtype = "float32" if option == NARROW else None
    x, given = library.asarray(draw((5, 3, 4)), dtype), lengths_of(option, library)
    y, cache = layer.forward({}, x, **given)
    dy = library.asarray(draw((3, 4), 1), dtype)
    return y, layer.backward({}, cache, dy), layer({}, x, **given)


def characters(dropout: float, library: Library) -> Any:
    model = character_model(
        7, cell="lstm", embedding_size=3, hidden_size=4, num_layers=2, dropout=dropout
    )
    x = library.asarray(np.arange(15).reshape(5, 3) % 7, "int64")
    seed = {"dropout_seed": 2} if dropout else {}
    return chain(model, x, (5, 3, 7), {}, seed, library)


def sequences(option: str, library: Library) -> Any:
    model = sequence_model(2, 3, hidden_size=4, bidirectional=True, pool="last")
    x = library.asarray(draw((5, 3, 2), 8))
    return chain(model, x, (3, 3), lengths_of(option, library), {}, library)


def chain(
    model: Chain,
    x: Any,
    shape: tuple[int, ...],
    given: dict[str, Any],
    training: dict[str, Any],
    library: Library,
) -> Any:
    params = params_of(library, model)
    y, state, cache = model.forward(params, x, **given, **training)
    gradients = model.backward(params, cache, library.asarray(draw(shape, 9)))
    prepared = model(model.prepare(params), x, **given)
    again = None if given else model(params, x, state)
    return y, state, gradients, model(params, x, **given), prepared, again


LAYERS: dict[str, Run] = {
    **{f"{c}-{o}": partial(recurrent, c, o) for c in CELLS for o in OPTIONS},
    "linear": partial(linear, (5, 3, 2), True, None),
    "linear-no_bias": partial(linear, (3, 2), False, None),
    "linear-one_row": partial(linear, (2,), True, None),
    f"linear-{NARROW}": partial(linear, (5, 3, 2), True, NARROW),
    "embedding-int64": partial(embedding, "int64", None),
    "embedding-int32": partial(embedding, "int32", None),
    "embedding-uint8": partial(embedding, "uint8", None),
    f"embedding-{NARROW}": partial(embedding, "int64", NARROW),
    "dropout": partial(dropout, 0.4),
    "dropout-all": partial(dropout, 1.0),
    "dropout-none": partial(dropout, 0.0),
    **{
        f"pool-{kind}-{option}": partial(pool, kind, False, option)
        for kind in ("mean", "last")
        for option in ("plain", "ragged_list", "ragged_own", NARROW)
    },
    "pool-last-bidirectional": partial(pool, "last", True, "ragged_list"),
    "character_model": partial(characters, 0.0),
    "character_model-dropout": partial(characters, 0.3),
    "sequence_model": partial(sequences, "plain"),
    "sequence_model-ragged_list": partial(sequences, "ragged_list"),
    "sequence_model-ragged_own": partial(sequences, "ragged_own"),
}

# --------------------------------------------------------------------------------------------
# Runs: losses and optimizers

QUANTILES = (0.1, 0.5, 0.9)
LOSSES: dict[str, Callable[..., tuple[Any, Any]]] = {
    "softmax_cross_entropy": losses.softmax_cross_entropy,
    "binary_cross_entropy": losses.binary_cross_entropy,
    "squared_error": losses.squared_error,
    "sigmoid_squared_error": losses.sigmoid_squared_error,
    "quantile_loss": partial(losses.quantile_loss, quantiles=QUANTILES),
}


def loss(name: str, masked: bool, reduction: str, dtype: str | None, library: Library) -> Any:
    """A loss, at numbers of which some are large, and with NaN where the mask says so."""
    values = draw((4, 2, 3)) * np.array([1.0, 10.0, 100.0])
    counts = np.ones((4, 2, 3), dtype=bool)
    counts[2:, 1] = False
    if masked:
        values[~counts] = np.nan
    targets: HostArray = np.random.default_rng(1).uniform(0.0, 1.0, (4, 2, 3))
    kind = dtype
    if name == "softmax_cross_entropy":
        targets, kind, counts = np.arange(8).reshape(4, 2) % 3, "int64", counts[..., 0]
    elif name == "quantile_loss":
        targets, counts = targets[..., 0], counts[..., 0]
    mask = {"mask": library.asarray(counts)} if masked else {}
    return LOSSES[name](
        library.asarray(values, dtype), library.asarray(targets, kind), **mask, reduction=reduction
    )


def sigmoid(library: Library) -> Any:
    return losses.sigmoid(library.asarray(draw((3, 2)) * 50.0))


OPTIMIZERS: dict[str, Any] = {
    "sgd": optim.SGD(0.1),
    "momentum": optim.SGD(0.1, 0.9),
    "nesterov": optim.SGD(0.1, 0.9, nesterov=True),
    "adam": optim.Adam(0.02),
    "adam-schedule": optim.Adam(optim.warmup_cosine(0.1, 10, 2)),
    "adamw": optim.AdamW(0.01, weight_decay=0.1),
    "rmsprop": optim.RMSprop(),
}


def numbers(seed: int) -> dict[str, HostArray]:
    return {"a": draw((3, 4), seed), "b": draw((5,), seed + 1), "c": draw((), seed + 2)}


def optimizer(name: str, dtype: str | None, library: Library) -> Any:
    chosen, params = OPTIMIZERS[name], library.tree(numbers(0), dtype)
    state = chosen.init(params)
    for step in range(1, 5):
        params, state = chosen.update(library.tree(numbers(step), dtype), state, params)
    assert state.pop("step") == 4
    return params, state


def clip(scale: float, dtype: str | None, library: Library) -> Any:
    grads = {name: value * scale for name, value in numbers(3).items()}
    return optim.clip_by_global_norm(library.tree(grads, dtype), 1.5)


def average(library: Library) -> Any:
    chosen = optim.Average(0.9)
    state = chosen.init(library.tree(numbers(0)))
    for step in range(1, 4):
        state = chosen.update(state, library.tree(numbers(step)))
    return state["mean"]


def one_step(library: Library) -> Any:
    """What a training loop does: model, loss, gradients, clipping, update."""
    model, chosen = character_model(7, embedding_size=3, hidden_size=4), optim.Adam(0.05)
    params = params_of(library, model)
    x = library.asarray(np.arange(15).reshape(5, 3) % 7, "int64")
    targets = library.asarray(np.arange(1, 16).reshape(5, 3) % 7, "int64")
    state, value = chosen.init(params), None
    for _ in range(2):
        logits, _, cache = model.forward(params, x)
        value, dlogits = losses.softmax_cross_entropy(logits, targets)
        grads, _, _ = model.backward(params, cache, dlogits)
        grads, _ = optim.clip_by_global_norm(grads, 1.0)
        params, state = chosen.update(grads, state, params)
    return params, value


OTHERS: dict[str, Run] = {
    **{
        f"{name}-{reduction}{'-masked' * masked}": partial(loss, name, masked, reduction, None)
        for name in LOSSES
        for reduction in ("mean", "sum")
        for masked in (False, True)
    },
    **{f"{name}-{NARROW}": partial(loss, name, True, "mean", NARROW) for name in LOSSES},
    "sigmoid": sigmoid,
    **{name: partial(optimizer, name, None) for name in OPTIMIZERS},
    **{f"{name}-{NARROW}": partial(optimizer, name, NARROW) for name in OPTIMIZERS},
    "clip": partial(clip, 1.0, None),
    "clip-not": partial(clip, 1e-3, None),
    "clip-zeros": partial(clip, 0.0, None),
    f"clip-{NARROW}": partial(clip, 1.0, NARROW),
    "average": average,
    "one_step": one_step,
}
RUNS = LAYERS | OTHERS
LEFT_OUT = {
    f"{cell}-{option}"
    for cell in CELLS
    for option in OPTIONS
    if option not in ("plain", "ragged_list") and (cell, option) != ("lstm", "ragged_own")
}


def of_each(names: Any, layers: Any = ()) -> list[Any]:
    """Return (library, name) for each library, the oldest versions with those of layers alone."""
    return [
        pytest.param(library, name, id=f"{library}-{name}")
        for library in LIBRARIES
        for name in names
        if library not in ONLY_LAYERS or name in layers
        if library != SLOW or name not in LEFT_OUT
    ]


# What dask says of the products of its chunks.
@pytest.mark.filterwarnings("ignore:Increasing number of chunks")
@pytest.mark.parametrize(("library", "name"), of_each(RUNS, LAYERS), indirect=["library"])
def test_as_numpy(library: Library, name: str) -> None:
    found = flat(RUNS[name](library))
    expected = flat(RUNS[name](numpy_library()))
    library.check(found, expected, 2e-5 if name.endswith(NARROW) else 1e-12)
    library.check_given()


def test_nothing_is_left_out() -> None:
    public = {
        name
        for name, value in vars(losses).items()
        if inspect.isfunction(value)
        and value.__module__ == losses.__name__
        and not name.startswith("_")
    }
    assert public == {*LOSSES, "sigmoid"}
    kinds = {type(one) for one in OPTIMIZERS.values()}
    base = optim.SGD.__mro__[1]
    assert kinds == {
        value
        for name, value in vars(optim).items()
        if inspect.isclass(value) and issubclass(value, base) and not name.startswith("_")
    }
    assert len(LAYERS) > 85


# --------------------------------------------------------------------------------------------
# To the host and back


def layer_and_params(library: Library) -> tuple[Any, Any, Any]:
    layer = make_layer("lstm", bidirectional=True)
    return layer, params_of(library, layer), library.asarray(draw((5, 3, 2), 40))


def to_numpy(library: Library) -> None:
    for host in (draw((3, 2)), np.arange(6), draw((2, 2)) > 0.0, draw(()), draw((0, 2))):
        found = backend.to_numpy(library.asarray(host))
        assert type(found) is np.ndarray
        np.testing.assert_array_equal(found, host, strict=True)


def to_floats(library: Library) -> None:
    arrays = [library.asarray(value) for value in (1.5, -2.0)]
    found = backend.to_floats(arrays)
    assert found == [1.5, -2.0]
    assert all(type(value) is float for value in found)


def are_finite(library: Library) -> None:
    good, bad = library.asarray(draw((3,))), library.asarray([1.0, np.inf])
    assert backend.are_finite({"a": good}) is True
    assert backend.are_finite({"a": good, "b": bad}) is False


def save_and_load(library: Library) -> None:
    layer, params, _ = layer_and_params(library)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        rnn_xp.save(path, layer, params, tensors={"m": params["bias_hh_l0"]})
        loaded = rnn_xp.load(path)
    assert loaded.model == layer
    for name, value in params.items():
        np.testing.assert_array_equal(loaded.params[name], library.host(value), strict=True)
    np.testing.assert_array_equal(loaded.tensors["m"], library.host(params["bias_hh_l0"]))


def init_like(dtype: str, library: Library) -> None:
    x = library.asarray(draw((5, 3, 2)), dtype)
    model: Any
    for model in (
        *(make_layer(cell) for cell in CELLS),
        Linear(2, 3),
        Embedding(5, 3),
        Dropout(0.5),
        character_model(7, embedding_size=3, hidden_size=4),
        sequence_model(2, 3, hidden_size=4),
    ):
        library.check(model.init(0, like=x), model.init(0, dtype=dtype), 0.0)
    library.check_given()


def init_like_an_integer(library: Library) -> None:
    """A model of integers: what `like` has no float for is the caller's to say."""
    x = library.asarray(np.arange(6).reshape(3, 2), "int64")
    model: Any = character_model(7, embedding_size=3, hidden_size=4)
    found = model.init(0, like=x, dtype="float64")
    library.check(found, model.init(0, dtype="float64"), 0.0)


CHECKS: dict[str, Callable[[Library], None]] = {
    "to_numpy": to_numpy,
    "to_floats": to_floats,
    "are_finite": are_finite,
    "save_and_load": save_and_load,
    "init_like-float64": partial(init_like, "float64"),
    "init_like-float32": partial(init_like, "float32"),
    "init_like-integer": init_like_an_integer,
}


@pytest.mark.parametrize(("library", "name"), of_each(CHECKS, CHECKS), indirect=["library"])
def test_host(library: Library, name: str) -> None:
    CHECKS[name](library)


# --------------------------------------------------------------------------------------------
# What is refused


def other_than(library: Library) -> Library:
    return standard_library() if library.xp is np else numpy_library()


def x_of_another(library: Library) -> None:
    layer, params, _ = layer_and_params(library)
    layer(params, other_than(library).asarray(draw((5, 3, 2))))


def x_of_another_in_training(library: Library) -> None:
    layer, params, _ = layer_and_params(library)
    layer.forward(params, other_than(library).asarray(draw((5, 3, 2))))


def params_of_another(library: Library) -> None:
    layer, _, x = layer_and_params(library)
    layer(params_of(other_than(library), layer), x)


def one_parameter_of_another(library: Library) -> None:
    layer, params, x = layer_and_params(library)
    layer({**params, "bias_hh_l0": other_than(library).asarray(draw((16,)))}, x)


def state_of_another(library: Library) -> None:
    layer, params, x = layer_and_params(library)
    h = other_than(library).asarray(draw((2, 3, 4)))
    layer(params, x, (h, h))


def gradient_of_another(library: Library) -> None:
    layer, params, x = layer_and_params(library)
    _, _, cache = layer.forward(params, x)
    layer.backward(params, cache, other_than(library).asarray(draw((5, 3, 8))))


def linear_of_another(library: Library) -> None:
    layer = Linear(2, 3)
    layer(params_of(library, layer), other_than(library).asarray(draw((3, 2))))


def integers_of_another(library: Library) -> None:
    layer = Embedding(6, 3)
    layer(params_of(library, layer), other_than(library).asarray([1, 2], "int64"))


def model_of_another(library: Library) -> None:
    model = character_model(7, embedding_size=3, hidden_size=4)
    x = other_than(library).asarray(np.ones((5, 3)), "int64")
    model.forward(params_of(library, model), x)


def targets_of_another(library: Library) -> None:
    other = other_than(library)
    losses.squared_error(library.asarray(draw((3, 2))), other.asarray(draw((3, 2))))


def mask_of_another(library: Library) -> None:
    a, mask = (
        library.asarray(draw((3, 2))),
        other_than(library).asarray(np.ones((3, 2), dtype=bool)),
    )
    losses.squared_error(a, a, mask=mask)


def gradients_to_update_of_another(library: Library) -> None:
    params, chosen = library.tree(numbers(0)), optim.Adam()
    chosen.update(other_than(library).tree(numbers(1)), chosen.init(params), params)


def gradients_to_clip_of_another(library: Library) -> None:
    grads = {**library.tree(numbers(0)), "d": other_than(library).asarray(draw((2,)))}
    optim.clip_by_global_norm(grads, 1.0)


MIXED: dict[str, Callable[[Library], None]] = {
    call.__name__: call
    for call in (
        x_of_another,
        x_of_another_in_training,
        params_of_another,
        one_parameter_of_another,
        state_of_another,
        gradient_of_another,
        linear_of_another,
        integers_of_another,
        model_of_another,
        targets_of_another,
        mask_of_another,
        gradients_to_update_of_another,
        gradients_to_clip_of_another,
    )
}


@pytest.mark.parametrize(("library", "name"), of_each(MIXED), indirect=["library"])
def test_libraries_are_not_mixed(library: Library, name: str) -> None:
    with pytest.raises(TypeError) as caught:
        MIXED[name](library)
    for one in (library, other_than(library)):
        assert one.called in str(caught.value), f"{one.called} is not named: {caught.value}"
    library.check_given()


def x_of_another_dtype(library: Library) -> None:
    layer, params, _ = layer_and_params(library)
    layer(params, library.asarray(draw((5, 3, 2)), "float32"))


def x_of_integers(library: Library) -> None:
    layer, params, _ = layer_and_params(library)
    layer(params, library.asarray(np.ones((5, 3, 2)), "int64"))


def params_of_integers(library: Library) -> None:
    layer, _, _ = layer_and_params(library)
    layer(params_of(library, layer, "int64"), library.asarray(np.ones((5, 3, 2)), "int64"))


def params_of_complex_numbers(library: Library) -> None:
    layer, _, _ = layer_and_params(library)
    layer(
        params_of(library, layer, "complex128"),
        library.asarray(np.ones((5, 3, 2)), "complex128"),
    )


def state_of_another_dtype(library: Library) -> None:
    layer, params, x = layer_and_params(library)
    h = library.asarray(draw((2, 3, 4)), "float32")
    layer(params, x, (h, h))


def gradient_of_another_dtype(library: Library) -> None:
    layer, params, x = layer_and_params(library)
    _, _, cache = layer.forward(params, x)
    layer.backward(params, cache, library.asarray(draw((5, 3, 8)), "float32"))


def lengths_of_floats(library: Library) -> None:
    layer, params, x = layer_and_params(library)
    layer(params, x, lengths=library.asarray([5.0, 2.0, 1.0]))


def embedding_of_floats(library: Library) -> None:
    layer = Embedding(6, 3)
    layer(params_of(library, layer), library.asarray([1.0, 2.0]))


def embedding_of_booleans(library: Library) -> None:
    layer = Embedding(6, 3)
    layer(params_of(library, layer), library.asarray([True, False]))


def dropout_of_integers(library: Library) -> None:
    Dropout(0.5).forward({}, library.asarray([1, 2], "int64"), dropout_seed=0)


def targets_of_floats(library: Library) -> None:
    losses.softmax_cross_entropy(library.asarray(draw((3, 2))), library.asarray(np.ones(3)))


def logits_of_integers(library: Library) -> None:
    a = library.asarray(np.ones((3, 2)), "int64")
    losses.binary_cross_entropy(a, a)


def mask_of_integers(library: Library) -> None:
    a, mask = library.asarray(draw((3, 2))), library.asarray(np.ones((3, 2)), "int64")
    losses.squared_error(a, a, mask=mask)


def gradients_of_another_dtype(library: Library) -> None:
    params, chosen = library.tree(numbers(0)), optim.SGD(0.1)
    chosen.update(library.tree(numbers(1), "float32"), chosen.init(params), params)


WRONG_DTYPES: dict[str, Callable[[Library], None]] = {
    call.__name__: call
    for call in (
        x_of_another_dtype,
        x_of_integers,
        params_of_integers,
        params_of_complex_numbers,
        state_of_another_dtype,
        gradient_of_another_dtype,
        lengths_of_floats,
        embedding_of_floats,
        embedding_of_booleans,
        dropout_of_integers,
        targets_of_floats,
        logits_of_integers,
        mask_of_integers,
        gradients_of_another_dtype,
    )
}
SAYS = r"dtype|integer|float|boolean"
"""The package's own words, not a library's."""


@pytest.mark.parametrize(("library", "name"), of_each(WRONG_DTYPES), indirect=["library"])
def test_wrong_dtypes(library: Library, name: str) -> None:
    with pytest.raises(TypeError, match=SAYS) as caught:
        WRONG_DTYPES[name](library)
    raised = inspect.getinnerframes(caught.tb)[-1].filename
    assert Path(rnn_xp.__file__).parent in Path(raised).parents, f"raised in {raised}"


def test_lengths_out_of_range() -> None:
    library = standard_library()
    layer, params, x = layer_and_params(library)
    with pytest.raises(ValueError, match=r"lengths must lie in 1\.\.5"):
        layer(params, x, lengths=library.asarray([1, 6, 2], "int64"))


@pytest.mark.parametrize("library", LIBRARIES, indirect=True)
def test_the_page(library: Library) -> None:
    """The function in docs/arrays.md runs as it stands, on every library."""
    page = Path(__file__).parents[1] / "docs" / "arrays.md"
    code = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(compile(code, str(page), "exec"), found)
    y = found["predict"](library.asarray(found["x"]), lengths=[5, 2])
    library.check({"y": y}, {"y": found["y"]}, 1e-12)


# --------------------------------------------------------------------------------------------
# Two libraries of one name


@pytest.mark.parametrize("make", [standard_library, marray_library])
def test_two_libraries_of_one_name(make: Callable[[], Library]) -> None:
    one, other = make(), make()
    assert one.xp.__name__ == other.xp.__name__
    assert one.xp is not other.xp
    for name in ("gru-ragged_list", "rnn_relu-plain", "embedding-int64", "one_step"):
        expected = flat(RUNS[name](numpy_library()))
        for library in (one, other, one):
            library.check(flat(RUNS[name](library)), expected, 1e-12)
    layer, params, _ = layer_and_params(one)
    with pytest.raises(TypeError):
        layer(params, other.asarray(draw((5, 3, 2))))
    with pytest.raises(TypeError):
        losses.squared_error(one.asarray(draw((3,))), other.asarray(draw((3,))))
    with pytest.raises(TypeError):
        optim.clip_by_global_norm(
            {"a": one.asarray(draw((2,))), "b": other.asarray(draw((2,)))}, 1.0
        )


# --------------------------------------------------------------------------------------------
# What single libraries have of their own


def test_marray_masks() -> None:
    """A product leaves masked numbers out; where nothing is left, the result is masked, too."""
    library = marray_library()
    layer = make_layer("lstm")
    params, host = params_of(library, layer), draw((5, 3, 2), 40)
    mask = np.zeros(host.shape, dtype=bool)
    mask[1, 0, 1] = True
    y, _ = layer(params, library.xp.asarray(host, mask=mask))
    expected, _ = layer(params_of(numpy_library(), layer), np.where(mask, 0.0, host))
    np.testing.assert_allclose(y.data, expected, rtol=1e-12, atol=1e-12)
    assert not y.mask.any()
    mask[1, 0, 0] = True  # a step that nothing is known of
    y, (h, c) = layer(params, library.xp.asarray(host, mask=mask))
    for made in (y.mask[1:, 0], h.mask[:, 0], c.mask[:, 0]):
        assert made.all()
    for made in (y.mask[0], y.mask[:, 1:], h.mask[:, 1:], c.mask[:, 1:]):
        assert not made.any()


def test_dask_computes_nothing() -> None:
    library = dask_library(2)
    dask = need_module("dask")

    def compute(*args: Any, **kwargs: Any) -> None:
        pytest.fail("something was computed")

    layer, params, x = layer_and_params(library)
    dy = library.asarray(draw((5, 3, 8)))
    with dask.config.set(scheduler=compute):
        y, _, cache = layer.forward(params, x, lengths=[2, 5, 3])
        layer.backward(params, cache, dy)
        losses.squared_error(y, y)
        losses.binary_cross_entropy(y, y)
        optim.Adam().update(params, optim.Adam().init(params), params)
    on_numpy = params_of(numpy_library(), layer)
    expected, _ = layer(on_numpy, draw((5, 3, 2), 40), lengths=[2, 5, 3])
    library.check({"y": y}, {"y": expected}, 1e-12)


TRACED = ("rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before")


def run_graph(outputs: dict[str, Any], inputs: dict[str, tuple[Any, HostArray]]) -> dict[str, Any]:
    """Build an ONNX graph of what ndonnx traced, and return what ONNX Runtime computes."""
    ndx, runtime = need_module("ndonnx"), need_module("onnxruntime")
    arrays = {name: array for name, (array, _) in inputs.items()}
    model = ndx.build(arrays, outputs, drop_unused=True)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {given.name: inputs[given.name][1] for given in session.get_inputs()}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


@pytest.mark.parametrize(
    ("cell", "ragged"),
    [("rnn_tanh", False), ("lstm", False), *((cell, True) for cell in TRACED)],
)
def test_ndonnx_traces_training(cell: str, ragged: bool) -> None:
    ndx = need_module("ndonnx")
    need_module("onnxruntime")
    problem = make_problem(cell, steps=3)  # few: to trace a product takes it a third of a second
    layer, lengths = problem.layer, [2, 3, 1] if ragged else None
    inputs: dict[str, tuple[Any, HostArray]] = {}

    def argument(name: str, host: HostArray) -> Any:
        array = ndx.argument(shape=host.shape, dtype=ndx.float64)
        inputs[name] = (array, host)
        return array

    def run(given: Callable[[str, HostArray], Any]) -> dict[str, Any]:
        params = {name: given(f"p.{name}", host) for name, host in problem.params.items()}
        x, dy = given("x", problem.x), given("dy", problem.dy)
        state = as_state(tuple(given(f"s{k}", part) for k, part in enumerate(problem.state)))
        y, last, cache = layer.forward(params, x, state, lengths=lengths)
        dparams, dx, dstate = layer.backward(params, cache, dy)
        found = flat({"y": y, "last": last, "dparams": dparams, "dx": dx, "dstate": dstate})
        return {f"out{name}": value for name, value in found.items()}

    traced = run(argument)
    expected = run(lambda _, host: host)
    for name, value in traced.items():
        assert type(value) is ndx.Array
        assert value.dtype == ndx.float64
        assert value.shape == expected[name].shape
    found = run_graph(traced, inputs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    "name",
    [
        *(f"{name}-mean-masked" for name in LOSSES),
        *("linear", "dropout", "pool-mean-ragged_list", "sgd", "adam", "rmsprop", "clip"),
    ],
)
def test_ndonnx_traces(name: str) -> None:
    ndx = need_module("ndonnx")
    need_module("onnxruntime")
    inputs: dict[str, tuple[Any, HostArray]] = {}

    def argument(host: HostArray) -> Any:
        array = ndx.argument(shape=host.shape, dtype=getattr(ndx, host.dtype.name))
        inputs[f"in{len(inputs)}"] = (array, host)
        return array

    library = Library("ndonnx", ndx, ndx.Array, argument, lambda arrays: computed(arrays, inputs))
    library.check(flat(RUNS[name](library)), flat(RUNS[name](numpy_library())), 1e-12)


def computed(
    arrays: Sequence[Any], inputs: dict[str, tuple[Any, HostArray]]
) -> Sequence[HostArray]:
    """Return the values of arrays that ndonnx traced."""
    outputs = {f"out{k}": array for k, array in enumerate(arrays)}
    found = run_graph(outputs, inputs)
    return [found[name] for name in outputs]


def test_ndonnx_traces_a_model_and_its_loss() -> None:
    ndx = need_module("ndonnx")
    need_module("onnxruntime")
    model = character_model(7, cell="lstm", embedding_size=3, hidden_size=4)
    hosts = params_of(numpy_library(), model)
    x, targets = np.arange(15).reshape(5, 3) % 7, np.arange(1, 16).reshape(5, 3) % 7
    inputs = {
        name: (ndx.argument(shape=host.shape, dtype=ndx.float64), host)
        for name, host in hosts.items()
    }
    numbers_of = {"x": x, "targets": targets}
    inputs |= {
        name: (ndx.argument(shape=host.shape, dtype=ndx.int64), host)
        for name, host in numbers_of.items()
    }

    def run(params: Any, x: Any, targets: Any) -> dict[str, Any]:
        logits, _, cache = model.forward(params, x)
        value, dlogits = losses.softmax_cross_entropy(logits, targets)
        grads, _, _ = model.backward(params, cache, dlogits)
        return {"loss": value, **{f"d.{name}": grad for name, grad in grads.items()}}

    traced = {name: array for name, (array, _) in inputs.items()}
    found = run_graph(
        run({name: traced[name] for name in hosts}, traced["x"], traced["targets"]), inputs
    )
    for name, value in run(hosts, x, targets).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-12, err_msg=name)


# --------------------------------------------------------------------------------------------
# The suite's own library


@pytest.mark.parametrize("version", standard_only.VERSIONS)
def test_the_library_refuses_the_rest(version: str) -> None:
    xp, other = (standard_only.make_namespace(version) for _ in range(2))
    x = xp.asarray(np.arange(6.0).reshape(2, 3))
    refused: list[Callable[[], Any]] = [
        lambda: x + other.asarray(1.0),
        lambda: x + np.ones(3),
        lambda: np.ones(3) * x,
        lambda: np.float64(2.0) * x,
        lambda: x + True,
        lambda: x * xp.asarray([1, 2, 3]),
        lambda: x[0],
        lambda: x[0:5, :],
        lambda: x[x > 0.0],
        lambda: x[xp.asarray([0]), :],
        lambda: x.__iadd__(x),
        lambda: x.__setitem__(..., 0.0),
        lambda: bool(x),
        lambda: float(x),
        lambda: len(x),
        lambda: list(x),
        lambda: x is None or x == None,  # noqa: E711
        lambda: memoryview(x),
        lambda: xp.where(x > 0.0, x, 0.0),
        lambda: xp.sum(x, 0),
        lambda: xp.concat(iter([x])),
        lambda: xp.reshape(x, [6]),
        lambda: xp.zeros((np.int64(2),)),
        lambda: xp.asarray(np.ones(2, dtype=np.float16)),
        lambda: xp.asarray([x]),
    ]
    for k, call in enumerate(refused):
        with pytest.raises((TypeError, IndexError)):
            pytest.fail(f"number {k} was not refused: {call()}")
    for name in ("__array__", "__array_interface__", "__buffer__", "astype", "reshape", "sum"):
        assert not hasattr(x, name)
    for name in ("name", "kind", "itemsize", "char"):
        assert not hasattr(x.dtype, name)
    assert hasattr(xp, "maximum") == (version == "2023.12")
    assert x.dtype == xp.float64 != xp.float32
    assert x.dtype != other.float64


@pytest.mark.parametrize("version", standard_only.VERSIONS)
def test_the_library_computes(version: str) -> None:
    xp = standard_only.make_namespace(version)
    host = draw((2, 3))
    x = xp.asarray(host)
    found = {
        "operators": ((2.0 - x * x) / 3.0, (2.0 - host * host) / 3.0),
        "matmul": (x @ x.T, host @ host.T),
        "index": (x[None, ..., ::-1], host[None, ..., ::-1]),
        "where": (xp.where(x > 0.0, x, -x), np.abs(host)),
        "take": (xp.take(x, xp.asarray([2, 0]), axis=1), host[:, [2, 0]]),
        "stack": (xp.stack([x, x], axis=1), np.stack([host, host], axis=1)),
        "argmax": (xp.argmax(x, axis=1), np.argmax(host, axis=1)),
        "sum": (xp.sum(x, axis=0), host.sum(axis=0)),
        "dlpack": (xp.from_dlpack(x), host),
    }
    for name, (array, expected) in found.items():
        np.testing.assert_allclose(standard_only.to_host(array), expected, err_msg=name)
    np.testing.assert_array_equal(np.from_dlpack(x), host)
    assert (xp.sum(xp.ones((2,), dtype=xp.float32)).dtype == xp.float32) == (version == "2023.12")
