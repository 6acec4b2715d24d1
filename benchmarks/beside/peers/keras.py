"""Keras 3 on JAX, its layers under `jit`: the fastest way that it has on a CPU.

On PyTorch its layers are a Python loop of tensor operations. Inputs are (B, T, I), as it takes
them; no transpose is counted.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..cases import Case, Data, layer_of
from .base import Call, HostArray, Peer
from .jax import compiled


class Library(Peer):
    """Keras layers on JAX arrays."""

    def __init__(self, threads: int) -> None:
        super().__init__(threads)
        import jax

        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        import keras

        if keras.config.backend() != "jax":
            raise RuntimeError(f"Keras computes with {keras.config.backend()}, expected JAX")
        self.jax, self.keras = jax, keras

    @staticmethod
    def lacks(case: Case) -> str:
        """Return why Keras does not run a case."""
        if case.task == "streaming":
            return "has no layer to call one step at a time under jit"
        if case.dtype == "float64":
            return "rounds float64 to float32 on JAX"
        return "is not measured on ragged batches" if case.ragged else ""

    def versions(self) -> dict[str, str]:
        """Return Keras'."""
        return {"Keras": self.keras.__version__}

    def make(self, case: Case, mode: str, data: Data) -> Call:  # noqa: ARG002
        """Make a case ready."""
        from rnn_xp.interop import to_keras

        jax, jnp = self.jax, self.jax.numpy
        self.keras.backend.clear_session()
        layer = to_keras(layer_of(case), data.params)
        x = jnp.asarray(data.x.swapaxes(0, 1))
        if not layer.built:  # a Sequential of built layers
            layer.build(x.shape)
        trained = [v.value for v in layer.trainable_variables]
        rest = [v.value for v in layer.non_trainable_variables]

        def forward(trained: Any, x: Any) -> Any:
            return layer.stateless_call(trained, rest, x)[0]

        if case.task == "inference":
            infer, seconds = compiled(jax, forward, trained, x)
            return Call(
                lambda: jax.block_until_ready(infer(trained, x)),
                lambda: {"y": _time_first(infer(trained, x))},
                seconds,
            )

        def train(trained: Any, x: Any, dy: Any) -> Any:
            y, back = jax.vjp(forward, trained, x)
            return y, *back(dy)

        arguments = (trained, x, jnp.asarray(data.dy.swapaxes(0, 1)))
        step, seconds = compiled(jax, train, *arguments)

        def results() -> dict[str, HostArray]:
            y, dtrained, dx = step(*arguments)
            named = _named(layer, dtrained, case)
            return {"y": _time_first(y), "dx": _time_first(dx), **named}

        return Call(lambda: jax.block_until_ready(step(*arguments)), results, seconds)


def _time_first(array: Any) -> HostArray:
    return np.asarray(array).swapaxes(0, 1)


def _named(layer: Any, gradients: Any, case: Case) -> dict[str, HostArray]:
    """Return gradients under this library's names: they are read as if they were weights."""
    from rnn_xp.interop import from_keras

    before = layer.get_weights()
    layer.set_weights([np.asarray(gradient) for gradient in gradients])
    _, params = from_keras(layer if case.layers == 1 else layer.layers)
    layer.set_weights(before)
    if case.cell != "gru":  # one bias there is two here, of the same gradient
        params = {k: params[k.replace("bias_hh", "bias_ih")] for k in params}
    return {f"d{name}": value for name, value in params.items()}
