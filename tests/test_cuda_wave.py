"""Levels at once, in chunks of steps: with the kernels of a step in the place of those of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import standin
from test_cuda_fused import on_standin

from rnn_xp import GRU, LSTM, RNN
from rnn_xp.doctor.engines import on_core, run_by
from rnn_xp.engines.cuda import fused, wave
from rnn_xp.engines.cuda.fused import Fused
from rnn_xp.engines.cuda.streams import one_by_one
from rnn_xp.engines.cuda.wave import Wave
from rnn_xp.layers import Recurrent

LAYERS: dict[str, Recurrent] = {
    "rnn": RNN(3, 4, 2),
    "lstm": LSTM(3, 4, 3),
    "gru": GRU(3, 4, 2, bias=False),
    "reset before": GRU(3, 4, 4, reset_after=False),
    "dropout": GRU(3, 4, 3, dropout=0.4),
}
STEPS, BATCH = 10, 3
PLAIN: dict[str, Any] = {"zeros": False, "seed": None}
LENGTHS = {"full": None, "ragged": (10, 3, 7), "short": (2, 2, 1)}


def results(
    layer: Recurrent,
    lengths: Any,
    put: Callable[[Any], Any] = np.copy,
    *,
    zeros: bool,
    seed: int | None,
) -> list[Any]:
    """Return what a forward and a backward run give, and inference."""
    rng = np.random.default_rng(0)
    params = {name: put(a) for name, a in layer.init(1, dtype="float64").items()}
    inputs = rng.standard_normal((STEPS, BATCH, 3))
    wide = rng.standard_normal((STEPS, BATCH, 2 * layer.output_size))
    if lengths is not None:  # what stands past a sequence's end must not matter
        past = np.arange(STEPS)[:, None] >= np.asarray(lengths)[None, :]
        inputs[past], wide[past] = np.nan, np.nan
    x, dy = put(inputs), put(wide)[:, :, layer.output_size :]  # a view

    def state() -> Any:
        made = tuple(
            put(rng.standard_normal((layer.num_layers, BATCH, size)))
            for size in layer.equations.state_sizes
        )
        return None if zeros else made if len(made) > 1 else made[0]

    first, dlast = state(), state()
    y, last, cache = layer.forward(params, x, first, lengths=lengths, dropout_seed=seed)
    again, end = layer(params, x, first, lengths=lengths)
    dparams, dx, dfirst = layer.backward(params, cache, dy, dlast)
    return [y, last, again, end, dparams, dx, dfirst]


def flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from flat(each)
    else:
        yield value


PUT = on_standin("float64")


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("chunk", [1, 3, 4, 10, 25])
@pytest.mark.parametrize("most", [2**25, 2000, 1])
def test_values_and_all_gradients_are_the_core_s(
    name: str,
    lengths: str,
    chunk: int,
    most: int,
    steps: Fused,
    xp: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wave, "MOST_MADE", most)  # all chunks, some, one
    layer, engine = LAYERS[name], Wave(steps, one_by_one, chunk)
    for how in ({"zeros": False, "seed": None}, {"zeros": True, "seed": 5}):
        expected = results(on_core(layer), LENGTHS[lengths], **how)
        found = results(run_by(layer, engine), LENGTHS[lengths], PUT, **how)
        pairs = list(zip(flat(found), flat(expected), strict=True))
        assert len(pairs) >= 10
        for a, b in pairs:
            assert a.shape == b.shape
            np.testing.assert_allclose(a._host, b, rtol=1e-12, atol=1e-13)
    assert xp.reads == []


def test_gradients_of_16_bits_are_added_in_32(xp: Any) -> None:
    sums: dict[str, Any] = {}
    for _ in range(3000):  # float16 knows no odd number above 2048
        part = standin.Array(np.ones(2, dtype=np.float16))
        wave._add(xp, sums, {"bias": part})
    assert list(sums["bias"]._host) == [3000, 3000]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_gradients_keep_their_dtype(
    dtype: str, steps: Fused, xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wave, "MOST_MADE", 1)
    put, layer = on_standin(dtype), run_by(LAYERS["lstm"], Wave(steps, one_by_one, 4))
    params = {name: put(a) for name, a in layer.init(0).items()}
    y, _, cache = layer.forward(params, put(np.ones((9, 2, 3))))
    gradients, dx, _ = layer.backward(params, cache, y)
    assert {a.dtype.name for a in (*gradients.values(), dx)} == {dtype}


def test_how_many_steps_have_one_product(
    steps: Fused, xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many chunks as do not take more than `MOST_MADE` bytes; 384 are those of a step."""
    made = []

    class Noted(Fused):
        def made(self, cell: Any, kept: Any, dy: Any) -> Any:
            made.append(dy.shape[0])
            return super().made(cell, kept, dy)

    layer = run_by(LAYERS["lstm"], Wave(Noted(steps._kernels), one_by_one, 2))
    for most, expected in ((2**25, [10]), (4 * 384, [4, 4, 2]), (5 * 384, [4, 4, 2]), (0, [2] * 5)):
        monkeypatch.setattr(wave, "MOST_MADE", most)
        made.clear()
        results(layer, None, PUT, **PLAIN)
        assert made[::3] == expected  # three levels


def test_what_a_chunk_launches(steps: Fused, xp: Any) -> None:
    """A level's sums over time are once for all chunks."""
    chunks: dict[int, Counter[str]] = {}
    for chunk in (1, 5):
        xp.launches.clear()
        results(run_by(LAYERS["lstm"], Wave(steps, one_by_one, chunk)), None, PUT, **PLAIN)
        chunks[STEPS // chunk] = Counter(xp.launches)
    more = chunks[10] - chunks[2]
    levels, runs = 3, 10 - 2
    # Twice forward, once backward; the products of single steps are as many as they were.
    assert more["dot"] == 3 * levels * runs
    assert set(more) == {"dot", "setitem"}  # to begin a state


class Streams:
    """As CUDA's: what is given to a place is known to another only once that one followed it."""

    def __init__(self) -> None:
        self.now = 0
        self.said: list[str] = []
        self.given: list[list[tuple[int, int]]] = []
        """Of each place: the levels' chunks that it has been given or has waited for."""

    @contextmanager
    def __call__(self, count: int) -> Iterator[Sequence[Stream]]:
        self.given = [[] for _ in range(count)]
        self.said.append("fork")
        yield [Stream(self, k) for k in range(count)]
        self.said.append("join")


class Stream:
    def __init__(self, all_of_them: Streams, number: int) -> None:
        self.all, self.number = all_of_them, number

    def __enter__(self) -> None:
        self.all.now = self.number

    def __exit__(self, *failure: object) -> None:
        self.all.now = 0

    def follow(self, other: Stream) -> None:
        self.all.given[self.number] += self.all.given[other.number]


class Watched(Fused):
    """Each run of a chunk must have what it needs in its own place."""

    def __init__(self, like: Fused, streams: Streams, levels: int) -> None:
        super().__init__(like._kernels)
        self.streams, self.levels = streams, levels
        self.places: list[int] = []
        """Where arrays are made, and in the end gradients."""

    def ran(self, order: int) -> None:
        """Note the next chunk of the current place's level; `order` is -1 backward."""
        level = self.streams.now
        mine = self.streams.given[level]
        chunk = sum(1 for of, _ in mine if of == level)
        source = level - order
        if 0 <= source < self.levels:
            assert (source, chunk) in mine, "its input is not there yet"
        if chunk:
            assert (level, chunk - 1) in mine
        mine.append((level, chunk))

    def room(self, *given: Any, **how: Any) -> Any:
        self.places.append(self.streams.now)
        return super().room(*given, **how)

    def made(self, *given: Any) -> Any:
        self.places.append(self.streams.now)
        return super().made(*given)

    def run_into(self, *given: Any, **how: Any) -> Any:
        self.ran(1)
        return super().run_into(*given, **how)

    def run_backward_into(self, *given: Any) -> Any:
        self.ran(-1)
        return super().run_backward_into(*given)


def test_a_level_has_a_place_and_waits_for_the_one_that_it_needs(
    steps: Fused, xp: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = Streams()
    watched = Watched(steps, streams, 3)
    layer = run_by(LAYERS["lstm"], Wave(watched, streams, 4))

    def gradients(*given: Any, **how: Any) -> Any:
        watched.places.append(streams.now)
        return fused.gradients(*given, **how)

    monkeypatch.setattr(wave, "gradients", gradients)
    results(layer, None, PUT, **PLAIN)
    # Forward, in inference for each of three chunks, backward, and the gradients.
    assert watched.places == [0, 1, 2] * (1 + 3 + 1 + 1)
    assert streams.said == ["fork", "join"] * 3
    chunks = {(level, chunk) for level in range(3) for chunk in range(3)}
    assert chunks == {done for place in streams.given for done in place}
    # The place where the backward run ends has seen everything, that of the highest level itself.
    assert set(streams.given[0]) == chunks
    assert {level for level, _ in streams.given[2]} == {2}
