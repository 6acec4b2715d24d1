"""What is measured: the cases of each table, and the numbers that go into them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rnn_xp.doctor.machine import Shape
from rnn_xp.layers import GRU, LSTM, RNN, Recurrent

HostArray = np.ndarray[Any, Any]
NO_SHAPE: Shape = (0, 0, 0, 0)

CELLS = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU", "gru-before": "GRU, reset before"}
DTYPES = ("float32", "float64")
SECTIONS = (
    "training",
    "inference",
    "streaming",
    "ragged",
    "bidirectional",
    "float64",
    "sweep",
    "memory",
    "import",
    "size",
)
GRID: tuple[Shape, ...] = (
    (10, 1, 3, 5),
    (100, 1, 64, 128),
    (100, 32, 64, 128),
    (512, 16, 64, 64),
    (100, 32, 256, 256),
    (35, 20, 650, 650),
    (100, 64, 512, 512),
)
_FEW: dict[str, tuple[Shape, ...]] = {
    "streaming": ((100, 1, 64, 128), (100, 1, 512, 512)),
    "ragged": ((100, 32, 256, 256),),
    "bidirectional": ((100, 32, 64, 128),),
    "float64": ((100, 32, 64, 128), (35, 20, 650, 650)),
    "memory": ((100, 32, 256, 256), (35, 20, 650, 650)),
}
SWEEPS: dict[str, tuple[Shape, ...]] = {
    "T": tuple((steps, 8, 64, 64) for steps in (100, 300, 1000, 3000, 10_000)),
    "B": tuple((100, batch, 128, 128) for batch in (1, 4, 16, 64, 256)),
    "H": tuple((100, 16, size, size) for size in (32, 64, 128, 256, 512, 1024)),
}
TABLES = (
    *(section for section in SECTIONS if section != "sweep"),
    *(f"sweep {axis}" for axis in SWEEPS),
)
TASKS = ("training", "inference", "streaming", "import", "size")
# Of these one number of threads says enough.
ONE_THREAD_COUNT = ("sweep", "memory", "import", "size")


@dataclass(frozen=True)
class Case:
    """One row: what is done, by which network, on which shape."""

    table: str
    """One of `TABLES`: a section, or `sweep T`, `sweep B`, `sweep H`."""
    task: str
    """One of `TASKS`; `import` and `size` are about no network."""
    cell: str = ""
    shape: Shape = NO_SHAPE
    dtype: str = ""
    layers: int = 1
    bidirectional: bool = False
    ragged: bool = False

    def __str__(self) -> str:
        task = "" if self.task == self.table else self.task
        shape = "" if self.shape == NO_SHAPE else ",".join(map(str, self.shape))
        parts = (self.table, task, CELLS.get(self.cell, ""), shape, self.dtype)
        return " ".join(part for part in parts if part)

    @property
    def flops(self) -> float:
        """The operations of the matrix products of one level and direction.

        A backward pass takes twice as many as a forward one.
        """
        steps, batch, size, hidden = self.shape
        gates = {"rnn": 1, "lstm": 4}.get(self.cell, 3)
        passes = 3 if self.task == "training" else 1
        return float(passes * 2 * steps * batch * gates * hidden * (size + hidden))


class Data(NamedTuple):
    """The numbers of a case: the same in every process."""

    params: dict[str, HostArray]
    x: HostArray
    dy: HostArray
    lengths: HostArray | None


def cases(
    section: str, cells: Sequence[str], shapes: Sequence[Shape] | None, dtype: str
) -> list[Case]:
    """Return the cases of a section; `shapes` stand in for its own, but in sweeps."""
    if section in ("import", "size"):
        return [Case(section, section)]
    if section == "sweep":
        return [
            Case(f"sweep {axis}", "training", cell, shape, dtype)
            for axis, swept in SWEEPS.items()
            for cell in cells
            for shape in swept
        ]
    alone = section in ("training", "inference", "streaming")
    options: dict[str, Any] = {"dtype": "float64" if section == "float64" else dtype}
    if section == "bidirectional":
        options |= {"layers": 2, "bidirectional": True}
    return [
        Case(section, task, cell, shape, ragged=section == "ragged", **options)
        for task in ((section,) if alone else ("training", "inference"))
        for cell in cells
        for shape in shapes or _FEW.get(section, GRID)
    ]


def layer_of(case: Case) -> Recurrent:
    """Return this library's layer of a case."""
    _, _, size, hidden = case.shape
    options: dict[str, Any] = {"num_layers": case.layers, "bidirectional": case.bidirectional}
    if case.cell == "rnn":
        return RNN(size, hidden, **options)
    if case.cell == "lstm":
        return LSTM(size, hidden, **options)
    return GRU(size, hidden, reset_after=case.cell == "gru", **options)


def data_of(case: Case) -> Data:
    """Draw the numbers of a case: parameters as PyTorch does, the rest from a normal distribution.

    Lengths are uniform in 1..T, and one of them is T.
    """
    steps, batch, size, hidden = case.shape
    rng = np.random.default_rng(0)
    layer = layer_of(case)
    bound = 1.0 / math.sqrt(hidden)
    params = {
        name: rng.uniform(-bound, bound, shape).astype(case.dtype)
        for name, shape in layer.shapes.items()
    }
    dtype: Any = np.dtype(case.dtype).type
    x = rng.standard_normal((steps, batch, size), dtype=dtype)
    dy = rng.standard_normal((steps, batch, layer.output_size), dtype=dtype)
    lengths = rng.integers(1, steps + 1, batch)
    lengths[0] = steps
    return Data(params, x, dy, lengths if case.ragged else None)
