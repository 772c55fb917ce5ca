"""Every step function compiles to one graph, forward and backward."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.diffusion import compiled_steps

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def found():
    """Compile all cases once, in a process without shape checks and with warnings as errors.

    ``aot_eager`` traces both passes through fake tensors as the default backend does, so a graph
    break or a device read would raise; it leaves out code generation alone, which takes a C++
    compiler, 15 seconds, and imports that warn.
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", compiled_steps.__name__, "aot_eager"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", compiled_steps.cases())
def test_compiled_as_one_graph_it_is_the_same_function(found, name):
    """With a tensor of step indices; the same numbers and the same gradient."""
    assert found[name] == ""
