"""`rnn-xp doctor`: that it passes what is right, and fails what is wrong."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cuda_on_cpu
import numpy as np
import pytest
import standin
from targets import need, need_module

from rnn_xp import backend as backends
from rnn_xp import recurrence
from rnn_xp.backend import Backend, select
from rnn_xp.cli import doctor as doctor_command
from rnn_xp.cli import main
from rnn_xp.doctor import around, engines, gpu, parity, plain, report, speed
from rnn_xp.engines import native
from rnn_xp.engines.cuda import engine as cuda
from rnn_xp.engines.cuda import fused, persistent, plan, training
from rnn_xp.engines.cuda.plan import Limits
from rnn_xp.engines.cuda.streams import one_by_one

NUMPY = select("numpy")
OF_THEIR_OWN = {"LSTM, peepholes": "weight_peephole", "LSTM, projection": "weight_hr"}
"""The weights that no other cell has."""


def doctor(*options: str | Path) -> int:
    return main(["doctor", "--quick", *map(str, options)])


def test_the_core_on_numpy_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(native, "choose", lambda: "switched off here")
    assert doctor("--backend", "numpy") == 0
    said = capsys.readouterr().out
    assert "compiled kernels for numpy: no: switched off here" in said
    assert len([line for line in said.splitlines() if line.endswith("PASS")]) == 4
    assert said.endswith("all 4 checks passed\n")


@pytest.mark.parametrize("name", ["numpy", "strict", "torch", "jax"])
def test_every_backend_passes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    need(name)
    assert doctor("--backend", name) == 0
    said = capsys.readouterr().out
    assert "FAIL" not in said
    for cell in (config.cell for config in parity.grid(quick=True, gpu=False)):
        assert f"{name:8}core            {cell:19}float32" in said


def test_the_whole_grid_passes_on_numpy() -> None:
    names, lacks = parity.dtypes(NUMPY)
    found = list(parity.checks(NUMPY, names, parity.grid(quick=False, gpu=False)))
    assert lacks == []
    assert all(check.passed for check in found)
    assert {check.config.cell for check in found} == {*parity.CELLS, *parity.CELLS_OF_THE_CORE}
    for cell, weight in OF_THEIR_OWN.items():
        errors = [set(check.errors) for check in found if check.config.cell == cell]
        assert len(errors) == 2  # in float32: NumPy's core in float64 is the reference
        assert all(f"d{weight}_l0" in each for each in errors)
        assert any({f"d{weight}_l1_reverse", "dstate[1]"} < each for each in errors)


@pytest.mark.parametrize("quick", [True, False])
def test_every_option_is_met(quick: bool) -> None:
    configs = parity.grid(quick=quick, gpu=False)
    for name in ("bidirectional", "ragged", "carried"):
        assert any(getattr(config, name) for config in configs)
    assert {config.layers for config in configs} == {1, 2}
    assert len(parity.grid(quick=False, gpu=True)) > len(parity.grid(quick=False, gpu=False))


# What is wrong must fail


def wrong(array: Any) -> Any:
    """Return an array with one number a thousandth off the largest."""
    made = np.array(array)
    made.flat[-1] += 1e-3 * np.abs(made).max()
    return made


Faulty = Callable[[dict[str, Any]], dict[str, Any]]
FAULTS: dict[str, Faulty] = {
    "an output": lambda r: {**r, "y": wrong(r["y"])},
    "a state": lambda r: {**r, "state[0]": wrong(r["state[0]"])},
    "a state's gradient": lambda r: {**r, "dstate[0]": wrong(r["dstate[0]"])},
    "a gradient": lambda r: {**r, "dweight_hh_l0": r["dweight_hh_l0"] * np.float32(1.01)},
    "NaN": lambda r: {**r, "dx": r["dx"] * np.float32("nan")},
    "a shape": lambda r: {**r, "y": r["y"][:1]},
    "a dtype": lambda r: {**r, "y": r["y"].astype(np.float16)},
    "zeros": lambda r: {**r, "y": r["y"] * 0},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(fault: str) -> None:
    config = parity.Config("LSTM", (5, 3, 4, 6), carried=True)
    layer, problem = engines.on_core(config.layer), parity.problem_of(config)
    found = parity.results(layer, problem, NUMPY, "float32")
    bound = parity.bound(config, "float32")

    def check(results: dict[str, Any]) -> parity.Check:
        errors = parity.errors_of(results, parity.reference(config), "float32")
        return parity.Check("numpy", "core", "float32", config, bound, errors)

    assert check(found).passed
    assert not check(FAULTS[fault](found)).passed


def tf32(array: Any) -> Any:
    """Return float32 numbers with the ten digits that TF32 keeps."""
    return (np.ascontiguousarray(array).view(np.uint32) & 0xFFFFE000).view(np.float32)


@pytest.mark.parametrize("cell", [*parity.CELLS, *parity.CELLS_OF_THE_CORE])
def test_products_in_tf32_are_seen(cell: str) -> None:
    """Weights of fewer digits do what the products do in TF32."""
    config = parity.Config(cell, (5, 3, 4, 37))
    problem = parity.problem_of(config)
    exact = {name: a * (1 + 2.0**-12) for name, a in problem.params.items()}
    problem = problem._replace(params=exact)
    layer = engines.on_core(config.layer)
    expected = parity.results(layer, problem, NUMPY, "float64")
    rounded = {name: tf32(a.astype(np.float32)) for name, a in exact.items()}
    found = parity.results(layer, problem._replace(params=rounded), NUMPY, "float32")
    errors = parity.errors_of(found, expected, "float32")
    assert max(errors.values()) > 3 * parity.bound(config, "float32")


def test_a_fault_in_the_core_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {c: parity.reference(c) for c in parity.grid(quick=True, gpu=False)}
    monkeypatch.setattr(parity, "reference", expected.__getitem__)
    true = recurrence.run_backward

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        gradients, dx, dstate = true(*args, **kwargs)
        return {**gradients, "weight_hh": wrong(gradients["weight_hh"])}, dx, dstate

    monkeypatch.setattr(recurrence, "run_backward", run_backward)
    assert doctor("--backend", "numpy") == 1
    said = capsys.readouterr().out
    assert "FAIL numpy, core, float32, LSTM 5,3,74,37, 2 levels" in said
    assert "dweight_hh_l" in said
    assert said.strip().endswith("checks FAILED")


def test_an_exception_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def results(*_: Any) -> Any:
        raise RuntimeError(f"no memory in {Path.home()}/secret/file.cu\nand more")

    parity.reference.cache_clear()
    for config in parity.grid(quick=True, gpu=False):
        parity.reference(config)
    monkeypatch.setattr(parity, "results", results)
    assert doctor("--backend", "numpy", "--json", tmp_path / "r.json") == 1
    assert "RuntimeError: no memory in" in capsys.readouterr().out
    found = json.loads((tmp_path / "r.json").read_text())
    *layers, step = found["checks"]
    assert {check["failure"] for check in layers} == {"RuntimeError: no memory in file.cu"}
    assert not any(check["passed"] for check in layers)
    assert step["passed"]


# CuPy, by the stand-in


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, kernels: Any, training_kernels: Any) -> Any:
    """The stand-in as the backend `cupy`."""
    monkeypatch.setattr(training, "choose", lambda: training.Training(training_kernels))
    need_module("ml_dtypes")
    standin.xp.start(need_module("cupy"), need_module("array_api_compat.cupy"))

    def make(device: str | None) -> Backend:
        number = int((device or "cuda:0").removeprefix("cuda:"))
        return Backend("cupy", standin.xp, standin.Device(number), f"cuda:{number}")

    entry = backends.BACKENDS["cupy"]._replace(make=make)
    monkeypatch.setitem(backends.BACKENDS, "cupy", entry)
    monkeypatch.setattr(backends, "_device_text", lambda _: "cuda:0 a stand-in")
    monkeypatch.setattr(gpu, "properties", lambda: {"device": f"stand-in {standin.xp.current}"})
    monkeypatch.setattr(gpu, "versions", lambda: {"NVRTC": "12.9"})
    monkeypatch.setattr(cuda, "choose", lambda: cuda.Cuda(fused.Fused(kernels)))
    monkeypatch.setattr(speed, "_GPU_SHAPES", ((3, 2, 4, 5),))
    return kernels


@pytest.mark.usefixtures("cupy")
def test_cupy_passes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert doctor("--backend", "cupy", "--json", tmp_path / "r.json") == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "r.json").read_text())
    ways = {(check["engine"], check["dtype"]) for check in found["checks"]}
    dtypes = ("float64", "float32", "float16", "bfloat16")
    assert ways == {
        (engine, dtype) for engine in ("core", "fused", "as chosen") for dtype in dtypes
    }
    assert [time["engine"] for time in found["times"]] == ["core", "fused", "plain loop"]
    assert found["cuda"] == {"device": "stand-in 0", "NVRTC": "12.9"}
    assert "cuDNN was not timed: PyTorch" in said


@pytest.mark.usefixtures("cupy")
def test_another_device_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = []

    def cudnn_times(_: Any, device: str) -> list[speed.Time]:
        asked.append(device)
        return []

    monkeypatch.setattr(doctor_command, "cudnn_missing", lambda: "")
    monkeypatch.setattr(speed, "cudnn_times", cudnn_times)
    # The stand-in refuses arrays of another device than the current one.
    assert doctor("--backend", "cupy", "--device", "cuda:1", "--json", tmp_path / "r.json") == 0
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["cuda"]["device"] == "stand-in 1"
    assert all(check["passed"] for check in found["checks"])
    assert not any(time["failure"] for time in found["times"])
    assert asked == ["cuda:1"]
    assert standin.xp.current == 0


@pytest.mark.parametrize(
    ("named", "said"), [([], "none"), (["--backend", "numpy", "torch"], "numpy torch")]
)
def test_a_device_is_one_backends(
    named: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(*named, "--device", "cuda:1") == 2
    assert capsys.readouterr().err == (
        "rnn-xp: error: --device cuda:1 is a device of one backend: expected one --backend, "
        f"got {said}\n"
    )


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor("--backend", "numpy", "--device", "cuda:1") == 1
    assert "no: NumPy has no device 'cuda:1'" in capsys.readouterr().out


def test_what_is_known_of_the_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    held = {"name": b"Test GPU", "major": 9, "minor": 0, "multiProcessorCount": 132}
    runtime = SimpleNamespace(
        getDevice=lambda: 1,
        getDeviceProperties=lambda k: {**held, "totalGlobalMem": k * 85_000_000_000},
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 12090,
    )
    nvrtc = SimpleNamespace(getVersion=lambda: (12, 9))
    torch = SimpleNamespace(
        cuda=SimpleNamespace(is_available=lambda: True),
        backends=SimpleNamespace(cudnn=SimpleNamespace(version=lambda: 91900)),
    )
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime, nvrtc=nvrtc))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "torch", torch)
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 580.159.04\necho 580.159.04\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu.properties() == {
        "device": "Test GPU",
        "compute capability": "9.0",
        "multiprocessors": "132",
        "memory": "85.0 GB",
        "driver": "580.159.04",
        "driver's CUDA": "13.0",
    }
    assert gpu.versions() == {"CUDA runtime": "12.9", "NVRTC": "12.9", "cuDNN": "91900"}
    tool.unlink()
    assert gpu.driver() == "unknown"
    torch.cuda.is_available = lambda: False
    torch.__version__ = "2.13"
    assert "cuDNN" not in gpu.versions()


@pytest.mark.parametrize("cell", OF_THEIR_OWN)
@pytest.mark.usefixtures("cupy")
def test_cells_without_kernels_pass_on_cupy(cell: str) -> None:
    chosen = select("cupy")
    names, _ = parity.dtypes(chosen)
    configs = [c for c in parity.grid(quick=False, gpu=True) if c.cell == cell]
    found = list(parity.checks(chosen, names, configs))
    assert {(check.engine, check.dtype) for check in found} == {("core", name) for name in names}
    assert [report.failure_line(check) for check in found if not check.passed] == []
    assert len(found) == 2 * len(names)
    assert not list(parity.left_out(chosen, names, configs))


@pytest.mark.usefixtures("cupy")
def test_bfloat16_is_left_out_where_it_is_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin.Device, "compute_capability", "75")
    names, lacks = parity.dtypes(select("cupy"))
    assert names == ["float64", "float32", "float16"]
    assert lacks == ["bfloat16 is multiplied from compute capability 8.0 on, here is 7.5"]


def test_every_dtype_holds_the_numbers_of_a_problem() -> None:
    brain = np.dtype(need_module("ml_dtypes").bfloat16)
    for config in parity.grid(quick=False, gpu=True):
        problem = parity.problem_of(config)
        for array in (problem.x, problem.dy, *problem.params.values()):
            for dtype in (np.float16, brain):
                assert np.array_equal(array.astype(dtype).astype(np.float64), array)


@pytest.fixture
def whole(cupy: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return what makes the engine with kernels of all steps, from their source."""
    folder = tmp_path_factory.mktemp("whole")

    def made(source: Callable[[str], str], limits: Limits) -> Any:
        library = cuda_on_cpu.Library(source, folder)
        kernels = persistent.Persistent(library.kernels(), lambda: limits)
        # Not `one_by_one` itself, which says that nothing runs at once.
        return cuda.Cuda(fused.Fused(cupy), kernels, partial(one_by_one))

    return made


def test_all_that_can_run_on_a_gpu_is_checked(
    whole: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = whole(persistent.source, Limits(4, 60000, True))
    monkeypatch.setattr(cuda, "choose", lambda: engine)
    monkeypatch.setattr(plan, "BEGIN", 0.5)  # so that few steps are enough to run levels at once
    monkeypatch.setattr(plan, "RUN", 0.0)
    deep = parity.Config("GRU", (12, 3, 4, 5), 2)
    small = [parity.Config("GRU", (12, 3, 4, 5), bidirectional=True), deep]
    large = parity.Config("GRU", (3, 2, 4, 300))
    monkeypatch.setattr(parity, "grid", lambda **_: [*small, large])
    assert doctor("--backend", "cupy") == 0
    said = capsys.readouterr().out
    for name in ("fused", "persistent", "persistent pair", "persistent wave"):
        for dtype in ("float32", "float16", "bfloat16"):
            assert re.search(rf"cupy +{name} +GRU +{dtype} .* PASS", said), (name, dtype)
    (line,) = [line for line in said.splitlines() if "300 units" in line and "float32" in line]
    assert "not all steps in one kernel: it does not fit 4 multiprocessors of 60000 bytes" in line


def test_a_kernel_that_goes_wrong_when_tried_fails(
    whole: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def swapped(name: str) -> str:
        right, wrong = "x[0] + h[0], x[1] + h[1], x[2]", "x[1] + h[1], x[0] + h[0], x[2]"
        text = persistent.source(name)
        assert right in text
        return text.replace(right, wrong)

    engine = whole(swapped, Limits(4, 60000, True))
    monkeypatch.setattr(cuda, "choose", lambda: engine)
    monkeypatch.setattr(parity, "grid", lambda **_: [parity.Config("GRU", (5, 3, 4, 5))])
    assert doctor("--backend", "cupy", "--json", tmp_path / "r.json") == 1
    said = capsys.readouterr().out
    assert "FAIL the float32 CUDA kernel of all steps of GRU goes wrong on this device" in said
    assert "kernels FAILED when tried" in said
    found = json.loads((tmp_path / "r.json").read_text())
    assert any("off by" in each for each in found["warnings"])
    assert any("it went wrong when tried" in each for each in found["notes"])


@pytest.mark.parametrize("cell", plain.LOOPS)
def test_the_plain_loops_are_right(cell: str) -> None:
    config = parity.Config(cell, (6, 3, 4, 5))
    problem = parity.problem_of(config)
    found = plain.LOOPS[cell](np, problem.params, problem.x, problem.dy)
    expected = {k: a for k, a in parity.reference(config).items() if "state" not in k}
    assert found.keys() == expected.keys()
    assert max(parity.errors_of(found, expected, "float64").values()) < 1e-13


def test_a_wrong_kernel_fails(
    cupy: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compiled(dtype: str) -> Any:
        def named(name: str) -> Any:
            def launched(grid: Any, block: Any, args: Any) -> None:
                cupy(dtype)(name)(grid, block, args)
                if name == "gru_forward":
                    y = args[-1]._host
                    y[args[1], ...] *= 1.01

            return launched

        return named

    monkeypatch.setattr(cuda, "choose", lambda: cuda.Cuda(fused.Fused(compiled)))
    assert doctor("--backend", "cupy") == 1
    lines = capsys.readouterr().out.splitlines()
    failed = [line for line in lines if line.startswith("FAIL")]
    assert failed
    assert all("cupy, fused, float" in line and " GRU 5," in line for line in failed)
    assert any(line.endswith("FAIL") and line.split()[1] == "fused" for line in lines)


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("adam", {"y weight", "y mean weight"}),
        ("squares", {"y norm", "dweight", "dbias"}),
        ("limit", {"y norm"}),
        ("scaled", {"dweight", "dbias"}),
        ("moved", {"y mean weight"}),
        ("powers", {"y loss"}),
        ("entropy", {"y loss"}),
    ],
)
@pytest.mark.usefixtures("cupy")
def test_a_wrong_kernel_around_the_layers_fails(
    name: str, arrays: set[str], training_kernels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(dtype: str) -> Any:
        def named(found: str) -> Any:
            def launched(grid: Any, block: Any, args: Any) -> None:
                training_kernels(dtype)(found)(grid, block, args)
                if found == name:
                    made = args[{"adam": -3, "limit": -2}.get(name, -1)]._host
                    made *= made.dtype.type(2)

            return launched

        return named

    chosen = select("cupy")
    names, _ = parity.dtypes(chosen)
    assert all(check.passed for check in around.checks(chosen, names))
    monkeypatch.setattr(training, "choose", lambda: training.Training(compiled))
    for check in around.checks(chosen, ["float32", "float16", "bfloat16"]):
        assert not check.passed
        assert {key for key, error in check.errors.items() if error > check.bound} >= arrays
        assert "around the layers, 257 rows of 80 classes: " in report.failure_line(check)


# Speed, and what is written


def test_pytorch_is_timed_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = need_module("torch")
    monkeypatch.setenv("CUPY_TF32", "1")
    torch.backends.cudnn.allow_tf32 = False
    seen = []
    for time in speed.cudnn_times([parity.Config("GRU", (3, 2, 4, 5))], "cpu"):
        seen.append(torch.backends.cudnn.allow_tf32)
        assert time.failure == ""
        assert time.milliseconds > 0
    assert seen == [True]
    assert not torch.backends.cudnn.allow_tf32


def test_what_cannot_be_timed_says_why() -> None:
    need("torch")
    found = list(speed.cudnn_times([parity.Config("GRU", (3, 2, 4, 5))], "nowhere"))
    assert found[0].failure.startswith("RuntimeError: ")
    assert "RuntimeError: " in report.time_line(found[0])


@pytest.fixture
def no_jax(monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy alone can be used, and JAX cannot."""

    def make(_: str | None) -> Any:
        raise backends.BackendError("there is none: do this")

    entry = backends.BACKENDS["jax"]._replace(make=make)
    monkeypatch.setitem(backends.BACKENDS, "jax", entry)


@pytest.mark.usefixtures("no_jax")
def test_a_backend_that_is_named_and_cannot_be_used_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert doctor("--backend", "jax") == 1
    said = capsys.readouterr().out
    assert "no: there is none: do this" in said
    assert said.endswith("\n\nno backend was checked: none can be used\n")
    assert "Errors" not in said
    assert "Forward" not in said
    assert doctor("--backend", "numpy", "jax") == 1
    said = capsys.readouterr().out
    assert re.search(r"all \d+ checks passed, but jax cannot be used$", said.strip())


@pytest.mark.usefixtures("no_jax")
def test_a_backend_that_is_not_named_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    two = {name: backends.BACKENDS[name] for name in ("numpy", "jax")}
    monkeypatch.setattr(doctor_command, "BACKENDS", two)
    assert doctor() == 0
    said = capsys.readouterr().out
    assert "no: there is none: do this" in said
    assert said.endswith("checks passed\n")


def test_jax_without_float64_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    jax = need_module("jax")
    if jax.config.jax_enable_x64:
        pytest.skip("JAX has float64 here")
    names, lacks = parity.dtypes(select("jax"))
    assert names == ["float32"]
    assert "JAX_ENABLE_X64" in lacks[0]


def test_the_report(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    assert doctor("--backend", "numpy", "--json", path) == 0
    text = path.read_text()
    assert str(Path.home()) not in text
    found = json.loads(text)
    assert found["backends"][0]["name"] == "numpy"
    assert found["conclusion"].startswith("all ")
    assert set(found["checks"][0]["errors"]) >= {"y", "state[0]", "dx", "dweight_ih_l0"}
    assert all(time["milliseconds"] > 0 for time in found["times"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in /opt/someone/lib/x.so: no", "in x.so: no"),
        (r"in C:\Users\someone\lib\x.dll", "in x.dll"),
        ("'/home/someone/a b'", "'a b'"),
        ("see https://example.org/a/b/c", "see https://example.org/a/b/c"),
        ("x and/or y", "x and/or y"),
        ("float32/float64", "float32/float64"),
    ],
)
def test_folders_are_left_out(text: str, expected: str) -> None:
    assert report.without_folders(text) == expected


def test_an_old_report_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")
    assert doctor("--backend", "numpy", "--json", path) == 2
    assert path.read_text() == "old"
    assert capsys.readouterr().err.startswith("rnn-xp: error: ")
    assert doctor("--backend", "numpy", "--json", path, "--force") == 0


@pytest.mark.parametrize("options", [["--backend", "nothing"], ["--json", "/nowhere/r.json"]])
def test_wrong_options(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = doctor(*options)
    except SystemExit as error:
        code = int(str(error.code))
    assert code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
