"""Two processes on the CPU do what one does, and fail and stop together."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.runs import (
    checkpoints,
    evaluations,
    metrics,
    parameters,
    run,
    small_config,
)
from tests.integration.worker import FULL, SHARED, noted

TOGETHER = {"whole": SHARED, "full": FULL}
# Gradients are added in another order, first within a process and then over processes: the
# last bits differ. AdamW's first steps divide by the gradient's own size, so that an entry
# whose gradient is mostly rounding moves otherwise by a share of the learning rate. Seen: 1.2e-5
# of a tensor's largest entry after six steps.
RELATIVE = 5e-5
# Seen: 3e-6 of a gradient's norm; a gap is the difference of two rewards, 2e-7 of theirs.
METRICS = {"rel": 2e-5, "abs": 2e-6}


START = """
import sys
from mvczigal_ref.cli import launch
launch.PROGRAM = ("-m", "tests.integration.worker")
sys.exit(launch.launch(2, sys.argv[1:]))
"""


def launch(*words, limit=900):
    """Start two workers as `--processes 2` starts its processes."""
    return subprocess.run(
        [sys.executable, "-c", START, *map(str, words)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=limit,
        check=False,
    )


@pytest.fixture(scope="module")
def two(prompts, tmp_path_factory):
    """Where two processes ran everything, and what each says of it."""
    folder = tmp_path_factory.mktemp("two")
    ended = launch(folder, prompts)
    assert ended.returncode == 0, ended.stdout
    said = [json.loads((folder / f"{rank}_of_2.json").read_text()) for rank in range(2)]
    return folder, said


@pytest.fixture(scope="module")
def one(prompts, tmp_path_factory):
    """Where one process ran what has no fault, and its rollouts."""
    folder, said = tmp_path_factory.mktemp("one"), {}
    for name, sections in TOGETHER.items():
        said[name] = {}
        with noted(said[name]):
            run(small_config(prompts, **sections), folder / name)
    return folder, said


# -- what one process does ---------------------------------------------------------------


@pytest.mark.parametrize("name", TOGETHER)
def test_rollouts_of_two_processes_are_bit_for_bit_those_of_one(one, two, name):
    """Every trajectory of the first iteration; later ones follow the parameters."""
    shares = [said[name]["rollouts"] for said in two[1]]
    both = {**shares[0], **shares[1]}

    assert both.keys() == one[1][name].keys()
    assert [sorted(k for k in share if k[0] == "0") for share in shares] == [
        ["0 0", "0 4"],
        ["0 2", "0 6"],
    ]
    first = [k for k in both if k.startswith("0 ")]
    assert [both[k] for k in first] == [one[1][name][k] for k in first]


@pytest.mark.parametrize("name", TOGETHER)
def test_parameters_of_two_processes_are_those_of_one(one, two, name):
    """To rounding, against the largest entry of each tensor."""
    mine, theirs = parameters(one[0] / name), parameters(two[0] / name)

    assert mine.keys() == theirs.keys()
    worst = max(
        float((mine[k] - theirs[k]).abs().max() / mine[k].abs().max().clamp(min=1e-30))
        for k in mine
    )
    assert worst <= RELATIVE


@pytest.mark.parametrize("name", TOGETHER)
def test_metrics_of_two_processes_are_those_of_one(one, two, name):
    """Rewards, multiplier and threshold of the first iteration exactly, the rest to rounding."""
    mine, theirs = metrics(one[0] / name), metrics(two[0] / name)
    exact = [k for k in mine[0] if "reward" in k or k in ("multiplier", "threshold", "slack")]

    assert len(exact) == 13
    assert {k: mine[0][k] for k in exact} == {k: theirs[0][k] for k in exact}
    for row, other in zip(mine, theirs, strict=True):
        assert row.keys() == other.keys()
        assert other == pytest.approx(row, **METRICS)


@pytest.mark.parametrize("name", TOGETHER)
def test_scores_before_training_are_bit_for_bit_those_of_one(one, two, name):
    """Both slices of the held-out prompts, and the images."""
    assert evaluations(one[0] / name)[0] == evaluations(two[0] / name)[0]


# -- failing and stopping together -------------------------------------------------------


FAULTS = {
    "reward": {"type": "NonFiniteError", "object": 3, "view": 4, "step": None},
    "loss": {"type": "NonFiniteError", "object": 3, "view": 2, "step": 0},
    "gradient": {"type": "NonFiniteError", "object": None, "view": None, "step": None},
    "parameter": {"type": "NonFiniteError", "object": 2, "view": 0, "step": None},
    "judge": {"type": "OSError", "object": None, "view": None, "step": None},
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_one_process_ends_both_with_the_same_words(two, name):
    """None waits for the other, and object, view and step are those of the run."""
    first, second = (said[name]["raised"] for said in two[1])

    assert first == second
    assert {k: first[k] for k in FAULTS[name]} == FAULTS[name]


@pytest.mark.parametrize("name", ["parameter", "judge", "stop"])
def test_one_process_goes_on_with_what_two_left(two, prompts, tmp_path, name):
    """The checkpoint before the fault, or of the stop, is whole."""
    folder = shutil.copytree(two[0] / name, tmp_path / name)
    assert checkpoints(folder)[-1] == f"iteration_00000{int(name == 'stop')}"
    run(small_config(prompts, **SHARED), folder)

    assert checkpoints(folder)[-1] == "iteration_000002"
    assert metrics(folder) == [pytest.approx(row, **METRICS) for row in metrics(two[0] / "whole")]


def test_one_process_asked_to_stop_stops_both(two):
    """After the iteration in hand, with its checkpoint."""
    assert [said["stop"]["raised"]["type"] for said in two[1]] == ["KeyboardInterrupt"] * 2
    assert [row["iteration"] for row in metrics(two[0] / "stop")] == [0]


# -- launchers ---------------------------------------------------------------------------


def test_a_launcher_that_starts_only_one_is_refused():
    """It would train alone in silence, with half of the objects that were meant."""
    line = "from mvczigal_ref.distributed import world; world('cpu')"
    words = ["--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *words, "--dynamo_backend", "no"]
    ended = subprocess.run(
        [*command, "--no_python", sys.executable, "-c", line],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode != 0
    assert "starts one. Start with `mvczigal train RECIPE --processes N`" in ended.stderr
