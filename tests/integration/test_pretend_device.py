"""Everything that a GPU's user runs, on a device that refuses what a GPU refuses.

In a process of its own: PyTorch has one place for such a device and cannot give it back.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("cases", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_nothing_takes_tensors_of_two_devices_together(cases):
    """The tests of `tests/pretend` pass, each of them named where one does not."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", cases,
         "tests/pretend"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
