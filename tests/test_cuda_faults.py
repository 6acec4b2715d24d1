"""Mistakes in the kernels of all steps are caught: by values, deadlocks and sanitizers."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from cuda_on_cpu import FLAGS, TEXT, Library, once
from cuda_runs import (
    GATES,
    LEAVES,
    SIZES,
    SMALL,
    SWAPPED,
    Fault,
    Sizes,
    errors,
    faulty,
    run,
)
from targets import need_compiler
from test_cuda_fused import HOST, LIMITS, Case, largest_error

from rnn_xp import recurrence
from rnn_xp.engines.cuda import persistent, plan
from rnn_xp.engines.cuda.persistent import KernelError

# A cell, and a mistake in its kernels.
FAULTS: dict[str, tuple[str, Fault]] = {
    "gates swapped": ("gru", SWAPPED),
    "a weight's column beside": ("rnn_tanh", ("* HIDDEN + column]", "* HIDDEN + column / 2]")),
    "a weight's unit beside": (
        "rnn_tanh",
        ("weights[(long long)column * HIDDEN + unit]", "weights[column * HIDDEN + unit / 2]"),
    ),
    "the states of another tile": ("lstm", ("from = sequence() + begin", "from = sequence()")),
    "the states of another group": ("lstm", ("from = sequence() + begin", "from = begin")),
    "the gradient that passes by forgotten": (
        "gru",
        ("own.own(at) = whole;", "own.own(at) = 0;"),
    ),
    "the second one forgotten": ("gru_reset_before", ("own.own(at) += d.h;", "")),
    "a step that does not count": ("lstm", ("!valid ||", "true ||")),
    "the states after, not before": (
        "rnn_tanh",
        ("row.before, begin, now", "row.after, begin, now"),
    ),
    "the gradients of this step": (
        "rnn_tanh",
        ("da_hh, row.last,", "da_hh, n < steps ? row.t : row.last,"),
    ),
    "c after, not before": ("lstm", ("in.c_before = c[before]", "in.c_before = c[after]")),
    "not the candidate's gradient": (
        "gru_reset_before",
        ("nullptr, da_u, row.t", "nullptr, dy, row.t"),
    ),
    "the candidate's weights beside": (
        "gru_reset_before",
        ("(long long)WIDTH * HIDDEN", "(long long)(WIDTH - 1) * HIDDEN"),
    ),
    "the first state forgotten": (
        "lstm",
        ("own.begin(h_first, c_first);", "own.begin(nullptr, c_first);"),
    ),
    "c's gradient not handed on": ("lstm", ("own.other(at) = d;", "")),
    "a bias forgotten": ("lstm", (" + own.biases[G * UNITS + r]", "")),
    "inputs of another tile": (
        "lstm",
        ("if (early) got = fetched(at, n)", "if (early) got = fetched(place(mine, 0), n)"),
    ),
}


def caught(
    source: Callable[[str], str],
    name: str,
    xp: Any,
    folder: Path,
    *orders: int,
    dtype: str = "float32",
) -> bool:
    """Tell whether a mistake shows in some schedule."""
    made, how = Library(source, folder, "-O0"), {"reverse": False, "ragged": True}
    for order in orders:
        try:
            error = errors(made, xp, name, SMALL, order, dtype, **how)
        except KernelError as failure:
            return "Deadlock" in str(failure)
        if not error < 20 * LIMITS[dtype]:
            return True
    return False


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_caught(fault: str, xp: Any, tmp_path: Path) -> None:
    name, mistake = FAULTS[fault]
    assert caught(faulty(mistake), name, xp, tmp_path, 0, 1)


CHECKED: Fault = ("awaited(got[i], next + i * THREADS, patience)", "got[i]")


ALL_WATCHED: Fault = ("begin == 0 && now *", "begin == 0 || now *")


HARMLESS: dict[str, tuple[Fault, ...]] = {
    "always watched": (ALL_WATCHED,),
    "another number watched": (ALL_WATCHED, ("(k + 1) * UNITS - 1", "k * UNITS")),
}


UNCHECKED: dict[str, tuple[Fault, ...]] = {
    "nobody waits": (("while (lacking(got) &&", "while (false &&"),),
    "stage does not": (CHECKED,),
    "only watch does": (CHECKED, ALL_WATCHED),
}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("faults", UNCHECKED)
def test_who_does_not_wait_is_caught(faults: str, dtype: str, xp: Any, tmp_path: Path) -> None:
    source = faulty(*UNCHECKED[faults])
    assert caught(source, "lstm", xp, tmp_path, *range(12), dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("changes", HARMLESS)
def test_what_is_watched_does_not_matter(changes: str, dtype: str, xp: Any, tmp_path: Path) -> None:
    source = faulty(*HARMLESS[changes])
    assert not caught(source, "lstm", xp, tmp_path, *range(4), dtype=dtype)


KEPT: Fault = ("as.bits == EMPTY ? (Bits)(EMPTY >> 1) : as.bits", "as.bits")


@pytest.mark.parametrize("faults", [(), (KEPT,)])
def test_a_number_that_looks_as_if_it_were_not_there(
    faults: tuple[Fault, ...], xp: Any, tmp_path: Path
) -> None:
    made, case = Library(faulty(*faults), tmp_path, "-O0"), Case("rnn_relu", 3, 3, 5)
    sizes = Sizes(3, 3, 5, 2, 1, 2)
    nan = np.full(1, -1, dtype=np.int64).view(np.float64)[0]
    case.weights[0]["bias_ih"][...] = nan
    how = {"ragged": False, "reverse": False}
    if faults:
        with pytest.raises(KernelError, match="Deadlock"):
            run(made.kernels(), xp, case, sizes, "float32", **how)
    else:
        y, *_ = run(made.kernels(), xp, case, sizes, "float32", **how)
        assert np.isnan(y._host).all()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", GATES)
def test_nan_stays_in_its_sequence(name: str, dtype: str, library: Library, xp: Any) -> None:
    assert not spreads(library, name, dtype, xp)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_nan_that_spreads_is_seen(dtype: str, xp: Any, tmp_path: Path) -> None:
    made = Library(faulty(("MORE = padded(WIDTH) - WIDTH;", "MORE = 0;")), tmp_path, "-O0")
    assert spreads(made, "gru_reset_before", dtype, xp)


def spreads(library: Library, name: str, dtype: str, xp: Any) -> bool:
    """Tell whether NaN in x or dy of some sequences is in the results of others."""
    case, sizes = Case(name, 4, 3, 37), Sizes(4, 3, 37, 13, 1, 3)
    case.x[1, 1], case.dy = np.nan, case.dy.copy()
    case.dy[2, 0] = np.nan
    found = run(library.kernels(), xp, case, sizes, dtype, ragged=False, reverse=False)
    y, dx = found[0]._host, found[-1 - len(case.state)]._host
    assert np.isnan(y[:, 1]).any()
    assert np.isnan(dx[:, 0]).any()
    return bool(np.isnan(y[:, [0, 2]]).any() or np.isnan(dx[:, 2]).any())


@pytest.mark.parametrize("faults", [(), (("of_tile[k] = 0;", ";"),)])
def test_no_first_state_is_zeros(faults: tuple[Fault, ...], xp: Any, tmp_path: Path) -> None:
    made, case = Library(faulty(*faults), tmp_path, "-O0"), Case("lstm", 2, 3, 5)
    case.state = [None for _ in case.state]
    how = {"ragged": False, "reverse": False}
    found = run(made.kernels(), xp, case, Sizes(2, 3, 5, 2, 1, 2), "float32", **how)
    case.state = [np.zeros((1, 3, 5)) for _ in case.state]
    error = largest_error(found, case.run(recurrence, HOST, np.copy, **how))
    assert (error < 2e-5) == (not faults)


def test_a_block_that_leaves_early_is_a_deadlock(xp: Any, tmp_path: Path) -> None:
    made = Library(faulty(LEAVES), tmp_path, "-O0")
    with pytest.raises(KernelError, match="Deadlock"):
        errors(made, xp, "rnn_tanh", SMALL, 0, reverse=False, ragged=False)


def test_who_waits_in_vain_gives_up(xp: Any, tmp_path: Path) -> None:
    patience = (
        ("PATIENCE = 1 << 22", "PATIENCE = 30"),
        ("patience--;", "patience--, grid::moved();"),
    )
    made = Library(faulty(LEAVES, *patience), tmp_path, "-O0")
    assert np.isnan(errors(made, xp, "rnn_tanh", SMALL, 0, reverse=False, ragged=False))


class Watched(NamedTuple):
    """What runs under a sanitizer."""

    name: str = "lstm"
    dtype: str = "float32"
    part: str = "forward"


WATCHED = [
    Watched(name, dtype, part)
    for name in ("lstm", "gru_reset_before")
    for dtype in ("float32", "float16")
    for part in persistent.PARTS
]


UNDER = Sizes(2, 4, 10, 4, 1, 3)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let blocks have four warps: a sanitizer takes its time for each thread."""
    monkeypatch.setattr(plan, "THREADS", 128)
    monkeypatch.setattr(plan, "_WARPS", 4)
    monkeypatch.setattr(persistent, "THREADS", 128)
    plan.layout.cache_clear()
    yield
    plan.layout.cache_clear()


class Launch(NamedTuple):
    """How a kernel was launched."""

    options: tuple[str, ...]
    blocks: int
    threads: int
    shared: int
    arguments: tuple[Any, ...]


def launched(library: Library, xp: Any, which: Watched, sizes: Sizes) -> tuple[str, Launch]:
    """Return the first launch of a run, forward or backward, with its arrays as they were."""
    seen: dict[str, Launch] = {}

    def compiled(name: str, options: tuple[str, ...]) -> Any:
        kernel = library.kernels()(name, options)

        def launch(grid: Any, block: Any, arguments: Any, *, shared_mem: int) -> None:
            copies = tuple(a._host.copy() if hasattr(a, "_host") else a for a in arguments)
            seen.setdefault(name, Launch(options, grid[0], block[0], shared_mem, copies))
            kernel(grid, block, arguments, shared_mem=shared_mem)

        return launch

    case = Case(which.name, sizes.steps, sizes.batch, sizes.hidden)
    run(compiled, xp, case, sizes, which.dtype, ragged=True, reverse=False)
    (name,) = (name for name in seen if name.endswith(which.part))
    return name, seen[name]


def sanitized(
    sanitizer: str,
    source: Callable[[str], str],
    launch: tuple[str, Launch],
    folder: Path,
    *orders: int,
) -> list[str]:
    """Run a kernel under a sanitizer; return what it prints with each schedule."""
    need_compiler()
    name, (options, blocks, threads, shared, arguments) = launch
    path, made = folder / "kernel.cpp", folder / "main"
    path.write_text(TEXT.format(source=source(name), name=name))
    flags = *FLAGS, "-g1", f"-fsanitize={sanitizer}"
    shared_by_all = [once(name, folder.parent, *flags) for name in ("grid.cpp", "main.cpp")]
    subprocess.run(["g++", *flags, *options[1:], path, *shared_by_all, "-o", made], check=True)
    given = [str(number) for number in (blocks, threads, shared)]
    for k, argument in enumerate(arguments):
        if not isinstance(argument, int):
            (folder / f"{k}").write_bytes(argument.tobytes())
    passed = [str(a) if isinstance(a, int) else folder / f"{k}" for k, a in enumerate(arguments)]
    runs = [
        subprocess.run(
            [made, *given, str(order), *passed], capture_output=True, text=True, timeout=120
        )
        for order in orders
    ]
    return [run.stdout + run.stderr for run in runs]


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("which", WATCHED, ids="-".join)
def test_no_races(which: Watched, library: Library, xp: Any, tmp_path: Path) -> None:
    launch = launched(library, xp, which, UNDER)
    said = sanitized("thread", persistent.source, launch, tmp_path, 0, 2)
    assert said == ["finished\n", "finished\n"]


STAGED: Fault = ("    }\n    __syncthreads();\n    held.multiply", "    }\n    held.multiply")


MULTIPLIED_BEFORE: Fault = ("now, tile);\n    __syncthreads();", "now, tile);")


RACES: dict[str, tuple[Watched, Fault]] = {
    "no barrier after staging": (Watched(), STAGED),
    "none after the product": (Watched(), MULTIPLIED_BEFORE),
    "no barrier after staging in float16": (Watched(dtype="float16"), STAGED),
    "none after a product of two": (Watched("gru_reset_before"), MULTIPLIED_BEFORE),
    "none after the beginning": (
        Watched(part="backward"),
        ("dh_last, dc_last);\n  __syncthreads();", "dh_last, dc_last);"),
    ),
    "read as other memory": (
        Watched(),
        ("got[i] = fetch(next + i * THREADS)", "got[i] = next[i * THREADS]"),
    ),
    "written as other memory": (
        Watched(part="backward"),
        (
            "give((Bits*)to, as.bits == EMPTY ? (Bits)(EMPTY >> 1) : as.bits)",
            "grid::moved(), *(Bits*)to = as.bits",
        ),
    ),
}


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("race", RACES)
def test_planted_races_are_caught(race: str, library: Library, xp: Any, tmp_path: Path) -> None:
    which, fault = RACES[race]
    launch = launched(library, xp, which, UNDER)
    (said,) = sanitized("thread", faulty(fault), launch, tmp_path, 0)
    assert "data race" in said
    assert "kernel.cpp" in said


OVERRUNS: dict[str, tuple[Watched, Fault]] = {
    "of y": (Watched(), ("store(y + at.in(row.t,", "store(y + at.in(row.t + 1,")),
    "of the shared memory": (
        Watched(),
        ("* ROWS + (row ^ r)] = sum", "* ROWS + (row ^ r) + 1] = sum"),
    ),
    "of the weights": (Watched(), ("unit < HIDDEN ? weights[(row", "true ? weights[(row")),
}


@pytest.mark.parametrize(
    ("which", "sizes"),
    [
        *((which, "a last block with fewer units") for which in WATCHED),
        *((Watched(dtype=dtype), "weights in shared memory") for dtype in ("float32", "float16")),
        (Watched("gru_reset_before"), "weights in shared memory"),
    ],
)
def test_no_overruns(which: Watched, sizes: str, library: Library, xp: Any, tmp_path: Path) -> None:
    launch = launched(library, xp, which, SIZES[sizes])
    (said,) = sanitized("address", persistent.source, launch, tmp_path, 0)
    assert said.startswith("finished\n")
    assert "ERROR" not in said  # a warning of its own, of the fibers' stacks, is none


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("overrun", OVERRUNS)
def test_planted_overruns_are_caught(
    overrun: str, library: Library, xp: Any, tmp_path: Path
) -> None:
    which, fault = OVERRUNS[overrun]
    launch = launched(library, xp, which, UNDER)
    (said,) = sanitized("address", faulty(fault), launch, tmp_path, 0)
    assert "heap-buffer-overflow" in said


@pytest.mark.usefixtures("small_blocks")
def test_all_of_the_shared_memory_is_needed(library: Library, xp: Any, tmp_path: Path) -> None:
    name, launch = launched(library, xp, Watched(), UNDER)
    less = launch._replace(shared=launch.shared - 1)
    (said,) = sanitized("address", persistent.source, (name, less), tmp_path, 0)
    assert "heap-buffer-overflow" in said
