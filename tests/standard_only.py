"""An array library that keeps the array API standard, and does nothing besides.

No package can know it. What the standard leaves open is refused here, so that code which runs on
it runs on any library that keeps the standard: there is nothing to write into, no way to NumPy but
DLPack, no truth of an array, no name of a dtype, and a function takes the arguments that the
standard names, as it names them.

`make_namespace` makes a library of its own with each call. All have one name.

Where the standard lets a library decide, the harder way is taken:

- Indices and slices must lie within the axis, and there must be one for each axis, or an ellipsis.
- Python's own numbers alone are scalars, and only beside an operator, `clip` and `full`.
- At version 2022.12 a sum of float32 is of the default dtype, float64, unless `dtype` is given.
- Lazy libraries have no data-dependent shapes: `nonzero`, `unique_*` and masks as indices are left
  out.
"""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import numpy as np

HostArray = np.ndarray[Any, Any]
_np: Any = np  # what is called on values of any dtype
NAME = "standard_only"
VERSIONS = ("2022.12", "2023.12")

_SIGNED = ("int8", "int16", "int32", "int64")
_UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
_REAL = ("float32", "float64")
_COMPLEX = ("complex64", "complex128")
DTYPES = ("bool", *_SIGNED, *_UNSIGNED, *_REAL, *_COMPLEX)
KINDS: dict[str, tuple[str, ...]] = {
    "bool": ("bool",),
    "signed integer": _SIGNED,
    "unsigned integer": _UNSIGNED,
    "integral": (*_SIGNED, *_UNSIGNED),
    "real floating": _REAL,
    "complex floating": _COMPLEX,
    "numeric": (*_SIGNED, *_UNSIGNED, *_REAL, *_COMPLEX),
}
_GROUPS: dict[str, tuple[str, ...]] = {
    **KINDS,
    "floating": (*_REAL, *_COMPLEX),
    "real": (*_SIGNED, *_UNSIGNED, *_REAL),
    "bits": ("bool", *_SIGNED, *_UNSIGNED),
    "any": DTYPES,
}

# Name: what NumPy calls it, the dtypes that it takes.
_UNARY = {
    "abs": ("abs", "numeric"),
    "acos": ("arccos", "floating"),
    "acosh": ("arccosh", "floating"),
    "asin": ("arcsin", "floating"),
    "asinh": ("arcsinh", "floating"),
    "atan": ("arctan", "floating"),
    "atanh": ("arctanh", "floating"),
    "bitwise_invert": ("invert", "bits"),
    "ceil": ("ceil", "real"),
    "conj": ("conj", "complex floating"),
    "cos": ("cos", "floating"),
    "cosh": ("cosh", "floating"),
    "exp": ("exp", "floating"),
    "expm1": ("expm1", "floating"),
    "floor": ("floor", "real"),
    "imag": ("imag", "complex floating"),
    "isfinite": ("isfinite", "numeric"),
    "isinf": ("isinf", "numeric"),
    "isnan": ("isnan", "numeric"),
    "log": ("log", "floating"),
    "log1p": ("log1p", "floating"),
    "log2": ("log2", "floating"),
    "log10": ("log10", "floating"),
    "logical_not": ("logical_not", "bool"),
    "negative": ("negative", "numeric"),
    "positive": ("positive", "numeric"),
    "real": ("real", "complex floating"),
    "round": ("round", "numeric"),
    "sign": ("sign", "numeric"),
    "sin": ("sin", "floating"),
    "sinh": ("sinh", "floating"),
    "square": ("square", "numeric"),
    "sqrt": ("sqrt", "floating"),
    "tan": ("tan", "floating"),
    "tanh": ("tanh", "floating"),
    "trunc": ("trunc", "real"),
}
_BINARY = {
    "add": ("add", "numeric"),
    "atan2": ("arctan2", "real floating"),
    "bitwise_and": ("bitwise_and", "bits"),
    "bitwise_left_shift": ("left_shift", "integral"),
    "bitwise_or": ("bitwise_or", "bits"),
    "bitwise_right_shift": ("right_shift", "integral"),
    "bitwise_xor": ("bitwise_xor", "bits"),
    "divide": ("divide", "floating"),
    "equal": ("equal", "any"),
    "floor_divide": ("floor_divide", "real"),
    "greater": ("greater", "real"),
    "greater_equal": ("greater_equal", "real"),
    "less": ("less", "real"),
    "less_equal": ("less_equal", "real"),
    "logaddexp": ("logaddexp", "real floating"),
    "logical_and": ("logical_and", "bool"),
    "logical_or": ("logical_or", "bool"),
    "logical_xor": ("logical_xor", "bool"),
    "multiply": ("multiply", "numeric"),
    "not_equal": ("not_equal", "any"),
    "pow": ("power", "numeric"),
    "remainder": ("remainder", "real"),
    "subtract": ("subtract", "numeric"),
}
# From 2023.12 on.
_UNARY_2023 = {"signbit": ("signbit", "real floating")}
_BINARY_2023 = {
    "copysign": ("copysign", "real floating"),
    "hypot": ("hypot", "real floating"),
    "maximum": ("maximum", "real"),
    "minimum": ("minimum", "real"),
}
_OPERATORS = {
    "add": "add",
    "sub": "subtract",
    "mul": "multiply",
    "truediv": "divide",
    "floordiv": "floor_divide",
    "mod": "remainder",
    "pow": "pow",
    "and": "bitwise_and",
    "or": "bitwise_or",
    "xor": "bitwise_xor",
    "lshift": "bitwise_left_shift",
    "rshift": "bitwise_right_shift",
}
_COMPARISONS = {
    "eq": "equal",
    "ne": "not_equal",
    "lt": "less",
    "le": "less_equal",
    "gt": "greater",
    "ge": "greater_equal",
}


class _DType:
    """A dtype: equal to itself alone, and silent about what it is."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return "<a dtype>"


def make_namespace(version: str = "2022.12") -> Any:
    """Return a new library: the namespace of its functions, with an array type of its own."""
    if version not in VERSIONS:
        raise ValueError(f"version must be one of {', '.join(VERSIONS)}, got {version!r}")
    return _Maker(version).xp


def to_host(array: Any) -> HostArray:
    """Return a copy of an array's values: for tests, which do not rely on DLPack."""
    copied: HostArray = array._host.copy()
    return copied


def _module() -> Any:
    return ModuleType(NAME)


class _Maker:
    """Makes one library."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.xp = _module()
        self.xp.__array_api_version__ = version
        self.names = {_DType(name): name for name in DTYPES}
        self.dtypes = {name: dtype for dtype, name in self.names.items()}
        for name, value in self.dtypes.items():
            setattr(self.xp, name, value)
        for name in ("e", "inf", "nan", "pi"):
            setattr(self.xp, name, float(getattr(np, name)))
        self.xp.newaxis = None
        self.array = _array_type(self)
        recent = version >= "2023.12"
        for name, (host, group) in (_UNARY | (_UNARY_2023 if recent else {})).items():
            setattr(self.xp, name, self._unary(name, host, group))
        for name, (host, group) in (_BINARY | (_BINARY_2023 if recent else {})).items():
            setattr(self.xp, name, self._binary(name, host, group))
        for add in (_creation, _dtypes, _manipulation, _searching, _statistics, _linalg):
            add(self)
        if recent:
            _recent(self)

    # What the functions share

    def add(self, *functions: Callable[..., Any]) -> None:
        """Put functions into the namespace, under their names without a trailing underscore."""
        for function in functions:
            setattr(self.xp, function.__name__.rstrip("_"), function)

    def wrap(self, host: Any) -> Any:
        """Return an array with these values."""
        made = object.__new__(self.array)
        made._host = np.array(host, order="C")
        return made

    def host(self, name: str, array: Any, group: str = "any") -> HostArray:
        """Return the values of an array of this very library, with a dtype of this group."""
        if type(array) is not self.array:
            raise TypeError(f"{name}: expected an array of this library, got {type(array)}")
        host: HostArray = array._host
        if host.dtype.name not in _GROUPS[group]:
            raise TypeError(f"{name}: takes {group} dtypes, got {host.dtype.name}")
        return host

    def dtype(self, dtype: Any) -> np.dtype[Any] | None:
        """Return NumPy's dtype for one of this library, or for None."""
        if dtype is None:
            return None
        if type(dtype) is not _DType or dtype not in self.names:
            raise TypeError(f"expected a dtype of this library, got {dtype!r}")
        return np.dtype(self.names[dtype])

    def common(self, name: str, *dtypes: np.dtype[Any]) -> np.dtype[Any]:
        """Return the dtype that these are promoted to, where the standard says one."""
        kinds = {_kind(dtype) for dtype in dtypes}
        mixed = kinds == {"signed integer", "unsigned integer"}
        if len(kinds) > 1 and not mixed and kinds != {"real floating", "complex floating"}:
            raise TypeError(f"{name}: {' and '.join(map(str, dtypes))} are not promoted")
        made: np.dtype[Any] = np.result_type(*dtypes)
        if mixed and made.kind == "f":
            raise TypeError(f"{name}: {' and '.join(map(str, dtypes))} are not promoted")
        return made

    def promoted(self, name: str, *hosts: HostArray) -> list[HostArray]:
        """Return the values in the dtype that they are promoted to."""
        made = self.common(name, *(host.dtype for host in hosts))
        return [host.astype(made) for host in hosts]

    def _unary(self, name: str, host_name: str, group: str) -> Callable[..., Any]:
        function = getattr(np, host_name)

        def unary(x: Any, /) -> Any:
            host = self.host(name, x, group)
            keeps = name in ("ceil", "floor", "trunc", "round") and host.dtype.kind in "iu"
            with np.errstate(all="ignore"):
                return self.wrap(host if keeps else function(host))

        unary.__name__ = name
        return unary

    def _binary(self, name: str, host_name: str, group: str) -> Callable[..., Any]:
        function = getattr(np, host_name)

        def binary(x1: Any, x2: Any, /) -> Any:
            hosts = [self.host(name, x, group) for x in (x1, x2)]
            with np.errstate(all="ignore"):
                return self.wrap(function(*self.promoted(name, *hosts)))

        binary.__name__ = name
        return binary


def _kind(dtype: np.dtype[Any]) -> str:
    kinds = ("bool", "signed integer", "unsigned integer", "real floating", "complex floating")
    return next(kind for kind in kinds if dtype.name in KINDS[kind])


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    if type(shape) is int:
        return (shape,)
    if type(shape) is not tuple or builtins.any(type(size) is not int for size in shape):
        raise TypeError(f"{name}: a shape is a tuple of int, got {shape!r}")
    return tuple(shape)


def _axis(name: str, axis: Any, *, several: bool = False, none: bool = False) -> Any:
    if type(axis) is int or (none and axis is None):
        return axis
    if several and type(axis) is tuple and builtins.all(type(one) is int for one in axis):
        return axis
    raise TypeError(f"{name}: axis is not for {axis!r}")


def _no_device(name: str, device: Any) -> None:
    if device is not None:
        raise ValueError(f"{name}: the only device is None, got {device!r}")


def _refusal(name: str, why: str) -> Callable[..., NoReturn]:
    def refuse(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"{name}: {why}")

    return refuse


# --------------------------------------------------------------------------------------------
# Arrays


def _array_type(maker: _Maker) -> Any:
    """Return the library's array type."""

    class Array:
        """An array of this library."""

        __slots__ = ("_host",)
        __hash__ = None  # type: ignore[assignment]
        __array_ufunc__ = None  # NumPy leaves its operators to those below, which refuse it
        _host: HostArray

        def __init__(self) -> None:
            raise TypeError("arrays are made by the functions of their library")

        def __repr__(self) -> str:
            return "<an array>"

        def __array_namespace__(self, /, *, api_version: str | None = None) -> Any:
            if api_version not in (None, maker.version):
                raise ValueError(f"there is no version {api_version}")
            return maker.xp

        @property
        def dtype(self) -> Any:
            return maker.dtypes[self._host.dtype.name]

        @property
        def device(self) -> Any:
            return None

        @property
        def ndim(self) -> int:
            return self._host.ndim

        @property
        def shape(self) -> tuple[int, ...]:
            shape: tuple[int, ...] = self._host.shape
            return shape

        @property
        def size(self) -> int:
            return self._host.size

        @property
        def T(self) -> Any:
            if self._host.ndim != 2:
                raise ValueError(f"T is for two axes, got {self._host.ndim}")
            return maker.wrap(self._host.T)

        @property
        def mT(self) -> Any:
            if self._host.ndim < 2:
                raise ValueError(f"mT is for two axes or more, got {self._host.ndim}")
            return maker.wrap(self._host.mT)

        def to_device(self, device: Any, /, *, stream: Any = None) -> Any:
            _no_device("to_device", device)
            return self

        def __dlpack_device__(self) -> Any:
            return self._host.__dlpack_device__()

        if maker.version >= "2023.12":

            def __dlpack__(
                self,
                *,
                stream: Any = None,
                max_version: Any = None,
                dl_device: Any = None,
                copy: bool | None = None,
            ) -> Any:
                return self._host.__dlpack__(
                    stream=stream, max_version=max_version, dl_device=dl_device, copy=copy
                )

        else:

            def __dlpack__(self, *, stream: Any = None) -> Any:  # type: ignore[misc]
                return self._host.__dlpack__(stream=stream)

        def __getitem__(self, key: Any) -> Any:
            return maker.wrap(self._host[_key(key, self._host.shape)])

        def __neg__(self) -> Any:
            return maker.xp.negative(self)

        def __pos__(self) -> Any:
            return maker.xp.positive(self)

        def __abs__(self) -> Any:
            return maker.xp.abs(self)

        def __invert__(self) -> Any:
            return maker.xp.bitwise_invert(self)

        def __matmul__(self, other: Any) -> Any:
            return maker.xp.matmul(self, other)

        def __rmatmul__(self, other: Any) -> Any:
            return maker.xp.matmul(other, self)

    for short, name in (_OPERATORS | _COMPARISONS).items():
        setattr(Array, f"__{short}__", _operator(maker, name))
    for short, name in _OPERATORS.items():
        setattr(Array, f"__r{short}__", _operator(maker, name, swapped=True))
    for short in (*_OPERATORS, "matmul"):
        why = "an array cannot be written into"
        setattr(Array, f"__i{short}__", _refusal(f"__i{short}__", why))
    for short in ("setitem", "delitem"):
        setattr(Array, f"__{short}__", _refusal(f"__{short}__", "an array cannot be written into"))
    for short in ("bool", "int", "float", "complex", "index"):
        setattr(Array, f"__{short}__", _refusal(f"__{short}__", "the values are not known yet"))
    for short in ("len", "iter", "contains"):
        setattr(Array, f"__{short}__", _refusal(f"__{short}__", "not in the standard"))
    return Array


def _operator(maker: _Maker, name: str, *, swapped: bool = False) -> Callable[[Any, Any], Any]:
    def apply(self: Any, other: Any) -> Any:
        if type(other) is not maker.array:
            other = _scalar(maker, name, self._host.dtype, other)
        function = getattr(maker.xp, name)
        return function(other, self) if swapped else function(self, other)

    return apply


def _scalar(maker: _Maker, name: str, dtype: np.dtype[Any], value: Any) -> Any:
    """Return one of Python's own numbers as an array of the dtype of the array beside it."""
    kinds = {bool: "b", int: "iufc", float: "fc", complex: "c"}
    if type(value) not in kinds:
        raise TypeError(f"{name}: not for an array and {type(value)}")
    if dtype.kind not in kinds[type(value)]:
        raise TypeError(f"{name}: a {type(value).__name__} is not for {dtype.name}")
    return maker.wrap(np.asarray(value, dtype=dtype))


def _key(key: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Return an index if it is one of those that the standard knows."""
    keys = key if type(key) is tuple else (key,)
    for one in keys:
        if type(one) not in (int, slice, type(Ellipsis), type(None)):
            raise IndexError(f"an index is not a {type(one)}")
    dots = [k for k, one in enumerate(keys) if one is Ellipsis]
    taken = [one for one in keys if one is not None and one is not Ellipsis]
    if len(dots) > 1 or len(taken) > len(shape) or (not dots and len(taken) != len(shape)):
        raise IndexError(f"{len(taken)} indices for {len(shape)} axes, {len(dots)} ellipses")
    after = len([one for one in keys[dots[0] :] if one is not None]) - 1 if dots else 0
    sizes = shape[: len(taken) - after] + shape[len(shape) - after :]
    for one, size in zip(taken, sizes, strict=True):
        if type(one) is int and not -size <= one < size:
            raise IndexError(f"index {one} is out of the axis of size {size}")
        if type(one) is slice:
            _check_slice(one, size)
    return keys


def _check_slice(key: slice, size: int) -> None:
    for value in (key.start, key.stop, key.step):
        if value is not None and type(value) is not int:
            raise IndexError(f"the slice {key} is not of integers")
    low, high = (-size, size) if (key.step or 1) > 0 else (-size - 1, size - 1)
    for value in (key.start, key.stop):
        if value is not None and not low <= value <= high:
            raise IndexError(f"the slice {key} leaves the axis of size {size}")


# --------------------------------------------------------------------------------------------
# Functions


def _creation(maker: _Maker) -> None:
    wrap = maker.wrap

    def asarray(
        obj: Any, /, *, dtype: Any = None, device: Any = None, copy: bool | None = None
    ) -> Any:
        _no_device("asarray", device)
        wanted = maker.dtype(dtype)
        if type(obj) is maker.array:
            same = wanted is None or wanted == obj._host.dtype
            if copy is False and not same:
                raise ValueError("asarray: that takes a copy")
            return obj if same and not copy else wrap(obj._host.astype(wanted or obj._host.dtype))
        if copy is False:
            raise ValueError("asarray: that takes a copy")
        host = _from_object(obj)
        if host.dtype.name not in DTYPES or not host.dtype.isnative:
            raise TypeError(f"asarray: there is no dtype {host.dtype}")
        return wrap(host if wanted is None else host.astype(wanted))

    def arange(
        start: Any, /, stop: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None
    ) -> Any:
        _no_device("arange", device)
        for value in (start, stop, step):
            if type(value) not in (int, float, type(None)):
                raise TypeError(f"arange: not for {type(value)}")
        start, stop = (0, start) if stop is None else (start, stop)
        return wrap(_np.arange(start, stop, step, dtype=maker.dtype(dtype)))

    def from_dlpack(x: Any, /) -> Any:
        return wrap(_np.from_dlpack(x))

    def full(shape: Any, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Any:
        _no_device("full", device)
        if type(fill_value) not in (bool, int, float, complex):
            raise TypeError(f"full: fill_value is a Python scalar, not {type(fill_value)}")
        made = maker.dtype(dtype) or np.asarray(fill_value).dtype
        _scalar(maker, "full", made, fill_value)
        return wrap(_np.full(_shape("full", shape), fill_value, dtype=made))

    def full_like(x: Any, /, fill_value: Any, *, dtype: Any = None, device: Any = None) -> Any:
        host = maker.host("full_like", x)
        return full(host.shape, fill_value, dtype=dtype or x.dtype, device=device)

    def of_one_value(name: str, value: int) -> None:
        def filled(shape: Any, *, dtype: Any = None, device: Any = None) -> Any:
            _no_device(name, device)
            made = maker.dtype(dtype) or np.dtype("float64")
            return wrap(_np.full(_shape(name, shape), value, dtype=made))

        def filled_like(x: Any, /, *, dtype: Any = None, device: Any = None) -> Any:
            host = maker.host(name, x)
            return filled(host.shape, dtype=dtype or x.dtype, device=device)

        setattr(maker.xp, name, filled)
        setattr(maker.xp, f"{name}_like", filled_like)

    def eye(
        n_rows: int,
        n_cols: int | None = None,
        /,
        *,
        k: int = 0,
        dtype: Any = None,
        device: Any = None,
    ) -> Any:
        _no_device("eye", device)
        return wrap(_np.eye(n_rows, n_cols, k=k, dtype=maker.dtype(dtype) or np.float64))

    def linspace(
        start: Any,
        stop: Any,
        /,
        num: int,
        *,
        dtype: Any = None,
        device: Any = None,
        endpoint: bool = True,
    ) -> Any:
        _no_device("linspace", device)
        return wrap(_np.linspace(start, stop, num, dtype=maker.dtype(dtype), endpoint=endpoint))

    def meshgrid(*arrays: Any, indexing: str = "xy") -> list[Any]:
        hosts = [maker.host("meshgrid", array, "numeric") for array in arrays]
        return [wrap(host) for host in _np.meshgrid(*hosts, indexing=indexing)]

    def tril(x: Any, /, *, k: int = 0) -> Any:
        return wrap(_np.tril(maker.host("tril", x), k=k))

    def triu(x: Any, /, *, k: int = 0) -> Any:
        return wrap(_np.triu(maker.host("triu", x), k=k))

    maker.add(asarray, arange, from_dlpack, full, full_like, eye, linspace, meshgrid, tril, triu)
    of_one_value("zeros", 0)
    of_one_value("ones", 1)
    of_one_value("empty", 99)  # what stands there is not known: not what anybody hopes for


def _from_object(obj: Any) -> HostArray:
    """Return the values of a number, of nested sequences of numbers, or of a buffer."""
    if type(obj) in (bool, int, float, complex):
        return np.asarray(obj)
    if isinstance(obj, list | tuple):
        _check_numbers(obj)
        host = np.asarray(obj)  # a ragged one raises
        return host.astype(np.int64) if host.dtype.kind in "iu" else host
    try:
        memoryview(obj)
    except TypeError:
        raise TypeError(f"asarray: not for {type(obj)}") from None
    return np.asarray(obj)


def _check_numbers(obj: Any) -> None:
    for one in obj:
        if isinstance(one, list | tuple):
            _check_numbers(one)
        elif type(one) not in (bool, int, float, complex):
            raise TypeError(f"asarray: a sequence is of Python's numbers, not of {type(one)}")


def _dtypes(maker: _Maker) -> None:
    def isdtype(dtype: Any, kind: Any) -> bool:
        name = str(maker.dtype(dtype))
        if isinstance(kind, tuple):
            return builtins.any(isdtype(dtype, one) for one in kind)
        if isinstance(kind, str):
            if kind not in KINDS:
                raise ValueError(f"isdtype: there is no kind {kind!r}")
            return name in KINDS[kind]
        return name == str(maker.dtype(kind))

    def of(one: Any) -> np.dtype[Any]:
        if type(one) is maker.array:
            made: np.dtype[Any] = one._host.dtype
            return made
        found = maker.dtype(one)
        if found is None:
            raise TypeError("result_type: not for None")
        return found

    def result_type(*arrays_and_dtypes: Any) -> Any:
        made = maker.common("result_type", *(of(one) for one in arrays_and_dtypes))
        return maker.dtypes[made.name]

    def can_cast(from_: Any, to: Any, /) -> bool:
        try:
            made: bool = result_type(from_, to) == to
        except TypeError:
            return False
        return made

    def finfo(type: Any, /) -> Any:
        info = _np.finfo(of(type))
        values = {
            name: float(getattr(info, name)) for name in ("eps", "max", "min", "smallest_normal")
        }
        return SimpleNamespace(bits=info.bits, dtype=maker.dtypes[info.dtype.name], **values)

    def iinfo(type: Any, /) -> Any:
        dtype = of(type)
        info = _np.iinfo(dtype)
        return SimpleNamespace(
            bits=info.bits, dtype=maker.dtypes[dtype.name], max=int(info.max), min=int(info.min)
        )

    def cast(x: Any, dtype: Any, copy: bool) -> Any:
        host, wanted = maker.host("astype", x), maker.dtype(dtype)
        if wanted is None:
            raise TypeError("astype: dtype is missing")
        if host.dtype.kind == "c" and wanted.kind != "c":
            raise TypeError("astype: complex numbers are not cast to real ones")
        return x if host.dtype == wanted and not copy else maker.wrap(host.astype(wanted))

    def astype(x: Any, dtype: Any, /, *, copy: bool = True) -> Any:
        return cast(x, dtype, copy)

    def astype_(x: Any, dtype: Any, /, *, copy: bool = True, device: Any = None) -> Any:
        _no_device("astype", device)
        return cast(x, dtype, copy)

    maker.add(isdtype, result_type, can_cast, finfo, iinfo)
    maker.add(astype_ if maker.version >= "2023.12" else astype)


def _manipulation(maker: _Maker) -> None:
    wrap = maker.wrap

    def listed(name: str, arrays: Any) -> list[HostArray]:
        if type(arrays) not in (tuple, list) or not arrays:
            raise TypeError(f"{name}: expected a tuple or list of arrays, got {type(arrays)}")
        return [maker.host(name, array) for array in arrays]

    def broadcast_arrays(*arrays: Any) -> list[Any]:
        return [wrap(a) for a in _np.broadcast_arrays(*listed("broadcast_arrays", list(arrays)))]

    def broadcast_to(x: Any, /, shape: Any) -> Any:
        return wrap(_np.broadcast_to(maker.host("broadcast_to", x), _shape("broadcast_to", shape)))

    def concat(arrays: Any, /, *, axis: int | None = 0) -> Any:
        hosts = maker.promoted("concat", *listed("concat", arrays))
        return wrap(_np.concatenate(hosts, axis=_axis("concat", axis, none=True)))

    def stack(arrays: Any, /, *, axis: int = 0) -> Any:
        hosts = maker.promoted("stack", *listed("stack", arrays))
        return wrap(_np.stack(hosts, axis=_axis("stack", axis)))

    def expand_dims(x: Any, /, *, axis: int = 0) -> Any:
        return wrap(_np.expand_dims(maker.host("expand_dims", x), _axis("expand_dims", axis)))

    def flip(x: Any, /, *, axis: Any = None) -> Any:
        host = maker.host("flip", x)
        return wrap(_np.flip(host, axis=_axis("flip", axis, several=True, none=True)))

    def permute_dims(x: Any, /, axes: tuple[int, ...]) -> Any:
        host, axes = maker.host("permute_dims", x), _shape("permute_dims", axes)
        if len(axes) != host.ndim:
            raise ValueError(f"permute_dims: {len(axes)} axes for {host.ndim}")
        return wrap(_np.transpose(host, axes))

    def reshape(x: Any, /, shape: tuple[int, ...], *, copy: bool | None = None) -> Any:
        if type(shape) is not tuple:
            raise TypeError(f"reshape: a shape is a tuple, got {shape!r}")
        return wrap(maker.host("reshape", x).reshape(_shape("reshape", shape)))

    def roll(x: Any, /, shift: Any, *, axis: Any = None) -> Any:
        return wrap(_np.roll(maker.host("roll", x), shift, axis=axis))

    def squeeze(x: Any, /, axis: Any) -> Any:
        return wrap(_np.squeeze(maker.host("squeeze", x), _axis("squeeze", axis, several=True)))

    maker.add(
        broadcast_arrays,
        broadcast_to,
        concat,
        stack,
        expand_dims,
        flip,
        permute_dims,
        reshape,
        roll,
        squeeze,
    )


def _searching(maker: _Maker) -> None:
    wrap = maker.wrap

    def take(x: Any, indices: Any, /, *, axis: int | None = None) -> Any:
        host, index = maker.host("take", x), maker.host("take", indices, "integral")
        if index.ndim != 1:
            raise ValueError(f"take: indices have one axis, got {index.ndim}")
        if axis is None and host.ndim != 1:
            raise ValueError("take: axis is missing")
        return wrap(_np.take(host, index, axis=_axis("take", axis, none=True)))

    def where(condition: Any, x1: Any, x2: Any, /) -> Any:
        chosen = maker.host("where", condition, "bool")
        hosts = [maker.host("where", x) for x in (x1, x2)]
        return wrap(_np.where(chosen, *maker.promoted("where", *hosts)))

    def argmax(x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Any:
        axis = _axis("argmax", axis, none=True)
        return wrap(_np.argmax(maker.host("argmax", x, "real"), axis=axis, keepdims=keepdims))

    def argmin(x: Any, /, *, axis: int | None = None, keepdims: bool = False) -> Any:
        axis = _axis("argmin", axis, none=True)
        return wrap(_np.argmin(maker.host("argmin", x, "real"), axis=axis, keepdims=keepdims))

    def argsort(x: Any, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Any:
        host = maker.host("argsort", x, "real")
        if descending:
            order = _np.argsort(_np.flip(host, axis), axis=axis, kind="stable")
            return wrap(host.shape[axis] - 1 - _np.flip(order, axis))
        return wrap(_np.argsort(host, axis=axis, kind="stable"))

    def sort(x: Any, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Any:
        made = _np.sort(maker.host("sort", x, "real"), axis=axis, kind="stable")
        return wrap(_np.flip(made, axis) if descending else made)

    maker.add(take, where, argmax, argmin, argsort, sort)


def _statistics(maker: _Maker) -> None:
    wrap = maker.wrap

    def reduction(name: str, group: str) -> None:
        function = getattr(np, name)

        def reduce(x: Any, /, *, axis: Any = None, keepdims: bool = False) -> Any:
            host = maker.host(name, x, group)
            axis = _axis(name, axis, several=True, none=True)
            with np.errstate(all="ignore"):
                return wrap(function(host, axis=axis, keepdims=keepdims))

        setattr(maker.xp, name, reduce)

    def accumulation(name: str) -> None:
        function = getattr(np, name)

        def reduce(
            x: Any, /, *, axis: Any = None, dtype: Any = None, keepdims: bool = False
        ) -> Any:
            host = maker.host(name, x, "numeric")
            made = maker.dtype(dtype)
            if made is None:
                wide = {"i": "int64", "u": "uint64"}
                if maker.version < "2023.12":
                    wide |= {"f": "float64", "c": "complex128"}
                made = np.dtype(wide.get(host.dtype.kind, host.dtype))
            axis = _axis(name, axis, several=True, none=True)
            with np.errstate(all="ignore"):
                return wrap(function(host, axis=axis, dtype=made, keepdims=keepdims))

        setattr(maker.xp, name, reduce)

    def spread(name: str) -> None:
        function = getattr(np, name)

        def reduce(
            x: Any, /, *, axis: Any = None, correction: float = 0.0, keepdims: bool = False
        ) -> Any:
            host = maker.host(name, x, "real floating")
            axis = _axis(name, axis, several=True, none=True)
            return wrap(function(host, axis=axis, ddof=correction, keepdims=keepdims))

        setattr(maker.xp, name, reduce)

    for name in ("max", "min"):
        reduction(name, "real")
    reduction("mean", "real floating")
    for name in ("all", "any"):
        reduction(name, "any")
    for name in ("sum", "prod"):
        accumulation(name)
    for name in ("std", "var"):
        spread(name)


def _linalg(maker: _Maker) -> None:
    def pair(name: str, *arrays: Any) -> list[HostArray]:
        return maker.promoted(name, *(maker.host(name, array, "numeric") for array in arrays))

    def matmul(x1: Any, x2: Any, /) -> Any:
        with np.errstate(all="ignore"):
            return maker.wrap(operator.matmul(*pair("matmul", x1, x2)))

    def matrix_transpose(x: Any, /) -> Any:
        return maker.wrap(maker.host("matrix_transpose", x).mT)

    def tensordot(x1: Any, x2: Any, /, *, axes: Any = 2) -> Any:
        return maker.wrap(_np.tensordot(*pair("tensordot", x1, x2), axes=axes))

    def vecdot(x1: Any, x2: Any, /, *, axis: int = -1) -> Any:
        return maker.wrap(_np.vecdot(*pair("vecdot", x1, x2), axis=axis))

    maker.add(matmul, matrix_transpose, tensordot, vecdot)


def _recent(maker: _Maker) -> None:
    """Add what version 2023.12 has more."""
    wrap = maker.wrap

    def clip(x: Any, /, min: Any = None, max: Any = None) -> Any:
        host = maker.host("clip", x, "real")
        bounds: list[Any] = []
        for bound in (min, max):
            if bound is None:
                bounds.append(None)
                continue
            if type(bound) is not maker.array:
                bound = _scalar(maker, "clip", host.dtype, bound)
            bounds.append(maker.promoted("clip", host, maker.host("clip", bound, "real"))[1])
        return wrap(_np.clip(host, *bounds).astype(host.dtype))

    def cumulative_sum(
        x: Any, /, *, axis: int | None = None, dtype: Any = None, include_initial: bool = False
    ) -> Any:
        host = maker.host("cumulative_sum", x, "numeric")
        if axis is None and host.ndim != 1:
            raise ValueError("cumulative_sum: axis is missing")
        return wrap(
            _np.cumulative_sum(
                host, axis=axis, dtype=maker.dtype(dtype), include_initial=include_initial
            )
        )

    def moveaxis(x: Any, source: Any, destination: Any, /) -> Any:
        return wrap(_np.moveaxis(maker.host("moveaxis", x), source, destination))

    def repeat(x: Any, repeats: Any, /, *, axis: int | None = None) -> Any:
        times = repeats if type(repeats) is int else maker.host("repeat", repeats, "integral")
        return wrap(_np.repeat(maker.host("repeat", x), times, axis=axis))

    def tile(x: Any, repetitions: tuple[int, ...], /) -> Any:
        return wrap(_np.tile(maker.host("tile", x), _shape("tile", repetitions)))

    def searchsorted(x1: Any, x2: Any, /, *, side: Any = "left", sorter: Any = None) -> Any:
        order = None if sorter is None else maker.host("searchsorted", sorter, "integral")
        hosts = [maker.host("searchsorted", x, "real") for x in (x1, x2)]
        return wrap(_np.searchsorted(hosts[0], hosts[1], side=side, sorter=order))

    def unstack(x: Any, /, *, axis: int = 0) -> tuple[Any, ...]:
        host = _np.moveaxis(maker.host("unstack", x), axis, 0)
        return tuple(wrap(row) for row in host)

    maker.add(clip, cumulative_sum, moveaxis, repeat, tile, searchsorted, unstack)
