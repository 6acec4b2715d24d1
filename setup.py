"""Builds the compiled kernels where there is a compiler; all else stands in pyproject.toml."""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

FOLDER = Path("rnn_xp/engines/kernels")
FLAGS = ["-std=c++17", "-Os", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-fno-asynchronous-unwind-tables", "-pthread"]
FLAGS += ["-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Wno-cast-function-type"]

# A file for each instruction set, with its flags. Nothing else may be compiled with these: the
# module must load on a processor that has none of them.
X86 = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx2", "-mfma"],
}
SETS = X86 if platform.machine().lower() in ("x86_64", "amd64") else {}
# Intel's processors from Skylake to Cascade Lake run a loop slowly whose branch crosses a boundary
# of 32 bytes (Intel, "Mitigations for Jump Conditional Code Erratum", 2019). GNU's name of the
# flag, and Clang's.
BRANCHES = ("-Wa,-mbranches-within-32B-boundaries", "-mbranches-within-32B-boundaries")


def first_taken(compiler: Any, flags: tuple[str, ...]) -> list[str]:
    """Return the first flag that the compiler takes, or none."""
    with TemporaryDirectory() as folder:
        source = Path(folder, "empty.cpp")
        source.touch()
        for flag in flags:
            try:
                compiler.compile([str(source)], output_dir=folder, extra_postargs=[flag])
            except CompileError:
                continue
            return [flag]
    return []


class BuildKernels(build_ext):
    """Compiles each source with the flags of its instruction set."""

    def build_extension(self, ext: Extension) -> None:
        """Compile the sources and link them."""
        defines = [(f"RNN_XP_{name.upper()}", None) for name in SETS]
        branches = first_taken(self.compiler, BRANCHES) if SETS else []

        def compiled(source: str) -> list[str]:
            own = SETS.get(Path(source).stem.removeprefix("kernels_"), [])
            made: list[str] = self.compiler.compile(
                [source],
                output_dir=self.build_temp,
                macros=defines,
                include_dirs=self.include_dirs,
                extra_postargs=[*FLAGS, *branches, *own],
                depends=ext.depends,
            )
            return made

        with ThreadPoolExecutor(os.cpu_count()) as side_by_side:
            objects = [path for made in side_by_side.map(compiled, ext.sources) for path in made]
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            extra_postargs=["-pthread", *([] if platform.system() == "Darwin" else ["-s"])],
            target_lang="c++",
        )


sources = ["module", "pool", "kernels_portable", *(f"kernels_{name}" for name in SETS)]
kernels = Extension(
    "rnn_xp.engines._kernels",
    [str(FOLDER / f"{name}.cpp") for name in sources],
    depends=[str(path) for path in sorted(FOLDER.glob("*.h"))],
    py_limited_api=True,
    optional=True,  # without a compiler the package is installed all the same
)
setup(
    ext_modules=[kernels],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
