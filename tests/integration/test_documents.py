"""What documents say of runs: every metric, and the training run that the README shows."""

import re
from pathlib import Path

import pytest

from mvczigal_ref.training.tracking import read_metrics
from tests.documents import documented_metrics, undocumented
from tests.integration.runs import run, small_components, small_config, small_flow, write_prompts

FLOW = {
    "model": {"network": "flow", "lora_rank": 2},
    "sampler": {"kind": "flow", "num_steps": 3, "guidance_scale": 1.0},
    "reward": {"joint": "per_view"},
    "advantage": {"mode": "per_view"},
    "rollout": {"kind": "group", "members": 2},
}
CAPTIONS = {"enhancer": "world_edits", "num_captions": 1}
RUNS = {
    "pairs": {"guard": {"every": 1, "diversity": True}},
    "groups": {**FLOW, "objective": {"kind": "policy_gradient", "kl_weight": 0.1}},
    "captions": {**FLOW, "objective": {"kind": "policy_gradient"}, "condition": CAPTIONS},
    "forward": {**FLOW, "objective": {"kind": "forward_process", "kl_weight": 0.1}},
    "half": {"model": {"dtype": "fp16", "lora_rank": 2}},
}
LENGTH = {"iterations": 1, "evaluate_every": 1}
RARE = {"idle_steps"}
"""Written where every advantage of an optimiser step is 0."""

README = Path(__file__).parents[2] / "README.md"
PAGE = README.parent / "docs" / "own_reward.md"
QUICK = [
    "run.iterations=1",
    "run.objects_per_iteration=8",
    "run.evaluation_noises=1",
    "constraint.threshold_objects=2",
    "sampler.num_steps=2",
]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Train one iteration of every kind; give the names of the metrics that each wrote."""
    written = {}
    for kind, sections in RUNS.items():
        folder = tmp_path_factory.mktemp(kind)
        config = small_config(write_prompts(folder), **sections, run=LENGTH)
        flow = config.model.network == "flow"
        run(config, folder / "run", components=small_flow() if flow else small_components())
        rows = read_metrics(folder / "run" / "metrics.jsonl")
        written[kind] = {name for row in rows for name in row}
    return written


@pytest.mark.parametrize("kind", RUNS)
def test_every_metric_of_a_run_is_documented(kind, names):
    """In docs/metrics.md, by its name or by its pattern."""
    assert undocumented(names[kind]) == []


def test_every_documented_metric_is_written(names):
    """By one run or another: none is left from an earlier version."""
    every = set.union(*names.values(), RARE)
    never = [one.pattern for one in documented_metrics() if not any(map(one.fullmatch, every))]

    assert never == []


def test_the_readmes_training_run_trains(tmp_path, monkeypatch):
    """As it stands, but for its length: with a function as its reward, into its folder."""
    code = re.findall(r"^```python\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)[1]
    longer = '"run.iterations=2", "optim.decay_iterations=2"'
    assert longer in code
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    exec(code.replace(longer, ", ".join(f'"{change}"' for change in QUICK)), names)
    row = read_metrics(tmp_path / "runs/redness/metrics.jsonl")[0]

    assert (tmp_path / "runs/redness/policy").is_dir()
    assert "reward/fit.reward:redness/zigzag" in row
    assert names["result"].gain.standard_error > 0
    assert names["images"].shape == (1, 6, 3, 32, 32)


@pytest.mark.slow
def test_the_run_of_the_page_on_rewards_trains(tmp_path, monkeypatch, capsys):
    """As it stands, but for its length; its callback hears."""
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)[1]
    longer = '"run.iterations=2", "optim.decay_iterations=2"'
    assert longer in code
    monkeypatch.chdir(tmp_path)
    exec(code.replace(longer, ", ".join(f'"{change}"' for change in QUICK)), {"__name__": "page"})

    assert (tmp_path / "runs/dark/policy").is_dir()
    assert "before 0 " in capsys.readouterr().out
