"""What every measured library answers to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..cases import Case, Data

HostArray = np.ndarray[Any, Any]


class Call(NamedTuple):
    """A case made ready in one library."""

    run: Callable[[], Any]
    """What is timed: the whole of a training step or an inference, or all steps of a stream."""
    results: Callable[[], dict[str, HostArray]]
    """Run it once, and return the outputs `y` (T, B, D*H) and, of a training step, the gradients:
    `dx`, and `d` before each parameter's name."""
    compile_seconds: float = 0.0


class Peer:
    """A library in its worker; made after the number of threads is set in the environment."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    @staticmethod
    def lacks(case: Case) -> str:  # noqa: ARG004
        """Return why the library cannot run a case, empty if it can. Imports nothing."""
        return ""

    @staticmethod
    def modes(case: Case) -> tuple[str, ...]:  # noqa: ARG004
        """Return the ways to run a case, of which the fastest counts; the plain one first."""
        return ("",)

    @staticmethod
    def untried(case: Case) -> dict[str, str]:  # noqa: ARG004
        """Return the ways in which a case that the library can run is not run, and why."""
        return {}

    def versions(self) -> dict[str, str]:
        """Return the versions of what is measured."""
        raise NotImplementedError

    def make(self, case: Case, mode: str, data: Data) -> Call:
        """Make a case ready; what may be done once for many calls is done here."""
        raise NotImplementedError
