"""Recurrent networks on whichever array library holds the data."""

from rnn_xp.layers import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN"]
__version__ = "0.1.0"
