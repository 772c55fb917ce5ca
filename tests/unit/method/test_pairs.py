"""`method.pairs`: oracle, laws."""

import math
from dataclasses import replace

import pytest
import torch

from mvczigal_ref.advantage.pair import joint_share
from mvczigal_ref.distributed import World
from mvczigal_ref.method import pairs
from mvczigal_ref.method.pair_settings import pair_update_settings
from mvczigal_ref.method.protocol import Iteration, Learner
from mvczigal_ref.method.slices import Share
from mvczigal_ref.objective.preference import preference_loss
from mvczigal_ref.objective.reward_difference import reward_difference_loss
from mvczigal_ref.reward import joint_to_views
from mvczigal_ref.reward.table import RewardTable
from mvczigal_ref.update.replay import replay_log_prob
from tests.analytic_system import PROMPTS, joint_score, per_view_score
from tests.iterations import ZIGAL, config_of, staged, system_of
from tests.strategies import randn
from tests.unannotated import without_shape_checks

OBJECTS, VIEWS = 8, 3
WEIGHTS = {"red": 0.01, "contrast": 20.0, "agreement": 1.0, "blue": 3.0}
ARMS = ("zigzag", "standard")
STEP = {"lcm": 0.05, "ddim": 1e-7}  # of the gradient


def rewards_of(*, seed=0):
    """Give four scorers tables of their own scale and place, two per view and two per object."""
    tables = {
        name: randn(1, OBJECTS, 2, VIEWS, seed=seed + n, dtype=torch.float64) / weight + 3 * n
        for n, (name, weight) in enumerate(WEIGHTS.items())
    }
    return RewardTable(
        per_view={name: tables[name] for name in ("red", "contrast")},
        joint={name: tables[name][..., 0] for name in ("agreement", "blue")},
        weights=WEIGHTS,
    )


def gap_of(rewards, config, *, multiplier=0.5, iteration=0):
    """Compare the arms; no sample is read."""
    here = Iteration(config=config, world=World(), share=Share([], []), index=iteration)
    ((gap,),) = pairs.compare(rewards, [], here, multiplier=multiplier)
    return gap


# -- oracle ------------------------------------------------------------------------------


def standard(table):
    """Standardise in plain floats, over both arms and everything else."""
    values = table.flatten().tolist()
    mean = math.fsum(values) / len(values)
    spread = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / len(values))
    return (table - mean) / (spread + 1e-8)


@pytest.mark.parametrize(
    ("mode", "share"),
    [("constrained", 1.5 / 2.5), ("joint", 1.0), ("per_view", 0.0), ("weighted_sum", 0.3)],
)
@pytest.mark.parametrize("combine", ["rewards", "advantages"])
def test_the_gap_is_the_modes(mode, share, combine):
    """Scorers are added raw and then standardised, or standardised and then added."""
    how = {"advantage.mode": mode, "advantage.joint_weight": 0.3, "reward.combine": combine}
    rewards, gaps = rewards_of(), []
    for tables in (rewards.per_view, rewards.joint):
        if combine == "rewards":
            total = standard(sum(WEIGHTS[name] * table[0] for name, table in tables.items()))
        else:
            total = sum(WEIGHTS[name] * standard(table[0]) for name, table in tables.items())
        gaps.append(total[:, 0] - total[:, 1])
    expected = (1 - share) * gaps[0] + share * gaps[1][:, None]
    gap = gap_of(rewards, config_of(ZIGAL, how), multiplier=1.5)

    torch.testing.assert_close(gap, expected, rtol=1e-9, atol=1e-9)


def test_a_joint_reward_is_every_view_s():
    """As the published function lays it out."""
    gap = gap_of(rewards_of(), config_of(ZIGAL, {"advantage.mode": "joint"}))

    assert torch.equal(gap, joint_to_views(gap[:, 0], num_views=VIEWS))


def test_metrics_are_means_of_each_arm():
    """Of every scorer unweighted, of the weighted sums, and of their difference."""
    rewards = rewards_of()
    metrics = pairs.reward_metrics(rewards)
    for kind, tables in (("per_view", rewards.per_view), ("joint_view", rewards.joint)):
        total = sum(WEIGHTS[name] * table[0] for name, table in tables.items())
        means = {arm: total[:, n].mean().item() for n, arm in enumerate(ARMS)}
        for arm, mean in means.items():
            assert metrics[f"{kind}_reward/{arm}"] == pytest.approx(mean, rel=1e-9)
        gap = means["zigzag"] - means["standard"]
        assert metrics[f"{kind}_reward/gap"] == pytest.approx(gap, rel=1e-9)
        for name, table in tables.items():
            for n, arm in enumerate(ARMS):
                mean = table[0, :, n].mean().item()
                assert metrics[f"reward/{name}/{arm}"] == pytest.approx(mean, rel=1e-9)
    joint = sum(WEIGHTS[name] * table for name, table in rewards.joint.items())
    assert pairs.joint_mean(rewards) == pytest.approx(joint.mean().item(), rel=1e-9)


def test_rewards_are_those_of_the_decoded_latents():
    """Of both arms, by object, under the object's prompt."""
    config = config_of(ZIGAL)
    stages = staged(system_of(config), config)
    for n, arm in enumerate(ARMS):
        latent = torch.cat([getattr(part.pair, arm).denoised for part in stages.samples])
        images = torch.sigmoid(latent[:, :, :3])
        per_view, joint = stages.rewards.per_view_total(), stages.rewards.joint_total()
        torch.testing.assert_close(per_view[0, :, n], per_view_score(images, PROMPTS[:4]))
        torch.testing.assert_close(joint[0, :, n], joint_score(images, PROMPTS[:4]))


# -- the published objective -------------------------------------------------------------


def published_loss(system, stages, gap, objects, config):
    """Evaluate the objective as it is published, over some slices' objects."""
    settings, objective = pair_update_settings(system, config), config.objective
    ratios = {arm: [] for arm in ARMS}
    for place in objects:
        part, condition = stages.samples[place], stages.conditions[place]
        for arm, rows in ratios.items():
            trajectory = getattr(part.pair, arm)
            log_prob = replay_log_prob(
                system.policy, system.sampler, trajectory, settings.steps,
                condition.conditioning[0], guidance_scale=settings.guidance_scale,
                reduction=settings.reduction,
            )  # fmt: skip
            rows.append(log_prob - trajectory.log_prob[list(settings.steps)])
    zigzag, plain = (torch.cat(ratios[arm], dim=1).flatten() for arm in ARMS)
    size = config.run.objects_per_slice
    mine = torch.cat([gap[place * size : (place + 1) * size] for place in objects])
    target = mine.to(zigzag.dtype).expand(len(settings.steps), *mine.shape).flatten()
    if objective.kind == "preference":
        return preference_loss(
            zigzag, plain, target, scale=objective.preference_scale,
            clip_range=objective.clip_range,
        )[0]  # fmt: skip
    return reward_difference_loss(
        zigzag, plain, target, clip_range=objective.clip_range, temperature=objective.temperature
    )[0]


@pytest.mark.parametrize("kind", ["reward_difference", "preference"])
@pytest.mark.parametrize("sampler", ["lcm", "ddim"])
@pytest.mark.parametrize("groups", [1, 2])
def test_the_trained_loss_is_the_published_one(kind, sampler, groups):
    """Value and gradient of two passes; each gap meets the pair that earned it."""
    config = config_of(
        ZIGAL,
        {"objective.kind": kind, "sampler.kind": sampler, "sampler.num_steps": 3,
         "objective.clip_range": 1e-3, "objective.temperature": 0.5,
         "optim.epochs_per_iteration": 2, "optim.optimizer_steps_per_epoch": groups,
         "optim.max_grad_norm": 1e6},
    )  # fmt: skip
    ends, losses = [], []
    with without_shape_checks():
        for ours in (True, False):
            system = system_of(config)
            stages = staged(system, config)
            advantages = pairs.compare(stages.rewards, stages.samples, stages.here, multiplier=0.5)
            trained = list(system.trained().values())
            if ours:
                optimizer = torch.optim.SGD(trained, lr=STEP[sampler])
                learner = Learner(system=system, optimizer=optimizer)
                learned = pairs.learn(learner, stages.under(advantages), stages.here)
            else:
                for objects in ([[0, 1]] if groups == 1 else [[0], [1]]) * 2:
                    loss = published_loss(system, stages, advantages[0][0], objects, config)
                    losses.append(loss.item())
                    gradients = torch.autograd.grad(loss, trained)
                    with torch.no_grad():
                        for parameter, gradient in zip(trained, gradients, strict=True):
                            parameter -= STEP[sampler] * gradient
            ends.append(torch.cat([p.detach().flatten() for p in trained]))

    start = torch.cat([p.detach().flatten() for p in system_of(config).trained().values()])
    moved, expected = (end - start for end in ends)
    assert expected.abs().min() > 0
    torch.testing.assert_close(moved / expected, torch.ones_like(moved), rtol=1e-3, atol=0)
    assert learned.metrics["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


# -- laws --------------------------------------------------------------------------------


def test_shuffling_permutes_the_objects_gaps():
    """Each object's views stay together; the order is another in every iteration."""
    rewards = rewards_of()
    plain = gap_of(rewards, config_of(ZIGAL))
    config, orders = config_of(ZIGAL, {"advantage.shuffle": True}), []
    for index in range(3):
        shuffled = gap_of(rewards, config, iteration=index)
        orders.append([plain.tolist().index(row) for row in shuffled.tolist()])

    assert all(sorted(order) == list(range(OBJECTS)) for order in orders)
    assert len({tuple(order) for order in [list(range(OBJECTS)), *orders]}) == 4


def test_modes_are_the_advantages_own():
    """The settings know no mode that the mathematics does not."""
    for mode in ("constrained", "joint", "per_view", "weighted_sum"):
        assert 0.0 <= joint_share(mode) <= 1.0


# -- errors ------------------------------------------------------------------------------


def test_a_slice_without_pairs_is_refused():
    """None is left out without a word."""
    config = config_of(ZIGAL)
    system = system_of(config)
    stages = staged(system, config)
    gap = pairs.compare(stages.rewards, stages.samples, stages.here, multiplier=0.5)
    samples = [replace(part, pair=None) for part in stages.samples]
    optimizer = torch.optim.SGD(list(system.trained().values()), lr=0.1)
    with pytest.raises(ValueError, match="`samples` must hold the pairs of every slice"):
        pairs.learn(
            Learner(system=system, optimizer=optimizer),
            replace(stages.under(gap), samples=samples),
            stages.here,
        )
