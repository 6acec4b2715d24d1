"""Mean and deviation, for data that is standardised before a network reads it."""

from __future__ import annotations

from typing import Any

import numpy as np

HostArray = np.ndarray[Any, Any]


def mean_and_deviation(
    values: HostArray, axis: int | tuple[int, ...] | None = 0
) -> tuple[HostArray, HostArray]:
    """Return mean and standard deviation along `axis`, float64.

    The deviation of equal values is exactly 0: rounding of their mean would leave some 1e-17.
    """
    mean = values.mean(axis=axis, dtype=np.float64)
    deviation = values.std(axis=axis, dtype=np.float64)
    return mean, np.where(values.max(axis=axis) > values.min(axis=axis), deviation, 0.0)
