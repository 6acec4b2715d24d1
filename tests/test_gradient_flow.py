"""The gradient through time, against a scalar loop, finite differences and PyTorch's autograd."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import Config, reference
from targets import Target, need_module

from rnn_xp.backend import select
from rnn_xp.layers import GRU, LSTM, RNN, Linear, Recurrent
from rnn_xp.models import Chain, character_model
from rnn_xp.tasks.gradient_flow import gradient_norms, new_network_norms, text_norms
from rnn_xp.text import TextError

HostArray = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
T, B, SIZE, H = 6, 3, 2, 4
X = RNG.standard_normal((T, B, SIZE))
DY = RNG.standard_normal((B, H))
NUMPY = select("numpy")

LAYERS: dict[str, tuple[Recurrent, str]] = {
    "rnn": (RNN(SIZE, H), "rnn_tanh"),
    "relu, two levels": (RNN(SIZE, H, 2, nonlinearity="relu"), "rnn_relu"),
    "lstm": (LSTM(SIZE, H), "lstm"),
    "lstm, two levels": (LSTM(SIZE, H, 2), "lstm"),
    "lstm, peephole": (LSTM(SIZE, H, peephole=True), "lstm"),
    "lstm, projection": (LSTM(SIZE, H + 2, proj_size=H), "lstm"),
    "gru": (GRU(SIZE, H), "gru"),
    "gru, reset before, two levels": (GRU(SIZE, H, 2, reset_after=False), "gru_reset_before"),
}


def zeros(layer: Recurrent) -> list[HostArray]:
    return [np.zeros((layer.num_layers, B, size)) for size in layer.equations.state_sizes]


def mean_norm(parts: Any) -> float:
    """Over levels, parts and units; the mean over the batch."""
    rows = [[part[k, b] for part in parts for k in range(part.shape[0])] for b in range(B)]
    return float(np.mean([np.sqrt(sum((row**2).sum() for row in sequence)) for sequence in rows]))


@pytest.mark.parametrize("name", list(LAYERS))
def test_norms_against_a_scalar_loop(target: Target, name: str) -> None:
    layer, kind = LAYERS[name]
    params = layer.init(1, dtype="float64")
    config = Config(kind, layer.num_layers)
    expected = []
    state: Any = zeros(layer)
    for t in range(T):  # what comes after step t, as a sequence of its own from the state there
        dy = np.zeros((T - t, B, H))
        dy[-1] = DY
        expected.append(mean_norm(reference(config, params, X[t:], state, dy, zeros(layer)).dstate))
        state = reference(config, params, X[t : t + 1], state, dy[:1], zeros(layer)).state
    expected.append(float(np.linalg.norm(DY, axis=1).mean()))
    found = gradient_norms(layer, target.tree(params), target.asarray(X), target.asarray(DY))
    assert (type(found), found.shape, found.dtype) == (np.ndarray, (T + 1,), np.float64)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["rnn", "lstm, two levels", "gru"])
def test_norms_against_finite_differences(name: str) -> None:
    layer, _ = LAYERS[name]
    params = layer.init(2, dtype="float64")
    found = gradient_norms(layer, params, X)
    t = 2
    _, state = layer(params, X[:t])
    parts = state if isinstance(state, tuple) else (state,)
    gradients = [np.zeros_like(part) for part in parts]
    for which, index in ((w, i) for w, part in enumerate(parts) for i in np.ndindex(part.shape)):
        losses = []
        for step in (1e-6, -1e-6):
            moved = [part.copy() for part in parts]
            moved[which][index] += step
            y, _ = layer(params, X[t:], tuple(moved) if len(moved) > 1 else moved[0])
            losses.append(y[-1].sum() / np.sqrt(H))
        gradients[which][index] = (losses[0] - losses[1]) / 2e-6
    assert found[t] == pytest.approx(mean_norm(gradients), rel=1e-6)
    assert found[T] == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("cell", ["RNN", "LSTM", "GRU"])
def test_norms_against_autograd(cell: str) -> None:
    torch = need_module("torch")
    theirs = getattr(torch.nn, cell)(SIZE, H, 2).double()
    params = {name: p.detach().numpy().copy() for name, p in theirs.named_parameters()}
    zero = torch.zeros((2, B, H), dtype=torch.float64)
    state = (zero, zero.clone()) if cell == "LSTM" else (zero,)
    states = []
    for t in range(T):
        for part in state:
            part.requires_grad_() if part.is_leaf else part.retain_grad()
        states.append(state)
        y, new = theirs(torch.tensor(X[t : t + 1]), state if cell == "LSTM" else state[0])
        state = new if cell == "LSTM" else (new,)
    (y[0] * torch.tensor(DY)).sum().backward()
    expected = [mean_norm([part.grad.numpy() for part in parts]) for parts in states]
    layer = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}[cell](SIZE, H, 2)
    found = gradient_norms(layer, params, X, DY)
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-10)


def test_a_layer_of_two_directions_is_an_error() -> None:
    layer = RNN(SIZE, H, bidirectional=True)
    with pytest.raises(ValueError, match="of one direction"):
        gradient_norms(layer, layer.init(0, dtype="float64"), X)


def test_new_elman_networks_vanish_and_explode() -> None:
    half, one, more = (
        new_network_norms("rnn", NUMPY, scale=s, hidden_size=32, time_steps=60)
        for s in (0.5, 1.0, 1.5)
    )
    # An orthogonal matrix times s stretches every vector by s, tanh' is at most 1 (Pascanu et al.).
    for norms, s in ((half, 0.5), (one, 1.0), (more, 1.5)):
        assert norms.shape == (61,)
        assert (norms[:-1] <= norms[1:] * s * (1 + 1e-12)).all()
    assert half[0] < 0.5**60
    assert more[0] > 10.0


def test_norms_whose_square_has_no_room() -> None:
    norms = new_network_norms("rnn", NUMPY, hidden_size=4, time_steps=600, scale=0.5)
    steps = norms[1:-1] / norms[:-2]
    assert (norms > 0.0).all()
    assert norms[0] < 1e-170
    np.testing.assert_allclose(1.0 / steps[:100], 0.5, rtol=0.1)  # tanh takes a little more
    with pytest.raises(ValueError, match="time_steps must be an integer >= 1, got 0"):
        new_network_norms("rnn", NUMPY, time_steps=0)


def test_a_forget_bias_keeps_the_gradient_of_an_lstm() -> None:
    norms = [
        new_network_norms("lstm", NUMPY, forget_bias=b, hidden_size=32, time_steps=60, scale=0.5)
        for b in (0.0, 1.0, 3.0)
    ]
    assert norms[0][0] < 1e-4 * norms[1][0] < 1e-6 * norms[2][0]
    elman = new_network_norms("rnn", NUMPY, hidden_size=32, time_steps=60, scale=0.5)
    assert elman[0] < 1e-9 * norms[1][0]


def test_one_seed_gives_one_curve(target: Target) -> None:
    backend = select(target.backend, target.device_name)
    arguments: dict[str, Any] = {"hidden_size": 5, "time_steps": 4, "seed": 3}
    expected = new_network_norms("gru", NUMPY, **arguments)
    np.testing.assert_allclose(new_network_norms("gru", backend, **arguments), expected, rtol=1e-9)
    assert new_network_norms("gru", NUMPY, hidden_size=5, time_steps=4)[0] != expected[0]


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_norms_of_a_text_model_against_autograd(target: Target, cell: str) -> None:
    torch = need_module("torch")
    model = character_model(
        7, cell=cell, embedding_size=SIZE, hidden_size=H, num_layers=2, dropout=0.5
    )
    params = model.init(4, dtype="float64")
    codes = np.asarray([1, 5, 0, 3, 3, 6], dtype=np.int64)
    own = {name: torch.tensor(value) for name, value in params.items()}
    theirs = getattr(torch.nn, cell.upper())(SIZE, H, 2).double()
    theirs.load_state_dict({name: own[f"recurrent.{name}"] for name in theirs.state_dict()})
    zero = torch.zeros((2, 1, H), dtype=torch.float64)
    state = (zero, zero.clone()) if cell == "lstm" else (zero,)
    states = []
    for code in codes[:-1]:
        for part in state:
            part.requires_grad_() if part.is_leaf else part.retain_grad()
        states.append(state)
        x = own["embedding.weight"][code][None, None]
        y, new = theirs(x, state if cell == "lstm" else state[0])
        state = new if cell == "lstm" else (new,)
    y.retain_grad()
    logits = y[0] @ own["linear.weight"].T + own["linear.bias"]
    torch.nn.functional.cross_entropy(logits, torch.tensor(codes[-1:])).backward()
    grads = [[part.grad.numpy() for part in parts] for parts in states] + [[y.grad.numpy()]]
    expected = [np.sqrt(sum((g**2).sum() for g in parts)) for parts in grads]
    backend = select(target.backend, target.device_name)
    found = text_norms(model, target.tree(params), backend, codes)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_text_models_that_do_not_fit() -> None:
    model = character_model(7, embedding_size=3, hidden_size=4)
    params = model.init(0)
    with pytest.raises(TextError, match="at least two characters"):
        text_norms(model, params, NUMPY, np.asarray([3], dtype=np.int64))
    two = Chain((*model.layers[:2], ("again", GRU(4, 4)), ("linear", Linear(4, 7))))
    with pytest.raises(ValueError, match="several recurrent layers"):
        text_norms(two, two.init(0), NUMPY, np.asarray([3, 1], dtype=np.int64))


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).parent.parent / "examples" / "gradient_flow.py"
    runpy.run_path(str(script), run_name="__main__")
    out = capsys.readouterr().out
    rows = [[float(field) for field in line.split()[1:]] for line in out.splitlines()[1:]]
    assert [row[0] for row in rows] == [0.5, 1.0, 1.5]
    elman = [row[1] for row in rows]
    assert elman[0] < 1e-30 < elman[1] < 0.1 < 100.0 < elman[2]
    lstm = [row[2] for row in rows]
    assert 1e-9 < min(lstm) < max(lstm) < 10.0
