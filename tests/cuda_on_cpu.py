"""CUDA kernels whose blocks meet, compiled for the processor: the same source, on `cuda/grid.h`.

What this does not show: whether all blocks are resident, alignment, the rounding of the device's
functions, and speed.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import standin
from targets import need_compiler

from rnn_xp.engines.cuda import persistent

HERE = Path(__file__).parent / "cuda"
TEXT = """#include "grid.h"
{source}
extern "C" bool launch(void** args, unsigned grid, unsigned block, size_t shared, unsigned order) {{
  return grid::call({name}, args, grid, block, shared, order);
}}
extern "C" const char* codes() {{ return grid::codes({name}); }}
"""
# Some systems' compilers check that no jump leaves a stack for another, as fibers do.
FLAGS = ("-std=c++20", "-O1", "-U_FORTIFY_SOURCE", "-w", f"-I{HERE}")
DTYPES = {"?": "bool"}


class Deadlock(Exception):
    """No thread can go on."""


class Kernel:
    """As `cupy.RawKernel`, on the stand-in's arrays; `order` is that of `grid.h`."""

    def __init__(self, library: Any, name: str, dtype: str, order: int) -> None:
        self.name, self._order = name, order
        self._dtypes = {**DTYPES, "P": dtype}
        self._launch = library.launch
        self._launch.restype = ctypes.c_bool
        library.codes.restype = ctypes.c_char_p
        self._codes = library.codes().decode()

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
        assert len(args) == len(self._codes), (self.name, len(args), self._codes)
        assert (len(grid), len(block)) == (1, 1)
        assert block[0] % 32 == 0
        standin.xp.launched(self.name, *args)
        values = [self._value(a, code) for a, code in zip(args, self._codes, strict=True)]
        cells = [ctypes.c_int64(value) for value in values]
        pointers = (ctypes.c_void_p * len(cells))(*map(ctypes.addressof, cells))
        shared = ctypes.c_size_t(shared_mem)
        if not self._launch(pointers, grid[0], block[0], shared, self._order):
            raise Deadlock(self.name)

    def _value(self, value: Any, code: str) -> int:
        if code == "q":
            assert type(value) is int, (self.name, value)
            return value
        if type(value) is int and value == 0:  # a null pointer; None is none in every CuPy
            return 0
        assert isinstance(value, standin.Array), (self.name, type(value))
        assert value.dtype == self._dtypes[code], (self.name, value.dtype)
        assert value.flags.c_contiguous, self.name
        return int(value._host.ctypes.data)


def dtype_of(options: tuple[str, ...]) -> str:
    """Return the dtype that a source is compiled for."""
    bits = int(next(name for name in options if name.startswith("-DBITS=")).partition("=")[2])
    return "bfloat16" if "-DBRAIN" in options else f"float{bits}"


class Library:
    """Kernels, each compiled when it is first asked for; `source` gives that of a kernel."""

    def __init__(self, source: Callable[[str], str], folder: Path, *flags: str) -> None:
        self._source, self._folder, self._flags = source, folder, flags
        self._loaded: dict[tuple[str, ...], Any] = {}

    def kernels(self, order: int = 0) -> persistent.Compiled:
        """Return the kernels, as `persistent.compiled`; `order` is that of `grid.h`."""

        def compiled(name: str, options: tuple[str, ...]) -> Kernel:
            given = name, *options[1:]
            if given not in self._loaded:
                self._loaded[given] = ctypes.CDLL(str(self._compile(*given)))
            return Kernel(self._loaded[given], name, dtype_of(options), order)

        return cache(compiled)

    def _compile(self, name: str, *options: str) -> Path:
        """Compile a kernel; return where its library lies."""
        need_compiler()
        path, flags = self._folder / f"{len(self._loaded)}.cpp", (*FLAGS, "-fPIC", *self._flags)
        path.write_text(TEXT.format(source=self._source(name), name=name))
        made, grid = path.with_suffix(".so"), once("grid.cpp", self._folder.parent, *flags)
        subprocess.run(["g++", *flags, "-shared", *options, path, grid, "-o", made], check=True)
        return made


@cache
def once(name: str, folder: Path, *flags: str) -> Path:
    """Compile a source that many kernels share; return where it lies."""
    made = Path(mkdtemp(prefix="once", dir=folder)) / f"{name}.o"
    subprocess.run(["g++", *flags, "-c", HERE / name, "-o", made], check=True)
    return made
