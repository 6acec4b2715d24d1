"""PyTorch: modules and state dicts.

Names, shapes and the order of the gates are the same on both sides, so nothing is renamed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rnn_xp.backend import Array, dtype_name, host_of
from rnn_xp.errors import first_line
from rnn_xp.interop.tensors import (
    HostArray,
    InteropError,
    Params,
    place,
    select_tensors,
    start_of,
)
from rnn_xp.layers import GRU, LSTM, RNN, Embedding, Linear, Recurrent
from rnn_xp.layers.checks import HasShapes, check_params
from rnn_xp.models import Chain

StateDict = dict[str, Any]


def from_torch(
    module: Any,
    *,
    backend: str = "numpy",
    device: str | None = None,
    dtype: str | None = None,
) -> tuple[Any, Params]:
    """Return the layer that computes what a PyTorch module does, and its parameters.

    Parameters
    ----------
    module : torch.nn.RNN, LSTM, GRU, Linear or Embedding
        `batch_first` is a layout of the input, no property of the weights: the layer takes time
        first. Of an Embedding, `padding_idx`, `scale_grad_by_freq` and `sparse` concern training
        alone and are not carried.
    backend, device : str
        Where the arrays shall lie; as in `backend.select`.
    dtype : str, optional
        Cast the parameters. Without it they stay as they are, but bfloat16 becomes float32.

    Returns
    -------
    layer, params
        The arrays are copies.

    Raises
    ------
    InteropError
        If it is another module, or has an option that no layer here has (`max_norm`). A module
        that holds others does not tell in which order it runs them: describe it as a `Chain`
        with the same names, and read its weights by `from_state_dict`.
    ImportError
        If PyTorch is not installed.
    """
    layer = _layer_of(_torch().nn, module)
    params = from_state_dict(
        layer, module.state_dict(), backend=backend, device=device, dtype=dtype
    )
    return layer, params


def to_torch(layer: Recurrent | Linear | Embedding, params: Params) -> Any:
    """Return the PyTorch module that computes what a layer does, with these parameters.

    Parameters
    ----------
    layer : RNN, LSTM, GRU, Linear or Embedding
    params : dict of arrays
        PyTorch's own stay on their device; others go to the CPU. Copied.

    Raises
    ------
    InteropError
        If PyTorch has no such layer: a GRU that resets before the product, an LSTM with peepholes,
        a `Chain` (its weights fit a module of yours with the same names: see `to_state_dict`).
    TypeError, ValueError
        If the parameters do not fit the layer.
    ImportError
        If PyTorch is not installed.
    """
    module = _module_of(_torch().nn, layer)
    state = to_state_dict(layer, params)
    module.to(next(iter(state.values())))  # its dtype and device
    module.load_state_dict(state)
    return module


def from_state_dict(
    layer: HasShapes,
    state_dict: Mapping[str, Any],
    prefix: str = "",
    *,
    backend: str = "numpy",
    device: str | None = None,
    dtype: str | None = None,
) -> Params:
    """Return the parameters of a layer or a Chain from a PyTorch state dict.

    Parameters
    ----------
    layer, prefix, backend, device, dtype
        As in `read_safetensors`.
    state_dict : dict of tensors

    Returns
    -------
    dict of arrays
        Copies.

    Raises
    ------
    InteropError
        If a tensor is missing, not expected, or of another shape than the layer's, or not
        floating-point.
    """
    start = start_of(prefix)
    tensors = {n: _on_host(n, value) for n, value in state_dict.items() if n.startswith(start)}
    named, problem = select_tensors(layer.shapes, tensors, prefix)
    if problem:
        raise InteropError(f"state_dict does not fit the {type(layer).__name__}: {problem}")
    return place(named, backend, device, dtype)


def _on_host(name: str, tensor: Any) -> HostArray:
    try:
        return host_of(tensor)
    except (TypeError, NotImplementedError) as error:
        raise InteropError(f"{name} cannot be copied to NumPy: {first_line(error)}") from error


def to_state_dict(layer: HasShapes, params: Params) -> StateDict:
    """Return the parameters of a layer or a Chain as PyTorch tensors, for `load_state_dict`.

    Parameters
    ----------
    layer : a layer, or a Chain
    params : dict of arrays
        PyTorch's own stay on their device; others go to the CPU. Copied.

    Raises
    ------
    TypeError, ValueError
        If the parameters do not fit the layer.
    ImportError
        If PyTorch is not installed.
    """
    torch = _torch()
    check_params(layer, params)
    return {name: _tensor(torch, value) for name, value in params.items()}


def _torch() -> Any:
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ImportError("PyTorch is not installed: pip install 'rnn-xp[torch]'") from None
    return torch


def _tensor(torch: Any, value: Array) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return torch.from_numpy(host_of(value)).to(getattr(torch, dtype_name(value.dtype)))


def _layer_of(nn: Any, module: Any) -> Recurrent | Linear | Embedding:
    kind = type(module)  # a subclass may compute something else
    if kind in (nn.RNN, nn.LSTM, nn.GRU):
        sizes = (module.input_size, module.hidden_size, module.num_layers)
        options = {
            "bias": module.bias,
            "bidirectional": module.bidirectional,
            "dropout": module.dropout,
        }
        if kind is nn.RNN:
            return RNN(*sizes, nonlinearity=module.nonlinearity, **options)
        if kind is nn.LSTM:
            return LSTM(*sizes, proj_size=module.proj_size, **options)
        return GRU(*sizes, **options)
    if kind is nn.Linear:
        return Linear(module.in_features, module.out_features, bias=module.bias is not None)
    if kind is nn.Embedding:
        if module.max_norm is not None:
            raise InteropError(
                f"Embedding: max_norm={module.max_norm} cannot be carried, expected None"
            )
        return Embedding(module.num_embeddings, module.embedding_dim)
    raise InteropError(
        f"from_torch takes torch.nn.RNN, LSTM, GRU, Linear or Embedding, got {kind.__name__}; of a "
        "whole model, describe the layers as a Chain and use from_state_dict"
    )


def _module_of(nn: Any, layer: Any) -> Any:
    if isinstance(layer, RNN | LSTM | GRU):
        options = {
            "bias": layer.bias,
            "bidirectional": layer.bidirectional,
            # Between levels alone: with one level PyTorch warns that it has no effect.
            "dropout": layer.dropout if layer.num_layers > 1 else 0.0,
        }
        sizes = (layer.input_size, layer.hidden_size, layer.num_layers)
        if isinstance(layer, RNN):
            return nn.RNN(*sizes, nonlinearity=layer.nonlinearity, **options)
        if isinstance(layer, LSTM):
            if layer.peephole:
                raise InteropError("LSTM: peephole=True cannot be carried, PyTorch has none")
            return nn.LSTM(*sizes, proj_size=layer.proj_size, **options)
        if not layer.reset_after:
            raise InteropError("GRU: reset_after=False cannot be carried, PyTorch has none")
        return nn.GRU(*sizes, **options)
    if isinstance(layer, Linear):
        return nn.Linear(layer.input_size, layer.output_size, bias=layer.bias)
    if isinstance(layer, Embedding):
        return nn.Embedding(layer.num_embeddings, layer.embedding_size)
    whole = "; load to_state_dict into a module with the same names" * isinstance(layer, Chain)
    raise InteropError(
        f"to_torch takes RNN, LSTM, GRU, Linear or Embedding, got {type(layer).__name__}{whole}"
    )
