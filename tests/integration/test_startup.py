"""Start-up: commands that need no network of a model import no library of models."""

import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest

HEAVY = {"torch", "diffusers", "transformers", "peft"}


def imported(words, folder):
    """Run a command in a process of its own, and give its status and the heavy imports."""
    script = (
        "import sys\n"
        "from mvczigal_ref.cli import main\n"
        f"status = main({words!r})\n"
        f"print(status, sorted({HEAVY!r} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=folder
    )
    return done.stdout.splitlines()[-1]


def test_a_report_needs_no_torch(undisturbed, tmp_path):
    """Nor do the scores, pictures and errors that it shows."""
    run = shutil.copytree(undisturbed(), tmp_path / "run")
    (run / "report.html").unlink(missing_ok=True)

    assert imported(["report", str(run)], tmp_path) == "0 []"
    assert "data:image/png;base64" in (run / "report.html").read_text("utf-8")


def test_an_export_of_a_lora_needs_no_library_of_models(undisturbed, tmp_path):
    """Its tensors, which torch reads, are in the checkpoint, its settings ten lines of JSON."""
    words = ["export", str(undisturbed()), "--out", str(tmp_path / "out")]

    assert imported(words, tmp_path) == "0 ['torch']"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["recipes", "tiny"], 0),
        (["plan", "tiny"], 0),
        (["settings"], 0),
        (["train", "lcm_sdxl_simple", "reward.joint=hyperscore.al"], 2),
    ],
)
def test_words_need_no_torch(words, status, tmp_path):
    """Neither lists, nor a stored plan, nor a scorer's wrong name.

    A build for accelerators is asked for one, so that the plan is that of the device.
    """
    asked = ["torch"] if words[0] == "plan" and not version("torch").endswith("+cpu") else []

    assert imported(words, tmp_path) == f"{status} {asked}"
