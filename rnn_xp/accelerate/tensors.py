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

from rnn_xp import recurrence
from rnn_xp.accelerate import Engine, engine
from rnn_xp.backend import Array, Namespace
from rnn_xp.cells.base import Cell, Chunk, Folded, Weights
from rnn_xp.recurrence import Loop

HostArray = np.ndarray[Any, Any]


class Hosted(NamedTuple):
    """Weights that the kernels' engine has arranged."""

    weights: Weights
    """The tensors, for the core in case that x is watched."""
    engine: Engine
    folded: Any


class Kept(NamedTuple):
    """What a forward run of the kernels keeps."""

    engine: Engine
    chunks: Any
    x: Array
    state: Sequence[Array | None]


def fold(cell: Cell, xp: Namespace, weights: Weights) -> Folded | Hosted:
    """Arrange the weights for `run`."""
    arrays = _hosts(weights.values())
    chosen = recurrence if arrays is None else engine(cell, arrays[0])
    if arrays is None or chosen is recurrence:
        # Not the core on NumPy arrays either: the threads of NumPy's products spin for a while
        # after each, and PyTorch's next operations would take three times as long.
        return recurrence.fold(cell, xp, weights)
    host_weights = dict(zip(weights, arrays, strict=True))
    return Hosted(weights, chosen, chosen.fold(cell, np, host_weights))


def run(
    loop: Loop,
    w: Folded | Hosted,
    x: Array,
    state: Sequence[Array | None],
    *,
    keep: bool,
) -> tuple[Array, Sequence[Array], list[Chunk] | Kept | None]:
    """Run the cell over x; as `recurrence.run`."""
    if isinstance(w, Folded):
        return recurrence.run(loop, w, x, state, keep=keep)
    arrays = _hosts((x, *state))
    if arrays is None:
        folded = recurrence.fold(loop.cell, loop.ops.xp, w.weights)
        return recurrence.run(loop, folded, x, state, keep=keep)
    host_x, *host_state = arrays
    # Of the loop the kernels read the cell, the lengths and the direction: all on the host.
    y, last, chunks = w.engine.run(loop, w.folded, host_x, host_state, keep=keep)
    kept = Kept(w.engine, chunks, x, state) if keep else None
    return torch.from_numpy(y), [torch.from_numpy(part) for part in last], kept


def run_backward(
    loop: Loop,
    weights: Weights,
    chunks: list[Chunk] | Kept,
    dy: Array,
    dstate: Sequence[Array | None],
) -> tuple[Weights, Array, Sequence[Array]]:
    """Run the cell backward through time; as `recurrence.run_backward`."""
    if isinstance(chunks, list):
        return recurrence.run_backward(loop, weights, chunks, dy, dstate)
    arrays = _hosts((dy, *dstate, *weights.values()))
    if arrays is None:  # watched since the forward run: the core does both
        w = recurrence.fold(loop.cell, loop.ops.xp, weights)
        _, _, again = recurrence.run(loop, w, chunks.x, chunks.state, keep=True)
        return recurrence.run_backward(loop, weights, again, dy, dstate)
    count = len(dstate)
    gradients, dx, first = chunks.engine.run_backward(
        loop,
        dict(zip(weights, arrays[1 + count :], strict=True)),
        chunks.chunks,
        arrays[0],
        arrays[1 : 1 + count],
    )
    gradients = {name: torch.from_numpy(gradient) for name, gradient in gradients.items()}
    return gradients, torch.from_numpy(dx), [torch.from_numpy(part) for part in first]


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
