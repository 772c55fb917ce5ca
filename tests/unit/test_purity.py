"""The mathematics needs torch alone."""

import subprocess
import sys
from pathlib import Path

import mvczigal_ref

PACKAGE = Path(mvczigal_ref.__file__).parent
ROOT = PACKAGE.parent
BLOCKED = {
    "accelerate",
    "diffusers",
    "einops",
    "matplotlib",
    "peft",
    "pydantic",
    "safetensors",
    "transformers",
    "tyro",
}
PROGRAM = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError("No module named " + name, name=name)

sys.meta_path.insert(0, Absent())
for name in {modules}:
    importlib.import_module(name)
"""


def modules():
    """Return the cameras and every file of the diffusion package, as import names."""
    files = sorted((PACKAGE / "diffusion").glob("*.py"))
    inside = [file.relative_to(ROOT).with_suffix("").parts for file in files]
    return ["mvczigal_ref.cameras", *(".".join(p).removesuffix(".__init__") for p in inside)]


def imported(blocked):
    """Import all of it in a process where some packages are not installed."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(modules=modules(), blocked=blocked)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_it_imports_where_no_model_or_settings_library_is_installed():
    """A reader may use one function in a project of their own."""
    done = imported(BLOCKED)

    assert done.returncode == 0, done.stderr


def test_the_block_holds():
    """The test above can fail."""
    done = imported(BLOCKED | {"torch"})

    assert done.returncode != 0
    assert "No module named torch" in done.stderr
