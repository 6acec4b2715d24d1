"""What the tests share: the libraries they run on, and loops cut into small chunks."""

from __future__ import annotations

import os

import numpy as np
import pytest
from targets import TARGETS, Target, make_target

from rnn_xp.accelerate import native
from rnn_xp.backend import operations

# The tests compile hundreds of small functions with JAX, and run most of them once.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0"
)


@pytest.fixture(scope="session", params=list(TARGETS))
def target(request: pytest.FixtureRequest) -> Target:
    """Each library and device in turn; one that is missing is a visible skip."""
    return make_target(request.param)


@pytest.fixture(autouse=True)
def core_only(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the core itself, not the compiled kernels, where a test is about it."""
    names = request.fixturenames
    if "small_chunks" in names or (
        "target" in names and request.getfixturevalue("target").name == "numpy:core"
    ):
        monkeypatch.setattr(native, "choose", lambda: "off in this test")


@pytest.fixture(params=[1, 7], ids="{} rows a chunk".format)
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Cut NumPy's time loop into chunks of one step, then of seven rows, whatever fits in them."""
    monkeypatch.setattr(operations(np), "rows_a_chunk", request.param)
    return int(request.param)
