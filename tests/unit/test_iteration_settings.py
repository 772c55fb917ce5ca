"""Settings that an iteration reads: each changes what is learnt, or how work is cut up."""

import dataclasses
from dataclasses import replace
from functools import cache

import pytest
import torch

from mvczigal_ref.config import TrainConfig
from tests.iterations import (
    BRANCHES,
    FORWARD,
    LCM,
    ONE_VIEW,
    PAIRS,
    START,
    TREE,
    ZIGAL,
    Said,
    config_of,
    learn,
)
from tests.unannotated import without_shape_checks

OFTEN = {"optim.epochs_per_iteration": 3, "objective.clip_range": 1e-4}


def window(name, **more):
    """Name a window of one step."""
    size = {"rollout.window": name, "rollout.window_size": 1, "rollout.window_interval": 2}
    return {**ONE_VIEW, **size, **{f"rollout.window_{key}": value for key, value in more.items()}}


# -- pairs -------------------------------------------------------------------------------

# What an iteration of pairs reads: a change, and the other settings under which it shows.
PAIRS_READ = {
    "model.storage_dtype": ("bf16", {}),
    "sampler.kind": ("ddim", {}),
    "sampler.prediction_type": ("sample", {}),
    "sampler.num_steps": (3, {}),
    "sampler.guidance_scale": (2.5, {}),
    "sampler.eta": (0.5, {"sampler.kind": "ddim"}),
    "sampler.snr_shift": (8.0, {}),
    "sampler.camera_scale": (0.5, {}),
    "zigzag.steps": (2, {}),
    "zigzag.rounds": (2, {}),
    "zigzag.inversion_guidance_scale": (0.5, {}),
    "zigzag.inversion_camera_scale": (0.5, {}),
    "advantage.mode": ("joint", {}),
    "advantage.joint_weight": (0.9, {"advantage.mode": "weighted_sum"}),
    "advantage.shuffle": (True, {}),
    "objective.pairing": ("standard", {}),
    "objective.clip_range": (10.0, {"optim.epochs_per_iteration": 3}),
    "objective.clip": (
        False,
        {"optim.epochs_per_iteration": 3, "objective.clip_range": 1e-4},
    ),
    "objective.temperature": (0.1, {}),
    "objective.kind": ("preference", {}),
    "objective.preference_scale": (5.0, {"objective.kind": "preference"}),
    "objective.preference_form": ("noise", {"objective.kind": "preference"}),
    "objective.reduction": ("sum", {}),
    "objective.train_last_action": (True, {}),
    "constraint.step_size_violated": (0.3, {}),
    "constraint.step_size_satisfied": (0.1, {"start": replace(START, threshold=0.5)}),
    "constraint.multiplier_max": (0.4, {}),
    "constraint.threshold_decay": (0.5, {}),
    "constraint.order": ("multiplier_first", {"constraint.threshold_decay": 0.5}),
    "optim.max_grad_norm": (1e-3, {}),
    "optim.epochs_per_iteration": (2, {"objective.clip": False}),
    "optim.optimizer_steps_per_epoch": (2, {}),
    "run.objects_per_iteration": (6, {}),
    "run.seed": (1, {}),
}
# How work is cut up: the numbers stay, but for rounding; the network calls do not.
PAIRS_CUTS = {
    "optim.steps_per_microbatch": (2, {"sampler.num_steps": 3}),
    "run.objects_per_slice": (4, {}),
    "run.replay_objects_per_slice": (1, {}),
    "run.arms_per_call": (2, {"sampler.num_steps": 3}),
}
# Read where samples are compared within groups: their own tests ask each.
GROUPS = (
    "rollout.", "condition.", "flow.", "forward.", "advantage.spread", "advantage.ddof",
    "advantage.delta", "advantage.clip", "advantage.fusion", "objective.kl_",
    "objective.step_weight", "objective.train_share", "optim.step_per_decision",
)  # fmt: skip
# Settings of the family's methods: their rooms' tests and `test_combinations.py` hold them.
FAMILY = {
    "advantage.drop_alike", "advantage.fusion", "advantage.pruned_share", "flow.density",
    "flow.ode",
    "forward.advantage", "forward.loss", "forward.matching_weight", "forward.old_decay_after",
    "forward.shared_noise", "objective.density", "objective.divergence_range",
    "objective.reference", "rollout.last_stride", "rollout.pruned_first",
    "rollout.pruned_interval", "rollout.pruned_leaves", "rollout.pruned_share",
    "rollout.pruned_steps", "rollout.split_density", "rollout.split_noise", "rollout.tail_share",
}  # fmt: skip
BUILT = "read when the system is built"
RUN = "read by the trainer, between iterations"
ELSEWHERE = {
    "recipe": "a name",
    "model.network": BUILT,
    "model.weights": BUILT,
    "model.sources": BUILT,
    "sampler.negative_prompt": BUILT,
    "sampler.evaluation_steps": BUILT,
    "sampler.spacing": BUILT,
    "model.rig": BUILT,
    "model.image_size": BUILT,
    "model.finetune": BUILT,
    "model.frozen_weights": BUILT,
    "model.lora_rank": BUILT,
    "model.lora_alpha": BUILT,
    "model.dtype": BUILT,
    "model.gradient_checkpointing": BUILT,
    "model.azimuths": BUILT,
    "model.elevation": BUILT,
    "model.storage_device": BUILT,
    "model.offload_frozen": BUILT,
    "run.sharding": BUILT,
    "run.compute_dtype": BUILT,
    "run.offload_parameters": BUILT,
    "run.reduction": "read where several processes add their gradients",
    "model.views_per_decode": BUILT,
    "model.channels_last": BUILT,
    "model.compile": BUILT,
    "model.tf32": BUILT,
    "reward.per_view": BUILT,
    "reward.joint": BUILT,
    "reward.combine": "read where several scorers are added, tested below",
    "reward.weights": BUILT,
    "reward.tokenizers": BUILT,
    "reward.url": BUILT,
    "reward.device": BUILT,
    "reward.dtype": BUILT,
    "reward.images_per_chunk": BUILT,
    "reward.timeout": BUILT,
    "reward.wait": BUILT,
    "reward.api_key_env": BUILT,
    "reward.requests_at_once": BUILT,
    "reward.images_per_question": BUILT,
    "reward.cache": BUILT,
    "optim.kind": "read when the optimiser is made",
    "reward.overlap": "changes no number: tested with slow judges",
    "reward.texts_per_call": "changes no number of judges that treat objects by themselves",
    "guard.every": RUN,
    "guard.per_view": BUILT,
    "guard.joint": BUILT,
    "guard.diversity": RUN,
    "guard.noises": RUN,
    "guard.margin": RUN,
    "guard.unit": RUN,
    "guard.fallen": RUN,
    "guard.action": RUN,
    "constraint.multiplier_init": RUN,
    "constraint.threshold_init": RUN,
    "constraint.threshold_objects": RUN,
    "optim.lr": RUN,
    "optim.betas": RUN,
    "optim.eps": RUN,
    "optim.weight_decay": RUN,
    "optim.loss_scale": RUN,
    "optim.loss_scale_growth_interval": "read after each optimiser step, tested below",
    "optim.warmup_iterations": RUN,
    "optim.decay_iterations": RUN,
    "optim.average_decay": RUN,
    "optim.average_every": RUN,
    "run.iterations": RUN,
    "run.prompts": RUN,
    "run.held_out": RUN,
    "run.checkpoint_every": RUN,
    "run.keep_checkpoints": RUN,
    "run.evaluate_every": RUN,
    "run.evaluation_noises": RUN,
    "run.trackers": RUN,
    "run.device": RUN,
}


# -- groups ------------------------------------------------------------------------------

# What an iteration over groups reads: a change, and the settings under which it shows.
GROUPS_READ = {
    "rollout.kind": ("branches", ONE_VIEW),
    "rollout.members": (4, LCM),
    "rollout.ahead": (True, LCM),
    "rollout.shared_noise": (True, LCM),
    "rollout.window": ("fixed", ONE_VIEW),
    "rollout.window_size": (2, window("fixed")),
    "rollout.window_start": (1, window("fixed")),
    "rollout.window_last_start": (2, window("random")),
    "rollout.window_spacing": (2, {**window("fixed"), "rollout.window_size": 2}),
    "rollout.window_stride": (2, window("sliding", interval=1)),
    "rollout.window_interval": (1, window("sliding")),
    "rollout.window_decay": (9.0, {**window("decaying"), "first": 3}),
    "rollout.window_decay_after": (1, {**window("decaying", decay=9.0), "first": 3}),
    # Past the end of 3 places of 2 iterations each.
    "rollout.window_end": ("restart", {**window("sliding"), "first": 6}),
    "rollout.split_steps": ([1], TREE),
    "rollout.split_width": (3, TREE),
    "rollout.trunks": (2, BRANCHES),
    "rollout.strides": ([2], BRANCHES),
    "rollout.fine_steps": (1, {**BRANCHES, "rollout.strides": [3], "sampler.num_steps": 4}),
    "flow.kernel": ("constant", ONE_VIEW),
    "flow.noise_scale": (0.5, ONE_VIEW),
    "flow.shift": (3.0, ONE_VIEW),
    "flow.image_is_denoised": (True, ONE_VIEW),
    "condition.weight": (3.0, {**ONE_VIEW, "enhancer": True}),
    "forward.mix": (0.3, {**FORWARD, "optim.epochs_per_iteration": 2}),
    "forward.levels": (1, FORWARD),
    "forward.old_decay_rate": (0.2, {**FORWARD, "first": 1}),
    "forward.old_decay_largest": (
        0.1, {**FORWARD, "first": 1, "forward.old_decay_rate": 0.4},
    ),
    "forward.old_decay_unit": ("optimizer_step", {**FORWARD, "forward.old_decay_rate": 0.2}),
    "advantage.mode": ("joint", LCM),
    "advantage.joint_weight": (0.9, {**LCM, "advantage.mode": "weighted_sum"}),
    "advantage.shuffle": (True, {**LCM, "run.objects_per_iteration": 4, "first": 1}),
    "advantage.spread": ("batch", LCM),
    "advantage.ddof": (1, LCM),
    "advantage.delta": (1.0, LCM),
    "advantage.clip": (0.5, LCM),
    "advantage.fusion_inverse_temperature": (0.3, TREE),
    "objective.kind": ("guard", ONE_VIEW),
    "objective.clip": (False, {**LCM, **OFTEN}),
    "objective.clip_range": (10.0, {**LCM, **OFTEN}),
    "objective.reduction": ("sum", LCM),
    "objective.kl_weight": (0.5, LCM),
    "objective.kl_form": ("without_step_length", {**ONE_VIEW, "objective.kl_weight": 0.5}),
    "objective.step_weight": ("noise", ONE_VIEW),
    "objective.train_share": (0.5, ONE_VIEW),
    "objective.pairing": ("standard", PAIRS),
    "objective.train_last_action": (True, PAIRS),
    "zigzag.steps": (2, PAIRS),
    "zigzag.rounds": (2, PAIRS),
    "zigzag.inversion_guidance_scale": (0.5, PAIRS),
    "zigzag.inversion_camera_scale": (0.5, PAIRS),
    "constraint.step_size_violated": (0.3, {**LCM, "start": replace(START, threshold=20.0)}),
    "constraint.step_size_satisfied": (
        0.1, {**LCM, "start": replace(START, threshold=0.5)},
    ),
    "constraint.multiplier_max": (0.4, LCM),
    "constraint.threshold_decay": (0.5, LCM),
    "constraint.order": ("multiplier_first", {**LCM, "constraint.threshold_decay": 0.5}),
    "optim.step_per_decision": (True, LCM),
    "optim.epochs_per_iteration": (2, LCM),
    "optim.optimizer_steps_per_epoch": (2, LCM),
    "optim.max_grad_norm": (1e-3, LCM),
    "model.storage_dtype": ("bf16", LCM),
    "sampler.kind": ("ddim", LCM),
    "sampler.num_steps": (4, LCM),
    "sampler.guidance_scale": (2.5, LCM),
    "sampler.camera_scale": (0.5, LCM),
    "run.seed": (1, LCM),
    "run.objects_per_iteration": (4, LCM),
}  # fmt: skip
# How work is cut up: the network calls change and the numbers do not, but for rounding.
GROUPS_CUTS = {
    "rollout.nodes_per_call": (1, {**ONE_VIEW, "objective.kl_weight": 0.5}),
    "run.objects_per_slice": (2, {**BRANCHES, "rollout.strides": [1, 2]}),
}
# What is read before the first iteration: where captions come from, and how long prompts are.
GROUPS_BUILT = {
    f"condition.{name}"
    for name in (
        "enhancer",
        "num_captions",
        "file",
        "model",
        "url",
        "api_key_env",
        "requests_at_once",
        "samples_per_question",
        "instructions",
    )
} | {"flow.text_length"}


# -- laws --------------------------------------------------------------------------------

READ = [
    *((path, change, {**ZIGAL, **others}) for path, (change, others) in PAIRS_READ.items()),
    *((path, change, others) for path, (change, others) in GROUPS_READ.items()),
]
CUTS = [
    *((path, change, {**ZIGAL, **others}) for path, (change, others) in PAIRS_CUTS.items()),
    *((path, change, others) for path, (change, others) in GROUPS_CUTS.items()),
]


@cache
def learnt_under(settings):
    """Learn once under settings that several changes are compared with."""
    settings = {name: list(v) if isinstance(v, tuple) else v for name, v in settings}
    how = {name: settings.pop(name) for name in ("first", "start") if name in settings}
    if settings.pop("enhancer", False):
        how["enhancer"] = Said("prompt 7", "prompt 9")
    with without_shape_checks():  # most of the time here, and no news after the first
        return learn(config_of(settings), **how)


def both_ways(path, change, others):
    """Learn without and with a change."""
    return [
        learnt_under(tuple((n, tuple(v) if isinstance(v, list) else v) for n, v in how.items()))
        for how in (others, {**others, path: change})
    ]


@pytest.mark.parametrize(("path", "change", "others"), READ, ids=[case[0] for case in READ])
def test_a_setting_changes_what_is_learnt(path, change, others):
    """One that does nothing would be a fault."""
    (plain, *_), (changed, *_) = both_ways(path, change, others)

    assert not torch.allclose(plain, changed, rtol=1e-7, atol=1e-9)
    assert changed.isfinite().all()


@pytest.mark.parametrize(("path", "change", "others"), CUTS, ids=[case[0] for case in CUTS])
def test_a_cut_changes_the_calls_and_not_the_numbers(path, change, others):
    """Neither parameters nor metrics: replay in other slices rounds otherwise, and no more."""
    (plain, before, calls, _), (cut, after, other, _) = both_ways(path, change, others)

    assert [call.rows for call in calls] != [call.rows for call in other]
    torch.testing.assert_close(plain, cut, rtol=1e-4, atol=1e-6)
    for name in before[0]:
        assert after[0][name] == pytest.approx(before[0][name], rel=1e-3, abs=1e-5), name
    if path != "run.objects_per_slice":
        assert after[0]["replay_deviation"] < 1e-2


def test_every_setting_is_read_somewhere():
    """A new one must be put into one of the lists above."""
    sections = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    paths = {
        f"{name}.{field.name}" if dataclasses.is_dataclass(kind) else name
        for name, kind in sections.items()
        for field in (dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else [None])
        if field is not None or not dataclasses.is_dataclass(kind)
    }
    groups = {path for path in paths if path.startswith(GROUPS)}

    assert paths == {*PAIRS_READ, *PAIRS_CUTS, *ELSEWHERE, *FAMILY, *groups}
    assert not PAIRS_READ.keys() & ELSEWHERE.keys()
    assert groups - {*GROUPS_READ, *GROUPS_CUTS, *FAMILY} == GROUPS_BUILT
    assert {*GROUPS_READ, *GROUPS_CUTS} <= paths
