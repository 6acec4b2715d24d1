"""Results as one page of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from . import machine
from .cases import CELLS, NO_SHAPE
from .peers import LIBRARIES, OURS, library
from .results import Measured, Results, Row, exponent, geometric_mean, peak_key

# Of each table: its heading and its unit.
TABLES = {
    "training": ("Training step", "ms"),
    "inference": ("Inference, the whole sequence", "ms"),
    "streaming": ("One step at a time, per step", "µs"),
    "ragged": ("Ragged batch, lengths uniform in 1 to T", "ms"),
    "bidirectional": ("Bidirectional, two levels", "ms"),
    "float64": ("float64", "ms"),
    "sweep T": ("Growth with T, training step", "ms"),
    "sweep B": ("Growth with B, training step", "ms"),
    "sweep H": ("Growth with H (= I), training step", "ms"),
    "memory": ("Peak memory", "MB"),
    "import": ("Import", "ms"),
    "size": ("Installed size", "MB"),
}
_UNITS = {"ms": 1e-3, "µs": 1e-6, "MB": 1e6}
JUDGES = "the fastest of PyTorch, JAX and onnxruntime"
_METHOD = f"""\
Minima of the rounds; the ratio is that of {JUDGES} to rnn_xp, in brackets the median of the \
rounds' ratios: above 1 rnn_xp is ahead, rows in bold are behind. Each library runs in a process \
of its own on as many CPUs as threads, one at a time, round by round, on the same numbers, after \
its outputs and gradients were compared with rnn_xp's. A short call is repeated to fill 10 ms, and \
the mean is the round's. Weights are made ready before inference; compiling is counted apart."""
_MEMORY = """\
By how much the resident memory of a new process grows at its peak (VmHWM) in one call, after one \
of a tiny shape; inputs, weights and compiled code are there before."""
_SIZE = "What a user installs, with all that it requires, without compiled Python files and pip."


def page(results: Results) -> str:
    """Return the page."""
    parts = [_head(results), _builds(results.rows), _METHOD, _others(results.rows)]
    for name, (title, _) in TABLES.items():
        rows = [row for row in results.rows if row.case.table == name]
        if not rows:
            continue
        parts.append(f"## {title}")
        parts += {"memory": [_MEMORY], "size": [_SIZE]}.get(name, [])
        parts.append(_sweep(rows, name[-1]) if name.startswith("sweep") else _table(rows, results))
    parts += [_summary(results.rows), _behind(results.rows)]
    parts += [_compiling(results.rows), _absent(results.rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def label(row: Row) -> str:
    """Return what a row is, in few words."""
    case = row.case
    shape = "" if case.shape == NO_SHAPE else ",".join(map(str, case.shape))
    parts = [CELLS.get(case.cell, ""), shape]
    if case.task != case.table:
        parts.append(case.task)
    if case.dtype not in ("", "float32"):
        parts.append(case.dtype)
    return " ".join(part for part in parts if part)


def _head(results: Results) -> str:
    known = {**results.machine, **results.versions}
    facts = "; ".join(f"{name} {value}" for name, value in known.items())
    return f"# rnn_xp beside other libraries\n\n{facts}."


def _builds(rows: Sequence[Row]) -> str:
    """Say which rows are of which build and day, if not all are of one."""
    if len({(row.build, row.date) for row in rows}) < 2:
        return ""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row.build or "not recorded", []).append(row.date or "not recorded")
    lines = [
        [build, ", ".join(sorted(set(dates))), str(len(dates))] for build, dates in found.items()
    ]
    said = "The rows are of more than one build of rnn_xp, or day:"
    return f"{said}\n\n{_lines(['build', 'dates', 'rows'], lines)}"


def _others(rows: Sequence[Row]) -> str:
    """Say whether the machine was idle."""
    judged = [row for row in rows if row.case.task != "size"]
    unknown = [row for row in judged if row.idle is None]
    busy = [row for row in judged if row.idle is False]
    said = []
    if busy:
        most = max(row.others or 0.0 for row in busy)
        said.append(
            f"The machine was not idle: in {len(busy)} of {len(judged)} rows, marked with a *, "
            f"others used more than {machine.IDLE:.0%} of its CPUs, at most {most:.0%}."
        )
    if unknown:
        said.append(
            f"Whether the machine was idle is unknown in {len(unknown)} of {len(judged)} rows."
        )
    if judged and not said:
        said.append("The machine was idle but for this.")
    return " ".join(said)


def _table(rows: Sequence[Row], results: Results) -> str:
    peers = _peers(rows)
    task = len({row.case.task for row in rows}) > 1 or rows[0].case.task != rows[0].case.table
    dtype = {row.case.dtype for row in rows} - {""} != {"float32"} and rows[0].case.cell
    products = any(_of_peak(row, results) for row in rows)
    unit = TABLES[rows[0].case.table][1]
    head = ["cell", "T,B,I,H"] if rows[0].case.cell else []
    head += ["task"] * task + ["dtype"] * bool(dtype) + ["threads"]
    head += [f"{LIBRARIES[peer].title}, {unit}" for peer in peers]
    ragged = any(_of_full(row, results) for row in rows)
    head += ["ratio"] + ["× GEMM"] * products + ["rnn_xp ÷ full batch"] * ragged + ["rounds"]
    lines = []
    for row in rows:
        case = row.case
        cells = [CELLS[case.cell], ",".join(map(str, case.shape))] if case.cell else []
        cells += [case.task] * task + [case.dtype] * bool(dtype) + [str(row.threads)]
        cells += [figure(row.best(peer), unit) for peer in peers]
        cells += [_ratio(row)] + [_of_peak(row, results)] * products
        cells += [_of_full(row, results)] * ragged
        lines.append([*cells, _rounds(row)])
    text = _lines(head, lines)
    if products:
        text += (
            "\n\n× GEMM: how many times as long as its matrix products would take rnn_xp at the "
            "peak of NumPy's."
        )
    return text


def _peers(rows: Iterable[Row]) -> list[str]:
    there = {m.peer for row in rows for m in row.measured}
    return [name for name in LIBRARIES if name in there]


def figure(measured: Measured | None, unit: str) -> str:
    """Return a library's figure in ms, µs or MB, with its mode if that is not the plain one."""
    if measured is None:
        return "–"
    text = _number(measured.min / _UNITS[unit])
    return f"{text} ({measured.mode})" if measured.mode else text


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def _ratio(row: Row) -> str:
    """Return the ratio to the fastest peer, bold where it is ahead of us."""
    peer = row.fastest
    if peer is None:
        return "–"
    ratio = row.ratio(peer)
    shown = f"**{ratio:.2f}**" if ratio < 1.0 else f"{ratio:.2f}"
    return f"{shown} ({peer.median_ratio:.2f}) {LIBRARIES[peer.peer].title}"


def _rounds(row: Row) -> str:
    """Return how many rounds there were, with a mark where the machine was busy."""
    return str(row.rounds) + ("*" if row.idle is False else "")


def _of_peak(row: Row, results: Results) -> str:
    """Return the time over that of the products at NumPy's peak; of plain networks alone."""
    case = row.case
    peak = results.peaks.get(peak_key(case.dtype, row.threads))
    if not peak or case.table not in ("training", "inference", "float64"):
        return ""
    return _number(row.ours.min * peak / case.flops)


def _of_full(row: Row, results: Results) -> str:
    """Return our time on a ragged batch over that on a full one, if both were measured."""
    full = replace(row.case, table=row.case.task, ragged=False)
    other = results.find(full, row.threads) if row.case.ragged else None
    return "" if other is None else f"{row.ours.min / other.ours.min:.2f}"


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    marks = "|" + "---|" * len(head)
    return "\n".join([f"| {' | '.join(head)} |", marks, *(f"| {' | '.join(r)} |" for r in rows)])


def growth(rows: Sequence[Row], axis: str) -> dict[tuple[str, int, str], dict[int, float]]:
    """Return a sweep: cell, threads and library → size → seconds."""
    found: dict[tuple[str, int, str], dict[int, float]] = {}
    for row in rows:
        for peer in _peers(rows):
            best = row.best(peer)
            if best is not None:
                line = found.setdefault((row.case.cell, row.threads, peer), {})
                line[_place(row, axis)] = best.min
    return found


def _place(row: Row, axis: str) -> int:
    return row.case.shape["TBIH".index(axis)]


def _sweep(rows: Sequence[Row], axis: str) -> str:
    sizes = sorted({_place(row, axis) for row in rows})
    places = {k: str(n) for k, n in zip("TBIH", rows[0].case.shape, strict=True) if k != axis}
    if axis == "H":
        del places["I"]
    fixed = ", ".join(f"{name} = {size}" for name, size in places.items())
    dtype = {row.case.dtype for row in rows} != {"float32"}
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.case.cell, row.case.dtype, row.threads), []).append(row)
    head = ["cell", *["dtype"] * dtype, "threads", ""]
    head += [*(f"{axis} = {n:,}" for n in sizes), "exponent"]
    table = []
    for (cell, kind, threads), found in groups.items():
        first = [CELLS[cell], *[kind] * dtype, str(threads)]
        for (_, _, peer), line in growth(found, axis).items():
            cells = [_number(line[size] * 1e3) if size in line else "–" for size in sizes]
            k = _mean(exponent(list(line), list(line.values())))
            table.append([*first, f"{LIBRARIES[peer].title}, ms", *cells, k])
        there = {_place(row, axis): row for row in found}
        for name, said in (("ratio", _ratio), ("rounds", _rounds)):
            cells = [said(there[size]) if size in there else "–" for size in sizes]
            table.append([*first, name, *cells, ""])
    text = f"{fixed}; the exponent k is that of time ~ {axis}^k, by least squares of logarithms."
    return f"{text}\n\n{_lines(head, table)}"


def _mean(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _summary(rows: Sequence[Row]) -> str:
    """Return the geometric means of every table, task and number of threads."""
    groups: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.case.table, row.case.task, row.threads), []).append(row)
    peers = [name for name in _peers(rows) if name != OURS]
    head = ["table", "task", "threads", "ahead", "fastest peer"]
    head += [LIBRARIES[peer].title for peer in peers]
    table = []
    for (name, task, threads), found in groups.items():
        ratios = [row.ratio(row.fastest) for row in found if row.fastest is not None]
        ahead = sum(ratio >= 1.0 for ratio in ratios)
        cells = [TABLES[name][0], task, str(threads), f"{ahead} of {len(ratios)}"]
        means = [geometric_mean(row.ratio(row.best(peer)) for row in found) for peer in peers]
        table.append([*cells, *map(_mean, [geometric_mean(ratios), *means])])
    said = f"Geometric means of the ratios to rnn_xp. The fastest peer is {JUDGES}."
    return f"## Summary\n\n{said}\n\n{_lines(head, table)}"


def _behind(rows: Sequence[Row]) -> str:
    """Return the rows that are behind."""
    compared = [row for row in rows if row.fastest is not None]
    lost = [row for row in compared if row.ratio(row.fastest) < 1.0]
    if not compared:
        return ""
    head = f"## Rows behind\n\n{len(lost)} of {len(compared)}."
    lines = [[TABLES[row.case.table][0], label(row), str(row.threads), _ratio(row)] for row in lost]
    return f"{head}\n\n{_lines(['table', 'row', 'threads', 'ratio'], lines)}" if lost else head


def _compiling(rows: Sequence[Row]) -> str:
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        for m in row.measured:
            if m.compile_seconds:
                name = f"{LIBRARIES[m.peer].title} {m.mode}".strip()
                seconds.setdefault((name, row.case.task, str(row.threads)), []).append(
                    m.compile_seconds
                )
    if not seconds:
        return ""
    table = [
        [*key, f"{min(found):.2g}", f"{max(found):.2g}", str(len(found))]
        for key, found in seconds.items()
    ]
    head = ["library", "task", "threads", "least, s", "most, s", "rows"]
    return f"## Compiling, not counted above\n\n{_lines(head, table)}"


def _untried(row: Row) -> dict[str, str]:
    """Return the modes of the libraries measured that are left out, each with its reason."""
    if row.case.table in ("memory", "import", "size"):  # there are no modes
        return {}
    return {
        f"{peer} {mode}": why
        for peer in _peers([row])
        for mode, why in library(peer).untried(row.case).items()
    }


def _absent(rows: Sequence[Row]) -> str:
    """Say what was not measured, and why."""
    reasons: dict[tuple[str, str], int] = {}
    for row in rows:
        for name, reason in {**_untried(row), **row.absent}.items():
            peer, _, mode = name.partition(" ")
            title = f"{LIBRARIES[peer].title} {mode}".strip()
            reasons[title, reason] = reasons.get((title, reason), 0) + 1
    lines = [f"- {n}: {why} ({k} rows)" for (n, why), k in reasons.items()]
    return "\n".join(["## Not measured", "", *lines]) if lines else ""
