"""The GPU on which CuPy computes: what it is, and the versions that it runs with."""

from __future__ import annotations

import importlib
import shutil
import subprocess

from rnn_xp.backend import cuda_version
from rnn_xp.errors import named_line


def properties() -> dict[str, str]:
    """Return what the current device of CuPy is, and its driver."""
    runtime = importlib.import_module("cupy").cuda.runtime
    found = runtime.getDeviceProperties(runtime.getDevice())
    return {
        "device": found["name"].decode(),
        "compute capability": f"{found['major']}.{found['minor']}",
        "multiprocessors": str(found["multiProcessorCount"]),
        "memory": f"{found['totalGlobalMem'] / 1e9:.1f} GB",
        "driver": driver(),
        "driver's CUDA": cuda_version(runtime.driverGetVersion()),
    }


def versions() -> dict[str, str]:
    """Return those of CuPy's CUDA and compiler, and of cuDNN where PyTorch has it on a GPU."""
    cuda = importlib.import_module("cupy").cuda
    found = {
        "CUDA runtime": cuda_version(cuda.runtime.runtimeGetVersion()),
        "NVRTC": ".".join(map(str, cuda.nvrtc.getVersion())),
    }
    if not cudnn_missing():
        found["cuDNN"] = str(importlib.import_module("torch").backends.cudnn.version())
    return found


def driver() -> str:
    """Return the version of the NVIDIA driver, as its own tool says it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    return done.stdout.split()[0] if done.returncode == 0 and done.stdout.split() else "unknown"


def cudnn_missing() -> str:
    """Return in one line why PyTorch's cuDNN is not there; empty if it is."""
    try:
        torch = importlib.import_module("torch")
    except Exception as error:  # any: a broken installation
        return f"PyTorch cannot be imported: {named_line(error)}"
    return "" if torch.cuda.is_available() else f"PyTorch {torch.__version__} sees no GPU"
