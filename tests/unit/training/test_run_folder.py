"""`run_folder`: a run found again, a policy rebuilt, another run refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mvczigal_ref.config import to_dict
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.training import run_folder
from mvczigal_ref.training.origin import read_origin
from mvczigal_ref.training.run_folder import find_checkpoint, is_finished, load_newest
from mvczigal_ref.training.run_policy import load_policy
from mvczigal_ref.training.state import begin
from tests.unit.training.test_state import PROMPTS, config, stepped, system

# -- laws --------------------------------------------------------------------------------


def test_a_run_may_be_made_longer_or_ended_where_it_is(tmp_path):
    """Its length is no part of what it is."""
    stepped(config(), tmp_path)

    for iterations in (2, 100):
        assert find_checkpoint(tmp_path, config(iterations=iterations)).iteration == 2


def test_a_folder_without_a_run_has_no_checkpoint(tmp_path):
    """Absent, empty, with files that are none of a run's, or begun and killed at once."""
    (tmp_path / "notes.txt").write_text("mine")
    assert find_checkpoint(tmp_path / "absent", config()) is None
    assert find_checkpoint(tmp_path, config()) is None
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config())))
    assert find_checkpoint(tmp_path, config()) is None


@pytest.mark.parametrize(("finetune", "decay"), [("lora", 0.0), ("full", 0.0), ("lora", 0.9)])
def test_a_policy_is_rebuilt_from_its_folder_alone(tmp_path, finetune, decay):
    """Its output is the same bits; it is the average where the run has one."""
    weights = tmp_path / "weights"
    tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1)).save(weights)
    chosen = config(
        model={"finetune": finetune, "weights": str(weights)}, optim={"average_decay": decay}
    )
    state = stepped(chosen, tmp_path)
    loaded, found = load_policy(tmp_path, device=torch.device("cpu"))

    assert found == chosen
    latent = torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    if decay:  # the average has not moved yet
        state = begin(system(chosen), chosen, World(), PROMPTS)
    outputs = [
        one.policy(latent, torch.tensor(500), one.conditioning(PROMPTS[:1]), guidance_scale=2.0)
        for one in (loaded, state.system, system(chosen))
    ]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2]) == (decay > 0)


def test_a_run_is_used_without_the_moments_and_does_not_go_on_without_them(tmp_path):
    """They are the largest file of a folder, and the first that a copy of it leaves out."""
    stepped(config(), tmp_path)
    whole = load_newest(tmp_path)
    (tmp_path / "checkpoints" / "iteration_000002" / "optimizer.safetensors").unlink()
    copied, origin = load_newest(tmp_path), read_origin(f"{tmp_path}@2", config())

    for values in (copied.policy, origin.tensors):
        assert all(torch.equal(values[name], value) for name, value in whole.policy.items())
    assert whole.tensors.keys() == copied.tensors.keys() == {"policy"}
    with pytest.raises(CheckpointError, match=r"'optimizer\.safetensors' is missing"):
        find_checkpoint(tmp_path, config())


def test_a_run_is_finished_when_it_has_ended_as_it_is_asked_for(tmp_path):
    """Not while it has no summary, nor when more, or another evaluation, is asked of it."""
    assert not is_finished(tmp_path / "absent", config())
    stepped(config(), tmp_path)
    assert not is_finished(tmp_path, config())
    (tmp_path / "summary.json").write_text("{}")
    assert is_finished(tmp_path, config())
    assert not is_finished(tmp_path, config(iterations=5))
    assert not is_finished(tmp_path, config(evaluation_noises=7))
    with pytest.raises(CheckpointError, match="holds another run"):
        is_finished(tmp_path, config(seed=5))


def test_the_newest_checkpoint_of_a_run_that_goes_on_is_read(tmp_path, monkeypatch):
    """Where it is removed between its finding and its reading, the next is read."""
    for iterations in (1, 2):
        stepped(config(keep_checkpoints=1), tmp_path, iterations)
    found = iter(["iteration_000001", "iteration_000002"])
    monkeypatch.setattr(run_folder, "latest_checkpoint", lambda folder: folder / next(found))

    assert load_newest(tmp_path).iteration == 2


# -- errors ------------------------------------------------------------------------------


def test_a_folder_of_another_run_is_refused(tmp_path):
    """With each setting that differs."""
    stepped(config(), tmp_path)
    other = config({"multiplier_init": 2.0}, seed=5)
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(tmp_path, replace(other, recipe="mine"))

    said = str(caught.value)
    assert said.startswith(f"{str(tmp_path)!r} holds another run (recipe 'custom')")
    assert "`constraint.multiplier_init` is 0.0 there and 2.0 here" in said
    assert "`run.seed` is 0 there and 5 here" in said


@pytest.mark.parametrize("content", ["", "{}", "[]", "7", '{"name": "x"}', '{"recipe": "tiny"}'])
def test_a_configuration_that_is_none_is_refused(tmp_path, content):
    """Even one that could be completed by defaults."""
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json' is no run's configuration: "):
        find_checkpoint(tmp_path, config())


@pytest.mark.parametrize("name", ["checkpoints", "evaluations", "metrics.jsonl", "summary.json"])
def test_remains_of_a_run_are_refused(tmp_path, name):
    """They would be written over."""
    (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match=f"holds {name} of a run without its config.json"):
        find_checkpoint(tmp_path, config())


def test_a_checkpoint_past_the_end_is_refused(tmp_path):
    """Scores after training would be of a policy that has trained for longer."""
    stepped(config(), tmp_path, 3)
    with pytest.raises(
        CheckpointError, match=r"`run\.iterations` must be at least 3, what .*got 2"
    ):
        find_checkpoint(tmp_path, config(iterations=2))


def test_a_damaged_newest_is_refused_with_the_remedy(tmp_path):
    """And not passed over."""
    stepped(config(keep_checkpoints=2), tmp_path, 1)
    stepped(config(keep_checkpoints=2), tmp_path, 2)
    (tmp_path / "checkpoints" / "iteration_000002" / "state.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"iteration_000002'.*'state\.json' is missing.*Remove"
    ):
        find_checkpoint(tmp_path, config(keep_checkpoints=2))


def test_a_folder_without_a_policy_is_refused(tmp_path):
    """By name."""
    with pytest.raises(CheckpointError, match="absent' holds no checkpoint"):
        load_policy(Path(tmp_path / "absent"), device=torch.device("cpu"))
