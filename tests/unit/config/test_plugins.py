"""`config.plugins`: entry points found, loaded one by one, and refused by name."""

import re
import sys
import tomllib

import pytest
import torch

from mvczigal_ref.config import ObjectiveConfig, RewardConfig, TrainConfig, load_config
from mvczigal_ref.config.plugins import GROUPS, load_plugin, plugin_names
from mvczigal_ref.diffusion.lcm import LcmSampler
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.method.group_loss import group_objective
from mvczigal_ref.method.pair_settings import pair_objective
from mvczigal_ref.method.plugin_loss import plugin_surrogate_loss
from mvczigal_ref.objective.reward_difference import reward_difference_gradients
from mvczigal_ref.recipes import recipe, recipe_names
from mvczigal_ref.reward.builders import ScorerOptions
from mvczigal_ref.reward.registry import check_scorers, joint_view_scorer, per_view_scorer
from mvczigal_ref.system.enhancer import build_enhancer
from mvczigal_ref.system.sampler import build_sampler
from mvczigal_ref.training.rewards import reward_sources
from mvczigal_ref.update.group_batch import ReplayedDecision
from tests.plugin import EXAMPLE, install

PIECES = """
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.lcm import LcmSampler


def terms(log_ratio, advantage, settings):
    return -advantage * log_ratio.exp() * settings.temperature


def bent(steps, sigmas, settings):
    return FlowSampler.create(
        sigmas=sigmas**2, kernel=settings.kernel, noise_scale=settings.noise_scale
    )


def short(steps, levels, settings):
    return bent(steps, levels[1:], settings)


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
    "objectives": {"p.loss": "pieces:loss", "p.flat": "pieces:constant", "p.both": "pieces:loss"},
    "group_objectives": {
        "p.terms": "pieces:terms",
        "p.gone": "pieces:nothing",
        "p.both": "pieces:terms",
    },
    "flow_samplers": {"p.bent": "pieces:bent", "p.short": "pieces:short"},
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


def test_an_objective_of_groups_learns_as_the_same_one_of_the_package(pieces):
    """Loss and gradient: its terms are weighed and averaged, and the divergence is added."""
    shared = "objective.kl_weight=0.5"
    words = ["objective.kind=p.terms", "objective.clip_range=0.1", shared]
    plugged = load_config(recipe("tiny_flow_grpo"), overrides=words)
    words = ["objective.clip=false", shared]
    packaged = load_config(recipe("tiny_flow_grpo"), overrides=words)
    sampler = build_sampler(packaged)
    generator = torch.Generator().manual_seed(0)
    log_ratio, advantage, weight = torch.randn(3, 4, 2, 1, generator=generator) / 5
    mean, reference = torch.randn(2, 4, 2, 1, 3, 2, 2, generator=generator)

    results = []
    for config in (plugged, packaged):
        leaves = log_ratio.clone().requires_grad_(), mean.clone().requires_grad_()
        decision = ReplayedDecision(
            log_ratio=leaves[0], advantage=advantage, weight=weight, repeats=torch.ones(4, 2, 1),
            mean=leaves[1], std=torch.ones(4, 2, 1), step=0, mean_old=None,
            mean_reference=reference, share=torch.ones(4, 2, 1),
        )  # fmt: skip
        loss, stats = group_objective(config, sampler)(decision)
        loss.backward()
        results.append((loss.detach(), stats, *(leaf.grad for leaf in leaves)))
    ours, theirs = results

    assert plugged.objective.is_policy_gradient
    assert not plugged.objective.compares_pairs
    assert torch.allclose(ours[0], theirs[0])
    assert torch.allclose(ours[2], theirs[2])
    assert torch.allclose(ours[3], theirs[3])
    assert ours[1].clip_fraction == (log_ratio.expm1().abs() > 0.1).float().mean()
    assert ours[1].reference_kl == theirs[1].reference_kl > 0


def test_a_sampler_of_a_flow_makes_the_grid(pieces):
    """From the levels and the section of a flow; the settings of flows act with it."""
    words = ["sampler.kind=p.bent", "flow.kernel=constant", "flow.noise_scale=0.3"]
    config = load_config(recipe("tiny_flow_grpo"), overrides=words)
    plugged, packaged = build_sampler(config), build_sampler(recipe("tiny_flow_grpo"))

    assert config.sampler.is_flow
    assert torch.allclose(plugged.sigma_t, packaged.sigma_t**2)
    assert (plugged.kernel, plugged.noise_scale) == ("constant", 0.3)
    assert plugged.deterministic().num_density_steps == 0


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
    words = ["objective.kind=example.square", "sampler.kind=example.late"]
    grouped = load_config(recipe("tiny_flow_grpo"), overrides=words)
    assert build_sampler(grouped).kernel == grouped.flow.kernel
    terms = load_plugin("group_objectives", "example.square")
    small = ObjectiveConfig(clip_range=0.5)
    assert terms(torch.tensor(2.0).log(), torch.tensor(1.0), small).item() == 0.0
    for name in [name for name in sys.modules if name.startswith("mvczigal_example")]:
        del sys.modules[name]


# -- what is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "listed"),
    [
        (
            "objective.kind=reward",
            "divergence, forward_process, guard, p.both, p.both, p.flat, p.gone, p.loss, p.terms, "
            "policy_gradient, preference, reward_difference, sequence",
        ),
        (
            "sampler.kind=dpm",
            "ddim, euler_ancestral, flow, lcm, p.bent, p.lcm, p.none, p.short, tcd",
        ),
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
        (
            lambda: build_sampler(
                load_config(recipe("tiny_flow_grpo"), overrides=["sampler.kind=p.short"])
            ),
            "must give a grid of",
        ),
        (
            lambda: plugin_surrogate_loss(
                load_plugin("group_objectives", "p.gone"),
                ObjectiveConfig(),
                *torch.zeros(2, 2),
                weight=torch.ones(2),
            ),
            "must give one term per log-ratio, a tensor of shape (2,)",
        ),
    ],
)
def test_a_piece_that_is_none_is_refused(pieces, act, complaint):
    """With its name and what it should be."""
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        act()


@pytest.mark.parametrize(
    ("name", "word", "complaint"),
    [
        ("tiny", "sampler.kind=p.bent", "stand in mvczigal_ref.samplers: p.lcm, p.none."),
        ("tiny_flow_grpo", "sampler.kind=p.lcm", "mvczigal_ref.flow_samplers: p.bent, p.short."),
        ("tiny_flow_grpo", "objective.kind=p.loss", '"p.loss" compares two trajectories'),
        ("tiny", "objective.kind=p.both", "not in both"),
    ],
)
def test_a_piece_of_the_other_kind_is_refused_by_name(pieces, name, word, complaint):
    """When the settings are read, with what is possible."""
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load_config(recipe(name), overrides=[word])


def test_two_packages_may_not_share_a_name(pieces, monkeypatch, tmp_path):
    """Neither wins in silence."""
    other = tmp_path / "other"
    install(monkeypatch, other, {"scorers": {"p.mean": "elsewhere:scorer"}})
    (other / "pretend-1.0.dist-info").rename(other / "another-1.0.dist-info")
    (other / "another-1.0.dist-info" / "METADATA").write_text("Name: another\nVersion: 1\n")

    with pytest.raises(ConfigError, match="must be registered once"):
        plugin_names("scorers")
