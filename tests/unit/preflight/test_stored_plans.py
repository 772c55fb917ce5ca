"""`stored_plans`: what is stored is what measuring gives, or it is not read."""

import json
from dataclasses import replace

import pytest
import torch

from mvczigal_ref.config import load_config
from mvczigal_ref.preflight import stored_plans
from mvczigal_ref.preflight.plan import plan
from mvczigal_ref.preflight.stored_plans import FREE, STORED, plan_key, plan_values, stored_plan
from mvczigal_ref.recipes import RECIPES, recipe

OTHER = (
    "run.device=cuda", "run.seed=7", "run.iterations=2", "run.prompts=a.txt", "run.held_out=b.txt",
    "run.checkpoint_every=2", "run.keep_checkpoints=1", "run.evaluate_every=1",
    "run.evaluation_noises=3", "run.trackers=[tensorboard]", "optim.lr=1e-5",
    "optim.betas=[0.5,0.6]", "optim.eps=1e-4", "optim.weight_decay=0.5", "optim.max_grad_norm=0.5",
    "optim.warmup_iterations=1", "optim.decay_iterations=2",
)  # fmt: skip


def test_the_stored_plan_of_tiny_is_the_measured_one():
    """With every setting changed on which none depends, and for an accelerator.

    Where this fails, `python -m bench plans` measures all of them anew.
    """
    config = load_config(recipe("tiny"), overrides=OTHER)
    free = {f"{section}.{name}" for section, names in FREE.items() for name in names}

    assert {word.partition("=")[0] for word in OTHER} == free
    for section, names in FREE.items():
        for name in names:
            value, plain = (getattr(getattr(c, section), name) for c in (config, recipe("tiny")))
            assert value != plain, name
    assert stored_plan(config, processes=1) == plan(config)


@pytest.mark.parametrize(
    ("words", "processes"),
    [((), 2), (("run.objects_per_slice=1",), 1), (("model.weights=/elsewhere",), 1)],
    ids=str,
)
def test_a_plan_of_other_settings_is_not_stored(words, processes):
    """Nor one for more processes, nor one of weights that are no recipe's."""
    config = load_config(recipe("tiny"), overrides=words)
    assert stored_plan(config, processes=processes) is None


def test_a_plan_is_read_with_the_libraries_that_measured_it_alone(monkeypatch):
    """Another version may compute otherwise."""
    monkeypatch.setattr(stored_plans, "_version", lambda library: "0")
    assert stored_plan(recipe("tiny"), processes=1) is None


def test_a_plan_comes_back_as_it_was(monkeypatch, tmp_path):
    """The recipe's name is no part of what it costs; the source is where the weights lie."""
    config = recipe("tiny")
    measured = replace(stored_plan(config, processes=1), latent=(3, 2, 1), samples=5)
    key = plan_key(replace(config, recipe="other"), processes=1)
    values = plan_values(measured, measured)
    assert (values["source"], values["accelerator"]) == ("tiny_world", {})
    assert "device" not in values
    (tmp_path / "plans.json").write_text(json.dumps({key: values}), "utf-8")
    monkeypatch.setattr(stored_plans, "STORED", tmp_path / "plans.json")
    assert stored_plan(config, processes=1) == measured


def test_a_stored_plan_is_that_of_the_device_that_the_run_would_take(monkeypatch, tmp_path):
    """Named or found, whatever device measured it; accelerators choose alike."""
    config = recipe("tiny")
    on_cpu = replace(stored_plan(config, processes=1), device="cpu")
    forms = {"rollout": {"merged": 7, "thin": 0}}
    other = replace(on_cpu, device="cuda", lora_forms=forms)
    content = {plan_key(config, processes=1): plan_values(on_cpu, other)}
    (tmp_path / "plans.json").write_text(json.dumps(content), "utf-8")
    monkeypatch.setattr(stored_plans, "STORED", tmp_path / "plans.json")
    named = {
        device: stored_plan(load_config(config, overrides=[f"run.device={device}"]), processes=1)
        for device in ("cpu", "cuda:1", "mps")
    }
    found = torch.device("cuda")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: found)

    assert named == {"cpu": on_cpu, "cuda:1": other, "mps": replace(other, device="mps")}
    assert stored_plan(config, processes=1) == other


def test_the_file_of_plans_stays_small_and_holds_every_recipe():
    """At most two thousand bytes per plan, with the versions that are pinned."""
    stored = json.loads(STORED.read_text("utf-8"))
    missing = {name for name in RECIPES if plan_key(recipe(name), processes=1) not in stored}

    assert not missing
    assert STORED.stat().st_size < 2000 * len(stored)
