"""What the machine is, and the shapes that are run on it."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import numpy as np

Shape = tuple[int, int, int, int]
"""T, B, I, H: of what is checked or measured."""


def describe() -> dict[str, str]:
    """Return processor, CPUs, system, Python and BLAS."""
    return {
        "processor": processor(),
        "CPUs": str(len(usable())),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "BLAS": blas(),
    }


def processor() -> str:
    """Return the processor's name and, where Linux tells them, family and model: names repeat."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    said = dict(re.findall(r"^(\S[^\t\n]*)\s*: (.+)$", text.partition("\n\n")[0], re.MULTILINE))
    name = said.get("model name") or platform.processor() or platform.machine()
    kind = [f"{key} {said[key]}" for key in ("cpu family", "model") if key in said]
    return f"{name} ({', '.join(kind)})" if kind else name


def blas() -> str:
    """Return the BLAS that NumPy was built with."""
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    return f"{built.get('name', 'unknown')} {built.get('version', '')}".strip()


def usable() -> list[int]:
    """Return the CPUs that this process may use, the first of each core before their siblings."""
    if not hasattr(os, "sched_getaffinity"):
        return list(range(os.cpu_count() or 1))
    allowed = sorted(os.sched_getaffinity(0))
    return sorted(allowed, key=lambda cpu: (_place_in_core(cpu), cpu))


def _place_in_core(cpu: int) -> int:
    path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    try:
        siblings = path.read_text(encoding="ascii").strip()
    except OSError:
        return 0
    first = int(re.split("[-,]", siblings)[0])
    return int(cpu != first)
