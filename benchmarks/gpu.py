"""RNN, LSTM and GRU on a CUDA GPU, beside PyTorch's layers, which are cuDNN's there.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json

Needs CuPy and a PyTorch built for CUDA, in one environment. Contestants take turns in one process,
round by round, on the same numbers, after their outputs and gradients were compared; each turn is
warmed up, and timed by events on its own stream. What takes long at its first call (compiling,
cuDNN's choice of an algorithm) is counted apart. The JSON is written after every row, and a run
goes on where the last one stopped; the Markdown stands beside it. Without a GPU it says so, and
exits with 2.

    rnn_xp          the engine that this library chooses
    core            this library's plain loop, as CuPy operations
    cuDNN           PyTorch's layer, in the same number format
    cuDNN TF32      the same, float32 products in TF32: less exact, so that it is no judge
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

import rnn_xp
from rnn_xp.backend import BackendError, select
from rnn_xp.bench.cases import CELLS, GRID, Case, Data, data_of, layer_of
from rnn_xp.doctor.engines import on_core
from rnn_xp.files import replace_file

LONG = (
    *((1024, batch, 512, 512) for batch in (1, 4, 16, 64, 256)),
    *((1024, 16, size, size) for size in (768, 1024, 2048)),
)
DEEP = tuple((1024, 16, size, size) for size in (256, 512))
TASKS = ("inference", "training")
DTYPES = ("float32", "float16")
TOLERANCE = {"float32": 2e-4, "float16": 3e-2}
"""Of the largest element of an output or a gradient."""
TF32_TOLERANCE = 2e-2
TURN = 0.02  # seconds; a shorter call is repeated as often as fits
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
    to_numpy: Callable[[Any], Any]
    tolerance: float


# What is measured


def plan(dtypes: Sequence[str], cells: Sequence[str]) -> list[Case]:
    """Return all rows: the grid, longer and larger ones, a ragged batch, levels, two directions."""
    common = (100, 32, 256, 256)
    found = []
    for dtype in dtypes:
        for task in TASKS:
            for cell in cells:
                found += [Case("grid", task, cell, shape, dtype) for shape in GRID]
                found += [Case("long", task, cell, shape, dtype) for shape in LONG]
                found.append(Case("ragged", task, cell, common, dtype, ragged=True))
                for levels in (2, 4):
                    found += [
                        Case(f"{levels} levels", task, cell, shape, dtype, layers=levels)
                        for shape in DEEP
                    ]
                two = {"layers": 2, "bidirectional": True}
                found.append(Case("bidirectional", task, cell, common, dtype, **two))  # type: ignore[arg-type]
    return found


def numbers(case: Case) -> Data:
    """Return the numbers of a case; those of float16 are float32's, rounded."""
    drawn = data_of(replace(case, dtype="float32"))
    params = {name: a.astype(case.dtype) for name, a in drawn.params.items()}
    return Data(params, drawn.x.astype(case.dtype), drawn.dy.astype(case.dtype), drawn.lengths)


# This library


def ours(case: Case, data: Data, *, core: bool, backend: str = "cupy") -> Contestant:
    """Make a case ready in this library."""
    chosen = select(backend)
    layer = on_core(layer_of(case)) if core else layer_of(case)
    params = {name: chosen.asarray(a) for name, a in data.params.items()}
    x, dy = chosen.asarray(data.x), chosen.asarray(data.dy)
    prepared = layer.prepare(params)

    def infer() -> dict[str, Any]:
        return {"y": layer(prepared, x, lengths=data.lengths)[0]}

    def train() -> dict[str, Any]:
        y, _, cache = layer.forward(params, x, lengths=data.lengths)
        dparams, dx, _ = layer.backward(params, cache, dy)
        return {"y": y, "dx": dx, **{f"d{name}": a for name, a in dparams.items()}}

    run = train if case.task == "training" else infer
    return Contestant(run, cupy_seconds, cupy_bytes, chosen.to_numpy, TOLERANCE[case.dtype])


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


def torchs(case: Case, data: Data, *, tf32: bool, device: str = "cuda") -> Contestant:
    """Make a case ready in PyTorch's layer."""
    import torch

    _, _, size, hidden = case.shape
    kind = getattr(torch.nn, CELLS[case.cell])
    module = kind(size, hidden, case.layers, bidirectional=case.bidirectional)
    module.to(device, getattr(torch, case.dtype))
    module.load_state_dict({name: torch.tensor(a) for name, a in data.params.items()})
    call = packed(module, data)
    training = case.task == "training"
    x = torch.tensor(data.x, device=device, requires_grad=training)
    dy = torch.tensor(data.dy, device=device)

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
    return Contestant(run, torch_seconds, torch_bytes, lambda a: a.cpu().numpy(), tolerance)


def packed(module: Any, data: Data) -> Callable[[Any], Any]:
    """Return the function from x to y; a ragged batch is packed, and padded again."""
    if data.lengths is None:
        return lambda x: module(x)[0]
    from torch import tensor
    from torch.nn.utils import rnn

    lengths, steps = tensor(data.lengths), len(data.x)

    def call(x: Any) -> Any:
        given = rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
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


def contestants(case: Case, data: Data) -> dict[str, Callable[[], Contestant]]:
    """Return what can run a case, this library first."""
    made: dict[str, Callable[[], Contestant]] = {
        "rnn_xp": lambda: ours(case, data, core=False),
        "core": lambda: ours(case, data, core=True),
    }
    if case.cell != "gru-before":
        made["cuDNN"] = lambda: torchs(case, data, tf32=False)
        if case.dtype == "float32":
            made["cuDNN TF32"] = lambda: torchs(case, data, tf32=True)
    return made


# Measuring


def measure(
    makers: dict[str, Callable[[], Contestant]], rounds: int, turn: float = TURN
) -> dict[str, dict[str, Any]]:
    """Compare the results of all with the first one's, then time them in turns.

    Returns
    -------
    dict
        Of each: `min`, `median` (seconds of a call), `first` (the seconds that the first call took
        longer), `bytes`, `error` (the largest, relative); or `failed`, in one line.
    """
    found: dict[str, dict[str, Any]] = {}
    ready: dict[str, tuple[Contestant, int]] = {}
    expected: dict[str, Any] = {}
    for name, make in makers.items():
        try:
            start = perf_counter()
            contestant = make()
            results = {k: contestant.to_numpy(a) for k, a in contestant.run().items()}
            took = perf_counter() - start
            expected = expected or results
            error = largest_error(results, expected)
            if not error <= contestant.tolerance:  # so that NaN counts
                found[name] = {"failed": f"results differ by {error:.2g}"}
                continue
            memory = contestant.pool(contestant.run)
            once = min(contestant.seconds(contestant.run, 1) for _ in range(3))
        except Exception as error:  # any: the library's own
            found[name] = {"failed": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
            continue
        ready[name] = contestant, max(1, min(1000, int(turn / max(once, 1e-9))))
        found[name] = {"first": took - once, "bytes": memory, "error": error}
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, (contestant, calls) in ready.items():
            contestant.seconds(contestant.run, 1)
            times[name].append(contestant.seconds(contestant.run, calls))
    for name, each in times.items():
        found[name] |= {"min": min(each), "median": statistics.median(each)}
    return found


def largest_error(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Return the largest error, relative to the largest element of its array."""
    errors = [0.0]
    for name, right in expected.items():
        scale = float(np.abs(right.astype(np.float64)).max()) or 1.0
        difference = np.abs(found[name].astype(np.float64) - right.astype(np.float64))
        errors.append(float(difference.max()) / scale)
    return float(np.max(errors))


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

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    return {
        "device": properties["name"].decode(),
        "compute capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": str(properties["multiProcessorCount"]),
        "driver": driver(),
        "driver's CUDA": cuda(runtime.driverGetVersion()),
        "CuPy's CUDA": cuda(runtime.runtimeGetVersion()),
        "CuPy": cupy.__version__,
        "PyTorch": torch.__version__,
        "PyTorch's CUDA": str(torch.version.cuda),
        "cuDNN": str(torch.backends.cudnn.version()),
        "rnn_xp": rnn_xp.__version__,
    }


def cuda(version: int) -> str:
    """Return a version as people write it: 12.9 for 12090."""
    return f"{version // 1000}.{version % 1000 // 10}"


def driver() -> str:
    """Return the version of the NVIDIA driver, as its own tool says it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.split() else "unknown"


def markdown(results: Results) -> str:
    """Return the tables."""
    about = "; ".join(f"{name} {value}" for name, value in results["about"].items())
    lines = ["# On a GPU", "", f"{about}.", "", _EXPLAINED, ""]
    for dtype in DTYPES:
        for task in TASKS:
            rows = [r for r in results["rows"] if (r["dtype"], r["task"]) == (dtype, task)]
            if rows:
                lines += [f"## {task.capitalize()}, {dtype}", "", *table(rows), ""]
    return "\n".join(lines)


_EXPLAINED = (
    "Minima of the rounds, µs a time step; the ratio is that of cuDNN to rnn_xp in the same number "
    "format: above 1 rnn_xp is ahead, rows in bold are behind. TF32 is less exact. Memory is by "
    "how much the library's pool grows in one call."
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
    both = [found.get(name, {}).get("min") for name in ("cuDNN", "rnn_xp")]
    if None in both:
        return "–"
    ratio = both[0] / both[1]
    return f"{ratio:.2f}" if ratio >= 1 else f"**{ratio:.2f}**"


def _memory(found: dict[str, Any] | None) -> str:
    return "–" if found is None or "bytes" not in found else f"{found['bytes'] / 1e6:.1f}"


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
    replace_file(path, json.dumps(results, indent=1).encode())
    replace_file(path.with_suffix(".md"), markdown(results).encode())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the JSON to write")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES))
    parser.add_argument("--cell", choices=list(CELLS), nargs="+", default=list(CELLS))
    options = parser.parse_args(arguments)
    try:
        results = load(options.out, facts())
    except NoGPU as error:
        print(f"nothing is measured: {error}", file=sys.stderr)
        return 2
    done = {json.dumps(row["case"]) for row in results["rows"]}
    for case in plan(options.dtype, options.cell):
        key = json.loads(json.dumps(asdict(case)))
        if json.dumps(key) in done:
            continue
        found = measure(contestants(case, numbers(case)), options.rounds)
        shown = {"table": case.table, "task": case.task, "cell": case.cell, "dtype": case.dtype}
        results["rows"].append({"case": key, **shown, "shape": key["shape"], "found": found})
        save(options.out, results)
        times = {name: _time(value, case.shape[0]) for name, value in found.items()}
        print(f"{case}: µs a step {times}, cuDNN / rnn_xp {_ratio(found)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
