"""Time a training step and inference: this library, PyTorch and the plainest NumPy loop.

    python benchmarks/recurrent.py --out benchmarks/results/recurrent-cpu.md

Inference calls the layer with the parameters from `prepare`, as a caller would who calls it often.
The candidates are interleaved round by round in one process, with the same inputs, dtype and
number of threads, after their results were compared. Figures are minima in milliseconds; the
ratio in brackets is the median of the rounds' ratios. Above 1 this library is faster.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

THREADS = "2"
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_name, THREADS)
for _name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):  # they would slow NumPy down
    os.environ.pop(_name, None)

import numpy as np  # noqa: E402
import plain  # noqa: E402
import torch  # noqa: E402

from rnn_xp import GRU, LSTM, RNN  # noqa: E402

LAYERS = {"RNN": RNN, "LSTM": LSTM, "GRU": GRU}
GRID = (
    (10, 1, 3, 5),
    (100, 1, 64, 128),
    (100, 32, 64, 128),
    (512, 16, 64, 64),
    (100, 32, 256, 256),
    (35, 20, 650, 650),
    (100, 64, 512, 512),
)


def candidates(
    kind: str, shape: tuple[int, int, int, int]
) -> tuple[dict[str, Callable[[], None]], dict[str, Callable[[], None]]]:
    """Return the calls to time, for training and for inference, after comparing their results."""
    steps, batch, inputs, hidden = shape
    layer = LAYERS[kind](inputs, hidden)
    params = layer.init(0)
    prepared = layer.prepare(params)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps, batch, inputs), dtype=np.float32)
    dy = rng.standard_normal((steps, batch, hidden), dtype=np.float32)
    peer = getattr(torch.nn, kind)(inputs, hidden)
    peer.load_state_dict({name: torch.tensor(value) for name, value in params.items()})
    torch_x, torch_dy = torch.tensor(x, requires_grad=True), torch.tensor(dy)

    def ours() -> None:
        _, _, cache = layer.forward(params, x)
        layer.backward(params, cache, dy)

    def torchs() -> None:
        peer.zero_grad()
        torch_x.grad = None
        peer(torch_x)[0].backward(torch_dy)

    def plains() -> None:
        _, tape = plain.FORWARD[kind](params, x)
        plain.BACKWARD[kind](params, tape, dy)

    def torch_inference() -> None:
        with torch.inference_mode():
            peer(torch_x)

    y, _, cache = layer.forward(params, x)
    dparams, dx, _ = layer.backward(params, cache, dy)
    plain_y, tape = plain.FORWARD[kind](params, x)
    plain_dparams, plain_dx = plain.BACKWARD[kind](params, tape, dy)
    torchs()
    torch_y = peer(torch_x)[0].detach().numpy()
    pairs = [(y, torch_y), (plain_y, torch_y), (dx, torch_x.grad.numpy())]
    pairs += [(plain_dx, dx)] + [(plain_dparams[name], dparams[name]) for name in params]
    pairs += [(dparams[name], p.grad.numpy()) for name, p in peer.named_parameters()]
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-4 * float(np.abs(b).max()))

    training = {"rnn_xp": ours, "torch": torchs, "plain": plains}
    inference = {
        "rnn_xp": lambda: void(layer(prepared, x)),
        "torch": torch_inference,
        "plain": lambda: void(plain.FORWARD[kind](params, x)),
    }
    return training, inference


def void(_: object) -> None:
    """Drop a result."""


def measure(calls: dict[str, Callable[[], None]], seconds: float) -> dict[str, list[float]]:
    """Return the time of each call in each round, in ms, for about so many seconds."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    begin = perf_counter()
    while perf_counter() - begin < seconds or len(times["rnn_xp"]) < 15:
        for name, call in calls.items():
            start = perf_counter()
            call()
            times[name].append((perf_counter() - start) * 1e3)
    return times


def row(kind: str, shape: tuple[int, ...], times: dict[str, list[float]]) -> str:
    """Return one line of the table."""
    cells = [kind, ",".join(map(str, shape)), f"{min(times['rnn_xp']):.3g}"]
    for peer in ("torch", "plain"):
        ratio = min(times[peer]) / min(times["rnn_xp"])
        rounds = zip(times[peer], times["rnn_xp"], strict=True)
        median = statistics.median(a / b for a, b in rounds)
        cells += [f"{min(times[peer]):.3g}", f"{ratio:.2f} ({median:.2f})"]
    return f"| {' | '.join([*cells, str(len(times['rnn_xp']))])} |"


def main() -> None:
    """Print the tables, and write them to a file on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    torch.set_num_threads(int(THREADS))
    lines = [
        f"{processor()}, {THREADS} threads, float32; Python {platform.python_version()}, "
        f"NumPy {np.__version__}, PyTorch {torch.__version__}"
    ]
    tables: dict[str, list[str]] = {"Training step": [], "Inference": []}
    for kind in LAYERS:
        for shape in GRID:
            for title, calls in zip(tables, candidates(kind, shape), strict=True):
                tables[title].append(row(kind, shape, measure(calls, options.seconds)))
                print(title, tables[title][-1], file=sys.stderr, flush=True)
    head = "| cell | T,B,I,H | rnn_xp | PyTorch | ratio | plain loop | ratio | rounds |"
    for title, rows in tables.items():
        lines += ["", f"## {title}, ms", "", head, "|" + "---|" * 8, *rows]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text)


def processor() -> str:
    """Return the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
