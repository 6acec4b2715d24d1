"""PyTorch's modules, state dicts and files: the same outputs and gradients on both sides."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from check_layer import as_parts
from targets import need, need_module

from rnn_xp import GRU, LSTM, RNN, Chain, Dropout, Embedding, Linear, Pool, interop
from rnn_xp.checkpoint import CheckpointError
from rnn_xp.interop import InteropError

STEPS, BATCH, INPUT, HIDDEN, PROJECTED = 6, 3, 4, 5, 2
TOLERANCE = 1e-10
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "lstm_projected": ("LSTM", {"proj_size": PROJECTED}),
    "gru": ("GRU", {}),
}
OPTIONS = [
    {"num_layers": levels, "bidirectional": two, "bias": bias}
    for levels, two, bias in itertools.product((1, 2), (False, True), (True, False))
]
OURS = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}


def names(options: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items())


@pytest.fixture
def torch() -> Any:
    module = need_module("torch")
    module.manual_seed(0)
    return module


def check_recurrent(torch: Any, layer: Any, params: Any, module: Any) -> None:
    """Assert equal outputs, states and gradients on random inputs with an initial state."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((STEPS, BATCH, INPUT))
    runs = layer.num_layers * layer.num_directions
    state = tuple(rng.standard_normal((runs, BATCH, size)) for size in layer.equations.state_sizes)
    own = state if isinstance(layer, LSTM) else state[0]
    y, last, cache = layer.forward(params, x, own)
    dy = rng.standard_normal(y.shape)
    dparams, dx, dstate = layer.backward(params, cache, dy)

    peer_x = torch.tensor(x, requires_grad=True)
    peer_state = tuple(torch.tensor(part, requires_grad=True) for part in state)
    peer_y, peer_last = module(peer_x, peer_state if isinstance(layer, LSTM) else peer_state[0])
    (peer_y * torch.tensor(dy)).sum().backward()
    pairs = [(y, peer_y), (dx, peer_x.grad)]
    pairs += zip(as_parts(last), as_parts(peer_last), strict=True)
    pairs += [(a, b.grad) for a, b in zip(as_parts(dstate), peer_state, strict=True)]
    pairs += [(dparams[name], value.grad) for name, value in module.named_parameters()]
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected.detach().numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("options", OPTIONS, ids=names)
@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_layers_both_ways(torch: Any, kind: str, options: dict[str, Any]) -> None:
    name, own = KINDS[kind]
    given = getattr(torch.nn, name)(INPUT, HIDDEN, **own, **options, dtype=torch.float64)
    layer, params = interop.from_torch(given)
    assert layer == OURS[name](INPUT, HIDDEN, **own, **options)
    assert list(params) == [name for name, _ in given.named_parameters()]
    check_recurrent(torch, layer, params, given)
    drawn = layer.init(7, dtype="float64")
    back = interop.to_torch(layer, drawn)
    assert type(back) is type(given)
    check_recurrent(torch, layer, drawn, back)
    assert interop.from_torch(back)[0] == layer
    for key, value in back.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), drawn[key], strict=True)


def test_dropout_between_levels_is_carried(torch: Any) -> None:
    layer, params = interop.from_torch(torch.nn.GRU(2, 3, 2, dropout=0.25))
    assert layer == GRU(2, 3, 2, dropout=0.25)
    assert interop.to_torch(layer, params).dropout == 0.25
    single = GRU(2, 3, dropout=0.25)  # of one level: without effect, here and there
    assert interop.to_torch(single, single.init(0)).dropout == 0.0


def test_batch_first_is_a_layout_of_the_input(torch: Any) -> None:
    module = torch.nn.LSTM(INPUT, HIDDEN, batch_first=True, dtype=torch.float64)
    layer, params = interop.from_torch(module)
    x = torch.randn(BATCH, STEPS, INPUT, dtype=torch.float64)
    y, _ = layer(params, np.ascontiguousarray(x.numpy().swapaxes(0, 1)))
    np.testing.assert_allclose(
        y.swapaxes(0, 1), module(x)[0].detach().numpy(), rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("bias", [True, False])
def test_linear_both_ways(torch: Any, bias: bool) -> None:
    module = torch.nn.Linear(INPUT, HIDDEN, bias=bias, dtype=torch.float64)
    layer, params = interop.from_torch(module)
    assert layer == Linear(INPUT, HIDDEN, bias=bias)
    x = np.random.default_rng(0).standard_normal((STEPS, BATCH, INPUT))
    for peer in (module, interop.to_torch(layer, params)):
        y, cache = layer.forward(params, x)
        dparams, dx = layer.backward(params, cache, np.cos(y))
        peer_x = torch.tensor(x, requires_grad=True)
        peer_y = peer(peer_x)
        (peer_y * torch.cos(peer_y.detach())).sum().backward()
        np.testing.assert_allclose(y, peer_y.detach().numpy(), rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(dx, peer_x.grad.numpy(), rtol=0, atol=TOLERANCE)
        for name, value in peer.named_parameters():
            np.testing.assert_allclose(
                dparams[name], value.grad.numpy(), rtol=0, atol=TOLERANCE, err_msg=name
            )


def test_embedding_both_ways(torch: Any) -> None:
    module = torch.nn.Embedding(7, 3, padding_idx=0, dtype=torch.float64)
    layer, params = interop.from_torch(module)
    assert layer == Embedding(7, 3)
    x = np.random.default_rng(0).integers(1, 7, (STEPS, BATCH))
    for peer in (module, interop.to_torch(layer, params)):
        y, cache = layer.forward(params, x)
        dparams, _ = layer.backward(params, cache, np.cos(y))
        peer_y = peer(torch.tensor(x))
        (peer_y * torch.cos(peer_y.detach())).sum().backward()
        np.testing.assert_array_equal(y, peer_y.detach().numpy())
        np.testing.assert_allclose(
            dparams["weight"], peer.weight.grad.numpy(), rtol=0, atol=TOLERANCE
        )


def whole_model(torch: Any, cell: str) -> Any:
    """A tagger as a PyTorch user writes it, with attributes called as the Chain's layers."""

    class Model(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(9, INPUT, dtype=torch.float64)
            self.recurrent = getattr(torch.nn, cell)(
                INPUT, HIDDEN, 2, bidirectional=True, dtype=torch.float64
            )
            self.linear = torch.nn.Linear(2 * HIDDEN, 4, dtype=torch.float64)

        def forward(self, x: Any) -> Any:
            return self.linear(self.recurrent(self.embedding(x))[0])

    return Model()


def chain_of(cell: str) -> Chain:
    return Chain(
        (
            ("embedding", Embedding(9, INPUT)),
            ("recurrent", OURS[cell](INPUT, HIDDEN, 2, bidirectional=True)),
            ("linear", Linear(2 * HIDDEN, 4)),
        )
    )


@pytest.mark.parametrize("cell", list(OURS))
def test_whole_models_exchange_state_dicts(torch: Any, cell: str) -> None:
    chain, model = chain_of(cell), whole_model(torch, cell)
    params = interop.from_state_dict(chain, model.state_dict())
    check_chain(torch, chain, params, model)
    drawn = chain.init(3, dtype="float64")
    model = whole_model(torch, cell)
    model.load_state_dict(interop.to_state_dict(chain, drawn), strict=True)
    check_chain(torch, chain, drawn, model)


def check_chain(torch: Any, chain: Chain, params: Any, model: Any) -> None:
    x = np.random.default_rng(0).integers(0, 9, (STEPS, BATCH))
    y, _, cache = chain.forward(params, x)
    dparams, _, _ = chain.backward(params, cache, np.sin(y))
    expected = model(torch.tensor(x))
    (expected * torch.sin(expected.detach())).sum().backward()
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=0, atol=TOLERANCE)
    for name, value in model.named_parameters():
        np.testing.assert_allclose(
            dparams[name], value.grad.numpy(), rtol=0, atol=TOLERANCE, err_msg=name
        )


def test_a_part_of_a_state_dict(torch: Any) -> None:
    model = whole_model(torch, "LSTM")
    layer = LSTM(INPUT, HIDDEN, 2, bidirectional=True)
    params = interop.from_state_dict(layer, model.state_dict(), "recurrent")
    check_recurrent(torch, layer, params, model.recurrent)


def test_what_comes_back_are_copies(torch: Any) -> None:
    module = torch.nn.Linear(2, 3)
    layer, params = interop.from_torch(module)
    state = interop.to_state_dict(layer, params)
    _, on_torch = interop.from_torch(module, backend="torch")
    params["weight"][...] = 9.0
    assert not (module.weight == 9.0).any()
    assert not (state["weight"] == 9.0).any()
    on_torch["weight"][...] = 9.0
    assert not (module.weight == 9.0).any()
    again = interop.to_state_dict(layer, on_torch)
    again["weight"][...] = 8.0
    assert (on_torch["weight"] == 9.0).all()


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(torch: Any, kind: str) -> None:
    module = torch.nn.GRU(2, 3, dtype=getattr(torch, kind))
    layer, params = interop.from_torch(module)
    for name, value in params.items():
        assert value.dtype == ("float32" if kind == "bfloat16" else kind)
        assert np.array_equal(value, module.state_dict()[name].double().numpy())
    _, cast = interop.from_torch(module, dtype="float64")
    assert cast["bias_hh_l0"].dtype == np.float64
    _, on_torch = interop.from_torch(module, backend="torch", dtype=kind)
    state = interop.to_state_dict(layer, on_torch)
    for name, value in module.state_dict().items():
        assert state[name].dtype == value.dtype
        assert torch.equal(state[name], value)


def test_bfloat16_of_jax(torch: Any) -> None:
    need("jax")
    layer = Linear(2, 3)
    params = layer.init(0, backend="jax", dtype="bfloat16")
    module = interop.to_torch(layer, params)
    assert module.weight.dtype == torch.bfloat16
    expected = np.asarray(params["weight"]).astype("float32")
    assert np.array_equal(module.weight.detach().float().numpy(), expected)


# What cannot be carried


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda nn: nn.LSTMCell(2, 3), "got LSTMCell"),
        (lambda nn: nn.Sequential(nn.Linear(2, 3)), "got Sequential; of a whole model, describe"),
        (lambda nn: type("Mine", (nn.GRU,), {})(2, 3), "got Mine"),
        (lambda nn: nn.Embedding(2, 3, max_norm=1.0), "Embedding: max_norm=1.0 cannot be carried"),
    ],
)
def test_modules_that_are_not_carried(torch: Any, make: Any, message: str) -> None:
    with pytest.raises(InteropError, match=message):
        interop.from_torch(make(torch.nn))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (GRU(2, 3, reset_after=False), "GRU: reset_after=False cannot be carried"),
        (LSTM(2, 3, peephole=True), "LSTM: peephole=True cannot be carried"),
        (Chain((("linear", Linear(2, 3)),)), "got Chain; load to_state_dict into a module"),
    ],
)
def test_layers_that_are_not_carried(torch: Any, layer: Any, message: str) -> None:
    with pytest.raises(InteropError, match=message):
        interop.to_torch(layer, layer.init(0))


@pytest.mark.parametrize("layer", [Dropout(0.5), Pool()], ids=repr)
def test_layers_without_parameters_are_not_carried(torch: Any, layer: Any) -> None:
    with pytest.raises(InteropError, match=f"got {type(layer).__name__}"):
        interop.to_torch(layer, {})


def test_a_state_dict_that_does_not_fit(torch: Any) -> None:
    state = torch.nn.Linear(2, 3).state_dict()
    with pytest.raises(InteropError, match=r"the Linear: the tensor a.weight is missing$"):
        interop.from_state_dict(Linear(2, 3), state, "a")
    with pytest.raises(InteropError, match="the tensor bias is not expected"):
        interop.from_state_dict(Linear(2, 3, bias=False), state)
    with pytest.raises(InteropError, match=r"weight has shape \(3, 2\), expected \(2, 3\)"):
        interop.from_state_dict(Linear(3, 2), state)
    state["weight"] = state["weight"].long()
    with pytest.raises(InteropError, match="weight has dtype int64"):
        interop.from_state_dict(Linear(2, 3), state)
    with pytest.raises(ValueError, match="bias missing"):
        interop.to_state_dict(Linear(2, 3), {"weight": np.zeros((3, 2))})


def without(module: str, code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run code in a process where importing a module fails."""
    program = f"import sys\nsys.modules[{module!r}] = None\n{code}"
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_tensors_that_numpy_cannot_hold(torch: Any) -> None:
    layer = Linear(2, 3, bias=False)
    for tensor in (
        torch.zeros((3, 2), dtype=torch.float8_e4m3fn),
        torch.zeros((3, 2), device="meta"),
    ):
        with pytest.raises(interop.InteropError, match="weight cannot be copied to NumPy: "):
            interop.from_state_dict(layer, {"weight": tensor})


def test_without_pytorch() -> None:
    layer = "from rnn_xp import interop, Linear; layer = Linear(2, 3); "
    for call in ("to_torch(layer, layer.init(0))", "from_torch(layer)"):
        run = without("torch", f"{layer} interop.{call}")
        line = "ImportError: PyTorch is not installed: pip install 'rnn-xp[torch]'"
        assert run.stderr.strip().splitlines()[-1] == line


# Files

READ = """
import numpy as np
from rnn_xp import LSTM, interop

layer = LSTM(4, 5, 2, bidirectional=True, proj_size=2)
params = interop.read_safetensors(sys.argv[1], layer, prefix="encoder.lstm")
x = np.load(sys.argv[2])
y, (h, c) = layer(params, x)
np.savez(sys.argv[3], y=y, h=h, c=c)
assert not sys.modules["torch"]
"""


def saved(torch: Any, path: Path, dtype: Any = None) -> Any:
    """Write a module with an LSTM in an encoder, beside others; return the module."""
    save_file = need_module("safetensors.torch").save_file
    lstm = torch.nn.LSTM(INPUT, HIDDEN, 2, bidirectional=True, proj_size=2, dtype=dtype)
    encoder = torch.nn.ModuleDict({"lstm": lstm, "lstm2": torch.nn.GRU(2, 3)})
    model = torch.nn.ModuleDict({"encoder": encoder, "fc": torch.nn.Linear(4, 2)})
    save_file(model.state_dict(), path)
    return lstm


def test_a_file_is_read_without_pytorch(torch: Any, tmp_path: Path) -> None:
    lstm = saved(torch, tmp_path / "m.safetensors", torch.float64)
    x = torch.randn(STEPS, BATCH, INPUT, dtype=torch.float64)
    np.save(tmp_path / "x.npy", x.numpy())
    paths = (tmp_path / name for name in ("m.safetensors", "x.npy", "y.npz"))
    run = without("torch", READ, *paths)
    assert run.returncode == 0, run.stderr
    y, (h, c) = lstm(x)
    with np.load(tmp_path / "y.npz") as found:
        for name, expected in (("y", y), ("h", h), ("c", c)):
            np.testing.assert_allclose(
                found[name], expected.detach().numpy(), rtol=0, atol=TOLERANCE
            )


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_files_of_half_precision(torch: Any, tmp_path: Path, kind: str) -> None:
    lstm = saved(torch, tmp_path / "m", getattr(torch, kind))
    layer, _ = interop.from_torch(lstm)
    params = interop.read_safetensors(tmp_path / "m", layer, "encoder.lstm.")
    wide = interop.read_safetensors(tmp_path / "m", layer, "encoder.lstm", dtype="float64")
    for name, value in lstm.state_dict().items():
        assert params[name].dtype == ("float16" if kind == "float16" else "float32")
        np.testing.assert_array_equal(params[name], value.float().numpy())
        np.testing.assert_array_equal(wide[name], value.double().numpy(), strict=True)


@pytest.mark.parametrize("backend", ["strict", "jax", "torch"])
def test_a_file_onto_a_backend(torch: Any, tmp_path: Path, backend: str) -> None:
    need(backend)
    layer, expected = interop.from_torch(saved(torch, tmp_path / "m"))
    params = interop.read_safetensors(tmp_path / "m", layer, "encoder.lstm", backend=backend)
    y, _ = layer(params, layer_input(params))
    y_host, _ = layer(expected, np.ones((STEPS, BATCH, INPUT), dtype=np.float32))
    # float32 sums in another order: a few units in the last place.
    np.testing.assert_allclose(np.asarray(y), y_host, rtol=0, atol=1e-6)


def layer_input(params: Any) -> Any:
    from rnn_xp.backend import array_namespace

    like = params["weight_ih_l0"]
    return array_namespace(like=like).ones((STEPS, BATCH, INPUT), dtype=like.dtype)


def test_a_whole_model_from_a_file(torch: Any, tmp_path: Path) -> None:
    chain, model = chain_of("GRU"), whole_model(torch, "GRU")
    need_module("safetensors.torch").save_file(model.state_dict(), tmp_path / "m")
    params = interop.read_safetensors(tmp_path / "m", chain)
    check_chain(torch, chain, params, model)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path, layer = tmp_path / "m.safetensors", Linear(2, 3)
    good = {"fc.weight": np.ones((3, 2)), "fc.bias": np.ones(3)}

    def message(tensors: dict[str, Any], prefix: str = "fc") -> str:
        save_file(tensors, path)
        with pytest.raises(CheckpointError) as caught:
            interop.read_safetensors(path, layer, prefix)
        return str(caught.value)

    start = f"{path} does not fit the Linear: "
    assert message(good, "") == start + "the tensor weight is missing"
    assert message({"fc.weight": good["fc.weight"]}) == start + "the tensor fc.bias is missing"
    extra = message(good | {"fc.scale": np.ones(1)})
    assert extra == start + "the tensor fc.scale is not expected"
    wrong = message(good | {"fc.bias": np.ones(2)})
    assert wrong == start + "fc.bias has shape (2,), expected (3,)"
    whole = message(good | {"fc.bias": np.ones(3, dtype=np.int8)})
    assert whole == start + "fc.bias has dtype int8, expected a floating-point one"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is not a safetensors file, or is truncated"):
        interop.read_safetensors(path, layer, "fc")
    with pytest.raises(FileNotFoundError):
        interop.read_safetensors(tmp_path / "none", layer)
