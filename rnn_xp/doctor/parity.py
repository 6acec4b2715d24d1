"""Parity: the layers of every backend against the NumPy core in float64.

The numbers of a problem are ones that float16 and bfloat16 hold exactly, so that they are the same
in every dtype, and one reference serves all. The error of an array is the largest difference over
the largest element of all values, or of all gradients, of the reference. With the unit roundoff u
of a dtype, a sum of n terms is off by about u sqrt(n) of the largest term, and each of T steps adds
an error of its own and passes on those before it: `bound` is u L T sqrt(n) / 2, for L levels and
the longest sum n of a problem. On CPUs the errors of this grid lie below two fifths of it, on an
H100 below a fifth; a product in TF32 (u = 2^-11) in place of float32 (2^-24) lies above, but for
the longest sequences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from rnn_xp.backend import Backend, dtype_name, select
from rnn_xp.doctor.engines import NAME_OF_CORE, is_gpu, on_core, runs, why_not_persistent
from rnn_xp.doctor.machine import Shape
from rnn_xp.engines.cuda.plan import BFLOAT16
from rnn_xp.errors import named_line
from rnn_xp.layers import GRU, LSTM, RNN, Recurrent

HostArray = np.ndarray[Any, Any]


def _projected(input_size: int, hidden_size: int, num_layers: int, **options: Any) -> Recurrent:
    """Return an LSTM whose output is projected to half of its units."""
    return LSTM(input_size, hidden_size, num_layers, proj_size=hidden_size // 2, **options)


Cells = dict[str, Callable[..., Recurrent]]
CELLS: Cells = {
    "RNN tanh": RNN,
    "RNN relu": partial(RNN, nonlinearity="relu"),
    "LSTM": LSTM,
    "GRU": GRU,
    "GRU, reset before": partial(GRU, reset_after=False),
}
CELLS_OF_THE_CORE: Cells = {
    "LSTM, peepholes": partial(LSTM, peephole=True),
    "LSTM, projection": _projected,
}
"""Those that have no kernels."""
PARTS = {"outputs": "y", "states": "state", "gradients": "d"}
"""Of the arrays of a check: what they are, and how their names begin."""
_FULL: Shape = (5, 3, 74, 37)
"""Both levels have one input size, so that JAX compiles one."""
_UNEVEN: Shape = (4, 17, 33, 130)
_LARGE: Shape = (20, 70, 64, 512)
_LONG: Shape = (2000, 3, 40, 40)
"""So many steps that levels run at once."""
_DTYPES = ("float64", "float32")
_GPU_DTYPES = (*_DTYPES, "float16", "bfloat16")
ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@dataclass(frozen=True)
class Config:
    """A layer, and what it is called with."""

    cell: str
    """One of `CELLS` or of `CELLS_OF_THE_CORE`."""
    shape: Shape
    layers: int = 1
    bidirectional: bool = False
    ragged: bool = False
    carried: bool = False
    """Whether there is an initial state, and a gradient of the last one."""

    def __str__(self) -> str:
        flags = [name for name in ("bidirectional", "ragged", "carried") if getattr(self, name)]
        shape = ",".join(map(str, self.shape))
        levels = f"{self.layers} level{'s' * (self.layers > 1)}"
        return ", ".join([f"{self.cell} {shape}", levels, *flags])

    @property
    def layer(self) -> Recurrent:
        """The layer."""
        _, _, size, hidden = self.shape
        make = (CELLS | CELLS_OF_THE_CORE)[self.cell]
        return make(size, hidden, self.layers, bidirectional=self.bidirectional)


class Checked(Protocol):
    """What a check says of its configuration; `str` says all of it."""

    @property
    def cell(self) -> str:
        """In a word or two."""


class Problem(NamedTuple):
    """The numbers of a configuration, float64 that float16 and bfloat16 hold exactly."""

    params: dict[str, HostArray]
    x: HostArray
    state: Any
    dy: HostArray
    dstate: Any
    lengths: HostArray | None


@dataclass(frozen=True)
class Check:
    """One configuration on one backend, in one dtype, by one engine."""

    backend: str
    engine: str
    dtype: str
    config: Checked
    bound: float
    errors: dict[str, float]
    """Of each array: `y`, `state[0]`, `dx`, `dstate[0]`, `dweight_ih_l0`, …"""
    failure: str = ""
    """The error that was raised, if one was."""

    @property
    def passed(self) -> bool:
        """Whether every array is there and within the bound."""
        return not self.failure and all(error <= self.bound for error in self.errors.values())

    def largest(self, kind: str) -> float:
        """Return the largest error of `y`, of `state`, or of `d`, the gradients."""
        return max((e for name, e in self.errors.items() if name.startswith(kind)), default=0.0)


def grid(*, quick: bool, gpu: bool) -> list[Config]:
    """Return the configurations to check.

    Each cell with every option, and with none at uneven sizes; on a GPU those with kernels also
    where a kernel takes many blocks, and where levels run at once. Quick: the LSTM with every
    option, and two others in one level and direction.
    """
    full: dict[str, Any] = {"layers": 2, "bidirectional": True, "ragged": True, "carried": True}
    less: dict[str, Any] = {"ragged": True, "carried": True}
    if quick:
        others = [Config(cell, _FULL, **less) for cell in ("RNN tanh", "GRU")]
        return [Config("LSTM", _FULL, **full), *others]
    every = (*CELLS, *CELLS_OF_THE_CORE)
    found = [Config(cell, _FULL, **full) for cell in every]
    found += [Config(cell, _UNEVEN) for cell in every]
    if gpu:
        found += [Config(cell, _LARGE, **less) for cell in CELLS]
        found += [Config(cell, _LONG, 2, **less) for cell in CELLS]
    return found


@lru_cache(maxsize=4)
def problem_of(config: Config) -> Problem:
    """Draw the numbers of a configuration.

    Weights are small, so that few units saturate: of 1 - h² few digits are left there. Biases under
    relu alternate between 2 and -2, so that rounding moves no pre-activation across the kink.
    """
    rng = np.random.default_rng(0)
    (steps, batch, size, hidden), layer = config.shape, config.layer
    relu = config.cell == "RNN relu"
    scale = (0.5 if relu else 1.0) / math.sqrt(size + hidden)
    params = {
        name: rounded(rng.uniform(-scale, scale, shape)) for name, shape in layer.shapes.items()
    }
    if relu:
        for name in params:
            if name.startswith("bias_ih"):
                params[name] = np.where(np.arange(hidden) % 2 == 1, -2.0, 2.0)
    normal = rng.standard_normal
    count = config.layers * layer.num_directions

    def state() -> Any:
        made = tuple(rounded(normal((count, batch, n))) for n in layer.equations.state_sizes)
        return made if len(made) > 1 else made[0]

    lengths = rng.integers(1, steps, batch)
    lengths[0] = steps
    return Problem(
        params,
        rounded(normal((steps, batch, size))),
        state() if config.carried else None,
        rounded(normal((steps, batch, layer.output_size))),
        state() if config.carried else None,
        lengths if config.ragged else None,
    )


def rounded(array: HostArray) -> HostArray:
    """Return float16's nearest, of them the eight bits that bfloat16 has."""
    bits = array.astype(np.float16).astype(np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)


@lru_cache(maxsize=32)
def reference(config: Config) -> dict[str, HostArray]:
    """Return every result of the NumPy core in float64."""
    return results(on_core(config.layer), problem_of(config), select("numpy"), "float64")


def results(
    layer: Recurrent, problem: Problem, backend: Backend, dtype: str
) -> dict[str, HostArray]:
    """Run a problem forward and backward; return outputs, states and gradients by name."""

    def given(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(given(a) for a in value)
        return None if value is None else backend.asarray(value, dtype)

    params = {name: given(a) for name, a in problem.params.items()}
    y, state, cache = layer.forward(
        params, given(problem.x), given(problem.state), lengths=problem.lengths
    )
    dparams, dx, dfirst = layer.backward(params, cache, given(problem.dy), given(problem.dstate))
    found = {"y": y, "dx": dx, **{f"d{name}": a for name, a in dparams.items()}}
    for name, parts in (("state", state), ("dstate", dfirst)):
        each = parts if isinstance(parts, tuple) else (parts,)
        found |= {f"{name}[{k}]": part for k, part in enumerate(each)}
    return {name: backend.to_numpy(a) for name, a in found.items()}


def errors_of(
    found: dict[str, HostArray], expected: dict[str, HostArray], dtype: str
) -> dict[str, float]:
    """Return the error of each array; infinity for another shape or dtype, and for NaN.

    Gradients share a scale, and so do values: a single sum may cancel to next to nothing.
    """
    scales = {
        gradient: max(
            float(np.abs(b).max()) for name, b in expected.items() if _is_gradient(name) == gradient
        )
        for gradient in (True, False)
    }
    return {
        name: error_of(found[name], b, dtype, scales[_is_gradient(name)])
        for name, b in expected.items()
    }


def error_of(found: HostArray, expected: HostArray, dtype: str, scale: float) -> float:
    """Return the largest error over `scale`; infinity for another shape or dtype, and for NaN."""
    if found.shape != expected.shape or dtype_name(found.dtype) != dtype:
        return math.inf
    error = float(np.abs(found.astype(np.float64) - expected).max()) / scale
    return math.inf if math.isnan(error) else error


def _is_gradient(name: str) -> bool:
    return name.startswith("d")


def bound(config: Config, dtype: str) -> float:
    """Return how large an error may be, relative to the largest element; see above."""
    steps, batch, size, hidden = config.shape
    longest = max(steps * batch, size + hidden, 2 * hidden * (1 + config.bidirectional))
    return 0.5 * ROUNDOFF[dtype] * config.layers * steps * math.sqrt(longest)


def dtypes(backend: Backend) -> tuple[list[str], list[str]]:
    """Return the dtypes to check a backend in, and why not in others."""
    there, lacks = [], []
    for name in _GPU_DTYPES if is_gpu(backend) else _DTYPES:
        try:
            backend.dtype(name)
            if name == "bfloat16":
                _check_multiplies(backend)
            there.append(name)
        except ValueError as error:
            lacks.append(str(error))
    return there, lacks


def _check_multiplies(backend: Backend) -> None:
    """Raise unless the GPU multiplies bfloat16."""
    capability = int(backend.device.compute_capability)
    if capability < BFLOAT16:
        raise ValueError(
            f"bfloat16 is multiplied from compute capability {BFLOAT16 / 10} on, "
            f"here is {capability / 10}"
        )


def checks(backend: Backend, names: list[str], configs: list[Config]) -> Iterator[Check]:
    """Check configurations in some dtypes, by the core and by the engines of this backend.

    But not where a bound would be as large as the numbers, as that of many steps in float16.
    """
    for config in configs:
        for dtype in names:
            if bound(config, dtype) >= 1.0:
                continue
            for engine, layer in runs(config.layer, backend, dtype, config.shape[:2]):
                # All but the reference.
                if (backend.name, dtype, engine) != ("numpy", "float64", NAME_OF_CORE):
                    errors, failure = _tried(layer, backend, dtype, config)
                    most = bound(config, dtype)
                    yield Check(backend.name, engine, dtype, config, most, errors, failure)


def left_out(backend: Backend, names: list[str], configs: list[Config]) -> Iterator[str]:
    """Yield in one line each where CuPy's steps do not run in one kernel, and why.

    Of cells that have kernels.
    """
    for config in configs:
        if config.cell not in CELLS:
            continue
        _, batch, _, hidden = config.shape
        for dtype in names:
            if dtype == "float64":
                continue  # there is no such kernel
            why = why_not_persistent(config.layer, backend, dtype, batch)
            if why:
                what = f"{config.cell} of {hidden} units, {batch} sequences, {dtype}"
                yield f"{backend.name}: {what}: not all steps in one kernel: {why}"


def _tried(
    layer: Recurrent, backend: Backend, dtype: str, config: Config
) -> tuple[dict[str, float], str]:
    """Return the errors, or why there are none."""
    expected = reference(config)
    try:
        found = results(layer, problem_of(config), backend, dtype)
        return errors_of(found, expected, dtype), ""
    except Exception as error:  # any: the library's own
        return {}, named_line(error)
