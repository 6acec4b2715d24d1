"""Selecting libraries and devices; moving arrays; one line of reason for each thing missing."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from targets import Target, make_target, need

from rnn_xp import backend
from rnn_xp.backend import BackendError, available, select

# ---------------------------------------------------------------------------- select, available


def test_names() -> None:
    assert list(backend.BACKENDS) == ["numpy", "cupy", "torch", "jax", "strict"]
    with pytest.raises(BackendError, match="unknown backend 'tensorflow': expected one of auto, n"):
        select("tensorflow")


def test_numpy_is_always_there() -> None:
    chosen = select("numpy")
    assert (chosen.name, chosen.xp, chosen.device_name) == ("numpy", np, "cpu")
    assert select("NumPy", "cpu") == chosen
    assert available(["numpy"])["numpy"] == ("numpy", True, np.__version__, "cpu", "")
    with pytest.raises(BackendError, match="NumPy has no device 'cuda': its only device is 'cpu'"):
        select("numpy", "cuda")


def test_the_environment_names_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    need("strict")
    monkeypatch.setenv("RNN_XP_BACKEND", "strict")
    assert select().name == "strict"
    assert select("numpy").name == "numpy"
    monkeypatch.setenv("RNN_XP_BACKEND", "Numpy")
    assert select("auto").name == "numpy"
    monkeypatch.setenv("RNN_XP_BACKEND", "numpi")
    with pytest.raises(BackendError, match="RNN_XP_BACKEND names the unknown backend 'numpi'"):
        select()


def test_available_reports_every_backend() -> None:
    table = available()
    assert list(table) == list(backend.BACKENDS)
    for name, status in table.items():
        assert status.name == name
        assert bool(status.reason) is not status.usable
        assert bool(status.device) is status.usable
        assert "\n" not in status.reason
        if status.usable:
            assert status.version
            assert select(name).device_name
        else:
            with pytest.raises(BackendError) as caught:
                select(name)
            assert str(caught.value) == status.reason


@pytest.mark.parametrize(
    ("name", "device", "message"),
    [
        ("torch", "tpu9", "PyTorch cannot use the device 'tpu9': "),
        ("torch", "cuda:99", "PyTorch cannot use the device 'cuda:99': "),
        ("torch", "meta", "PyTorch cannot use the device 'meta': "),
        ("jax", "cpu:99", "JAX cannot use the device 'cpu:99': there are "),
        ("jax", "cpu:-1", "JAX cannot use the device 'cpu:-1': there are "),
        ("jax", "cpu:one", "JAX cannot use the device 'cpu:one': "),
        ("jax", "npu", "JAX cannot use the device 'npu': "),
        ("strict", "device9", "array-api-strict has no device 'device9': "),
    ],
)
def test_a_device_that_is_not_there(name: str, device: str, message: str) -> None:
    need(name)
    with pytest.raises(BackendError) as caught:
        select(name, device)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "package"),
    [("cupy", "CuPy"), ("torch", "PyTorch"), ("jax", "JAX"), ("strict", "array-api-strict")],
)
def test_a_library_that_is_not_installed(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, {"strict": "array_api_strict"}.get(name, name))
    with pytest.raises(BackendError) as caught:
        select(name)
    assert str(caught.value) == f"{package} is not installed: pip install 'rnn-xp[{name}]'"
    assert select("numpy").name == "numpy"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            ImportError("libcublas.so: cannot open shared object file\nand more"),
            "CuPy is installed but does not import: libcublas.so: cannot open shared object file",
        ),
        (OSError("bad image"), "CuPy is installed but does not import: bad image"),
        (
            ModuleNotFoundError("No module named 'fastrlock'", name="fastrlock"),
            "CuPy is installed but broken: No module named 'fastrlock'",
        ),
    ],
)
def test_a_broken_library_breaks_no_other(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def fail(name: str, package: str | None = None) -> ModuleType:
        if name.partition(".")[0] == "cupy":
            raise error
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", fail)
    monkeypatch.delenv("RNN_XP_BACKEND", raising=False)
    assert available(["cupy"])["cupy"].reason == reason
    assert select("auto").name == "numpy"
    assert select("numpy").name == "numpy"


def hide(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Make a module look as if it were not installed."""
    real = importlib.import_module

    def missing(name: str, package: str | None = None) -> ModuleType:
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", missing)


# ------------------------------------------------------------- CuPy, as it fails without a GPU


class CUDARuntimeError(RuntimeError):
    """Named as CuPy's."""


class CompileException(Exception):
    """Named as CuPy's."""


class OutOfMemoryError(MemoryError):
    """Named as CuPy's."""


ARCHITECTURE = "nvrtc: error: invalid value for --gpu-architecture (-arch)"
"""What NVRTC says of a GPU that it does not know."""


class Device:
    """`cupy.cuda.Device`."""

    current = 0

    def __init__(self, index: int | None = None) -> None:
        self.id = self.current if index is None else index
        self.synchronized = 0

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def synchronize(self) -> None:
        self.synchronized += 1


def fake_cupy(
    driver: int = 12040,
    runtime: int | Exception = 12040,
    devices: int | Exception = 1,
    ones: Exception | float = 1.0,
) -> ModuleType:
    """Return a module with what `backend` asks of CuPy, answered by NumPy or by an error."""

    def given(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def make_ones(shape: int, dtype: str) -> Any:
        return np.full(shape, given(ones), dtype=dtype)

    cupy: Any = ModuleType("cupy")
    cupy.cuda = SimpleNamespace(
        runtime=SimpleNamespace(
            driverGetVersion=lambda: driver,
            runtimeGetVersion=lambda: given(runtime),
            getDeviceCount=lambda: given(devices),
            getDeviceProperties=lambda _: {"name": b"Test GPU"},
        ),
        Device=Device,
    )
    cupy.ones = make_ones
    return cupy  # type: ignore[no-any-return]


def put_cupy(monkeypatch: pytest.MonkeyPatch, cupy: ModuleType) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "array_api_compat.cupy", ModuleType("array_api_compat.cupy"))


@pytest.mark.parametrize(
    ("cupy", "reason"),
    [
        (fake_cupy(driver=0), "no NVIDIA driver was found on this machine"),
        (
            fake_cupy(driver=11080, runtime=12020),
            "the NVIDIA driver is too old: it supports CUDA 11.8, this CuPy needs CUDA 12.2: "
            "update the driver or install cupy-cuda11x",
        ),
        (fake_cupy(devices=0), "the NVIDIA driver sees no GPU: check nvidia-smi"),
        (
            fake_cupy(devices=CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device")),
            "the NVIDIA driver sees no GPU: check nvidia-smi",
        ),
        (
            fake_cupy(ones=CompileException("could not open source file vector_types.h\nline 2")),
            "CuPy cannot compile kernels, the CUDA headers are missing (could not open source "
            "file vector_types.h): pip install 'cupy-cuda12x[ctk]'",
        ),
        (
            fake_cupy(ones=RuntimeError("Failed to dlopen libnvrtc.so.12")),
            "CuPy's kernel compiler NVRTC is missing (Failed to dlopen libnvrtc.so.12): "
            "pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12",
        ),
        (
            fake_cupy(13000, 13000, ones=RuntimeError("Failed to load nvrtc64_130_0.dll")),
            "CuPy's kernel compiler NVRTC is missing (Failed to load nvrtc64_130_0.dll): "
            "pip install nvidia-cuda-nvrtc nvidia-cuda-runtime",
        ),
        (
            fake_cupy(13000, 13000, ones=CompileException(f"{ARCHITECTURE}\n")),
            f"CUDA 13, which this CuPy is for, does not support this GPU ({ARCHITECTURE}): it "
            "begins at compute capability 7.5; for older GPUs, Maxwell to Volta, install "
            "cupy-cuda12x in place of cupy-cuda13x",
        ),
        (
            fake_cupy(ones=CompileException(ARCHITECTURE)),
            f"CUDA 12, which this CuPy is for, does not support this GPU ({ARCHITECTURE}): choose "
            "another device, or use --backend numpy",
        ),
        (
            fake_cupy(runtime=OSError("libcudart.so.12: cannot open shared object file")),
            "the GPU cannot be used (libcudart.so.12: cannot open shared object file): if nvidia",
        ),
        (
            fake_cupy(ones=CompileException('error: expected a "}"')),
            'the GPU cannot be used (error: expected a "}"): if nvidia-smi fails too, update',
        ),
        (
            fake_cupy(ones=OutOfMemoryError("Out of memory allocating 512 bytes")),
            "the GPU is out of memory (Out of memory allocating 512 bytes): free some",
        ),
        (fake_cupy(ones=2.0), "the GPU computes wrong results: a test kernel gave 40.0, not 24"),
        (
            fake_cupy(ones=CUDARuntimeError("cudaErrorIllegalAddress: an illegal access")),
            "the GPU cannot be used (cudaErrorIllegalAddress: an illegal access): if nvidia-smi "
            "fails too, update the driver and reboot; else choose another device, or use "
            "--backend numpy",
        ),
    ],
    ids=lambda value: "" if isinstance(value, ModuleType) else value[:30],
)
def test_what_cupy_can_lack(cupy: ModuleType, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put_cupy(monkeypatch, cupy)
    monkeypatch.delenv("RNN_XP_BACKEND", raising=False)
    status = available(["cupy"])["cupy"]
    assert not status.usable
    assert status.reason.startswith(reason)
    if "pip install nvidia" in reason:  # -cu12 or not is at its end
        assert status.reason == reason
    assert "\n" not in status.reason
    with pytest.raises(BackendError) as caught:
        select("cupy")
    assert str(caught.value) == status.reason
    assert select("auto").name == "numpy"


def test_cupy_where_a_kernel_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    put_cupy(monkeypatch, fake_cupy(devices=2))
    monkeypatch.delenv("RNN_XP_BACKEND", raising=False)
    made: list[Device] = []

    def enter(self: Device) -> Device:
        made.append(self)
        return self

    monkeypatch.setattr(Device, "__enter__", enter)
    status = available(["cupy"])["cupy"]
    assert (status.usable, status.device) == (True, "cuda:0 Test GPU")
    assert [device.synchronized for device in made] == [1]
    assert select("auto").name == "cupy"
    assert select("auto", "cpu").name == "numpy"
    assert select("cupy", "cuda:1").device_name == "cuda:1"
    monkeypatch.setattr(Device, "current", 1)
    assert [select("cupy", name).device_name for name in (None, "cuda")] == ["cuda:1", "cuda:1"]
    with pytest.raises(BackendError, match=r"no device cuda:2: this machine has 2 GPU\(s\)"):
        select("cupy", "cuda:2")
    for device in ("cpu", "cuda:x", "cuda:-1"):
        with pytest.raises(BackendError, match=f"CuPy has no device '{device}': expected 'cuda'"):
            select("cupy", device)


# ------------------------------------------------------------------------------ moving arrays


def chosen_for(target: Target) -> backend.Backend:
    return select(target.backend, target.device_name)


def test_in_and_out(target: Target) -> None:
    chosen = chosen_for(target)
    host = np.arange(6.0).reshape(2, 3)
    host.flags.writeable = False
    for dtype in ("float32", "float64"):
        moved = chosen.asarray(host, dtype)
        target.check(moved, (2, 3), dtype)
        back = chosen.to_numpy(moved)
        assert type(back) is np.ndarray
        np.testing.assert_array_equal(back, host)
    target.check(chosen.asarray(host), (2, 3), "float64")
    target.check(chosen.asarray(moved, "float32"), (2, 3), "float32")
    target.check(chosen.asarray(moved), (2, 3), "float64")
    target.check(chosen.asarray([1, 2, 3]), (3,), "int64")
    target.check(chosen.asarray([True, False]), (2,), "bool")
    target.check(chosen.asarray(2.5, "float32"), (), "float32")
    target.check(chosen.asarray(host[:, ::-1].T, "float32"), (3, 2), "float32")
    chosen.synchronize()


def test_namespace_and_device(target: Target) -> None:
    array = target.asarray(np.zeros(3))
    assert backend.array_namespace(array=array, nothing=None) is target.xp
    assert backend.device_of(array) == target.device
    assert backend.dtype_name(array.dtype) == "float64"
    assert backend.is_floating(array)
    for dtype in ("int64", "bool"):
        assert not backend.is_floating(target.asarray(np.zeros(3), dtype))


def test_dtypes(target: Target) -> None:
    chosen = chosen_for(target)
    for name in ("float32", "float64", "int64", "bool"):
        assert chosen.dtype(name) == target.dtype(name)
    with pytest.raises(ValueError, match="dtype float99 does not exist in the backend"):
        chosen.dtype("float99")


def test_not_an_array() -> None:
    for value in ([1.0], 1.0, "text"):
        with pytest.raises(TypeError, match=r"x must be an array, got builtins"):
            backend.array_namespace(x=value)
    with pytest.raises(TypeError, match=r"x must be a plain array, got numpy MaskedArray"):
        backend.array_namespace(x=np.ma.masked_array([1.0]))
    with pytest.raises(TypeError, match="expected at least one array, got none"):
        backend.array_namespace(x=None)


@pytest.mark.parametrize("other", ["strict", "torch", "jax"])
def test_two_libraries_in_one_call(other: str) -> None:
    target = make_target(other)
    with pytest.raises(TypeError, match=r"^x is a .* but params is a numpy ndarray"):
        backend.array_namespace(params=np.zeros(2), x=target.asarray(np.zeros(2)))


def test_torch_bfloat16_to_the_host() -> None:
    need("torch")
    torch = importlib.import_module("torch")
    values = torch.tensor([1.5, -2.0], dtype=torch.bfloat16, requires_grad=True)
    host = backend.to_numpy(values)
    assert host.dtype == np.float32
    np.testing.assert_array_equal(host, [1.5, -2.0])


def test_asarray_copies_into_torch() -> None:
    """A tensor that shared NumPy's memory would change with the caller's array."""
    need("torch")
    host = np.zeros(2, dtype=np.float32)
    moved = select("torch").asarray(host)
    host[0] = 1.0
    assert float(moved[0]) == 0.0


def test_jax_without_64_bits() -> None:
    """JAX would silently compute in 32 bits; the error says how to switch 64 bits on."""
    need("jax")
    jax = importlib.import_module("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", False)
    try:
        chosen = select("jax")
        with pytest.raises(ValueError, match="float64 is switched off in JAX: set JAX_ENABLE_X64"):
            chosen.dtype("float64")
        with pytest.raises(ValueError, match="float64 is switched off in JAX"):
            chosen.asarray(np.zeros(2))
        assert str(chosen.asarray(np.zeros(2), "float32").dtype) == "float32"
        assert str(chosen.asarray(np.array([1, 2])).dtype) == "int32"
        with pytest.raises(ValueError, match="int64 is switched off in JAX, and the integers do"):
            chosen.asarray(np.array([2**31]))
    finally:
        jax.config.update("jax_enable_x64", before)
