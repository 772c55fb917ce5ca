"""`held_out`: an occasion is scored once, and found again as it was."""

import json
from dataclasses import replace

import pytest
import torch

from mvczigal_ref import held_out
from mvczigal_ref.config import from_dict
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.evaluation import Evaluation
from mvczigal_ref.held_out import HeldOut
from tests.unit.test_evaluation import PROMPTS, settings, system


@pytest.fixture
def made(monkeypatch):
    """Count the measurements; each is another table."""
    made = []

    def evaluate(system, prompts, *, config, world, num_noises):
        made.append(num_noises)
        table = torch.full((num_noises, len(prompts)), float(len(made)))
        table[0, 0] += 1
        return Evaluation(per_view=table, joint=-table, images=torch.zeros(1, 6, 3, 32, 32))

    monkeypatch.setattr(held_out, "evaluate", evaluate)
    return made


def judge(folder, noises=2, **more):
    """Scores of the three prompts, kept in a folder."""
    config = from_dict({"run": {"evaluation_noises": noises}})
    parts = {"system": system(), "prompts": PROMPTS, "folder": folder, "config": config}
    return HeldOut(**{**parts, "world": World(), **more})


def test_an_occasion_is_measured_once(made, tmp_path):
    """Its second answer comes from the file, bit for bit, to another judge too."""
    first = judge(tmp_path)("before", 0)
    again = judge(tmp_path)("before", 0)

    assert made == [2]
    for name in ("per_view", "joint", "images"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    files = sorted(path.name for path in (tmp_path / "evaluations").iterdir())
    assert files == ["before_000000.safetensors", "prompts.json"]
    assert json.loads((tmp_path / "evaluations" / "prompts.json").read_text()) == PROMPTS


def test_other_occasions_are_measured_apart(made, tmp_path):
    """By name and by iteration."""
    for name, iteration in (("before", 0), ("at", 3), ("after", 3), ("after", 4)):
        judge(tmp_path)(name, iteration)

    assert made == [2, 2, 2, 2]
    assert (tmp_path / "evaluations" / "after_000004.safetensors").is_file()


def test_another_number_of_noises_is_measured_anew(made, tmp_path):
    """And kept instead."""
    judge(tmp_path)("before", 0)
    assert judge(tmp_path, noises=3)("before", 0).joint.shape == (3, 3)
    assert judge(tmp_path, noises=3)("before", 0).joint.shape == (3, 3)
    assert made == [2, 3]


def test_metrics_are_the_means(made, tmp_path):
    """Over noises and prompts."""
    means = judge(tmp_path).metrics("at", 2)

    assert means == {
        "held_out/per_view": pytest.approx(7 / 6),
        "held_out/joint": pytest.approx(-7 / 6),
    }


class Second(World):
    """The second of two processes, which waits for nobody."""

    def barrier(self):
        """Go on."""


def test_only_the_main_process_writes(made, tmp_path):
    """All of them measure."""
    judge(tmp_path, world=Second(rank=1, size=2))("before", 0)

    assert made == [2]
    assert list(tmp_path.iterdir()) == []


def test_the_scores_are_those_of_evaluation(tmp_path):
    """With the run's settings and the shared noises."""
    config = replace(settings(), run=replace(settings().run, evaluation_noises=1))
    kept = judge(tmp_path, config=config)("before", 0)
    fresh = held_out.evaluate(system(), PROMPTS, config=config, world=World(), num_noises=1)

    assert torch.equal(kept.joint, fresh.joint)
    assert torch.equal(kept.images, fresh.images)


def test_other_prompts_are_refused(made, tmp_path):
    """Nothing is measured or written."""
    judge(tmp_path)("before", 0)
    with pytest.raises(CheckpointError, match=r"`held_out` must be the prompts of .*prompts\.json"):
        judge(tmp_path, prompts=PROMPTS[::-1])("after", 4)
    assert made == [2]
