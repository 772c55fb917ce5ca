"""`report.run_content`: what a run has written is read, however far it came."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from mvczigal_ref.config import TrainConfig, load_config
from mvczigal_ref.config.scorer_names import reward_unit
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.recipes import RECIPES, recipe
from mvczigal_ref.report.run_content import (
    changed_settings,
    informative_metrics,
    read_run,
    score_tables,
    settings_of,
)
from mvczigal_ref.tiny_world.grammar import split_prompts
from tests.unit.report.folders import metrics, write_run


def table(*rows):
    """Scores, a row a noise."""
    return torch.tensor(rows, dtype=torch.float32)


# -- laws --------------------------------------------------------------------------------


def test_a_finished_run_is_compared_with_its_start(tmp_path):
    """The gain is the mean difference of equal prompts and noises, score by score."""
    evaluated = {
        0: (table([1.0, 2.0]), table([0.0, 0.0])),
        2: (table([2.0, 5.0]), table([-1.0, -3.0])),
    }
    run = read_run(write_run(tmp_path / "a", rows=metrics(2), evaluated=evaluated))
    gains = run.gains()

    assert [row["iteration"] for row in run.rows] == [0, 1]
    assert (gains["per view"].before, gains["per view"].after) == (1.5, 3.5)
    assert gains["per view"].gain == 2.0
    assert gains["joint view"].gain == -2.0
    assert gains["per view"].standard_error == pytest.approx(1.0)
    assert gains["joint view"].standard_error == pytest.approx(1.0)


def test_the_newest_scores_count(tmp_path):
    """A run that was made longer is judged where it now ends."""
    evaluated = {n: (table([float(n)]), table([float(2 * n)])) for n in (8, 0, 4)}
    run = read_run(write_run(tmp_path / "a", evaluated=evaluated))

    assert list(run.evaluations) == [0, 4, 8]
    assert run.gains()["joint view"].after == 16.0


@pytest.mark.parametrize(
    "evaluated",
    [
        {},
        {0: (table([1.0]), table([1.0]))},
        {4: (table([1.0]), table([1.0]))},
        {0: (table([1.0]), table([1.0])), 4: (table([1.0], [1.0]), table([1.0], [1.0]))},
    ],
    ids=["nothing", "before alone", "after alone", "other noises"],
)
def test_what_cannot_be_compared_is_not(tmp_path, evaluated):
    """An unfinished run has no gain."""
    assert read_run(write_run(tmp_path / "a", evaluated=evaluated)).gains() == {}


def test_prompts_are_the_runs_own(tmp_path):
    """A list in the folder comes first, then the tiny world's if their number fits."""
    two, forty = table([1.0, 2.0]), torch.zeros(1, 40)
    own = write_run(tmp_path / "a", evaluated={0: (two, two)}, prompts=["x", "y"])
    world = write_run(tmp_path / "b", evaluated={0: (forty, forty)})
    other = write_run(tmp_path / "c", evaluated={0: (two, two)})

    assert read_run(own).prompts == ["x", "y"]
    assert read_run(world).prompts == split_prompts()[1]
    assert read_run(other).prompts == ["prompt 1", "prompt 2"]


@given(st.sampled_from(sorted(RECIPES)), st.integers(0, 9), st.booleans())
def test_changed_settings_lead_back(name, seed, shuffle):
    """A recipe and its changed settings are the configuration again."""
    words = [f"run.seed={seed}", f"advantage.shuffle={str(shuffle).lower()}"]
    config = load_config(recipe(name), overrides=words)
    changed = changed_settings(config)
    again = load_config(recipe(name), overrides=[f"{k}={v}" for k, (_, v) in changed.items()])

    assert again == config
    assert all(old != new for old, new in changed.values())
    assert all(settings_of(recipe(name))[path] == old for path, (old, _) in changed.items())


def test_a_configuration_of_no_recipe_is_compared_with_the_defaults():
    """Nothing is changed in the defaults themselves."""
    assert changed_settings(TrainConfig()) == {}


def test_only_the_worlds_judges_measure_decibels():
    """Another scorer's unit is not guessed."""
    other = load_config(overrides=["reward.joint=other.joint"])

    assert reward_unit(TrainConfig().reward) == "dB"
    assert reward_unit(other.reward) == ""


@pytest.mark.parametrize(("per_view", "unit"), [("world.per_view", "dB"), ("other.per_view", "")])
def test_without_a_judge_of_all_views_the_unit_is_that_of_single_views(per_view, unit):
    """The mean over views has no unit of its own, and there is one score."""
    words = [f"reward.per_view={per_view}", "reward.joint=per_view"]
    config = load_config(overrides=words)

    assert reward_unit(config.reward) == unit
    assert score_tables(config) == {"per view": "per_view"}


JOINT = {"joint_view_reward/mean", "joint_view_reward/gap", "held_out/joint", "guard/joint"}
CONSTRAINT = {"multiplier", "threshold", "slack"}
ALONE = {"reward/world.per_view", "reward/world.per_view/zigzag"}


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        ([], ALONE),
        (["advantage.mode=joint"], ALONE | CONSTRAINT),
        (["advantage.mode=per_view", "reward.joint=per_view"], ALONE | CONSTRAINT | JOINT),
        (["reward.per_view={world.per_view: 1, hpsv2: 2}"], set()),
    ],
)
def test_metrics_that_say_nothing_of_a_run_are_left_out(words, absent):
    """A joint reward without a judge, a constraint without one, a lone scorer beside its sum."""
    keys = {*JOINT, *CONSTRAINT, *ALONE, "per_view_reward/mean", "reward/hpsv2", "guard/hpsv2"}

    assert keys - informative_metrics(load_config(overrides=words), keys) == absent


# -- errors ------------------------------------------------------------------------------


def test_a_folder_of_something_else_is_refused(tmp_path):
    """The message says what is missing and what to pass."""
    with pytest.raises(CheckpointError, match=r"no run folder.*config\.json.*mvczigal train"):
        read_run(tmp_path)
    with pytest.raises(CheckpointError, match="no run folder"):
        read_run(tmp_path / "nowhere")


def test_a_damaged_configuration_is_refused(tmp_path):
    """It is named."""
    (tmp_path / "config.json").write_text("{", "utf-8")

    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_run(tmp_path)


@pytest.mark.parametrize("damage", ["bytes", "fields", "name"])
def test_damaged_scores_are_refused_by_name(tmp_path, damage):
    """A reader knows which file to remove."""
    folder = write_run(tmp_path / "a") / "evaluations"
    if damage == "bytes":
        (folder / "after_000001.safetensors").write_bytes(b"nonsense")
    elif damage == "fields":
        save_file({"other": torch.zeros(1)}, folder / "after_000001.safetensors")
    else:
        save_file({"joint": torch.zeros(1)}, folder / "after_late.safetensors")

    with pytest.raises(CheckpointError, match=r"after_\w+\.safetensors"):
        read_run(tmp_path / "a")
