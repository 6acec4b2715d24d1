"""Keras 3: layers and Sequential models, on any library that Keras computes with.

    Keras                                   here
    kernel (I, G*H)                         weight_ih (G*H, I): transposed
    recurrent_kernel (H, G*H)               weight_hh (G*H, H): transposed
    bias (G*H,)                             bias_ih + bias_hh; from Keras, bias_hh is 0
    bias (2, G*H), GRU with reset_after     bias_ih, bias_hh
    LSTM gates i f c o                      i f g o: the same
    GRU gates z r h                         r z n
    Bidirectional(merge_mode="concat")      bidirectional, `_reverse`
    input (B, T, I)                         (T, B, I)
    states (B, H): h; h, c; of a            (D, B, H): h; (h, c)
      Bidirectional forward, then backward

A mask of Keras is `lengths` here, see `lengths_of_mask`. Past a sequence's length the outputs here
are 0, those of Keras repeat the last one unless `zero_output_for_mask` is set.

Initializers (`unit_forget_bias` too), regularizers, constraints and the choice of an
implementation are no part of what a layer computes, and are not carried.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rnn_xp.backend import dtype_name, host_of, to_numpy
from rnn_xp.checkpoint import misfit
from rnn_xp.interop.keras_reading import chain_of, layer_of, stack_of
from rnn_xp.interop.keras_writing import made_chain, made_of
from rnn_xp.interop.tensors import HostArray, InteropError, Params, place
from rnn_xp.layers.base import Layer
from rnn_xp.layers.checks import check_params
from rnn_xp.models import Chain


def from_keras(
    source: Any,
    *,
    backend: str = "numpy",
    device: str | None = None,
    dtype: str | None = None,
) -> tuple[Any, Params]:
    """Return the layer or Chain that computes what Keras layers do, and its parameters.

    Parameters
    ----------
    source : a Keras layer, a list of them, or a Sequential
        SimpleRNN, LSTM, GRU, or Bidirectional of one: a layer of one level, which returns all
        outputs and the state, whatever `return_sequences` and `return_state` say. Dense, Embedding,
        Dropout, GlobalAveragePooling1D: Linear, Embedding, Dropout, Pool. A list of recurrent
        layers of one kind and size that feed each other: one layer with as many levels. A
        Sequential: a Chain under Keras' names; a recurrent layer with `return_sequences=False` has
        a Pool of its last step behind it, called `<name>_last`; Masking is left out.
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
        If a layer is of another kind or not built, or has an option that cannot be carried: another
        activation or merge mode, `go_backwards`, `stateful`, or a dropout of its inputs or states.
    ImportError
        If Keras is not installed, or the library that it computes with.
    """
    keras = _keras()
    layer: Layer | Chain
    if type(source) is keras.Sequential:
        layer, arrays = chain_of(keras, source.layers)
    elif isinstance(source, list | tuple):
        layer, arrays = stack_of(keras, source)
    else:
        layer, arrays = layer_of(keras, source)
    problem = misfit(layer.shapes, arrays)
    if problem:  # quantized weights, for instance
        raise InteropError(f"the Keras weights do not fit the {type(layer).__name__}: {problem}")
    return layer, place(arrays, backend, device, dtype)


def to_keras(layer: Layer | Chain, params: Params) -> Any:
    """Return the Keras layer, or Sequential, that computes what a layer or a Chain does.

    Parameters
    ----------
    layer : RNN, LSTM, GRU, Linear, Embedding or a Chain of these, Dropout and Pool
        Several levels become a Sequential of one Keras layer for each.
    params : dict of arrays

    Returns
    -------
    Keras layer
        Built, with these weights, of the dtype of the parameters; a recurrent one returns its
        outputs at all steps. `bias_ih + bias_hh` becomes one bias, but in a GRU with `reset_after`.

    Raises
    ------
    InteropError
        If Keras has no such layer: an LSTM with peepholes or a projection, a Pool of the last step
        that does not follow a recurrent layer.
    TypeError, ValueError
        If the parameters do not fit the layer.
    ImportError
        If Keras is not installed, or the library that it computes with.
    """
    keras = _keras()
    check_params(layer, params)
    arrays = {name: host_of(value) for name, value in params.items()}
    dtype = dtype_name(next(iter(params.values())).dtype)
    if isinstance(layer, Chain):
        return keras.Sequential(made_chain(keras, layer, arrays, dtype))
    made = made_of(keras, layer, arrays, {"dtype": dtype, "name": None})
    return made[0] if len(made) == 1 else keras.Sequential(made)


def lengths_of_mask(mask: Any) -> HostArray:
    """Return the `lengths` (B,) that a mask (B, T) of Keras stands for.

    Parameters
    ----------
    mask : (B, T), boolean
        True at valid steps, as from `Masking(...).compute_mask(x)` or
        `Embedding(..., mask_zero=True).compute_mask(x)`.

    Raises
    ------
    ValueError
        If a sequence has no valid step, or one behind an invalid one: padding must stand at the
        end.
    """
    valid: HostArray = np.asarray(to_numpy(mask)).astype(bool)
    if valid.ndim != 2:
        raise ValueError(f"mask must have shape (B, T), got {valid.shape}")
    lengths = valid.sum(axis=1)
    expected = np.arange(valid.shape[1]) < lengths[:, None]
    for wrong in np.flatnonzero((valid != expected).any(axis=1) | (lengths == 0)):
        what = "a valid step behind an invalid one" if lengths[wrong] else "no valid step"
        raise ValueError(f"mask has {what} in sequence {wrong}: padding must stand at the end")
    return np.asarray(lengths)


def _keras() -> Any:
    try:
        import keras
    except ModuleNotFoundError as error:
        if error.name == "keras":
            raise ImportError("Keras is not installed: pip install 'rnn-xp[keras]'") from None
        raise ImportError(
            f"Keras is installed, but the library that it computes with is not ({error}): "
            "the environment variable KERAS_BACKEND chooses tensorflow, jax or torch"
        ) from error
    return keras
