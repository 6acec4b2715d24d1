"""What the tests share: the libraries they run on, and loops cut into small chunks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import elementwise_on_cpu
import pytest
import standin
from cuda_on_cpu import Library
from targets import STANDIN, TARGETS, Target, make_target, need_module

from rnn_xp import backend as backends
from rnn_xp.backend import Backend
from rnn_xp.engines import native, plain
from rnn_xp.engines.cuda import engine, fused, persistent, training
from rnn_xp.engines.cuda.fused import Fused
from rnn_xp.engines.cuda.plan import Limits
from rnn_xp.engines.cuda.streams import one_by_one

# The tests compile hundreds of small functions with JAX, and run most of them once.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=0 "
    "--xla_cpu_parallel_codegen_split_count=1",
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


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Compile the CUDA kernels of one step for the processor."""
    return elementwise_on_cpu.kernels(fused.source(), tmp_path_factory.mktemp("fused"))


@pytest.fixture(scope="session")
def training_kernels(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Compile the CUDA kernels around the layers for the processor."""
    return elementwise_on_cpu.kernels(training.source(), tmp_path_factory.mktemp("training"))


@pytest.fixture(autouse=True)
def standin_for_cupy(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Let the stand-in be CuPy, with the kernels of single steps, where it is the target."""
    monkeypatch.setitem(backends._MODULES, "cupy", "array_api_compat.cupy")
    if not ("target" in request.fixturenames and request.getfixturevalue("target").name == STANDIN):
        yield
        return

    monkeypatch.setitem(backends._MODULES, "cupy", standin.xp.__name__)

    def make(device: str | None) -> Backend:
        name = device or "cuda:0"
        number = int(name.partition(":")[2] or 0)
        return Backend("cupy", standin.xp, standin.Device(number), name)

    entry = backends.BACKENDS["cupy"]._replace(make=make)
    monkeypatch.setitem(backends.BACKENDS, "cupy", entry)
    monkeypatch.setattr(fused, "compiled", request.getfixturevalue("kernels"))
    monkeypatch.setattr(training, "compiled", request.getfixturevalue("training_kernels"))
    monkeypatch.setattr(persistent, "limits", lambda: Limits(1, 0, cooperative=False))
    monkeypatch.setattr(engine, "streams", one_by_one)
    monkeypatch.setattr("rnn_xp.engines.around.ahead", lambda _: None)  # which needs streams, too
    for choose in (engine.choose, training.choose):
        choose.cache_clear()
    yield
    for choose in (engine.choose, training.choose):
        choose.cache_clear()


@pytest.fixture(params=[1, 7], ids="{} rows a chunk".format)
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Cut NumPy's time loop into chunks of one step, then of seven rows, whatever fits in them."""
    monkeypatch.setattr(plain, "ROWS", request.param)
    monkeypatch.setattr(plain, "LEAST_STEPS", 1)
    return int(request.param)


@pytest.fixture
def xp() -> Any:
    """Stand in for CuPy."""
    need_module("ml_dtypes")  # NumPy knows bfloat16 by it
    standin.xp.start(need_module("cupy"), need_module("array_api_compat.cupy"))
    return standin.xp


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Compile the CUDA kernels of all steps for the processor."""
    return Library(persistent.source, tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def steps(kernels: Any) -> Fused:
    """Return the engine with the kernels of one step."""
    return Fused(kernels)
