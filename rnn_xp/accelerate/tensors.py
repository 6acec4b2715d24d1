"""PyTorch: tensors in the processor's memory are NumPy arrays too, for the compiled kernels.

Nothing is copied: an array for a tensor, or a tensor for an array, is a view of the same memory.
What the kernels cannot do stays with the core, on the tensors themselves: another cell, device or
dtype, and tensors that something watches (autograd while it records, `torch.func`,
`torch.compile`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd.forward_ad import unpack_dual

from rnn_xp.accelerate import CORE, Engine, engine
from rnn_xp.backend import Array, Namespace
from rnn_xp.cells.base import Cell, Weights
from rnn_xp.recurrence import Loop

HostArray = np.ndarray[Any, Any]


class Hosted(NamedTuple):
    """Weights that the kernels' engine has arranged."""

    weights: Sequence[Weights]
    """The tensors, for the core in case that x is watched."""
    engine: Engine
    folded: Any


class Kept(NamedTuple):
    """What a forward run of the kernels keeps."""

    engine: Engine
    kept: Any
    x: Array
    state: Sequence[Array | None]


def fold(cell: Cell, xp: Namespace, weights: Sequence[Weights]) -> Any:
    """Arrange the weights of each direction; see `Engine`."""
    hosts = _hosted(weights)
    chosen = CORE if hosts is None else engine(cell, hosts[0]["weight_ih"])
    if hosts is None or chosen is CORE:
        # Not the core on NumPy arrays either: the threads of NumPy's products spin for a while
        # after each, and PyTorch's next operations would take three times as long.
        return CORE.fold(cell, xp, weights)
    return Hosted(weights, chosen, chosen.fold(cell, np, hosts))


def run(
    loops: Sequence[Loop],
    w: Any,
    x: Array,
    state: Sequence[Array | None],
    *,
    keep: bool,
) -> tuple[Array, Sequence[Array], Any]:
    """Run every direction over x; see `Engine`."""
    if not isinstance(w, Hosted):
        return CORE.run(loops, w, x, state, keep=keep)
    arrays = _hosts((x, *state))
    if arrays is None:
        folded = CORE.fold(loops[0].cell, loops[0].ops.xp, w.weights)
        return CORE.run(loops, folded, x, state, keep=keep)
    host_x, *host_state = arrays
    # Of the loops the kernels read the cell, the lengths and the direction: all on the host.
    y, last, kept = w.engine.run(loops, w.folded, host_x, host_state, keep=keep)
    ours = Kept(w.engine, kept, x, state) if keep else None
    return torch.from_numpy(y), [torch.from_numpy(part) for part in last], ours


def run_backward(
    loops: Sequence[Loop],
    weights: Sequence[Weights],
    kept: Any,
    dy: Array,
    dstate: Sequence[Array | None],
) -> tuple[Sequence[Weights], Array, Sequence[Array]]:
    """Run every direction backward through time; see `Engine`."""
    if not isinstance(kept, Kept):
        return CORE.run_backward(loops, weights, kept, dy, dstate)
    arrays, hosts = _hosts((dy, *dstate)), _hosted(weights)
    if arrays is None or hosts is None:  # watched since the forward run: the core does both
        w = CORE.fold(loops[0].cell, loops[0].ops.xp, weights)
        _, _, again = CORE.run(loops, w, kept.x, kept.state, keep=True)
        return CORE.run_backward(loops, weights, again, dy, dstate)
    host_dy, *host_dstate = arrays
    made, dx, first = kept.engine.run_backward(loops, hosts, kept.kept, host_dy, host_dstate)
    gradients = [{name: torch.from_numpy(a) for name, a in own.items()} for own in made]
    return gradients, torch.from_numpy(dx), [torch.from_numpy(part) for part in first]


def _hosted(weights: Sequence[Weights]) -> list[Weights] | None:
    """Return the weights of each direction as arrays; None if one of them cannot be an array."""
    hosts: list[Weights] = []
    for own in weights:
        arrays = _hosts(own.values())
        if arrays is None:
            return None
        hosts.append(dict(zip(own, arrays, strict=True)))
    return hosts


def _hosts(tensors: Any) -> list[Any] | None:
    """Return the tensors as arrays, and None as None; None if one of them cannot be an array."""
    if torch.compiler.is_compiling():
        return None
    arrays: list[HostArray | None] = []
    recording = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is None:
            arrays.append(None)
        elif _is_plain(tensor, recording):
            try:
                arrays.append(tensor.detach().numpy())
            except RuntimeError:  # within `torch.func` a tensor stands for others
                return None
        else:
            return None
    return arrays


def _is_plain(tensor: Array, recording: bool) -> bool:
    """Tell whether a tensor is nothing but numbers in the processor's memory."""
    return (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        and tensor.dtype in (torch.float32, torch.float64)
        and tensor.is_cpu
        and not (recording and tensor.requires_grad)
        and unpack_dual(tensor).tangent is None
    )
