"""Which array library, which device: select, probe, move.

What this module guarantees:

- It imports no array library but NumPy. Another library is imported when the caller names it, or
  has already imported it (then the type of an array tells which one it is).
- A library that is missing or broken never breaks another: `available` reports it, `select`
  raises one clear line.
- CuPy counts as usable only after a real kernel ran on the device and was synchronised.
- No data moves and no dtype changes unless the caller asks for it by `asarray` or `to_numpy`.

The rest of the package receives arrays, asks `array_namespace` once at the top of a public call,
and passes the namespace down. The time loop also asks for `operations`: the few functions that
write into a buffer where the library allows it and return a new array where it does not.
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


def array_namespace(**arrays: Array) -> Namespace:
    """Return the one namespace of all `arrays`, given by the names to use in an error.

    `None` is ignored.

    Raises
    ------
    TypeError
        If something is not an array, or if two arrays belong to different libraries.
    """
    if all(type(array) is np.ndarray for array in arrays.values()) and arrays:
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


def namespace_at_once(array: Any) -> Namespace | None:
    """Return the namespace of an array; None may say no more than that it has to be asked for."""
    return np if type(array) is np.ndarray else _NAMESPACES.get(type(array))


def _kind(array: Array) -> str:
    return f"{type(array).__module__.partition('.')[0]} {type(array).__name__}"


def device_of(array: Array) -> Any:
    """Return the device that holds `array`, as its library spells it."""
    if type(array) is np.ndarray:
        return "cpu"
    # JAX has more than one kind of it.
    return _compat_device(array) if _namespace(array).__name__ == "jax.numpy" else array.device


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
        for value in (*args, *kwargs.values()):
            array = next(iter(value.values()), None) if isinstance(value, Mapping) else value
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
        name = _namespace(array).__name__
    except (TypeError, AttributeError):  # the second where a library is blocked by `None`
        return None
    return device_of(array) if name.endswith("cupy") else contextlib.nullcontext()


def is_traced(array: Any) -> bool:
    """Tell whether JAX is tracing a function, and the values of `array` are not known yet."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(array, jax.core.Tracer)


def dtype_name(dtype: Any) -> str:
    """Return a dtype's name without its library: `float32` for `torch.float32`."""
    if isinstance(dtype, type):
        return str(dtype.__name__)
    return str(getattr(dtype, "name", None) or str(dtype).rpartition(".")[2])


def widened(xp: Namespace, array: Array) -> Array:
    """Return float16 and bfloat16 as float32: a sum or a count would leave their range."""
    if dtype_name(array.dtype) in ("float16", "bfloat16"):
        return xp.astype(array, xp.float32)
    return array


def sum_of_rows(xp: Namespace, rows: Array) -> Array:
    """Return the sum along the first axis; NumPy would add float16 in float16, and stop growing."""
    if type(rows) is np.ndarray and rows.dtype.char == "e":
        return rows.sum(axis=0, dtype=np.float32).astype(rows.dtype)
    return xp.sum(rows, axis=0)


def is_floating(array: Array) -> bool:
    """Tell whether `array` has one of the real floating-point dtypes of its library."""
    dtype = array.dtype
    if isinstance(dtype, np.dtype) and dtype.char in "efd":  # NumPy takes 4 µs to spell a name
        return True
    return dtype_name(dtype) in DTYPES


# --------------------------------------------------------------------------------------------
# Operations of the time loop: `op(a, b, out=buffer)`


class InPlace:
    """Operations of a library whose functions take `out=`: NumPy and CuPy."""

    def __init__(self, xp: Namespace, rows_a_chunk: int) -> None:
        self.xp = xp
        self.rows_a_chunk = rows_a_chunk
        self.add = xp.add
        self.subtract = xp.subtract
        self.multiply = xp.multiply
        self.maximum = xp.maximum
        self.tanh = xp.tanh
        self.matmul = xp.matmul
        self.unstack: Callable[[Array], Sequence[Array]] = tuple
        """The subarrays along the first axis: views of it."""

    def matmul_blocks(self, weight: Array, operand: Array, count: int, out: Array) -> Array:
        """Multiply (count * H, K) by (K, B) and return the product as (count, H, B)."""
        self.matmul(weight, operand, out=out.reshape(weight.shape[0], operand.shape[1]))
        return out

    def flat(self, blocks: Array) -> Array:
        """View (count, H, B) as (count * H, B)."""
        return blocks.reshape(-1, blocks.shape[-1])

    def buffer(self, shape: tuple[int, ...], like: Array) -> Array:
        """Return an array to write into, with the dtype of `like`."""
        return self.xp.ndarray(shape, like.dtype)  # `empty` takes twice as long to ask for it

    def rows(self, arrays: Sequence[Array], steps: int) -> list[Sequence[Array]]:
        """Return for each step the arrays' subarrays along the first axis: views of them."""
        return list(zip(*arrays, strict=True)) or [()] * steps

    def wholes(self, rows: Sequence[Sequence[Array]], out: Sequence[Array]) -> Sequence[Array]:
        """Undo `rows`, whose arrays were written into `out` already."""
        return out

    def copy(self, source: Array, out: Array) -> Array:
        """Copy `source` into `out`."""
        out[...] = source
        return out

    def fresh(self, view: Array) -> Array:
        """Return a copy: what a caller gets may be written into."""
        return self.copy(view, out=self.buffer(view.shape, view))

    def contiguous(self, view: Array) -> Array:
        """Return a transposed view as an array whose rows are contiguous."""
        return self.xp.ascontiguousarray(view)

    def hold(self, valid: Array, new: Array, old: Array) -> Array:
        """Return `new` where `valid`, else `old`; overwrites `new`."""
        self.xp.copyto(new, old, where=~valid)
        return new

    def joined(self, parts: Sequence[Array], out: Array) -> Array:
        """Concatenate along the first axis parts that were written into `out` already."""
        return out

    def beside(self, count: int, like: Array) -> tuple[Array, Sequence[Array]]:
        """Return room (n, count, ...) for arrays (n, ...) such as `like`, whole and in parts."""
        whole = self.buffer((like.shape[0], count, *like.shape[1:]), like)
        return whole, [whole[:, k, ...] for k in range(count)]

    def stacked(self, parts: Sequence[Array], out: Array) -> Array:
        """Return, as (n, count, ...), arrays that were written into the parts of `out` already."""
        return out

    def put(self, whole: Array, start: int, stop: int, rows: Array) -> Array:
        """Write rows `start` to `stop` along the first axis."""
        whole[start:stop, ...] = rows
        return whole

    def scatter_add(self, rows: Array, index: Array, count: int) -> Array:
        """Return (count, K): line v is the sum of those rows (N, K) whose index (N,) is v."""
        total = self.xp.zeros((count, rows.shape[1]), dtype=rows.dtype)
        self.xp.add.at(total, index, rows)
        return total


class NumPy(InPlace):
    """What NumPy has a faster way for."""

    def __init__(self) -> None:
        super().__init__(np, rows_a_chunk=512)
        # Of two matrices the same product, half a microsecond faster.
        self.matmul = np.dot

    def scatter_add(self, rows: Array, index: Array, count: int) -> Array:
        # Sorted, each sum is over neighbours: eight times as fast as add.at, and than a product
        # with one-hot rows 1.4 times at 80 lines and six times at 1,000. Short integers sort
        # faster, and `take` moves rows twice as fast as an index.
        short = index.astype(np.uint16) if count <= 65536 else index
        counts = np.bincount(index, minlength=count)
        lines = np.flatnonzero(counts)
        first = (np.cumsum(counts) - counts)[lines]
        total = np.zeros((count, rows.shape[1]), dtype=rows.dtype)
        if first.size:
            order = np.argsort(short, kind="stable")
            total[lines] = np.add.reduceat(rows.take(order, axis=0), first, axis=0)
        return total


class Functional:
    """The same operations for a library whose arrays are not written into: `out` is ignored."""

    rows_a_chunk = 0

    def __init__(self, xp: Namespace) -> None:
        self.xp = xp

    def add(self, a: Array, b: Array, out: Array = None) -> Array:
        return a + b

    def subtract(self, a: Array, b: Array, out: Array = None) -> Array:
        return a - b

    def multiply(self, a: Array, b: Array, out: Array = None) -> Array:
        return a * b

    def maximum(self, a: Array, b: Array, out: Array = None) -> Array:
        return self.xp.maximum(a, b)

    def tanh(self, a: Array, out: Array = None) -> Array:
        return self.xp.tanh(a)

    def matmul(self, a: Array, b: Array, out: Array = None) -> Array:
        return a @ b

    def unstack(self, a: Array) -> Sequence[Array]:
        return [a[k, ...] for k in range(a.shape[0])]

    def matmul_blocks(self, weight: Array, operand: Array, count: int, out: Array = None) -> Array:
        product = weight @ operand
        return self.xp.reshape(product, (count, product.shape[0] // count, product.shape[1]))

    def flat(self, blocks: Array) -> Array:
        return self.xp.reshape(blocks, (-1, blocks.shape[-1]))

    def buffer(self, shape: tuple[int, ...], like: Array) -> Array:
        return None

    def rows(self, arrays: Sequence[Array], steps: int) -> list[Sequence[Array]]:
        unstacked = [[None] * steps if a is None else self.unstack(a) for a in arrays]
        return list(zip(*unstacked, strict=True)) or [()] * steps

    def wholes(self, rows: Sequence[Sequence[Array]], out: Sequence[Array]) -> Sequence[Array]:
        return [self.xp.stack(list(arrays), axis=0) for arrays in zip(*rows, strict=True)]

    def copy(self, source: Array, out: Array = None) -> Array:
        return source

    def fresh(self, view: Array) -> Array:
        return self.xp.stack([view])[0, ...]

    def contiguous(self, view: Array) -> Array:
        return view

    def hold(self, valid: Array, new: Array, old: Array) -> Array:
        return self.xp.where(valid, new, old)

    def joined(self, parts: Sequence[Array], out: Array = None) -> Array:
        return self.xp.concat(list(parts), axis=0)

    def beside(self, count: int, like: Array) -> tuple[Array, Sequence[Array]]:
        return None, [None] * count

    def stacked(self, parts: Sequence[Array], out: Array = None) -> Array:
        return self.xp.stack(list(parts), axis=1)

    def put(self, whole: Array, start: int, stop: int, rows: Array) -> Array:
        # One chunk covers all steps here: `rows_a_chunk` is zero.
        return self.fresh(rows)

    def scatter_add(self, rows: Array, index: Array, count: int) -> Array:
        xp, device = self.xp, device_of(rows)
        total = xp.zeros((count, rows.shape[1]), dtype=rows.dtype, device=device)
        if hasattr(total, "index_add"):  # torch
            return total.index_add(0, xp.astype(index, xp.int64), rows)
        if hasattr(total, "at"):  # JAX
            return total.at[index].add(rows)
        numbers = xp.arange(count, device=device)
        one_hot = numbers[:, None] == xp.astype(index, numbers.dtype)[None, :]
        return xp.astype(one_hot, rows.dtype) @ rows


Operations = InPlace | Functional
_OPERATIONS: dict[str, Operations] = {}


def operations(xp: Namespace) -> Operations:
    """Return the time loop's operations for a namespace.

    `rows_a_chunk` is the number of rows (time steps times batch) that the loop handles at once:
    NumPy's stay in the processor's cache; 0 stands for all, since fewer launches win on a GPU.
    """
    name = xp.__name__
    if name not in _OPERATIONS:
        if name == "numpy":
            _OPERATIONS[name] = NumPy()
        elif name.endswith("cupy"):
            _OPERATIONS[name] = InPlace(xp, rows_a_chunk=0)
        else:
            _OPERATIONS[name] = Functional(xp)
    return _OPERATIONS[name]


# --------------------------------------------------------------------------------------------
# From names to libraries


@dataclass(frozen=True)
class Backend:
    """An array library on one device.

    Attributes
    ----------
    name : str
        `numpy`, `cupy`, `torch`, `jax` or `strict`.
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

    def dtype(self, name: str) -> Any:
        """Return the library's dtype called `name`.

        Raises
        ------
        ValueError
            If the library lacks it, or has it switched off (JAX's float64).
        """
        if name == "float64" and self.name == "jax" and not _jax_has_float64():
            raise ValueError(
                "dtype float64 is switched off in JAX: set JAX_ENABLE_X64=1 or "
                "jax.config.update('jax_enable_x64', True), or use float32"
            )
        dtype = getattr(self.xp, name, None)
        if name == "bfloat16" and self.name == "cupy":
            dtype = _cupy_bfloat16()
        if dtype is None:
            raise ValueError(f"dtype {name} does not exist in the backend {self.name}")
        return dtype

    def asarray(self, array: Any, dtype: str | None = None) -> Array:
        """Copy or move `array` (NumPy, nested lists, or this library's own) to the device.

        `dtype` is a name such as `float32`; without it the dtype stays as it is (in JAX with 64-bit
        numbers switched off, int64 becomes int32 where the numbers fit).
        """
        if type(array) in (int, float, bool) or isinstance(array, list | tuple | np.generic):
            array = np.asarray(array)
        if not isinstance(array, np.ndarray):
            given = array.dtype
            if dtype is not None and dtype_name(given) != dtype:
                return self.xp.asarray(array, dtype=self.dtype(dtype), device=self.device)
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
    """Copy any library's array to the host as a NumPy array; torch's bfloat16 becomes float32."""
    if isinstance(array, np.ndarray):
        return array
    if hasattr(array, "detach"):  # torch
        host = array.detach().cpu()
        return np.asarray((host.float() if dtype_name(host.dtype) == "bfloat16" else host).numpy())
    if type(array).__module__.startswith("array_api_strict"):
        strict = importlib.import_module("array_api_strict")
        return np.array(strict.asarray(array, device=strict.Device("CPU_DEVICE")))
    if hasattr(array, "get"):  # cupy
        return np.asarray(array.get())
    return np.asarray(array)


def host_of(array: Array) -> np.ndarray[Any, Any]:
    """Return a copy on the host as a file can hold it: contiguous, and bfloat16 as float32."""
    host = to_numpy(array)
    wide = np.float32 if dtype_name(array.dtype) == "bfloat16" else host.dtype
    return np.array(host, dtype=wide, order="C")


def copy_of(xp: Namespace, array: Array) -> Array:
    """Return a copy on the same device; autograd, if it records, goes through it."""
    return array.clone() if hasattr(array, "clone") else xp.asarray(array, copy=True)


def unrecorded(xp: Namespace) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which PyTorch's autograd records nothing; elsewhere nothing does."""
    if not xp.__name__.endswith("torch"):
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
    if dtype_name(like.dtype) == "bfloat16" or xp.__name__.endswith("torch"):
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


def _numpy(device: str | None) -> Backend:
    if device not in (None, "cpu"):
        raise BackendError(f"NumPy has no device {device!r}: its only device is 'cpu'")
    return Backend("numpy", np, "cpu", "cpu")


def _torch(device: str | None) -> Backend:
    torch = _import("torch", "PyTorch", "torch")
    xp = _import("array_api_compat.torch", "array-api-compat", "torch")
    try:
        chosen = torch.device(device or "cpu")
        torch.zeros(1, device=chosen).cpu()
    except Exception as error:
        raise BackendError(
            f"PyTorch cannot use the device {device!r}: {first_line(error)}"
        ) from error
    return Backend("torch", xp, chosen, str(chosen))


def _jax(device: str | None) -> Backend:
    jax = _import("jax", "JAX", "jax")
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


def _strict(device: str | None) -> Backend:
    strict = _import("array_api_strict", "array-api-strict", "strict")
    name = "CPU_DEVICE" if device is None or device == "cpu" else device
    try:
        chosen = strict.Device(name)
    except Exception as error:
        raise BackendError(
            f"array-api-strict has no device {device!r}: {first_line(error)}"
        ) from error
    return Backend("strict", strict, chosen, name)


def _cupy(device: str | None) -> Backend:
    cupy = _import("cupy", "CuPy", "cupy")
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
    make: Callable[[str | None], Backend]
    distributions: Sequence[str]


# The one table of backends: `select`, `available`, the command line and the tests read it.
BACKENDS: dict[str, _Entry] = {
    "numpy": _Entry(_numpy, ("numpy",)),
    "cupy": _Entry(_cupy, ("cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy")),
    "torch": _Entry(_torch, ("torch",)),
    "jax": _Entry(_jax, ("jax",)),
    "strict": _Entry(_strict, ("array-api-strict",)),
}


def select(name: str = "auto", device: str | None = None) -> Backend:
    """Return the backend called `name`, proven usable.

    Parameters
    ----------
    name : str
        `numpy`, `cupy`, `torch`, `jax`, `strict`, or `auto`: what the environment variable
        `RNN_XP_BACKEND` names, else CuPy where a GPU really runs a kernel, else NumPy.
    device : str, optional
        A device of that library: `cpu`, `cuda`, `cuda:1`, …; when left out, CuPy's current device,
        and the other libraries' default device.

    Raises
    ------
    BackendError
        If the name is unknown, or the backend or device cannot be used: one line with the reason
        and what to do.
    """
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


def _usable(name: str) -> bool:
    try:
        BACKENDS[name].make(None)
    except BackendError:
        return False
    return True


def available(
    names: Iterable[str] = tuple(BACKENDS), device: str | None = None
) -> dict[str, Status]:
    """Return every backend with its state on this machine: version, device, or the reason.

    `device` is one of those that `select` takes, for all of them.
    """
    return {name: _status(name, device) for name in names}


def _status(name: str, device: str | None) -> Status:
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
