"""RNN, LSTM and GRU on a CUDA GPU, beside PyTorch's layers, which are cuDNN's there.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json
    python benchmarks/gpu.py --out gpu.json --limit 240 --dtype float32 --table grid long

Needs CuPy and a PyTorch built for CUDA, in one environment. Contestants take turns in one process,
round by round, on the same numbers, after all elements of their outputs and gradients were compared
on the device. Turns are timed by events on the contestant's own stream; one of short calls is
warmed up by a call before it. What takes long at its first call (compiling, cuDNN's choice of an
algorithm) is counted apart. The JSON is written after every row, and a run goes on where the last
one stopped, at a limit of time if one is given; the Markdown stands beside it. Without a GPU it
says so, and exits with 2.

    rnn_xp          the engine that this library chooses
    core            this library's plain loop, as CuPy operations: timed in the first round alone,
                    and left out of long sequences where cuDNN is there to compare with
    cuDNN           PyTorch's layer, in the same number format
    cuDNN TF32      the same, float32 products in TF32: less exact, so that it is no judge
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache, lru_cache
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from beside.cases import CELLS, GRID, Case, HostArray, data_of, layer_of

import rnn_xp
from rnn_xp.backend import BackendError, select
from rnn_xp.cli.console import check_output
from rnn_xp.cli.options import POSITIVE, Parser, count, number
from rnn_xp.doctor.engines import on_core
from rnn_xp.doctor.gpu import properties, versions
from rnn_xp.doctor.machine import Shape
from rnn_xp.files import replace_file

LONG = (
    *((1024, batch, 512, 512) for batch in (1, 4, 16, 64, 256)),
    *((1024, 16, size, size) for size in (768, 1024, 2048)),
)
WIDE = tuple((1024, batch, size, size) for size in (768, 1024, 2048) for batch in (1, 64, 256))
"""Of the LSTM and the GRU."""
COMMON = ((100, 32, 256, 256), (1024, 16, 512, 512))
DEEP = tuple((1024, 16, size, size) for size in (256, 512))
DTYPES = ("float32", "float16")
IN_ORDER = ("lstm", "gru", "rnn", "gru-before")
TASKS = ("inference", "training")
TABLES = ("grid", "long", "ragged", "2 levels", "4 levels", "bidirectional")
ALONE = "gru-before"
"""The cell that cuDNN does not have."""
LOOP_STEPS = 512
"""From so many steps on, the core is left out."""
DRAWN = 2**20 + 7
"""How many numbers are drawn: a prime, so that they begin elsewhere in every step."""
TOLERANCE = {"float32": 2e-4, "float16": 3e-2}
"""Of the largest element of an output or a gradient."""
TF32_TOLERANCE = 2e-2
ROUNDS = 5
SECONDS = 0.05
"""Of a contestant in a row, all rounds together."""
MOST_CALLS = 1000
Seconds = Callable[[Callable[[], Any], int], float]
"""From a call and how often it is made to the seconds of one."""
Results = dict[str, Any]


class NoGPU(Exception):
    """Why nothing can be measured here."""


class Contestant(NamedTuple):
    """One library with a case made ready."""

    run: Callable[[], dict[str, Any]]
    """Give the work to the device; return y and, of a training step, the gradients by name."""
    seconds: Seconds
    pool: Callable[[Callable[[], Any]], int]
    """By how many bytes the library's memory pool grows in one call."""
    view: Callable[[Any], Any]
    """From an array of any library on the device to one of this library's, without a copy."""
    tolerance: float
    once: bool = False
    """Whether it is timed in the first round alone."""


class Ready(NamedTuple):
    """A contestant whose results are right."""

    contestant: Contestant
    calls: int
    """In a turn."""
    first: float
    """The seconds of its first call."""


class Numbers(NamedTuple):
    """What goes into a case: `spread` makes x and dy of these."""

    params: dict[str, HostArray]
    x: HostArray
    dy: HostArray
    lengths: HostArray | None


# What is measured


def plan(
    dtypes: Sequence[str], tasks: Sequence[str], cells: Sequence[str], tables: Sequence[str]
) -> list[Case]:
    """Return the rows asked for; what says most comes first, for a run that is stopped."""
    return [
        case
        for dtype in DTYPES
        for cell in IN_ORDER
        for task in TASKS
        for case in rows(dtype, cell, task)
        if dtype in dtypes and cell in cells and task in tasks and case.table in tables
    ]


def rows(dtype: str, cell: str, task: str) -> list[Case]:
    """Return the grid, longer and larger rows, a ragged batch, levels, and two directions.

    There are few of a cell that cuDNN does not have.
    """

    def row(table: str, shape: Shape, **options: Any) -> Case:
        return Case(table, task, cell, shape, dtype, **options)

    if cell == ALONE:
        return [row("grid", shape) for shape in GRID[-3:]] + [row("long", s) for s in LONG[2:3]]
    long = LONG if cell == "rnn" else LONG + WIDE
    return [
        *(row("grid", shape) for shape in GRID),
        *(row("long", shape) for shape in long),
        *(row("ragged", shape, ragged=True) for shape in COMMON),
        *(row(f"{n} levels", shape, layers=n) for n in (2, 4) for shape in DEEP),
        *(row("bidirectional", shape, layers=2, bidirectional=True) for shape in COMMON),
    ]


def numbers(case: Case) -> Numbers:
    """Return the numbers of a case; those of float16 are float32's, rounded.

    Parameters and lengths are drawn as for the other benchmarks. Of x and dy there are no more
    than `DRAWN` numbers each.
    """
    steps, batch, size, hidden = case.shape
    network = replace(case, table="", task="", shape=(1, 1, size, hidden), ragged=False)
    x, dy = (
        drawn[: math.prod(shape)].astype(case.dtype)
        for drawn, shape in zip(noise(), shapes(case), strict=True)
    )
    lengths = np.random.default_rng(0).integers(1, steps + 1, batch)
    lengths[0] = steps
    return Numbers(parameters(network), x, dy, lengths if case.ragged else None)


@lru_cache(maxsize=16)
def parameters(network: Case) -> dict[str, HostArray]:
    """Draw the parameters of a network, once for the rows in which it comes one after the other."""
    drawn = data_of(replace(network, dtype="float32")).params
    return {name: a.astype(network.dtype) for name, a in drawn.items()}


@cache
def noise() -> HostArray:
    """Draw what x and dy are made of."""
    return np.random.default_rng(0).standard_normal((2, DRAWN), dtype=np.float32)


def shapes(case: Case) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return those of x and dy."""
    steps, batch, size, _ = case.shape
    return (steps, batch, size), (steps, batch, layer_of(case).output_size)


def spread(drawn: Any, shape: tuple[int, ...], tile: Callable[[Any, tuple[int]], Any]) -> Any:
    """Repeat numbers along a whole array, on their device, by the library's own function."""
    count = math.prod(shape)
    return tile(drawn, (-(-count // len(drawn)),))[:count].reshape(shape)


# This library


def ours(case: Case, data: Numbers, *, core: bool, backend: str = "cupy") -> Contestant:
    """Make a case ready in this library."""
    chosen = select(backend)
    layer = on_core(layer_of(case)) if core else layer_of(case)
    params = {name: chosen.asarray(a) for name, a in data.params.items()}
    x, dy = (
        spread(chosen.asarray(drawn), shape, chosen.xp.tile)
        for drawn, shape in zip((data.x, data.dy), shapes(case), strict=True)
    )
    prepared = layer.prepare(params)

    def infer() -> dict[str, Any]:
        return {"y": layer(prepared, x, lengths=data.lengths)[0]}

    def train() -> dict[str, Any]:
        y, _, cache = layer.forward(params, x, lengths=data.lengths)
        dparams, dx, _ = layer.backward(params, cache, dy)
        return {"y": y, "dx": dx, **{f"d{name}": a for name, a in dparams.items()}}

    run = train if case.task == "training" else infer
    tolerance = TOLERANCE[case.dtype]
    return Contestant(run, cupy_seconds, cupy_bytes, chosen.xp.from_dlpack, tolerance, once=core)


def cupy_seconds(run: Callable[[], Any], calls: int) -> float:
    """Return the seconds of a call, between two events around so many on CuPy's stream."""
    import cupy

    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    for _ in range(calls):
        run()
    stop.record()
    stop.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, stop)) / 1e3 / calls


def cupy_bytes(run: Callable[[], Any]) -> int:
    """Return by how many bytes CuPy's memory pool grows in one call."""
    import cupy

    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    before = pool.total_bytes()
    run()
    return int(pool.total_bytes() - before)


# PyTorch


def torchs(case: Case, data: Numbers, *, tf32: bool, device: str = "cuda") -> Contestant:
    """Make a case ready in PyTorch's layer."""
    import torch

    _, _, size, hidden = case.shape
    kind = getattr(torch.nn, CELLS[case.cell])
    options = {"device": device, "dtype": getattr(torch, case.dtype)}
    module = kind(size, hidden, case.layers, bidirectional=case.bidirectional, **options)
    module.load_state_dict({name: torch.tensor(a) for name, a in data.params.items()})
    call = packed(module, case.shape[0], data.lengths)
    training = case.task == "training"
    x, dy = (
        spread(torch.tensor(drawn, device=device), shape, torch.tile)
        for drawn, shape in zip((data.x, data.dy), shapes(case), strict=True)
    )
    x.requires_grad_(training)

    def infer() -> dict[str, Any]:
        with torch.inference_mode(), allowed(tf32):
            return {"y": call(x)}

    def train() -> dict[str, Any]:
        module.zero_grad()
        x.grad = None
        with allowed(tf32):
            y = call(x)
            y.backward(dy)
        gradients = {f"d{name}": p.grad for name, p in module.named_parameters()}
        return {"y": y.detach(), "dx": x.grad, **gradients}

    tolerance = TF32_TOLERANCE if tf32 else TOLERANCE[case.dtype]
    run = train if training else infer
    return Contestant(run, torch_seconds, torch_bytes, torch.from_dlpack, tolerance)


def packed(module: Any, steps: int, lengths: HostArray | None) -> Callable[[Any], Any]:
    """Return the function from x to y; a ragged batch is packed, and padded again."""
    if lengths is None:
        return lambda x: module(x)[0]
    from torch import tensor
    from torch.nn.utils import rnn

    each = tensor(lengths)

    def call(x: Any) -> Any:
        given = rnn.pack_padded_sequence(x, each, enforce_sorted=False)
        return rnn.pad_packed_sequence(module(given)[0], total_length=steps)[0]

    return call


@contextlib.contextmanager
def allowed(tf32: bool) -> Iterator[None]:
    """Let PyTorch compute float32 products in TF32 within, or not. CuPy does not by itself."""
    from torch import backends

    switches = (backends.cudnn, backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = tf32
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value


def torch_seconds(run: Callable[[], Any], calls: int) -> float:
    """Return the seconds of a call, between two events around so many on PyTorch's stream."""
    import torch

    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        run()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3 / calls


def torch_bytes(run: Callable[[], Any]) -> int:
    """Return by how many bytes PyTorch's memory pool grows in one call."""
    import torch

    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    run()
    return int(torch.cuda.max_memory_reserved() - before)


def contestants(case: Case, data: Numbers) -> dict[str, Callable[[], Contestant]]:
    """Return what can run a case, this library first."""
    made: dict[str, Callable[[], Contestant]] = {"rnn_xp": lambda: ours(case, data, core=False)}
    if case.cell == ALONE or case.shape[0] < LOOP_STEPS:
        made["core"] = lambda: ours(case, data, core=True)
    if case.cell != ALONE:
        made["cuDNN"] = lambda: torchs(case, data, tf32=False)
        if case.dtype == "float32":
            made["cuDNN TF32"] = lambda: torchs(case, data, tf32=True)
    return made


# Measuring


def measure(
    makers: dict[str, Callable[[], Contestant]], rounds: int = ROUNDS, seconds: float = SECONDS
) -> dict[str, dict[str, Any]]:
    """Compare the results of all with the first one's, then time them in turns.

    A contestant has `seconds` for all its turns; a call that takes longer than one is timed once a
    round.

    Returns
    -------
    dict
        Of each: `min`, `median` (seconds of a call), `first` (the seconds that the first call took
        longer), `bytes`, `error` (the largest, relative); or `failed`, in one line.
    """
    ready, found = compared(makers, rounds, seconds)
    times: dict[str, list[float]] = {name: [] for name in ready}
    for done in range(rounds):
        for name, each in ready.items():
            if "failed" in found[name] or (done and each.contestant.once):
                continue
            try:
                times[name].append(turn(each))
            except Exception as error:  # any: the library's own
                found[name] = failure(error)
    for name, each in ready.items():
        if "failed" not in found[name]:
            least = min(times[name])
            middle = statistics.median(times[name])
            found[name] |= {"min": least, "median": middle, "first": each.first - least}
    return found


def compared(
    makers: dict[str, Callable[[], Contestant]], rounds: int, seconds: float
) -> tuple[dict[str, Ready], dict[str, dict[str, Any]]]:
    """Return those whose results are the first one's, and what is known of each by now."""
    ready: dict[str, Ready] = {}
    found: dict[str, dict[str, Any]] = {}
    expected: dict[str, Any] = {}
    view: Callable[[Any], Any] | None = None
    for name, make in makers.items():
        try:
            contestant = make()
            first, results = first_call(contestant)
            view = view or contestant.view
            results = {k: view(a) for k, a in results.items()}
            expected = expected or results
            error = largest_error(results, expected)
            if not error <= contestant.tolerance:  # so that NaN counts
                found[name] = {"failed": f"results differ by {error:.2g}"}
                continue
            memory, calls = sized(contestant, rounds, seconds)
        except Exception as error:  # any: the library's own
            found[name] = failure(error)
            continue
        ready[name] = Ready(contestant, calls, first)
        found[name] = {"bytes": memory, "error": error}
    return ready, found


def first_call(contestant: Contestant) -> tuple[float, dict[str, Any]]:
    """Return the seconds that a call takes, and what it returns."""
    results: dict[str, Any] = {}
    took = contestant.seconds(lambda: results.update(contestant.run()), 1)
    return took, results


def largest_error(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Return the largest error, relative to the largest element of its array.

    Every element counts. All arrays are of one library, which computes on their device and in their
    dtype: only the two largest elements come to the host. (The difference of two float16 numbers
    is exact where they are close, else rounded as any.)
    """
    errors = [0.0]
    for name, right in expected.items():
        scale = float(abs(right).max()) or 1.0
        errors.append(float(abs(found[name] - right).max()) / scale)
    return float(np.max(errors))


def sized(contestant: Contestant, rounds: int, seconds: float) -> tuple[int, int]:
    """Return the bytes that a call takes, and how many calls make a turn.

    The call whose memory is counted is timed too, and that is enough for one that takes all of a
    contestant's time; a shorter one is timed again, now that the pool has its memory.
    """
    times: list[float] = []

    def once() -> None:
        times.append(contestant.seconds(contestant.run, 1))

    memory = contestant.pool(once)
    if times[0] < seconds:
        once()
    return memory, max(1, min(MOST_CALLS, int(seconds / rounds / max(min(times), 1e-9))))


def turn(ready: Ready) -> float:
    """Return the seconds of a call in one turn; short ones are warmed up."""
    contestant, calls, _ = ready
    if calls > 1:
        contestant.seconds(contestant.run, 1)
    return contestant.seconds(contestant.run, calls)


def failure(error: Exception) -> dict[str, Any]:
    """Return what is kept of an exception: its first line."""
    return {"failed": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}


# What is written


def facts() -> dict[str, str]:
    """Return what the device is, and all versions.

    Raises
    ------
    NoGPU
        If CuPy or PyTorch cannot use one.
    """
    try:
        select("cupy")
    except BackendError as error:
        raise NoGPU(str(error)) from None
    try:
        import torch
    except ImportError:
        raise NoGPU("PyTorch is not installed: install its build for CUDA") from None
    if not torch.cuda.is_available():
        raise NoGPU(f"PyTorch {torch.__version__} sees no GPU: install its build for CUDA")
    import cupy

    return {
        **properties(),
        "CuPy": cupy.__version__,
        "PyTorch": torch.__version__,
        "PyTorch's CUDA": str(torch.version.cuda),
        **versions(),
        "rnn_xp": rnn_xp.__version__,
    }


def markdown(results: Results) -> str:
    """Return the tables."""
    about = "; ".join(f"{name} {value}" for name, value in results["about"].items())
    lines = ["# On a GPU", "", f"{about}.", "", _EXPLAINED, ""]
    for dtype in DTYPES:
        for task in TASKS:
            rows = [r for r in results["rows"] if (r["dtype"], r["task"]) == (dtype, task)]
            if rows:
                lines += [f"## {task.capitalize()}, {dtype}", "", *table(rows), ""]
    return "\n".join([*lines, "## Summary", "", _SUMMED, "", *summary(results["rows"]), ""])


_EXPLAINED = (
    "Minima of the rounds, µs a time step; the ratio is that of cuDNN to rnn_xp in the same number "
    "format: above 1 rnn_xp is ahead, rows in bold are behind. TF32 is less exact. The core is a "
    f"plain loop, timed in one round alone, and beside cuDNN not from {LOOP_STEPS} steps on (–). "
    "Memory is by how much the library's pool grows in one call."
)
_SUMMED = (
    "Over the rows where rnn_xp and cuDNN both have a time: in how many rnn_xp is ahead, and the "
    "geometric mean of cuDNN ÷ rnn_xp. The second figures take cuDNN in TF32 where that is faster, "
    "although it is less exact than rnn_xp, which computes in float32."
)


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of one table."""
    names = ["rnn_xp", "core", "cuDNN"]
    if any("cuDNN TF32" in row["found"] for row in rows):
        names.append("cuDNN TF32")
    head = ["", "cell", "T,B,I,H", *names, "ratio", "MB, rnn_xp", "MB, cuDNN"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        found, steps = row["found"], row["shape"][0]
        cells = [row["table"], CELLS[row["cell"]], ",".join(map(str, row["shape"]))]
        cells += [_time(found.get(name), steps) for name in names]
        cells += [_ratio(found), _memory(found.get("rnn_xp")), _memory(found.get("cuDNN"))]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _time(found: dict[str, Any] | None, steps: int) -> str:
    if found is None:
        return "–"
    return found.get("failed") or f"{found['min'] / steps * 1e6:.3g}"


def _ratio(found: dict[str, Any]) -> str:
    ratio = ratio_to(found, "cuDNN")
    if ratio is None:
        return "–"
    return f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**"


def _memory(found: dict[str, Any] | None) -> str:
    return "–" if found is None or "bytes" not in found else f"{found['bytes'] / 1e6:.1f}"


def ratio_to(found: dict[str, Any], *peers: str) -> float | None:
    """Return the time of the fastest of the peers over this library's; the first must have one."""
    ours, first, *more = (found.get(name, {}).get("min") for name in ("rnn_xp", *peers))
    if ours is None or first is None:
        return None
    return float(min(time for time in (first, *more) if time is not None) / ours)


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of the table of how many rows are ahead, and by how much."""
    head = ["", "rows", "with both times", "ahead of cuDNN", "cuDNN ÷ rnn_xp"]
    head += ["ahead of the faster of cuDNN and cuDNN TF32", "the faster ÷ rnn_xp"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for dtype in DTYPES:
        for task in TASKS:
            found = [r["found"] for r in rows if (r["dtype"], r["task"]) == (dtype, task)]
            ratios = [ratio_to(each, "cuDNN") for each in found]
            faster = [ratio_to(each, "cuDNN", "cuDNN TF32") for each in found]
            count = len(ratios) - ratios.count(None)
            cells = [f"{task}, {dtype}", str(len(found)), str(count), *_summed(ratios)]
            cells += _summed(faster) if dtype == "float32" else ["–", "–"]
            if found:
                lines.append("| " + " | ".join(cells) + " |")
    return lines


def _summed(ratios: Sequence[float | None]) -> tuple[str, str]:
    both = [ratio for ratio in ratios if ratio is not None]
    if not both:
        return "–", "–"
    return str(sum(ratio >= 1 for ratio in both)), f"{statistics.geometric_mean(both):.2f}"


def load(path: Path, about: dict[str, str]) -> Results:
    """Return what an earlier run on the same device and versions has measured, or nothing yet."""
    if not path.exists():
        return {"about": about, "rows": []}
    results: Results = json.loads(path.read_text(encoding="utf-8"))
    if results["about"] != about:
        raise NoGPU(f"{path} was measured on another device or with other versions: move it away")
    return results


def save(path: Path, results: Results) -> None:
    """Write the JSON, and the Markdown beside it."""
    rows = ",\n".join(json.dumps(row) for row in results["rows"])  # a line each
    about = json.dumps(results["about"])
    replace_file(path, f'{{"about": {about}, "rows": [\n{rows}\n]}}\n'.encode())
    replace_file(path.with_suffix(".md"), markdown(results).encode())


def asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the JSON to write")
    parser.add_argument("--rounds", type=count(1), default=ROUNDS)
    parser.add_argument(
        "--seconds",
        type=POSITIVE,
        default=SECONDS,
        help=f"of a contestant in a row, all rounds together (default {SECONDS:g})",
    )
    parser.add_argument(
        "--limit",
        type=number(0.0),
        default=math.inf,
        help="begin no row after so many seconds; another run goes on there",
    )
    choices = {"dtype": DTYPES, "task": TASKS, "cell": IN_ORDER, "table": TABLES}
    for name, each in choices.items():
        parser.add_argument(f"--{name}", choices=each, nargs="+", default=each)
    options = parser.parse_args(arguments)
    try:
        check_output(options, force=True)  # a run goes on with what is there
    except ValueError as error:
        parser.error(str(error))
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run."""
    start = perf_counter()
    options = asked(arguments)
    try:
        results = load(options.out, facts())
    except NoGPU as error:
        print(f"nothing is measured: {error}", file=sys.stderr)
        return 2
    done = [row["case"] for row in results["rows"]]
    planned = plan(options.dtype, options.task, options.cell, options.table)
    left = [case for case in planned if as_json(case) not in done]
    for k, case in enumerate(left):
        if perf_counter() - start >= options.limit:
            print(f"stopped after {options.limit:g} seconds: {len(left) - k} rows are left")
            return 0
        found = measure(contestants(case, numbers(case)), options.rounds, options.seconds)
        key = as_json(case)
        shown = {"table": case.table, "task": case.task, "cell": case.cell, "dtype": case.dtype}
        results["rows"].append({"case": key, **shown, "shape": key["shape"], "found": found})
        save(options.out, results)
        times = {name: _time(value, case.shape[0]) for name, value in found.items()}
        print(f"{case}: µs a step {times}, cuDNN / rnn_xp {_ratio(found)}", flush=True)
        if all("failed" in each for each in found.values()):
            print("stopped: everything fails; another run goes on after this row", file=sys.stderr)
            return 1
    return 0


def as_json(case: Case) -> dict[str, Any]:
    """Return a case as it is read from the JSON."""
    read: dict[str, Any] = json.loads(json.dumps(asdict(case)))
    return read


if __name__ == "__main__":
    sys.exit(main())
