"""Recurrent networks on whichever array library holds the data.

>>> import numpy as np
>>> from rnn_xp import LSTM
>>> lstm = LSTM(input_size=3, hidden_size=5)
>>> params = lstm.init(seed=0)
>>> y, (h, c) = lstm(params, np.zeros((10, 1, 3), dtype="float32"))
>>> y.shape, h.shape
((10, 1, 5), (1, 1, 5))
"""

from rnn_xp import backend, init, losses, optim
from rnn_xp.cells import Cell
from rnn_xp.checkpoint import load, save
from rnn_xp.layers import GRU, LSTM, RNN, Dropout, Embedding, Linear, Pool, Recurrent
from rnn_xp.models import Chain, character_model, sequence_model

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Cell",
    "Chain",
    "Dropout",
    "Embedding",
    "Linear",
    "Pool",
    "Recurrent",
    "backend",
    "character_model",
    "init",
    "load",
    "losses",
    "optim",
    "save",
    "sequence_model",
]
__version__ = "0.1.0"
