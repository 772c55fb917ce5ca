"""`rollout.group`: oracle, laws, gradients, errors."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.rollout.group import group_rollout
from mvczigal_ref.rollout.group_plan import GroupPlan
from mvczigal_ref.rollout.standard import standard_rollout
from tests import oracles
from tests.policies import LinearPolicy, Recorded, numbered
from tests.trajectories import noise, sampler_of
from tests.unannotated import without_shape_checks
from tests.unit.diffusion.test_flow_dpm import weight_oracle
from tests.unit.rollout.flow_cases import (
    GUIDANCE,
    NOISY_KERNELS,
    STORAGE,
    float_step,
    flow,
    plans,
    replayed,
    roll,
    tensors_of,
)


def group(size, steps, num_steps=4, *, shared=True):
    """Plan a group that divides once."""
    return GroupPlan.group(size, stochastic_steps=steps, num_steps=num_steps, shared_noise=shared)


def tree(branching, num_steps=4):
    """Plan a tree of one root that draws noise from its first division on, but not last."""
    steps = range(min(branching), num_steps - 1)
    return GroupPlan.tree(branching, stochastic_steps=steps, num_steps=num_steps)


# -- oracle ------------------------------------------------------------------------------


@settings(max_examples=10)
@given(NOISY_KERNELS, plans(), st.floats(-0.5, 0.9), st.booleans(), st.integers(0, 99))
def test_equals_a_scalar_process_in_floats(kernel, plan, gain, denoised, seed):
    """Every leaf alone, from its root: what it drew, its score, and where it ends."""
    sampler = flow(plan.num_steps, kernel, image_is_denoised=denoised)
    drawn = noise((0,), (1, 1, 1, 1), seed)
    record = roll(group_rollout, LinearPolicy(gain), sampler, drawn, plan)
    by_step = {decision.step: decision for decision in record.decisions}
    levels = [*sampler.sigma_t.tolist(), 0.0]

    assert record.denoised.shape[:2] == (1, plan.num_leaves)
    for leaf, path in enumerate(plan.paths(plan.num_steps)):
        x = drawn.members([path[:1]], "initial").item()
        for step, (s, r) in enumerate(itertools.pairwise(levels)):
            stochastic = step in plan.stochastic_steps
            mean, std, clean = float_step(kernel if stochastic else "ode", gain, x, s, r)
            y = mean
            if stochastic:
                y += std * drawn.members([path[: step + 2]], "group", step).item()
                decision = by_step[step]
                parent, member = (
                    leaf * count // plan.num_leaves
                    for count in (decision.state.shape[1], decision.action.shape[1])
                )
                score = oracles.normal_log_density(y, mean, std)
                for stored, expected in (
                    (decision.state[0, parent], x),
                    (decision.action[0, member], y),
                    (decision.log_prob[0, member], score),
                ):
                    assert stored.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)
            x = y
        expected = clean if denoised else x
        assert record.denoised[0, leaf].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("share", [1.0, 0.5])
@pytest.mark.parametrize("denoised", [False, True])
def test_the_ode_s_steps_are_of_second_order_where_the_sampler_says(share, denoised):
    """In floats: predictions are remembered between steps without noise, forgotten by noise."""
    gain, steps = 0.4, (2, 3)
    sampler = flow(8, ode="dpm2m", image_is_denoised=denoised)
    drawn = noise((0,), (1, 1, 1, 1), 3)
    plan = group(2, steps, 8)
    record = roll(group_rollout, LinearPolicy(gain), sampler, drawn, plan, tail_share=share)
    levels = [*sampler.sigma_t.tolist(), 0.0]
    places = [0, 1, 2, 3, 4, 5, 6, 7, 8] if share == 1.0 else [0, 1, 2, 3, 4, 6, 8]
    for leaf, path in enumerate(plan.paths(8)):
        x, memory = drawn.members([path[:1]], "initial").item(), None
        for step, below in itertools.pairwise(places):
            s, r = levels[step], levels[below]
            mean, std, clean = float_step("sde" if step in steps else "ode", gain, x, s, r)
            if step in steps:
                mean += std * drawn.members([path[: step + 2]], "group", step).item()
                memory = None
            else:
                if memory is not None and r > 0.0 and memory[1] < 1.0:
                    mean += weight_oracle(memory[1], s, r) * (clean - memory[0])
                memory = clean, s
            x = mean
        expected = clean if denoised else x
        assert record.denoised[0, leaf].item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


# -- laws --------------------------------------------------------------------------------


@given(st.integers(2, 6), st.integers(10, 99), st.data())
def test_a_compressed_tail_makes_fewer_calls_and_changes_no_decision(num_steps, hundredths, data):
    """What was drawn before it is the same bit for bit."""
    last = data.draw(st.integers(0, num_steps - 2))
    plan, sampler, drawn = group(2, (last,), num_steps), flow(num_steps), noise()
    policy = Recorded(LinearPolicy(0.5))
    whole = roll(group_rollout, LinearPolicy(0.5), sampler, drawn, plan)
    short = roll(group_rollout, policy, sampler, drawn, plan, tail_share=hundredths / 100)
    left = num_steps - last - 1

    assert len(policy.calls) == last + 1 + max(1, hundredths * left // 100)
    for mine, theirs in zip(tensors_of(short)[:-1], tensors_of(whole)[:-1], strict=True):
        assert torch.equal(mine, theirs)


def test_a_tail_of_another_sampler_is_refused():
    """Only a flow's grid may be entered at any level."""
    with pytest.raises(ValueError, match=r"`tail_share` must be 1.0 .* DdimSampler"):
        roll(
            group_rollout, LinearPolicy(0.5), sampler_of("ddim", 4), noise(),
            group(2, (0,)), tail_share=0.5,
        )  # fmt: skip


@given(st.integers(1, 5), st.integers(1, 3))
def test_without_a_window_it_is_the_ode(num_steps, size):
    """The same bits, and nothing to score."""
    sampler, drawn, policy = flow(num_steps), noise(), LinearPolicy(0.5)
    plan = group(size, (), num_steps, shared=False)
    record = roll(group_rollout, policy, sampler, drawn, plan)
    x = drawn.members(plan.paths(0), "initial").double()
    ode = sampler.deterministic()
    for step in range(num_steps):
        told = LinearPolicy.told(sampler.timesteps[step], GUIDANCE, 1.0)
        x = ode.transition(0.5 * x + told, x, step).mean

    assert torch.equal(record.denoised, x.transpose(0, 1))
    assert record.decisions == record.stochastic_steps == ()
    ode_record = roll(group_rollout, policy, flow(num_steps, "ode"), drawn, plan)
    assert torch.equal(ode_record.denoised, record.denoised)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("kind", ["sde", "constant", "cps", "lcm", "ddim"])
def test_with_all_steps_it_is_plain_sampling(kind, storage):
    """The same bits for each member, whatever the sampler."""
    if kind in ("lcm", "ddim"):
        sampler = sampler_of(kind, 4)
    else:
        # A kernel that keeps the level exact has no noise at level 0.
        sampler = flow(4, kind, end=0.2 if kind == "cps" else 0.0)
    drawn, policy = noise(), LinearPolicy(0.5, -0.2)
    plan = group(2, range(4), shared=False)
    record = roll(group_rollout, policy, sampler, drawn, plan, storage_dtype=storage)
    for member in range(2):

        def own(step, draw, member=member):
            return drawn.members(plan.paths(step + 1), "group", step)[member]

        plain = standard_rollout(
            policy,
            sampler,
            drawn.members(plan.paths(0), "initial")[member],
            numbered((0, 1), 2),
            own,
            guidance_scale=GUIDANCE,
            storage_dtype=storage,
        )
        for step, decision in enumerate(record.decisions):
            assert decision.action.dtype == storage
            assert torch.equal(decision.state[:, member], plain.state[step])
            assert torch.equal(decision.action[:, member], plain.action[step])
            assert torch.equal(decision.log_prob[:, member], plain.log_prob[step])
        assert torch.equal(record.denoised[:, member], plain.denoised)


@given(st.integers(0, 3), st.integers(1, 3))
def test_a_shared_prefix_is_computed_and_stored_once(start, size):
    """One row per prompt and view up to the window; the state there is every member's."""
    policy, window = Recorded(LinearPolicy(0.5)), tuple(range(start, min(start + 2, 4)))
    record = roll(group_rollout, policy, flow(4), noise(), group(size, window))
    first, *later = record.decisions

    # Two prompts of two views.
    assert [call.rows for call in policy.calls] == [4] * (start + 1) + [4 * size] * (3 - start)
    assert record.stochastic_steps == window
    assert first.state.shape[:2] == (2, 1)
    assert first.action.shape[:2] == (2, size)
    for decision in later:
        assert torch.equal(decision.state, first.action)


def test_members_with_shared_noise_are_equal_until_they_divide():
    """One trunk state at the split; the noise there tells the members apart."""
    whole, alone = (
        roll(group_rollout, LinearPolicy(0.5), flow(4), noise(), group(size, (2,)))
        for size in (3, 1)
    )
    (decision,), (single,) = whole.decisions, alone.decisions

    assert torch.equal(decision.state, single.state)
    # Two prompts of three members: six actions.
    assert len({tuple(row.tolist()) for row in decision.action.flatten(0, 1).flatten(1)}) == 6


@pytest.mark.parametrize(
    ("plan", "rows"),
    [
        # Flow-GRPO: every step is every member's.
        (group(24, range(9), 10, shared=False), [24] * 10),
        # DanceGRPO: one call at the shared noise.
        (group(12, range(4), 4), [1, 12, 12, 12]),
        # Flow-GRPO-Fast's branching form, dividing at step 3.
        (group(24, (3,), 10), [1] * 4 + [24] * 6),
        # MixGRPO: a window of four, noise of each member's own.
        (group(12, range(2, 6), 8, shared=False), [12] * 8),
        # BranchGRPO: a division in two every third step.
        (tree({0: 2, 3: 2, 6: 2, 9: 2}, 12), [1, 2, 2, 2, 4, 4, 4, 8, 8, 8, 16, 16]),
    ],
)
def test_network_calls_of_each_method(plan, rows):
    """One call per step, at its level, without gradient, on the rows that the plan states."""
    sampler, policy = flow(plan.num_steps), Recorded(LinearPolicy(0.5))
    drawn = noise((0,), (1, 1, 1, 1))
    roll(group_rollout, policy, sampler, drawn, plan, camera_scale=0.25)

    assert [call.rows for call in policy.calls] == rows == list(plan.nodes)
    for call, level in zip(policy.calls, sampler.timesteps.tolist(), strict=True):
        assert set(call.timestep) == {level}
        assert (call.guidance_scale, call.camera_scale) == (GUIDANCE, 0.25)
        assert not call.with_gradient


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_replay_gives_the_stored_log_probs(storage, reduction):
    """Bit for bit, so the first ratio is 1 in every storage dtype."""
    sampler, policy = flow(4), LinearPolicy(0.5, -0.2)
    plan = tree({0: 2, 2: 3})
    record = roll(
        group_rollout,
        policy,
        sampler,
        noise(),
        plan,
        storage_dtype=storage,
        reduction=reduction,
    )
    assert record.denoised.dtype == torch.promote_types(storage, torch.float32)
    for decision in record.decisions:
        again = replayed(policy, sampler, decision, numbered((0, 1), 2), reduction)
        assert decision.state.dtype == decision.action.dtype == storage
        assert torch.equal(again, decision.log_prob)


def test_the_ode_is_not_rounded():
    """Half precision holds what is stored alone: outside the window all is as in fp32."""
    narrow, wide = (
        roll(
            group_rollout,
            LinearPolicy(0.5),
            flow(4),
            noise(),
            group(2, (3,), shared=False),
            storage_dtype=storage,
        ).decisions[0]
        for storage in (torch.bfloat16, torch.float32)
    )

    assert torch.equal(narrow.state, wide.state.bfloat16())


@settings(max_examples=8)
@given(plans(), st.permutations(range(4)), st.integers(1, 4))
def test_a_prompt_is_the_same_in_any_company(plan, order, count):
    """Its noise is its own: neither the slice nor the neighbours change a bit."""
    policy, sampler = LinearPolicy(0.1, -0.3, 0.6, 0.2), flow(plan.num_steps)
    together, alone = (
        roll(group_rollout, policy, sampler, noise(objects), plan)
        for objects in (order[:count], order[count - 1 : count])
    )
    last = together.prompts(slice(count - 1, count))

    assert all(map(torch.equal, tensors_of(last), tensors_of(alone)))


@pytest.mark.parametrize("shared", [False, True])
def test_a_member_is_the_same_in_any_group(shared):
    """A larger group only adds members."""
    small, large = (
        roll(group_rollout, LinearPolicy(0.5), flow(4), noise(), group(size, (1, 2), shared=shared))
        for size in (2, 5)
    )

    assert torch.equal(large.denoised[:, :2], small.denoised)
    for few, many in zip(small.decisions, large.decisions, strict=True):
        assert torch.equal(many.action[:, :2], few.action)
        assert torch.equal(many.log_prob[:, :2], few.log_prob)


def test_leaves_follow_their_own_ancestors():
    """A tree pruned to its first branches is the small tree."""
    large = roll(group_rollout, LinearPolicy(0.5), flow(4), noise(), tree({0: 2, 2: 3}))
    small = roll(group_rollout, LinearPolicy(0.5), flow(4), noise(), tree({0: 2, 2: 2}))

    # Leaves of three branches per node, less the third of each.
    assert torch.equal(large.denoised[:, [0, 1, 3, 4]], small.denoised)
    assert (large.branching, [decision.depth for decision in large.decisions]) == (
        (2, 3),
        [0, 0, 1],
    )
    last = large.decisions[-1].log_prob
    assert torch.equal(large.leaf_log_prob()[-1], last)
    first = large.decisions[0].log_prob
    assert torch.equal(large.leaf_log_prob()[0], first[:, [0, 0, 0, 1, 1, 1]])


def test_another_sampler_s_steps_outside_the_window_are_deterministic():
    """DDIM without noise; a consistency sampler needs none at its last step alone."""
    policy, drawn, ddim = LinearPolicy(0.5), noise(), sampler_of("ddim", 3)
    plan = group(1, (), 3)
    record = roll(group_rollout, policy, ddim, drawn, plan)
    x = drawn.members(plan.paths(0), "initial")[0].double()
    for step in range(3):
        told = LinearPolicy.told(ddim.timesteps[step].double(), GUIDANCE, 1.0)
        output, level = 0.5 * x + told, ddim.alpha_bar_t[step]
        clean = (x - (1 - level).sqrt() * output) / level.sqrt()
        below = ddim.alpha_bar_prev[step]
        x = below.sqrt() * clean + (1 - below).sqrt() * output

    torch.testing.assert_close(record.denoised[:, 0], clean, rtol=1e-6, atol=1e-6)
    lcm = roll(group_rollout, policy, sampler_of("lcm", 3), drawn, group(2, (0, 1), 3))
    every = roll(group_rollout, policy, sampler_of("lcm", 3), drawn, group(2, (0, 1, 2), 3))
    assert torch.equal(lcm.denoised, every.denoised)


# -- gradients ---------------------------------------------------------------------------


def test_makes_no_graph():
    """Though the parameters ask for gradients."""
    policy = LinearPolicy(0.5)
    record = roll(group_rollout, policy, flow(4), noise(), group(2, (1,)))

    assert policy.gain.requires_grad
    assert not any(tensor.requires_grad for tensor in tensors_of(record))


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "plan", "message"),
    [
        (flow(3), group(2, (1,)), "`plan` must be of the sampler's 3 steps; got one of 4"),
        (flow(4, "cps"), group(2, (3,)), r"`plan.stochastic_steps` must be below 3, .* \[3\]"),
        (flow(4, "ode"), group(2, (1,)), "`plan.stochastic_steps` must be below 0"),
        (
            flow(4, image_is_denoised=True),
            group(2, (3,)),
            "`plan` must not divide groups at the last step, 3",
        ),
        (sampler_of("lcm", 4), group(2, (1,)), "`sampler` must have a deterministic .* LcmSampler"),
    ],
)
def test_rejects_a_plan_that_the_sampler_cannot_follow(sampler, plan, message):
    """Another grid, a step without spread, a division that no image shows, no ODE."""
    with pytest.raises(ValueError, match=message):
        roll(group_rollout, LinearPolicy(0.5), sampler, noise(), plan)


def test_rejects_noise_of_other_prompts():
    """A wrong slice would give prompts each other's noise."""
    with pytest.raises(ValueError, match=r"`conditioning` must be .* \(2, 2\); got \(3, 2\)"):
        group_rollout(
            LinearPolicy(0.5),
            flow(4),
            numbered((0, 1, 2), 2),
            noise(),
            group(2, (1,)),
            guidance_scale=1.0,
        )


def test_rejects_a_reduction_that_keeps_elements_apart():
    """A decision holds one log-density a view."""
    with (
        without_shape_checks(),
        pytest.raises(ValueError, match=r"`reduction` must be one of .* got 'none'"),
    ):
        roll(group_rollout, LinearPolicy(0.5), flow(4), noise(), group(2, (1,)), reduction="none")
