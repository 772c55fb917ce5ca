"""Every setting of where and how a run computes works on the device."""

import pytest
import torch

from tests.integration.runs import cases, metrics, parameters
from tests.pretend.runs import train_on
from tests.pretend_device import NAME

PAIR, GROUP = "tiny", "tiny_flow_grpo"
LOOKS = ("guard.every=1", "guard.diversity=true", "guard.action=return")
SETTINGS = {
    "views_one_by_one": (GROUP, "model.views_per_decode=1"),
    "views_one_by_one_of_pairs": (PAIR, "model.views_per_decode=1"),
    "channels_last": (PAIR, "model.channels_last=true"),
    "recomputed": (PAIR, "model.gradient_checkpointing=true"),
    "recomputed_flow": (GROUP, "model.gradient_checkpointing=true"),
    "all_weights": (PAIR, "model.finetune=full"),
    "all_weights_flow": (GROUP, "model.finetune=full"),
    "bf16": (PAIR, "model.dtype=bf16", "model.storage_dtype=bf16"),
    "fp16": (GROUP, "model.dtype=fp16", "model.storage_dtype=fp16"),
    "scorers_on_the_cpu": (GROUP, "reward.device=cpu"),
    "ddim": (PAIR, "sampler.kind=ddim"),
    "two_steps_per_call": (PAIR, "optim.steps_per_microbatch=2", "sampler.num_steps=3"),
    "smaller_replay": (PAIR, "run.replay_objects_per_slice=1"),
    "epochs": (GROUP, "optim.epochs_per_iteration=2"),
    "last_action": (PAIR, "objective.train_last_action=true"),
    "summed": (PAIR, "objective.reduction=sum"),
    "guided_flow": (GROUP, "sampler.guidance_scale=3"),
    "reference_policy": (GROUP, "objective.kl_weight=0.1"),
    "average": (GROUP, "optim.average_decay=0.5", "optim.average_every=1"),
    "average_forward": ("tiny_diffusion_nft", "optim.average_decay=0.5", "optim.average_every=1"),
    "guard": (GROUP, *LOOKS),
    "guard_of_a_scorer": (PAIR, *LOOKS, "reward.joint=per_view", "guard.joint=[world.joint]"),
    "evaluation": (GROUP, "run.evaluate_every=1", "sampler.evaluation_steps=3"),
    "tracker": (GROUP, "run.trackers=[tensorboard]"),
}
QUICK = (
    "views_one_by_one",
    "recomputed_flow",
    "all_weights_flow",
    "fp16",
    "average",
    "guard",
    "evaluation",
)

PLACES = {
    "frozen_parts_on_the_cpu": (PAIR, "model.offload_frozen=true"),
    "latents_on_the_cpu": (PAIR, "model.storage_device=cpu"),
    "frozen_parts_of_a_flow": (GROUP, "model.offload_frozen=true"),
    "latents_of_a_flow": (GROUP, "model.storage_device=cpu"),
    "both_of_a_forward_process": (
        "tiny_diffusion_nft", "model.offload_frozen=true", "model.storage_device=cpu",
    ),
    "all_of_a_branching_flow": (
        "tiny_tempflow_grpo", "model.offload_frozen=true", "model.storage_device=cpu",
    ),
    "captions": ("tiny_mv_grpo_vlm", "model.offload_frozen=true", "model.storage_device=cpu"),
}  # fmt: skip
QUICK_PLACES = ("frozen_parts_on_the_cpu", "latents_of_a_flow", "both_of_a_forward_process")


@pytest.fixture(scope="module")
def plain(device, tmp_path_factory):
    """Give what a recipe learns with all of it on the device."""
    done = {}

    def folder(name):
        if name not in done:
            done[name] = tmp_path_factory.mktemp(name)
            train_on(device, name, done[name])
        return done[name] / "run"

    return folder


@pytest.mark.parametrize("case", cases(PLACES, *QUICK_PLACES))
def test_what_waits_on_the_cpu_changes_no_number(case, plain, device, tmp_path):
    """Networks and latents come when they are called, and what is learnt has the same bits."""
    name, *words = case
    train_on(device, name, tmp_path, *words)
    run, usual = tmp_path / "run", plain(name)

    learnt, expected = parameters(run), parameters(usual)
    assert learnt.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(learnt[key], expected[key])] == []
    assert metrics(run) == metrics(usual)


@pytest.mark.parametrize("case", cases(SETTINGS, *QUICK))
def test_every_setting_trains_on_the_device(case, device, tmp_path):
    """An iteration of it, from the first held-out scores to the last checkpoint."""
    name, *words = case
    result = train_on(device, name, tmp_path, *words)
    (row,) = metrics(tmp_path / "run")

    assert row["grad_norm"] > 0.0
    assert all(value.isfinite().all() for value in parameters(tmp_path / "run").values())
    assert (result.guard is not None) == any("guard.every" in word for word in words)


def test_a_run_that_is_taken_up_again_ends_with_the_same_bits(device, tmp_path):
    """Its state comes back to the device, whether that is named with its index or without."""
    words = ("optim.average_decay=0.5", "optim.average_every=1")
    for folder, place, lengths in (("once", device, (2,)), ("again", f"{NAME}:0", (1, 2))):
        for length in lengths:
            train_on(place, GROUP, tmp_path / folder, *words, f"run.iterations={length}")
    once, again = tmp_path / "once" / "run", tmp_path / "again" / "run"

    assert len(metrics(once)) == 2
    assert metrics(once) == metrics(again)
    assert all(torch.equal(parameters(once)[k], v) for k, v in parameters(again).items())
