"""`method.score` and the comparison of groups: oracle, laws, errors."""

import math
from dataclasses import replace

import pytest
import torch

from mvczigal_ref.condition.distinct import distinct_texts
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.method.groups import compare as compare_groups
from mvczigal_ref.method.score import score
from mvczigal_ref.method.slices import Share
from mvczigal_ref.records import Samples
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.reward.table import RewardTable
from mvczigal_ref.rollout.noise import derived_generator
from tests.analytic_system import analytic_system
from tests.strategies import randn
from tests.unit.method.test_sample import GROUP, compare, config_of, told

PROMPTS, SAMPLES, VIEWS, CONDITIONS = 3, 4, 3, 2
NAMES = {"red": 0.01, "contrast": 20.0, "agreement": 1.0, "blue": -3.0}


def rewards_of(*, joint=True, seed=0):
    """Give four scorers tables of their own scale and place, two a view and two an object."""
    shape = (CONDITIONS, PROMPTS, SAMPLES, VIEWS)
    tables = {
        name: randn(*shape, seed=seed + n, dtype=torch.float64) / weight + 3 * n
        for n, (name, weight) in enumerate(NAMES.items())
    }
    return RewardTable(
        per_view={name: tables[name] for name in ("red", "contrast")},
        joint={name: tables[name][..., 0] for name in ("agreement", "blue")} if joint else {},
        weights=NAMES,
    )


def samples_of():
    """Hold nothing but how rewards are compared: one group a prompt, and one table."""
    denoised = torch.zeros(PROMPTS, SAMPLES, VIEWS, 1, 1, 1)
    return Samples(decisions=(), denoised=denoised, branching=(SAMPLES,))


def tables_of(rewards, config, *, multiplier=0.5, iteration=0):
    """Compare groups that have one decision; drop its axis."""
    found = compare_groups(
        rewards, [samples_of()], multiplier=multiplier, share=Share([], []), config=config,
        world=World(), iteration=iteration,
    )  # fmt: skip
    return [table for (table,) in found]


def added(tables, names, weights=NAMES):
    """Add tables times weights."""
    return sum(weights[name] * tables[name] for name in names)


def standard(table, config):
    """Standardise groups in plain floats, the samples last."""
    rows = [compare(row, **told(config.advantage)) for row in table.flatten(0, -2).tolist()]
    return torch.tensor(rows, dtype=torch.float64).reshape(table.shape)


def asked(seen):
    """Make a scorer of each name that notes what it is told."""

    def scorer(name, joint):
        def score(images, prompts):
            seen.append((name, list(prompts)))
            number = torch.tensor([float(text.split()[-1]) for text in prompts])
            table = images.mean((-3, -2, -1)) * (1 + number)[:, None]
            return table.sum(-1) if joint else table

        return score

    per_view = Mixture(
        scorers={"b": scorer("b", False), "a": scorer("a", False)}, weights={"a": 2.0, "b": 0.5}
    )
    return per_view, scorer("joint_view", True)


# -- oracle ------------------------------------------------------------------------------


def test_every_sample_is_judged_under_every_caption():
    """Of its own prompt; conditions first, each scorer by its own name."""
    seen = []
    per_view, joint = asked(seen)
    system = replace(analytic_system(config_of(GROUP)), per_view=per_view, joint=joint)
    images = torch.rand(2, 4, 3, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    captions = [["p 1", "p 2"], ["c 5", "c 7"], ["d 0", "d 9"]]
    found = score(system, images, distinct_texts(captions))
    brightness = images.mean((-3, -2, -1))

    for row, texts in enumerate(captions):
        factor = torch.tensor([1 + float(text.split()[1]) for text in texts])
        expected = brightness * factor[:, None, None]
        for name in ("a", "b"):
            torch.testing.assert_close(found.per_view[name][row], expected)
        torch.testing.assert_close(found.joint["joint_view"][row], expected.sum(-1))
    assert [name for name, _ in seen] == ["a", "b", "joint_view"] * 3
    assert seen[3][1] == ["c 5"] * 4 + ["c 7"] * 4
    assert found.weights == {"a": 2.0, "b": 0.5, "joint_view": 1.0}


def test_totals_are_weighted_sums():
    """The mean over views stands for a joint reward that nobody gives."""
    rewards, alone = rewards_of(), rewards_of(joint=False)
    per_view = added(rewards.per_view, ("red", "contrast"))

    torch.testing.assert_close(rewards.per_view_total(), per_view)
    torch.testing.assert_close(rewards.joint_total(), added(rewards.joint, ("agreement", "blue")))
    torch.testing.assert_close(alone.joint_total(), per_view.mean(-1))


def test_the_sum_of_several_rewards_advantages_is_clipped_and_no_term_of_it():
    """A term beyond the bound may be brought back by another."""
    config = config_of(
        GROUP, {"reward.combine": "advantages", "advantage.mode": "per_view", "advantage.clip": 1.0}
    )
    free = replace(config, advantage=replace(config.advantage, clip=1e9))
    rewards = replace(rewards_of(), weights={**NAMES, "red": 3.0, "contrast": -2.5})
    (wanted, *_), (found, *_) = tables_of(rewards, free), tables_of(rewards, config)

    assert torch.equal(found, wanted.clamp(-1.0, 1.0))
    assert 0.2 < float((wanted.abs() > 1.0).double().mean()) < 0.9


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("combine", ["rewards", "advantages"])
def test_several_scorers_are_added_as_asked(combine, joint):
    """Raw and then compared, or compared and then added; under each caption by itself."""
    config = config_of(
        GROUP, {"reward.combine": combine, "advantage.ddof": 1, "advantage.mode": "weighted_sum",
                "advantage.joint_weight": 0.3, "advantage.clip": 1e9},
    )  # fmt: skip
    rewards = rewards_of(joint=joint)
    views = {name: table.movedim(-1, 1) for name, table in rewards.per_view.items()}
    whole = rewards.joint or {"mean": rewards.joint_total()}
    weights = {**NAMES, "mean": 1.0}
    if combine == "rewards":
        views = {"": added(views, views)}
        whole = {"": added(whole, whole, weights)}
        weights = {"": 1.0}
    by_view, by_object = (
        added({name: standard(table, config) for name, table in tables.items()}, tables, weights)
        for tables in (views, whole)
    )
    expected = 0.7 * by_view.movedim(1, -1) + 0.3 * by_object[..., None]

    for found, wanted in zip(tables_of(rewards, config), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("mode", "share"), [("constrained", 0.6), ("joint", 1.0), ("per_view", 0.0)]
)
def test_the_two_rewards_are_mixed_by_the_mode(mode, share):
    """Constrained by the multiplier, 1.5 here."""
    config, rewards = config_of(GROUP, {"advantage.mode": mode}), rewards_of()
    by_view = standard(rewards.per_view_total().movedim(-1, 1), config).movedim(1, -1)
    by_object = standard(rewards.joint_total(), config)
    expected = (1 - share) * by_view + share * by_object[..., None]

    for found, wanted in zip(tables_of(rewards, config, multiplier=1.5), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


# -- laws --------------------------------------------------------------------------------


def test_shuffling_permutes_prompts_alike_under_all_captions():
    """Another order each iteration, and by the seed."""
    rewards = rewards_of()
    plain = tables_of(rewards, config_of(GROUP))
    config = config_of(GROUP, {"advantage.shuffle": True, "run.seed": 3})
    orders = []
    for iteration in range(5):
        generator = derived_generator(3, iteration, "shuffle")
        orders.append(torch.randperm(PROMPTS, generator=generator))
        for table, before in zip(
            tables_of(rewards, config, iteration=iteration), plain, strict=True
        ):
            assert torch.equal(table, before[orders[-1]])

    assert len({tuple(order.tolist()) for order in orders}) > 1


def test_a_caption_s_groups_do_not_see_the_other_captions():
    """Also where the whole batch's spread divides."""
    config = config_of(GROUP, {"advantage.spread": "batch"})
    rewards = rewards_of()
    first = RewardTable(
        per_view={name: table[:1] for name, table in rewards.per_view.items()},
        joint={name: table[:1] for name, table in rewards.joint.items()},
        weights=rewards.weights,
    )

    assert torch.equal(tables_of(rewards, config)[0], tables_of(first, config)[0])


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "place", "said"),
    [
        ("per_view", "contrast", (0, 2, 1, 0),
         r"`reward/contrast of sample 1` must be finite; got nan at object 2, view 0\."),
        ("joint", "blue", (1, 0, 3),
         r"`reward/blue of sample 3 under caption 1` must be finite; got nan at object 0\."),
    ],
)  # fmt: skip
def test_a_reward_that_is_not_finite_is_named(kind, name, place, said):
    """By scorer, sample, caption and place."""
    rewards = rewards_of()
    rewards.require_finite()
    getattr(rewards, kind)[name][place] = math.nan
    with pytest.raises(NonFiniteError, match=said):
        rewards.require_finite()
