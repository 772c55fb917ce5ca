"""Pretraining at a few steps: every stage runs, is kept, and is not run again."""

import json
import shutil
from itertools import pairwise

import pytest
import torch

from mvczigal_ref.models.components import load_components
from mvczigal_ref.pretraining import multiview as pretraining
from mvczigal_ref.pretraining.latent_scenes import LatentScenes
from mvczigal_ref.pretraining.multiview import PretrainConfig, pretrain
from mvczigal_ref.tiny_world.scene import sample_scenes

SHORT = PretrainConfig(
    objects_per_prompt=1, autoencoder_steps=8, autoencoder_batch=2, base_steps=8,
    base_stop=8, base_batch=2, views_steps=8, together_steps=8, settle_steps=8,
    distil_steps=8, polish_steps=8, snapshot_every=4,
)  # fmt: skip
STAGES = ("autoencoder", "base", "views", "together", "settle", "guided", "fewstep")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder in which everything was trained for eight steps."""
    folder = tmp_path_factory.mktemp("pretrained")
    pretrain(folder, SHORT)
    return folder


def weights(folder, stage):
    """The weights of a stage's two networks."""
    found = load_components(folder / stage)
    parts = {"vae": found.vae, "policy": found.policy}
    return {f"{p}.{k}": v for p, net in parts.items() for k, v in net.state_dict().items()}


def moved(one, other):
    """The networks of which some weight differs."""
    return {k.split(".")[0] for k in one if not torch.equal(one[k], other[k])}


def test_each_stage_changes_its_own_network(trained):
    """The autoencoder first, and from then on the policy alone."""
    states = [weights(trained, stage) for stage in STAGES]

    for before, after in pairwise(states):
        assert moved(before, after) == {"policy"}


def test_every_stage_is_logged(trained):
    """Its mean loss, finite, at its end at the latest."""
    lines = [json.loads(line) for line in (trained / "pretrain_log.jsonl").read_text().splitlines()]

    assert [(line["stage"], line["step"]) for line in lines] == [(stage, 8) for stage in STAGES]
    assert all(0 < line["loss"] < 10 for line in lines)


def test_a_finished_stage_is_not_run_again(trained):
    """The weights stay as they are, and nothing is logged."""
    before, log = weights(trained, "fewstep"), (trained / "pretrain_log.jsonl").read_bytes()
    pretrain(trained, SHORT)

    assert moved(before, weights(trained, "fewstep")) == set()
    assert (trained / "pretrain_log.jsonl").read_bytes() == log


def test_a_stopped_run_goes_on_to_the_same_weights(trained):
    """The last stage run again by itself gives the same bits: its teacher was not trained."""
    before = weights(trained, "fewstep")
    shutil.rmtree(trained / "fewstep")
    pretrain(trained, SHORT)

    assert moved(before, weights(trained, "fewstep")) == set()


def test_processes_meet_on_the_cpu_beside_an_accelerator_too(tmp_path, monkeypatch):
    """There the networks and their gradients are."""
    joined = []

    def join(*, cpu):
        joined.append(cpu)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(pretraining, "Accelerator", join)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tmp_path, SHORT)

    assert joined == [True]


def test_half_of_the_views_stand_below_their_object(trained):
    """By the gap; without one all stand at one timestep."""
    prompts = ["a red ball with a white nose"]
    generator = torch.Generator().manual_seed(0)
    scenes = sample_scenes(prompts, per_prompt=2, generator=generator)
    data = LatentScenes(load_components(trained / "autoencoder"), scenes, prompts)
    same = data.draw(64, generator, dropout=0.0)[1].view(64, 6)
    half = data.draw(64, generator, dropout=0.0, gap=0.5)[1].view(64, 6)
    top = half.amax(1, keepdim=True)

    assert torch.equal(same, same[:, :1].expand(64, 6))
    # rounded down; an object whose six views all stand below shows half of its timestep
    lower = (half == top // 2) & (half != top)
    assert bool((lower | (half == top)).all())
    assert 0.4 < float(lower.double().mean()) < 0.6
