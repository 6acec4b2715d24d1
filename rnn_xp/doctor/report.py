"""What the doctor says: lines to read, and a JSON report to attach to an issue."""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rnn_xp import __version__
from rnn_xp.backend import Status
from rnn_xp.doctor import gpu
from rnn_xp.doctor.machine import describe
from rnn_xp.doctor.parity import PARTS, Check
from rnn_xp.doctor.speed import Time

# A path with its folders; the last part, a file's name, is kept.
_FOLDERS = re.compile(r"(?<![\w.:/\\])(?:[A-Za-z]:)?[\\/](?:[^\s'\"()<>|,;:\\/]+[\\/])+")
HEADING = (
    f"{'backend':8}{'engine':16}{'cell':19}{'dtype':9}"
    f"{''.join(f'{name:>11}' for name in (*PARTS, 'bound'))}  result"
)
TIMES_HEADING = f"{'backend':8}{'engine':16}{'cell, T,B,I,H':26}{'ms':>10}"


@dataclass
class Findings:
    """All that was found."""

    backends: Mapping[str, Status]
    kernels: str
    """Which compiled kernels there are for NumPy, or why none."""
    missing: list[str] = field(default_factory=list)
    """The backends that were asked for and cannot be used."""
    checks: list[Check] = field(default_factory=list)
    times: list[Time] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was not checked or does not run, and why."""
    warnings: list[str] = field(default_factory=list)
    """What this library warned of: a kernel that went wrong when it was tried."""

    @property
    def failed(self) -> list[Check]:
        """The checks that did not pass."""
        return [check for check in self.checks if not check.passed]


def parity_lines(checks: Iterable[Check]) -> Iterator[str]:
    """Yield one line for each engine, cell and dtype of a backend: the errors nearest the bound."""
    groups: dict[tuple[str, ...], list[Check]] = {}
    for check in checks:
        key = (check.engine, check.config.cell, check.dtype)
        groups.setdefault(key, []).append(check)
    for (engine, cell, dtype), group in groups.items():
        worst = max(group, key=_closeness)
        errors = "".join(f"{worst.largest(name):11.1e}" for name in PARTS.values())
        if worst.failure:
            errors = f"{'-':>11}" * len(PARTS)
        result = "PASS" if worst.passed else "FAIL"
        start = f"{worst.backend:8}{engine:16}{cell:19}{dtype:9}"
        yield f"{start}{errors}{worst.bound:11.1e}  {result}"


def _closeness(check: Check) -> float:
    if check.failure:
        return math.inf
    return max(check.errors.values(), default=0.0) / check.bound


def failure_line(check: Check) -> str:
    """Return what is wrong, in one line."""
    start = f"FAIL {check.backend}, {check.engine}, {check.dtype}, {check.config}: "
    if check.failure:
        return start + check.failure
    name = max(check.errors, key=lambda name: check.errors[name])
    return start + f"{name} is off by {check.errors[name]:.1e}, more than {check.bound:.1e}"


def time_line(time: Time) -> str:
    """Return a time, in one line."""
    what = f"{time.config.cell} {','.join(map(str, time.config.shape))}"
    figure = time.failure or f"{time.milliseconds:10.2f}"
    return f"{time.backend:8}{time.engine:16}{what:26}{figure}"


def conclusion(findings: Findings) -> str:
    """Return the last line."""
    failed = len(findings.failed)
    if not findings.checks:
        return "no backend was checked: none can be used"
    if failed:
        return f"{failed} of {len(findings.checks)} checks FAILED"
    said = [f"all {len(findings.checks)} checks passed"]
    if findings.warnings:
        said.append(f"but {len(findings.warnings)} of the kernels FAILED when tried")
    if findings.missing:
        said.append(f"but {' and '.join(findings.missing)} cannot be used")
    return ", ".join(said)


def document(findings: Findings) -> bytes:
    """Return the JSON report: no folder and no user's name is in it.

    The device in it is the current one of CuPy.
    """
    cupy = findings.backends.get("cupy")
    report = {
        "rnn_xp": __version__,
        "numpy": np.__version__,
        "machine": describe(),
        "platform": platform.platform(),
        "cuda": gpu.properties() | gpu.versions() if cupy and cupy.usable else None,
        "environment": {k: v for k, v in os.environ.items() if k in _VARIABLES},
        "backends": [status._asdict() for status in findings.backends.values()],
        "kernels": findings.kernels,
        "notes": findings.notes,
        "warnings": findings.warnings,
        "conclusion": conclusion(findings),
        "checks": [_check(check) for check in findings.checks],
        "times": [
            {
                "backend": time.backend,
                "engine": time.engine,
                "config": str(time.config),
                "milliseconds": None if time.failure else round(time.milliseconds, 4),
                "failure": time.failure,
            }
            for time in findings.times
        ],
    }
    return (json.dumps(_public(report), indent=1, ensure_ascii=False) + "\n").encode()


_VARIABLES = (
    "CUPY_TF32",
    "JAX_ENABLE_X64",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RNN_XP_ACCELERATE",
    "RNN_XP_BACKEND",
    "RNN_XP_NUM_THREADS",
)


def _check(check: Check) -> dict[str, Any]:
    return {
        "backend": check.backend,
        "engine": check.engine,
        "dtype": check.dtype,
        "config": str(check.config),
        "passed": check.passed,
        "bound": check.bound,
        # JSON has no infinity.
        "errors": {name: e if math.isfinite(e) else "inf" for name, e in check.errors.items()},
        "failure": check.failure,
    }


def _public(value: Any) -> Any:
    """Return the same without folders' names, in every text."""
    if isinstance(value, dict):
        return {name: _public(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_public(each) for each in value]
    return without_folders(value) if isinstance(value, str) else value


def without_folders(text: str) -> str:
    """Return a text whose absolute paths have lost their folders: the user's name is in them."""
    home = str(Path.home())
    if len(home) > 1:
        text = text.replace(home, "")  # first: its name may hold spaces
    return _FOLDERS.sub("", text)
