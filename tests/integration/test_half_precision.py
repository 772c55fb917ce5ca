"""Half precision: what the shipped weights learn in fp16, and a run whose loss scale moves."""

import pytest
import torch

from mvczigal_ref.config import load_config
from mvczigal_ref.preflight.snapshots import gradients
from mvczigal_ref.preflight.trial_pairs import PairTrial
from mvczigal_ref.recipes import recipe
from mvczigal_ref.system import build_system
from mvczigal_ref.system.scorers import no_scorers
from tests.integration.runs import assert_same_run, metrics, run, small_config

# One view of the tiny world stands for the published latents of 96 x 96: that many times more
# objects give an element of its log-density the weight that it has there.
ELEMENTS = 96 * 96 // 8**2
PUBLISHED = recipe("lcm_sdxl_mate3d")


def shipped(dtype, scale):
    """Build the shipped weights at the weight of the published recipe's microbatches."""
    run_, optim = PUBLISHED.run, PUBLISHED.optim
    config = load_config(
        overrides=[
            f"model.dtype={dtype}", f"optim.loss_scale={scale}", "model.azimuths=[-90.0]",
            f"run.objects_per_iteration={ELEMENTS * run_.objects_per_iteration}",
            f"optim.optimizer_steps_per_epoch={optim.optimizer_steps_per_epoch}",
            f"sampler.num_steps={PUBLISHED.sampler.num_steps}", "model.lora_rank=16",
            f"objective.train_last_action={PUBLISHED.objective.train_last_action}",
        ]
    )  # fmt: skip
    system = build_system(config, device=torch.device("cpu"), scorers=no_scorers())
    return PairTrial(system, config, 1)


def lora_b(trial, pair):
    """Find the gradients of the matrices that a first step changes."""
    trial.learn(trial.rescored(pair, 0), 0, advantage=1.0)
    return {n: g.double() for n, g in gradients(trial.system).items() if "lora_B" in n}


def test_the_shipped_weights_learn_in_fp16_with_the_scale_alone():
    """Without it every gradient is exactly 0 at the published weight; with it, that of fp32."""
    exact_trial = shipped("fp32", "null")
    pair = exact_trial.sample("fp32")
    exact = lora_b(exact_trial, pair)
    plain, scaled = (lora_b(shipped("fp16", scale), pair) for scale in ("1", "null"))

    one, other = (torch.cat([g.flatten() for g in found.values()]) for found in (scaled, exact))
    # Of one view, two gradients are 0 but for the rounding of fp32.
    reached = [name for name, g in exact.items() if g.norm() > 1e-6 * other.norm()]

    assert (len(exact), len(reached)) == (84, 82)
    assert not any(bool(g.any()) for g in plain.values())
    assert all(bool(scaled[name].any()) for name in reached)
    assert torch.cosine_similarity(one, other, dim=0) > 0.999
    assert one.norm().item() == pytest.approx(other.norm().item(), rel=1e-2)


def test_a_loss_scale_that_moves_comes_back(prompts, tmp_path):
    """A step is skipped where it does not fit; going on from a checkpoint changes no bit."""
    sections = {
        "model": {"dtype": "fp16", "storage_dtype": "fp16"},
        "optim": {"loss_scale": 2.0**24, "loss_scale_growth_interval": 3},
        "run": {"iterations": 3},
    }
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(small_config(prompts, **sections), whole)
    run(small_config(prompts, **{**sections, "run": {"iterations": 1}}), parts)
    run(small_config(prompts, **sections), parts)

    assert_same_run(whole, parts, skip=(1,))
    rows = metrics(whole)
    # It doubles after the two steps of before the checkpoint and one of after it, and overflows.
    assert rows[0]["skipped_steps"] == 0.0
    assert rows[0]["loss_scale"] == 2.0**24
    assert rows[1]["skipped_steps"] + rows[2]["skipped_steps"] > 0
    assert rows[-1]["grad_norm"] > 0
