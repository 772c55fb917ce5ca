"""`recipes`: named runs that are valid, documented, and differ in what their name says."""

import inspect
import json
import re
from pathlib import Path

import pytest

from mvczigal_ref.config import TrainConfig, from_dict, load_config, to_dict
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.method.slices import Share
from mvczigal_ref.recipes import RECIPES, dance, flow, mv_grpo, recipe, sd3
from mvczigal_ref.report.run_content import settings_of

ROOT = Path(__file__).parents[3]
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
SOURCES = json.loads((ROOT / "fixtures" / "golden" / "recipe_sources.json").read_text("utf-8"))
TABLE = re.compile(r"^\| `(\w+)` \| (.+) \| (.+) \| (.+) \| (.+) \|$", re.MULTILINE)
METHODS = (*flow.__all__, *mv_grpo.__all__, *dance.__all__)
TRAJECTORIES = ("flow.kernel", "flow.noise_scale", "objective.clip_range", "rollout.window")
# What every source must say, or say that it has none.
ASKED = {
    "model": ("weights", "image_size", "finetune", "dtype", "tf32"),
    "sampler": ("kind", "num_steps", "evaluation_steps", "guidance_scale"),
    "flow": ("text_length", "shift"),
    "rollout": ("kind",),
    "reward": ("per_view",),
    "advantage": ("spread", "ddof", "delta", "clip"),
    "objective": ("kind", "kl_weight"),
    "optim": (
        "lr", "betas", "eps", "weight_decay", "max_grad_norm", "optimizer_steps_per_epoch",
        "average_decay",
    ),
    "run": ("objects_per_iteration", "iterations"),
}  # fmt: skip
# What else a source must say, by what it says of these.
ASKED_BY = {
    ("model.finetune", "lora"): ("model.lora_rank", "model.lora_alpha"),
    ("rollout.kind", "group"): ("rollout.members", "rollout.shared_noise"),
    ("rollout.kind", "branches"): ("rollout.members",),
    ("rollout.kind", "tree"): (
        "rollout.split_steps", "rollout.split_width", "advantage.fusion_inverse_temperature",
    ),
    ("rollout.window", "fixed"): (
        "rollout.window_start", "rollout.window_size", "rollout.window_spacing",
    ),
    ("rollout.window", "random"): (
        "rollout.window_start", "rollout.window_last_start", "rollout.window_size",
    ),
    ("rollout.window", "sliding"): (
        "rollout.window_size", "rollout.window_stride", "rollout.window_interval",
        "rollout.window_end",
    ),
    ("objective.kind", "forward_process"): (
        "forward.mix", "forward.levels", "forward.old_decay_rate", "forward.old_decay_largest",
        "forward.old_decay_unit",
    ),
    ("objective.kind", "policy_gradient"): TRAJECTORIES,
    ("objective.kind", "guard"): TRAJECTORIES,
}  # fmt: skip
# And where a recipe changes these from their defaults.
ASKED_IF_CHANGED = (
    "flow.image_is_denoised", "rollout.fine_steps", "reward.weights", "objective.train_share",
    "optim.step_per_decision", "condition.enhancer", "condition.model",
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


def released(name):
    """Give a recipe's settings as its sources have them, and what of theirs no setting says."""
    found, beyond = {}, {}
    for source in SOURCES["recipes"][name]:
        for path, value in source.get("settings", {}).items():
            assert found.setdefault(path, value) == value, f"sources disagree about {path}"
        beyond |= source.get("beyond", {})
    return found, beyond


def stated(name):
    """Read a recipe's rows of docs/recipes.md: the source's value, ours and the reason."""
    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    rows = [row[1:] for row in TABLE.findall(text) if row[0] == name]
    assert len({what for what, *_ in rows}) == len(rows), "two rows of one setting"
    return {what: (theirs, ours, why) for what, theirs, ours, why in rows}


def cell(value):
    """Write a value as the table does."""
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("name", SOURCES["recipes"])
def test_a_recipe_is_its_source_s_but_for_what_is_stated(name):
    """Each difference has a row with both values, and each row is a difference."""
    (theirs, beyond), ours = released(name), settings_of(load_config(recipe(name)))
    differing = {
        f"`{path}`": (cell(value), cell(ours[path]))
        for path, value in theirs.items()
        if ours[path] != value
    }
    rows = stated(name)

    assert {what: row[:2] for what, row in rows.items() if what not in beyond} == differing
    assert {what: row[0] for what, row in rows.items() if what in beyond} == beyond
    assert all(len(why.split()) >= 3 for *_, why in rows.values())


def test_every_full_size_flow_recipe_has_a_source():
    """And no other recipe has rows in the table."""
    text = (ROOT / "docs" / "recipes.md").read_text("utf-8")

    assert set(SOURCES["recipes"]) == {*METHODS, *sd3.__all__}
    assert {row[0] for row in TABLE.findall(text)} <= set(SOURCES["recipes"])
    assert len(TABLE.findall(text)) == len(re.findall(r"^\| `\w+`", text, re.MULTILINE))


def asked_of(theirs, ours):
    """Give the settings that a source must say, by what it says and by our kind of rollout."""
    asked = {f"{section}.{setting}" for section, names in ASKED.items() for setting in names}
    for (path, value), more in ASKED_BY.items():
        if theirs.get(path) == value:
            asked |= set(more)
    defaults = settings_of(TrainConfig())
    asked |= {path for path in ASKED_IF_CHANGED if ours[path] != defaults[path]}
    if theirs["rollout.kind"] == ours["rollout.kind"] == "branches":
        asked |= {"rollout.trunks", "rollout.strides"}
    if isinstance(theirs["reward.per_view"], dict):
        asked |= {"reward.combine"}
    if theirs["optim.average_decay"]:
        asked |= {"optim.average_every"}
    return asked


@pytest.mark.parametrize("name", SOURCES["recipes"])
def test_a_source_says_what_matters(name):
    """A setting that is left out of the table of sources would be compared with nothing."""
    theirs, _ = released(name)

    assert asked_of(theirs, settings_of(recipe(name))) - set(theirs) == set()
    for source in SOURCES["recipes"][name]:
        assert len(source["commit"]) == 40 if "commit" in source else "paper" in source


@pytest.mark.parametrize("name", SOURCES["recipes"])
def test_a_rate_is_put_on_what_it_was_chosen_for(name):
    """One for every weight is never a LoRA's, nor the other way round."""
    theirs, ours = released(name)[0], settings_of(recipe(name))

    assert (ours["model.finetune"], ours["optim.lr"]) == (
        theirs["model.finetune"],
        theirs["optim.lr"],
    )


@pytest.mark.parametrize("name", METHODS)
def test_conditions_are_augmented_by_mv_grpo_alone(name):
    """The other methods have none."""
    assert (recipe(name).condition.enhancer != "none") == name.startswith("mv_")
    assert recipe(name).condition.weight == 1.0


@pytest.mark.parametrize("name", METHODS)
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
    with pytest.raises(ConfigError, match=r"unknown recipe: `tiny_shufled`.*`tiny_shuffled`"):
        recipe("tiny_shufled")


def test_a_folder_where_a_recipe_is_meant_is_told_what_takes_it(tmp_path):
    """The nearest name helps nobody there."""
    with pytest.raises(ConfigError, match=r"unknown recipe: .*it is a folder: `evaluate --run`"):
        recipe(str(tmp_path))
