"""Optimizers, clipping, schedules and averaging: pure functions of parameters, gradients and state.

An optimizer's state is a dict: `step`, the number of updates so far, and dicts of arrays under
the parameters' names. A learning rate is a number, or a schedule: a function from the step,
0 for the first update, to the rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from rnn_xp.backend import (
    Array,
    Namespace,
    array_namespace,
    copy_of,
    device_of,
    dtype_name,
    is_traced,
    on_its_device,
    same_device,
    unrecorded,
    widened,
)
from rnn_xp.engines import around
from rnn_xp.layers.checks import check_given

Params = dict[str, Array]
State = dict[str, Any]
Schedule = Callable[[int], float]
Rate = float | Schedule


@on_its_device
def clip_by_global_norm(grads: Mapping[str, Array], max_norm: float) -> tuple[Params, Array]:
    """Scale all gradients so that their norm together is at most `max_norm`.

    The factor is min(1, max_norm / (norm + 1e-6)), as in PyTorch. A norm that is not finite makes
    the gradients NaN or 0, as there: look at the norm. (On CuPy the factor is of the norm before it
    is rounded to float16, whose largest number is 65,504.)

    Parameters
    ----------
    grads : dict of arrays
    max_norm : float, > 0

    Returns
    -------
    grads : dict of arrays
    norm : (), before scaling

    Raises
    ------
    TypeError
        If the gradients are not all of one library, dtype and device.
    ValueError
        If `max_norm` is not above 0.
    """
    if not max_norm > 0.0:
        raise ValueError(f"max_norm must be > 0, got {max_norm}")
    max_norm = float(max_norm)  # NumPy's own numbers have a dtype, which the product would take
    xp = array_namespace(**grads)
    first, like = next(iter(grads.items()))
    for name, g in grads.items():
        if g.dtype != like.dtype or not same_device(g, like):
            raise TypeError(
                f"the gradient of {name} is {dtype_name(g.dtype)} on {device_of(g)}, that of "
                f"{first} {dtype_name(like.dtype)} on {device_of(like)}: expected the same"
            )
    with unrecorded(xp):
        made = around.clip(list(grads.values()), max_norm)
        if made is not None:
            return dict(zip(grads, made[0], strict=True)), made[1]
        norm = _global_norm(xp, list(grads.values()))
        if xp is np and norm + 1e-6 <= max_norm:
            return dict(grads), norm
        factor = max_norm / (norm + 1e-6)
        factor = xp.where(factor > 1.0, xp.ones_like(factor), factor)
        return {name: _array(xp, g * factor) for name, g in grads.items()}, norm


def _array(xp: Namespace, made: Any) -> Array:
    """Return an array: NumPy makes numbers of arrays without axes."""
    return np.asarray(made) if xp is np else made


def _global_norm(xp: Namespace, arrays: list[Array]) -> Array:
    """Return the norm of all arrays together, though a square may leave the range of the dtype."""
    like, arrays = arrays[0], [a for a in arrays if math.prod(a.shape)]
    if not arrays:
        return xp.sum(like)
    if xp is np:  # dot products take a fifth of the time, where they stay far inside the range
        total = sum(float(np.vdot(a, a)) for a in arrays)
        limits = np.finfo(like.dtype)
        if limits.tiny / limits.eps < total < math.inf:
            return like.dtype.type(math.sqrt(total))
    top = xp.max(xp.stack([xp.max(xp.abs(a)) for a in arrays]))
    safe = xp.where((top > 0) & (top < math.inf), top, xp.ones_like(top))
    parts = [widened(xp, a / safe) for a in arrays]
    squares = [xp.sum(part * part) for part in parts]
    return safe * xp.astype(xp.sqrt(xp.sum(xp.stack(squares))), like.dtype)


# --------------------------------------------------------------------------------------------
# Schedules


class _Plain:
    """What a schedule computes with, of a plain number."""

    minimum, cos = min, math.cos

    @staticmethod
    def where(condition: bool, one: float, other: float) -> float:
        return one if condition else other


def _functions(step: Any) -> Any:
    """Return the same functions for a step, which may be an array that JAX traces."""
    return array_namespace(step=step) if is_traced(step) else _Plain


@dataclass(frozen=True)
class constant:
    """The same rate at every step."""

    rate: float

    def __post_init__(self) -> None:
        _at_least("rate", self.rate, 0.0)

    def __call__(self, step: int) -> float:
        """Return the rate of a step."""
        return self.rate


@dataclass(frozen=True)
class warmup_cosine:
    """Linear from 0 to `peak` in `warmup` steps, then half a cosine to `floor` at step `steps`.

    Loshchilov & Hutter, "SGDR", ICLR 2017, without restarts.
    """

    peak: float
    steps: int
    warmup: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        _at_least("peak", self.peak, 0.0)
        _at_least("floor", self.floor, 0.0)
        _at_least("steps", self.steps, 1)
        if not 0 <= self.warmup < self.steps:
            raise ValueError(f"warmup must lie in 0..{self.steps - 1} (steps), got {self.warmup}")

    def __call__(self, step: int) -> float:
        """Return the rate of a step."""
        f = _functions(step)
        part = f.minimum(1.0, (step - self.warmup) / (self.steps - self.warmup))
        cosine = self.floor + (self.peak - self.floor) * 0.5 * (1.0 + f.cos(math.pi * part))
        rising = self.peak * (step + 1) / max(self.warmup, 1)
        rate: float = f.where(step < self.warmup, rising, cosine)
        return rate


@dataclass(frozen=True)
class step_decay:
    """`rate`, multiplied by `factor` after every `every` steps."""

    rate: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        _at_least("rate", self.rate, 0.0)
        _at_least("every", self.every, 1)
        _at_least("factor", self.factor, 0.0)

    def __call__(self, step: int) -> float:
        """Return the rate of a step."""
        return self.rate * self.factor ** (step // self.every)


# --------------------------------------------------------------------------------------------
# Optimizers


@dataclass(frozen=True)
class _Optimizer:
    """What the optimizers share."""

    learning_rate: Rate

    def __post_init__(self) -> None:
        for each in fields(self):  # NumPy's own numbers have a dtype, which a product would take
            value = getattr(self, each.name)
            if isinstance(value, np.generic):
                object.__setattr__(self, each.name, value.item())
        if not callable(self.learning_rate):
            _at_least("learning_rate", self.learning_rate, 0.0)

    def _slots(self) -> tuple[str, ...]:
        """The names of the dicts of arrays in the state."""
        raise NotImplementedError

    def _update(
        self, xp: Namespace, rate: float, step: int, grad: Array, slots: list[Array], param: Array
    ) -> tuple[Array, list[Array]]:
        """Return one parameter and its slots after update number `step`, 1 for the first."""
        raise NotImplementedError

    @on_its_device
    def init(self, params: Mapping[str, Array]) -> State:
        """Return the state before the first update."""
        xp = array_namespace(**params)
        state: State = {"step": 0}
        for slot in self._slots():
            state[slot] = {name: xp.zeros_like(value) for name, value in params.items()}
        return state

    @on_its_device
    def update(
        self, grads: Mapping[str, Array], state: State, params: Mapping[str, Array]
    ) -> tuple[Params, State]:
        """Return the parameters and the state after one update; changes no argument.

        Raises
        ------
        TypeError
            If a gradient, or an array of the state, is not of its parameter's library and dtype.
        ValueError
            If it is not of its shape and device, or `grads` and `params` differ in their names.
        """
        _same_names("grads", grads, params)
        xp = array_namespace(**params)
        kinds = {"gradient": grads} | {f"state's {slot}": state[slot] for slot in self._slots()}
        for kind, arrays in kinds.items():
            for name, value in params.items():
                check_given(f"the {kind} of {name}", arrays[name], value.shape, value)
        number = state["step"]
        rate = self.learning_rate
        if callable(rate):
            rate = rate(number) if is_traced(number) else float(rate(number))
        new: Params = {}
        names = self._slots()
        new_state: State = {"step": number + 1, **{slot: {} for slot in names}}
        with unrecorded(xp):
            for name, value in params.items():
                slots, grad = [state[slot][name] for slot in names], grads[name]
                if value.ndim:
                    new[name], slots = self._update(xp, rate, number + 1, grad, slots, value)
                else:  # NumPy makes numbers, not arrays, of arrays without axes
                    one, grad, *slots = (xp.reshape(a, (1,)) for a in (value, grad, *slots))
                    one, slots = self._update(xp, rate, number + 1, grad, slots, one)
                    new[name], *slots = (xp.reshape(a, ()) for a in (one, *slots))
                for slot, array in zip(names, slots, strict=True):
                    new_state[slot][name] = array
        return new, new_state


@dataclass(frozen=True)
class SGD(_Optimizer):
    """Gradient descent, with momentum and Nesterov's form of it as in PyTorch.

    v = momentum v + g;  p = p - rate v, or with Nesterov p - rate (g + momentum v)
    """

    learning_rate: Rate
    momentum: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _below_one("momentum", self.momentum)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")

    def _slots(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    def _update(
        self, xp: Namespace, rate: float, step: int, grad: Array, slots: list[Array], param: Array
    ) -> tuple[Array, list[Array]]:
        if not self.momentum:
            return param - rate * grad, []
        v = self.momentum * slots[0] + grad
        return param - rate * (grad + self.momentum * v if self.nesterov else v), [v]


@dataclass(frozen=True)
class Adam(_Optimizer):
    """Adam (Kingma & Ba, ICLR 2015), as in PyTorch.

    m = β1 m + (1 - β1) g;  v = β2 v + (1 - β2) g²
    p = p - rate m / (1 - β1^t) / (√(v / (1 - β2^t)) + eps)
    """

    learning_rate: Rate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, beta in zip(("betas[0]", "betas[1]"), self.betas, strict=True):
            _below_one(name, beta)
        plain = tuple(b.item() if isinstance(b, np.generic) else b for b in self.betas)
        object.__setattr__(self, "betas", plain)
        _at_least("eps", self.eps, 0.0)

    def _slots(self) -> tuple[str, ...]:
        return ("m", "v")

    def _keep(self, rate: float) -> float:
        """Return what stays of a parameter besides Adam's update."""
        return 1.0

    def _update(
        self, xp: Namespace, rate: float, step: int, grad: Array, slots: list[Array], param: Array
    ) -> tuple[Array, list[Array]]:
        beta1, beta2 = self.betas
        correction = (1.0 - beta2**step) ** 0.5  # of √v; here eps and the rate carry it
        eps, scale = self.eps * correction, -rate * correction / (1.0 - beta1**step)
        keep = self._keep(rate)
        made = around.adam((param, grad, *slots), self.betas, eps, scale, keep)
        if made is not None:
            return made[0], list(made[1:])
        m = beta1 * slots[0] + (1.0 - beta1) * grad
        v = beta2 * slots[1] + (1.0 - beta2) * (grad * grad)
        return keep * param + scale * m / (xp.sqrt(v) + eps), [m, v]


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019), as in PyTorch.

    p = p - rate weight_decay p, then as Adam
    """

    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        _at_least("weight_decay", self.weight_decay, 0.0)

    def _keep(self, rate: float) -> float:
        return 1.0 - rate * self.weight_decay


@dataclass(frozen=True)
class RMSprop(_Optimizer):
    """RMSprop (Tieleman & Hinton, 2012), as in PyTorch.

    v = α v + (1 - α) g²;  p = p - rate g / (√v + eps)
    """

    learning_rate: Rate = 0.01
    alpha: float = 0.99
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        _below_one("alpha", self.alpha)
        _at_least("eps", self.eps, 0.0)

    def _slots(self) -> tuple[str, ...]:
        return ("v",)

    def _update(
        self, xp: Namespace, rate: float, step: int, grad: Array, slots: list[Array], param: Array
    ) -> tuple[Array, list[Array]]:
        v = self.alpha * slots[0] + (1.0 - self.alpha) * (grad * grad)
        return param - rate * (grad / (xp.sqrt(v) + self.eps)), [v]


# --------------------------------------------------------------------------------------------
# Averaging


@dataclass(frozen=True)
class Average:
    """A running mean of the parameters over the updates (Polyak & Juditsky, 1992).

    mean = d mean + (1 - d) p, with d = min(decay, (1 + t) / (10 + t)) at update t, 0 for the first:
    over about a ninth of the updates at first, so that drawn parameters are soon forgotten, and
    over the last 1 / (1 - decay) of them later.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        _below_one("decay", self.decay)

    @on_its_device
    def init(self, params: Mapping[str, Array]) -> State:
        """Return the state before the first update: `step`, 0, and `mean`, the parameters."""
        xp = array_namespace(**params)
        with unrecorded(xp):
            return {"step": 0, "mean": {name: copy_of(xp, p) for name, p in params.items()}}

    @on_its_device
    def update(self, state: State, params: Mapping[str, Array]) -> State:
        """Return the state with the parameters after one more update; changes no argument.

        Raises
        ------
        TypeError, ValueError
            If `params` has other names than before, or an array of another library, dtype, shape
            or device.
        """
        _same_names("the mean", state["mean"], params)
        xp, step = array_namespace(**params), state["step"]
        for name, value in params.items():
            check_given(f"the mean of {name}", state["mean"][name], value.shape, value)
        new = 1.0 - _functions(step).minimum(float(self.decay), (1.0 + step) / (10.0 + step))
        mean: Params = {}
        with unrecorded(xp):
            for name, old in state["mean"].items():
                made = around.moved(old, params[name], new)
                mean[name] = _array(xp, old + new * (params[name] - old)) if made is None else made
        return {"step": step + 1, "mean": mean}


def _same_names(name: str, given: Mapping[str, Array], params: Mapping[str, Array]) -> None:
    if given.keys() != params.keys():
        differ = ", ".join(sorted(given.keys() ^ params.keys()))
        raise ValueError(f"{name} and params must have the same names, but differ in {differ}")


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least or value == math.inf:
        raise ValueError(f"{name} must be a number >= {least}, got {value}")


def _below_one(name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must lie in 0 <= {name} < 1, got {value}")
