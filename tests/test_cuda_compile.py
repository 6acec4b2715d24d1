"""The CUDA kernels through NVIDIA's run-time compiler: no GPU and no driver is needed for it."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import pytest
from targets import need_module

from rnn_xp.accelerate.cuda import fused, persistent
from rnn_xp.accelerate.cuda.plan import BFLOAT16

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
MOST_REGISTERS = 64
"""A block has up to 256 threads: eight of them fit on a multiprocessor of 65,536 registers."""


class CompileError(Exception):
    """What the compiler says."""


class Compiler:
    """NVRTC of NVIDIA's wheel."""

    def __init__(self) -> None:
        folder = Path(next(iter(need_module("nvidia.cuda_nvrtc").__path__)))
        self._library = ctypes.CDLL(str(next(folder.glob("lib/libnvrtc.so.*"))))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def log(self, source: str, *options: str) -> str:
        """Compile; return what the compiler prints."""
        program = ctypes.c_void_p()
        text = source.encode()
        self._library.nvrtcCreateProgram(ctypes.byref(program), text, b"fused.cu", 0, None, None)
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = self._library.nvrtcCompileProgram(program, len(options), given)
        size = ctypes.c_size_t()
        self._library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self._library.nvrtcGetProgramLog(program, log)
        self._library.nvrtcDestroyProgram(ctypes.byref(program))
        if failed:
            raise CompileError(log.value.decode())
        return log.value.decode()


@pytest.fixture(scope="module")
def compiler() -> Any:
    return Compiler()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_without_spills(architecture: int, dtype: str, compiler: Compiler) -> None:
    options = f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v", "-ftz=true"
    log = compiler.log(fused.source(), *options, *fused.options(dtype))
    names = set(re.findall(r"__global__ void (\w+)\(", fused.source()))
    assert set(re.findall(r"Compiling entry function '(\w+)'", log)) == names
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", log)
    assert len(spills) >= len(names)
    assert {number for spill in spills for number in spill} == {"0"}
    assert max(map(int, re.findall(r"Used (\d+) registers", log))) <= MOST_REGISTERS
    assert "warning" not in log


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_of_all_steps_compile_without_spills(
    architecture: int, dtype: str, compiler: Compiler
) -> None:
    if dtype == "bfloat16" and architecture < BFLOAT16:
        pytest.skip("multiplies no bfloat16")
    options = f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v", "-ftz=true"
    log = compiler.log(persistent.source(), *options, *fused.options(dtype))
    names = {
        f"{cell}_all_{part}"
        for cell in ("tanh", "relu", "lstm", "gru", "reset")
        for part in ("forward", "backward")
    }
    assert set(re.findall(r"Compiling entry function '(\w+)'", log)) == names
    spills = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+)", log)
    assert len(spills) >= len(names)
    assert {number for spill in spills for number in spill} == {"0"}
    # A block of 256 threads has a multiprocessor to itself: up to 255 would do.
    assert max(map(int, re.findall(r"Used (\d+) registers", log))) <= 168
    assert not re.findall(r"\d+ bytes smem", log)  # all of it is dynamic
    assert "warning" not in log


def test_the_blocks_meet_by_release_and_acquire() -> None:
    # Nothing here can see them weakened: on the processor the shim's own stand for them.
    before, _, _ = persistent.source().partition("#else")
    assert (
        'asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");'
        in before
    )
    assert 'asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(count) :' in before


@pytest.mark.parametrize("source", [fused.source(), persistent.source()])
def test_any_locale_can_write_the_source(source: str) -> None:
    assert source.isascii()


def test_a_mistake_is_seen(compiler: Compiler) -> None:
    with pytest.raises(CompileError, match='identifier "nothing" is undefined'):
        compiler.log(fused.source().replace("step.c);", "nothing);"), *fused.options("float32"))
    with pytest.raises(CompileError, match="could not open source file"):
        compiler.log("#include <cmath>\n" + fused.source(), *fused.options("float32"))
