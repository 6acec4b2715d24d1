"""The CUDA kernels through NVIDIA's run-time compiler: no GPU and no driver is needed for it."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from named_cells import CELLS
from targets import need_module
from test_cuda_fused import RUN_HERE

from rnn_xp.engines.cuda import fused, persistent, training
from rnn_xp.engines.cuda.plan import BFLOAT16, THREADS, Limits, Work, plans

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
@pytest.mark.parametrize("source", [fused.source(), training.source()], ids=["fused", "training"])
def test_kernels_compile_without_spills(
    source: str, architecture: int, dtype: str, compiler: Compiler
) -> None:
    options = f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v", "-ftz=true"
    log = compiler.log(source, *options, *fused.options(dtype))
    names = set(re.findall(r"__global__ void (\w+)\(", source))
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
DTYPES = ("float32", "float16", "bfloat16")
MIDDLE = 512
# The largest hidden sizes at a batch of 16, of float32 and float16. Both forms of the RNN have the
# same plans.
LARGEST = {
    (90, "rnn_tanh"): {"float32": 2880},
    (90, "rnn_relu"): {"float16": 4224},
    (90, "lstm"): {"float32": 1440, "float16": 2112},
    (90, "gru"): {"float32": 1584, "float16": 2112},
    (90, "gru_reset_before"): {"float32": 1584, "float16": 2112},
    (80, "rnn_tanh"): {"float16": 3456},
    (80, "rnn_relu"): {"float32": 2240},
    (80, "lstm"): {"float32": 1120},
    (80, "gru"): {"float32": 1296},
    (80, "gru_reset_before"): {"float32": 1280},
}
# Elsewhere each cell in one dtype, but so that each cell meets each dtype, and so does each
# architecture.
OTHERS = [architecture for architecture in ARCHITECTURES if (architecture, "lstm") not in LARGEST]
CASES = [
    *((*which, dtype, hidden) for which, each in LARGEST.items() for dtype, hidden in each.items()),
    *((architecture, "lstm", "bfloat16", MIDDLE) for architecture in (80, 90)),
    *(
        (architecture, cell, DTYPES[(k + n) % (3 if architecture >= BFLOAT16 else 2)], MIDDLE)
        for k, architecture in enumerate(OTHERS)
        for n, cell in enumerate(RUN_HERE)
    ),
]


def test_each_cell_is_compiled_on_each_architecture_and_in_each_dtype() -> None:
    for place, of in ((0, ARCHITECTURES), (2, DTYPES)):
        assert {(case[place], case[1]) for case in CASES} == set(product(of, RUN_HERE))
    some = set(product(ARCHITECTURES, DTYPES)) - {(75, "bfloat16")}
    assert {(case[0], case[2]) for case in CASES} == some


@pytest.mark.parametrize(("architecture", "cell", "dtype", "hidden"), CASES)
def test_kernels_of_all_steps_fit_into_the_registers(
    architecture: int, cell: str, dtype: str, hidden: int, compiler: Compiler
) -> None:
    limits = Limits(*DEVICES[architecture], True, architecture)
    options = f"--gpu-architecture=sm_{architecture}", "--ptxas-options=-v", "-ftz=true"
    kind = persistent._KINDS[CELLS[cell]]
    work = Work(kind.gates, 32 if dtype == "float32" else 16)
    both = plans(work, hidden, 16, limits)
    assert both is not None
    assert hidden == MIDDLE or plans(work, hidden + 16, 16, limits) is None
    wrong: list[str] = []
    for part, plan in zip(persistent.PARTS, both, strict=True):
        assert plan.shared <= limits.shared
        name = f"{kind.name}_all_{part}"
        given = persistent.options(dtype, hidden, plan.units, plan.layouts)
        log = compiler.log(persistent.source(name), *options, *given)
        assert re.findall(r"Compiling entry function '(\w+)'", log) == [name]
        wrong += [f"{name}: {each}" for each in complaints(log)]
    assert not wrong


def test_a_spill_is_seen(compiler: Compiler) -> None:
    both = plans(Work((4,), 32), MIDDLE, 16, Limits(*DEVICES[90], True, 90))
    assert both is not None
    options = "--gpu-architecture=sm_90", "--ptxas-options=-v"
    given = persistent.options("float32", MIDDLE, both[0].units, both[0].layouts)
    text = persistent.source("lstm_all_forward").replace("(THREADS, 1)", "(2 * THREADS, 1)")
    log = compiler.log(text, *options, *given)  # half as many registers
    assert any("spill stores" in each for each in complaints(log))


def complaints(log: str) -> Iterator[str]:
    """Yield what a block of so many threads cannot have, and what the compiler warns of."""
    (registers,) = map(int, re.findall(r"Used (\d+) registers", log))
    if registers * THREADS > 65536:
        yield f"{registers} registers"
    yield from re.findall(r"[1-9]\d* bytes (?:stack frame|spill \w+)", log)
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


@pytest.mark.parametrize(
    "source", [fused.source(), training.source(), *map(persistent.source, persistent.NAMES)]
)
def test_any_locale_can_write_the_source(source: str) -> None:
    assert source.isascii()


def test_a_mistake_is_seen(compiler: Compiler) -> None:
    with pytest.raises(CompileError, match='identifier "nothing" is undefined'):
        compiler.log(fused.source().replace("step.c);", "nothing);"), *fused.options("float32"))
    with pytest.raises(CompileError, match="could not open source file"):
        compiler.log("#include <cmath>\n" + fused.source(), *fused.options("float32"))
