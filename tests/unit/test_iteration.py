"""`iteration`: oracle, laws, errors."""

import dataclasses
import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.advantage.pair import joint_share
from mvczigal_ref.config import TrainConfig, from_dict
from mvczigal_ref.constraint import ConstraintState, constraint_step
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ConfigError, NonFiniteError
from mvczigal_ref.iteration import run_iteration
from mvczigal_ref.method import pairs as method
from mvczigal_ref.method import sample as sampling
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.training.prompts import prompt_batch
from mvczigal_ref.training.tracking import StageTimer
from mvczigal_ref.update.loss_scale import LossScale
from tests.analytic_system import PROMPTS, analytic_system, joint_score, per_view_score
from tests.unannotated import without_shape_checks

SMALL = {
    "run.objects_per_iteration": 4,
    "run.objects_per_slice": 2,
    "sampler.num_steps": 2,
    "sampler.prediction_type": "epsilon",
    "sampler.guidance_scale": 2.0,
    "optim.optimizer_steps_per_epoch": 1,
}
# Joint rewards are about 1.1 here, so the constraint is violated.
START = ConstraintState(multiplier=0.5, threshold=2.0, initialised=True)


def config_of(**dotted):
    """Configure a small run; settings are named by dotted path."""
    nested = {}
    for path, value in {**SMALL, **dotted}.items():
        section, _, name = path.rpartition(".")
        nested.setdefault(section, {})[name] = value
    return from_dict(nested)


def learn(config, *, iterations=2, start=START, lr=0.05, loss_scale=None, **parts):
    """Run some iterations; return parameters, metrics, network calls and the constraint."""
    system = replace(analytic_system(config), **parts)
    trained = list(system.trained().values())
    optimizer, metrics = torch.optim.SGD(trained, lr=lr), []
    for index in range(iterations):
        count = config.run.objects_per_iteration
        result = run_iteration(
            system,
            optimizer,
            start,
            prompt_batch(PROMPTS, seed=config.run.seed, iteration=index, count=count),
            iteration=index,
            config=config,
            world=World(),
            timer=StageTimer(),
            loss_scale=loss_scale,
        )
        start, loss_scale = result.constraint, result.loss_scale
        metrics.append(result.metrics)
    parameters = torch.cat([p.detach().flatten() for p in trained])
    return parameters, metrics, system.policy.calls, start


def spied(monkeypatch, name):
    """Note the arguments and results of a stage that the iteration calls."""
    stage = sampling if name == "paired_rollout" else method
    seen, original = [], getattr(stage, name)

    def spy(*arguments, **named):
        seen.append((arguments, named, original(*arguments, **named)))
        return seen[-1][-1]

    monkeypatch.setattr(stage, name, spy)
    return seen


def gap_of(monkeypatch, config, start=START):
    """Return the gap that an iteration learns from, and the raw rewards that made it."""
    updates, rewards = spied(monkeypatch, "update_policy"), spied(monkeypatch, "pair_advantages")
    _, _, _, constraint = learn(config, iterations=1, start=start)
    gap = torch.cat([batch.advantage_gap for batch in updates[0][0][3]])
    return gap, rewards[0][1], constraint


# -- oracle ------------------------------------------------------------------------------


def slow_gap(rewards, share):
    """Standardise, mix and subtract in plain floats."""

    def standard(table):
        values = table.double().flatten().tolist()
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((x - mean) ** 2 for x in values) / len(values))
        return ((table.double() - mean) / (spread + 1e-8)).tolist()

    zigzag, plain = standard(
        torch.stack([rewards["per_view_zigzag"], rewards["per_view_standard"]])
    )
    joint_zigzag, joint_plain = standard(
        torch.stack([rewards["joint_view_zigzag"], rewards["joint_view_standard"]])
    )
    return [
        [
            (1 - share) * (z - s) + share * (joint_zigzag[item] - joint_plain[item])
            for z, s in zip(zigzag[item], plain[item], strict=True)
        ]
        for item in range(len(zigzag))
    ]


@pytest.mark.parametrize(
    ("mode", "share"),
    [("constrained", None), ("joint", 1.0), ("per_view", 0.0), ("weighted_sum", 0.3)],
)
def test_the_gap_is_the_modes(monkeypatch, mode, share):
    """Constrained by the multiplier that this iteration's own step gave."""
    config = config_of(**{"advantage.mode": mode, "advantage.joint_weight": 0.3})
    gap, rewards, constraint = gap_of(monkeypatch, config)
    if share is None:
        assert constraint.multiplier != START.multiplier
        share = constraint.multiplier / (1 + constraint.multiplier)

    torch.testing.assert_close(
        gap.double(), torch.tensor(slow_gap(rewards, share)).double(), rtol=1e-4, atol=1e-5
    )


def test_rewards_are_those_of_the_decoded_latents(monkeypatch):
    """Of both arms, by object, under the object's prompt."""
    pairs, rewards = spied(monkeypatch, "paired_rollout"), spied(monkeypatch, "pair_advantages")
    config = config_of()
    learn(config, iterations=1)
    prompts = prompt_batch(PROMPTS, seed=0, iteration=0, count=4)
    for arm in ("zigzag", "standard"):
        latent = torch.cat([getattr(pair, arm).denoised for _, _, pair in pairs])
        images = torch.sigmoid(latent[:, :, :3])
        table = rewards[0][1]
        torch.testing.assert_close(table[f"per_view_{arm}"], per_view_score(images, prompts))
        torch.testing.assert_close(table[f"joint_view_{arm}"], joint_score(images, prompts))


def test_the_constraint_steps_on_the_mean_of_both_arms(monkeypatch):
    """With the settings' step sizes; its metrics are the state after the step."""
    rewards = spied(monkeypatch, "pair_advantages")
    told = {
        "step_size_violated": 0.2,
        "step_size_satisfied": 0.03,
        "multiplier_max": 2.0,
        "threshold_decay": 0.9,
        "order": "multiplier_first",
    }
    config = config_of(**{f"constraint.{name}": value for name, value in told.items()})
    _, metrics, _, state = learn(config, iterations=1)
    table = rewards[0][1]
    both = [*table["joint_view_zigzag"].tolist(), *table["joint_view_standard"].tolist()]
    mean = sum(both) / len(both)
    expected = constraint_step(START, mean, **told)

    assert state.multiplier == pytest.approx(expected.multiplier, rel=1e-6)
    assert state.threshold == pytest.approx(expected.threshold, rel=1e-6)
    assert metrics[0]["multiplier"] == state.multiplier
    assert metrics[0]["threshold"] == state.threshold
    assert metrics[0]["slack"] == pytest.approx(mean - state.threshold, abs=1e-5)


def test_reward_metrics_are_means(monkeypatch):
    """Of each arm, and of their difference."""
    rewards = spied(monkeypatch, "pair_advantages")
    _, (metrics,), _, _ = learn(config_of(), iterations=1)
    for kind in ("per_view", "joint_view"):
        zigzag, standard = (
            rewards[0][1][f"{kind}_{arm}"].double().mean().item() for arm in ("zigzag", "standard")
        )
        assert metrics[f"{kind}_reward/zigzag"] == pytest.approx(zigzag, rel=1e-5)
        assert metrics[f"{kind}_reward/standard"] == pytest.approx(standard, rel=1e-5)
        assert metrics[f"{kind}_reward/gap"] == pytest.approx(zigzag - standard, abs=1e-5)


# -- laws --------------------------------------------------------------------------------

# What an iteration reads: a change, and the other settings under which it shows.
READ = {
    "model.storage_dtype": ("bf16", {}),
    "sampler.kind": ("ddim", {}),
    "sampler.prediction_type": ("sample", {}),
    "sampler.num_steps": (3, {}),
    "sampler.guidance_scale": (2.5, {}),
    "sampler.eta": (0.5, {"sampler.kind": "ddim"}),
    "sampler.snr_shift": (8.0, {}),
    "sampler.camera_scale": (0.5, {}),
    "zigzag.steps": (2, {}),
    "zigzag.rounds": (2, {}),
    "zigzag.inversion_guidance_scale": (0.5, {}),
    "zigzag.inversion_camera_scale": (0.5, {}),
    "advantage.mode": ("joint", {}),
    "advantage.joint_weight": (0.9, {"advantage.mode": "weighted_sum"}),
    "advantage.shuffle": (True, {}),
    "objective.pairing": ("standard", {}),
    "objective.clip_range": (10.0, {"optim.epochs_per_iteration": 3}),
    "objective.clip": (
        False,
        {"optim.epochs_per_iteration": 3, "objective.clip_range": 1e-4},
    ),
    "objective.temperature": (0.1, {}),
    "objective.kind": ("preference", {}),
    "objective.preference_scale": (5.0, {"objective.kind": "preference"}),
    "objective.reduction": ("sum", {}),
    "objective.train_last_action": (True, {}),
    "constraint.step_size_violated": (0.3, {}),
    "constraint.step_size_satisfied": (0.1, {"start": replace(START, threshold=0.5)}),
    "constraint.multiplier_max": (0.4, {}),
    "constraint.threshold_decay": (0.5, {}),
    "constraint.order": ("multiplier_first", {"constraint.threshold_decay": 0.5}),
    "optim.max_grad_norm": (1e-3, {}),
    "optim.epochs_per_iteration": (2, {}),
    "optim.optimizer_steps_per_epoch": (2, {}),
    "run.objects_per_iteration": (6, {}),
    "run.seed": (1, {}),
}
# How work is cut up: the numbers stay, but for rounding; the network calls do not.
CUTS = {
    "optim.steps_per_microbatch": (2, {"sampler.num_steps": 3}),
    "run.objects_per_slice": (4, {}),
    "run.replay_objects_per_slice": (1, {}),
}
# Read where samples are compared within groups: their own tests ask each.
GROUPS = (
    "rollout.", "condition.", "flow.", "forward.", "advantage.spread", "advantage.ddof",
    "advantage.delta", "advantage.clip", "advantage.fusion", "objective.kl_",
    "objective.step_weight", "objective.train_share", "optim.step_per_decision",
)  # fmt: skip
BUILT = "read when the system is built"
RUN = "read by the trainer, between iterations"
ELSEWHERE = {
    "recipe": "a name",
    "model.network": BUILT,
    "model.weights": BUILT,
    "model.sources": BUILT,
    "sampler.negative_prompt": BUILT,
    "sampler.evaluation_steps": BUILT,
    "model.rig": BUILT,
    "model.image_size": BUILT,
    "model.finetune": BUILT,
    "model.lora_rank": BUILT,
    "model.lora_alpha": BUILT,
    "model.dtype": BUILT,
    "model.gradient_checkpointing": BUILT,
    "model.azimuths": BUILT,
    "model.elevation": BUILT,
    "model.storage_device": BUILT,
    "model.offload_frozen": BUILT,
    "model.views_per_decode": BUILT,
    "model.channels_last": BUILT,
    "model.compile": BUILT,
    "model.tf32": BUILT,
    "reward.per_view": BUILT,
    "reward.joint": BUILT,
    "reward.combine": "read where several scorers are added, tested below",
    "reward.weights": BUILT,
    "reward.tokenizers": BUILT,
    "reward.url": BUILT,
    "reward.device": BUILT,
    "reward.dtype": BUILT,
    "reward.images_per_chunk": BUILT,
    "reward.timeout": BUILT,
    "reward.wait": BUILT,
    "reward.api_key_env": BUILT,
    "guard.every": RUN,
    "guard.per_view": BUILT,
    "guard.joint": BUILT,
    "guard.diversity": RUN,
    "guard.noises": RUN,
    "guard.margin": RUN,
    "guard.unit": RUN,
    "guard.fallen": RUN,
    "guard.action": RUN,
    "constraint.multiplier_init": RUN,
    "constraint.threshold_init": RUN,
    "constraint.threshold_objects": RUN,
    "optim.lr": RUN,
    "optim.betas": RUN,
    "optim.eps": RUN,
    "optim.weight_decay": RUN,
    "optim.loss_scale": RUN,
    "optim.loss_scale_growth_interval": "read after each optimiser step, tested below",
    "optim.warmup_iterations": RUN,
    "optim.decay_iterations": RUN,
    "optim.average_decay": RUN,
    "optim.average_every": RUN,
    "run.iterations": RUN,
    "run.prompts": RUN,
    "run.held_out": RUN,
    "run.checkpoint_every": RUN,
    "run.keep_checkpoints": RUN,
    "run.evaluate_every": RUN,
    "run.evaluation_noises": RUN,
    "run.trackers": RUN,
    "run.device": RUN,
}


@cache
def learnt_under(others, start):
    """Learn once under settings that several changes are compared with."""
    with without_shape_checks():  # two thirds of the time here, and no news after the first
        return learn(config_of(**dict(others)), start=start)


def both_ways(path, change, others):
    """Learn without and with a change."""
    others = dict(others)
    start = others.pop("start", START)
    changed = {**others, path: change}
    return learnt_under(tuple(others.items()), start), learnt_under(tuple(changed.items()), start)


@pytest.mark.parametrize("path", READ)
def test_a_setting_changes_what_is_learnt(path):
    """One that does nothing would be a fault."""
    (plain, *_), (changed, *_) = both_ways(path, *READ[path])

    assert not torch.allclose(plain, changed, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("interval", "scales"), [(1, [16.0, 64.0]), (3, [4.0, 8.0])])
def test_a_loss_scale_is_handed_on_and_changes_no_bit(interval, scales):
    """It doubles after so many of two optimiser steps per iteration; fp64 has exponents enough."""
    config = config_of(
        **{"optim.optimizer_steps_per_epoch": 2, "optim.loss_scale_growth_interval": interval}
    )
    plain, before, *_ = learn(config)
    scaled, after, *_ = learn(config, loss_scale=LossScale(scale=4.0))

    assert torch.equal(plain, scaled)
    assert [row["loss_scale"] for row in after] == scales
    assert [
        {**row, "loss_scale": scale, "skipped_steps": 0.0}
        for row, scale in zip(before, scales, strict=True)
    ] == after


@pytest.mark.parametrize("path", CUTS)
def test_a_cut_changes_the_calls_and_not_the_numbers(path):
    """Rollout's slices change no bit of the rollout; replay's change rounding."""
    (plain, before, calls, _), (cut, after, other, _) = both_ways(path, *CUTS[path])

    assert [call.rows for call in calls] != [call.rows for call in other]
    torch.testing.assert_close(plain, cut, rtol=1e-4, atol=1e-6)
    for name in before[0]:
        assert after[0][name] == pytest.approx(before[0][name], rel=1e-3, abs=1e-5), name
    if path != "run.objects_per_slice":
        assert after[0]["replay_deviation"] < 1e-2


def test_every_setting_is_read_somewhere():
    """A new one must be put into one of the lists above."""
    sections = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    paths = {
        f"{name}.{field.name}" if dataclasses.is_dataclass(kind) else name
        for name, kind in sections.items()
        for field in (dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else [None])
        if field is not None or not dataclasses.is_dataclass(kind)
    }

    groups = {path for path in paths if path.startswith(GROUPS)}
    assert paths == {*READ, *CUTS, *ELSEWHERE, *groups}
    assert not READ.keys() & ELSEWHERE.keys()


def test_an_iteration_is_a_function_of_its_arguments():
    """Twice the same, bit for bit, whatever the global generator."""
    one = learn(config_of())
    torch.randn(7)
    two = learn(config_of())

    assert torch.equal(one[0], two[0])
    assert one[1] == two[1]


def test_every_iteration_has_noise_of_its_own():
    """The same prompts and parameters sample something else."""
    config = config_of(**{"run.objects_per_iteration": 12, "run.objects_per_slice": 12})
    _, (one, two), _, _ = learn(config, lr=0.0)

    # Twelve objects are all the prompts, whatever their order.
    assert all(one[name] != two[name] for name in one if "_reward/" in name)


def test_slices_do_not_change_a_bit_of_what_is_sampled():
    """Rewards are the same in slices of one, two and four objects."""
    configs = [config_of(**{"run.objects_per_slice": size}) for size in (1, 2, 4)]
    tables = [learn(config, iterations=1)[1][0] for config in configs]
    names = [name for name in tables[0] if "reward" in name]

    assert len(names) == 10
    assert all(table[name] == tables[0][name] for table in tables for name in names)


@pytest.mark.parametrize("kind", ["lcm", "ddim"])
def test_the_terminal_action_is_trained_or_dropped(kind):
    """Of a trained one the log-density is replayed; of a dropped one it is not."""
    for trained, expected in ((False, 1), (True, 2)):
        config = config_of(**{"sampler.kind": kind, "objective.train_last_action": trained})
        _, metrics, calls, _ = learn(config, iterations=1)
        replayed = {call.timestep[0] for call in calls if call.with_gradient}

        assert len(replayed) == expected
        assert metrics[0]["replay_deviation"] == 0.0


def test_a_fixed_threshold_stays():
    """With decay 1; the multiplier still moves."""
    config = config_of(**{"constraint.threshold_decay": 1.0})
    _, metrics, _, state = learn(config)

    assert state.threshold == START.threshold
    assert metrics[0]["multiplier"] != metrics[1]["multiplier"]


def test_a_fixed_step_size_is_both_step_sizes():
    """The multiplier moves by it times the slack, either way."""
    told = {"constraint.step_size_violated": 0.05, "constraint.step_size_satisfied": 0.05}
    for threshold in (0.5, 2.0):
        start = replace(START, threshold=threshold)
        _, (metrics,), _, state = learn(config_of(**told), iterations=1, start=start)

        moved = state.multiplier - start.multiplier
        assert moved == pytest.approx(-0.05 * metrics["slack"], rel=1e-4)
        assert (moved > 0) == (threshold == 2.0)


def test_the_first_mean_becomes_the_threshold():
    """Where there is none yet; the multiplier rests."""
    _, (metrics,), _, state = learn(config_of(), iterations=1, start=ConstraintState())

    joint = metrics["joint_view_reward/zigzag"] + metrics["joint_view_reward/standard"]
    assert state.initialised
    assert state.threshold == pytest.approx(joint / 2, rel=1e-6)
    assert metrics["multiplier"] == metrics["slack"] == 0.0


def test_shuffling_permutes_the_objects_gaps(monkeypatch):
    """Each object's views stay together; the order is another in every iteration."""
    plain, *_ = gap_of(monkeypatch, config_of(**{"run.objects_per_iteration": 8}))
    config = config_of(**{"run.objects_per_iteration": 8, "advantage.shuffle": True})
    updates, gaps = spied(monkeypatch, "update_policy"), spied(monkeypatch, "advantage_gap")
    learn(config, iterations=3)
    orders = []
    for (arguments, _, _), (_, _, unshuffled) in zip(updates, gaps, strict=True):
        shuffled = torch.cat([batch.advantage_gap for batch in arguments[3]])
        orders.append([unshuffled.tolist().index(row) for row in shuffled.tolist()])

    assert torch.equal(gaps[0][2], plain)
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in [list(range(8)), *orders]}) == 4


def test_the_gap_meets_the_pair_that_earned_it(monkeypatch):
    """Slice by slice, object by object, also when there are several optimiser steps."""
    updates, gaps = spied(monkeypatch, "update_policy"), spied(monkeypatch, "advantage_gap")
    pairs = spied(monkeypatch, "paired_rollout")
    learn(config_of(**{"optim.optimizer_steps_per_epoch": 2}), iterations=1)
    gap, batches = gaps[0][2], updates[0][0][3]

    assert [batch.first_object for batch in batches] == [0, 2]
    for index, batch in enumerate(batches):
        assert torch.equal(batch.advantage_gap, gap[2 * index : 2 * index + 2])
        assert batch.rollout is pairs[index][2]


def test_it_learns():
    """Over twenty iterations the rewards of plain sampling rise."""
    config = config_of(**{"sampler.guidance_scale": 1.0})
    with without_shape_checks():
        _, metrics, _, _ = learn(config, iterations=20, lr=0.05)
    per_view = [table["per_view_reward/standard"] for table in metrics]

    assert sum(per_view[-5:]) > sum(per_view[:5])


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


def arms(monkeypatch, config, prompts=None, **parts):
    """Return both arms' images, their prompts, and the gap of an iteration."""
    pairs, gaps = spied(monkeypatch, "paired_rollout"), spied(monkeypatch, "advantage_gap")
    _, (metrics,), _, state = learn(config, iterations=1, **parts)
    images = {
        arm: torch.sigmoid(torch.cat([getattr(pair, arm).denoised for *_, pair in pairs])[:, :, :3])
        for arm in ("zigzag", "standard")
    }
    return images, prompt_batch(PROMPTS, seed=0, iteration=0, count=4), gaps[0], metrics, state


def standard_scores(table):
    """Standardise in fp64."""
    return (table - table.mean()) / table.std(correction=0)


@pytest.mark.parametrize("combine", ["rewards", "advantages"])
def test_several_scorers_are_added_as_asked(monkeypatch, combine):
    """Raw and then standardised, or standardised and then added, both with the same weights."""
    config = config_of(**{"reward.combine": combine})
    parts = several()
    images, prompts, (_, _, gap), _, state = arms(monkeypatch, config, **parts)
    mixed = {}
    for kind, scorer in parts.items():
        raw = {
            name: torch.stack([judge(images[arm], prompts) for arm in images]).double()
            for name, judge in scorer.scorers.items()
        }
        if combine == "rewards":
            total = standard_scores(sum(scorer.weights[n] * raw[n] for n in raw))
        else:
            total = sum(scorer.weights[n] * standard_scores(raw[n]) for n in raw)
        mixed[kind] = total[0] - total[1]
    share = state.multiplier / (1 + state.multiplier)
    expected = (1 - share) * mixed["per_view"] + share * mixed["joint"][:, None]

    torch.testing.assert_close(gap.double(), expected, rtol=2e-3, atol=2e-3)


def test_the_two_ways_of_adding_differ(monkeypatch):
    """Raw, the scorer of the widest spread leads; standardised, each pulls with its weight."""
    found = [
        learn(config_of(**{"reward.combine": combine}), iterations=1, **several())[0]
        for combine in ("rewards", "advantages")
    ]

    assert not torch.allclose(found[0], found[1], rtol=1e-6)


@pytest.mark.parametrize("combine", ["rewards", "advantages"])
def test_one_scorer_of_weight_1_is_itself(combine):
    """Whichever way it is not added to anything: the same parameters, bit for bit."""
    plain = learn(config_of())
    alone = {
        "per_view": Mixture(scorers={"per_view": per_view_score}, weights={"per_view": 1.0}),
        "joint": Mixture(scorers={"joint_view": joint_score}, weights={"joint_view": 1.0}),
    }
    mixed = learn(config_of(**{"reward.combine": combine}), **alone)

    assert torch.equal(plain[0], mixed[0])
    assert plain[1] == mixed[1]
    assert plain[3] == mixed[3]


def test_every_scorer_s_own_mean_is_a_metric(monkeypatch):
    """Unweighted, of both arms; the others are of the weighted sum."""
    images, prompts, _, metrics, _ = arms(monkeypatch, config_of(), **several())
    judges = {"red": red, "contrast": contrast, "agreement": joint_score, "blue": blue}
    for name, judge in judges.items():
        for arm in images:
            found = metrics[f"reward/{name}/{arm}"]
            assert found == pytest.approx(judge(images[arm], prompts).mean().item(), rel=1e-5)
    for arm in images:
        total = 0.01 * metrics[f"reward/red/{arm}"] + 20 * metrics[f"reward/contrast/{arm}"]
        assert metrics[f"per_view_reward/{arm}"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("combine", ["rewards", "advantages"])
def test_the_constraint_reads_the_weighted_raw_joint_reward(monkeypatch, combine):
    """Whatever the advantages are made of."""
    config = config_of(**{"reward.combine": combine})
    images, prompts, _, metrics, _ = arms(monkeypatch, config, **several())
    raw = torch.cat([joint_score(i, prompts) + 3.0 * blue(i, prompts) for i in images.values()])
    mean = raw.mean().item()

    assert metrics["slack"] == pytest.approx(mean - metrics["threshold"], abs=1e-4)
    expected = constraint_step(START, mean)
    assert metrics["threshold"] == pytest.approx(expected.threshold, rel=1e-6)


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
        learn(config_of(), iterations=1, **parts)


# -- prompts -----------------------------------------------------------------------------


@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 9))
def test_prompts_come_in_shuffled_passes(total, count, seed):
    """Each once a pass, however passes and iterations meet."""
    names = [f"p{i}" for i in range(total)]
    drawn = [
        name
        for index in range(2 * total)
        for name in prompt_batch(names, seed=seed, iteration=index, count=count)
    ]
    passes = [drawn[i : i + total] for i in range(0, len(drawn), total)]

    assert len(passes) == 2 * count
    assert all(sorted(turn) == names for turn in passes)


def test_passes_differ_by_seed_and_by_turn():
    """An order is not repeated."""
    names = [f"p{i}" for i in range(12)]
    orders = {
        tuple(prompt_batch(names, seed=seed, iteration=turn, count=12))
        for seed in (0, 1)
        for turn in (0, 1)
    }

    assert len(orders) == 4
    assert tuple(names) not in orders


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", ["per_view", "joint"])
def test_refuses_a_reward_that_is_not_finite(kind, bad):
    """By reward, object within the iteration, and view; nothing is learnt from it."""
    config = config_of()
    wanted = prompt_batch(PROMPTS, seed=0, iteration=0, count=4)[3]

    def spoilt(images, prompts):
        table = (per_view_score if kind == "per_view" else joint_score)(images, prompts)
        for place, prompt in enumerate(prompts):
            if prompt == wanted:
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
            prompt_batch(PROMPTS, seed=0, iteration=0, count=4),
            iteration=0,
            config=config,
            world=World(),
            timer=StageTimer(),
        )

    assert all(torch.equal(p, q) for p, q in zip(system.trained().values(), before, strict=True))


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
        iterate(config_of(), PROMPTS[:count])


def test_rejects_no_prompts():
    """There is nothing to shuffle."""
    with pytest.raises(ValueError, match="`prompts` must hold at least one prompt; got none"):
        prompt_batch([], seed=0, iteration=0, count=1)


def test_rejects_slices_that_cannot_be_dealt_out():
    """Before anything is sampled."""
    config = config_of(**{"run.objects_per_iteration": 6, "optim.optimizer_steps_per_epoch": 2})
    with pytest.raises(ConfigError, match="The nearest valid value"):
        iterate(config, PROMPTS[:6])


def test_rejects_a_grid_that_leaves_nothing_to_train():
    """One step, whose action is the last."""
    with pytest.raises(ConfigError, match=r"`sampler\.num_steps` must be at least 2"):
        config_of(**{"sampler.kind": "ddim", "sampler.num_steps": 1})


def test_modes_are_the_advantages_own():
    """The settings know no mode that the mathematics does not."""
    for mode in ("constrained", "joint", "per_view", "weighted_sum"):
        assert 0.0 <= joint_share(mode) <= 1.0
