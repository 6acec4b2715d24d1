"""Speed: the milliseconds of a forward and a backward pass, by each engine of a backend.

Everything is in float32. TF32, which is less exact, is off in PyTorch's cuDNN as it is in CuPy,
unless `CUPY_TF32=1` is set. A time is the least of a few, each from the call until the device is
done.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

from rnn_xp.backend import Array, Backend
from rnn_xp.doctor import plain
from rnn_xp.doctor.engines import runs
from rnn_xp.doctor.machine import Shape
from rnn_xp.doctor.parity import Config, Problem, problem_of
from rnn_xp.errors import named_line
from rnn_xp.layers import Recurrent

CUDNN, PLAIN = "cuDNN", "plain loop"
_SHAPES: tuple[Shape, ...] = ((50, 1, 64, 128), (50, 32, 64, 128))
_GPU_SHAPES: tuple[Shape, ...] = ((100, 16, 128, 512), (100, 64, 512, 1024))
_CELLS = ("LSTM", "GRU")
_ROUNDS = 3
_ENOUGH = 1.0  # seconds


@dataclass(frozen=True)
class Time:
    """How long one configuration takes."""

    backend: str
    engine: str
    config: Config
    milliseconds: float
    failure: str = ""
    """The error that was raised, if one was."""


def shapes(*, quick: bool, gpu: bool) -> list[Config]:
    """Return what to time."""
    found = (*_SHAPES, *(_GPU_SHAPES if gpu else ()))
    if quick:
        return [Config("LSTM", found[-1] if gpu else found[0])]
    return [Config(cell, shape) for shape in found for cell in _CELLS]


def times(backend: Backend, configs: list[Config]) -> Iterator[Time]:
    """Time configurations by the core and by the engine of a backend."""
    for config in configs:
        for engine, layer in runs(config.layer, backend, "float32", config.shape[:2]):
            make = partial(_step, layer, problem_of(config), backend)
            yield _time(backend.name, engine, config, make)


def plain_times(backend: Backend, configs: list[Config]) -> Iterator[Time]:
    """Time the same configurations by the loops that one would write first."""
    for config in configs:
        make = partial(_plain_step, config, problem_of(config), backend)
        yield _time(backend.name, PLAIN, config, make)


def cudnn_times(configs: list[Config], device: str) -> Iterator[Time]:
    """Time the same configurations by PyTorch's layers, which are cuDNN's on a GPU."""
    with _tf32_as_in_cupy():
        for config in configs:
            yield _time("torch", CUDNN, config, partial(_torch_step, config, device))


def _time(
    backend: str, engine: str, config: Config, make: Callable[[], Callable[[], None]]
) -> Time:
    try:
        step = make()
        step()  # compiles, and fills the caches
        seconds = [_seconds(step)]
        while len(seconds) < _ROUNDS and sum(seconds) < _ENOUGH:
            seconds.append(_seconds(step))
    except Exception as error:  # any: the library's own
        return Time(backend, engine, config, float("nan"), named_line(error))
    return Time(backend, engine, config, 1e3 * min(seconds))


def _seconds(step: Callable[[], None]) -> float:
    start = perf_counter()
    step()
    return perf_counter() - start


def _moved(problem: Problem, backend: Backend) -> tuple[dict[str, Array], Array, Array]:
    """Return parameters, x and dy on a backend."""
    params = {name: backend.asarray(a, "float32") for name, a in problem.params.items()}
    return params, backend.asarray(problem.x, "float32"), backend.asarray(problem.dy, "float32")


def _step(layer: Recurrent, problem: Problem, backend: Backend) -> Callable[[], None]:
    params, x, dy = _moved(problem, backend)

    def step() -> None:
        _, _, cache = layer.forward(params, x)
        _, dx, _ = layer.backward(params, cache, dy)
        # JAX gives work to the CPU too without waiting for it.
        getattr(dx, "block_until_ready", backend.synchronize)()

    return step


def _plain_step(config: Config, problem: Problem, backend: Backend) -> Callable[[], None]:
    params, x, dy = _moved(problem, backend)

    def step() -> None:
        plain.LOOPS[config.cell](backend.xp, params, x, dy)
        backend.synchronize()

    return step


def _torch_step(config: Config, device: str) -> Callable[[], None]:
    import torch

    problem, (_, _, size, hidden) = problem_of(config), config.shape
    module = getattr(torch.nn, config.cell)(size, hidden).to(device)
    module.load_state_dict({name: torch.tensor(a) for name, a in problem.params.items()})
    x, dy = (torch.tensor(a, dtype=torch.float32, device=device) for a in (problem.x, problem.dy))
    x.requires_grad = True

    def step() -> None:
        module.zero_grad()
        x.grad = None
        module(x)[0].backward(dy)
        if x.device.type == "cuda":
            torch.cuda.synchronize(x.device)

    return step


def tf32() -> bool:
    """Tell whether CuPy computes float32 products in TF32: only if `CUPY_TF32` says so."""
    return os.environ.get("CUPY_TF32", "0") not in ("", "0")


@contextlib.contextmanager
def _tf32_as_in_cupy() -> Iterator[None]:
    """Let PyTorch use TF32 within as CuPy does."""
    from torch import backends

    switches: list[Any] = [backends.cudnn, backends.cuda.matmul]
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = tf32()
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
