"""The command: this library's speed beside others', measured in one run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rnn_xp import plotting
from rnn_xp.cli import carry_out
from rnn_xp.cli.console import check_output
from rnn_xp.cli.options import POSITIVE, Help, Parser, count, number
from rnn_xp.doctor.machine import Shape, describe, usable
from rnn_xp.files import replace_file

from . import report
from .cases import CELLS, DTYPES, ONE_THREAD_COUNT, SECTIONS, Case, cases
from .peers import FASTEST, LIBRARIES, OURS, PEERS, library, missing
from .picture import picture
from .results import BenchError, Results, Row, Settings, load, save
from .running import Job, left, run, turns

_OWN_SHAPES = ("training", "inference", "streaming")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code, as that of `rnn-xp`."""
    return carry_out(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    command = Parser(
        prog="python -m benchmarks.beside",
        description="Measure the speed beside other libraries.",
        epilog="example:\n  python -m benchmarks.beside --against torch --cell lstm "
        "--shape 100,32,64,128",
        formatter_class=Help,
    )
    command.set_defaults(run=_run)
    add = command.add_argument
    add(
        "--against",
        nargs="+",
        choices=PEERS,
        metavar="LIBRARY",
        help=f"libraries to compare with, of {', '.join(PEERS)} (default: all); those not "
        "installed are left out",
    )
    add(
        "--task",
        nargs="+",
        choices=SECTIONS,
        metavar="TASK",
        help=f"tables to make, of {', '.join(SECTIONS)} (default: all, with --shape the first "
        f"{len(_OWN_SHAPES)})",
    )
    add("--cell", nargs="+", choices=tuple(CELLS), help="cells (default: all)")
    add(
        "--shape",
        nargs="+",
        type=_shape,
        metavar="T,B,I,H",
        help="time steps, batch, input size and hidden size, instead of the built-in ones; "
        "sweep keeps its own",
    )
    add("--dtype", choices=DTYPES, default=DTYPES[0], help="floating-point type")
    add(
        "--threads",
        nargs="+",
        type=count(1),
        metavar="N",
        help=f"numbers of threads; of {', '.join(ONE_THREAD_COUNT)} the highest alone (default: "
        "1 2, as far as there are CPUs)",
    )
    add("--rounds", type=count(1), default=Settings.rounds, help="least number of rounds of a row")
    add("--seconds", type=POSITIVE, default=Settings.seconds, help="least time of a row")
    add(
        "--wait",
        type=number(0.0),
        default=Settings.wait,
        help="seconds to wait, in all, for a machine that does nothing else",
    )
    kept = command.add_mutually_exclusive_group().add_argument
    kept(
        "--json",
        type=Path,
        metavar="FILE",
        help="keep the figures here, row by row; the rows of a file that is there are not measured "
        "again, so that a run can be continued, unless a library that is asked for is not in them",
    )
    kept(
        "--show",
        type=Path,
        metavar="FILE",
        help="measure nothing: the tables and the picture are of what --json kept there",
    )
    add("--out", type=Path, metavar="FILE", help="write the tables, Markdown, instead of printing")
    add(
        "--plot",
        type=Path,
        metavar="PICTURE",
        help=f"draw them (needs matplotlib): {', '.join(plotting.SUFFIXES)}",
    )
    add("--force", action="store_true", help="replace --out and --plot if they exist")
    return command


def _shape(text: str) -> Shape:
    try:
        steps, batch, size, hidden = map(int, text.split(","))
    except ValueError:
        steps = batch = size = hidden = 0
    if min(steps, batch, size, hidden) < 1:
        raise argparse.ArgumentTypeError(f"expected four integers T,B,I,H >= 1, got {text!r}")
    return steps, batch, size, hidden


def _run(options: argparse.Namespace) -> int:
    _check_files(options)
    if options.show is not None:
        _write(options, load(options.show))
        return 0
    plan = _plan(options)
    results = _start(options.json)
    peers = _usable(options.against or PEERS)
    jobs = left(plan, [OURS, *peers], results)
    if options.plot is not None:
        _check_drawable(jobs, results)
    if not jobs:
        _say("every row is there: nothing to measure")

    def done(row: Row) -> None:
        if options.json is not None:
            save(results, options.json)
        _say(_line(row))

    settings = Settings(options.rounds, options.seconds, options.wait)
    run(jobs, results, settings, done, _say)
    _write(options, results)
    return 0


def _check_files(options: argparse.Namespace) -> None:
    check_output(options)
    check_output(options, "json", force=True)  # which goes on where it stopped
    if options.plot is not None:
        plotting.require()
        plotting.check_suffix(options.plot)
        check_output(options, "plot")


def _plan(options: argparse.Namespace) -> list[tuple[Case, int]]:
    """Return cases and threads, all of one number of threads together."""
    here = len(usable())
    threads: Sequence[int] = options.threads or [n for n in (1, 2) if n <= here]
    if max(threads) > here:
        raise BenchError(f"--threads {max(threads)} is more than the {here} CPUs here")
    cells = options.cell or tuple(CELLS)
    tasks = options.task or (_OWN_SHAPES if options.shape else SECTIONS)
    return [
        (case, each)
        for each in sorted(set(threads))
        for task in SECTIONS
        if task in tasks and (each == max(threads) or task not in ONE_THREAD_COUNT)
        for case in cases(task, cells, options.shape, options.dtype)
    ]


def _start(path: Path | None) -> Results:
    """Return what a file holds already, or nothing."""
    here = Results(describe())
    if path is None or not path.exists():
        return here
    results = load(path)
    for name, value in here.machine.items():
        if results.machine.get(name) != value:
            raise BenchError(
                f"{path} was measured with {name} {results.machine.get(name)}, this is {value}: "
                "give another --json"
            )
    return results


def _usable(names: Sequence[str]) -> list[str]:
    """Return the libraries that are installed; say which are not."""
    usable = []
    for name in dict.fromkeys(names):
        lacks = missing(name)
        if lacks:
            _say(f"{LIBRARIES[name].title} is left out: {lacks} is not installed")
        else:
            usable.append(name)
    return usable


def _check_drawable(jobs: Sequence[Job], results: Results) -> None:
    """Raise if there would be nothing to draw."""
    compared = any(
        name in FASTEST and not library(name).lacks(job.case)
        for job in jobs
        for name, _ in turns(job.case, job.libraries)
    )
    grows = any(job.case.table.startswith("sweep") for job in jobs)
    if not (compared or grows or any(map(_is_drawn, results.rows))):
        raise BenchError(
            f"--plot draws ratios to {report.JUDGES}, and growth: no row has either, give "
            "one of these --against, or --task sweep"
        )


def _is_drawn(row: Row) -> bool:
    return row.fastest is not None or row.case.table.startswith("sweep")


def _line(row: Row) -> str:
    """Return a row while it is news: its figures, in SI units."""
    unit = report.TABLES[row.case.table][1]
    threads = f"{row.threads} thread{'s' if row.threads > 1 else ''}"
    parts = [f"{row.case}, {threads}: {report.figure(row.ours, unit)} {unit}"]
    for name in PEERS:
        best = row.best(name)
        if best is not None:
            parts.append(f"{LIBRARIES[name].title} × {row.ratio(best):.2f}")
    return ", ".join(parts)


def _write(options: argparse.Namespace, results: Results) -> None:
    page = report.page(results)
    if options.out is None:
        print(page, end="")
    else:
        replace_file(options.out, page.encode())
        print(f"saved to {options.out}")
    if options.plot is not None:
        plotting.write(picture(results), options.plot)
        print(f"saved to {options.plot}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
