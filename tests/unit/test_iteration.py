"""`iteration`: laws of one iteration of every method, errors."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from mvczigal_ref.constraint import ConstraintState, constraint_step
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ConfigError, NonFiniteError
from mvczigal_ref.iteration import run_iteration
from mvczigal_ref.method import method_of
from mvczigal_ref.method.caption import caption_seed
from mvczigal_ref.method.protocol import Learner
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.training.tracking import StageTimer
from mvczigal_ref.update.loss_scale import LossScale
from tests.analytic_system import PROMPTS, analytic_system, joint_score, per_view_score
from tests.iterations import (
    BRANCHES,
    DDIM,
    FORWARD,
    LCM,
    ONE_VIEW,
    PAIRS,
    START,
    TREE,
    ZIGAL,
    Said,
    SaidOfTheFirst,
    config_of,
    learn,
    staged,
    system_of,
    telling,
)
from tests.unannotated import without_shape_checks

METHODS = {
    "zigal": ZIGAL, "pairs": PAIRS, "lcm": LCM, "ddim": DDIM, "one view": ONE_VIEW, "tree": TREE,
    "branches": BRANCHES, "forward": FORWARD,
}  # fmt: skip

# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_an_iteration_is_its_stages_one_after_the_other(name):
    """Bit for bit; advantages use the multiplier that this iteration's own step gave."""
    config, said = config_of(METHODS[name]), Said("prompt 7") if name == "one view" else None
    with without_shape_checks():
        parameters, (metrics,), _, result = learn(config, iterations=1, enhancer=said)
        system = system_of(config)
        old = {name: p.detach().clone() for name, p in system.trained().items()}
        stages, method = staged(system, config, enhancer=said), method_of(config)
        joint_mean = method.joint_mean(stages.rewards)
        constraint = constraint_step(START, joint_mean)
        advantages = method.compare(
            stages.rewards, stages.samples, stages.here, multiplier=constraint.multiplier
        )
        learner = Learner(
            system=system, optimizer=torch.optim.SGD(list(system.trained().values()), lr=0.05),
            old=old if name == "forward" else None,
        )  # fmt: skip
        learned = method.learn(learner, stages.under(advantages), stages.here)
    stepped = torch.cat([p.detach().flatten() for p in system.trained().values()])

    assert constraint.multiplier != START.multiplier
    assert torch.equal(parameters, stepped)
    assert result.constraint == constraint
    assert metrics == {
        **method.reward_metrics(stages.rewards),
        "multiplier": constraint.multiplier,
        "threshold": constraint.threshold,
        "slack": constraint.slack(joint_mean),
        **learned.metrics,
    }


@pytest.mark.parametrize("how", [ZIGAL, LCM], ids=["pairs", "groups"])
def test_the_constraint_has_the_settings_step_sizes(how):
    """Its metrics are the state after the step."""
    numbers = {
        "step_size_violated": 0.2,
        "step_size_satisfied": 0.03,
        "multiplier_max": 2.0,
        "threshold_decay": 0.9,
        "order": "multiplier_first",
    }
    config = config_of(how, {f"constraint.{name}": value for name, value in numbers.items()})
    *_, (metrics,), _, result = learn(config, iterations=1)
    rewards = staged(system_of(config), config).rewards
    mean = rewards.joint_total().mean().item()
    expected = constraint_step(START, mean, **numbers)

    assert result.constraint.multiplier == pytest.approx(expected.multiplier, rel=1e-6)
    assert result.constraint.threshold == pytest.approx(expected.threshold, rel=1e-6)
    assert metrics["multiplier"] == result.constraint.multiplier
    assert metrics["threshold"] == result.constraint.threshold
    assert metrics["slack"] == pytest.approx(mean - result.constraint.threshold, abs=1e-5)


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("how", METHODS.values(), ids=METHODS)
def test_an_iteration_is_a_function_of_its_arguments(how):
    """Twice the same, bit for bit, whatever the global generator; ratios start at 1."""
    captions = Said("prompt 7", "") if how in (LCM, DDIM, ONE_VIEW, TREE) else None
    config = config_of(how)
    with without_shape_checks():
        one = learn(config, iterations=1, enhancer=captions)
        torch.randn(7)
        two = learn(config, iterations=1, enhancer=captions)

    assert torch.equal(one[0], two[0])
    assert one[1] == two[1]
    assert one[1][0].get("replay_deviation", 0.0) == 0.0


def test_every_iteration_has_noise_of_its_own():
    """The same prompts and parameters sample something else."""
    config = config_of(ZIGAL, {"run.objects_per_iteration": 12, "run.objects_per_slice": 12})
    _, (one, two), _, _ = learn(config, lr=0.0)

    assert all(one[name] != two[name] for name in one if "_reward/" in name)


def test_slices_do_not_change_a_bit_of_what_is_sampled():
    """Rewards are the same in slices of one, two and four objects."""
    configs = [config_of(ZIGAL, {"run.objects_per_slice": size}) for size in (1, 2, 4)]
    tables = [learn(config, iterations=1)[1][0] for config in configs]
    names = [name for name in tables[0] if "reward" in name]

    assert len(names) == 10
    assert all(table[name] == tables[0][name] for table in tables for name in names)


@pytest.mark.parametrize("kind", ["lcm", "ddim"])
def test_the_terminal_action_is_trained_or_dropped(kind):
    """Of a trained one the log-density is replayed; of a dropped one it is not."""
    for trained, expected in ((False, 1), (True, 2)):
        config = config_of(ZIGAL, {"sampler.kind": kind, "objective.train_last_action": trained})
        _, metrics, calls, _ = learn(config, iterations=1)
        replayed = {call.timestep[0] for call in calls if call.with_gradient}

        assert len(replayed) == expected
        assert metrics[0]["replay_deviation"] == 0.0


def test_a_fixed_threshold_stays():
    """With decay 1; the multiplier still moves."""
    config = config_of(ZIGAL, {"constraint.threshold_decay": 1.0})
    _, metrics, _, result = learn(config)

    assert result.constraint.threshold == START.threshold
    assert metrics[0]["multiplier"] != metrics[1]["multiplier"]


def test_a_fixed_step_size_is_both_step_sizes():
    """The multiplier moves by it times the slack, either way."""
    numbers = {"constraint.step_size_violated": 0.05, "constraint.step_size_satisfied": 0.05}
    for threshold in (0.5, 2.0):
        start = replace(START, threshold=threshold)
        _, (metrics,), _, result = learn(config_of(ZIGAL, numbers), iterations=1, start=start)

        moved = result.constraint.multiplier - start.multiplier
        assert moved == pytest.approx(-0.05 * metrics["slack"], rel=1e-4)
        assert (moved > 0) == (threshold == 2.0)


def test_the_first_mean_becomes_the_threshold():
    """Where there is none yet; the multiplier rests."""
    _, (metrics,), _, result = learn(config_of(ZIGAL), iterations=1, start=ConstraintState())

    joint = metrics["joint_view_reward/zigzag"] + metrics["joint_view_reward/standard"]
    assert result.constraint.initialised
    assert result.constraint.threshold == pytest.approx(joint / 2, rel=1e-6)
    assert metrics["multiplier"] == metrics["slack"] == 0.0


def test_an_arm_of_a_pair_is_replayed_as_it_was_sampled():
    """By itself: a call of both would round otherwise in a real network."""
    _, _, calls, _ = learn(config_of(PAIRS), iterations=1)

    assert any(call.with_gradient for call in calls)
    assert {call.rows for call in calls} == {3}


def test_no_captions_and_the_prompts_themselves_are_plain():
    """Bit for bit and with the same calls; equal captions have their own metrics beside."""
    config = config_of(ONE_VIEW)
    plain, none, same = (learn(config, enhancer=said) for said in (None, Said(), Said("", "")))

    assert torch.equal(plain[0], none[0])
    assert plain[1] == none[1]
    assert torch.equal(plain[0], same[0])
    assert [call.rows for call in plain[2]] == [call.rows for call in same[2]]
    assert same[1][0]["drift/p95"] == same[1][0]["drift/mean"] == 0.0
    for name, value in plain[1][1].items():
        assert same[1][1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize("how", [ONE_VIEW, TREE, LCM], ids=["one view", "tree", "lcm"])
def test_captions_are_recorded_with_what_they_move(how):
    """Beside their prompts; a caption that is the prompt moves nothing."""
    config, said = config_of(how, {"condition.weight": 3.0}), Said("prompt 7", "", "prompt 9")
    _, (metrics,), _, result = learn(config, iterations=1, enhancer=said)
    rows = result.captions["captions"]
    drift = [row["drift"] for row in rows]

    assert [(row["prompt"], row["caption"]) for row in rows] == [
        (prompt, text or prompt) for prompt in PROMPTS[:2] for text in said.texts
    ]
    assert [max(steps) == 0.0 for steps in drift] == [False, True, False] * 2
    assert sum(result.captions["drift_counts"]) > 0
    assert metrics["drift/mean"] > 0
    leaves = {"rollout.kind": 3, "tree": 4}.get(how["rollout.kind"], 3)
    seed = caption_seed(config.run.seed, 0)
    assert said.asked == [([prompt], (1, leaves, 3, 3, 4, 4), seed) for prompt in PROMPTS[:2]]


def test_nothing_is_clipped_on_policy_under_a_caption():
    """GRPO-Guard's shift is of the mean under the caption, not under the prompt."""
    config = config_of(ONE_VIEW, {"objective.kind": "guard", "objective.clip_range": 2e-6})
    said = Said("prompt 7", "prompt 3", "prompt 9")
    _, (metrics,), _, _ = learn(config, iterations=1, enhancer=said)

    assert metrics["clip_fraction"] == 0.0
    assert metrics["drift/mean"] > 1e-4  # the captions do say something else


@pytest.mark.parametrize("how", [ONE_VIEW, TREE])
def test_prompts_of_a_slice_may_have_different_numbers_of_texts(how):
    """The numbers are those of slices of one prompt, and only the texts cost calls."""
    found = []
    for size in (1, 2):
        config = config_of(how, {"run.objects_per_slice": size})
        found.append(learn(config, iterations=1, enhancer=SaidOfTheFirst("prompt 7", "prompt 9")))
    (one, (before,), calls, _), (both, (after,), fewer, _) = found

    torch.testing.assert_close(one, both, rtol=1e-5, atol=1e-7)
    assert sum(call.rows for call in calls) == sum(call.rows for call in fewer)
    assert len(fewer) < len(calls)
    for name, value in before.items():
        assert after[name] == pytest.approx(value, rel=1e-3, abs=1e-5), name


def test_the_constraint_sees_the_samples_under_their_own_prompts():
    """The metrics are of the state after its step."""

    def joint(images, prompts):
        # What captions say would count a hundred times.
        number = torch.tensor([float(prompt.split()[-1]) for prompt in prompts])
        return images.mean((1, 2, 3, 4)) + 100.0 * (number > 5)

    how = {"step_size_violated": 0.2, "multiplier_max": 2.0, "threshold_decay": 0.9}
    config = config_of(LCM, {f"constraint.{name}": value for name, value in how.items()})
    *_, (metrics,), _, result = learn(config, iterations=1, enhancer=Said("prompt 7"), joint=joint)
    mean = metrics["joint_view_reward/mean"]

    assert mean < 1.0
    assert result.constraint == constraint_step(START, mean, **how)
    assert metrics["multiplier"] == result.constraint.multiplier
    assert metrics["threshold"] == result.constraint.threshold
    assert metrics["slack"] == result.constraint.slack(mean)
    assert metrics["per_view_reward/under_captions"] != metrics["per_view_reward/mean"]


PLAIN = {
    "per_view_reward/mean", "per_view_reward/group_std", "joint_view_reward/mean",
    "joint_view_reward/group_std", "groups_alike", "reward/per_view", "reward/joint_view",
    "multiplier", "threshold", "slack", "loss", "grad_norm",
}  # fmt: skip
RATIOS = {"approx_kl", "clip_fraction", "replay_deviation"}
DRIFT = {"drift/mean", "drift/median", "drift/p95", "per_view_reward/under_captions"}
NFT = {
    f"forward/{name}"
    for name in (
        "policy_loss", "positive_loss", "negative_loss", "optimality", "old_distance",
        "reference_distance",
    )
}  # fmt: skip


@pytest.mark.parametrize(
    ("how", "captions", "expected"),
    [
        (ONE_VIEW, (), PLAIN | RATIOS),
        (ONE_VIEW, ("prompt 7",), PLAIN | RATIOS | DRIFT),
        ({**ONE_VIEW, "objective.kl_weight": 0.1}, (), PLAIN | RATIOS | {"reference_kl"}),
        (FORWARD, (), PLAIN | NFT),
    ],
)
def test_metrics_have_their_names(how, captions, expected):
    """Those of what is measured, and no other; every one is finite."""
    with without_shape_checks():
        _, (metrics,), _, _ = learn(config_of(how), iterations=1, enhancer=Said(*captions))

    assert metrics.keys() == expected
    assert all(math.isfinite(value) for value in metrics.values())


def test_groups_that_were_scored_alike_are_counted():
    """They teach nothing; their spread is 0."""

    def score(images, prompts):
        alike = torch.tensor([prompt == PROMPTS[1] for prompt in prompts])[:, None]
        return telling(images, prompts).where(~alike, torch.ones(()))

    config = config_of(ONE_VIEW, {"run.objects_per_iteration": 4})
    _, (metrics,), _, _ = learn(config, iterations=1, per_view=score)

    assert metrics["groups_alike"] == 0.25
    assert metrics["per_view_reward/group_std"] > 0


MANY = {"rollout.members": 64}  # so that the estimate of the gradient is a good one


@pytest.mark.parametrize(
    ("how", "lr"),
    [({**LCM, **MANY}, 1.0), ({**ONE_VIEW, **MANY, "flow.noise_scale": 1.5}, 5.0),
     ({**FORWARD, **MANY}, 1.0)],
    ids=["lcm", "flow", "forward"],
)  # fmt: skip
def test_it_learns(how, lr):
    """The reward rises, of the same noise again and again.

    DDIM is not asked: what its last step draws is not trained, but moves with these few weights.
    """
    config = config_of({**how, "advantage.mode": "per_view"})
    with without_shape_checks():
        _, metrics, _, _ = learn(config, iterations=5, stride=0, lr=lr)
    reward = [table["per_view_reward/mean"] for table in metrics]

    assert reward[-1] > reward[0] + 0.03


def test_pairs_learn():
    """Over twenty iterations the rewards of plain sampling rise."""
    config = config_of(ZIGAL, {"sampler.guidance_scale": 1.0})
    with without_shape_checks():
        _, metrics, _, _ = learn(config, iterations=20, lr=0.05)
    per_view = [table["per_view_reward/standard"] for table in metrics]

    assert sum(per_view[-5:]) > sum(per_view[:5])


@pytest.mark.parametrize("kind", [ZIGAL, LCM, FORWARD], ids=["pairs", "groups", "noised"])
@pytest.mark.parametrize(("interval", "scales"), [(1, [16.0, 64.0]), (3, [4.0, 8.0])])
def test_a_loss_scale_is_handed_on_and_changes_no_bit(kind, interval, scales):
    """It doubles after so many of two optimiser steps per iteration; fp64 has exponents enough."""
    config = config_of(
        {
            **kind,
            "optim.optimizer_steps_per_epoch": 2,
            "optim.loss_scale_growth_interval": interval,
        }
    )
    plain, before, *_ = learn(config)
    scaled, after, *_ = learn(config, loss_scale=LossScale(scale=4.0))

    assert torch.equal(plain, scaled)
    assert [row["loss_scale"] for row in after] == scales
    assert [
        {**row, "loss_scale": scale, "skipped_steps": 0.0}
        for row, scale in zip(before, scales, strict=True)
    ] == after


# -- several scorers ---------------------------------------------------------------------


def red(images, prompts):
    """Like red, on another scale than the others."""
    return 100 * images[:, :, 0].mean((-2, -1))


def contrast(images, prompts):
    """Like contrast; nobody else does."""
    return images.var((2, 3, 4))


def blue(images, prompts):
    """Like blue in all views."""
    return images[:, :, 2].mean((1, 2, 3))


def several(**weights):
    """Two per-view scorers and two joint ones, by weight."""
    per_view = {"red": red, "contrast": contrast}
    joint = {"agreement": joint_score, "blue": blue}
    chosen = {"red": 0.01, "contrast": 20.0, "agreement": 1.0, "blue": 3.0, **weights}
    return {
        kind: Mixture(scorers=scorers, weights={name: chosen[name] for name in scorers})
        for kind, scorers in (("per_view", per_view), ("joint", joint))
    }


def test_the_two_ways_of_adding_differ():
    """Raw, the scorer of the widest spread leads; standardised, each pulls with its weight."""
    found = [
        learn(config_of(ZIGAL, {"reward.combine": combine}), iterations=1, **several())[0]
        for combine in ("rewards", "advantages")
    ]

    assert not torch.allclose(found[0], found[1], rtol=1e-6)


@pytest.mark.parametrize("combine", ["rewards", "advantages"])
def test_one_scorer_of_weight_1_is_itself(combine):
    """Whichever way it is not added to anything: the same parameters, bit for bit."""
    plain = learn(config_of(ZIGAL))
    alone = {
        "per_view": Mixture(scorers={"per_view": per_view_score}, weights={"per_view": 1.0}),
        "joint": Mixture(scorers={"joint_view": joint_score}, weights={"joint_view": 1.0}),
    }
    mixed = learn(config_of(ZIGAL, {"reward.combine": combine}), **alone)

    assert torch.equal(plain[0], mixed[0])
    assert plain[1] == mixed[1]
    assert plain[3].constraint == mixed[3].constraint


@pytest.mark.parametrize("combine", ["rewards", "advantages"])
def test_the_constraint_reads_the_weighted_raw_joint_reward(combine):
    """Whatever the advantages are made of."""
    config, parts = config_of(ZIGAL, {"reward.combine": combine}), several()
    _, (metrics,), _, _ = learn(config, iterations=1, **parts)
    samples = staged(system_of(config), config).samples
    images = torch.sigmoid(torch.cat([part.denoised for part in samples])[:, :, :, :3])
    raw = [joint_score(arm, PROMPTS[:4]) + 3.0 * blue(arm, PROMPTS[:4]) for arm in images.unbind(1)]
    mean = torch.cat(raw).mean().item()

    assert metrics["slack"] == pytest.approx(mean - metrics["threshold"], abs=1e-4)
    assert metrics["threshold"] == pytest.approx(constraint_step(START, mean).threshold, rel=1e-6)


def test_a_reward_that_is_not_finite_is_told_by_its_scorer():
    """Among several the sum would not say whose it was."""

    def spoilt(images, prompts):
        table = contrast(images, prompts)
        table[1, 2] = math.nan
        return table

    parts = several()
    parts["per_view"] = replace(parts["per_view"], scorers={"red": red, "contrast": spoilt})
    with pytest.raises(
        NonFiniteError, match=r"`reward/contrast of sample [01]` .* object [01], view 2"
    ):
        learn(config_of(ZIGAL), iterations=1, **parts)


# -- the old policy ----------------------------------------------------------------------


def test_the_old_policy_samples_and_the_new_one_learns():
    """Rewards are those of the old parameters; the new ones are back for the update."""
    config = config_of(FORWARD)
    now = {name: p.detach() for name, p in analytic_system(config).trained().items()}
    other = {name: value + 0.2 for name, value in now.items()}
    plain = learn(config, iterations=1)[1][0]
    found = learn(config, iterations=1, old=other)[1][0]

    assert found["per_view_reward/mean"] != plain["per_view_reward/mean"]
    assert found["forward/old_distance"] > plain["forward/old_distance"] == 0.0


@pytest.mark.parametrize(
    ("unit", "passes", "steps", "iteration", "kept"),
    [
        ("iteration", 1, 1, 0, 0.0),
        ("iteration", 1, 1, 1, 0.2),
        ("iteration", 2, 2, 1, 0.2),
        ("iteration", 1, 1, 3, 0.5),
        # Steps up to now, those of this iteration with them.
        ("optimizer_step", 1, 1, 0, 0.2),
        ("optimizer_step", 1, 2, 0, 0.4),
        ("optimizer_step", 2, 1, 0, 0.4),
        ("optimizer_step", 1, 1, 1, 0.4),
        ("optimizer_step", 2, 2, 1, 0.5),
    ],
)
def test_the_old_policy_follows(unit, passes, steps, iteration, kept):
    """By a share that grows with iterations before or with steps so far, up to its largest."""
    config = config_of(
        FORWARD,
        {
            "forward.old_decay_rate": 0.2,
            "forward.old_decay_unit": unit,
            "optim.epochs_per_iteration": passes,
            "optim.optimizer_steps_per_epoch": steps,
        },
    )
    before = {name: p.detach() for name, p in analytic_system(config).trained().items()}
    old = {name: value + 0.1 for name, value in before.items()}
    parameters, _, _, result = learn(config, iterations=1, first=iteration, old=old)
    expected = kept * torch.cat([v.flatten() for v in old.values()]) + (1 - kept) * parameters

    torch.testing.assert_close(torch.cat([v.flatten() for v in result.old.values()]), expected)


# -- several processes -------------------------------------------------------------------


class Joined(World):
    """One of two processes that are threads here."""

    def __init__(self, rank, meeting, table):
        World.__init__(self, rank=rank, size=2)
        object.__setattr__(self, "meeting", meeting)
        object.__setattr__(self, "table", table)

    def both(self, mine):
        """Show the other what is mine, and take what it shows."""
        self.table[self.rank] = mine
        self.meeting.wait(60)
        found = list(self.table)
        self.meeting.wait(60)
        return found

    def gather_objects(self, share):
        """Put both shares together."""
        return torch.cat(self.both(share))

    def mean_gradients(self, parameters):
        """Average both gradients."""
        parameters = list(parameters)
        found = self.both([p.grad.clone() for p in parameters])
        for parameter, *gradients in zip(parameters, *found, strict=True):
            parameter.grad = sum(gradients) / 2


@pytest.mark.parametrize(
    "how",
    [
        {**TREE, "advantage.fusion_inverse_temperature": 0.3},
        {**BRANCHES, "advantage.shuffle": True},
        {**LCM, "advantage.spread": "batch", "optim.optimizer_steps_per_epoch": 2},
        FORWARD,
    ],
    ids=["tree", "branches", "batch", "forward"],
)
def test_processes_share_the_prompts_out_and_learn_the_same(how):
    """Both have the same parameters and metrics, and to rounding those of one process."""
    config = config_of(how, {"run.objects_per_iteration": 4})
    said = Said("prompt 7") if how["rollout.kind"] in ("tree", "group") else None
    said = None if how is FORWARD else said
    meeting, table = threading.Barrier(2), [None, None]

    def process(rank):
        return learn(config, enhancer=said, world=Joined(rank, meeting, table))

    with without_shape_checks(), ThreadPoolExecutor(2) as pool:
        alone = learn(config, enhancer=said)
        one, two = pool.map(process, range(2))

    assert torch.equal(one[0], two[0])
    assert one[1] == two[1]
    torch.testing.assert_close(one[0], alone[0], rtol=1e-6, atol=1e-8)
    for name, value in alone[1][1].items():
        assert one[1][1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["per_view", "joint"])
def test_refuses_a_reward_that_is_not_finite(kind, bad):
    """By reward, object within the iteration, and view; nothing is learnt from it."""
    config = config_of(ZIGAL)

    def spoilt(images, prompts):
        table = (per_view_score if kind == "per_view" else joint_score)(images, prompts)
        for place, prompt in enumerate(prompts):
            if prompt == PROMPTS[3]:
                table[(place, 1) if kind == "per_view" else place] = bad
        return table

    where = "object 3, view 1" if kind == "per_view" else "object 3"
    name = f"reward/{kind if kind == 'per_view' else 'joint_view'} of sample 0"
    system = replace(analytic_system(config), **{kind: spoilt})
    before = [p.detach().clone() for p in system.trained().values()]
    optimizer = torch.optim.SGD(list(system.trained().values()), lr=0.1)
    with pytest.raises(NonFiniteError, match=rf"`{name}` must be finite; got {bad} at {where}\."):
        run_iteration(
            system,
            optimizer,
            START,
            PROMPTS[:4],
            iteration=0,
            config=config,
            world=World(),
            timer=StageTimer(),
        )

    assert all(torch.equal(p, q) for p, q in zip(system.trained().values(), before, strict=True))


@pytest.mark.parametrize("kind", ["per_view", "joint"])
def test_a_reward_that_is_not_finite_is_named(kind):
    """By scorer, sample and prompt within the iteration; nothing is learnt from it."""
    config = config_of(LCM)
    system = analytic_system(config)
    judge = getattr(system, kind)

    def spoilt(images, prompts):
        table = judge(images, prompts)
        if prompts[0] == PROMPTS[1]:
            table[2] = math.nan
        return table

    name = {"per_view": "per_view", "joint": "joint_view"}[kind]
    with pytest.raises(NonFiniteError, match=rf"`reward/{name} of sample 2` .* at object 1"):
        learn(config, iterations=1, **{kind: spoilt})


def iterate(config, prompts):
    """Run one iteration on these prompts."""
    system = analytic_system(config)
    return run_iteration(
        system,
        torch.optim.SGD(list(system.trained().values()), lr=0.1),
        START,
        prompts,
        iteration=0,
        config=config,
        world=World(),
        timer=StageTimer(),
    )


@pytest.mark.parametrize("count", [3, 5])
def test_rejects_another_number_of_prompts(count):
    """More would be forgotten without a word."""
    message = rf"`prompts` must hold one prompt per object.* = 4; got {count}"
    with pytest.raises(ValueError, match=message):
        iterate(config_of(ZIGAL), PROMPTS[:count])


def test_rejects_slices_that_cannot_be_dealt_out():
    """Before anything is sampled."""
    config = config_of(
        ZIGAL, {"run.objects_per_iteration": 6, "optim.optimizer_steps_per_epoch": 2}
    )
    with pytest.raises(ConfigError, match="The nearest valid value"):
        iterate(config, PROMPTS[:6])


def test_rejects_a_grid_that_leaves_nothing_to_train():
    """One step, whose action is the last."""
    with pytest.raises(ConfigError, match=r"`sampler\.num_steps` must be at least 2"):
        config_of(ZIGAL, {"sampler.kind": "ddim", "sampler.num_steps": 1})
