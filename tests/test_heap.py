"""What a step frees serves the next one: its pages do not come from the system again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Of some training steps the heap spares the pages by chance; of these arrays it never does.
STEPS = """
import resource
import numpy as np
import rnn_xp

def step():
    arrays = [np.ones(1 << 20, dtype=np.uint8) for _ in range(16)]

for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5)
"""


def faults_a_step(**settings: str) -> float:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "LD_PRELOAD"))}
    done = subprocess.run(
        [sys.executable, "-c", STEPS],
        env={**clean, **settings},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return float(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc's malloc")
def test_the_memory_of_a_step_serves_the_next_unless_the_user_set_thresholds() -> None:
    pages = 16 * (1 << 20) / os.sysconf("SC_PAGE_SIZE")
    assert faults_a_step() < 0.01 * pages
    assert faults_a_step(MALLOC_TRIM_THRESHOLD_="131072") > 0.5 * pages
