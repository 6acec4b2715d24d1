"""The CUDA kernels through NVIDIA's run-time compiler: no GPU and no driver is needed for it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from targets import need_module

from rnn_xp.accelerate.cuda import fused, persistent
from rnn_xp.accelerate.cuda.plan import BFLOAT16, THREADS, Limits, Work, plans
from rnn_xp.cells import CELLS

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


# Multiprocessors, and bytes of shared memory that a block may have.
DEVICES = {
    75: (40, 65536),
    80: (108, 166912),
    86: (84, 101376),
    89: (128, 101376),
    90: (132, 232448),
    100: (148, 232448),
    120: (170, 101376),
}
EVERYWHERE = {"lstm": (512,)}
ON_ONE = {"lstm": (128, 512), "gru": (512,), "gru_reset_before": (256,), "rnn_tanh": (512,)}
MOST_SPILLED = 96
"""Bytes of a thread: what seldom changes, beside 64 registers of weights."""


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_of_all_steps_fit_into_the_registers(
    architecture: int, dtype: str, compiler: Compiler
) -> None:
    if dtype == "bfloat16" and architecture < BFLOAT16:
        pytest.skip("multiplies no bfloat16")
    limits = Limits(*DEVICES[architecture], True, architecture)
    options = f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v", "-ftz=true"
    wrong: list[str] = []
    for cell, sizes in (ON_ONE if architecture == 90 else EVERYWHERE).items():
        kind = persistent._KINDS[CELLS[cell]]
        for hidden in sizes:
            work = Work(kind.gates, 32 if dtype == "float32" else 16)
            both = plans(work, hidden, 16, limits)
            assert both is not None
            for part, plan in zip(persistent.PARTS, both, strict=True):
                name = f"{kind.name}_all_{part}"
                given = persistent.options(dtype, hidden, plan.units, plan.layouts)
                log = compiler.log(persistent.source(name), *options, *given)
                assert re.findall(r"Compiling entry function '(\w+)'", log) == [name]
                wrong += [f"{name} {hidden}: {each}" for each in complaints(log)]
    assert not wrong


def complaints(log: str) -> Iterator[str]:
    """Yield what a block of so many threads cannot have, and what the compiler warns of."""
    (registers,) = map(int, re.findall(r"Used (\d+) registers", log))
    if registers * THREADS > 65536:
        yield f"{registers} registers"
    spilled = max(map(int, re.findall(r"(\d+) bytes spill stores", log)))
    if spilled > MOST_SPILLED:
        yield f"{spilled} bytes spilled"
    yield from re.findall(r"\d+ bytes smem", log)  # all of it is dynamic
    yield from re.findall(r"warning #.*|ptxas warning.*", log)


@pytest.mark.parametrize(
    "access",
    [
        *(f"ld.relaxed.gpu.global.{width}" for width in ("v4.u32", "u32", "u16")),
        *(f"st.relaxed.gpu.global.{width}" for width in ("u32", "u16")),
    ],
)
def test_what_blocks_give_each_other_is_read_and_written_as_such(access: str) -> None:
    # Nothing here can see them weakened: on the processor the shim's own stand for them.
    before, _, _ = persistent.source("lstm_all_forward").partition('#define HALVES "bf16.bf16"')
    assert f'asm volatile("{access} ' in before


@pytest.mark.parametrize("source", [fused.source(), *map(persistent.source, persistent.NAMES)])
def test_any_locale_can_write_the_source(source: str) -> None:
    assert source.isascii()


def test_a_mistake_is_seen(compiler: Compiler) -> None:
    with pytest.raises(CompileError, match='identifier "nothing" is undefined'):
        compiler.log(fused.source().replace("step.c);", "nothing);"), *fused.options("float32"))
    with pytest.raises(CompileError, match="could not open source file"):
        compiler.log("#include <cmath>\n" + fused.source(), *fused.options("float32"))
