"""`update.groups` and `update.decisions`: oracle, laws, gradients, errors."""

import math
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.distributed import World
from mvczigal_ref.errors import NonFiniteError, ReplayMismatchError, ZeroGradientError
from mvczigal_ref.objective.clipped import clipped_surrogate_loss, reference_kl
from mvczigal_ref.objective.sequence import sequence_loss, through_sequence
from mvczigal_ref.rollout.branches import branched_rollout
from mvczigal_ref.rollout.group import group_rollout
from mvczigal_ref.rollout.group_plan import GroupPlan
from mvczigal_ref.update.group_batch import GroupBatch
from mvczigal_ref.update.groups import update_groups
from mvczigal_ref.update.replay import GroupUpdateSettings, decision_under, replay_decision
from tests import oracles
from tests.policies import DetachedPolicy, LinearPolicy, Recorded, numbered
from tests.trajectories import noise, sampler_of
from tests.unit.rollout.flow_cases import GUIDANCE, STORAGE, float_step, flow, plans, roll

SHAPE = (2, 1, 2, 2)
GAINS = (0.5, 0.2, -0.1)
HOME = 0.3  # of a reference


def told(**changes):
    """Replay as the rollouts here sample."""
    return GroupUpdateSettings(**{"guidance_scale": GUIDANCE, "max_grad_norm": 1e9, **changes})


def surrogate(decision, *, clip_range=math.inf, kl_weight=0.0):
    """Bind the clipped surrogate, and the divergence where there is a reference."""
    kl = None
    if decision.mean_reference is not None:
        kl = reference_kl(
            decision.mean, decision.mean_reference, std=decision.std, reduction="mean"
        )
    return clipped_surrogate_loss(
        decision.log_ratio, decision.advantage, clip_range=clip_range, weight=decision.weight,
        kl=None if kl is None else kl * decision.repeats, kl_weight=kl_weight,
    )  # fmt: skip


def drawn(policy, sampler, plan=None, *, objects=(0, 1), **how):
    """Sample a group a prompt."""
    plan = plan or GroupPlan.group(
        3, stochastic_steps=(0, 2), num_steps=sampler.num_steps, shared_noise=True
    )
    return roll(group_rollout, policy, sampler, noise(objects, SHAPE), plan, **how)


def batch_of(record, *, objects=(0, 1), seed=0, **changes):
    """Give every action an advantage of order one."""
    generator = torch.Generator().manual_seed(seed)
    fields = {
        "decisions": record.decisions,
        "conditioning": numbered(objects, SHAPE[0]),
        "advantage": tuple(
            torch.randn(d.log_prob.shape, generator=generator, dtype=torch.float64)
            for d in record.decisions
        ),
        "step_weight": (1.0,) * len(record.decisions),
        "objects": objects,
    }
    return GroupBatch(**{**fields, **changes})


def update(policy, sampler, batches, *, lr=0.1, objective=surrogate, reference=None, **changes):
    """Update by plain gradient descent; return the metrics."""
    parameters = [p for p in getattr(policy, "policy", policy).parameters()]
    metrics, _ = update_groups(
        policy, sampler, torch.optim.SGD(parameters, lr=lr), batches, objective,
        parameters=parameters, world=World(), settings=told(**changes), reference=reference,
    )  # fmt: skip
    return metrics


def whole_gradient(policy, sampler, batches):
    """Differentiate the mean of -A p/p_old over all elements in one graph."""
    terms, count = [], 0
    for batch in (batch for conditions in batches for batch in conditions):
        for index, decision in enumerate(batch.decisions):
            score = replay_decision(policy, sampler, decision, batch.conditioning, settings=told())
            ones = (1,) * len(batch.objects)
            weight = score.new_tensor(batch.condition_weight or ones)[:, None, None]
            ratio = (score - decision.log_prob).exp()
            terms.append(
                (-weight * batch.step_weight[index] * batch.advantage[index] * ratio).sum()
            )
            count += ratio[0].numel() * sum(batch.repeats or ones)
    (gradient,) = torch.autograd.grad(sum(terms) / count, policy.gain)
    return gradient


def home(policy):
    """Turn the policy into its reference, for a while."""

    @contextmanager
    def at_home():
        now = policy.gain.detach().clone()
        policy.gain.data.fill_(HOME)
        yield
        policy.gain.data.copy_(now)

    return at_home


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["sde", "constant", "cps"])
def test_one_step_equals_the_gradient_by_hand(kernel):
    """One parameter, in plain floats: minus the mean of A times the log-density's slope."""
    gain, step_size = 0.5, 1e-6
    policy, sampler = LinearPolicy(gain), flow(4, kernel)
    batch = batch_of(drawn(policy, sampler))
    update(policy, sampler, [[batch]])

    levels = [*sampler.sigma_t.tolist(), 0.0]
    slopes, count = 0.0, 0
    for index, decision in enumerate(batch.decisions):
        s, r = levels[decision.step], levels[decision.step + 1]
        for prompt, member, view in torch.ones_like(decision.log_prob).nonzero().tolist():
            x = decision.state[prompt, member // decision.branches, view].flatten().tolist()
            y = decision.action[prompt, member, view].flatten().tolist()

            def score(at, x=x, y=y, s=s, r=r):
                parts = [
                    oracles.normal_log_density(yi, *float_step(kernel, at, xi, s, r)[:2])
                    for xi, yi in zip(x, y, strict=True)
                ]
                return sum(parts) / len(parts)

            slope = (score(gain + step_size) - score(gain - step_size)) / (2 * step_size)
            slopes += batch.advantage[index][prompt, member, view].item() * slope
            count += 1

    assert policy.gain.item() == pytest.approx(gain + 0.1 * slopes / count, rel=1e-7)


@pytest.mark.parametrize("cut", [None, 1])
def test_sequences_are_learnt_as_the_whole_loss(cut):
    """Two passes: the second's gradient is autograd's of all steps at once, in one graph."""
    sampler, lr = flow(4), 0.5
    policy = LinearPolicy(*GAINS)
    record = drawn(policy, sampler, nodes_per_call=cut)
    batch, bound = batch_of(record), 2e-3
    advantage = batch.advantage[0]  # one number a trajectory, whatever the step
    batch = replace(batch, advantage=(advantage,) * len(record.decisions))

    def objective(decision):
        through = through_sequence(decision.log_ratio, sequence=decision.sequence)
        return clipped_surrogate_loss(through, decision.advantage, clip_range=bound)

    update(
        policy, sampler, [[batch]], lr=lr, objective=objective, by_sequence=True, epochs=2,
        nodes_per_call=cut,
    )  # fmt: skip
    slow = LinearPolicy(*GAINS)
    for _ in range(2):
        ratios = [
            replay_decision(slow, sampler, d, batch.conditioning, settings=told()) - d.log_prob
            for d in record.decisions
        ]
        loss, _ = sequence_loss(torch.stack(ratios, -1), advantage, clip_range=bound)
        (gradient,) = torch.autograd.grad(loss, slow.gain)
        slow.gain.data -= lr * gradient

    assert not torch.equal(policy.gain, torch.tensor(GAINS, dtype=torch.float64))
    torch.testing.assert_close(policy.gain, slow.gain, rtol=1e-10, atol=1e-12)


def test_a_share_weighs_a_prompt_in_loss_and_divergence_alike():
    """A prompt of share 0 is as if it were not there, the other counts for both."""
    sampler, policies = flow(4), [LinearPolicy(*GAINS) for _ in range(2)]
    record = drawn(policies[0], sampler)
    seen = []

    def objective(decision):
        seen.append(decision.share)
        weight = 1.0 if decision.share is None else decision.share
        return clipped_surrogate_loss(
            decision.log_ratio, decision.advantage, clip_range=math.inf,
            weight=decision.weight * weight,
        )  # fmt: skip

    whole = batch_of(record)
    update(policies[0], sampler, [[replace(whole, shares=(2.0, 0.0))]], objective=objective)
    decisions = tuple(decision.prompts(slice(0, 1)) for decision in record.decisions)
    alone = batch_of(
        record, decisions=decisions, objects=(0,), conditioning=numbered((0,), SHAPE[0]),
        advantage=tuple(table[:1] for table in whole.advantage),
    )  # fmt: skip
    update(policies[1], sampler, [[alone]], objective=objective)

    torch.testing.assert_close(policies[0].gain, policies[1].gain, rtol=1e-10, atol=1e-12)
    assert seen[0][0, :, 0].tolist() == [2.0, 0.0]
    assert seen[-1] is None  # one prompt, nothing to weigh


@pytest.mark.parametrize("density", ["drawn", "kernel"])
def test_wider_noise_at_a_split_is_replayed_by_the_density_that_scored_it(density):
    """The first ratio is 1, and the density is the Gaussian's of its own spread."""
    sampler, policy = flow(4), LinearPolicy(*GAINS)
    plan = GroupPlan.tree({0: 3}, stochastic_steps=(0, 1), num_steps=4)
    record = drawn(policy, sampler, plan, split_noise=2.5, split_density=density)
    plain = drawn(policy, sampler, plan)
    split, later = record.decisions
    factor = 2.5 if density == "drawn" else 1.0
    taken = sampler.transition(torch.zeros(1, 1, 1).double(), torch.zeros(1, 1, 1).double(), 0)
    moved = [d.decisions[0].action - split.state * 0 for d in (record, plain)]
    mean = (2.5 * moved[1] - moved[0]) / 1.5  # both draws have one noise
    std = taken.std * factor
    density_of = torch.distributions.Normal(mean, std).log_prob(split.action)
    replayed = replay_decision(policy, sampler, split, numbered((0, 1), SHAPE[0]), settings=told())

    assert (split.std_factor, later.std_factor) == (factor, 1.0)
    assert torch.equal(replayed, split.log_prob)
    torch.testing.assert_close(split.log_prob, density_of.mean((-3, -2, -1)), rtol=1e-8, atol=1e-8)


# -- laws --------------------------------------------------------------------------------


@settings(max_examples=10)
@given(plans(), st.sampled_from(STORAGE), st.sampled_from([None, 1, 2]))
def test_replay_gives_the_stored_numbers(plan, storage, nodes):
    """Bit for bit in every storage dtype, whole or cut as the rollout was."""
    policy, sampler = LinearPolicy(*GAINS), flow(plan.num_steps)
    record = drawn(policy, sampler, plan, storage_dtype=storage, nodes_per_call=nodes)
    for decision in record.decisions:
        score = replay_decision(
            policy, sampler, decision, numbered((0, 1), SHAPE[0]), settings=told(),
            nodes_per_call=nodes,
        )  # fmt: skip

        assert torch.equal(score, decision.log_prob)


@given(plans(), st.sampled_from([None, 1, 2]), st.booleans())
def test_a_decision_under_another_condition_is_what_would_be_drawn_from_there(plan, nodes, kept):
    """Its mean is the transition's at each parent, its densities those of a replay."""
    policy, sampler = LinearPolicy(*GAINS), flow(plan.num_steps)
    record = drawn(policy, sampler, plan, nodes_per_call=nodes, keep_mean=kept)
    told_so = {"settings": told(), "nodes_per_call": nodes}
    for decision in record.decisions:
        own, other = (
            decision_under(policy, sampler, decision, numbered(objects, SHAPE[0]), **told_so)
            for objects in ((0, 1), (2, 3))
        )
        again = drawn(policy, sampler, plan, nodes_per_call=nodes, keep_mean=True)
        mean = next(d.mean for d in again.decisions if d.step == decision.step)

        assert torch.equal(own.log_prob, decision.log_prob)
        assert torch.equal(
            other.log_prob,
            replay_decision(policy, sampler, decision, numbered((2, 3), SHAPE[0]), **told_so),
        )
        assert (own.mean is None) == (other.mean is None) == (not kept)
        assert own.action is decision.action
        if kept:
            assert torch.equal(own.mean, mean)
            assert own.mean.shape == other.mean.shape
            assert not torch.allclose(own.mean, other.mean)


@settings(max_examples=10)
@given(plans(), st.sampled_from([None, 1, 2]), st.integers(0, 9))
def test_a_tree_is_learnt_as_one_graph_would(plan, nodes, seed):
    """However its parents are cut, and with depths of several sizes."""
    if not plan.stochastic_steps:
        return
    policy, sampler = LinearPolicy(*GAINS), flow(plan.num_steps)
    record = drawn(policy, sampler, plan, nodes_per_call=nodes)
    batches = [[batch_of(record, seed=seed)]]
    expected = policy.gain.detach() - 0.1 * whole_gradient(policy, sampler, batches)
    metrics = update(policy, sampler, batches, nodes_per_call=nodes)

    torch.testing.assert_close(policy.gain.detach(), expected, rtol=1e-10, atol=1e-12)
    assert metrics["replay_deviation"] == metrics["approx_kl"] == metrics["clip_fraction"] == 0.0


def test_weights_of_conditions_and_steps_multiply():
    """Three slices, two conditions of unequal weight, later steps counted twice."""
    policy, sampler = LinearPolicy(*GAINS), flow(4)
    batches = []
    for first in range(3):
        record = drawn(policy, sampler, objects=(first,))
        other = numbered((first + 1,), SHAPE[0])
        under = tuple(
            decision_under(policy, sampler, d, other, settings=told()) for d in record.decisions
        )
        shared = {"objects": (first,), "step_weight": (0.5, 1.5)}
        batches.append(
            [
                batch_of(record, seed=first, condition_weight=(0.8,), **shared),
                batch_of(
                    record, seed=first + 5, conditioning=other, decisions=under,
                    condition_weight=(1.2,), **shared,
                ),
            ]
        )  # fmt: skip
    expected = policy.gain.detach() - 0.1 * whole_gradient(policy, sampler, batches)
    update(policy, sampler, batches)

    torch.testing.assert_close(policy.gain.detach(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("members", [None, 1])
def test_what_stands_for_several_conditions_counts_as_often(members):
    """The same parameters and metrics as where each prompt's equal conditions are repeated."""
    sampler = flow(4)
    results = []
    for together in (True, False):
        policy = LinearPolicy(*GAINS)
        record = drawn(policy, sampler, nodes_per_call=members)
        other = batch_of(record, conditioning=numbered((2, 3), SHAPE[0]), seed=1)
        under = tuple(
            decision_under(
                policy, sampler, d, other.conditioning, settings=told(), nodes_per_call=members
            )
            for d in record.decisions
        )
        other = replace(other, decisions=under)
        if together:
            # Prompt 0 is said three times and prompt 1 twice, beside one other caption of prompt 1.
            mine = {"objects": (1,), "conditioning": numbered((3,), SHAPE[0])}
            one = replace(
                other, **mine,
                decisions=tuple(d.prompts([1]) for d in other.decisions),
                advantage=tuple(t[1:] for t in other.advantage),
            )  # fmt: skip
            parts = [batch_of(record, repeats=(3, 2), condition_weight=(3.0, 2.0)), one]
        else:
            mixed = batch_of(record)
            rows = tuple(
                torch.stack([a[0], b[1]])
                for a, b in zip(mixed.advantage, other.advantage, strict=True)
            )
            seen = tuple(
                replace(a, log_prob=torch.stack([a.log_prob[0], b.log_prob[1]]))
                for a, b in zip(mixed.decisions, under, strict=True)
            )
            again = replace(
                mixed, conditioning=numbered((0, 3), SHAPE[0]), advantage=rows, decisions=seen
            )
            parts = [mixed, mixed, again]
        objective = partial(surrogate, kl_weight=0.5)
        metrics = update(
            policy, sampler, [parts], objective=objective, reference=home(policy), epochs=2,
            nodes_per_call=members,
        )  # fmt: skip
        results.append((policy.gain.detach(), metrics))

    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-9, atol=1e-12)
    assert results[0][1]["approx_kl"] > 0
    for name in ("loss", "approx_kl", "reference_kl", "grad_norm"):
        assert results[0][1][name] == pytest.approx(results[1][1][name], rel=1e-6), name


@pytest.mark.parametrize("per_decision", [False, True])
def test_parameters_change_once_or_after_each_decision(per_decision):
    """Then the second decision meets what the first one left, and its ratios differ from 1."""
    policy, slow, sampler = LinearPolicy(*GAINS), LinearPolicy(*GAINS), flow(4)
    batch = batch_of(drawn(policy, sampler))
    metrics = update(policy, sampler, [[batch]], step_per_decision=per_decision)
    parts = [batch]
    if per_decision:
        parts = [
            batch_of(
                type("Part", (), {"decisions": batch.decisions[i : i + 1]}),
                advantage=batch.advantage[i : i + 1],
            )
            for i in range(2)
        ]
    for part in parts:
        gradient = whole_gradient(slow, sampler, [[part]])
        with torch.no_grad():
            slow.gain -= 0.1 * gradient

    torch.testing.assert_close(policy.gain, slow.gain, rtol=1e-10, atol=1e-12)
    assert (metrics["approx_kl"] > 0) == per_decision


def test_branches_of_trunks_are_learnt_too():
    """Their decisions are of the same kind."""
    policy, sampler = LinearPolicy(*GAINS), flow(4)
    record = roll(
        branched_rollout, policy, sampler, noise((0, 1), SHAPE), steps=(0, 1), branches=2,
        num_trunks=2,
    )  # fmt: skip
    batches = [[batch_of(record)]]
    expected = policy.gain.detach() - 0.1 * whole_gradient(policy, sampler, batches)
    update(policy, sampler, batches)

    torch.testing.assert_close(policy.gain.detach(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", ["lcm", "ddim"])
def test_diffusion_samplers_have_groups_as_well(kind):
    """Independent noise, all steps but the last action of LCM."""
    policy, sampler = LinearPolicy(*GAINS), sampler_of(kind, 3)
    plan = GroupPlan.group(2, stochastic_steps=(0, 1, 2), num_steps=3, shared_noise=False)
    batches = [[batch_of(drawn(policy, sampler, plan))]]
    expected = policy.gain.detach() - 1e-3 * whole_gradient(policy, sampler, batches)
    update(policy, sampler, batches, lr=1e-3)

    torch.testing.assert_close(policy.gain.detach(), expected, rtol=1e-9, atol=1e-12)


def test_one_network_call_serves_all_that_share_a_state():
    """The first decision has one state a prompt, the second one per member."""
    policy, sampler = Recorded(LinearPolicy(*GAINS)), flow(4)
    batch = batch_of(drawn(policy.policy, sampler))
    update(policy, sampler, [[batch]])

    assert [call.rows for call in policy.calls] == [2 * 2, 3 * 2 * 2]
    assert all(call.with_gradient for call in policy.calls)


# -- gradients ---------------------------------------------------------------------------


def test_the_divergence_pulls_towards_the_reference():
    """It is asked without gradient, and with advantage 0 it alone moves the policy."""
    policy, sampler = LinearPolicy(0.5), flow(4)
    record = drawn(policy, sampler)
    zero = tuple(torch.zeros_like(d.log_prob) for d in record.decisions)
    batch = batch_of(record, advantage=zero)
    metrics = update(
        policy, sampler, [[batch]], objective=partial(surrogate, kl_weight=0.5),
        reference=home(policy),
    )  # fmt: skip
    levels = [*sampler.sigma_t.tolist(), 0.0]
    total, slope, count = 0.0, 0.0, 0
    for decision in record.decisions:
        s, r = levels[decision.step], levels[decision.step + 1]
        for x in decision.members_of(decision.state.transpose(0, 1)).flatten().tolist():
            (mean, std, _), (mean_home, _, _) = (
                float_step("sde", gain, x, s, r) for gain in (0.5, HOME)
            )
            by_gain = float_step("sde", 1.5, x, s, r)[0] - mean
            total += (mean - mean_home) ** 2 / (2 * std**2)
            slope += (mean - mean_home) * by_gain / std**2
            count += 1

    assert metrics["reference_kl"] == pytest.approx(total / count, rel=1e-9)
    assert policy.gain.item() == pytest.approx(0.5 - 0.1 * 0.5 * slope / count, rel=1e-9)


# -- errors ------------------------------------------------------------------------------


def test_a_gradient_that_never_arrives_stops_the_run():
    """Unless no advantage differs, and then the step is counted."""
    policy, sampler = DetachedPolicy(*GAINS), flow(4)
    record = drawn(policy, sampler)
    alike = tuple(torch.zeros_like(d.log_prob) for d in record.decisions)
    metrics = update(policy, sampler, [[batch_of(record, advantage=alike)]])
    assert metrics["idle_steps"] == 1.0
    with pytest.raises(ZeroGradientError, match="though advantages differ"):
        update(policy, sampler, [[batch_of(record)]])


def test_a_first_ratio_that_is_not_one_is_refused():
    """Such as where the parameters are not those that sampled; the message says where."""
    policy, sampler = LinearPolicy(*GAINS), flow(4)
    batch = batch_of(drawn(policy, sampler))
    policy.gain.data += 1e-3
    with pytest.raises(ReplayMismatchError, match=r"step 0 of the slice that starts at object 0"):
        update(policy, sampler, [[batch]])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_advantage_that_is_not_finite_is_named(bad):
    """By object within the iteration, view and step of the grid; nothing has changed."""
    policy, sampler = LinearPolicy(*GAINS), flow(4)
    batch = batch_of(drawn(policy, sampler, objects=(4, 5)), objects=(4, 5))
    batch.advantage[1][1, 2, 0] = bad
    with pytest.raises(NonFiniteError, match=r"`advantage`.* at object 5, view 0, step 2"):
        update(policy, sampler, [[batch]])
    assert policy.gain.tolist() == list(GAINS)


def test_tables_that_do_not_fit_are_refused():
    """One advantage table per decision."""
    policy, sampler = LinearPolicy(*GAINS), flow(4)
    record = drawn(policy, sampler)
    with pytest.raises(ValueError, match="one entry per decision, at least one; got 2, 1, 2"):
        batch_of(record, advantage=(record.decisions[0].log_prob,))
    with pytest.raises(ValueError, match="`nodes_per_call` must be at least 1; got 0"):
        told(nodes_per_call=0)
