"""`iteration` over groups: laws of a whole iteration, settings, errors."""

import dataclasses
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import pytest
import torch

from mvczigal_ref.condition.protocol import Caption
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.constraint import constraint_step
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.iteration import run_iteration
from mvczigal_ref.method import forward, groups
from mvczigal_ref.system.sampler import build_sampler
from mvczigal_ref.training.tracking import StageTimer
from mvczigal_ref.update.loss_scale import LossScale
from mvczigal_ref.update.parameters import parameters_as
from mvczigal_ref.update.replay import GroupUpdateSettings, replay_decision
from tests.analytic_system import PROMPTS, analytic_system
from tests.unannotated import without_shape_checks
from tests.unit.method.test_sample import FLOW, GROUP, config_of
from tests.unit.test_iteration import GROUPS, START

SMALL = {
    "run.objects_per_iteration": 2,
    "run.objects_per_slice": 1,
    "sampler.num_steps": 3,
    "sampler.guidance_scale": 2.0,
    "optim.optimizer_steps_per_epoch": 1,
    "optim.max_grad_norm": 1e6,
    "objective.clip_range": 0.5,
    "advantage.delta": 0.01,
}
LCM = {**SMALL, **GROUP}
ONE_VIEW = {**LCM, **FLOW}
TREE = {**ONE_VIEW, "rollout.kind": "tree", "rollout.split_steps": [0, 1]}
BRANCHES = {**ONE_VIEW, "rollout.kind": "branches"}
FORWARD = {**ONE_VIEW, "objective.kind": "forward_process"}
PAIRS = {**SMALL, "objective.kind": "policy_gradient"}
OFTEN = {"optim.epochs_per_iteration": 3, "objective.clip_range": 1e-4}


def window(name, **more):
    """Name a window of one step."""
    size = {"rollout.window": name, "rollout.window_size": 1, "rollout.window_interval": 2}
    return {**ONE_VIEW, **size, **{f"rollout.window_{key}": value for key, value in more.items()}}


class Said:
    """An enhancer that says the same of everything; an empty text is the prompt."""

    needs_images = True

    def __init__(self, *texts):
        self.texts, self.asked = texts, []

    def num_captions(self, group_size):
        """Tell K."""
        return len(self.texts)

    def __call__(self, prompts, images=None, *, seed):
        """Note what is asked."""
        self.asked.append((list(prompts), tuple(images.shape), seed))
        return [
            tuple(Caption(caption=text or prompt, instruction="said") for text in self.texts)
            for prompt in prompts
        ]


def telling(images, prompts):
    """Like another colour for each prompt, so that a caption changes who is better."""
    number = torch.tensor([float(prompt.split()[-1]) for prompt in prompts])[:, None]
    red, _, blue = images.mean((-2, -1)).unbind(-1)
    return 10 * (torch.cos(number) * red + torch.sin(number) * blue)


def learn(
    config, *, iterations=2, first=0, stride=1, start=START, lr=0.05, enhancer=None, world=None,
    old=None, loss_scale=None,
    **parts,
):  # fmt: skip
    """Run some iterations; return parameters, metrics, network calls and the last result."""
    system = replace(analytic_system(config), **{"per_view": telling, **parts})
    trained = system.trained()
    optimizer, metrics = torch.optim.SGD(list(trained.values()), lr=lr), []
    if config.objective.kind == "forward_process" and old is None:
        old = {name: p.detach().clone() for name, p in trained.items()}
    for index in (first + stride * n for n in range(iterations)):
        result = run_iteration(
            system, optimizer, start, PROMPTS[: config.run.objects_per_iteration],
            iteration=index, config=config, world=world or World(), timer=StageTimer(),
            enhancer=enhancer, old=old, loss_scale=loss_scale,
        )  # fmt: skip
        start, old, loss_scale = result.constraint, result.old, result.loss_scale
        metrics.append(result.metrics)
    parameters = torch.cat([p.detach().flatten() for p in trained.values()])
    return parameters, metrics, system.policy.calls, result


def spied(monkeypatch, module, name):
    """Note the arguments and results of a stage."""
    seen, original = [], getattr(module, name)

    def spy(*arguments, **named):
        seen.append((arguments, named, original(*arguments, **named)))
        return seen[-1][-1]

    monkeypatch.setattr(module, name, spy)
    return seen


# -- settings ----------------------------------------------------------------------------

# What an iteration over groups reads: a change, and the settings under which it shows.
READ = {
    "rollout.kind": ("branches", ONE_VIEW),
    "rollout.members": (4, LCM),
    "rollout.shared_noise": (True, LCM),
    "rollout.window": ("fixed", ONE_VIEW),
    "rollout.window_size": (2, window("fixed")),
    "rollout.window_start": (1, window("fixed")),
    "rollout.window_last_start": (2, window("random")),
    "rollout.window_spacing": (2, {**window("fixed"), "rollout.window_size": 2}),
    "rollout.window_stride": (2, window("sliding", interval=1)),
    "rollout.window_interval": (1, window("sliding")),
    "rollout.window_decay": (9.0, {**window("decaying"), "first": 3}),
    "rollout.window_decay_after": (1, {**window("decaying", decay=9.0), "first": 3}),
    # Past the end of 3 places of 2 iterations each.
    "rollout.window_end": ("restart", {**window("sliding"), "first": 6}),
    "rollout.split_steps": ([1], TREE),
    "rollout.split_width": (3, TREE),
    "rollout.trunks": (2, BRANCHES),
    "rollout.strides": ([2], BRANCHES),
    "rollout.fine_steps": (1, {**BRANCHES, "rollout.strides": [3], "sampler.num_steps": 4}),
    "flow.kernel": ("constant", ONE_VIEW),
    "flow.noise_scale": (0.5, ONE_VIEW),
    "flow.shift": (3.0, ONE_VIEW),
    "flow.image_is_denoised": (True, ONE_VIEW),
    "condition.weight": (3.0, {**ONE_VIEW, "enhancer": True}),
    "forward.mix": (0.3, {**FORWARD, "optim.epochs_per_iteration": 2}),
    "forward.levels": (1, FORWARD),
    "forward.old_decay_rate": (0.2, {**FORWARD, "first": 1}),
    "forward.old_decay_largest": (
        0.1, {**FORWARD, "first": 1, "forward.old_decay_rate": 0.4},
    ),
    "forward.old_decay_unit": ("optimizer_step", {**FORWARD, "forward.old_decay_rate": 0.2}),
    "advantage.mode": ("joint", LCM),
    "advantage.joint_weight": (0.9, {**LCM, "advantage.mode": "weighted_sum"}),
    "advantage.shuffle": (True, {**LCM, "run.objects_per_iteration": 4, "first": 1}),
    "advantage.spread": ("batch", LCM),
    "advantage.ddof": (1, LCM),
    "advantage.delta": (1.0, LCM),
    "advantage.clip": (0.5, LCM),
    "advantage.fusion_inverse_temperature": (0.3, TREE),
    "objective.kind": ("guard", ONE_VIEW),
    "objective.clip": (False, {**LCM, **OFTEN}),
    "objective.clip_range": (10.0, {**LCM, **OFTEN}),
    "objective.reduction": ("sum", LCM),
    "objective.kl_weight": (0.5, LCM),
    "objective.kl_form": ("without_step_length", {**ONE_VIEW, "objective.kl_weight": 0.5}),
    "objective.step_weight": ("noise", ONE_VIEW),
    "objective.train_share": (0.5, ONE_VIEW),
    "objective.pairing": ("standard", PAIRS),
    "objective.train_last_action": (True, PAIRS),
    "zigzag.steps": (2, PAIRS),
    "zigzag.rounds": (2, PAIRS),
    "zigzag.inversion_guidance_scale": (0.5, PAIRS),
    "zigzag.inversion_camera_scale": (0.5, PAIRS),
    "constraint.step_size_violated": (0.3, {**LCM, "start": replace(START, threshold=20.0)}),
    "constraint.step_size_satisfied": (
        0.1, {**LCM, "start": replace(START, threshold=0.5)},
    ),
    "constraint.multiplier_max": (0.4, LCM),
    "constraint.threshold_decay": (0.5, LCM),
    "constraint.order": ("multiplier_first", {**LCM, "constraint.threshold_decay": 0.5}),
    "optim.step_per_decision": (True, LCM),
    "optim.epochs_per_iteration": (2, LCM),
    "optim.optimizer_steps_per_epoch": (2, LCM),
    "optim.max_grad_norm": (1e-3, LCM),
    "model.storage_dtype": ("bf16", LCM),
    "sampler.kind": ("ddim", LCM),
    "sampler.num_steps": (4, LCM),
    "sampler.guidance_scale": (2.5, LCM),
    "sampler.camera_scale": (0.5, LCM),
    "run.seed": (1, LCM),
    "run.objects_per_iteration": (4, LCM),
}  # fmt: skip
# How work is cut up: the network calls change and the numbers do not, but for rounding.
CUTS = {
    "rollout.nodes_per_call": (1, {**ONE_VIEW, "objective.kl_weight": 0.5}),
    "run.objects_per_slice": (2, {**BRANCHES, "rollout.strides": [1, 2]}),
}
# What is read before the first iteration: where captions come from, and how long prompts are.
BUILT = {
    f"condition.{name}"
    for name in ("enhancer", "num_captions", "file", "model", "url", "api_key_env", "instructions")
} | {"flow.text_length"}


@cache
def learnt_under(settings):
    """Learn once under settings that several changes are compared with."""
    settings = {name: list(v) if isinstance(v, tuple) else v for name, v in settings}
    how = {name: settings.pop(name) for name in ("first", "start") if name in settings}
    if settings.pop("enhancer", False):
        how["enhancer"] = Said("prompt 7", "prompt 9")
    with without_shape_checks():  # most of the time here, and no news after the first
        return learn(config_of(settings), **how)


def both_ways(path, change, others):
    """Learn without and with a change."""
    return [
        learnt_under(tuple((n, tuple(v) if isinstance(v, list) else v) for n, v in how.items()))
        for how in (others, {**others, path: change})
    ]


@pytest.mark.parametrize("path", READ)
def test_a_setting_changes_what_is_learnt(path):
    """One that does nothing would be a fault."""
    (plain, *_), (changed, *_) = both_ways(path, *READ[path])

    assert not torch.allclose(plain, changed, rtol=1e-7, atol=1e-9)
    assert changed.isfinite().all()


@pytest.mark.parametrize("path", CUTS)
def test_a_cut_changes_the_calls_and_not_the_numbers(path):
    """Neither parameters nor metrics."""
    (plain, before, calls, _), (cut, after, other, _) = both_ways(path, *CUTS[path])

    assert [call.rows for call in calls] != [call.rows for call in other]
    torch.testing.assert_close(plain, cut, rtol=1e-4, atol=1e-6)
    for name in before[0]:
        assert after[0][name] == pytest.approx(before[0][name], rel=1e-3, abs=1e-5), name


def test_every_setting_of_groups_is_asked():
    """A new one must be put into one of the lists above."""
    paths = {
        f"{section.name}.{field.name}"
        for section in dataclasses.fields(TrainConfig)
        if dataclasses.is_dataclass(section.type)
        for field in dataclasses.fields(section.type)
    }
    groups = {path for path in paths if path.startswith(GROUPS)}

    assert groups - {*READ, *CUTS} == BUILT
    assert {*READ, *CUTS} <= paths


# -- laws --------------------------------------------------------------------------------


DDIM = {**LCM, "sampler.kind": "ddim"}


@pytest.mark.parametrize("how", [LCM, DDIM, ONE_VIEW, TREE, BRANCHES, FORWARD, PAIRS])
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


@pytest.mark.parametrize("how", [ONE_VIEW, TREE, LCM])
def test_captions_are_judged_scored_and_learnt(monkeypatch, how):
    """The old log-densities are the sampling policy's under each caption of its own prompt."""
    updates = spied(monkeypatch, groups, "update_groups")
    tables = spied(monkeypatch, groups, "compare")
    config, said = config_of(how, {"condition.weight": 3.0}), Said("prompt 7", "", "prompt 9")
    _, (metrics,), _, result = learn(config, iterations=1, enhancer=said)
    system = analytic_system(config)
    settings = GroupUpdateSettings(guidance_scale=2.0, max_grad_norm=1.0)
    drift = []

    for n, conditions in enumerate(updates[0][0][3]):
        own = conditions[0]
        assert [batch.repeats for batch in conditions] == [(2,), (1,), (1,)]
        for k, (place, weight) in enumerate(((0, 1.0 + 3.0), (1, 3.0), (3, 3.0))):
            batch, text = conditions[k], [PROMPTS[n], *said.texts][place]
            assert batch.objects == (n,)
            assert batch.condition_weight == pytest.approx((weight / 2.5,))
            for d, decision in enumerate(batch.decisions):
                expected = replay_decision(
                    system.policy, system.sampler, decision, system.conditioning([text]),
                    settings=settings,
                )  # fmt: skip
                assert torch.equal(decision.log_prob, expected)
                assert torch.equal(batch.advantage[d], tables[0][2][place][d][n : n + 1])
                apart = (decision.log_prob - own.decisions[d].log_prob).abs()
                drift += apart.flatten().tolist()  # of k = 0 the caption that is the prompt
    assert torch.equal(tables[0][2][0][0], tables[0][2][2][0])  # the prompt itself
    assert not torch.allclose(tables[0][2][0][0], tables[0][2][1][0])
    assert metrics["drift/mean"] == pytest.approx(sum(drift) / len(drift), rel=1e-5)
    for n, conditions in enumerate(updates[0][0][3]):
        own, other = conditions[0].decisions, conditions[1].decisions
        steps = [
            float((a.log_prob - b.log_prob).abs().mean()) for a, b in zip(own, other, strict=True)
        ]
        rows = result.captions["captions"][3 * n : 3 * n + 3]
        assert [row["caption"] for row in rows] == ["prompt 7", PROMPTS[n], "prompt 9"]
        assert rows[0]["drift"] == pytest.approx(steps, rel=1e-5)
        assert rows[1]["drift"] == [0.0] * len(steps)
    members = updates[0][0][3][0][0].decisions[-1].action.shape[1]
    assert said.asked == [([PROMPTS[n]], (1, members, 3, 3, 4, 4), 0) for n in range(2)]


def test_nothing_is_clipped_on_policy_under_a_caption():
    """GRPO-Guard's shift is of the mean under the caption, not under the prompt."""
    config = config_of(ONE_VIEW, {"objective.kind": "guard", "objective.clip_range": 2e-6})
    said = Said("prompt 7", "prompt 3", "prompt 9")
    _, (metrics,), _, _ = learn(config, iterations=1, enhancer=said)

    assert metrics["clip_fraction"] == 0.0
    assert metrics["drift/mean"] > 1e-4  # the captions do say something else


class SaidOfTheFirst(Said):
    """Says other things of the first prompt alone."""

    def __call__(self, prompts, images=None, *, seed):
        """Give every other prompt itself."""
        made = super().__call__(prompts, images, seed=seed)
        return [
            texts
            if prompt == PROMPTS[0]
            else tuple(Caption(caption=prompt, instruction="said") for _ in texts)
            for prompt, texts in zip(prompts, made, strict=True)
        ]


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


@pytest.mark.parametrize("kind", [LCM, FORWARD], ids=["decisions", "noised"])
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


def test_every_sample_has_noise_of_its_own_at_every_level(monkeypatch):
    """The levels are those of the grid, and each sample meets its own prompt's advantage."""
    updates = spied(monkeypatch, forward, "update_forward")
    tables = spied(monkeypatch, forward, "compare")
    learn(config_of(FORWARD), iterations=1)
    batches, ((advantage,),) = updates[0][0][2], tables[0][2]
    rows = [row for batch in batches for row in batch.noise.flatten(0, 3).flatten(1).tolist()]

    assert len({tuple(row) for row in rows}) == len(rows) == 2 * 2 * 3 * 3
    # Levels are the iteration's: all samples of all slices are fitted at the same ones.
    assert len({batch.levels for batch in batches}) == 1
    for n, batch in enumerate(batches):
        assert set(batch.levels) < set(build_sampler(config_of(FORWARD)).sigma_t.tolist())
        assert torch.equal(batch.advantage[:, 0], advantage[n])


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


def test_parameters_come_back_after_an_error():
    """Bit for bit, and trainable."""
    weight = torch.nn.Parameter(torch.tensor([0.1, 0.2]))

    def fail():
        with parameters_as({"w": weight}, {"w": torch.zeros(2)}):
            assert torch.is_grad_enabled()
            assert weight.tolist() == [0.0, 0.0]
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(weight.detach(), torch.tensor([0.1, 0.2]))
    assert weight.requires_grad


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


def test_another_number_of_prompts_is_refused():
    """More would be forgotten without a word."""
    config = config_of(LCM)
    system = analytic_system(config)
    with pytest.raises(ValueError, match=r"`prompts` must hold one prompt per object.*got 3"):
        run_iteration(
            system, torch.optim.SGD(list(system.trained().values()), lr=0.1), START, PROMPTS[:3],
            iteration=0, config=config, world=World(), timer=StageTimer(),
        )  # fmt: skip
