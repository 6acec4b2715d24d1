"""How long the host is busy with a call on CuPy arrays, launches left out: needs no GPU.

    python benchmarks/host.py

A small layer's call takes a GPU less time than the host takes to give it the work. What of that is
Python's own is measured here: checks, choices and new arrays, all on CuPy's real arrays, of memory
that nobody reads; but every launch, product and fill does nothing, and is counted instead. So this
is not the time of a call; it is what this library adds to its launches. Minima and medians.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any
from unittest.mock import patch

from rnn_xp import GRU, LSTM, RNN
from rnn_xp.cli.options import Parser
from rnn_xp.cli.options import count as integer
from rnn_xp.engines.cuda import engine, fused, persistent, trial
from rnn_xp.engines.cuda.plan import Limits
from rnn_xp.engines.cuda.streams import one_by_one

H100 = Limits(132, 232448, cooperative=True, capability=90)
CASES = {
    "10,1,3,5": ((10, 1, 3, 5), {}),
    "100,32,256,256, two levels, two directions": (
        (100, 32, 256, 256),
        {"num_layers": 2, "bidirectional": True},
    ),
    "1024,16,256,256, two levels": ((1024, 16, 256, 256), {"num_layers": 2}),
}
LAYERS = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
Call = Callable[[], Any]


class Nowhere:
    """A device that can be made current without a driver."""

    id = 0

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def memory(counted: Counter[str]) -> Callable[[int], Any]:
    """Return what allocates as CuPy's pools do, without a device: every array at one address."""
    from cupy.cuda import MemoryPointer, UnownedMemory

    class Pointer(MemoryPointer):  # type: ignore[misc]
        def memset_async(self, *_: object) -> None:
            counted["fill"] += 1

    owner = object()
    return lambda size: Pointer(UnownedMemory(1 << 40, max(size, 1), owner, 0), 0)


def silent(counted: Counter[str]) -> dict[str, Callable[..., Any]]:
    """Return CuPy's functions that launch, but that count it only."""
    import cupy

    def product(a: Any, b: Any, out: Any = None) -> Any:
        counted["product"] += 1
        return cupy.ndarray((a.shape[0], b.shape[1]), a.dtype) if out is None else out

    def joined(parts: Any, axis: int) -> Any:
        counted["copy"] += 1
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return cupy.ndarray(tuple(shape), parts[0].dtype)

    def stacked(parts: Any) -> Any:
        counted["copy"] += 1
        return cupy.ndarray((len(parts), *parts[0].shape), parts[0].dtype)

    def ones(shape: Any, dtype: Any) -> Any:
        counted["fill"] += 1
        return cupy.ndarray(shape, dtype)

    def same(a: Any, *_: object, **__: object) -> Any:
        counted["copy"] += 1
        return cupy.ndarray(a.shape, a.dtype)

    def added(*_: object, out: Any) -> Any:
        counted["sum"] += 1
        return out

    return {
        "dot": product,
        "concat": joined,
        "stack": stacked,
        "ones": ones,
        "asarray": same,
        "astype": same,
        "add": added,
        "ascontiguousarray": lambda a: a if a.flags.c_contiguous else same(a),
    }


@contextmanager
def without_a_device() -> Iterator[Counter[str]]:
    """Let CuPy make arrays and launch nothing, as on an H100; yield what would be launched."""
    import array_api_compat.cupy as namespace
    import cupy

    counted = Counter[str]()

    def kernel(*_: object, **__: object) -> None:
        counted["kernel"] += 1

    here = Nowhere()
    whole = persistent.Persistent(lambda *_: kernel, lambda: H100)
    chosen = engine.Cuda(fused.Fused(lambda _: lambda _: kernel), whole, one_by_one)
    with ExitStack() as stack:
        for name, function in silent(counted).items():
            stack.enter_context(patch.object(namespace, name, function))
        stack.enter_context(patch.object(engine, "choose", lambda: chosen))
        stack.enter_context(patch.object(trial, "passes", lambda *_: True))
        stack.enter_context(patch("rnn_xp.backend.device_of", lambda _: here))
        stack.enter_context(cupy.cuda.using_allocator(memory(counted)))
        yield counted


def calls(layer: Any, shape: tuple[int, int, int]) -> dict[str, Call]:
    """Return inference and a training step."""
    import cupy

    params = {name: cupy.ndarray(each, "float32") for name, each in layer.shapes.items()}
    x = cupy.ndarray(shape, "float32")
    dy = cupy.ndarray((*shape[:2], layer.output_size), "float32")

    def training() -> Any:
        _, _, cache = layer.forward(params, x)
        return layer.backward(params, cache, dy)

    return {"inference": lambda: layer(params, x), "training": training}


def measure(call: Call, count: int) -> list[float]:
    """Return the µs of so many calls."""
    call()
    times = []
    for _ in range(count):
        start = perf_counter()
        call()
        times.append((perf_counter() - start) * 1e6)
    return times


def table(count: int) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| T,B,I,H | cell | call | µs, least | µs, median | launches |"
    yield "|" + "---|" * 6
    with without_a_device() as counted:
        for title, ((*shape, hidden), options) in CASES.items():
            for name, kind in LAYERS.items():
                layer = kind(shape[2], hidden, **options)
                for task, call in calls(layer, tuple(shape)).items():
                    times = measure(call, count)
                    counted.clear()
                    call()
                    launched = ", ".join(f"{n} {what}" for what, n in sorted(counted.items()))
                    least, middle = min(times), statistics.median(times)
                    yield f"| {title} | {name} | {task} | {least:.0f} | {middle:.0f} | {launched} |"


def main() -> None:
    """Print the table."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=integer(1), default=300, help="of each (default 300)")
    for line in table(parser.parse_args().calls):
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
