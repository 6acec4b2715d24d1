"""A process that measures one library: `python -m benchmarks.beside.worker LIBRARY THREADS`.

It reads requests, one line of JSON each, and answers each with one. What the library prints goes to
the error stream. Nothing runs between an answer and the next request.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import mmap
import os
import signal
import sys
import time
from typing import Any

import numpy as np

from rnn_xp.errors import named_line

from . import machine
from .cases import Case, data_of
from .peers import library
from .peers.base import Call

_TINY = (3, 2, 3, 5)


class Session:
    """Answers requests; a request's `do` names the method."""

    def __init__(self, name: str, threads: int) -> None:
        self.peer = library(name)(threads)
        self.calls: dict[str, Call] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one."""
        answered: dict[str, Any] = getattr(self, request.pop("do"))(**request)
        return answered

    def hello(self) -> dict[str, Any]:
        """Return the versions."""
        return {"versions": self.peer.versions()}

    def make(self, case: dict[str, Any], mode: str) -> dict[str, Any]:
        """Make a case ready; return how long compiling took."""
        made = case_of(case)
        self.calls[mode] = self.peer.make(made, mode, data_of(made))
        return {"compile": self.calls[mode].compile_seconds}

    def forget(self) -> dict[str, Any]:
        """Drop what was made."""
        self.calls.clear()
        gc.collect()
        return {}

    def results(self, mode: str, path: str) -> dict[str, Any]:
        """Run once, and write the results to a `.npz` file."""
        with open(path, "wb") as file:
            np.savez(file, **self.calls[mode].results())  # type: ignore[arg-type]
        return {}

    def time(self, mode: str, calls: int, warm: bool) -> dict[str, Any]:
        """Return the seconds of a call, the mean of so many."""
        run = self.calls[mode].run
        if warm:
            run()
        gc.disable()
        try:
            start = time.perf_counter()
            for _ in range(calls):
                run()
            seconds = (time.perf_counter() - start) / calls
        finally:
            gc.enable()
        return {"seconds": seconds}

    def peak(self, dtype: str) -> dict[str, Any]:
        """Return the operations a second of NumPy's matrix product, at its best."""
        size = 1024
        a = np.ones((size, size), dtype=dtype)
        out = np.empty_like(a)
        best = float("inf")
        for _ in range(20):
            start = time.perf_counter()
            np.matmul(a, a, out=out)
            best = min(best, time.perf_counter() - start)
        return {"flops": 2 * size**3 / best}

    def memory(self, case: dict[str, Any]) -> dict[str, Any]:
        """Return by how many bytes one call lets the resident memory grow, at its peak.

        The library is warm from a tiny case, compiled code and inputs are there before. Memory is
        counted in pages: less than one is told as one.
        """
        made = case_of(case)
        tiny = case_of({**case, "shape": _TINY})
        self.peer.make(tiny, "", data_of(tiny)).run()
        run = self.peer.make(made, "", data_of(made)).run
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # freed memory goes back, with glibc
            ctypes.CDLL(None).malloc_trim(0)
        machine.reset_peak()
        before = machine.resident()
        run()
        return {"bytes": max(machine.peak() - before, mmap.PAGESIZE)}


def case_of(values: dict[str, Any]) -> Case:
    """Return the case that JSON has carried."""
    steps, batch, size, hidden = values["shape"]
    return Case(**{**values, "shape": (steps, batch, size, hidden)})


def settle(patience: float = 0.5) -> None:
    """Wait until the library's threads have stopped to spin: the next turn is another process'.

    Of a thread that runs, the kernel counts the time at its ticks alone, up to 10 ms apart.
    """
    end = time.perf_counter() + patience
    while time.perf_counter() < end:
        before = time.process_time()
        time.sleep(0.025)
        if time.process_time() - before < 0.002:
            return


def main() -> None:
    """Serve until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started this process
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    name, threads = sys.argv[1], int(sys.argv[2])
    session: Session | None = None
    for line in sys.stdin:
        try:
            session = session or Session(name, threads)
            answer = session.answer(json.loads(line))
        except Exception as error:  # any: the library's own
            answer = {"error": named_line(error)}
        settle()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
