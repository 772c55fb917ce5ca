"""`config.plugins`: entry points found, loaded one by one, and refused by name."""

import re
import sys
import tomllib

import pytest
import torch

from mvczigal_ref.config import RewardConfig, TrainConfig, load_config
from mvczigal_ref.config.plugins import GROUPS, load_plugin, plugin_names
from mvczigal_ref.diffusion.lcm import LcmSampler
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.method.pair_settings import pair_objective
from mvczigal_ref.objective.reward_difference import reward_difference_gradients
from mvczigal_ref.recipes import recipe, recipe_names
from mvczigal_ref.reward.builders import ScorerOptions
from mvczigal_ref.reward.registry import check_scorers, joint_view_scorer, per_view_scorer
from mvczigal_ref.system.enhancer import build_enhancer
from mvczigal_ref.system.sampler import build_sampler
from mvczigal_ref.training.rewards import reward_sources
from tests.plugin import EXAMPLE, install

PIECES = """
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.diffusion.lcm import LcmSampler


def loss(zigzag, standard, gap, settings):
    return ((zigzag - standard) / settings.temperature - gap).square().mean()


def constant(zigzag, standard, gap, settings):
    return gap.mean()


def scorer(options):
    return lambda images, prompts: images.mean((-1, -2, -3)) * options.num_views


def sampler(steps, alpha_bar, settings):
    return LcmSampler.create(
        num_steps=steps, alpha_bar=alpha_bar, prediction_type=settings.prediction_type
    )


class enhancer:
    needs_images = False

    def __init__(self, condition, device):
        self.count = condition.num_captions

    def num_captions(self, group_size):
        return self.count

    def __call__(self, *arguments, **more):
        raise NotImplementedError


def red():
    "Paint red."
    return TrainConfig()


def nothing(*arguments):
    return None


NUMBER = 3
"""
ENTRIES = {
    "scorers": {"p.mean": "pieces:scorer", "p.none": "pieces:nothing", "p.broken": "broken:scorer"},
    "objectives": {"p.loss": "pieces:loss", "p.flat": "pieces:constant"},
    "samplers": {"p.lcm": "pieces:sampler", "p.none": "pieces:nothing"},
    "recipes": {"p_red": "pieces:red", "p_none": "pieces:nothing"},
    "enhancers": {"p.captions": "pieces:enhancer", "p.none": "pieces:nothing"},
}
IMAGES = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
OPTIONS = ScorerOptions(num_views=3, image_size=16)


@pytest.fixture
def pieces(monkeypatch, tmp_path):
    """A package that registers a piece of every kind."""
    install(monkeypatch, tmp_path, ENTRIES, pieces=PIECES, broken="1 / 0\n")
    yield tmp_path / "pieces.py"
    sys.modules.pop("pieces", None)


# -- laws --------------------------------------------------------------------------------


def test_names_are_found_without_an_import(pieces):
    """Sorted, in their groups; nothing is loaded for it."""
    assert {group: plugin_names(group) for group in GROUPS} == {
        group: sorted(entries) for group, entries in ENTRIES.items()
    }
    assert recipe_names()[-2:] == ["p_none", "p_red"]
    load_config(overrides=["objective.kind=p.loss", "sampler.kind=p.lcm"])
    check_scorers(RewardConfig(per_view="p.mean"))
    assert "pieces" not in sys.modules


def test_only_the_piece_that_is_named_is_loaded(pieces):
    """A broken neighbour is not in the way."""
    per_view_scorer("p.mean", OPTIONS)

    assert "broken" not in sys.modules


def test_a_scorer_is_built_with_its_options(pieces):
    """And recorded as functions are."""
    scorer = per_view_scorer("p.mean", OPTIONS)
    config = load_config(overrides=["reward.per_view=p.mean"])

    assert torch.equal(scorer(IMAGES, ["a", "b"]), 3 * IMAGES.mean((-1, -2, -3)))
    assert reward_sources(config)["p.mean"]["place"] == "pieces:scorer"
    assert re.fullmatch("[0-9a-f]{64}", reward_sources(config)["p.mean"]["sha256"])


def test_an_objective_learns_as_the_same_one_of_the_package(pieces):
    """Loss, derivatives and diagnostics; its settings reach it."""
    words = ["objective.kind=p.loss", "objective.temperature=0.5", "objective.clip_range=0.1"]
    config = load_config(overrides=words)
    draws = torch.randn(3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plugged = pair_objective(config)(*draws)
    packaged = reward_difference_gradients(*draws, clip_range=float("inf"), temperature=0.5)

    assert config.objective.compares_pairs
    for name in ("loss", "zigzag", "standard"):
        assert torch.allclose(getattr(plugged, name), getattr(packaged, name))
    assert plugged.stats.clip_fraction == (draws[:2].abs() > 0.1).double().mean()


def test_a_sampler_makes_the_grid(pieces):
    """From the settings of its section."""
    plugged = build_sampler(load_config(overrides=["sampler.kind=p.lcm", "sampler.num_steps=3"]))
    packaged = build_sampler(load_config(overrides=["sampler.num_steps=3"]))

    assert isinstance(plugged, LcmSampler)
    assert torch.equal(plugged.timesteps, packaged.timesteps)


def test_an_enhancer_reads_its_section(pieces):
    """Settings that the package's own would not read are not refused."""
    words = ["condition.enhancer=p.captions", "condition.num_captions=7"]
    config = load_config(recipe("tiny_flow_grpo"), overrides=words)
    enhancer = build_enhancer(config.condition, device=torch.device("cpu"))

    assert enhancer.num_captions(4) == 7


def test_a_recipe_is_a_run(pieces):
    """Under the name that it is registered by."""
    assert recipe("p_red") == load_config(TrainConfig(recipe="p_red"))


def test_the_example_registers_what_it_has(monkeypatch, tmp_path):
    """Its recipe trains by its scorer and its objective, loaded when they are named."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))["project"]
    entries = {
        group.removeprefix("mvczigal_ref."): each for group, each in project["entry-points"].items()
    }
    install(monkeypatch, tmp_path, entries)
    monkeypatch.syspath_prepend(EXAMPLE)
    config = recipe("example_red")
    red = torch.zeros(1, 3, 3, 8, 8)
    red[:, :, 0] = 1.0

    assert config.recipe == "example_red"
    scorer = per_view_scorer(config.reward.per_view, OPTIONS)
    assert scorer(red, ["red"]).tolist() == [[1.0, 1.0, 1.0]]
    assert float(pair_objective(config)(torch.zeros(2), torch.zeros(2), torch.ones(2)).loss) == 0.5
    for name in [name for name in sys.modules if name.startswith("mvczigal_example")]:
        del sys.modules[name]


# -- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "listed"),
    [
        (
            "objective.kind=reward",
            "divergence, forward_process, guard, p.flat, p.loss, policy_gradient, preference, "
            "reward_difference, sequence",
        ),
        ("sampler.kind=dpm", "ddim, flow, lcm, p.lcm, p.none"),
        (
            "condition.enhancer=words",
            "chat, local, none, p.captions, p.none, stored, world, world_edits",
        ),
    ],
)
def test_an_unknown_name_is_refused_with_all_that_are_registered(pieces, word, listed):
    """Sorted, plug-ins among them."""
    path, _, name = word.partition("=")
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[word])

    assert str(caught.value) == f"`{path}`: must be one of {listed}; got {name!r}."


def test_an_unknown_scorer_or_recipe_is_refused_with_all_that_are_registered(pieces):
    """And the nearest is named."""
    with pytest.raises(ConfigError, match=r"nearest is 'p\.mean'.*hpsv3.*, p\.mean, .*world"):
        check_scorers(RewardConfig(per_view="p.meam"))
    with pytest.raises(ConfigError, match=r"unknown recipe: `p_redd`; did you mean `p_red`\?"):
        recipe("p_redd")


@pytest.mark.parametrize(
    ("act", "complaint"),
    [
        (lambda: per_view_scorer("p.broken", OPTIONS), "ZeroDivisionError: division by zero"),
        (lambda: per_view_scorer("p.none", OPTIONS), "must be a function of ScorerOptions"),
        (lambda: joint_view_scorer("p.mean", OPTIONS), "as `reward.per_view` takes"),
        (lambda: recipe("p_none"), "must give a TrainConfig; got a NoneType"),
        (
            lambda: build_sampler(load_config(overrides=["sampler.kind=p.none"])),
            "must give a Sampler; got a NoneType",
        ),
        (
            lambda: pair_objective(load_config(overrides=["objective.kind=p.flat"]))(
                *torch.zeros(3, 2)
            ),
            "must give a tensor of one number that depends on both log-ratios",
        ),
        (lambda: load_plugin("objectives", "p.absent"), "no installed package registers"),
    ],
)
def test_a_piece_that_is_none_is_refused(pieces, act, complaint):
    """With its name and what it should be."""
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        act()


def test_two_packages_may_not_share_a_name(pieces, monkeypatch, tmp_path):
    """Neither wins in silence."""
    other = tmp_path / "other"
    install(monkeypatch, other, {"scorers": {"p.mean": "elsewhere:scorer"}})
    (other / "pretend-1.0.dist-info").rename(other / "another-1.0.dist-info")
    (other / "another-1.0.dist-info" / "METADATA").write_text("Name: another\nVersion: 1\n")

    with pytest.raises(ConfigError, match="must be registered once"):
        plugin_names("scorers")
