"""`recipes`: named runs that are valid, documented, and differ in what their name says."""

import inspect

import pytest

from mvczigal_ref.config import TrainConfig, from_dict, to_dict
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
FLUX = (
    "flow_grpo", "flow_grpo_fast", "dance_grpo", "tempflow_grpo", "mix_grpo", "g2rpo",
    "branch_grpo", "diffusion_nft", "mv_grpo_llm", "mv_grpo_vlm",
)  # fmt: skip
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


@pytest.mark.parametrize("name", FLUX)
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
