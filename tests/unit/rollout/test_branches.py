"""`rollout.branches`: oracle, laws, gradients, errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.advantage.branches import granular_advantages
from mvczigal_ref.advantage.group import group_advantages
from mvczigal_ref.rollout.branches import branched_rollout
from mvczigal_ref.rollout.finish import finishing_sampler
from mvczigal_ref.rollout.group import group_rollout
from mvczigal_ref.rollout.group_plan import GroupPlan
from tests import oracles
from tests.policies import LinearPolicy, Recorded, numbered
from tests.trajectories import noise
from tests.unit.rollout.flow_cases import (
    GUIDANCE,
    NOISY_KERNELS,
    STORAGE,
    float_step,
    flow,
    replayed,
    roll,
    tensors_of,
)


def network_rows(sampler, steps, branches, num_trunks=1, strides=(1,), fine_steps=0):
    """Rows of every call per prompt and view: a trunk's step, then the branches that it begins."""
    rows = []
    for step in range(steps[-1] + 1):
        rows.append(num_trunks)
        if step in steps and step + 1 < sampler.num_steps:  # the last step needs no finish
            for stride in strides:
                left = finishing_sampler(
                    sampler, start=step + 1, stride=stride, fine_steps=fine_steps
                )
                rows += [num_trunks * branches] * left.num_steps
    return rows


def branch(policy, sampler, drawn, **told):
    """Sample in fp64 unless told otherwise, three branches at steps 0 and 2."""
    return roll(
        branched_rollout, policy, sampler, drawn, **{"steps": (0, 2), "branches": 3, **told}
    )


# -- oracle ------------------------------------------------------------------------------


@settings(max_examples=10)
@given(NOISY_KERNELS, st.floats(-0.5, 0.9), st.booleans(), st.integers(0, 99), st.integers(1, 4))
def test_equals_a_scalar_process_in_floats(kernel, gain, denoised, seed, stride):
    """The trunk, the branch's one draw and its score, and the coarse way to the end."""
    sampler = flow(5, kernel, image_is_denoised=denoised)
    drawn = noise((0,), (1, 1, 1, 1), seed)
    policy, told = LinearPolicy(gain), {"steps": (0, 1, 3), "num_trunks": 2, "branches": 2}
    record = branch(policy, sampler, drawn, strides=(stride,), **told)
    levels = [*sampler.sigma_t.tolist(), 0.0]
    for row, decision in enumerate(record.decisions):
        for trunk in range(2):
            x = drawn.members([(trunk,)], "initial").item()
            for k in range(decision.step):
                x, _, _ = float_step("ode", gain, x, levels[k], levels[k + 1])
            assert decision.state[0, trunk].item() == pytest.approx(x, rel=1e-9, abs=1e-9)
            for leaf in range(2):
                k, member = decision.step, 2 * trunk + leaf
                mean, std, _ = float_step(kernel, gain, x, levels[k], levels[k + 1])
                path = (trunk, *[0] * k, leaf)
                y = mean + std * drawn.members([path], "group", k).item()
                score = oracles.normal_log_density(y, mean, std)

                assert decision.action[0, member].item() == pytest.approx(y, rel=1e-9, abs=1e-9)
                assert decision.log_prob[0, member].item() == pytest.approx(score, abs=1e-8)
                place = k + 1
                while place < 5:
                    below = min(place + stride, 5)
                    y, _, clean = float_step("ode", gain, y, levels[place], levels[below])
                    place = below
                final = record.denoised[row, 0, 0, member].item()
                assert final == pytest.approx(clean if denoised else y, rel=1e-9, abs=1e-9)


# -- laws --------------------------------------------------------------------------------


@given(st.integers(1, 12), st.data())
def test_a_finishing_grid_visits_every_gth_level_and_ends_at_zero(num_steps, data):
    """Each step starts where the one before ended, at the timestep of its level."""
    sampler = flow(num_steps)
    start = data.draw(st.integers(0, num_steps - 1))
    stride = data.draw(st.integers(1, num_steps + 1))
    finish = finishing_sampler(sampler, start=start, stride=stride)

    assert torch.equal(finish.sigma_t, sampler.sigma_t[start::stride])
    assert torch.equal(finish.timesteps, sampler.timesteps[start::stride])
    assert torch.equal(finish.sigma_prev[:-1], finish.sigma_t[1:])
    assert finish.sigma_prev[-1] == 0.0
    assert finish.num_steps == math.ceil((num_steps - start) / stride)
    assert (finish.kernel, finish.num_density_steps) == ("ode", 0)


@given(st.integers(1, 12), st.data())
def test_fine_steps_come_before_the_strides(num_steps, data):
    """A finish is the plain grid for so many steps, and the strided one from there on."""
    sampler = flow(num_steps)
    start = data.draw(st.integers(0, num_steps - 1))
    stride, fine = data.draw(st.integers(1, num_steps + 1)), data.draw(st.integers(0, num_steps))
    finish = finishing_sampler(sampler, start=start, stride=stride, fine_steps=fine)
    whole = [*sampler.sigma_t.tolist(), 0.0]
    turn = min(start + fine, num_steps)
    visited = [*whole[start:turn], *whole[turn:num_steps:stride], 0.0]

    assert finish.sigma_t.tolist() == visited[:-1]
    assert finish.sigma_prev.tolist() == visited[1:]
    assert finish.timesteps.tolist() == [1000.0 * level for level in visited[:-1]]


def test_the_coarse_grid_of_granular_grpo():
    """Released: after the noisy step k the levels k + 1, k + 2, k + 4, ... of 16."""
    sampler = flow(16)
    finish = finishing_sampler(sampler, start=4, stride=2, fine_steps=1)

    assert finish.sigma_t.tolist() == sampler.sigma_t[[4, 5, 7, 9, 11, 13, 15]].tolist()


def test_trunks_and_finishes_are_of_second_order_where_the_sampler_says():
    """A trunk is the group's ODE up to its step, and a branch the group that divides there."""
    sampler, policy, drawn = flow(6, ode="dpm2m"), LinearPolicy(0.5, -0.2), noise()
    plan = GroupPlan.tree({3: 3}, stochastic_steps=(3,), num_steps=6)
    branches = branch(policy, sampler, drawn, steps=(3,))
    group = roll(group_rollout, policy, sampler, drawn, plan)
    euler = branch(policy, flow(6), drawn, steps=(3,))

    assert torch.equal(branches.decisions[0].action, group.decisions[0].action)
    assert torch.equal(branches.denoised[0, 0], group.denoised)
    assert not torch.allclose(branches.decisions[0].state, euler.decisions[0].state, rtol=1e-3)


@pytest.mark.parametrize(
    ("kernel", "step"),
    # Coefficient-preserving noise has none to draw at the last step.
    [("sde", 0), ("sde", 4), ("constant", 1), ("constant", 4), ("cps", 1), ("cps", 3)],
)
def test_a_branch_is_the_group_that_divides_there(kernel, step):
    """Stride 1 is the plain finish: the same bits as a window of that one step."""
    sampler, policy, drawn = flow(5, kernel), LinearPolicy(0.5, -0.2), noise()
    told = {"num_trunks": 2, "strides": (2, 1)}
    branches = branch(policy, sampler, drawn, steps=(step,), **told)
    plan = GroupPlan.tree({step: 3}, stochastic_steps=(step,), num_steps=5, num_roots=2)
    whole = roll(group_rollout, policy, sampler, drawn, plan)

    (mine,), (theirs,) = branches.decisions, whole.decisions
    assert torch.equal(mine.state, theirs.state)
    assert torch.equal(mine.action, theirs.action)
    assert torch.equal(mine.log_prob, theirs.log_prob)
    assert torch.equal(branches.denoised[0, 1], whole.denoised)
    # A coarse grid ends elsewhere, but for those that have one step left, or none.
    assert torch.equal(branches.denoised[0, 0], whole.denoised) == (step >= 3)


def test_the_trunk_does_not_notice_its_branches():
    """Nor a step that other steps branch too."""
    policy, sampler = LinearPolicy(0.5), flow(5)
    both = branch(policy, sampler, noise())
    late = branch(policy, sampler, noise(), steps=(2,))

    assert all(
        torch.equal(getattr(both.decisions[1], name), getattr(late.decisions[0], name))
        for name in ("state", "action", "log_prob")
    )
    assert torch.equal(both.denoised[1], late.denoised[0])


@pytest.mark.parametrize(
    ("told", "calls", "rows"),
    [
        # TempFlow-GRPO: 4 trunks, 6 branches at every step of 10 but the last: the trunk's
        # steps, and 9 + 8 + ... + 1 steps of the branches.
        ({"steps": range(9), "num_trunks": 4, "branches": 6}, 9 + 45, 9 * 4 + 45 * 24),
        # Granular-GRPO: 8 steps of 16, 12 branches, strides 1 and 2: 15 + ... + 8 steps, and
        # 8 + 7 + 7 + 6 + 6 + 5 + 5 + 4.
        (
            {"steps": range(8), "branches": 12, "strides": (1, 2)},
            8 + 92 + 48,
            8 + (92 + 48) * 12,
        ),
        # As released: 15 + ... + 8 steps, and 1 + 7, 1 + 7, 1 + 6, ..., 1 + 4.
        (
            {"steps": range(8), "branches": 12, "strides": (1, 2), "fine_steps": 1},
            8 + 92 + 52,
            8 + (92 + 52) * 12,
        ),
        # The last step needs no finish.
        ({"steps": (3,), "branches": 5}, 4, 4),
        ({"steps": (0,), "branches": 5, "strides": (2, 3)}, 1 + 2 + 1, 1 + 15),
    ],
)
def test_network_calls_of_each_method(told, calls, rows):
    """The trunk's call serves its own step and all branches, without gradient."""
    num_steps = {range(9): 10, range(8): 16}.get(told["steps"], 4)
    policy, sampler = Recorded(LinearPolicy(0.5)), flow(num_steps)
    branch(policy, sampler, noise((0, 1), (1, 1, 1, 1)), camera_scale=0.25, **told)
    counted = [call.rows // 2 for call in policy.calls]

    assert (len(counted), sum(counted)) == (calls, rows)
    assert counted == network_rows(sampler, **told)
    assert {(c.guidance_scale, c.camera_scale, c.with_gradient) for c in policy.calls} == {
        (GUIDANCE, 0.25, False)
    }


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_replay_gives_the_stored_log_probs(storage, reduction):
    """Bit for bit; one call at the trunks' states scores all branches."""
    sampler, policy = flow(4), Recorded(LinearPolicy(0.5, -0.2))
    told = {"num_trunks": 2, "storage_dtype": storage, "reduction": reduction}
    record = branch(policy, sampler, noise(), **told)
    assert record.denoised.dtype == torch.promote_types(storage, torch.float32)
    policy.calls.clear()
    for decision in record.decisions:
        again = replayed(policy, sampler, decision, numbered((0, 1), 2), reduction)
        assert decision.state.dtype == decision.action.dtype == storage
        assert torch.equal(again, decision.log_prob)
    # Two prompts of two views, two trunks.
    assert [call.rows for call in policy.calls] == [8, 8]


@settings(max_examples=8)
@given(st.permutations(range(4)), st.integers(1, 4), st.integers(1, 2))
def test_a_prompt_is_the_same_in_any_company(order, count, num_trunks):
    """Its noise is its own: neither the slice nor the neighbours change a bit."""
    policy, told = LinearPolicy(0.1, -0.3, 0.6, 0.2), {"num_trunks": num_trunks, "strides": (1, 2)}
    together, alone = (
        branch(policy, flow(4), noise(objects), **told)
        for objects in (order[:count], order[count - 1 : count])
    )
    last = together.prompts(slice(count - 1, count))

    assert all(map(torch.equal, tensors_of(last), tensors_of(alone)))


def test_a_branch_is_the_same_in_any_group():
    """More branches, or more trunks, are only added."""
    few, many = (
        branch(LinearPolicy(0.5), flow(4), noise(), num_trunks=trunks, branches=branches)
        for trunks, branches in ((1, 2), (2, 5))
    )

    assert torch.equal(many.denoised[:, :, :, :2], few.denoised)
    assert torch.equal(many.decisions[1].action[:, :2], few.decisions[1].action)


def test_rewards_are_compared_within_step_trunk_and_grid():
    """The tables that the advantages take, and the members that they belong to."""
    record = branch(LinearPolicy(0.5), flow(4), noise(), num_trunks=2, strides=(1, 2))
    reward = record.denoised.mean(dim=(-4, -3, -2, -1))
    table = record.reward_table(reward)
    each = granular_advantages({"all": table}, weights={"all": 1.0}).flatten(-2)
    by_hand = sum(
        group_advantages(reward[1, grid, 0, 3:]) for grid in range(2)
    )  # step 2, the first prompt's second trunk

    assert table.shape == (2, 2, 2, 2, 3)
    assert each.shape == (2, *record.decisions[0].action.shape[:2])
    torch.testing.assert_close(each[1, 0, 3:], by_hand)


# -- gradients ---------------------------------------------------------------------------


def test_makes_no_graph():
    """Though the parameters ask for gradients."""
    policy = LinearPolicy(0.5)
    record = branch(policy, flow(4), noise())

    assert policy.gain.requires_grad
    assert not any(tensor.requires_grad for tensor in tensors_of(record))


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"steps": ()}, "`steps` must hold a step that branches; got none"),
        ({"steps": (2, 1)}, r"`steps` must increase within 0..3; got \[2, 1\]"),
        ({"branches": 0}, "`branches` must be at least 1; got 0"),
        ({"num_trunks": 0}, "`num_trunks` must be at least 1; got 0"),
        ({"strides": ()}, r"`strides` must be at least 1, and one or more; got \[\]"),
        ({"strides": (1, 0)}, r"`strides` must be at least 1, and one or more; got \[1, 0\]"),
        ({"fine_steps": -1}, "`fine_steps` must be at least 0; got -1"),
    ],
)
def test_rejects_numbers_out_of_range(told, message):
    """Before the network is asked."""
    told = {"steps": (1,), "branches": 2, **told}
    policy = Recorded(LinearPolicy(0.5))
    with pytest.raises(ValueError, match=message):
        branch(policy, flow(4), noise(), **told)
    assert not policy.calls


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (flow(4, "cps"), r"`steps` must be below 3, .* got \[3\]"),
        (flow(4, "ode"), "`steps` must be below 0"),
        (flow(4, image_is_denoised=True), "`steps` must not hold the last step, 3"),
    ],
)
def test_rejects_a_step_whose_noise_no_image_shows(sampler, message):
    """Before the network is called."""
    policy = Recorded(LinearPolicy(0.5))
    with pytest.raises(ValueError, match=message):
        branch(policy, sampler, noise(), steps=(3,))
    assert not policy.calls


def test_rejects_a_finish_outside_the_grid():
    """Behind the last level there is nothing to finish."""
    with pytest.raises(ValueError, match=r"`start` must increase within 0..3; got \[4\]"):
        finishing_sampler(flow(4), start=4, stride=1)
    with pytest.raises(ValueError, match=r"`strides` must be at least 1.* got \[0\]"):
        finishing_sampler(flow(4), start=1, stride=0)


def test_rejects_noise_of_other_prompts():
    """A wrong slice would give prompts each other's noise."""
    with pytest.raises(ValueError, match=r"`conditioning` must be .* \(2, 2\); got \(1, 2\)"):
        branched_rollout(
            LinearPolicy(0.5),
            flow(4),
            numbered((0,), 2),
            noise(),
            steps=(1,),
            branches=2,
            guidance_scale=1.0,
        )
