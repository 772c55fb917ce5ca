"""`method.ahead`: laws of iterations that are sampled before the last update."""

import threading
from dataclasses import replace

import pytest
import torch

from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ReplayMismatchError, ScorerUnavailableError
from mvczigal_ref.iteration import run_iteration
from mvczigal_ref.method import forward, groups, judged, noise_preference, sample
from mvczigal_ref.method.slices import Share
from mvczigal_ref.training.tracking import StageTimer
from mvczigal_ref.update.replay import replay_decision
from tests.analytic_system import PROMPTS, analytic_system
from tests.iterations import (
    BRANCHES,
    FORWARD,
    LCM,
    PAIRS,
    TREE,
    ZIGAL,
    Said,
    config_of,
    learn,
    system_of,
)
from tests.unannotated import without_shape_checks

DPO = {**ZIGAL, "objective.kind": "preference"}
NOISE = {**DPO, "objective.preference_form": "noise"}
NFT = {**FORWARD, "forward.old_decay_rate": 0.4}
KINDS = {"pairs": ZIGAL, "groups": LCM, "noise": NOISE, "forward": NFT}


@pytest.fixture(autouse=True)
def _quick():
    """Check no shapes: most of the time here, and no news."""
    with without_shape_checks():
        yield


def ahead_of(kind, **more):
    """Configure a method that samples ahead."""
    return config_of(kind, **{"rollout.ahead": True, **more})


def begun(config, **parts):
    """Run the first iteration, and sample the second meanwhile; give system, result, and the
    parameters before.
    """
    system = system_of(config, **parts)
    before = {name: p.detach().clone() for name, p in system.trained().items()}
    result = step(system, config, 0, old=before)
    return system, result, before


def step(system, config, index, *, enhancer=None, **given):
    """Run one iteration and sample the next meanwhile."""
    old = given.pop("old", None) if config.objective.kind == "forward_process" else None
    given.pop("old", None)
    return run_iteration(
        system, torch.optim.SGD(list(system.trained().values()), lr=0.05),
        ConstraintState(multiplier=0.5, threshold=2.0, initialised=True), batch(config, index),
        iteration=index, config=config, world=World(), timer=StageTimer(), old=old,
        next_prompts=batch(config, index + 1), enhancer=enhancer, **given,
    )  # fmt: skip


def batch(config, index):
    """Give an iteration's prompts: another order in every second one."""
    prompts = PROMPTS[: config.run.objects_per_iteration]
    return prompts[::-1] if index % 2 else prompts


def tensors(samples):
    """List everything that was sampled."""
    pair = [] if samples.pair is None else [samples.pair.zigzag, samples.pair.standard]
    names = ("state", "action", "log_prob")
    return [samples.denoised, *(getattr(x, n) for x in (*pair, *samples.decisions) for n in names)]


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_only_the_age_of_the_sampling_policy_differs(kind):
    """The first iteration is as without it; the second is by the parameters before the first
    update, whether it is sampled meanwhile or later; the numbers of calls are as many.
    """
    plain, off, _, _ = learn(config_of(kind))
    meanwhile, on, calls, _ = learn(ahead_of(kind))
    later, also, other_calls, _ = learn(ahead_of(kind), meanwhile=False)

    assert on[0] == off[0]
    assert on[1] != off[1]
    assert not torch.equal(plain, meanwhile)
    assert torch.equal(meanwhile, later)
    assert on == also
    if "approx_kl" in on[0] and kind is not NOISE:  # ratios are over the policy that sampled
        assert on[0]["approx_kl"] == on[0]["replay_deviation"] == 0.0
        assert on[1]["approx_kl"] > 1e-9
        assert "replay_deviation" not in on[1]
    assert sorted(map(repr, calls)) == sorted(map(repr, other_calls))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_samples_are_those_of_the_parameters_before_the_update(kind):
    """Of the next iteration's noise; the rollout keeps these parameters, and counts its rows."""
    config = ahead_of(kind)
    system, result, before = begun(config)
    fresh = system_of(config)
    parts = Share.of(config, World()).parts(batch(config, 1))
    old = before if config.objective.kind == "forward_process" else None
    wanted = [judged.sample(fresh, part, config, 1, old=old) for part in parts]

    assert len(result.ahead.samples) == len(wanted) > 1
    for mine, theirs in zip(result.ahead.samples, wanted, strict=True):
        assert all(map(torch.equal, tensors(mine), tensors(theirs)))
    assert all(torch.equal(result.ahead.behaviour[name], before[name]) for name in before)
    assert any((system.trained()[name] != before[name]).any() for name in before)
    assert result.ahead.rows == sum(call.rows for call in fresh.policy.calls)


def test_captions_have_the_density_that_the_sampling_policy_gives_them(monkeypatch):
    """By hand, with the parameters before the update put back."""
    config, heard = ahead_of(LCM), []
    enhancer = Said("prompt 7")
    system = system_of(config)
    before = {name: p.detach().clone() for name, p in system.trained().items()}
    result = step(system, config, 0, enhancer=enhancer)
    right = groups.update_groups
    monkeypatch.setattr(
        groups,
        "update_groups",
        lambda *given, **how: heard.append(given[3]) or right(*given, **how),
    )
    step(system, config, 1, enhancer=enhancer, ahead=result.ahead)
    with torch.no_grad():
        for name, parameter in system.trained().items():
            parameter.copy_(before[name])
    settings = groups.group_update_settings(config)

    for batch in (batch for part in heard[0] for batch in part):
        for decision in batch.decisions:
            score = replay_decision(
                system.policy, system.sampler, decision, batch.conditioning, settings=settings
            )
            assert torch.equal(score, decision.log_prob)
    assert len(heard[0][0]) == 2  # the prompts, and their captions


@pytest.mark.parametrize(
    ("kind", "module", "argument"), [(NFT, forward, "old"), (NOISE, noise_preference, "reference")]
)
def test_the_old_policy_of_a_loss_is_the_one_that_sampled(monkeypatch, kind, module, argument):
    """DiffusionNFT's velocities and the snapshot of a preference."""
    config, seen = ahead_of(kind), []
    system, result, before = begun(config)
    right = module.update_forward

    def update(*given, **how):
        with how[argument]():
            seen.append({name: p.detach().clone() for name, p in system.trained().items()})
        return right(*given, **how)

    monkeypatch.setattr(module, "update_forward", update)
    step(system, config, 1, old=result.old, ahead=result.ahead)
    assert all(torch.equal(seen[0][name], before[name]) for name in before)


# -- order -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ZIGAL, LCM, NFT], ids=["pairs", "groups", "forward"])
def test_the_next_iteration_begins_while_the_judges_answer(monkeypatch, kind):
    """The judge of the first slice waits for it; without it he would wait for ever."""
    begins, right, order = threading.Event(), judged.sample, []

    def sampled(system, part, config, iteration, **how):
        order.append(iteration)
        if iteration == 1:
            begins.set()
        return right(system, part, config, iteration, **how)

    def patient(images, prompts):
        assert begins.wait(60), "the next iteration was not sampled meanwhile"
        return images.mean((-3, -2, -1))

    monkeypatch.setattr(judged, "sample", sampled)
    begun(ahead_of(kind), per_view=patient)
    assert order == [0, 1] * (len(order) // 2)


def test_of_the_last_iteration_nothing_is_sampled_ahead():
    """But the parameters are kept, for a run that is made longer."""
    config = ahead_of(LCM)
    result = learn(config, iterations=1, meanwhile=False)[3]

    assert result.ahead.samples == []
    assert result.ahead.rows == 0
    assert result.ahead.behaviour


# -- errors ------------------------------------------------------------------------------


def test_a_judge_that_fails_ends_the_iteration_unchanged():
    """With its own error; no parameter has moved."""
    config, calls = ahead_of(LCM), []
    system = replace(analytic_system(config), per_view=lambda images, prompts: broken(calls))
    before = {name: p.detach().clone() for name, p in system.trained().items()}
    with pytest.raises(ScorerUnavailableError, match="the judge is out"):
        step(system, config, 0)

    assert len(calls) == 1
    assert all(torch.equal(p, before[name]) for name, p in system.trained().items())


def broken(calls):
    """Fail, and note it."""
    calls.append(1)
    raise ScorerUnavailableError("the judge is out")


@pytest.mark.parametrize("kind", [ZIGAL, PAIRS, LCM, TREE, BRANCHES])
def test_samples_that_replay_does_not_reproduce_are_refused(monkeypatch, kind):
    """While the parameters that drew them are there, since the update cannot tell."""
    config, right = ahead_of(kind), sample.draw_samples

    def draw(*given, **how):
        drawn = right(*given, **how)
        if how["iteration"] == 1:
            arms = drawn.pair and replace(drawn.pair, zigzag=off(drawn.pair.zigzag))
            drawn = replace(drawn, decisions=tuple(map(off, drawn.decisions)), pair=arms)
        return drawn

    monkeypatch.setattr(sample, "draw_samples", draw)
    with pytest.raises(ReplayMismatchError, match="the slice that starts at object 0"):
        begun(config)


def off(decision):
    """Shift the stored densities."""
    return replace(decision, log_prob=decision.log_prob + 1e-3)
