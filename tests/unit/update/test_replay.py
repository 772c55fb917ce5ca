"""`update.replay`: oracle, laws, gradients, errors."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.update.replay import UpdateSettings, replay_log_prob
from tests import oracles
from tests.policies import LinearPolicy, Recorded
from tests.trajectories import sampler_of
from tests.unit.models.small import conditioning
from tests.unit.update.network import network_log_prob, network_pair, tuned_policy
from tests.unit.update.pairs import GUIDANCE, sampled

KINDS = ["lcm", "ddim"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ARMS = ["zigzag", "standard"]


def replay(policy, sampler, batch, arm, steps, **told):
    """Score one arm of a batch."""
    return replay_log_prob(
        policy,
        sampler,
        getattr(batch.rollout, arm),
        list(steps),
        batch.conditioning,
        **{"guidance_scale": GUIDANCE, **told},
    )


# -- oracle ------------------------------------------------------------------------------


@settings(max_examples=10)
@given(
    st.sampled_from(KINDS),
    st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True),
    st.floats(-0.5, 0.9),
    st.floats(0, 9),
    st.floats(0, 1),
)
def test_equals_the_definition_in_floats(kind, steps, gain, guidance, camera):
    """Under other parameters and scales than those that sampled; steps in any order."""
    sampler = sampler_of(kind, 4)
    (batch,) = sampled(LinearPolicy(0.5), sampler, [2])
    told = {"guidance_scale": guidance, "camera_scale": camera}
    log_prob = replay(LinearPolicy(gain), sampler, batch, "zigzag", steps, **told)
    level = oracles.scaled_linear_alpha_bar(1000, 0.00085, 0.012)
    grid = sampler.timesteps.tolist()
    for place, step in enumerate(steps):
        t = grid[step]
        s = grid[min(step + 1, 3)] if kind == "lcm" else max(t - 250, 0)
        state, action = batch.rollout.zigzag.state[step], batch.rollout.zigzag.action[step]

        def density(x, y, t=t, s=s):
            output = gain * x + 0.02 * guidance + 0.05 * camera + 1e-4 * t
            if kind == "lcm":
                mean, std, _ = oracles.lcm_step("epsilon", output, x, t, level[t], level[s])
            else:
                mean, std, _ = oracles.ddim_step("epsilon", output, x, level[t], level[s], 1.0)
            return oracles.normal_log_density(y, mean, std)

        expected = oracles.per_element(density, (state, action)).mean((-3, -2, -1))
        torch.testing.assert_close(log_prob[place], expected, rtol=1e-9, atol=1e-9)


# -- laws --------------------------------------------------------------------------------


def assert_ratio_is_one(policy, sampler, pair, **told):
    """Each step of each arm in a call of its own, as it was sampled, with gradient."""
    for arm in (pair.zigzag, pair.standard):
        for step in range(sampler.num_steps):
            log_prob = network_log_prob(policy, sampler, arm, [step], **told)

            assert log_prob.requires_grad
            assert torch.equal(log_prob[0], arm.log_prob[step])


@pytest.mark.parametrize(
    ("kind", "dtype", "storage"),
    [
        *(("lcm", dtype, storage) for dtype in DTYPES for storage in DTYPES),
        *(("ddim", dtype, dtype) for dtype in DTYPES),
    ],
)
def test_the_first_ratio_is_exactly_one(kind, dtype, storage):
    """On equal slices, whatever the network computes in and whatever latents are stored in."""
    policy, sampler = tuned_policy(dtype), sampler_of(kind, 2, dtype=torch.float32)
    pair = network_pair(policy, sampler, storage)

    assert pair.zigzag.log_prob.dtype == torch.float32
    assert_ratio_is_one(policy, sampler, pair)


@pytest.mark.parametrize("dtype", DTYPES)
def test_recomputed_activations_do_not_move_the_first_ratio(dtype):
    """The rollout keeps no activations, the replay recomputes them, both get the same bits."""
    policy, sampler = tuned_policy(dtype), sampler_of("lcm", 2, dtype=torch.float32)
    policy.unet.enable_gradient_checkpointing()
    try:
        assert_ratio_is_one(policy, sampler, network_pair(policy, sampler, dtype))
    finally:
        policy.unet.disable_gradient_checkpointing()


def test_the_first_ratio_is_one_with_a_doubled_batch_and_summed_densities():
    """Classifier-free guidance, and the true density."""
    policy, sampler = tuned_policy(torch.float32, None), sampler_of("lcm", 2, dtype=torch.float32)
    pair = network_pair(policy, sampler, torch.bfloat16, reduction="sum")

    assert_ratio_is_one(policy, sampler, pair, reduction="sum")


def test_unequal_slices_deviate_by_rounding_alone():
    """Steps or objects cut otherwise: far below the smallest published clip range, 1e-4."""
    policy, sampler = tuned_policy(torch.float32), sampler_of("lcm", 3, dtype=torch.float32)
    pair = network_pair(policy, sampler, torch.float32)
    at_once = network_log_prob(policy, sampler, pair.zigzag, [0, 1, 2])
    alone = [network_log_prob(policy, sampler, pair.zigzag, [1], slice(i, i + 1)) for i in range(2)]

    assert (at_once - pair.zigzag.log_prob).abs().max() < 1e-5
    assert (torch.cat(alone, 1)[0] - pair.zigzag.log_prob[1]).abs().max() < 1e-5


@pytest.mark.parametrize(
    "change", [{"guidance_scale": 2.0}, {"camera_scale": 0.5}, {"reduction": "sum"}]
)
def test_each_setting_is_read(change):
    """A replay that differs from the rollout in one of them scores something else."""
    policy, sampler = tuned_policy(torch.float32), sampler_of("lcm", 2, dtype=torch.float32)
    pair = network_pair(policy, sampler, torch.float32)
    log_prob = network_log_prob(policy, sampler, pair.standard, [0], **change)

    assert (log_prob[0] - pair.standard.log_prob[0]).abs().min() > 1e-6


@pytest.mark.parametrize("steps", [[0, 1, 2], [1, 2], [2, 0], [3, 1, 0]])
@pytest.mark.parametrize("arm", ARMS)
def test_many_steps_are_one_call(arm, steps):
    """With each step's own timestep on each of its rows."""
    sampler, policy = sampler_of("lcm", 4), Recorded(LinearPolicy(0.5, 0.2))
    (batch,) = sampled(LinearPolicy(0.5, 0.2), sampler, [2])
    log_prob = replay(policy, sampler, batch, arm, steps)
    expected = getattr(batch.rollout, arm).log_prob[steps]

    assert [call.rows for call in policy.calls] == [len(steps) * 4]
    assert policy.calls[0].timestep == [t for step in steps for t in [sampler.timesteps[step]] * 4]
    torch.testing.assert_close(log_prob, expected, rtol=1e-12, atol=1e-12)


# -- gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradient_equals_a_difference_quotient(kind, reduction):
    """Each object's gain moves its own log-densities and no other's."""
    sampler, gains = sampler_of(kind, 3), (0.5, 0.2)
    (batch,) = sampled(LinearPolicy(*gains), sampler, [2], reduction=reduction)

    def total(first):
        policy = LinearPolicy(first, gains[1])
        table = replay(policy, sampler, batch, "zigzag", range(3), reduction=reduction)
        return policy, table

    policy, table = total(gains[0])
    (by_gain,) = torch.autograd.grad(table.sum(), policy.gain, retain_graph=True)
    (second_object,) = torch.autograd.grad(table[:, 1].sum(), policy.gain)
    high, low = (total(gains[0] + shift)[1].sum().item() for shift in (1e-5, -1e-5))

    assert by_gain[0].item() == pytest.approx((high - low) / 2e-5, rel=1e-7)
    assert second_object[0].item() == 0.0


def test_no_gradient_reaches_what_is_stored():
    """States and actions are constants."""
    sampler = sampler_of("lcm", 2)
    (batch,) = sampled(LinearPolicy(0.5), sampler, [2])
    replay(LinearPolicy(0.5), sampler, batch, "zigzag", [0, 1]).sum().backward()

    assert batch.rollout.zigzag.state.grad is None
    assert not batch.rollout.zigzag.log_prob.requires_grad


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [[], [2], [0, -1]])
def test_rejects_steps_that_are_not_stored(steps):
    """A negative index would count from the end."""
    sampler = sampler_of("lcm", 2)
    (batch,) = sampled(LinearPolicy(0.5), sampler, [1])
    with pytest.raises(ValueError, match=r"`steps` must be some of 0\.\.1, the stored steps; got"):
        replay(LinearPolicy(0.5), sampler, batch, "zigzag", steps)


def test_rejects_steps_without_a_log_density():
    """By number, before the network is called; NaN would reach the parameters."""
    policy = Recorded(LinearPolicy(0.5))
    (batch,) = sampled(LinearPolicy(0.5), sampler_of("ddim", 2), [1])
    still = replace(sampler_of("ddim", 2), eta=0.0)
    with pytest.raises(ValueError, match=r"`steps` must be below 0, .* got \[0, 1\].*density"):
        replay(policy, still, batch, "zigzag", [0, 1])

    assert not policy.calls


def test_rejects_other_objects():
    """The network says which record to narrow."""
    policy, sampler = tuned_policy(torch.float32), sampler_of("lcm", 2, dtype=torch.float32)
    pair = network_pair(policy, sampler, torch.float32)
    with pytest.raises(ValueError, match=r"Narrow `conditioning` with `\.objects`"):
        replay_log_prob(
            policy,
            sampler,
            pair.zigzag.objects(slice(0, 1)),
            [0],
            conditioning(2, 3).to(dtype=torch.float32),
            guidance_scale=GUIDANCE,
        )


@pytest.mark.parametrize(
    "name", ["steps_per_microbatch", "objects_per_microbatch", "epochs", "optimizer_steps"]
)
@pytest.mark.parametrize("count", [0, -1])
def test_rejects_a_count_below_one(name, count):
    """By its name."""
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1; got {count}"):
        UpdateSettings(steps=[0], guidance_scale=1.0, **{name: count})


def test_rejects_an_update_of_no_step():
    """Such as a grid of one step whose last action is not trained."""
    with pytest.raises(ValueError, match="`steps` must name at least one sampling step; got none"):
        UpdateSettings(steps=[], guidance_scale=1.0)
