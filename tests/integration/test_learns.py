"""The whole method raises a reward in closed form; with shuffled advantages it does not.

The network is tiny and random, so its images are noise that the prompt and the starting noise
tint. The reward is how near a view's mean colour is to a target. A gain here needs every part:
rollouts, rewards, advantages, the loss's sign and scale, replay, and the optimiser.
"""

import json
from functools import cache

import pytest
import torch

from mvczigal_ref.system import scorers
from tests.integration.faults import patched
from tests.integration.runs import run, small_config

TARGET = (0.9, 0.3, 0.2)
"""Colour to approach, linear RGB."""

SETTINGS = {
    "model": {"finetune": "full"},
    "sampler": {"num_steps": 2, "guidance_scale": 1.0},
    "objective": {"clip_range": 1e-2},
    "optim": {"lr": 2e-3, "optimizer_steps_per_epoch": 2},
    "run": {
        "iterations": 12, "objects_per_iteration": 16, "objects_per_slice": 8,
        "evaluation_noises": 4, "checkpoint_every": 100,
    },
}  # fmt: skip


def closeness(images):
    """Minus the squared distance of each view's mean colour from the target, times 100."""
    return -100 * (images.mean((-2, -1)) - torch.tensor(TARGET)).square().sum(-1)


def per_view(images, prompts):
    """Judge each view by its own colour."""
    return closeness(images)


def joint(images, prompts):
    """Judge an object by its worst view."""
    return closeness(images).amin(1)


HELD_OUT = [
    f"a {colour} {shape} with a white nose"
    for colour in ("red", "green", "blue", "yellow") for shape in ("ball", "cube")
]  # fmt: skip


@pytest.fixture(scope="module")
def summary(prompts, tmp_path_factory):
    """Train and give the run's summary, once a setting of the advantage."""

    def train(**advantage):
        folder = tmp_path_factory.mktemp("learns")
        with (
            patched(scorers, "per_view_scorer", lambda *_, **__: per_view),
            patched(scorers, "joint_view_scorer", lambda *_, **__: joint),
        ):
            config = small_config(prompts, **SETTINGS, advantage=advantage)
            run(config, folder, held_out=HELD_OUT)
        return json.loads((folder / "summary.json").read_text())

    return cache(train)


@pytest.mark.parametrize("score", ["per_view", "joint"])
def test_the_reward_rises_by_many_standard_errors(summary, score):
    """On prompts that were not trained on."""
    found = summary()[score]

    assert found["gain"] > 20 * found["standard_error"] > 0, found


@pytest.mark.slow
@pytest.mark.parametrize("score", ["per_view", "joint"])
def test_shuffled_advantages_teach_next_to_nothing(summary, score):
    """The control: each object's advantage given to another leaves a random walk."""
    learnt, walked = (summary(**how)[score]["gain"] for how in ({}, {"shuffle": True}))

    assert abs(walked) < 0.2 * learnt, (walked, learnt)
