"""Freed memory stays in the process for the next step, instead of going back to the system.

Each step of training allocates what the last one freed. glibc hands the memory of large arrays back
to the system, and at the next use each page of 4 kB costs a fault: up to 40 % of a step on NumPy
alone, 30 % with the kernels. It does so until the program has freed an array of 32 MB, the most
that it raises its thresholds to (`M_MMAP_THRESHOLD` and `M_TRIM_THRESHOLD` in mallopt(3)); from
then on it keeps up to 64 MB.
"""

from __future__ import annotations

import contextlib

import numpy as np

_MOST = (32 << 20) - (8 << 10)  # with its header and in whole pages, less than 32 MB


def widen() -> None:
    """Free such an array, that nothing has touched: it takes microseconds and no memory.

    Where the thresholds are set in the environment (`MALLOC_TRIM_THRESHOLD_`), or the C library is
    another one, this changes nothing.
    """
    with contextlib.suppress(MemoryError):
        np.empty(_MOST, dtype=np.uint8)
