"""Streams for work that runs at once: who waits for whom, without a GPU."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import local
from types import SimpleNamespace
from typing import Any

import pytest
import standin

from rnn_xp.engines.cuda import streams as cuda_streams


class FakeStream:
    """As `cupy.cuda.Stream`; says what it is told."""

    current: FakeStream
    said: list[str]
    made = 0

    def __init__(self, *, non_blocking: bool) -> None:
        assert non_blocking  # it would wait for the null stream
        self.ptr = id(self)
        FakeStream.made += 1
        self.name = f"stream {FakeStream.made}"

    def record(self) -> str:
        self.said.append(f"{self.name} records")
        return self.name

    def wait_event(self, event: str) -> None:
        self.said.append(f"{self.name} waits for {event}")

    def use(self) -> FakeStream:
        self.said.append(f"on {self.name}")
        FakeStream.current = self
        return self


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> type[FakeStream]:
    def device(index: int = 0) -> Any:
        return standin.Device(index)

    cuda = SimpleNamespace(
        Device=device, Stream=FakeStream, get_current_stream=lambda: FakeStream.current
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(cuda_streams, "_others", local())
    FakeStream.said, FakeStream.made = [], 0
    FakeStream.current = FakeStream(non_blocking=True)
    return FakeStream


def test_the_others_begin_and_end_with_the_current_one(streams: Any) -> None:
    current = streams.current

    def fail() -> None:
        with cuda_streams.streams(3) as (first, second, third):
            with first:
                assert streams.current is current
                streams.said.append("work")
            third.follow(second)
            with second:
                assert streams.current.name == "stream 2"
                raise ValueError("in between")

    with pytest.raises(ValueError, match="in between"):
        fail()
    assert streams.current is current
    assert streams.said == [
        "stream 1 records",
        "stream 2 waits for stream 1",
        "stream 3 waits for stream 1",
        "on stream 1",
        "work",
        "on stream 1",
        "stream 2 records",
        "stream 3 waits for stream 2",
        "on stream 2",
        "on stream 1",
        "stream 2 records",
        "stream 1 waits for stream 2",
        "stream 3 records",
        "stream 1 waits for stream 3",
        "stream 1 records",
        "stream 2 waits for stream 1",
        "stream 3 waits for stream 1",
    ]


def test_each_stream_and_each_thread_has_another_one(streams: Any) -> None:
    def other() -> Any:
        with cuda_streams.streams(2) as (_, second), second:
            return streams.current

    first, one = streams.current, other()
    assert other() is one
    with cuda_streams.streams(3) as (_, second, third):
        with second:
            assert streams.current is one
        with third:
            assert streams.current not in (first, one)
    two = streams(non_blocking=True).use()
    found = {one, other()}
    first.use()
    with ThreadPoolExecutor(1) as pool:
        found.add(pool.submit(other).result())
    assert len(found) == 3
    assert not found & {first, two}
