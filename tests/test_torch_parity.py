"""PyTorch's layers on configurations that hypothesis draws: outputs, states and all gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from targets import Target, make_target, need

from rnn_xp.engines import plain
from rnn_xp.layers import GRU, LSTM, RNN

LAYERS = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
sizes = st.integers(1, 6)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a layer and the form of its input."""
    kind = draw(st.sampled_from(sorted(LAYERS)))
    hidden = draw(st.integers(2, 6))
    options: dict[str, Any] = {"bias": draw(st.booleans()), "bidirectional": draw(st.booleans())}
    if kind == "RNN":
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    if kind == "LSTM":
        options["proj_size"] = draw(st.integers(0, hidden - 1))
    steps, batch = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    batched = draw(st.booleans()) or batch > 1
    lengths = st.none() | st.lists(st.integers(1, steps), min_size=batch, max_size=batch)
    return {
        "kind": kind,
        "sizes": (draw(sizes), hidden, draw(st.integers(1, 3))),
        "options": options,
        "steps": steps,
        "batch": batch if batched else None,
        "lengths": draw(lengths) if batched else None,
        "state": draw(st.booleans()),
        "dstate": draw(st.booleans()),
        "rows_a_chunk": draw(st.sampled_from([1, 5, 512])),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


def close(found: np.ndarray[Any, Any], expected: Any, what: str) -> None:
    values = expected.detach().numpy()
    bound = 1e-10 * max(1.0, float(np.abs(values).max()))
    np.testing.assert_allclose(found, values, rtol=0, atol=bound, err_msg=what)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(configuration=configurations())
def test_as_pytorch(
    library: str, configuration: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    need("torch")
    monkeypatch.setattr(plain, "ROWS", configuration["rows_a_chunk"])
    monkeypatch.setattr(plain, "LEAST_STEPS", 1)
    check(make_target(library), **configuration)


def check(
    target: Target,
    *,
    kind: str,
    sizes: tuple[int, int, int],
    options: dict[str, Any],
    steps: int,
    batch: int | None,
    lengths: list[int] | None,
    state: bool,
    dstate: bool,
    rows_a_chunk: int,
    seed: int,
) -> None:
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    rng = np.random.default_rng(seed)
    layer = LAYERS[kind](*sizes, **options)
    params = layer.init(seed, dtype="float64")
    peer = getattr(torch.nn, kind)(*sizes, **options, dtype=torch.float64)
    peer.load_state_dict({name: torch.tensor(value) for name, value in params.items()})

    inner = () if batch is None else (batch,)
    runs = layer.num_layers * layer.num_directions
    x = rng.standard_normal((steps, *inner, sizes[0]))
    parts = [rng.standard_normal((runs, *inner, size)) for size in layer.equations.state_sizes]
    dparts = [rng.standard_normal(part.shape) for part in parts]
    dy = rng.standard_normal((steps, *inner, layer.output_size))

    def form(values: list[Any]) -> Any:
        return tuple(values) if kind == "LSTM" else values[0]

    torch_x = torch.tensor(x, requires_grad=True)
    torch_parts = [torch.tensor(part, requires_grad=True) for part in parts]
    torch_state = form(torch_parts) if state else None
    if lengths is None:
        torch_y, torch_last = peer(torch_x, torch_state)
    else:
        packed = pack_padded_sequence(torch_x, torch.tensor(lengths), enforce_sorted=False)
        packed_y, torch_last = peer(packed, torch_state)
        torch_y, _ = pad_packed_sequence(packed_y, total_length=steps)
    torch_lasts = torch_last if kind == "LSTM" else (torch_last,)
    loss = (torch_y * torch.tensor(dy)).sum()
    if dstate:
        for part, dpart in zip(torch_lasts, dparts, strict=True):
            loss = loss + (part * torch.tensor(dpart)).sum()
    loss.backward()

    given = target.tree(params)
    y, last, cache = layer.forward(
        given,
        target.asarray(x),
        target.tree(form(parts)) if state else None,
        lengths=lengths,
    )
    dparams, dx, dfirst = layer.backward(
        given, cache, target.asarray(dy), target.tree(form(dparts)) if dstate else None
    )
    close(target.check(y, dy.shape, "float64"), torch_y, "y")
    close(target.check(dx, x.shape, "float64"), torch_x.grad, "dx")
    for part, expected in zip(last if kind == "LSTM" else (last,), torch_lasts, strict=True):
        close(target.check(part, tuple(expected.shape), "float64"), expected, "state")
    if state:
        found = dfirst if kind == "LSTM" else (dfirst,)
        for part, expected in zip(found, torch_parts, strict=True):
            close(target.check(part, tuple(expected.shape), "float64"), expected.grad, "dstate0")
    assert list(dparams) == [name for name, _ in peer.named_parameters()]
    for name, parameter in peer.named_parameters():
        close(target.check(dparams[name], tuple(parameter.shape), "float64"), parameter.grad, name)
