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
    "tiny_joint": {"advantage.mode"},
    "tiny_per_view": {"advantage.mode"},
    "tiny_weighted": {"advantage.mode"},
    "tiny_rdl": {"advantage.mode", "objective.pairing"},
    "tiny_shuffled": {"advantage.shuffle"},
}


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


@pytest.mark.parametrize(("name", "changed"), ALSO_CHANGES.items())
def test_a_comparison_differs_in_one_thing(name, changed):
    """A difference in the outcome then has one cause."""
    start, other = settings_of(recipe("tiny")), settings_of(recipe(name))

    assert {path for path in start if start[path] != other[path]} == changed


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
    with pytest.raises(ConfigError, match=r"tiny_jont.*tiny_joint"):
        recipe("tiny_jont")
