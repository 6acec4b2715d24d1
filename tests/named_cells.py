"""The built-in cells by short names."""

from __future__ import annotations

from collections.abc import Callable

from rnn_xp.cells import (
    GRU,
    LSTM,
    Cell,
    Elman,
    PeepholeLSTM,
    Projected,
    ReluElman,
    ResetBeforeGRU,
)

CELLS: dict[str, Callable[..., Cell]] = {
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
    return CELLS[name](hidden_size)
