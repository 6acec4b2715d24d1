"""The cells, a file each, and what the equations of a cell of one's own are written with."""

from rnn_xp.cells.base import Cell, log_sigmoid, of_product, product, sigmoid, split, total
from rnn_xp.cells.elman import Elman, ReluElman
from rnn_xp.cells.gru import GRU, ResetBeforeGRU
from rnn_xp.cells.indrnn import IndRNN
from rnn_xp.cells.layer_norm import LayerNormGRU, LayerNormLSTM
from rnn_xp.cells.lstm import LSTM
from rnn_xp.cells.min_gru import MinGRU
from rnn_xp.cells.min_lstm import MinLSTM
from rnn_xp.cells.peephole import PeepholeLSTM
from rnn_xp.cells.projected import Projected, projected
from rnn_xp.cells.slstm import SLSTM

__all__ = [
    "GRU",
    "LSTM",
    "SLSTM",
    "Cell",
    "Elman",
    "IndRNN",
    "LayerNormGRU",
    "LayerNormLSTM",
    "MinGRU",
    "MinLSTM",
    "PeepholeLSTM",
    "Projected",
    "ReluElman",
    "ResetBeforeGRU",
    "log_sigmoid",
    "of_product",
    "product",
    "projected",
    "sigmoid",
    "split",
    "total",
]
