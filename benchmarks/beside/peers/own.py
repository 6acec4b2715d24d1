"""This library: as it is installed, or its NumPy core alone, as `RNN_XP_ACCELERATE` says."""

from __future__ import annotations

from typing import Any

import numpy as np

import rnn_xp

from ..cases import Case, Data, layer_of
from .base import Call, HostArray, Peer


class Library(Peer):
    """Layers on NumPy arrays; inference with weights from `prepare`."""

    def versions(self) -> dict[str, str]:
        """Return ours, and NumPy's."""
        return {"rnn_xp": rnn_xp.__version__, "NumPy": np.__version__}

    def make(self, case: Case, mode: str, data: Data) -> Call:  # noqa: ARG002
        """Make a case ready."""
        layer, params, x = layer_of(case), data.params, data.x
        if case.task == "training":

            def train() -> Any:
                y, _, cache = layer.forward(params, x, lengths=data.lengths)
                return y, *layer.backward(params, cache, data.dy)

            def gradients() -> dict[str, HostArray]:
                y, dparams, dx, _ = train()
                return {"y": y, "dx": dx, **{f"d{name}": dparams[name] for name in params}}

            return Call(train, gradients)
        prepared = layer.prepare(params)
        if case.task == "inference":

            def infer() -> Any:
                return layer(prepared, x, lengths=data.lengths)[0]

            return Call(infer, lambda: {"y": infer()})
        steps = [x[t : t + 1] for t in range(len(x))]

        def stream() -> list[HostArray]:
            state, outputs = None, []
            for step in steps:
                y, state = layer(prepared, step, state)
                outputs.append(y)
            return outputs

        return Call(stream, lambda: {"y": np.concatenate(stream())})
