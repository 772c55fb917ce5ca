"""Start-up: commands that need no network of a model import no library of models."""

import subprocess
import sys

import pytest

from tests.unit.report.folders import write_run

HEAVY = {"diffusers", "transformers", "peft"}


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


def test_a_report_needs_no_library_of_models(tmp_path):
    """Nor do scores and pictures that it shows."""
    run = write_run(tmp_path)

    assert imported(["report", str(run)], tmp_path) == "0 []"


def test_an_export_of_a_lora_needs_no_library_of_models(undisturbed, tmp_path):
    """Its tensors are in the checkpoint, and its settings are ten lines of JSON."""
    words = ["export", str(undisturbed()), "--out", str(tmp_path / "out")]

    assert imported(words, tmp_path) == "0 []"


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["recipes", "tiny"], 0),
        (["plan", "tiny"], 0),
        (["settings"], 0),
        (["train", "lcm_sdxl_simple", "reward.joint=hyperscore.al"], 2),
    ],
)
def test_words_need_no_library_of_models(words, status, tmp_path):
    """Neither lists, nor a stored plan, nor a scorer's wrong name."""
    assert imported(words, tmp_path) == f"{status} []"
