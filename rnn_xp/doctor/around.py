"""Parity of what a training step does around its layers: the loss, clipping, and the update.

Every backend against NumPy in float64, as `parity` does with the layers; CuPy has kernels for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from rnn_xp import losses, optim
from rnn_xp.backend import Backend, select
from rnn_xp.doctor.parity import ROUNDOFF, Check, HostArray, error_of, rounded
from rnn_xp.errors import named_line

ENGINE = "as chosen"
_RULE = optim.AdamW(0.1, (0.8, 0.5), 0.01)
"""One whose moments are of the size of the gradients."""
_AVERAGE = optim.Average(0.3)


@dataclass(frozen=True)
class Around:
    """A step, by its sizes."""

    rows: int = 257
    classes: int = 80
    """Of the cross-entropy."""
    hidden: int = 33
    updates: int = 3

    @property
    def cell(self) -> str:
        """What stands in the place of a cell."""
        return "around the layers"

    def __str__(self) -> str:
        return f"{self.cell}, {self.rows} rows of {self.classes} classes"


@lru_cache(maxsize=1)
def _drawn(config: Around) -> dict[str, HostArray]:
    """Draw the numbers, float64 that float16 and bfloat16 hold exactly."""
    rng = np.random.default_rng(0)
    shapes = {"weight": (config.classes, config.hidden), "bias": (config.classes,)}
    made = {"logits": 3.0 * rng.standard_normal((config.rows, config.classes))}
    for name, shape in shapes.items():
        made[name] = rng.standard_normal(shape)
        made[f"d{name}"] = rng.standard_normal(shape)
    return {name: rounded(a) for name, a in made.items()}


def results(config: Around, backend: Backend, dtype: str) -> dict[str, HostArray]:
    """Return the loss, the norm, what the gradients become, parameters, their mean and moments."""
    given = {name: backend.asarray(a, dtype) for name, a in _drawn(config).items()}
    targets = backend.asarray(np.arange(config.rows) % config.classes)
    loss, dlogits = losses.softmax_cross_entropy(given["logits"], targets, reduction="sum")
    names = ("weight", "bias")
    grads, norm = optim.clip_by_global_norm({name: given[f"d{name}"] for name in names}, 20.0)
    params = {name: given[name] for name in names}
    state, mean = _RULE.init(params), _AVERAGE.init(params)
    for _ in range(config.updates):
        params, state = _RULE.update(grads, state, params)
        mean = _AVERAGE.update(mean, params)
    found = {"y loss": loss, "y norm": norm, "dlogits": dlogits}
    for name in names:
        found |= {f"d{name}": grads[name], f"y {name}": params[name]}
        found[f"y mean {name}"] = mean["mean"][name]
        found |= {f"state {slot} {name}": state[slot][name] for slot in ("m", "v")}
    return {name: backend.to_numpy(a) for name, a in found.items()}


def bound(dtype: str) -> float:
    """Return how large an error may be, of an array relative to its own largest element.

    A number is rounded a few times; on CPUs the errors lie below 6 unit roundoffs.
    """
    return 16 * ROUNDOFF[dtype]


def checks(backend: Backend, names: list[str]) -> Iterator[Check]:
    """Check a step in some dtypes, but for the reference."""
    config = Around()
    expected = results(config, select("numpy"), "float64")
    for dtype in names:
        if (backend.name, dtype) == ("numpy", "float64"):
            continue
        errors: dict[str, float] = {}
        failure = ""
        try:
            found = results(config, backend, dtype)
            errors = {
                name: error_of(found[name], array, dtype, float(np.abs(array).max()))
                for name, array in expected.items()
            }
        except Exception as error:  # any: the library's own
            failure = named_line(error)
        yield Check(backend.name, ENGINE, dtype, config, bound(dtype), errors, failure)
