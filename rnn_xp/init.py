"""Initial values of parameters.

All are drawn in float64 by one NumPy generator, parameter after parameter in the order of their
names in the layer, then cast: the same seed gives the same numbers on every backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.random import Generator

HostArray = np.ndarray[Any, np.dtype[np.float64]]
Shape = tuple[int, ...]


def uniform(rng: Generator, shape: Shape, bound: float) -> HostArray:
    """Draw from U(-bound, bound).

    With bound = 1/√H this is PyTorch's default for recurrent layers, with 1/√I for `Linear`.
    """
    return rng.uniform(-bound, bound, shape)


def glorot(rng: Generator, shape: Shape) -> HostArray:
    """Draw a (rows, columns) matrix from U(-b, b), b = √(6 / (rows + columns)).

    Glorot & Bengio, "Understanding the difficulty of training deep feedforward neural networks",
    AISTATS 2010.
    """
    return rng.uniform(-1.0, 1.0, shape) * float(np.sqrt(6.0 / sum(shape)))


def orthogonal(rng: Generator, shape: Shape) -> HostArray:
    """Draw a matrix with orthonormal rows or columns, whichever are fewer.

    Saxe, McClelland & Ganguli, "Exact solutions to the nonlinear dynamics of learning in deep
    linear neural networks", ICLR 2014.
    """
    rows, columns = shape
    q, r = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
    q = q * np.sign(np.diagonal(r))  # makes the distribution uniform over all such matrices
    matrix: HostArray = q if rows >= columns else q.T
    return matrix


def _torch_uniform(rng: Generator, _: str, shape: Shape, hidden_size: int) -> HostArray:
    return uniform(rng, shape, hidden_size**-0.5)


def _glorot(rng: Generator, name: str, shape: Shape, hidden_size: int) -> HostArray:
    return _each_gate(glorot, rng, name, shape, hidden_size)


def _orthogonal(rng: Generator, name: str, shape: Shape, hidden_size: int) -> HostArray:
    draw = orthogonal if name.startswith("weight_hh") else glorot
    return _each_gate(draw, rng, name, shape, hidden_size)


def _each_gate(
    draw: Callable[[Generator, Shape], HostArray],
    rng: Generator,
    name: str,
    shape: Shape,
    hidden_size: int,
) -> HostArray:
    if len(shape) == 1 or name.startswith("weight_peephole"):
        return np.zeros(shape)
    if name.startswith("weight_hr"):
        return draw(rng, shape)
    gates = shape[0] // hidden_size
    return np.concatenate([draw(rng, (hidden_size, shape[1])) for _ in range(gates)])


SCHEMES: dict[str, Callable[[Generator, str, Shape, int], HostArray]] = {
    "uniform": _torch_uniform,
    "glorot": _glorot,
    "orthogonal": _orthogonal,
}
"""`uniform`: all from U(-1/√H, 1/√H), as PyTorch. `glorot`: each gate's matrix by `glorot`, biases
and peepholes zero. `orthogonal`: as `glorot`, but each gate's recurrent matrix by `orthogonal`."""


def recurrent(
    rng: Generator, shapes: Mapping[str, Shape], hidden_size: int, scheme: str
) -> dict[str, HostArray]:
    """Draw the parameters of a recurrent layer.

    Raises
    ------
    ValueError
        If `scheme` is not one of `SCHEMES`.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    draw = SCHEMES[scheme]
    return {name: draw(rng, name, shape, hidden_size) for name, shape in shapes.items()}
