"""The gradient through time: how much of the last step's loss reaches each step before it.

Backpropagation multiplies by one Jacobian a step. Where these shrink, the gradient vanishes
exponentially, and where they stretch it explodes (Y. Bengio, P. Simard, P. Frasconi, "Learning
Long-Term Dependencies with Gradient Descent is Difficult", IEEE Transactions on Neural Networks 5
(1994) 157-166; R. Pascanu, T. Mikolov, Y. Bengio, "On the difficulty of training recurrent neural
networks", ICML 2013). An LSTM's cell state is only multiplied by its forget gate: where that is
near 1, the gradient stays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from rnn_xp import losses
from rnn_xp.backend import Array, Backend, array_namespace, to_numpy
from rnn_xp.layers import LSTM, Recurrent
from rnn_xp.layers.checks import check_count
from rnn_xp.models import Chain, Params, recurrent_layer
from rnn_xp.random import generator, spawn
from rnn_xp.tasks.inspection import find_place, part_of, places, split
from rnn_xp.text import Codes, TextError

HostArray = np.ndarray[Any, Any]

_PARAMS, _INPUT = 0, 1  # the streams of random numbers under the seed
SEQUENCES = 16
INPUT_SCALE = 0.1
"""Small inputs leave tanh near its linear part, where the recurrent weights alone decide."""


def gradient_norms(
    layer: Recurrent, params: Params, x: Array, dy: Array | None = None
) -> HostArray:
    """Return the norm of the gradient of the last step's loss with respect to every state.

    The state of step t is all that step t + 1 receives of the past: h of every level, for an LSTM
    h and c together. The gradient is exact: `backward` of each single step receives the gradient
    with respect to the state from the step after it.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        Of one direction.
    params : dict of arrays
    x : (T, B, I)
    dy : (B, H), optional
        The gradient of the loss with respect to the last step's output. Without it the loss is
        the output's sum over √H, whose gradient has norm 1.

    Returns
    -------
    (T + 1,), float64, on the host
        Element t is the mean over the batch of the norm after step t; element 0 is that of the
        initial state, element T that of dy.

    Raises
    ------
    ValueError
        If the layer has two directions, or a shape is wrong.
    """
    if layer.bidirectional:
        raise ValueError("the gradient through time needs a layer of one direction")
    caches, state = [], None
    for t in range(x.shape[0]):
        y, state, cache = layer.forward(params, x[t : t + 1, ...], state)
        caches.append(cache)
    xp = array_namespace(x=x)
    if dy is None:
        dy = xp.ones_like(y[0, ...]) * layer.output_size**-0.5
    norms, dstate = [_norm((dy[None, ...],))], None
    step = dy[None, ...]
    for cache in reversed(caches):
        _, _, dstate = layer.backward(params, cache, step, dstate)
        norms.append(_norm(dstate if isinstance(dstate, tuple) else (dstate,)))
        step = xp.zeros_like(step)
    return np.asarray(norms[::-1])


def _norm(parts: tuple[Array, ...]) -> float:
    """Return the norm over levels and units of all parts (L, B, H), as the mean over the batch."""
    rows = [np.moveaxis(to_numpy(part).astype(np.float64), 1, 0) for part in parts]
    joined = np.concatenate([part.reshape(len(part), -1) for part in rows], axis=1)
    top = np.abs(joined).max(axis=1, keepdims=True)  # a square may leave the range
    joined /= np.where(top > 0.0, top, 1.0)
    return float((top[:, 0] * np.sqrt((joined * joined).sum(axis=1))).mean())


def new_network_norms(
    cell: str,
    backend: Backend,
    *,
    hidden_size: int = 64,
    time_steps: int = 100,
    scale: float = 1.0,
    forget_bias: float = 1.0,
    seed: int = 0,
    dtype: str = "float64",
) -> HostArray:
    """Return `gradient_norms` of a new network on random sequences.

    Its recurrent matrices, one a gate, are orthogonal times `scale`: each stretches every vector by
    that factor. Its inputs, of size H too, are drawn from N(0, `INPUT_SCALE`²).

    Parameters
    ----------
    cell : str
        `rnn` (Elman), `lstm` or `gru`.
    backend, dtype
        Where to compute.
    hidden_size, time_steps : int
        H and T.
    scale : float
        Below 1 an Elman network's gradient must vanish; above 1 it can explode.
    forget_bias : float
        Of an LSTM: see `LSTM.init`.
    seed : int
        Of parameters and inputs.

    Returns
    -------
    (T + 1,)
    """
    check_count("time_steps", time_steps)
    layer = recurrent_layer(cell)(hidden_size, hidden_size)
    options = {"forget_bias": forget_bias} if isinstance(layer, LSTM) else {}
    params = layer.init(
        spawn(seed, _PARAMS),
        backend=backend.name,
        device=backend.device_name,
        dtype=dtype,
        scheme="orthogonal",
        **options,
    )
    params["weight_hh_l0"] = params["weight_hh_l0"] * scale
    shape = (time_steps, SEQUENCES, hidden_size)
    x = generator(spawn(seed, _INPUT)).standard_normal(shape) * INPUT_SCALE
    return gradient_norms(layer, params, backend.asarray(x, dtype))


def text_norms(model: Chain, params: Params, backend: Backend, codes: Codes) -> HostArray:
    """Return `gradient_norms` of a text model: of the loss at a text's last character.

    Parameters
    ----------
    model, params, backend
        As from a checkpoint; the model has one recurrent layer, of any number of levels.
    codes : integers (N,), N >= 2
        The model reads all but the last, and predicts that.

    Returns
    -------
    (N,)
        T = N - 1 steps, and the initial state.

    Raises
    ------
    ValueError
        If there are fewer than two characters, or the model is not as above.
    """
    if len(codes) < 2:
        raise TextError("not enough text: a loss needs at least two characters")
    name = find_place(model).layer
    if any(place.layer != name for place in places(model)):
        raise ValueError("the model has several recurrent layers: expected one")
    before, layer, after = split(model, name)
    own = {parameter: params[f"{name}.{parameter}"] for parameter in layer.shapes}
    x, _ = before(part_of(params, before), backend.asarray(codes[:-1, None]))
    y, _ = layer(own, x)
    rest = part_of(params, after)
    logits, _, cache = after.forward(rest, y[-1:, ...])
    _, dlogits = losses.softmax_cross_entropy(logits, backend.asarray(codes[-1:, None]))
    _, dy, _ = after.backward(rest, cache, dlogits)
    return gradient_norms(layer, own, x, dy[0, ...])
