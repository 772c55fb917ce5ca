"""`recipes`: named runs that are valid, documented, and differ in what their name says."""

import inspect

import pytest

from mvczigal_ref.config import TrainConfig, from_dict, load_config, to_dict
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.recipes import RECIPES, recipe
from mvczigal_ref.report.run_folder import settings_of
from mvczigal_ref.slices import Share

ALSO_CHANGES = {
    "tiny": {
        "tiny_per_view": {"advantage.mode"},
        "tiny_shuffled": {"advantage.shuffle"},
        "tiny_mv_zigal": {"advantage.mode"},
        "tiny_ws_zigal": {"advantage.mode"},
        "tiny_mv_rdl": {"advantage.mode", "objective.pairing"},
        "tiny_mv_dpo": {"advantage.mode", "objective.pairing", "objective.kind"},
        "tiny_mv_pg": {
            "advantage.mode", "advantage.spread", "objective.pairing", "objective.kind",
        },
        "tiny_mvc_zigpg": {"advantage.spread", "objective.kind"},
        "tiny_fixed_threshold": {"constraint.threshold_decay"},
        "tiny_fixed_step_size": {"constraint.step_size_satisfied"},
        "tiny_full_zigzag": {"zigzag.steps"},
    },
    "tiny_flow_grpo": {
        "tiny_flow_shuffled": {"advantage.shuffle"},
        "tiny_grpo_guard": {"objective.kind", "objective.clip_range"},
        "tiny_mix_grpo": {
            "rollout.window", "rollout.window_size", "rollout.window_interval",
        },
    },
    "tiny_flow_grpo_fast": {
        "tiny_mv_grpo_vlm": {"condition.enhancer"},
        "tiny_mv_grpo_llm": {"condition.enhancer", "condition.instructions"},
    },
}  # fmt: skip
# What is published of every method on FLUX.1-dev, by a setting's path; the rest is free.
SHARED = {
    "model.weights": "black-forest-labs/FLUX.1-dev",
    "model.image_size": 512,
    "model.dtype": "bf16",
    "model.lora_rank": 64,
    "model.lora_alpha": 128.0,
    "sampler.kind": "flow",
    "sampler.evaluation_steps": 28,
    "advantage.mode": "per_view",
    "advantage.delta": 1e-4,
    "advantage.clip": 5.0,
    "optim.average_decay": 0.9,
}
FLOW_GRPO = {
    "sampler.num_steps": 6,
    "sampler.guidance_scale": 3.5,
    "flow.kernel": "sde",
    "flow.noise_scale": 0.9,
    "flow.image_is_denoised": False,
    "rollout.kind": "group",
    "rollout.members": 24,
    "rollout.shared_noise": False,
    # All steps but the last.
    "rollout.window": "fixed",
    "rollout.window_start": 0,
    "rollout.window_size": 5,
    "rollout.window_spacing": 1,
    "advantage.spread": "batch",
    "advantage.ddof": 0,
    "objective.kind": "policy_gradient",
    "objective.clip_range": 1e-4,
    "objective.kl_weight": 0.0,
    "objective.step_weight": "equal",
    "objective.train_share": 1.0,
    "optim.lr": 3e-4,
    # 4 iterations of 2 steps: the average moves every 8.
    "optim.average_every": 4,
    "optim.optimizer_steps_per_epoch": 2,
}
# Its authors' later ones: noise at steps 0, 2, 4 and 6.
MV_GRPO = {
    "sampler.num_steps": 16,
    "sampler.guidance_scale": 3.5,
    "flow.kernel": "sde",
    "flow.noise_scale": 0.7,
    "flow.shift": 3.0,
    "rollout.kind": "group",
    "rollout.members": 12,
    "rollout.window": "fixed",
    "rollout.window_start": 0,
    "rollout.window_size": 4,
    "rollout.window_spacing": 2,
    "reward.per_view": "hpsv3",
    "advantage.spread": "group",
    "objective.kind": "policy_gradient",
    "objective.kl_weight": 0.0,
    "optim.lr": 2e-6,
    "optim.weight_decay": 1e-4,
    "run.iterations": 300,
}
PUBLISHED = {
    "flow_grpo": FLOW_GRPO,
    "flow_grpo_fast": FLOW_GRPO | {
        "sampler.guidance_scale": 1.0,
        "flow.kernel": "cps",
        "flow.noise_scale": 0.8,
        # Starts 0, 1 and 2 lie below half of 6 steps.
        "rollout.window": "random",
        "rollout.window_last_start": 2,
        "rollout.window_size": 3,
        "objective.clip_range": 1e-5,
    },
    "grpo_guard": FLOW_GRPO | {"objective.kind": "guard", "objective.clip_range": 2e-6},
    "tempflow_grpo": FLOW_GRPO | {
        "rollout.kind": "branches",
        "rollout.members": 6,
        "rollout.trunks": 4,
        "advantage.spread": "group",
        "objective.step_weight": "noise",
    },
    "dance_grpo": {
        "flow.kernel": "constant",
        "flow.noise_scale": 0.3,
        "flow.image_is_denoised": True,
        "rollout.kind": "group",
        "rollout.shared_noise": True,
        "rollout.window": "all",
        "advantage.spread": "group",
        "advantage.ddof": 1,
        "objective.kind": "policy_gradient",
        "objective.kl_weight": 0.0,
        "objective.train_share": 0.6,
    },
    "mix_grpo": {
        "sampler.num_steps": 25,
        "rollout.kind": "group",
        "rollout.window": "sliding",
        "rollout.window_size": 4,
        "rollout.window_stride": 1,
        "rollout.window_interval": 25,
        "reward.combine": "advantages",
        "objective.kind": "policy_gradient",
        "objective.train_share": 1.0,
    },
    "g2rpo": {
        "rollout.kind": "branches",
        "rollout.trunks": 1,
        "rollout.window": "fixed",
        "rollout.window_start": 0,
        "rollout.window_size": 8,
        "rollout.window_spacing": 1,
        "rollout.strides": [1, 2],
        "advantage.spread": "group",
        "objective.kind": "policy_gradient",
        "objective.train_share": 1.0,
        "optim.step_per_decision": True,
        "optim.optimizer_steps_per_epoch": 1,
    },
    # Beside the tree as DanceGRPO, on which it is built.
    "branch_grpo": {
        "flow.kernel": "constant",
        "flow.noise_scale": 0.3,
        "flow.image_is_denoised": True,
        "rollout.kind": "tree",
        "rollout.split_steps": [0, 3, 6, 9],
        "rollout.split_width": 2,
        "rollout.window": "all",
        "advantage.spread": "group",
        "advantage.fusion_inverse_temperature": 0.0,
        "objective.kind": "policy_gradient",
        "objective.train_share": 1.0,
    },
    "diffusion_nft": {
        "rollout.kind": "group",
        "rollout.shared_noise": False,
        "objective.kind": "forward_process",
        "objective.kl_weight": 1e-4,
        "forward.old_decay_rate": 0.001,
        "forward.old_decay_largest": 0.5,
    },
    "mv_grpo_llm": MV_GRPO | {"condition.enhancer": "stored", "condition.weight": 1.0},
    "mv_grpo_vlm": MV_GRPO | {
        "condition.enhancer": "local",
        "condition.model": "Qwen/Qwen3-VL-8B-Instruct",
        "condition.weight": 1.0,
    },
}  # fmt: skip
MULTIVIEW = ("mv_pg", "mv_dpo", "mv_rdl", "mv_zigal", "ws_zigal", "mvc_zigpg", "mvc_zigal")


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_whole_configuration(name):
    """It carries its own name, survives a file, and can be shared out among two processes."""
    config = recipe(name)

    assert isinstance(config, TrainConfig)
    assert config.recipe == name
    assert from_dict(to_dict(config)) == config
    for rank in range(2):
        assert len(Share.of(config, World(rank=rank, size=2)).objects) > 0


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is_in_one_line(name):
    """`mvczigal recipes` shows the line."""
    first = inspect.getdoc(RECIPES[name]).partition("\n")[0]

    assert first.endswith(".")
    assert 20 < len(first) <= 95


@pytest.mark.parametrize(
    ("base", "name", "changed"),
    [(base, name, paths) for base, row in ALSO_CHANGES.items() for name, paths in row.items()],
)
def test_a_comparison_differs_in_one_thing(base, name, changed):
    """A difference in the outcome then has one cause."""
    start, other = settings_of(recipe(base)), settings_of(recipe(name))

    assert {path for path in start if start[path] != other[path]} == changed


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_method_on_flux_has_the_published_settings(name):
    """Those that its paper or released code gives, and no augmented conditions but MV-GRPO's."""
    expected = {"condition.enhancer": "none"} | SHARED | PUBLISHED[name]
    found = settings_of(load_config(recipe(name)))

    assert {path: found[path] for path in expected} == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_method_on_flux_has_its_tiny_form(name):
    """Of the same objective, the same kind of groups and the same kernel."""
    full, small = recipe(name), recipe(f"tiny_{name}")

    assert small.objective.kind == full.objective.kind
    assert small.objective.step_weight == full.objective.step_weight
    assert small.rollout.kind == full.rollout.kind
    assert small.rollout.strides == full.rollout.strides
    assert small.optim.step_per_decision == full.optim.step_per_decision
    assert (small.condition.enhancer == "none") == (full.condition.enhancer == "none")
    if not name.startswith("mv_"):
        assert small.flow.kernel == full.flow.kernel


@pytest.mark.parametrize("name", MULTIVIEW)
def test_a_baseline_changes_the_same_settings_at_both_sizes(name):
    """The full-size one from `lcm_sdxl_simple`, the tiny one from `tiny`."""
    small = "tiny" if name == "mvc_zigal" else f"tiny_{name}"

    def changes(base, other):
        start, end = settings_of(recipe(base)), settings_of(recipe(other))
        return {path: end[path] for path in start if start[path] != end[path]}

    assert changes("lcm_sdxl_simple", name) == changes("tiny", small)


def test_the_released_settings_are_the_released_ones():
    """Clip 1e-4, all actions trained, threshold of the first batch, one optimiser step."""
    config = recipe("tiny_released")

    assert config.objective.clip_range == 1e-4
    assert config.objective.train_last_action
    assert config.constraint.threshold_objects == 0
    assert config.optim.optimizer_steps_per_epoch == 1
    assert config.sampler.num_steps == 8


def test_an_unknown_recipe_names_the_nearest():
    """A slip of the finger is told as one."""
    with pytest.raises(ConfigError, match=r"tiny_shufled.*tiny_shuffled"):
        recipe("tiny_shufled")
