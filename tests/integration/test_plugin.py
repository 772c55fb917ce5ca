"""The example plug-in, installed by pip without a network, trains from the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mvczigal_ref.training.tracking import read_metrics
from tests.integration.runs import HELD_OUT, PROMPTS, small_components
from tests.plugin import EXAMPLE

ROOT = Path(__file__).parents[2]
WORDS = (
    "model.weights=weights", "run.prompts=prompts.txt", "run.held_out=held_out.txt",
    "run.iterations=2", "optim.decay_iterations=2", "run.objects_per_iteration=2",
    "run.objects_per_slice=1", "run.evaluation_noises=1", "constraint.threshold_objects=2",
    "sampler.num_steps=2", "model.lora_rank=2", "run.device=cpu",
)  # fmt: skip


@pytest.mark.slow
def test_the_example_is_installed_and_trains(tmp_path):
    """Its recipe by its scorer and objective, resumed between; a flow by the others."""
    install = ("install", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target")
    source = tmp_path / "source"  # setuptools builds beside the sources
    subprocess.run(["cp", "-r", EXAMPLE, source], check=True)
    command = [sys.executable, "-m", "pip", *install, tmp_path / "site", source]
    subprocess.run(command, check=True)
    small_components().save(tmp_path / "weights")
    for name, prompts in (("prompts", PROMPTS), ("held_out", HELD_OUT)):
        (tmp_path / f"{name}.txt").write_text("\n".join(prompts), "utf-8")
    paths = f"{tmp_path / 'site'}{os.pathsep}{ROOT}"
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "200"}  # a row in a line

    def mvczigal(*words):
        return subprocess.run(
            [sys.executable, "-m", "mvczigal_ref", *words], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    for _ in range(2):
        ended = mvczigal("train", "example_red", *WORDS, "--out", "run")
        assert ended.returncode == 0, ended.stderr
    words = [word for word in WORDS[1:8] if "iterations=" not in word and "slice" not in word]
    pieces = ("objective.kind=example.square", "sampler.kind=example.late", "rollout.members=2")
    flow = mvczigal(
        "train", "tiny_flow_grpo", *pieces, *words, "run.objects_per_slice=1", "run.iterations=1",
        "optim.decay_iterations=1", "run.device=cpu", "--out", "flow",
    )  # fmt: skip
    assert flow.returncode == 0, flow.stderr
    listed = mvczigal("recipes")
    refused = mvczigal("train", "tiny", "objective.kind=example.hubr")

    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["iteration"] for row in rows] == [0, 1]
    assert "reward/example.redness/zigzag" in rows[0]
    (row,) = read_metrics(tmp_path / "flow" / "metrics.jsonl")
    assert row["replay_deviation"] == 0
    assert row["grad_norm"] > 0
    assert "mvczigal_example.recipe:example_red" in listed.stdout
    assert refused.returncode == 2
    names = "divergence, example.huber, example.square, forward_process, guard"
    assert f"must be one of {names}" in refused.stderr
