"""Weights to and from other tools: PyTorch, Keras 3, and safetensors files of either.

PyTorch's names and shapes are this package's, so a `state_dict` fits without renaming. Keras
has other shapes and another order of the gates, which `from_keras` and `to_keras` translate. What
the other side cannot compute, or this one, is an error that names the layer and the option.

The tool itself is imported when a function needs it; `read_safetensors` needs none.
"""

from rnn_xp.interop.keras import from_keras, lengths_of_mask, to_keras
from rnn_xp.interop.tensors import InteropError, read_safetensors
from rnn_xp.interop.torch import from_state_dict, from_torch, to_state_dict, to_torch

__all__ = [
    "InteropError",
    "from_keras",
    "from_state_dict",
    "from_torch",
    "lengths_of_mask",
    "read_safetensors",
    "to_keras",
    "to_state_dict",
    "to_torch",
]
