"""Batches that travel to a GPU in pieces: what arrives, and who waits for whom, without a GPU.

The device is a machine on which every stream has a queue. Two schedules try it: `eager` copies as
soon as nothing is to be waited for, and computes as late as it can; `lazy` copies only where
someone waits for it, and computes at once. What is computed too early, or overwritten too early,
gives other numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import standin
from targets import need_module

from rnn_xp import LSTM, Dropout, Linear, Pool, losses
from rnn_xp.backend import Backend, select
from rnn_xp.batches import Batch, move
from rnn_xp.engines import PLAIN
from rnn_xp.engines.cuda import engine, pieces, training
from rnn_xp.fitting import Settings, fit
from rnn_xp.models import Chain
from rnn_xp.sequences import Sequences
from rnn_xp.tasks.examples import gradients_of, outputs_of

NUMPY = select("numpy")


class Event:
    """What was given to a stream until now."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._length = stream, stream.given

    @property
    def done(self) -> bool:
        return self._stream.done >= self._length

    def synchronize(self) -> None:
        """Let the host wait."""
        self._stream.run(self._length)


class Stream:
    """A queue of work, each piece after the events that it waits for."""

    def __init__(self, *, non_blocking: bool = False) -> None:
        assert non_blocking
        self._queue: list[Callable[[], object] | Event] = []
        self.done = 0
        Machine.streams.append(self)

    @property
    def given(self) -> int:
        return len(self._queue)

    def give(self, work: Callable[[], object] | Event) -> None:
        self._queue.append(work)
        Machine.step()

    def record(self) -> Event:
        return Event(self)

    def wait_event(self, event: Event) -> None:
        self.give(event)

    def run(self, until: int, *, wait: bool = True) -> None:
        """Do what is to be done; stop, or let others work first, where an event is not there."""
        while self.done < until:
            work = self._queue[self.done]
            if isinstance(work, Event):
                if not work.done and not wait:
                    return
                work.synchronize()
            else:
                work()
            self.done += 1


class Machine:
    """The streams, and the schedule."""

    streams: list[Stream]
    computing: Stream
    eager: bool
    """Whether what is copied is copied as soon as it can be,"""
    prompt: bool
    """and what is computed is computed at once."""

    @classmethod
    def start(cls, *, eager: bool, prompt: bool) -> None:
        cls.streams, cls.eager, cls.prompt = [], eager, prompt
        cls.computing = Stream(non_blocking=True)

    @classmethod
    def step(cls) -> None:
        for stream in cls.streams[1:] if cls.eager else ():
            stream.run(stream.given, wait=False)
        if cls.prompt:
            cls.computing.run(cls.computing.given)

    @classmethod
    def finish(cls) -> None:
        for stream in cls.streams:
            stream.run(stream.given)


def set_(self: standin.Array, host: Any, stream: Stream) -> None:
    """As `cupy.ndarray.set`: the host's numbers are read when the copy is made."""
    need_module("cupy")
    standin.check_call("set", standin.xp.cupy.ndarray.set, (self, host), {"stream": stream})
    assert isinstance(host, np.ndarray)
    stream.give(lambda: np.copyto(self._host, host))


def start(patch: pytest.MonkeyPatch, *, eager: bool) -> Backend:
    """Put the machine in the place of CuPy; return its second device."""
    cupy = need_module("cupy")
    need_module("ml_dtypes")
    standin.xp.start(cupy, need_module("array_api_compat.cupy"))
    cuda = SimpleNamespace(Stream=Stream, get_current_stream=lambda: Machine.computing)
    fake = SimpleNamespace(cuda=cuda, ndarray=cupy.ndarray, __version__=cupy.__version__)
    pinned = SimpleNamespace(empty_pinned=lambda size, dtype: np.full(size, 255, dtype=dtype))
    patch.setitem(sys.modules, "cupy", fake)
    patch.setitem(sys.modules, "cupyx", pinned)
    patch.setattr(standin.Array, "set", set_, raising=False)
    patch.setattr(pieces, "BYTES", 2048)
    Machine.start(eager=eager, prompt=not eager)
    return Backend("cupy", standin.xp, standin.Device(1), "cuda:1")


@pytest.fixture(params=[True, False], ids=["eager", "lazy"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    yield start(monkeypatch, eager=request.param)
    assert standin.xp.current == 0


def drawn(count: int) -> list[Batch]:
    """Return batches of several sizes: floats, integers, booleans, and lengths for some."""
    rng = np.random.default_rng(0)
    batches = []
    for k in range(count):
        steps, size = int(rng.integers(1, 9)), int(rng.integers(1, 5))
        arrays = (
            rng.standard_normal((steps, size, 3)),
            rng.integers(0, 1000, (steps, size)),
            rng.random((steps, size)) < 0.5,
            rng.standard_normal(size).astype(np.float32),
        )
        batches.append(Batch(arrays, np.arange(size) if k % 2 else None))
    return batches


def arrived(machine: Backend, dtype: str, batches: list[Batch]) -> list[Any]:
    """Return what a computation sees that reads each batch when its turn comes."""
    found: list[Any] = []
    for batch in move(machine, dtype, batches):

        def read(batch: Batch = batch) -> None:
            found.append([a._host.copy() for a in batch.arrays])

        assert all(a.device == machine.device for a in batch.arrays)
        Machine.computing.give(read)
    Machine.finish()
    return found


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("count", [0, 1, 2, 60])
def test_what_arrives(machine: Backend, count: int, dtype: str) -> None:
    batches = drawn(count)
    kind = machine.dtype(dtype)
    found = arrived(machine, dtype, batches)
    assert len(found) == count
    for arrays, batch in zip(found, batches, strict=True):
        for a, b in zip(arrays, batch.arrays, strict=True):
            expected = b.astype(kind) if b.dtype.kind == "f" else b
            assert (a.dtype, a.shape) == (expected.dtype, expected.shape)
            np.testing.assert_array_equal(a, expected)
    assert standin.xp.reads == []


def test_many_batches_are_one_copy(machine: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[int] = []

    def counted(self: standin.Array, host: Any, stream: Stream) -> None:
        copies.append(host.nbytes)
        set_(self, host, stream)

    monkeypatch.setattr(standin.Array, "set", counted)
    monkeypatch.setattr(pieces, "BYTES", 1 << 14)
    batches = [Batch((np.ones((4, 5)), np.ones(3, dtype=np.int64))) for _ in range(100)]
    for _ in move(machine, "float32", batches):
        pass
    # 80 bytes and 24, each from a multiple of 256 on: 33 batches a piece.
    assert copies == [33 * 512 - 232] * 3 + [512 - 232]
    assert standin.xp.launches == {}


def test_a_batch_may_be_larger_than_a_piece(machine: Backend) -> None:
    batches = [Batch((np.full(size, float(size)),)) for size in (3, 5000, 7, 9000, 2, 9001, 1)]
    found = arrived(machine, "float64", batches)
    for (a,), batch in zip(found, batches, strict=True):
        np.testing.assert_array_equal(a, batch.arrays[0])


def test_the_host_fills_a_piece_while_the_device_works(machine: Backend) -> None:
    """No wait for what is computed: the other piece is loaded after a piece's first batch."""
    said: list[str] = []

    def load() -> Iterator[Batch]:
        for k in range(8):
            said.append(f"load {k}")
            yield Batch((np.zeros(128),))

    for k, _ in enumerate(move(machine, "float64", load())):
        said.append(f"use {k}")
        Machine.computing.give(lambda: said.append("computed"))
    turns = [f"use {k} load {k + 2} load {k + 3} use {k + 1}" for k in (0, 2, 4)]
    order = " ".join(word for word in said if word != "computed")
    assert order == f"load 0 load 1 {' '.join(turns)} use 6 use 7"


def test_who_leaves_early_leaves_no_copy_under_way(machine: Backend) -> None:
    moved = move(machine, "float64", drawn(60))
    for _ in range(20):
        next(moved)
    moved.close()
    copying = Machine.streams[1]
    assert copying.done == copying.given > 0


def test_training_in_pieces_gives_the_same(machine: Backend, monkeypatch: Any) -> None:
    """Sequences of several lengths, with noise and dropout, on the core."""
    monkeypatch.setattr(engine, "choose", lambda: PLAIN)  # the real ones keep what they chose
    monkeypatch.setattr(training, "choose", lambda: None)
    Machine.start(eager=Machine.eager, prompt=True)
    rng = np.random.default_rng(0)
    data = Sequences(tuple(rng.standard_normal((int(n), 3)) for n in rng.integers(1, 9, 30)))
    targets = rng.standard_normal((30, 2))
    below = ("lstm", LSTM(3, 4)), ("pool", Pool("mean"))
    model = Chain((*below, ("dropout", Dropout(0.3)), ("linear", Linear(4, 2))))
    params = model.init(1, dtype="float64")

    def fitted(to: Backend) -> Any:
        gradients = gradients_of(
            model, to, "float64", data, targets, losses.squared_error, noise=0.1
        )
        own = {name: to.asarray(value) for name, value in params.items()}
        found = fit(own, gradients, 30, Settings(epochs=3, batch_size=4)).params
        return found, outputs_of(model, found, to, "float64", data, batch_size=7)

    (expected, outputs), (found, same) = fitted(NUMPY), fitted(machine)
    np.testing.assert_allclose(same, outputs, rtol=1e-10, atol=1e-12)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name]._host, value, rtol=1e-10, atol=1e-12)


def _left_once(self: pieces.Piece) -> None:
    self._left = self._left or Machine.computing.record()


def _at_the_start(place: pieces.Place, piece: Any) -> Any:
    return piece[: place.stop - place.start].view(place.dtype).reshape(place.shape)


PLANTED: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "a batch does not wait for its copy": lambda patch: patch.setattr(
        Machine.computing, "wait_event", lambda _: None, raising=False
    ),
    "a copy does not wait for the batches before": lambda patch: patch.setattr(
        pieces.Piece, "leave", _left_once
    ),
    "the host does not wait for the copy before": lambda patch: patch.setattr(
        pieces.Piece, "rest", lambda _: None
    ),
    "an array lies where another one does": lambda patch: patch.setattr(
        pieces.Place, "view", _at_the_start
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_seen(fault: str) -> None:
    """By one schedule at least."""
    batches, right = drawn(60), []
    for eager in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            to = start(patch, eager=eager)
            PLANTED[fault](patch)
            found = arrived(to, "float64", batches)
        pairs = zip(found, batches, strict=True)
        right += [all(map(np.array_equal, a, b.arrays)) for a, b in pairs]
    assert not all(right)
