"""Layers: immutable descriptions; parameters are dicts of arrays; every call is a pure function."""

from rnn_xp.layers.dense import Dropout, Embedding, Linear
from rnn_xp.layers.pool import Pool
from rnn_xp.layers.recurrent import GRU, LSTM, RNN, Prepared, Recurrent

__all__ = ["GRU", "LSTM", "RNN", "Dropout", "Embedding", "Linear", "Pool", "Prepared", "Recurrent"]
