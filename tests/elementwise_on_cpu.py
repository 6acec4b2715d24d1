"""CUDA kernels whose threads do not meet, compiled for the processor: the same source, in a loop.

There are no barriers in such a kernel, so that one thread after the other may run. What this does
not show: alignment, the rounding of the device's tanh, and speed.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import standin
from targets import need_compiler

from rnn_xp.engines.cuda import fused

BEFORE = """
#include <math.h>
#include <stddef.h>
#include <string.h>
#include <utility>
#define __global__
#define __device__
#define __forceinline__ inline
#define asm(...)
struct Place { unsigned x, y; };
static Place blockIdx, threadIdx, blockDim, gridDim;
static float from_half(unsigned short a) { _Float16 h; memcpy(&h, &a, 2); return (float)h; }
static unsigned short to_half(float a) {
  _Float16 h = (_Float16)a; unsigned short b; memcpy(&b, &h, 2); return b;
}
"""
AFTER = """
template <class A> struct Code { static constexpr char value = 'q'; };
template <class A> struct Code<A*> { static constexpr char value = 'P'; };
template <> struct Code<const bool*> { static constexpr char value = '?'; };
template <> struct Code<const long long*> { static constexpr char value = 'L'; };
template <> struct Code<double> { static constexpr char value = 'd'; };
template <> struct Code<double*> { static constexpr char value = 'D'; };
template <> struct Code<const double*> { static constexpr char value = 'D'; };
template <class... A, size_t... K>
static void launch(void (*kernel)(A...), void** args, std::index_sequence<K...>) {
  for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++)
    for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
      for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++)
        kernel(*(A*)args[K]...);
}
template <class... A>
static void launch(void (*kernel)(A...), unsigned x, unsigned y, unsigned threads, void** args) {
  gridDim = {x, y};
  blockDim = {threads, 1};
  launch(kernel, args, std::index_sequence_for<A...>());
}
template <class... A> static const char* codes(void (*)(A...)) {
  static const char made[] = {Code<A>::value..., 0};
  return made;
}
"""
EACH = """
extern "C" void {0}_launch(unsigned x, unsigned y, unsigned threads, void** args) {{
  launch({0}, x, y, threads, args);
}}
extern "C" const char* {0}_codes() {{ return codes({0}); }}
"""


class Kernel:
    """As `cupy.RawKernel`, on the stand-in's arrays."""

    def __init__(self, library: Any, name: str, dtype: str) -> None:
        self.name, self._dtype = name, dtype
        self._launch = getattr(library, f"{name}_launch")
        codes = getattr(library, f"{name}_codes")
        codes.restype = ctypes.c_char_p
        self._codes = codes().decode()

    def __call__(self, grid: tuple[int, ...], block: tuple[int, ...], args: Any) -> None:
        assert len(args) == len(self._codes), (self.name, len(args), self._codes)
        assert (len(grid), len(block)) == (2, 1)
        assert block[0] <= 1024
        standin.xp.launched(self.name, *args)
        values = [self._value(a, code) for a, code in zip(args, self._codes, strict=True)]
        cells = [
            (ctypes.c_double if code == "d" else ctypes.c_int64)(value)
            for value, code in zip(values, self._codes, strict=True)
        ]
        pointers = (ctypes.c_void_p * len(cells))(*map(ctypes.addressof, cells))
        self._launch(*grid, *block, pointers)

    def _value(self, value: Any, code: str) -> Any:
        if code in "qd":
            assert type(value) is (int if code == "q" else float), (self.name, value)
            return value
        if type(value) is int and value == 0:  # a null pointer; None is none in every CuPy
            return 0
        assert isinstance(value, standin.Array), (self.name, type(value))
        dtype = {"?": "bool", "L": "int64", "D": "float64", "P": self._dtype}[code]
        assert value.dtype == dtype, (self.name, value.dtype)
        assert value.flags.c_contiguous, self.name
        return int(value._host.ctypes.data)


def kernels(source: str, folder: Path) -> Callable[[str], Callable[[str], Kernel]]:
    """Return the kernels of a source, from a dtype's name and a kernel's."""
    need_compiler()
    names = re.findall(r"__global__ void (\w+)\(", source)

    @cache
    def compiled(dtype: str) -> Callable[[str], Kernel]:
        path = folder / f"{dtype}.cpp"
        path.write_text(BEFORE + source + AFTER + "".join(map(EACH.format, names)))
        flags = ["-std=c++17", "-O1", "-fPIC", "-shared", "-w", *fused.options(dtype)[1:]]
        subprocess.run(["g++", *flags, path, "-o", path.with_suffix(".so")], check=True)
        library = ctypes.CDLL(str(path.with_suffix(".so")))
        return cache(lambda name: Kernel(library, name, dtype))

    return compiled
