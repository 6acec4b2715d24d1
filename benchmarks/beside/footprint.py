"""What a library costs before it computes: the time of its import, and its size on the disk."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from . import machine
from .client import WorkerError, environment
from .peers import LIBRARIES

_TIMED = "from time import perf_counter as now; start = now(); {}; print(now() - start)"


def import_seconds(name: str, threads: int) -> float:
    """Return the seconds that importing a library takes in a new process.

    Raises
    ------
    WorkerError
        If it cannot be imported.
    """
    code = _TIMED.format(LIBRARIES[name].statement)
    with machine.pinned(threads):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            encoding="utf-8",
            env=environment(name, threads),
            check=False,
        )
    if done.returncode:
        raise WorkerError((done.stderr.strip().splitlines() or ["no reason"])[-1])
    return float(done.stdout.split()[-1])


def installed_bytes(name: str) -> int:
    """Return the size of what a user installs for a library, with all that it needs.

    That is every installed distribution that a requirement names, but for extras; compiled Python
    files are left out.

    Raises
    ------
    WorkerError
        If it is not installed as a distribution.
    """
    found: dict[str, metadata.Distribution] = {}
    asked = list(LIBRARIES[name].distributions)
    for one in asked:
        try:
            metadata.distribution(one)
        except metadata.PackageNotFoundError:
            raise WorkerError(f"{one} is not installed as a distribution") from None
    while asked:
        one = re.sub("[-_.]+", "-", asked.pop()).lower()
        if one in found:
            continue
        try:
            found[one] = metadata.distribution(one)
        except metadata.PackageNotFoundError:  # it is for another system, or another Python
            continue
        for requirement in found[one].requires or []:
            wanted, _, condition = requirement.partition(";")
            if "extra" not in condition:
                asked.append(re.split(r"[\s\[<>=!~(]", wanted.strip())[0])
    return sum(map(_size, found.values()))


def _size(distribution: metadata.Distribution) -> int:
    """Return the size of one distribution, installed or in a folder that is worked on."""
    paths = [Path(str(distribution.locate_file(file))) for file in distribution.files or []]
    if any(path.suffix == ".pth" and "editable" in path.name for path in paths):
        import rnn_xp  # the only one that anybody works on here

        paths += Path(rnn_xp.__file__).parent.rglob("*")
    return sum(path.stat().st_size for path in paths if path.is_file() and path.suffix != ".pyc")
