"""The array libraries and devices that the tests run on."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import standin
from array_api_compat import array_namespace
from array_api_compat import device as device_of

from rnn_xp import backend

HostArray = np.ndarray[Any, Any]
PEERS = ("torch", "jax")


@dataclass(frozen=True)
class Target:
    """A library on a device: makes arrays from NumPy's, and checks the arrays that come back."""

    name: str
    backend: str
    device_name: str | None
    xp: Any
    device: Any
    readonly: bool = False

    def asarray(self, array: Any, dtype: str | None = None) -> Any:
        """Copy an array into the library; `dtype` is a name, None keeps the array's."""
        host = np.array(array) if dtype is None else np.array(array, dtype=dtype)
        if self.backend != "numpy":
            return self.xp.asarray(host, device=self.device)
        host.flags.writeable = not self.readonly
        return host

    def tree(self, arrays: Any, dtype: str | None = None) -> Any:
        """`asarray` through dicts and tuples; None stays None."""
        if arrays is None:
            return None
        if isinstance(arrays, dict):
            return {name: self.tree(value, dtype) for name, value in arrays.items()}
        if isinstance(arrays, tuple):
            return tuple(self.tree(value, dtype) for value in arrays)
        return self.asarray(arrays, dtype)

    def to_numpy(self, array: Any) -> HostArray:
        """Copy an array to the host, without the code under test."""
        if self.backend == "torch":
            return np.array(array.detach().cpu().numpy())
        if self.backend == "cupy":
            return np.asarray(array.get())
        if self.backend == "strict":
            array = array.to_device(self.xp.Device("CPU_DEVICE"))
        return np.array(array)

    def dtype(self, name: str) -> Any:
        return getattr(self.xp, name)

    def check(self, array: Any, shape: tuple[int, ...], dtype: str, name: str = "") -> HostArray:
        """Assert library, device, dtype and shape; return the values."""
        if self.backend == "numpy":
            scalar = shape == () and isinstance(array, np.generic)
            assert scalar or type(array) is np.ndarray, name
        else:
            assert array_namespace(array) is self.xp, name
            assert device_of(array) == self.device, name
        assert array.dtype == self.dtype(dtype), name
        assert tuple(array.shape) == shape, name
        return self.to_numpy(array)


STANDIN = "cupy:standin"
# Name: backend, device, read-only inputs.
TARGETS: dict[str, tuple[str, str | None, bool]] = {
    "numpy": ("numpy", None, False),
    "numpy:readonly": ("numpy", None, True),
    "numpy:core": ("numpy", None, False),  # without the compiled kernels: see conftest.py
    "strict": ("strict", None, False),
    "strict:device1": ("strict", "device1", False),
    "torch": ("torch", None, False),
    "jax": ("jax", None, False),
    "cupy": ("cupy", None, False),
    STANDIN: ("cupy", None, False),  # standin.py in its place: see conftest.py
}


def make_target(name: str) -> Target:
    """Return a target; skip the test, with the reason, where the library cannot be used."""
    library, device, readonly = TARGETS[name]
    if name == STANDIN:
        need_module("ml_dtypes")  # NumPy knows bfloat16 by it
        standin.xp.start(need_module("cupy"), need_module("array_api_compat.cupy"))
        return Target(name, library, device, standin.xp, standin.Device(0))
    if library == "numpy":
        return Target(name, library, device, np, "cpu", readonly)
    need(library)
    if library == "strict":
        strict = importlib.import_module("array_api_strict")
        strict.set_array_api_strict_flags(boolean_indexing=False, data_dependent_shapes=False)
        return Target(name, library, device, strict, strict.Device(device or "CPU_DEVICE"))
    if library == "torch":
        xp = importlib.import_module("array_api_compat.torch")
        return Target(name, library, device, xp, importlib.import_module("torch").device("cpu"))
    if library == "jax":
        jax = importlib.import_module("jax")
        jax.config.update("jax_enable_x64", True)
        return Target(name, library, device, jax.numpy, jax.devices()[0])
    xp = importlib.import_module("array_api_compat.cupy")
    return Target(name, library, device, xp, importlib.import_module("cupy").cuda.Device(0))


def need(library: str) -> None:
    """Skip the test where `library` cannot be used; fail where this run must have its peers."""
    status = backend.available([library])[library]
    if not status.usable:
        _lacks(library, status.reason, peer=library in PEERS)


def need_module(name: str) -> Any:
    """Return a module of another tool; skip or fail as `need` does where it cannot be imported."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        _lacks(name, str(error), peer=True)


@contextmanager
def benchmark_script(name: str) -> Iterator[Any]:
    """Yield a script of `benchmarks/` as a module, as if it were run from its folder."""
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        patch.setitem(sys.modules, name, module)  # dataclasses ask for it
        spec.loader.exec_module(module)
        yield module


def need_compiler() -> None:
    """Skip the test where there is no C++ compiler; fail where this run must have its peers."""
    if shutil.which("g++") is None:
        _lacks("g++", "not found", peer=True)


def _lacks(library: str, reason: str, *, peer: bool) -> NoReturn:
    if peer and os.environ.get("RNN_XP_REQUIRE_PEERS") == "1":
        pytest.fail(f"RNN_XP_REQUIRE_PEERS=1, but {library} is not usable: {reason}")
    pytest.skip(f"{library}: {reason}")
