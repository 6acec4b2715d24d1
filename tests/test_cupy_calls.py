"""What CuPy is asked for, held against the installed CuPy without a GPU: see standin.py.

Every call of training a model, operators and methods included; no copy to the host that is not
asked for; everything on the device of the arrays.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cuda_on_cpu
import numpy as np
import pytest
import standin
from targets import need_module

from rnn_xp import GRU, LSTM, RNN, Pool, character_model, losses, optim
from rnn_xp.backend import Backend, BackendError, select
from rnn_xp.cli import main
from rnn_xp.engines.cuda import engine, fused, persistent, plan, training, trial
from rnn_xp.engines.cuda.plan import Limits
from rnn_xp.engines.cuda.streams import one_by_one
from rnn_xp.models import Chain, token_chain
from rnn_xp.onnx import export
from rnn_xp.onnx.interface import PreparedModel
from rnn_xp.random import dropout_mask
from rnn_xp.training import Report, Settings, Trainer

NUMPY = select("numpy")


@pytest.fixture(scope="module")
def persistent_kernels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    library = cuda_on_cpu.Library(persistent.source, tmp_path_factory.mktemp("persistent"))
    return library.kernels()


@pytest.fixture(params=["persistent", "kernels", "core"])
def xp(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    kernels: Any,
    persistent_kernels: Any,
    training_kernels: Any,
) -> Any:
    """The stand-in, with all kernels, with those of a step, and with the core alone."""
    need_module("ml_dtypes")
    standin.xp.start(need_module("cupy"), need_module("array_api_compat.cupy"))
    if request.param == "core":
        monkeypatch.setenv("RNN_XP_ACCELERATE", "0")
    monkeypatch.setattr(fused, "compiled", kernels)
    monkeypatch.setattr(persistent, "compiled", persistent_kernels)
    monkeypatch.setattr(training, "compiled", training_kernels)
    limits = Limits(2, 60000, request.param == "persistent")
    monkeypatch.setattr(persistent, "limits", lambda: limits)
    monkeypatch.setattr(trial, "passes", lambda *_: True)  # which reads its errors once
    monkeypatch.setattr(engine, "streams", one_by_one)
    monkeypatch.setattr(plan, "BEGIN", 0.1)  # so that few steps are enough to run levels at once
    monkeypatch.setattr(plan, "RUN", 0.0)
    for choice in (engine.choose, training.choose):
        choice.cache_clear()
    yield standin.xp
    for choice in (engine.choose, training.choose):
        choice.cache_clear()


def backend(index: int = 0) -> Backend:
    return Backend("cupy", standin.xp, standin.Device(index), f"cuda:{index}")


def moved(params: dict[str, Any], to: Backend, dtype: str) -> dict[str, Any]:
    return {name: to.asarray(value, dtype) for name, value in params.items()}


LAYERS: dict[str, RNN | LSTM | GRU] = {
    "rnn": RNN(6, 8, 2, dropout=0.3),
    "relu": RNN(6, 8, nonlinearity="relu", bias=False),
    "lstm": LSTM(6, 8, 2, bidirectional=True, dropout=0.3),
    "projected": LSTM(6, 8, proj_size=3),
    "peephole": LSTM(6, 8, peephole=True),
    "gru": GRU(6, 8, 2, dropout=0.3),
    "deep": GRU(6, 8, 2),
    "reset before": GRU(6, 8, bidirectional=True, reset_after=False),
}
OPTIMIZERS = {  # float16 knows no 1e-8
    "adamw": optim.AdamW(eps=1e-3),
    "sgd": optim.SGD(0.1, 0.9),
    "rmsprop": optim.RMSprop(eps=1e-3),
}


def step(model: Chain, params: Any, to: Backend, optimizer: Any, *, ragged: bool) -> list[Any]:
    """Train one step; return the loss, the norm and the parameters."""
    rng = np.random.default_rng(0)
    x, targets = (rng.integers(0, 11, (5, 3)) for _ in range(2))
    lengths = np.asarray([5, 2, 4]) if ragged else None
    mask = None if lengths is None else np.arange(5)[:, None] < lengths
    y, state, cache = model.forward(params, to.asarray(x), lengths=lengths, dropout_seed=1)
    y, state, cache = model.forward(params, to.asarray(x), state, lengths=lengths, dropout_seed=1)
    loss, dy = losses.softmax_cross_entropy(
        y, to.asarray(targets), mask=None if mask is None else to.asarray(mask)
    )
    gradients, _, _ = model.backward(params, cache, dy, state)
    gradients, norm = optim.clip_by_global_norm(gradients, 1.0)
    params, _ = optimizer.update(gradients, optimizer.init(params), params)
    return [loss, norm, *params.values()]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_training_step(
    layer: str, ragged: bool, optimizer: str, xp: Any, request: pytest.FixtureRequest
) -> None:
    model, rule = token_chain(11, LAYERS[layer], 11), OPTIMIZERS[optimizer]
    params = model.init(3, dtype="float64")
    expected = step(model, params, NUMPY, rule, ragged=ragged)
    xp.reads.clear()
    for dtype, limit in (("float64", 1e-11), ("float32", 1e-4), ("float16", 3e-2)):
        to = backend()
        xp.launches.clear()
        found = step(model, moved(params, to, dtype), to, rule, ragged=ragged)
        if layer == "deep" and request.node.callspec.params["xp"] == "persistent":
            # Two calls, two levels, chunks of one step each.
            ran = 0 if dtype == "float64" else 2 * 2 * 5
            assert xp.launches["gru_all_forward"] == ran
        assert xp.reads == []
        for a, b in zip(found, expected, strict=True):
            assert isinstance(a, standin.Array)
            assert a.dtype == dtype
            np.testing.assert_allclose(a._host, b, rtol=limit, atol=limit)


@pytest.mark.parametrize("xp", ["persistent", "kernels"], indirect=True)
@pytest.mark.parametrize("lengths", [None, (5, 2, 4)])
@pytest.mark.parametrize("name", ["rnn", "lstm", "gru", "reset before"])
def test_a_layer_in_bfloat16(name: str, lengths: tuple[int, ...] | None, xp: Any) -> None:
    layer, to, rng = LAYERS[name], backend(), np.random.default_rng(0)
    host = layer.init(3, dtype="float64")
    x, dy = (rng.standard_normal((5, 3, size)) for size in (6, layer.output_size))
    params = moved(host, to, "bfloat16")
    y, _, cache = layer.forward(params, to.asarray(x, "bfloat16"), lengths=lengths)
    gradients, dx, _ = layer.backward(params, cache, to.asarray(dy, "bfloat16"))
    assert xp.reads == []
    y_host, _, cache = layer.forward(host, x, lengths=lengths)
    exact, dx_host, _ = layer.backward(host, cache, dy)
    pairs = [(y, y_host), (dx, dx_host), *((gradients[key], exact[key]) for key in exact)]
    for found, expected in pairs:
        assert found.dtype.name == "bfloat16"
        numbers, size = found._host.astype(np.float64), np.abs(expected).max()
        np.testing.assert_allclose(numbers, expected, rtol=0, atol=0.05 * size)


def test_bfloat16_needs_another_package_and_a_newer_cupy(
    xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "__version__", "2.1.3")
    with pytest.raises(
        ValueError, match=r"bfloat16 on CuPy needs NumPy 2\.2 or later, here is 2\.1"
    ):
        backend().dtype("bfloat16")
    monkeypatch.setattr(need_module("cupy"), "__version__", "13.6.0")
    with pytest.raises(ValueError, match=r"bfloat16 needs CuPy 14 or later, here is 13\.6\.0"):
        backend().dtype("bfloat16")
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ValueError, match="bfloat16 on CuPy needs ml_dtypes"):
        backend().dtype("bfloat16")


def unbatched(put: Callable[[Any], Any]) -> Any:
    layer = LSTM(6, 8)
    params = {name: put(a) for name, a in layer.init(0, dtype="float64").items()}
    x = np.random.default_rng(0).standard_normal((5, 6))
    y, state, cache = layer.forward(params, put(x))
    dparams, dx, first = layer.backward(params, cache, y, state)
    return y, *state, *dparams.values(), dx, *first


def streamed(put: Callable[[Any], Any]) -> Any:
    layer = GRU(6, 8, 2)
    params = {name: put(a) for name, a in layer.init(0, dtype="float64").items()}
    prepared, state, outputs = layer.prepare(params), None, []
    for row in np.random.default_rng(0).standard_normal((4, 1, 3, 6)):
        y, state = layer(prepared, put(row), state)
        outputs.append(y)
    return *outputs, state


def pooled(kind: str, *, bidirectional: bool = False) -> Any:
    def call(put: Callable[[Any], Any]) -> Any:
        x = put(np.random.default_rng(0).standard_normal((5, 3, 4)))
        pool = Pool(kind, bidirectional=bidirectional)
        y, cache = pool.forward({}, x, lengths=[5, 2, 3])
        return y, pool.backward({}, cache, y)[1]

    return call


def lost(loss: Callable[..., Any], *more: Any, outputs: int = 1) -> Any:
    def call(put: Callable[[Any], Any]) -> Any:
        rng = np.random.default_rng(0)
        y = rng.standard_normal((5, 3, outputs) if more else (5, 3))
        mask = put(np.arange(5)[:, None] < np.asarray([5, 2, 3]))
        return loss(put(y), put(rng.uniform(0, 1, (5, 3))), *more, mask=mask)

    return call


CALLS: dict[str, Callable[[Callable[[Any], Any]], Any]] = {
    "without a batch": unbatched,
    "step by step": streamed,
    "pool, mean": pooled("mean"),
    "pool, last": pooled("last"),
    "pool, last of two directions": pooled("last", bidirectional=True),
    "binary cross-entropy": lost(losses.binary_cross_entropy),
    "squared error": lost(losses.squared_error),
    "squared error of a sigmoid": lost(losses.sigmoid_squared_error),
    "quantile loss": lost(losses.quantile_loss, (0.1, 0.5, 0.9), outputs=3),
}


@pytest.mark.parametrize("call", CALLS)
def test_other_calls_read_nothing_and_give_the_same(call: str, xp: Any) -> None:
    to = backend()
    expected = CALLS[call](np.copy)
    xp.reads.clear()
    found = CALLS[call](to.asarray)
    assert xp.reads == []
    for a, b in zip(found, expected, strict=True):
        assert isinstance(a, standin.Array)
        np.testing.assert_allclose(a._host, b, rtol=1e-11, atol=1e-12)


def test_arrays_of_two_libraries_or_devices_are_refused(xp: Any) -> None:
    layer, to = GRU(6, 8), backend()
    params = moved(layer.init(0), to, "float32")
    x = np.ones((4, 2, 6), dtype=np.float32)
    with pytest.raises(TypeError, match="x is a numpy ndarray but params is a"):
        layer(params, x)
    with pytest.raises(TypeError, match="h is a numpy ndarray but params is a"):
        layer(params, to.asarray(x), np.zeros((1, 2, 8), dtype=np.float32))
    with pytest.raises(ValueError, match="x is on the device"):
        layer(params, backend(1).asarray(x))
    elsewhere = {**params, "bias_hh_l0": backend(1).asarray(np.zeros(24, dtype=np.float32))}
    with pytest.raises(ValueError, match="bias_hh_l0 is on the device"):
        layer(elsewhere, to.asarray(x))
    with pytest.raises(TypeError, match="numpy"):
        losses.squared_error(to.asarray(x), x)
    with pytest.raises(TypeError, match="numpy"):
        optim.SGD(0.1).update({"a": x}, optim.SGD(0.1).init({"a": x}), {"a": to.asarray(x)})
    assert xp.reads == []


def trained(to: Backend, reports: list[Report], reads: Callable[[], int]) -> tuple[Any, list[int]]:
    """Train a small text model; return the progress, and the reads after each step."""
    model = character_model(11, embedding_size=4, hidden_size=6, num_layers=2, dropout=0.2)
    codes = np.random.default_rng(1).integers(0, 11, 700)
    settings = Settings(passes=2, batch_size=4, time_steps=8, average=0.9)
    trainer = Trainer(model, to, "float64", codes[:600], codes[600:], settings)
    progress, after = trainer.start(), list[int]()
    trainer.run(
        progress,
        on_step=lambda _: after.append(reads()),
        on_report=lambda report, _: reports.append(report),
    )
    return progress, after


def test_training_reads_nothing_within_a_pass(xp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = dict[str, Any]()
    monkeypatch.setattr(Chain, "init", lambda self, *_, **__: drawn)  # CuPy is not to be found here
    model = character_model(11, embedding_size=4, hidden_size=6, num_layers=2, dropout=0.2)
    drawn = init(model)
    expected = list[Report]()
    host, _ = trained(NUMPY, expected, lambda: 0)
    to, found = backend(1), list[Report]()  # not the current one
    drawn = moved(drawn, to, "float64")
    progress, reads = trained(to, found, lambda: len(xp.reads))
    steps = len(reads) // 2
    assert reads[:steps] == [reads[0]] * steps  # the first evaluation comes after them
    assert reads[steps:] == [reads[steps]] * steps
    assert reads[0] == 0
    for a, b in zip(found, expected, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-9)
        assert a.validation_loss == pytest.approx(b.validation_loss, rel=1e-9)
        assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=1e-9)
    for name, value in host.best_params.items():
        np.testing.assert_allclose(progress.best_params[name]._host, value, rtol=1e-8, atol=1e-10)


def init(model: Chain) -> dict[str, Any]:
    """Draw parameters without the method that a test stands in for."""
    return {
        name: np.random.default_rng(k).uniform(-0.4, 0.4, shape)
        for k, (name, shape) in enumerate(model.shapes.items())
    }


def test_the_device_that_the_command_line_asks_for_is_the_current_one(
    xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def chosen(*given: Any) -> Backend:
        seen.append((*given, xp.current))
        return backend(1)

    def asked(*given: Any) -> Backend:
        seen.append((*given, xp.current))
        raise BackendError("enough")

    monkeypatch.setattr("rnn_xp.cli.select", chosen)
    monkeypatch.setattr("rnn_xp.cli.demo.select", asked)
    assert main(["demo", "--backend", "cupy", "--device", "cuda:1"]) == 2
    assert seen == [("cupy", "cuda:1", 0), ("cupy", "cuda:1", 1)]
    assert xp.current == 0
    assert main(["demo", "--backend", "cupy"]) == 2
    assert seen[2:] == [("cupy", None, 0)]


@pytest.mark.parametrize("layer", LAYERS)
def test_everything_is_on_the_device_of_the_arrays(layer: str, xp: Any) -> None:
    """Another device than the current one: what is created without its device is refused."""
    model = token_chain(11, LAYERS[layer], 11)
    params = model.init(3, dtype="float64")
    to = backend(1)
    found = step(model, moved(params, to, "float64"), to, optim.Adam(), ragged=True)
    assert {a.device for a in found} == {to.device}
    assert xp.current == 0


@pytest.mark.parametrize("call", CALLS)
def test_other_calls_stay_on_the_device_of_the_arrays(call: str, xp: Any) -> None:
    to = backend(1)
    found = CALLS[call](to.asarray)
    assert {a.device for a in found} == {to.device}
    assert xp.current == 0


def test_every_optimizer_stays_on_the_device_of_the_arrays(xp: Any) -> None:
    to = backend(1)
    params = {"w": to.asarray(np.ones((2, 3)))}
    for rule in (*OPTIMIZERS.values(), optim.Adam()):
        state = rule.init(params)
        new, state = rule.update(params, state, params)
        arrays = [*new.values(), *(a for slot in rule._slots() for a in state[slot].values())]
        assert {a.device for a in arrays} == {to.device}
    mean = optim.Average().update(optim.Average().init(params), params)
    assert mean["mean"]["w"].device == to.device
    assert xp.current == 0


@pytest.mark.parametrize("xp", ["persistent", "kernels"], indirect=True)
@pytest.mark.parametrize("layer", [LSTM(6, 8, 2), GRU(6, 8, bidirectional=True)], ids=str)
def test_the_kernels_run_on_the_device_of_their_arrays(
    layer: Any, xp: Any, request: pytest.FixtureRequest
) -> None:
    """A layer makes it the current one: on another one every launch is refused."""
    to = backend(1)
    params = moved(layer.init(0), to, "float32")
    x = to.asarray(np.ones((4, 2, 6), dtype=np.float32))
    y, _, cache = layer.forward(params, x)
    gradients, dx, _ = layer.backward(params, cache, y)
    inferred, again = layer(params, x)[0], layer(layer.prepare(params), x)[0]
    assert {a.device for a in (y, *gradients.values(), dx, inferred, again)} == {to.device}
    assert xp.current == 0
    kind, name = request.node.callspec.params["xp"], type(layer).__name__.lower()
    whole = "all_" if kind == "persistent" else ""
    assert {f"{name}_{whole}{part}" for part in ("forward", "backward")} <= set(xp.launches)


def test_an_onnx_model_runs_on_its_device(xp: Any, tmp_path: Path) -> None:
    onnx = need_module("onnx")
    layer, to = GRU(6, 8, bidirectional=True), backend(1)
    params = layer.init(0)
    export(layer, params, tmp_path / "gru.onnx")
    prepared = PreparedModel(onnx.load(tmp_path / "gru.onnx"), to)
    x = np.random.default_rng(0).standard_normal((4, 2, 6)).astype(np.float32)
    y, *_ = prepared.run(dict.fromkeys(prepared.inputs, x))
    np.testing.assert_allclose(y, layer(params, x)[0], rtol=1e-5, atol=1e-5)
    assert xp.current == 0


@pytest.mark.parametrize("xp", ["persistent"], indirect=True)
def test_each_device_has_an_engine_of_its_own(xp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was chosen on one device is not taken on the next."""
    able = Limits(2, 60000, cooperative=True)
    monkeypatch.setattr(
        persistent, "limits", lambda: able._replace(cooperative=xp.current == 0, device=xp.current)
    )
    engine.choose.cache_clear()
    layer, ran = GRU(6, 8), []
    for index in (0, 1, 0):
        to = backend(index)
        x = to.asarray(np.ones((4, 2, 6), dtype=np.float32))
        xp.launches.clear()
        layer(moved(layer.init(0), to, "float32"), x)
        ran.append(xp.launches["gru_all_forward"])
    assert ran == [1, 0, 1]


@pytest.mark.parametrize("xp", ["persistent"], indirect=True)
@pytest.mark.parametrize("part", ["compiled", "launched"])
@pytest.mark.parametrize("levels", [1, 2])
def test_a_kernel_that_cannot_run_is_left(
    levels: int, part: str, xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels of a step take its place, and a warning says so once."""
    layer, to = GRU(6, 8, levels), backend()
    params = moved(layer.init(0), to, "float32")
    x = to.asarray(np.ones((4, 2, 6), dtype=np.float32))
    expected, _ = layer(params, x)
    assert xp.launches["gru_all_forward"]
    tried: list[str] = []

    def compiled(name: str, options: tuple[str, ...]) -> Any:
        def kernel(*_: Any, **__: Any) -> None:
            raise RuntimeError("COOPERATIVE_LAUNCH_TOO_LARGE\nand more")

        tried.append(name)
        return kernel if part == "launched" else kernel()

    monkeypatch.setattr(persistent, "compiled", compiled)
    engine.choose.cache_clear()
    line = r"hidden_size=8 cannot run here.*: RuntimeError: COOPERATIVE_LAUNCH_TOO_LARGE$"
    with pytest.warns(trial.TrialWarning, match=line):
        y, _, cache = layer.forward(params, x)
    np.testing.assert_allclose(y._host, expected._host, rtol=1e-5, atol=1e-6)
    once = len(tried)
    layer.backward(params, cache, y)
    layer(params, x)
    assert len(tried) == once
    chosen = engine.choose()
    assert isinstance(chosen, engine.Cuda)
    reason = chosen.why_not(layer.equations, x.dtype, 2, xp)
    assert reason == "it could not run: RuntimeError: COOPERATIVE_LAUNCH_TOO_LARGE"


@pytest.mark.parametrize("xp", ["persistent"], indirect=True)
def test_a_backward_kernel_that_cannot_run_is_known_before(
    xp: Any, persistent_kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, to = LSTM(6, 8), backend()
    params = moved(layer.init(0), to, "float32")
    x = to.asarray(np.ones((4, 2, 6), dtype=np.float32))

    def compiled(name: str, options: tuple[str, ...]) -> Any:
        if name.endswith("backward"):
            raise RuntimeError("too many registers")
        return persistent_kernels(name, options)

    monkeypatch.setattr(persistent, "compiled", compiled)
    engine.choose.cache_clear()
    with pytest.warns(trial.TrialWarning, match="too many registers"):
        y, _, cache = layer.forward(params, x)
    layer.backward(params, cache, y)
    assert xp.launches["lstm_all_forward"] == 0


def test_masks_are_moved_as_booleans(xp: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    to, sizes = backend(1), list[int]()
    like = to.asarray(np.ones((5, 3)), "float32")
    given = standin.Function.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        sizes.extend(a.nbytes for a in args if isinstance(a, np.ndarray))
        return given(self, *args, **kwargs)

    monkeypatch.setattr(standin.Function, "__call__", call)
    mask = dropout_mask(7, 0.3, like)
    assert sizes == [15]
    np.testing.assert_array_equal(mask._host, dropout_mask(7, 0.3, np.ones((5, 3), np.float32)))
    assert (mask.dtype, mask.device) == (np.float32, to.device)


def test_lengths_are_read_once(xp: Any) -> None:
    model, to = Chain((("rnn", RNN(6, 8)), ("gru", GRU(8, 8)), ("pool", Pool("mean")))), backend()
    params = moved(model.init(0), to, "float32")
    x, lengths = to.asarray(np.ones((5, 3, 6)), "float32"), to.asarray(np.asarray([5, 2, 4]))
    for call in (model, model.forward):
        xp.reads.clear()
        call(params, x, lengths=lengths)
        assert xp.reads == ["get"]


def test_what_is_asked_of_devices_streams_and_kernels_is_cupys() -> None:
    """Where the tests have fakes: the names, and the arguments that they are called with."""
    cupy = need_module("cupy")
    cuda = cupy.cuda
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
        (cuda.Stream, (), {"non_blocking": True}),
        (cuda.Stream.record, ("self",), {}),
        (cuda.Stream.wait_event, ("self", "event"), {}),
        (cuda.Stream.use, ("self",), {}),
        (cuda.Event, (), {}),
        (cuda.Event.record, ("self",), {}),
        (cuda.Event.synchronize, ("self",), {}),
        (cupy.RawModule.get_function, ("self", "name"), {}),
        (need_module("cupyx").empty_pinned, (8,), {"dtype": np.uint8}),
    ]
    for theirs, args, kwargs in calls:
        standin.signature_of(theirs).bind(*args, **kwargs)
    assert "__call__(self, grid, block, args, \\*, shared_mem=0)" in cupy.RawKernel.__call__.__doc__
    assert cuda.get_elapsed_time.__doc__.startswith("get_elapsed_time(start_event, end_event)")
    assert callable(cuda.get_current_stream)
    assert hasattr(cupy.RawKernel, "max_dynamic_shared_size_bytes")
    for name in ("id", "attributes", "compute_capability", "use", "synchronize"):
        assert hasattr(cuda.Device, name)


PLANTED: dict[str, Callable[[Any, Any], Any]] = {
    "a keyword": lambda xp, a: xp.sum(a, axis=0, where=True),
    "a function": lambda xp, a: xp.busday_count(a, a),
    "a method": lambda xp, a: a.newbyteorder(),
    "an argument too many": lambda xp, a: xp.reshape(a, (2, 2), "C", True, 1),
    "a method's keyword": lambda xp, a: a.sum(where=True),
    "a NumPy operand": lambda xp, a: a + np.ones(4),
    "a NumPy argument": lambda xp, a: xp.add(a, np.ones(4)),
    "another device": lambda xp, a: a + standin.Array(np.ones(4), 1),
    "a name for a device": lambda xp, a: xp.zeros(3, device="cuda:0"),
    "a NumPy array of it": lambda xp, a: np.asarray(a),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_what_cupy_would_refuse_is_refused(fault: str) -> None:
    need_module("ml_dtypes")
    standin.xp.start(need_module("cupy"), need_module("array_api_compat.cupy"))
    with pytest.raises((AssertionError, TypeError, ValueError)):
        PLANTED[fault](standin.xp, standin.Array(np.ones(4)))


READS: dict[str, Callable[[Any], Any]] = {
    "float": lambda a: float(a[0]),
    "int": lambda a: int(a[0]),
    "bool": lambda a: bool(a[0] > 0),
    "item": lambda a: a[0].item(),
    "get": lambda a: a.get(),
    "tolist": lambda a: a.tolist(),
    "a boolean index": lambda a: a[a > 0],
}


@pytest.mark.parametrize("read", READS)
def test_a_copy_to_the_host_is_seen(read: str) -> None:
    need_module("ml_dtypes")
    standin.xp.start(need_module("cupy"), need_module("array_api_compat.cupy"))
    READS[read](standin.Array(np.ones(4)))
    assert standin.xp.reads == [read]
