"""`rnn-xp train text` with its defaults, beside the same training as a plain PyTorch script.

    python benchmarks/train_text.py --out benchmarks/results/train-text.md

Both read the same text in the same batches, from the same initial weights: embedding, GRU or LSTM,
linear layer, cross-entropy, clipping, Adam, a cosine schedule. Each runs in a process of its own on
as many CPUs as threads, in turns of a few steps; evaluations are not part of it. PyTorch's Adam and
clipping run in the mode that is fastest in a trial before. Of our steps the report also tells how
much of their time passes outside the recurrent layer.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from beside import machine
from beside.client import environment
from beside.worker import settle

import rnn_xp
from rnn_xp import optim
from rnn_xp.backend import select
from rnn_xp.cli.options import Parser, count
from rnn_xp.datasets import load_shakespeare
from rnn_xp.doctor.machine import describe
from rnn_xp.layers import Recurrent
from rnn_xp.models import character_model
from rnn_xp.text import Vocabulary
from rnn_xp.training import Settings, Trainer

SETTINGS = Settings(eval_every=10**9)
CHARACTERS = SETTINGS.batch_size * SETTINGS.time_steps
BLOCK, TRIAL = 20, 8  # steps
SHOWN = (1, 2, 5, 10, 25, 50, 100, 150, 200, 250, 300, 350, 400)
MODES = {"fused": {"fused": True}, "foreach": {"foreach": True}, "for loop": {"foreach": False}}
Step = Callable[[], float]
"""Trains one step; returns the running mean of the loss, as `train text` prints it."""
_inside = 0.0  # seconds in the recurrent layer, in this process


class Run(NamedTuple):
    """What one library did."""

    about: str
    times: list[float]
    """Seconds of each step."""
    losses: list[float]
    inside: list[float]
    """Seconds of each step in the recurrent layer, forward and backward; zeros for PyTorch."""


# One library, in a process of its own


def work(name: str, cell: str, threads: int) -> None:
    """Serve until the input ends: each line a number of steps, answered by a `Run`'s lists."""
    text = load_shakespeare()
    vocabulary = Vocabulary.of(text)
    codes, split = vocabulary.encode(text), round(0.9 * len(text))
    model = character_model(len(vocabulary), cell=cell)
    train, rest = codes[:split], codes[split:]
    trainer = Trainer(model, select("numpy"), "float32", train, rest, SETTINGS)
    step, about = torchs(trainer, train, cell, threads) if name == "torch" else ours(trainer)
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        times, losses, inside = [], [], []
        for _ in range(int(line)):
            start, before = perf_counter(), _inside
            losses.append(step())
            times.append(perf_counter() - start)
            inside.append(_inside - before)
        settle()
        print(json.dumps([times, losses, inside]), flush=True)


def ours(trainer: Trainer) -> tuple[Step, str]:
    """Return a step of `train text`, and the versions."""
    for name in ("forward", "backward"):
        setattr(Recurrent, name, timed(getattr(Recurrent, name)))
    progress = trainer.start()

    def step() -> float:
        after = progress.step + 1
        trainer.run(progress, stop=lambda: progress.step == after)
        return progress.train_loss

    return step, f"rnn_xp {rnn_xp.__version__}, NumPy {np.__version__}"


def timed(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of the recurrent layer add its time to `_inside`."""

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        global _inside
        start = perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            _inside += perf_counter() - start

    return run


def torchs(trainer: Trainer, codes: Any, cell: str, threads: int) -> tuple[Step, str]:
    """Return a step of the PyTorch script in its fastest mode, the version and the mode."""
    import torch

    torch.set_num_threads(threads)
    took = {}
    for mode in MODES:
        step = torch_step(trainer, codes, cell, mode)
        for _ in range(TRIAL):
            start = perf_counter()
            step()
            took[mode] = min(took.get(mode, 1e9), perf_counter() - start)
    best = min(took, key=lambda mode: took[mode])
    return torch_step(trainer, codes, cell, best), f"PyTorch {torch.__version__}, Adam {best}"


def torch_step(trainer: Trainer, codes: Any, cell: str, mode: str) -> Step:
    """Return a step of the PyTorch script."""
    import torch

    params = trainer.start().params
    table, weight = params["embedding.weight"], params["linear.weight"]
    hidden = weight.shape[1]
    model = torch.nn.ModuleDict(
        {
            "embedding": torch.nn.Embedding(*table.shape),
            "recurrent": getattr(torch.nn, cell.upper())(table.shape[1], hidden),
            "linear": torch.nn.Linear(hidden, len(weight)),
        }
    )
    model.load_state_dict({name: torch.tensor(value) for name, value in params.items()})
    batch, steps = SETTINGS.batch_size, SETTINGS.time_steps
    length = (len(codes) - 1) // batch
    inputs = torch.tensor(codes[: batch * length].reshape(batch, length).T.copy())
    targets = torch.tensor(codes[1 : batch * length + 1].reshape(batch, length).T.copy())
    peak = SETTINGS.learning_rate
    rate = optim.warmup_cosine(peak, trainer.steps, 0, peak * SETTINGS.final_rate)
    adam = torch.optim.Adam(model.parameters(), **MODES[mode])
    step, mean, state = 0, 0.0, None

    def train() -> float:
        nonlocal step, mean, state
        within = step % trainer.steps_a_pass
        rows = slice(within * steps, (within + 1) * steps)
        if not within:
            state = None
        y, state = model["recurrent"](model["embedding"](inputs[rows]), state)
        state = tuple(s.detach() for s in state) if cell == "lstm" else state.detach()
        logits = model["linear"](y)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets[rows].flatten())
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(
            model.parameters(), SETTINGS.clip, foreach=mode != "for loop"
        )
        adam.param_groups[0]["lr"] = rate(step)
        adam.step()
        step += 1
        mean += max(0.01, 1.0 / step) * (loss.item() - mean)
        return mean

    return train


# The processes, in turns


@contextlib.contextmanager
def process(name: str, cell: str, threads: int) -> Iterator[subprocess.Popen[str]]:
    """Start a library's process, and end it."""
    command = [sys.executable, __file__, "--work", name, cell, str(threads)]
    with (
        machine.pinned(threads),
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(name, threads),
            encoding="utf-8",
        ) as started,
    ):
        yield started


def measure(cell: str, threads: int, steps: int) -> tuple[dict[str, Run], float]:
    """Return what each library did, and the share of the machine that others used meanwhile."""
    names = ("rnn_xp", "numpy", "torch")
    with contextlib.ExitStack() as stack:
        peers = {name: stack.enter_context(process(name, cell, threads)) for name in names}
        runs = {name: Run(answer(peer), [], [], []) for name, peer in peers.items()}
        others = machine.Others(peer.pid for peer in peers.values())
        for start in range(0, steps, BLOCK):
            for name, peer in peers.items():
                print(min(BLOCK, steps - start), file=peer.stdin, flush=True)
                times, losses, inside = answer(peer)
                runs[name].times.extend(times)
                runs[name].losses.extend(losses)
                runs[name].inside.extend(inside)
        first = [run.losses[0] for run in runs.values()]
        np.testing.assert_allclose(first, first[0], rtol=1e-5)
        return runs, others.share() or 0.0


def answer(peer: subprocess.Popen[str]) -> Any:
    """Return what a process answers."""
    assert peer.stdout is not None
    line = peer.stdout.readline()
    if not line:
        raise SystemExit(f"a process ended with exit code {peer.wait()}")
    return json.loads(line)


# The report


def speeds(runs: dict[str, Run]) -> list[str]:
    """Return the characters a second of each, the ratios to PyTorch's, and what is around."""
    peer = runs["torch"].times
    cells = []
    for name in ("rnn_xp", "numpy"):
        times = runs[name].times
        ratio = min(peer) / min(times)
        median = statistics.median(peer) / statistics.median(times)
        around = statistics.median(map(outside, times, runs[name].inside))
        cells += [f"{CHARACTERS / min(times):,.0f}", f"{ratio:.2f} ({median:.2f})", f"{around:.0%}"]
    return [*cells, f"{CHARACTERS / min(peer):,.0f}", runs["torch"].about.rpartition(" Adam ")[2]]


def outside(seconds: float, inside: float) -> float:
    """Return the part of a step that is not in the recurrent layer."""
    return 1.0 - inside / seconds


def curve(runs: dict[str, Run]) -> list[str]:
    """Return the losses side by side."""
    own, peer = runs["rnn_xp"].losses, runs["torch"].losses
    head = ["| step | rnn_xp | PyTorch | difference |", "|---|---|---|---|"]
    return head + [
        f"| {step} | {own[step - 1]:.4f} | {peer[step - 1]:.4f} "
        f"| {own[step - 1] - peer[step - 1]:+.4f} |"
        for step in SHOWN
        if step <= len(own)
    ]


def page(cells: Sequence[str], threads: Sequence[int], steps: int) -> str:
    """Measure, and return the report."""
    rows, curves, busy = [], [], 0.0
    for cell in cells:
        for each in threads:
            runs, share = measure(cell, each, steps)
            busy = max(busy, share)
            rows.append(f"| {' | '.join([cell, str(each), *speeds(runs)])} |")
            print(rows[-1], file=sys.stderr)
        curves += ["", f"## Loss, {cell}", "", *curve(runs)]
    about = ", ".join([runs[name].about.partition(", Adam")[0] for name in ("rnn_xp", "torch")])
    described = ", ".join(f"{key} {value}" for key, value in describe().items())
    own = [column for name in ("rnn_xp", "NumPy alone") for column in (name, "ratio", "around")]
    columns = ["cell", "threads", *own, "PyTorch", "Adam"]
    lines = [
        "# `train text` beside a plain PyTorch script",
        "",
        f"{described}; {about}; float32. {steps} steps in turns of {BLOCK}; others used at most "
        f"{busy:.0%} of the CPUs.",
        "",
        "Characters a second at the shortest step. The ratio is that to PyTorch's, in brackets "
        "that of the median steps: above 1 rnn_xp is ahead. `NumPy alone` is rnn_xp without "
        "compiled kernels. `around` is the part of a step, in the median, that passes outside the "
        "recurrent layer: batches, embedding, linear layer, loss, clipping and Adam. (Where the "
        "kernels look the embedding's product up, looking it up is inside.)",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        *rows,
        "",
        "The losses are the running means that `train text` prints.",
        *curves,
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the report, and write it to a file on request."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", choices=("gru", "lstm"), default=["gru", "lstm"])
    parser.add_argument("--threads", nargs="+", type=count(1), default=[1, 2])
    parser.add_argument("--steps", type=count(1), default=400)
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        name, cell, threads = options.work
        work(name, cell, int(threads))
        return
    text = page(options.cells, options.threads, options.steps)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
