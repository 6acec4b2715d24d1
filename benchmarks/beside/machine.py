"""What the machine does: on which CPUs, and how busy they are.

Linux tells how busy it is in /proc; elsewhere that is unknown, and said so.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from rnn_xp.doctor.machine import usable

IDLE = 0.05
"""The share of all CPUs that others may use on a machine that counts as idle."""


class Busy(NamedTuple):
    """CPU seconds since some moment."""

    used: float
    possible: float


@contextlib.contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Start processes, within, that may use so many CPUs alone, where the system can say so."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, usable()[:threads])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def busy() -> Busy | None:
    """Return what all processes together have used, None where it is unknown."""
    try:
        first = Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal; guests count as users
    ticks = [int(value) for value in first[1:9]]
    each = os.sysconf("SC_CLK_TCK")
    return Busy((sum(ticks) - ticks[3] - ticks[4]) / each, sum(ticks) / each)


def used_by(processes: Iterable[int]) -> float:
    """Return the CPU seconds of this process and of others, with their children that have ended."""
    seconds = sum(os.times()[:4])
    for process in processes:
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
            fields = text.rpartition(")")[2].split()
            seconds += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return seconds


class Others:
    """Measures how much of the machine others use while this process and its workers run."""

    def __init__(self, processes: Iterable[int]) -> None:
        self.processes = list(processes)
        self.start = busy(), used_by(self.processes)

    def share(self) -> float | None:
        """Return it since the start: 0 to 1 of all CPUs, None where it is unknown."""
        before, now = self.start[0], busy()
        if before is None or now is None or now.possible <= before.possible:
            return None
        own = used_by(self.processes) - self.start[1]
        share = (now.used - before.used - own) / (now.possible - before.possible)
        return min(max(share, 0.0), 1.0)


def wait_until_idle(processes: Iterable[int], patience: float) -> float:
    """Wait until others leave the machine alone for a second; return what is left of `patience`."""
    processes = list(processes)
    while patience > 0:
        others = Others(processes)
        time.sleep(1.0)
        share = others.share()
        if share is None or share < IDLE:
            break
        patience -= 1.0
    return patience


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return _status("VmRSS")


def reset_peak() -> None:
    """Let `peak` count from now. Raises OSError where there is no such thing."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak() -> int:
    """Return the highest resident memory since `reset_peak`, in bytes."""
    return _status("VmHWM")


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"^{name}:\s*(\d+) kB$", text, re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {name}")
    return int(found[1]) * 1024
