"""Time JAX and PyTorch arrays: compilation, calls, and the same loop written plainly in PyTorch.

    python benchmarks/arrays.py --out benchmarks/results/arrays-cpu.md

`core` is the loop that every library runs, unrolled by JAX under `jit`; `scan` is what JAX arrays
get instead, and `autodiff` JAX's own gradient of its forward pass. Calls are interleaved round by
round with the same inputs, after their results were compared; figures are minima.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

THREADS = "2"
os.environ.setdefault("OMP_NUM_THREADS", THREADS)
os.environ.setdefault("OPENBLAS_NUM_THREADS", THREADS)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import plain_torch  # noqa: E402
import torch  # noqa: E402

from rnn_xp import GRU, LSTM, RNN  # noqa: E402
from rnn_xp.cli.options import POSITIVE, Parser  # noqa: E402
from rnn_xp.doctor.machine import describe  # noqa: E402
from rnn_xp.engines import PLAIN, native  # noqa: E402
from rnn_xp.layers import recurrent  # noqa: E402

LAYERS = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
GRID = ((10, 1, 3, 5), (100, 32, 64, 128), (35, 20, 650, 650))
STEPS = (10, 100, 1000)
UNROLLED = (10,)  # 100 steps take JAX half a minute each, 1000 are not done after four
Calls = dict[str, Callable[[], Any]]


@contextmanager
def only_the_core() -> Iterator[None]:
    """Let the layers run the core on every library."""
    chosen = recurrent.engine
    recurrent.engine = lambda *_: PLAIN
    try:
        yield
    finally:
        recurrent.engine = chosen


def functions(layer: Any) -> dict[str, Callable[..., Any]]:
    """Return inference, a training step, and the same step by JAX's own gradient."""

    def inference(params: Any, x: Any, _: Any) -> Any:
        return layer(params, x)[0]

    def training(params: Any, x: Any, dy: Any) -> Any:
        _, _, cache = layer.forward(params, x)
        return layer.backward(params, cache, dy)[:2]

    def loss(params: Any, x: Any, dy: Any) -> Any:
        return (layer(params, x)[0] * dy).sum()

    return {
        "inference": inference,
        "training": training,
        "autodiff": jax.grad(loss, argnums=(0, 1)),
    }


def inputs(shape: tuple[int, ...], asarray: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Return x and dy."""
    steps, batch, size, hidden = shape
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps, batch, size), dtype=np.float32)
    dy = rng.standard_normal((steps, batch, hidden), dtype=np.float32)
    return asarray(x), asarray(dy)


def compile_seconds(kind: str, steps: int, name: str) -> float:
    """Return the time that JAX takes from a function to a program."""
    layer = LAYERS[kind](64, 128)
    params, (x, dy) = layer.init(0, backend="jax"), inputs((steps, 32, 64, 128), jax.numpy.asarray)
    jax.clear_caches()
    start = perf_counter()
    jax.jit(functions(layer)[name]).lower(params, x, dy).compile()
    return perf_counter() - start


def compilation() -> list[str]:
    """Return the table of compilation."""
    lines = ["", "## JAX: compilation under jit, seconds", "", "B, I, H = 32, 64, 128.", ""]
    head = [*(f"core, T = {t}" for t in UNROLLED), *(f"scan, T = {t}" for t in STEPS)]
    lines += [f"| cell | call | {' | '.join(head)} |", "|" + "---|" * (2 + len(head))]
    compile_seconds("RNN", 5, "training")  # the first one starts the compiler
    for kind in LAYERS:
        for name in ("inference", "training"):
            with only_the_core():
                times = [compile_seconds(kind, steps, name) for steps in UNROLLED]
            times += [min(compile_seconds(kind, t, name) for _ in range(3)) for t in STEPS]
            lines.append(f"| {kind} | {name} | {' | '.join(f'{t:.2f}' for t in times)} |")
            print(lines[-1], file=sys.stderr, flush=True)
    return lines


def measure(calls: Calls, seconds: float) -> list[float]:
    """Return the least time of each call, in ms."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    begin = perf_counter()
    while perf_counter() - begin < seconds or len(times[next(iter(calls))]) < 7:
        for name, call in calls.items():
            start = perf_counter()
            call()
            times[name].append((perf_counter() - start) * 1e3)
    return [min(each) for each in times.values()]


def compare(results: list[Any]) -> None:
    """Raise unless all results agree."""
    first, *others = [[np.asarray(a) for a in jax.tree.leaves(result)] for result in results]
    for other in others:
        for a, b in zip(first, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=3e-4 * float(np.abs(b).max()))


def jax_calls(kind: str, shape: tuple[int, ...], name: str) -> Calls:
    """Return a call of the core, of the scan, and of the scan under jit; and of autodiff."""
    layer = LAYERS[kind](*shape[2:])
    params, (x, dy) = layer.init(0, backend="jax"), inputs(shape, jax.numpy.asarray)
    call = functions(layer)[name]
    jitted = jax.jit(call)

    def core() -> Any:
        with only_the_core():
            return jax.block_until_ready(call(params, x, dy))

    calls: Calls = {
        "core": core,
        "scan": lambda: jax.block_until_ready(call(params, x, dy)),
        "jit": lambda: jax.block_until_ready(jitted(params, x, dy)),
    }
    if name == "training":
        automatic = jax.jit(functions(layer)["autodiff"])
        calls["autodiff"] = lambda: jax.block_until_ready(automatic(params, x, dy))
    compare([call() for call in calls.values()])
    return calls


def jax_table(seconds: float) -> list[str]:
    """Return the table of calls on JAX's arrays."""
    lines = ["", "## JAX: calls, without jit where it does not say so, ms", ""]
    lines += ["| call | cell | T,B,I,H | core | scan | ratio | scan, jit | autodiff, jit |"]
    lines += ["|" + "---|" * 8]
    for name in ("inference", "training"):
        for kind in LAYERS:
            for shape in GRID:
                core, scan, *jitted = measure(jax_calls(kind, shape, name), seconds)
                cells = [name, kind, ",".join(map(str, shape)), f"{core:.3g}", f"{scan:.3g}"]
                cells += [f"{core / scan:.1f}", *(f"{t:.3g}" for t in jitted)]
                lines.append(f"| {' | '.join(cells + ['–'] * (8 - len(cells)))} |")
                print(lines[-1], file=sys.stderr, flush=True)
    return lines


def torch_calls(kind: str, shape: tuple[int, ...], name: str) -> Calls:
    """Return a call of this library on tensors, of the core, and of the plain loop."""
    layer = LAYERS[kind](*shape[2:])
    params, (x, dy) = layer.init(0, backend="torch"), inputs(shape, torch.tensor)
    prepared = layer.prepare(params)
    with only_the_core():
        prepared_core = layer.prepare(params)

    def plain() -> Any:
        y, tape = plain_torch.FORWARD[kind](params, x)
        return y if name == "inference" else plain_torch.BACKWARD[kind](params, tape, dy)

    function = functions(layer)[name]

    def core() -> Any:
        with only_the_core():
            return function(params, x, dy)

    calls: Calls = {"rnn_xp": lambda: function(params, x, dy), "core": core, "plain": plain}
    if name == "inference":
        calls["rnn_xp"] = lambda: layer(prepared, x)[0]
        calls["core"] = lambda: layer(prepared_core, x)[0]
    compare([call() for call in calls.values()])
    return calls


def torch_table(seconds: float) -> list[str]:
    """Return the table of calls on PyTorch's tensors."""
    kernels = isinstance(native.choose(), native.Native)
    lines = ["", "## PyTorch tensors: against the same loop in PyTorch, ms", ""]
    lines += [f"rnn_xp runs {'its compiled kernels' if kernels else 'the core'} here.", ""]
    lines += ["| call | cell | T,B,I,H | plain | rnn_xp | ratio | core | ratio |", "|" + "---|" * 8]
    for name in ("inference", "training"):
        for kind in LAYERS:
            for shape in GRID:
                ours, core, plain = measure(torch_calls(kind, shape, name), seconds)
                cells = [name, kind, ",".join(map(str, shape)), f"{plain:.3g}", f"{ours:.3g}"]
                cells += [f"{plain / ours:.2f}", f"{core:.3g}", f"{plain / core:.2f}"]
                lines.append(f"| {' | '.join(cells)} |")
                print(lines[-1], file=sys.stderr, flush=True)
    return lines


def main() -> None:
    """Print the tables, and write them to a file on request."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=POSITIVE, default=0.5, help="for each row")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    torch.set_num_threads(int(THREADS))
    lines = [
        f"{describe()['processor']}, {os.cpu_count()} cores, {THREADS} threads, float32; Python "
        f"{platform.python_version()}, NumPy {np.__version__}, JAX {jax.__version__}, PyTorch "
        f"{torch.__version__}"
    ]
    lines += torch_table(options.seconds) + jax_table(options.seconds) + compilation()
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)


if __name__ == "__main__":
    main()
