"""`method.groups`, `method.group_batches`: oracle, laws, errors."""

import math
from dataclasses import replace

import pytest
import torch

from mvczigal_ref.constraint import constraint_step
from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.method import groups
from mvczigal_ref.method.group_batches import (
    decisions_under,
    group_update_settings,
    slice_batches,
)
from mvczigal_ref.method.group_loss import step_weights
from mvczigal_ref.method.protocol import Iteration, Learner
from mvczigal_ref.method.slices import Share
from mvczigal_ref.objective.augmented_conditions import augmented_conditions_loss
from mvczigal_ref.objective.clipped import reference_kl
from mvczigal_ref.records import Samples
from mvczigal_ref.reward import joint_to_views, mean_over_views
from mvczigal_ref.reward.table import RewardTable
from mvczigal_ref.rollout.noise import derived_generator
from mvczigal_ref.update.replay import decision_under, member_transition, replay_decision
from tests.analytic_system import PROMPTS as TEXTS
from tests.iterations import (
    GROUP,
    LCM,
    ONE_VIEW,
    START,
    TREE,
    Said,
    SaidOfTheFirst,
    config_of,
    staged,
    system_of,
)
from tests.strategies import randn
from tests.unannotated import without_shape_checks
from tests.unit.method.test_sample import compare, told

PROMPTS, SAMPLES, VIEWS, CONDITIONS = 3, 4, 3, 2
NAMES = {"red": 0.01, "contrast": 20.0, "agreement": 1.0, "blue": -3.0}


def rewards_of(*, joint=True, seed=0):
    """Give four scorers tables of their own scale and place, two per view and two per object."""
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
    """Hold nothing but how rewards are compared: one group per prompt, and one table."""
    denoised = torch.zeros(PROMPTS, SAMPLES, VIEWS, 1, 1, 1)
    return Samples(decisions=(), denoised=denoised, branching=(SAMPLES,))


def tables_of(rewards, config, *, multiplier=0.5, iteration=0):
    """Compare groups that have one decision; drop its axis."""
    here = Iteration(config=config, world=World(), share=Share([], []), index=iteration)
    found = groups.compare(rewards, [samples_of()], here, multiplier=multiplier)
    return [table for (table,) in found]


def added(tables, names, weights=NAMES):
    """Add tables times weights."""
    return sum(weights[name] * tables[name] for name in names)


def standard(table, config):
    """Standardise groups in plain floats, the samples last."""
    rows = [compare(row, **told(config.advantage)) for row in table.flatten(0, -2).tolist()]
    return torch.tensor(rows, dtype=torch.float64).reshape(table.shape)


# -- oracle ------------------------------------------------------------------------------


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


# -- the published objective -------------------------------------------------------------

STEP = 0.05  # of the gradient
CAPTION_WEIGHT = 3.0
CASES = {
    "repeated": (ONE_VIEW, Said("prompt 7", "", "prompt 7"), {}),
    "apart": (ONE_VIEW, Said("prompt 7", "prompt 9"), {}),
    "one prompt's alone": (ONE_VIEW, SaidOfTheFirst("prompt 7", "prompt 9"), {}),
    "divergence": (LCM, Said("", "prompt 9"), {"objective.kl_weight": 0.5}),
    "steps by noise": (ONE_VIEW, Said("prompt 7", ""), {"objective.step_weight": "noise"}),
    "no captions": (ONE_VIEW, None, {}),
}


def texts_of(said, conditions):
    """List every condition's text of each prompt, the prompts' own first."""
    captions = [row for condition in conditions for row in condition.captions]
    rows = zip(*captions, strict=True) if said else ()
    return [TEXTS[: len(captions)], *([caption.caption for caption in row] for row in rows)]


class Published:
    """MV-GRPO's update by the published functions alone, over whole tables."""

    def __init__(self, system, stages, advantages, config, said):
        self.system, self.config, self.advantages = system, config, advantages
        self.settings = group_update_settings(config)
        self.texts = texts_of(said, stages.conditions)
        self.steps = list(zip(*(part.decisions for part in stages.samples), strict=True))
        self.old = [[self.each(decision_under, slices, texts) for slices in self.steps]
                    for texts in self.texts]  # fmt: skip

    def each(self, function, slices, texts):
        """Ask about every slice's decision under its prompts' texts."""
        size, given = self.config.run.objects_per_slice, []
        for place, decision in enumerate(slices):
            conditioning = self.system.conditioning(texts[place * size : (place + 1) * size])
            given.append(
                function(
                    self.system.policy, self.system.sampler, decision, conditioning,
                    settings=self.settings,
                )
            )  # fmt: skip
        return given

    def log_ratio(self):
        """By prompt, view, condition, sample and step."""
        rows = []
        for texts, old in zip(self.texts, self.old, strict=True):
            by_step = [
                torch.cat(self.each(replay_decision, slices, texts))
                - torch.cat([decision.log_prob for decision in before])
                for slices, before in zip(self.steps, old, strict=True)
            ]
            rows.append(torch.stack(by_step, dim=-1))
        return torch.stack(rows, dim=1).permute(0, 3, 1, 2, 4)

    def kl(self):
        """Like the log-ratio: the distance of each mean from the reference's."""
        rows = []
        for texts in self.texts:
            by_step = []
            for slices in self.steps:
                now = self.each(member_transition, slices, texts)
                with torch.no_grad(), self.system.backbone.without_lora():
                    home = self.each(member_transition, slices, texts)
                parts = [
                    reference_kl(a.mean, b.mean, std=a.std, reduction="mean").transpose(0, 1)
                    for a, b in zip(now, home, strict=True)
                ]
                by_step.append(torch.cat(parts))
            rows.append(torch.stack(by_step, dim=-1))
        return torch.stack(rows, dim=1).permute(0, 3, 1, 2, 4)

    def loss(self):
        """Evaluate the objective as it is published."""
        # A group has one advantage for all of its steps.
        table = torch.stack([tables[0] for tables in self.advantages], dim=1).permute(0, 3, 1, 2)
        weights = [1.0, *[CAPTION_WEIGHT] * (len(self.texts) - 1)]
        sampler: Sampler = self.system.sampler
        decisions = tuple(slices[0] for slices in self.steps)
        objective, log_ratio = self.config.objective, self.log_ratio()
        return augmented_conditions_loss(
            log_ratio,
            table.to(log_ratio.dtype),
            clip_range=objective.clip_range,
            condition_weight=torch.tensor(weights),
            step_weight=torch.tensor(step_weights(self.config, sampler, decisions)),
            kl=self.kl() if objective.kl_weight else None,
            kl_weight=objective.kl_weight,
        )


@pytest.mark.parametrize("name", CASES)
def test_the_trained_loss_is_the_published_one(name):
    """Value, clip fraction and gradient of two passes, however many captions are the same."""
    how, said, more = CASES[name]
    config = config_of(
        how,
        {"condition.weight": CAPTION_WEIGHT, **more,
         "objective.clip_range": 2e-4 if how is LCM else 1e-5,
         "optim.epochs_per_iteration": 2, "run.objects_per_slice": 2,
         "run.objects_per_iteration": 4, "advantage.mode": "per_view"},
    )  # fmt: skip
    ends, losses, fractions = [], [], []
    with without_shape_checks():
        for ours in (True, False):
            system = system_of(config)
            stages = staged(system, config, enhancer=said)
            advantages = groups.compare(stages.rewards, stages.samples, stages.here, multiplier=0.0)
            trained = list(system.trained().values())
            if ours:
                learner = Learner(system=system, optimizer=torch.optim.SGD(trained, lr=STEP))
                learned = groups.learn(learner, stages.under(advantages), stages.here)
            else:
                published = Published(system, stages, advantages, config, said)
                for _ in range(2):
                    loss, stats = published.loss()
                    gradients = torch.autograd.grad(loss, trained)
                    losses.append(loss.item())
                    fractions.append(stats.clip_fraction.item())
                    with torch.no_grad():
                        for parameter, gradient in zip(trained, gradients, strict=True):
                            parameter -= STEP * gradient
            ends.append(torch.cat([p.detach().flatten() for p in trained]))

    start = torch.cat([p.detach().flatten() for p in system_of(config).trained().values()])
    torch.testing.assert_close(ends[0] - start, ends[1] - start, rtol=1e-4, atol=1e-8)
    assert learned.metrics["loss"] == pytest.approx(sum(losses) / 2, rel=1e-4, abs=1e-7)
    assert learned.metrics["clip_fraction"] == pytest.approx(sum(fractions) / 2, abs=1e-6)
    assert 0.0 < fractions[1] < 1.0


@pytest.mark.parametrize("how", [ONE_VIEW, TREE, LCM], ids=["one view", "tree", "lcm"])
def test_batches_are_the_decisions_under_each_caption(how):
    """The old log-densities are the sampling policy's under each caption of its own prompt."""
    config, said = config_of(how, {"condition.weight": 3.0}), Said("prompt 7", "", "prompt 9")
    system = system_of(config)
    stages, settings = staged(system, config, enhancer=said), group_update_settings(config)
    constraint = constraint_step(START, groups.joint_mean(stages.rewards))
    tables = groups.compare(
        stages.rewards, stages.samples, stages.here, multiplier=constraint.multiplier
    )

    for n, (part, condition) in enumerate(zip(stages.samples, stages.conditions, strict=True)):
        decisions = decisions_under(system, part, condition, settings)
        batches = slice_batches(system, range(n, n + 1), decisions, condition, tables, config)
        assert [batch.repeats for batch in batches] == [(2,), (1,), (1,)]
        for k, (place, weight) in enumerate(((0, 1.0 + 3.0), (1, 3.0), (3, 3.0))):
            batch, text = batches[k], [TEXTS[n], *said.texts][place]
            assert batch.objects == (n,)
            assert batch.condition_weight == pytest.approx((weight / 2.5,))
            for d, decision in enumerate(batch.decisions):
                expected = replay_decision(
                    system.policy, system.sampler, decision, system.conditioning([text]),
                    settings=settings,
                )  # fmt: skip
                assert torch.equal(decision.log_prob, expected)
                assert torch.equal(batch.advantage[d], tables[place][d][n : n + 1])
    assert torch.equal(tables[0][0], tables[2][0])  # the prompt itself
    assert not torch.allclose(tables[0][0], tables[1][0])


def test_a_joint_reward_is_every_view_s():
    """As the published functions lay it out, and as they make one where no scorer gives it."""
    config = config_of(GROUP, {"advantage.mode": "joint"})
    for table in tables_of(rewards_of(), config):
        of_objects = table[..., 0].flatten()
        assert torch.equal(table.flatten(0, 1), joint_to_views(of_objects, num_views=VIEWS))
    alone = rewards_of(joint=False)
    expected = mean_over_views(alone.per_view_total().flatten(0, 2))
    torch.testing.assert_close(alone.joint_total().flatten(), expected, rtol=1e-12, atol=1e-12)


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
