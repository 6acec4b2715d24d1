"""`doctor`: whether every backend computes here what NumPy's core does, and how fast."""

from __future__ import annotations

import argparse
import contextlib
import warnings
from pathlib import Path
from typing import Any

from rnn_xp.backend import BACKENDS, Backend, available, select
from rnn_xp.cli.backends import kernels, print_backends
from rnn_xp.cli.console import check_output
from rnn_xp.cli.options import add_command
from rnn_xp.doctor import around, parity, report, speed
from rnn_xp.doctor.engines import is_gpu
from rnn_xp.doctor.gpu import cudnn_missing
from rnn_xp.engines.cuda.trial import TrialWarning
from rnn_xp.files import replace_file


def add_doctor(commands: Any) -> None:
    """Add `doctor`."""
    command = add_command(
        commands,
        "doctor",
        _doctor,
        "check every backend against NumPy, and time it",
        "doctor --backend numpy cupy --json doctor.json",
    )
    command.add_argument(
        "--backend",
        dest="backends",
        nargs="+",
        choices=tuple(BACKENDS),
        metavar="NAME",
        help=f"backends to check, of {', '.join(BACKENDS)} (default: all)",
    )
    command.add_argument("--device", help="device of the one --backend, such as cpu or cuda:1")
    command.add_argument("--quick", action="store_true", help="fewer configurations")
    command.add_argument(
        "--json", type=Path, metavar="FILE", help="write a report to attach to an issue"
    )
    command.add_argument("--force", action="store_true", help="replace --json if it exists")


def _doctor(options: argparse.Namespace) -> int:
    check_output(options, "json")
    named, device = dict.fromkeys(options.backends or ()), options.device
    if device is not None and len(named) != 1:
        raise ValueError(
            f"--device {device} is a device of one backend: expected one --backend, got "
            f"{' '.join(named) or 'none'}"
        )
    findings = report.Findings(available(named or BACKENDS, device), kernels())
    findings.missing = [name for name in named if not findings.backends[name].usable]
    print_backends(findings.backends.values())
    usable = [select(status.name, device) for status in findings.backends.values() if status.usable]
    with contextlib.ExitStack() as scopes:
        for backend in usable:
            scopes.enter_context(backend.scope())
        if usable:
            _check(usable, findings, options.quick)
            _time(usable, findings, options.quick)
        print(f"\n{report.conclusion(findings)}")
        if options.json is not None:
            replace_file(options.json, report.document(findings))
            print(f"saved to {options.json}")
    return 1 if findings.failed or findings.warnings or findings.missing else 0


def _check(usable: list[Backend], findings: report.Findings, quick: bool) -> None:
    print("\nErrors, relative to the NumPy core in float64; of each line, those nearest the bound:")
    print(report.HEADING)
    for backend in usable:
        dtypes, lacks = parity.dtypes(backend)
        configs = parity.grid(quick=quick, gpu=is_gpu(backend))
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", TrialWarning)
            found = [*parity.checks(backend, dtypes, configs), *around.checks(backend, dtypes)]
        for line in report.parity_lines(found):
            print(line, flush=True)
        findings.checks += found
        findings.notes += [f"{backend.name}: {why}" for why in lacks]
        if is_gpu(backend):
            findings.notes += dict.fromkeys(parity.left_out(backend, dtypes, configs))
        tried = [each.message for each in warned if issubclass(each.category, TrialWarning)]
        findings.warnings += map(str, tried)
    failed = map(report.failure_line, findings.failed)
    for line in (*findings.notes, *(f"FAIL {said}" for said in findings.warnings), *failed):
        print(line)


def _time(usable: list[Backend], findings: report.Findings, quick: bool) -> None:
    print("\nForward and backward, float32:")
    print(report.TIMES_HEADING)
    for backend in usable:
        gpu = is_gpu(backend)
        configs = speed.shapes(quick=quick, gpu=gpu)
        for time in speed.times(backend, configs):
            _say(findings, time)
        if gpu:
            for time in speed.plain_times(backend, configs):
                _say(findings, time)
            _time_cudnn(configs, backend.device_name, findings)


def _time_cudnn(configs: list[parity.Config], device: str, findings: report.Findings) -> None:
    missing = cudnn_missing()
    if missing:
        findings.notes.append(f"cuDNN was not timed: {missing}")
        print(findings.notes[-1])
        return
    for time in speed.cudnn_times(configs, device):
        _say(findings, time)
    print(f"TF32 was {'on' if speed.tf32() else 'off'}, in CuPy and in cuDNN")


def _say(findings: report.Findings, time: speed.Time) -> None:
    findings.times.append(time)
    print(report.time_line(time), flush=True)
