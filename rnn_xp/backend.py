"""Which array library, which device: select, probe, move.

What this module guarantees:

- It imports no array library but NumPy. Another library is imported when the caller names it, or
  has already imported it (then the type of an array tells which one it is).
- A library that is missing or broken never breaks another: `available` reports it, `select`
  raises one clear line.
- CuPy counts as usable only after a real kernel ran on the device and was synchronised.
- No data moves and no dtype changes unless the caller asks for it by `asarray` or `to_numpy`.

The rest of the package receives arrays, asks `array_namespace` once at the top of a public call,
and passes the namespace down. Any library that keeps the array API standard may hold the arrays;
`BACKENDS` are those that can be asked for by a name.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
from array_api_compat import array_namespace as _compat_namespace
from array_api_compat import device as _compat_device

from rnn_xp.errors import first_line

Array = Any
"""An array of any supported library."""
Namespace = Any
"""The module that holds a library's array functions."""

_P = ParamSpec("_P")
_R = TypeVar("_R")

DTYPES = ("float16", "bfloat16", "float32", "float64")


class BackendError(RuntimeError):
    """A backend is unknown, or cannot be used on this machine."""


class Status(NamedTuple):
    """What is known of one backend on this machine."""

    name: str
    usable: bool
    version: str
    device: str
    reason: str
    """Why it is not usable and what to do about it; empty for a usable backend."""


# --------------------------------------------------------------------------------------------
# From arrays to their library

_MODULES = {
    "numpy": "numpy",
    "cupy": "array_api_compat.cupy",
    "torch": "array_api_compat.torch",
    "jax": "jax.numpy",
    "strict": "array_api_strict",
}
"""The namespaces of the libraries that there is something to know about, by the backends' names."""


def is_library(xp: Namespace, name: str) -> bool:
    """Tell whether a namespace is that of the backend called `name`."""
    return xp is sys.modules.get(_MODULES[name])


def array_namespace(**arrays: Array) -> Namespace:
    """Return the one namespace of all `arrays`, given by the names to use in an error.

    `None` is ignored.

    Raises
    ------
    TypeError
        If something is not an array, or if two arrays belong to different libraries.
    """
    if {*map(type, arrays.values())} == {np.ndarray}:
        return np
    found: Namespace = None
    first = ""
    for name, array in arrays.items():
        if array is None:
            continue
        xp = _namespace_of(name, array)
        if found is None:
            found, first = xp, name
        elif xp is not found:
            raise TypeError(
                f"{name} is a {_kind(array)} but {first} is a {_kind(arrays[first])}: all arrays "
                "of one call must come from the same library (nothing is copied silently)"
            )
    if found is None:
        raise TypeError("expected at least one array, got none")
    return found


def _namespace_of(name: str, array: Array) -> Namespace:
    if type(array) is np.ndarray:
        return np
    if isinstance(array, np.ndarray | np.generic):
        raise TypeError(f"{name} must be a plain array, got {_kind(array)}")
    try:
        return _namespace(array)
    except TypeError:
        raise TypeError(f"{name} must be an array, got {_kind(array)}") from None


# By the arrays' types: array-api-compat takes 2 µs, and a call asks ten times.
_NAMESPACES: dict[type, Namespace] = {}


def _namespace(array: Array) -> Namespace:
    """Return the namespace of an array of another library than NumPy."""
    found = _NAMESPACES.get(type(array))
    if found is None:
        found = _compat_namespace(array)
        if not isinstance(array, np.ndarray | np.generic):  # of a kind that this library refuses
            _NAMESPACES[type(array)] = found
    return found


def known_namespace(array: Any) -> Namespace | None:
    """Return the namespace of an array if it is known from an earlier call, else None."""
    return np if type(array) is np.ndarray else _NAMESPACES.get(type(array))


def _kind(array: Array) -> str:
    return f"{type(array).__module__.partition('.')[0]} {type(array).__name__}"


def device_of(array: Array) -> Any:
    """Return the device that holds `array`, as its library spells it; None if it does not say."""
    if type(array) is np.ndarray:
        return "cpu"
    xp = _namespace(array)
    if is_library(xp, "torch") or is_library(xp, "cupy"):  # array-api-compat takes 2 µs
        return array.device
    return _compat_device(array)


def same_device(one: Array, other: Array) -> bool:
    """Tell whether one device holds both; that of an array which JAX traces may be any."""
    devices = device_of(one), device_of(other)
    return devices[0] == devices[1] or None in devices


def on_its_device(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function compute on the device of the first array, or dict of arrays, that it gets.

    CuPy alone needs that: it computes on its current device. Other libraries look at the arrays.
    """

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        given: tuple[Any, ...] = (*args, *kwargs.values())
        for value in given:
            array = next(iter(value.values()), None) if hasattr(value, "keys") else value
            if type(array) is np.ndarray:
                break
            scope = _scope_of(array) if hasattr(array, "dtype") else None
            if scope is not None:
                with scope:
                    return function(*args, **kwargs)
        return function(*args, **kwargs)

    return run


def _scope_of(array: Array) -> contextlib.AbstractContextManager[Any] | None:
    """Return the context in which CuPy computes on the device of `array`; None if it is none."""
    try:
        xp = _namespace(array)
    except (TypeError, AttributeError):  # the second where a library is blocked by `None`
        return None
    return device_of(array) if is_library(xp, "cupy") else contextlib.nullcontext()


def is_traced(array: Any) -> bool:
    """Tell whether JAX is tracing a function, and the values of `array` are not known yet."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(array, jax.core.Tracer)


def dtype_name(dtype: Any) -> str:
    """Return a dtype's name without its library: `float32` for `torch.float32`."""
    if isinstance(dtype, str):
        return dtype
    if isinstance(dtype, type):
        return str(dtype.__name__)
    return str(getattr(dtype, "name", None) or str(dtype).rpartition(".")[2])


def is_half(xp: Namespace, dtype: Any) -> bool:
    """Tell whether a floating-point dtype has 16 bits."""
    if isinstance(dtype, np.dtype):  # that of bfloat16 has no `finfo` in NumPy
        return dtype.itemsize == 2
    return bool(xp.finfo(dtype).bits == 16)


def widened(xp: Namespace, array: Array) -> Array:
    """Return float16 and bfloat16 as float32: a sum or a count would leave their range."""
    return xp.astype(array, xp.float32) if is_half(xp, array.dtype) else array


def like_dtype(xp: Namespace, array: Array, like: Array) -> Array:
    """Return `array` with the dtype of `like`."""
    return array if array.dtype == like.dtype else xp.astype(array, like.dtype)


def sum_of_rows(xp: Namespace, rows: Array) -> Array:
    """Return the sum along the first axis; NumPy would add float16 in float16, and stop growing."""
    if type(rows) is np.ndarray and rows.dtype.char == "e":
        return rows.sum(axis=0, dtype=np.float32).astype(rows.dtype)
    return xp.sum(rows, axis=0, dtype=rows.dtype)


def is_floating(array: Array) -> bool:
    """Tell whether `array` has one of the real floating-point dtypes that its library computes in.

    NumPy arrays of bfloat16 have none: NumPy does not multiply them.
    """
    dtype = array.dtype
    if isinstance(dtype, np.dtype):  # NumPy's `isdtype` knows no bfloat16
        return dtype.char in "efd" or (type(array) is not np.ndarray and dtype.name == "bfloat16")
    return bool(_namespace(array).isdtype(dtype, "real floating"))


# --------------------------------------------------------------------------------------------
# From names to libraries


@dataclass(frozen=True)
class Backend:
    """An array library on one device.

    Attributes
    ----------
    name : str
        `numpy`, `cupy`, `torch`, `jax` or `strict`; of another library the name of its namespace.
    xp : module
        The namespace of its array functions (array API standard).
    device : object
        The device, as the library spells it.
    device_name : str
        The device, as `select` takes it.
    """

    name: str
    xp: Namespace
    device: Any
    device_name: str

    def dtype(self, dtype: Any) -> Any:
        """Return the library's dtype of this name, such as `float32`, or of a dtype's name.

        Raises
        ------
        ValueError
            If the library lacks it, or has it switched off (JAX's float64).
        """
        name = dtype_name(dtype)
        if name == "float64" and self.name == "jax" and not _jax_has_float64():
            raise ValueError(
                "dtype float64 is switched off in JAX: set JAX_ENABLE_X64=1 or "
                "jax.config.update('jax_enable_x64', True), or use float32"
            )
        found = getattr(self.xp, name, None)
        if name == "bfloat16" and self.name == "cupy":
            found = _cupy_bfloat16()
        if found is None:
            raise ValueError(f"dtype {name} does not exist in the backend {self.name}")
        return found

    def asarray(self, array: Any, dtype: Any = None) -> Array:
        """Copy or move `array` (NumPy, nested lists, or this library's own) to the device.

        `dtype` is a dtype or its name, such as `float32`; without it the dtype stays as it is (in
        JAX with 64-bit numbers switched off, int64 becomes int32 where the numbers fit).
        """
        if type(array) in (int, float, bool) or isinstance(array, list | tuple | np.generic):
            array = np.asarray(array)
        if not isinstance(array, np.ndarray):
            if dtype is not None and array.dtype != (target := self.dtype(dtype)):
                return self.xp.asarray(array, dtype=target, device=self.device)
            return self.xp.asarray(array, device=self.device)
        if self.name == "jax" and dtype is None and array.dtype == np.int64:
            array = _jax_integers(array)
        target = self.dtype(dtype or array.dtype.name)
        if self.name == "cupy":
            with self.device:
                return self.xp.asarray(array, dtype=target)
        if self.name == "torch":  # torch shares NumPy's memory, and refuses read-only arrays
            array = np.array(array)
        return self.xp.asarray(array, dtype=target, device=self.device)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        """Copy `array` to the host as a NumPy array (NumPy arrays are returned as they are)."""
        return to_numpy(array)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Return the context in which this is the device that its library computes on.

        CuPy computes on its current device alone; the others look at the arrays.
        """
        scope: contextlib.AbstractContextManager[Any] = (
            self.device if self.name == "cupy" else contextlib.nullcontext()
        )
        return scope

    def synchronize(self) -> None:
        """Wait until the device has finished all work given to it so far."""
        if self.name == "cupy":
            self.device.synchronize()
        elif self.name == "torch" and self.device.type == "cuda":
            importlib.import_module("torch").cuda.synchronize(self.device)
        elif self.name == "jax":
            jax = importlib.import_module("jax")
            (jax.device_put(0.0, self.device) + 0).block_until_ready()


def _cupy_bfloat16() -> Any:
    """Return the dtype, which is that of ml_dtypes.

    Raises
    ------
    ValueError
        If this CuPy does not compute in it, or ml_dtypes is missing.
    """
    try:
        found = np.dtype(importlib.import_module("ml_dtypes").bfloat16)
    except ImportError:
        raise ValueError("dtype bfloat16 on CuPy needs ml_dtypes: pip install ml_dtypes") from None
    version = importlib.import_module("cupy").__version__
    if int(version.partition(".")[0]) < 14:
        raise ValueError(f"dtype bfloat16 needs CuPy 14 or later, here is {version}")
    if tuple(map(int, np.__version__.split(".")[:2])) < (2, 2):
        raise ValueError(
            f"dtype bfloat16 on CuPy needs NumPy 2.2 or later, here is {np.__version__}"
        )
    return found


def to_numpy(array: Array) -> np.ndarray[Any, Any]:
    """Copy any library's array to the host as a NumPy array; torch's bfloat16 becomes float32.

    Raises
    ------
    TypeError
        If it has no values that can be read: by its library's own way, `__array__` or DLPack.
    """
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "detach"):  # torch
        host = array.detach().cpu()
        return np.asarray((host.float() if dtype_name(host.dtype) == "bfloat16" else host).numpy())
    if hasattr(array, "get"):  # cupy
        return np.asarray(array.get())
    xp = _NAMESPACES.get(type(array))
    if xp is not None and is_library(xp, "strict"):
        array = xp.asarray(array, device=xp.Device("CPU_DEVICE"))
    if hasattr(array, "__array__") or not hasattr(array, "dtype"):
        return np.asarray(array)
    try:
        return np.array(np.from_dlpack(array))
    except (AttributeError, TypeError, ValueError, RuntimeError, BufferError) as error:
        raise TypeError(
            f"a {_kind(array)} cannot be read on the host, neither by __array__ nor by DLPack: "
            f"{first_line(error)}"
        ) from error


def host_of(array: Array) -> np.ndarray[Any, Any]:
    """Return a copy on the host as a file can hold it: contiguous, and bfloat16 as float32."""
    host = to_numpy(array)
    wide = np.float32 if dtype_name(array.dtype) == "bfloat16" else host.dtype
    return np.array(host, dtype=wide, order="C")


def copy_of(xp: Namespace, array: Array) -> Array:
    """Return a copy on the same device; autograd, if it records, goes through it."""
    return array.clone() if is_library(xp, "torch") else xp.asarray(array, copy=True)


def unrecorded(xp: Namespace) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which PyTorch's autograd records nothing; elsewhere nothing does."""
    if not is_library(xp, "torch"):
        return contextlib.nullcontext()
    no_grad: contextlib.AbstractContextManager[Any] = importlib.import_module("torch").no_grad()
    return no_grad


def to_floats(arrays: Sequence[Array]) -> list[float]:
    """Return the values of arrays without axes: one copy from the device, not one for each."""
    if not arrays or isinstance(arrays[0], np.ndarray | np.generic | float):
        return [float(array) for array in arrays]
    xp = array_namespace(array=arrays[0])
    with _scope_of(arrays[0]) or contextlib.nullcontext():
        return [float(value) for value in to_numpy(xp.stack(list(arrays)))]


@on_its_device
def are_finite(arrays: Mapping[str, Array]) -> bool:
    """Tell whether all numbers of all arrays are finite; waits for the device."""
    xp = array_namespace(**arrays)
    with unrecorded(xp):
        return all(map(math.isfinite, to_floats([xp.max(xp.abs(a)) for a in arrays.values()])))


def like_of(array: np.ndarray[Any, Any], like: Array) -> Array:
    """Move a host array to the library, device and dtype of `like`."""
    if isinstance(like, np.ndarray):
        return array.astype(like.dtype, copy=False)
    xp = array_namespace(like=like)
    if is_library(xp, "torch"):  # it shares NumPy's memory, and refuses read-only arrays
        array = np.array(array)
    return xp.asarray(array, dtype=like.dtype, device=device_of(like))


def _jax_integers(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return integers as int32 where JAX has 64-bit numbers switched off, if they fit."""
    if _jax_has_float64():
        return array
    if array.size and not -(2**31) <= array.min() <= array.max() < 2**31:
        raise ValueError("dtype int64 is switched off in JAX, and the integers do not fit int32")
    return array.astype(np.int32)


def _jax_has_float64() -> bool:
    return bool(importlib.import_module("jax").config.jax_enable_x64)


def _import(module: str, package: str, extra: str) -> Any:
    """Import an array library, or say in one line why that does not work."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise BackendError(f"{package} is installed but broken: {first_line(error)}") from error
        raise BackendError(f"{package} is not installed: pip install 'rnn-xp[{extra}]'") from error
    except Exception as error:
        raise BackendError(
            f"{package} is installed but does not import: {first_line(error)}"
        ) from error


def _numpy(device: Any) -> Backend:
    if device not in (None, "cpu"):
        raise BackendError(f"NumPy has no device {device!r}: its only device is 'cpu'")
    return Backend("numpy", np, "cpu", "cpu")


def _torch(device: Any) -> Backend:
    torch = _import("torch", "PyTorch", "torch")
    xp = _import("array_api_compat.torch", "array-api-compat", "torch")
    try:
        chosen = torch.device("cpu" if device is None else device)
        torch.zeros(1, device=chosen).cpu()
    except Exception as error:
        raise BackendError(
            f"PyTorch cannot use the device {device!r}: {first_line(error)}"
        ) from error
    return Backend("torch", xp, chosen, str(chosen))


def _jax(device: Any) -> Backend:
    jax = _import("jax", "JAX", "jax")
    if isinstance(device, jax.Device):
        device = f"{device.platform}:{device.id}"
    kind, _, index = (device or "").partition(":")
    try:
        there = jax.devices(kind or None)
        if not 0 <= (number := int(index or 0)) < len(there):
            raise ValueError(f"there are {len(there)} of its kind")
        chosen = there[number]
    except (RuntimeError, ValueError) as error:
        raise BackendError(f"JAX cannot use the device {device!r}: {first_line(error)}") from error
    name = f"{chosen.platform}:{chosen.id}"
    return Backend("jax", importlib.import_module("jax.numpy"), chosen, name)


def _strict(device: Any) -> Backend:
    strict = _import("array_api_strict", "array-api-strict", "strict")
    name = "CPU_DEVICE" if device is None or device == "cpu" else device
    try:
        chosen = strict.Device(name) if isinstance(name, str) else name
    except Exception as error:
        raise BackendError(
            f"array-api-strict has no device {device!r}: {first_line(error)}"
        ) from error
    return Backend("strict", strict, chosen, str(name))


def _cupy(device: Any) -> Backend:
    cupy = _import("cupy", "CuPy", "cupy")
    if isinstance(device, cupy.cuda.Device):
        device = f"cuda:{device.id}"
    kind, _, index = (device or "cuda").partition(":")
    if kind not in ("cuda", "gpu") or not (index or "0").isdigit():
        raise BackendError(
            f"CuPy has no device {device!r}: expected 'cuda' or 'cuda:0', 'cuda:1', …"
        )
    number = int(index) if index else _current(cupy)
    problem = _cupy_problem(cupy, number)
    if problem:
        raise BackendError(problem)
    xp = _import("array_api_compat.cupy", "array-api-compat", "cupy")
    return Backend("cupy", xp, cupy.cuda.Device(number), f"cuda:{number}")


def _current(cupy: Any) -> int:
    """Return the number of CuPy's current device, 0 where there is none."""
    try:
        return int(cupy.cuda.Device().id)
    except Exception:  # any: without a driver; `_cupy_problem` says it
        return 0


def _cupy_problem(cupy: Any, index: int) -> str | None:
    """Say in one line why CuPy cannot compute on a device; None when a kernel ran there.

    Each probe is the smallest act that the next one depends on.
    """
    runtime = cupy.cuda.runtime
    needed = 0
    try:
        needed = runtime.runtimeGetVersion()
        driver = runtime.driverGetVersion()  # 0 without a driver
        if driver == 0:
            return (
                "no NVIDIA driver was found on this machine (CuPy itself is installed): install "
                "the driver, or use --backend numpy"
            )
        if driver // 1000 < needed // 1000:
            return (
                f"the NVIDIA driver is too old: it supports CUDA {cuda_version(driver)}, this "
                f"CuPy needs CUDA {cuda_version(needed)}: update the driver or install "
                f"cupy-cuda{driver // 1000}x"
            )
        count = runtime.getDeviceCount()
        if count == 0:
            return "the NVIDIA driver sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES"
        if index >= count:
            return f"there is no device cuda:{index}: this machine has {count} GPU(s), cuda:0 first"
        with cupy.cuda.Device(index) as gpu:
            ones = cupy.ones(8, dtype="float32")
            total = (ones * 2 + 1).sum()
            gpu.synchronize()
            if float(total) != 24.0:
                return f"the GPU computes wrong results: a test kernel gave {float(total)}, not 24"
    except MemoryError as error:  # cupy's OutOfMemoryError is one
        return (
            f"the GPU is out of memory ({first_line(error)}): free some, or choose another device"
        )
    except Exception as error:  # CompileException is a bare Exception
        text = first_line(error)
        if "nodevice" in text.lower():
            return "the NVIDIA driver sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES"
        return _cupy_failure(text, needed // 1000)
    return None


def _cupy_failure(text: str, major: int) -> str:
    """Say what an error of the test kernel means, by its text and the CUDA of this CuPy."""
    if "--gpu-architecture" in text:
        what = f"CUDA {major}, which this CuPy is for, does not support this GPU ({text})"
        if major < 13:
            return f"{what}: choose another device, or use --backend numpy"
        return (
            f"{what}: it begins at compute capability 7.5; for older GPUs, Maxwell to Volta, "
            f"install cupy-cuda12x in place of cupy-cuda{major}x"
        )
    # A file of the library: "nvrtc: error: …" is what the compiler itself says.
    if any(name in text.lower() for name in ("libnvrtc", "nvrtc64", "nvrtc-builtins")):
        suffix = f"-cu{major}" if major < 13 else ""
        return (
            f"CuPy's kernel compiler NVRTC is missing ({text}): "
            f"pip install nvidia-cuda-nvrtc{suffix} nvidia-cuda-runtime{suffix}"
        )
    if "open source file" in text:
        return (
            f"CuPy cannot compile kernels, the CUDA headers are missing ({text}): pip install "
            f"'cupy-cuda{major}x[ctk]'"
        )
    return (
        f"the GPU cannot be used ({text}): if nvidia-smi fails too, update the driver and reboot; "
        "else choose another device, or use --backend numpy"
    )


def cuda_version(version: int) -> str:
    """Return a version of CUDA as people write it: 12.9 for 12090."""
    return f"{version // 1000}.{version % 1000 // 10}"


class _Entry(NamedTuple):
    make: Callable[[Any], Backend]
    distributions: Sequence[str]


# The one table of backends: `select`, `available`, the command line and the tests read it.
BACKENDS: dict[str, _Entry] = {
    "numpy": _Entry(_numpy, ("numpy",)),
    "cupy": _Entry(_cupy, ("cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy")),
    "torch": _Entry(_torch, ("torch",)),
    "jax": _Entry(_jax, ("jax",)),
    "strict": _Entry(_strict, ("array-api-strict",)),
}


def select(name: Any = "auto", device: Any = None) -> Backend:
    """Return the backend called `name`, proven usable.

    Parameters
    ----------
    name : str or namespace
        `numpy`, `cupy`, `torch`, `jax`, `strict`, or `auto`: what the environment variable
        `RNN_XP_BACKEND` names, else CuPy where a GPU really runs a kernel, else NumPy. Or any
        namespace of array functions, such as `numpy` itself.
    device : str or device, optional
        A device of that library, or its name: `cpu`, `cuda`, `cuda:1`, …; when left out, CuPy's
        current device, and the other libraries' default device.

    Raises
    ------
    BackendError
        If the name is unknown, or the backend or device cannot be used: one line with the reason
        and what to do.
    """
    if not isinstance(name, str):
        return _of_namespace(name, device)
    name = name.lower()
    if name == "auto":
        chosen = os.environ.get("RNN_XP_BACKEND", "").lower()
        if chosen and chosen != "auto":
            if chosen not in BACKENDS:
                raise BackendError(
                    f"RNN_XP_BACKEND names the unknown backend {chosen!r}: expected one of "
                    f"{', '.join(('auto', *BACKENDS))}"
                )
            return BACKENDS[chosen].make(device)
        if device in (None, "cpu") and (device == "cpu" or not _usable("cupy")):
            return _numpy(device)
        return _cupy(device)
    if name not in BACKENDS:
        raise BackendError(
            f"unknown backend {name!r}: expected one of {', '.join(('auto', *BACKENDS))}"
        )
    return BACKENDS[name].make(device)


def _of_namespace(xp: Namespace, device: Any) -> Backend:
    """Return the backend of a namespace; of one that this module does not know, as it is."""
    package = getattr(xp, "__name__", "").removeprefix("array_api_compat.").partition(".")[0]
    name = {"array_api_strict": "strict"}.get(package, package)
    if name in BACKENDS and xp in (sys.modules.get(package), sys.modules.get(_MODULES[name])):
        return BACKENDS[name].make(device)
    if not hasattr(xp, "asarray"):
        raise BackendError(
            f"unknown backend {xp!r}: expected one of {', '.join(('auto', *BACKENDS))}, or a "
            "namespace of the array API standard"
        )
    return Backend(package, xp, device, str(device))


def placing(
    backend: Any, device: Any, dtype: Any, like: Array = None
) -> Callable[[np.ndarray[Any, Any]], Array]:
    """Return what moves drawn parameters to where they shall lie, in which dtype.

    Parameters
    ----------
    backend, device : as in `select`
    dtype : a floating-point dtype, or its name
    like : an array, optional
        Its library and device are taken instead of `backend` and `device`; and its dtype instead of
        `dtype`, if that is floating-point.

    Raises
    ------
    BackendError
        As `select`.
    ValueError
        If the dtype is no floating-point one, or does not exist in the library.
    """
    if like is not None:
        xp = array_namespace(like=like)
        if is_floating(like):
            return lambda drawn: like_of(drawn, like)
        backend, device = xp, device_of(like)
    chosen = select(backend, device)
    chosen.dtype(dtype)
    if dtype_name(dtype) not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype_name(dtype)}")
    return lambda drawn: chosen.asarray(drawn, dtype)


def _usable(name: str) -> bool:
    try:
        BACKENDS[name].make(None)
    except BackendError:
        return False
    return True


def available(names: Iterable[str] = tuple(BACKENDS), device: Any = None) -> dict[str, Status]:
    """Return every backend with its state on this machine: version, device, or the reason.

    `device` is one of those that `select` takes, for all of them.
    """
    return {name: _status(name, device) for name in names}


def _status(name: str, device: Any) -> Status:
    version = _version(BACKENDS[name].distributions)
    try:
        backend = BACKENDS[name].make(device)
    except BackendError as error:
        return Status(name, False, version, "", str(error))
    return Status(name, True, version, _device_text(backend), "")


def _version(distributions: Sequence[str]) -> str:
    from importlib import metadata  # 25 ms that `import rnn_xp` does without

    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return ""


def _device_text(backend: Backend) -> str:
    if backend.name != "cupy":
        return backend.device_name
    runtime = importlib.import_module("cupy").cuda.runtime
    label = runtime.getDeviceProperties(backend.device.id)["name"].decode()
    return f"{backend.device_name} {label}"
