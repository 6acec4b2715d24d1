"""PyTorch: tensors in the processor's memory are NumPy arrays too, for the compiled kernels.

Nothing is copied: an array for a tensor, or a tensor for an array, is a view of the same memory.
What the kernels cannot do stays with the core, on the tensors themselves: another cell, device or
dtype, and tensors that something watches (autograd while it records, `torch.func`,
`torch.compile`). Of a cell without a backward step PyTorch derives the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd.forward_ad import unpack_dual

from rnn_xp.backend import Array
from rnn_xp.cells.base import Weights
from rnn_xp.engines import native
from rnn_xp.engines.base import ByLevel, Engine, Made, Params, Parts, Ragged, Run, Stack
from rnn_xp.engines.plain import PLAIN

HostArray = np.ndarray[Any, Any]


class Hosted(NamedTuple):
    """Prepared weights of a level."""

    weights: Sequence[Weights]
    """The tensors, for the core in case that x is watched."""
    packed: native.Packed


class Kept(NamedTuple):
    """What is kept of a level: how it was run, and what that needs."""

    engine: Engine
    """The one that ran it; of a cell without a backward step this module's."""
    kept: Any
    x: Array
    state: Parts
    ragged: Ragged | None


class Tensors(ByLevel):
    """The engine for PyTorch tensors."""

    title, derives = "tensors", True

    def prepare(self, stack: Stack, params: Params) -> list[Any]:
        """Pack the weights of each level, if the kernels take them."""
        weights = self.weights(stack, params)
        host = _hosted(params)
        if host is None:
            return weights
        kernels = native.kernels_for(next(iter(host[0].values())), stack.cell)
        if kernels is None:
            return weights
        return list(map(Hosted, weights, kernels.prepare(stack, host[0])))

    def run_level(self, how: Run, weights: Any, x: Array, state: Parts) -> Made:
        """Run the directions of one level; see `Engine`."""
        stack, ragged, *_ = how
        if how.keep and not stack.cell.has_backward:
            with torch.no_grad():
                y, last, _ = PLAIN.run_level(how._replace(keep=False), weights, x, state)
            return y, last, Kept(self, None, x, _copies(state), ragged)
        # The core runs on tensors, not on their arrays: the threads of NumPy's products spin for a
        # while after each, and PyTorch's next operations would take three times as long.
        weights, packed = weights if type(weights) is Hosted else (weights, None)
        hosts = _hosted(x, *state, *(weights if packed is None else ()))
        kernels = None if hosts is None else native.kernels_for(hosts[0], stack.cell)
        if hosts is None or kernels is None:
            y, last, kept = PLAIN.run_level(how, weights, x, state)
            return y, last, Kept(PLAIN, kept, x, state, ragged)
        count = 1 + len(state)
        own = kernels.of_directions(hosts[count:]) if packed is None else packed
        host_x, *host_state = hosts[:count]
        y, last, kept = kernels.run_level(how, own, host_x, host_state)
        tensors = [torch.from_numpy(part) for part in last]
        ours = Kept(kernels, kept, x, _copies(state), ragged) if how.keep else None
        return torch.from_numpy(y), tensors, ours

    def run_level_backward(
        self, stack: Stack, weights: Any, kept: Kept, dy: Array, dstate: Parts
    ) -> Made:
        """Run the directions of one level backward; see `Engine`."""
        if kept.engine is self:
            return self._derived(stack, weights, kept, dy, dstate)
        if kept.engine is PLAIN:
            return PLAIN.run_level_backward(stack, weights, kept.kept, dy, dstate)
        hosts = _hosted(dy, *dstate, *weights)
        if hosts is None:  # watched since the forward run: the core does both
            how = Run(stack, kept.ragged, keep=True)
            _, _, again = PLAIN.run_level(how, weights, kept.x, kept.state)
            return PLAIN.run_level_backward(stack, weights, again, dy, dstate)
        count = 1 + len(dstate)
        own, (host_dy, *host_dstate) = hosts[count:], hosts[:count]
        kernels: Any = kept.engine
        made, dx, first = kernels.run_level_backward(
            stack, kernels.of_directions(own), kept.kept, host_dy, host_dstate
        )
        gradients = kernels.by_direction(stack, made)
        return (
            [{name: torch.from_numpy(a) for name, a in each.items()} for each in gradients],
            torch.from_numpy(dx),
            [torch.from_numpy(part) for part in first],
        )

    def _derived(
        self, stack: Stack, weights: Sequence[Weights], kept: Kept, dy: Array, dstate: Parts
    ) -> tuple[list[Weights], Array, Sequence[Array]]:
        """Run forward again under autograd, and backward by it."""
        shape = (len(weights), dy.shape[1])
        state = [
            dy.new_zeros((*shape, size)) if part is None else part
            for size, part in zip(stack.cell.state_sizes, kept.state, strict=True)
        ]

        def forward(weights: Any, x: Array, state: Any) -> Any:
            y, last, _ = PLAIN.run_level(Run(stack, kept.ragged), weights, x, state)
            return y, last

        (_, last), pull = torch.func.vjp(forward, list(weights), kept.x, state)
        zeros = [torch.zeros_like(a) if d is None else d for a, d in zip(last, dstate, strict=True)]
        made: tuple[list[Weights], Array, Sequence[Array]] = pull((dy, zeros))
        return made


def _copies(state: Parts) -> Parts:
    """Return copies of a state: the caller may change his before the backward run."""
    return [None if part is None else part.clone() for part in state]


def _hosted(*given: Any) -> list[Any] | None:
    """Return tensors, dicts of them, and None as arrays; None if one of them cannot be one."""
    if torch.compiler.is_compiling():
        return None
    recording = torch.is_grad_enabled()

    def host(value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, Mapping):
            return {name: host(a) for name, a in value.items()}
        if not _is_plain(value, recording):
            raise _WatchedError
        return value.detach().numpy()

    try:
        return [host(value) for value in given]
    except (_WatchedError, RuntimeError):  # within `torch.func` a tensor stands for others
        return None


class _WatchedError(Exception):
    """A tensor is more than numbers in the processor's memory."""


def _is_plain(tensor: Array, recording: bool) -> bool:
    """Tell whether a tensor is nothing but numbers in the processor's memory."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.dtype in (torch.float32, torch.float64)
        and tensor.is_cpu
        and not (recording and tensor.requires_grad)
        and unpack_dual(tensor).tangent is None
    )


TENSORS = Tensors()
