"""The activation functions of ONNX's recurrent operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rnn_xp.backend import Array, Namespace


class _Activation(NamedTuple):
    """A function of the pre-activation and its parameters alpha and beta."""

    compute: Callable[..., Array]
    takes: int = 0
    """0, 1 (alpha) or 2 (alpha and beta)"""
    defaults: tuple[float, ...] = ()
    """Those of the ONNX operator of that name; there is none of Affine and ScaledTanh."""


def _elu(xp: Namespace, a: Array, alpha: float) -> Array:
    return xp.where(a >= 0, a, alpha * xp.expm1(xp.clip(a, None, 0.0)))


def _softplus(xp: Namespace, a: Array) -> Array:
    return xp.clip(a, 0.0, None) + xp.log1p(xp.exp(-xp.abs(a)))


_ACTIVATIONS = {
    "tanh": _Activation(lambda xp, a: xp.tanh(a)),
    "relu": _Activation(lambda xp, a: xp.clip(a, 0.0, None)),
    "sigmoid": _Activation(lambda xp, a: 0.5 * xp.tanh(0.5 * a) + 0.5),
    "affine": _Activation(lambda xp, a, alpha, beta: alpha * a + beta, 2),
    "leakyrelu": _Activation(lambda xp, a, alpha: xp.where(a >= 0, a, alpha * a), 1, (0.01,)),
    "thresholdedrelu": _Activation(
        lambda xp, a, alpha: xp.where(a >= alpha, a, xp.zeros_like(a)), 1, (1.0,)
    ),
    "scaledtanh": _Activation(lambda xp, a, alpha, beta: alpha * xp.tanh(beta * a), 2),
    "hardsigmoid": _Activation(
        lambda xp, a, alpha, beta: xp.clip(alpha * a + beta, 0.0, 1.0), 2, (0.2, 0.5)
    ),
    "elu": _Activation(_elu, 1, (1.0,)),
    "softsign": _Activation(lambda xp, a: a / (1.0 + xp.abs(a))),
    "softplus": _Activation(_softplus),
}


class Function(NamedTuple):
    """An activation with its parameters; what enters it is clipped first."""

    name: str
    values: tuple[float, ...]

    def __call__(self, xp: Namespace, a: Array, clip: float | None = None) -> Array:
        """Return the function of a, or of a within ±clip."""
        if clip is not None:
            a = xp.clip(a, -clip, clip)
        return _ACTIVATIONS[self.name].compute(xp, a, *self.values)


def functions(
    names: Sequence[str], alphas: Sequence[float], betas: Sequence[float]
) -> list[Function]:
    """Return the functions called `names`; each takes the next alpha and beta if it has them.

    Raises
    ------
    ValueError
        If a name is unknown, a value without a default is missing, or values are left over.
    """
    lists = {"alpha": list(alphas), "beta": list(betas)}
    made = []
    for shown in names:
        name, values = shown.lower(), []
        if name not in _ACTIVATIONS:
            raise ValueError(f"the attribute activations has the unknown function {shown!r}")
        known = _ACTIVATIONS[name]
        for k, kind in enumerate(("alpha", "beta")[: known.takes]):
            if not lists[kind] and not known.defaults:
                raise ValueError(f"{shown} needs a value in the attribute activation_{kind}")
            values.append(lists[kind].pop(0) if lists[kind] else known.defaults[k])
        made.append(Function(name, tuple(values)))
    for kind, left in lists.items():
        if left:
            raise ValueError(
                f"the attribute activation_{kind} has {len(left)} more values than its functions "
                f"take ({', '.join(names)})"
            )
    return made
