"""The cells: one file each, and this table.

A cell is found by the name that a layer gives; adding one is a file and a line here.
"""

from collections.abc import Callable

from rnn_xp.cells.base import Cell
from rnn_xp.cells.elman import Elman, ReluElman
from rnn_xp.cells.gru import GRU, ResetBeforeGRU
from rnn_xp.cells.lstm import LSTM
from rnn_xp.cells.peephole import PeepholeLSTM
from rnn_xp.cells.projected import Projected

CELLS: dict[str, Callable[[int, int | None], Cell]] = {
    "rnn_tanh": Elman,
    "rnn_relu": ReluElman,
    "lstm": LSTM,
    "lstm_peephole": PeepholeLSTM,
    "gru": GRU,
    "gru_reset_before": ResetBeforeGRU,
}


def make_cell(name: str, hidden_size: int, proj_size: int = 0) -> Cell:
    """Return the cell called `name`, with its output projected to `proj_size` units unless 0."""
    if proj_size:
        return Projected(CELLS[name](hidden_size, proj_size))
    return CELLS[name](hidden_size, None)
