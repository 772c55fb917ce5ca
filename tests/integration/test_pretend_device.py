"""Everything that a GPU's user runs, on a device that refuses what a GPU refuses.

In a process of its own: PyTorch has one place for such a device and cannot give it back.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_tests(*words, **environment):
    """Run tests of the device in a process; give how it ended and what it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("cases", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_nothing_takes_tensors_of_two_devices_together(cases):
    """The tests of `tests/pretend` pass, each of them named where one does not."""
    code, output = run_tests("-m", cases, "tests/pretend")

    assert code == 0, output


def test_a_device_without_doubles_trains():
    """As Apple's MPS: a whole run from the command line, with evaluation and export."""
    # The shapes of the same run are checked above.
    unchecked = ("-o", "addopts=-p no:benchmark --strict-markers")
    words = (*unchecked, "-k", "run_is_started", "tests/pretend/test_commands.py")
    code, output = run_tests("-m", "not slow", *words, PRETEND_WITHOUT_DOUBLES="1")

    assert code == 0, output
    assert "passed" in output
