"""The other end of a worker: starts it, asks it, and ends it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rnn_xp.files import read_npz

from . import machine
from .peers import LIBRARIES

# The first two would slow NumPy down. The last would have a library from a working copy compiled at
# every import, as an installed one is not.
_NOT_INHERITED = (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "RNN_XP_ACCELERATE",
    "PYTHONDONTWRITEBYTECODE",
)
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "RNN_XP_NUM_THREADS")


class WorkerError(ValueError):
    """A library cannot do what it was asked, or its process ended."""


class Asked(Protocol):
    """What measures a library."""

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Return the answer to a request; raise `WorkerError` where there is none."""


def environment(name: str, threads: int) -> dict[str, str]:
    """Return the environment of a library's process: so many threads, and no GPU."""
    kept = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
    return {
        **kept,
        **dict.fromkeys(_THREADS, str(threads)),
        "PYTHONPATH": os.pathsep.join(sys.path),  # it measures what this process imports
        "CUDA_VISIBLE_DEVICES": "",
        "JAX_PLATFORMS": "cpu",
        "KERAS_BACKEND": "jax",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **LIBRARIES[name].environment,
    }


class Worker:
    """A process that measures one library on so many CPUs; `with` ends it.

    Raises
    ------
    WorkerError
        If it does not start or cannot import the library.
    """

    def __init__(self, name: str, threads: int) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the process
        with machine.pinned(threads):
            self._process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.worker", name, str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment(name, threads),
                encoding="utf-8",
            )
        try:
            self.versions: dict[str, str] = self.ask("hello")["versions"]
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process' number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def ask(self, do: str, **values: Any) -> dict[str, Any]:
        """Return the answer to a request; raise `WorkerError` where there is none."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps({"do": do, **values}) + "\n")
            stdin.flush()
            line = stdout.readline()
        if not line:
            raise WorkerError(f"its process ended ({self._last_words()})")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise WorkerError(str(answer["error"]))
        return answer

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"exit code {code}" + (f": {lines[-1]}" if lines else "")

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # type: ignore[union-attr]  # it is a pipe
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()  # type: ignore[union-attr]  # it is a pipe
        self._errors.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def results_of(worker: Asked, mode: str, folder: Path) -> dict[str, Any]:
    """Return the results of a case that a worker has made ready."""
    path = folder / "results.npz"
    worker.ask("results", mode=mode, path=str(path))
    return read_npz(path, WorkerError)
