"""A stand-in for CuPy without a GPU: NumPy's numbers behind CuPy's names, and every call watched.

What it holds against the installed CuPy: each function, method, operator and attribute must exist
there, with the keywords and the number of arguments that are given. What it does as CuPy does: an
array never becomes a NumPy array by itself, operands of NumPy are refused, and so is an array of
another device than the current one. What it counts: launches (`launches`) and copies to the host
(`reads`). Values are NumPy's: what only a device does, such as its rounding, is not seen.
"""

from __future__ import annotations

import inspect
import operator
import re
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import array_api_compat.numpy as host_namespace
import numpy as np

from rnn_xp import backend

NAMED = re.compile(r"\w+\.\w+\((.*?)\)")
UFUNC_KEYWORDS = {"out", "dtype", "casting"}
BINARY = ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"]
COMPARING = ["lt", "le", "gt", "ge", "eq", "ne"]
UNARY = ["neg", "pos", "abs", "invert"]


class NotInCuPy(AssertionError, AttributeError):
    """A name, a keyword or a kind of argument that CuPy does not have."""


class Device:
    """A device: making it current is entering it."""

    compute_capability = "90"

    def __init__(self, index: int) -> None:
        self.id = index
        self._before: list[int] = []

    def __enter__(self) -> Device:
        self._before.append(xp.current)
        xp.current = self.id
        return self

    def __exit__(self, *_: object) -> None:
        xp.current = self._before.pop()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def use(self) -> None:
        xp.current = self.id

    def synchronize(self) -> None:
        xp.reads.append("synchronize")


class Memory:
    """Where the numbers of an array lie: `cupy.cuda.MemoryPointer`."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def memset_async(self, value: int, size: int, stream: Any = None) -> None:
        host = self._array._host
        theirs = xp.cupy.cuda.MemoryPointer.memset_async
        check_call("MemoryPointer.memset_async", theirs, (self, value, size), {})
        assert (size, host.flags.c_contiguous) == (host.nbytes, True)
        xp.launched("memset", self._array)
        host.reshape(-1).view(np.uint8)[...] = value


class Array:
    """An array of the stand-in."""

    __array_ufunc__ = None
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, host: Any, device: int | None = None) -> None:
        self._host = np.asarray(host)
        self._device = xp.current if device is None else device

    def __array_namespace__(self, api_version: str | None = None) -> Any:
        return xp

    def __array__(self, *_: object, **__: object) -> Any:
        raise TypeError("implicit conversion to a NumPy array is not allowed")

    # Copies to the host

    def _read(self, name: str) -> Any:
        xp.reads.append(name)
        return self._host

    def get(self, stream: Any = None, order: str = "C", out: Any = None) -> Any:
        return self._read("get").copy()

    def item(self) -> Any:
        return self._read("item").item()

    def tolist(self) -> Any:
        return self._read("tolist").tolist()

    def __float__(self) -> float:
        return float(self._read("float").item())

    def __int__(self) -> int:
        return int(self._read("int").item())

    def __index__(self) -> int:
        return operator.index(self._read("index").item())

    def __bool__(self) -> bool:
        return bool(self._read("bool").item())

    # Views

    @property
    def data(self) -> Memory:
        return Memory(self)

    @property
    def device(self) -> Device:
        return Device(self._device)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Any:
        return (self._view(row) for row in self._host)

    def _view(self, host: Any) -> Array:
        return Array(host, self._device)

    def _result(self, name: str, host: Any) -> Any:
        """Wrap what a method gave; what is not a view was a launch."""
        if not isinstance(host, np.ndarray | np.generic):
            return host
        if not np.may_share_memory(self._host, host):
            xp.launched(name, self)
        return self._view(host)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if not hasattr(xp.cupy.ndarray, name):
            raise NotInCuPy(f"ndarray.{name}")
        value = getattr(self._host, name)
        if not callable(value):
            return self._view(value) if isinstance(value, np.ndarray) else value

        def method(*args: Any, **kwargs: Any) -> Any:
            check_call(f"ndarray.{name}", getattr(xp.cupy.ndarray, name), (self, *args), kwargs)
            return self._result(name, value(*unwrapped(args), **unwrapped(kwargs)))

        return method

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        if any(isinstance(k, Array) and k.dtype == bool for k in keys):
            xp.reads.append("a boolean index")  # its size is not known before
        return self._result("getitem", self._host[unwrapped(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        xp.launched("setitem", self, value)
        self._host[unwrapped(key)] = unwrapped(value)


def _operator(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Array, *others: Any) -> Any:
        if not hasattr(xp.cupy.ndarray, name):
            raise NotInCuPy(f"ndarray.{name}")
        xp.launched(name, self, *others)
        made = function(self._host, *unwrapped(others))
        return self if made is self._host else Array(made)

    return call


for _name in BINARY:
    _function = getattr(operator, f"__{_name}__")
    setattr(Array, f"__{_name}__", _operator(f"__{_name}__", _function))
    setattr(
        Array,
        f"__r{_name}__",
        _operator(f"__r{_name}__", lambda a, b, function=_function: function(b, a)),
    )
    _in_place = getattr(operator, f"__i{_name}__")
    setattr(Array, f"__i{_name}__", _operator(f"__i{_name}__", _in_place))
for _name in (*COMPARING, *UNARY):
    setattr(Array, f"__{_name}__", _operator(f"__{_name}__", getattr(operator, f"__{_name}__")))


def unwrapped(value: Any) -> Any:
    """Return NumPy's arrays for the stand-in's."""
    if isinstance(value, Array):
        return value._host
    if isinstance(value, tuple | list):
        return type(value)(map(unwrapped, value))
    if isinstance(value, dict):
        return {name: unwrapped(each) for name, each in value.items() if name != "device"}
    return value


def arrays_in(value: Any) -> list[Any]:
    """Return the arrays among arguments."""
    if isinstance(value, Array | np.ndarray):
        return [value]
    if isinstance(value, dict):
        value = tuple(value.values())
    return [a for each in value for a in arrays_in(each)] if isinstance(value, tuple | list) else []


class Namespace:
    """The module `array_api_compat.cupy`, watched."""

    __name__ = "standin.cupy"

    def __init__(self) -> None:
        self.current = 0
        self.launches: Counter[str] = Counter()
        self.reads: list[str] = []
        self.seen: set[str] = set()

    def start(self, cupy: Any, namespace: Any) -> None:
        """Begin anew, against these modules of CuPy, and pose as it until the test ends."""
        sys.modules[self.__name__] = xp
        backend._MODULES["cupy"] = self.__name__
        self.cupy, self.namespace, self.current = cupy, namespace, 0
        for kept in (self.launches, self.reads, self.seen):
            kept.clear()

    def launched(self, name: str, *operands: Any) -> None:
        """Count a launch, unless CuPy would refuse its operands."""
        self.launches[name] += 1
        self.seen.add(name)
        for operand in operands:
            if isinstance(operand, np.ndarray):
                raise NotInCuPy(f"{name}: a NumPy array as an operand")
            if isinstance(operand, Array) and operand._device != self.current:
                raise ValueError(
                    f"{name}: array device must be the current device: array device = "
                    f"{operand._device} while current = {self.current}"
                )

    def ndarray(self, shape: Any, dtype: Any) -> Array:
        """Return an array in which what is read before it is written shows."""
        made = np.ndarray(shape, dtype)
        if made.dtype.kind in "fV":
            made.fill(np.nan)
        return Array(made)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        theirs = getattr(self.namespace, name, None)
        if theirs is None:
            raise NotInCuPy(f"{name} is not in {self.namespace.__name__}")
        ours = getattr(host_namespace, name)
        if not callable(ours) or isinstance(ours, type):
            return ours
        self.seen.add(name)
        return Function(name, ours, theirs)


class Function:
    """A function of the namespace."""

    def __init__(self, name: str, ours: Any, theirs: Any) -> None:
        self._name, self._ours, self._theirs = name, ours, theirs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name, given = self._name, arrays_in((args, kwargs))
        check_call(name, self._theirs, args, kwargs)
        device = kwargs.get("device")
        if device is not None and not isinstance(device, Device):
            raise NotInCuPy(f"{name}: device={device!r}")
        made = self._ours(*unwrapped(args), **unwrapped(kwargs))
        if name == "where" and made.dtype.char == "E":
            made = made.astype(np.float32)  # as CuPy does with bfloat16
        if name == "empty" and made.dtype.kind == "f":
            made.fill(np.nan)  # what is read before it is written shows
        if not isinstance(made, np.ndarray | np.generic | tuple | list | None):
            return made  # a dtype, or what is asked of one
        for array in given:
            if isinstance(array, Array) and made is array._host:  # itself, or out=
                if name not in ("asarray", "ascontiguousarray", "astype"):
                    xp.launched(name, *given)
                return array
        moved = name in ("asarray", "empty") and not any(isinstance(a, Array) for a in given)
        if not (moved or _is_view(made, given)):
            xp.launched(name, *given)
        elif given and not moved:
            device = given[0].device
        number = None if device is None else device.id
        if isinstance(made, tuple | list):
            return type(made)(Array(each, number) for each in made)
        return None if made is None else Array(np.array(made) if moved else made, number)

    def at(self, *args: Any) -> None:
        """Stand for the method of a ufunc."""
        if not hasattr(self._theirs, "at"):
            raise NotInCuPy(f"{self._name}.at")
        xp.launched(f"{self._name}.at", *args)
        self._ours.at(*unwrapped(args))


def _is_view(made: Any, given: list[Any]) -> bool:
    return isinstance(made, np.ndarray) and any(
        isinstance(a, Array) and made.size and np.may_share_memory(made, a._host) for a in given
    )


def check_call(name: str, theirs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise unless CuPy's function or method takes these arguments."""
    if hasattr(theirs, "nin"):  # a ufunc
        count, wrong = theirs.nin + theirs.nout, set(kwargs) - UFUNC_KEYWORDS
        if wrong or not theirs.nin <= len(args) <= count:
            raise NotInCuPy(f"{name}: {len(args)} arguments, {sorted(wrong)}")
        return
    try:
        signature_of(theirs).bind(*args, **kwargs)
    except TypeError as error:
        raise NotInCuPy(f"{name}{signature_of(theirs)}: {error}") from None
    if takes_anything(theirs):  # the compatibility layer hands these on to CuPy's own
        own = getattr(xp.cupy, name, None)
        known = set(signature_of(theirs).parameters) | _keywords(own)
        if set(kwargs) - known:
            raise NotInCuPy(f"{name}: {sorted(set(kwargs) - known)}")


def signature_of(theirs: Any) -> inspect.Signature:
    """Return a signature; that of a compiled method stands in its docstring alone."""
    try:
        return inspect.signature(theirs)
    except (TypeError, ValueError):
        found = NAMED.match(theirs.__doc__ or "")
        if found is None:
            raise NotInCuPy(f"{theirs} has no signature to hold a call against") from None
        parameters = re.sub(r"\b_?\w+ (\w+)", r"\1", found.group(1))  # without types
        namespace: dict[str, Any] = {}
        exec(f"def signature({parameters}): pass", namespace)
        return inspect.signature(namespace["signature"])


def takes_anything(theirs: Any) -> bool:
    """Tell whether a function takes any keyword."""
    kinds = [p.kind for p in signature_of(theirs).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def _keywords(own: Any) -> set[str]:
    if own is None:
        return set()
    if type(own).__name__ == "_GUFunc":
        return UFUNC_KEYWORDS | {"axes", "axis", "keepdims"}
    return set(signature_of(own).parameters)


xp: Any = Namespace()
