"""The libraries that are measured: one module each, which imports its tool inside functions."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from .base import Peer


class Entry(NamedTuple):
    """What is known of a library without importing it."""

    title: str
    module: str
    """Beside this one, with a class `Library`."""
    needs: tuple[str, ...]
    """What must be installed."""
    statement: str = ""
    """Imports it; empty where that says nothing new."""
    distributions: tuple[str, ...] = ()
    """What a user installs."""
    environment: dict[str, str] = {}  # noqa: RUF012  # not written to


OURS = "rnn_xp"
LIBRARIES = {
    OURS: Entry("rnn_xp", "own", (), "import rnn_xp", ("rnn-xp",)),
    "numpy": Entry("rnn_xp, NumPy alone", "own", (), environment={"RNN_XP_ACCELERATE": "0"}),
    "torch": Entry(
        "PyTorch",
        "torch",
        ("torch",),
        "import torch",
        ("torch",),
        # A cache would hide how long compiling takes; helping processes would stay beside us.
        {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"},
    ),
    "jax": Entry("JAX", "jax", ("jax",), "import jax, jax.numpy", ("jax",)),
    "keras": Entry("Keras", "keras", ("keras", "jax"), "import keras", ("keras", "jax")),
    "onnxruntime": Entry(
        "onnxruntime",
        "onnxruntime",
        ("onnxruntime", "onnx"),
        "import onnxruntime",
        ("onnxruntime",),
    ),
}
PEERS = tuple(name for name in LIBRARIES if name != OURS)
FASTEST = ("torch", "jax", "onnxruntime")
"""Of these the fastest is what a row is judged by."""


def library(name: str) -> type[Peer]:
    """Return the class of a library; its tool is not imported yet."""
    module = import_module(f".{LIBRARIES[name].module}", __name__)
    found: type[Peer] = module.Library
    return found


def missing(name: str) -> str:
    """Return what is not installed of what a library needs, empty if nothing."""
    return ", ".join(tool for tool in LIBRARIES[name].needs if find_spec(tool) is None)
