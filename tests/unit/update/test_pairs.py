"""`update.pairs`: oracle, laws, gradients, errors."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks

from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.objective.preference import preference_gradients, preference_loss
from mvczigal_ref.objective.reward_difference import reward_difference_gradients
from mvczigal_ref.update.pair_batch import PairedLogProb
from mvczigal_ref.update.pairs import PairGradients, accumulate_pairs
from mvczigal_ref.update.replay import replay_log_prob
from tests.compare import FP64
from tests.policies import LinearPolicy, Recorded
from tests.trajectories import sampler_of
from tests.unit.update.pairs import GUIDANCE, gaps, objective_of, sampled, settings_of, whole_loss

GAINS = (0.5, 0.2, -0.1)
BATCHES = sampled(LinearPolicy(0.5), sampler_of("lcm", 2), [2, 4])


def accumulate(
    policy, sampler, batch, steps, *, weight=1.0, on_policy=False, objective=None, **changes
):
    """Add the gradient of some steps of a batch."""
    return accumulate_pairs(
        policy,
        sampler,
        batch,
        list(steps),
        objective or objective_of(),
        weight=weight,
        on_policy=on_policy,
        settings=settings_of(sampler, **changes),
    )


def moved(shift):
    """Give parameters some way from those that sample."""
    return LinearPolicy(*(gain + shift * (1 + i) for i, gain in enumerate(GAINS)))


# -- oracle ------------------------------------------------------------------------------


@settings(max_examples=10)
@given(
    st.sampled_from(["lcm", "ddim"]),
    st.floats(-0.1, 0.1),
    st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True),
    st.floats(1e-4, 0.1),
    st.floats(0.1, 10.0),
    st.floats(0.1, 2.0),
)
def test_gradient_equals_that_of_both_arms_in_one_graph(
    kind, shift, steps, clip_range, temperature, weight
):
    """Off policy, clipped and unclipped; scaled by the microbatch's weight."""
    sampler = sampler_of(kind, 3)
    (batch,) = sampled(LinearPolicy(*GAINS), sampler, [3])
    settings_of_loss = {"clip_range": clip_range, "temperature": temperature}
    apart, together = moved(shift), moved(shift)
    objective = objective_of(**settings_of_loss)
    stats = accumulate(apart, sampler, batch, steps, weight=weight, objective=objective)
    loss, _ = whole_loss(together, sampler, [batch], steps, **settings_of_loss)
    (weight * loss).backward()

    torch.testing.assert_close(apart.gain.grad, together.gain.grad, rtol=FP64, atol=FP64)
    assert stats.loss.item() == pytest.approx(loss.item() * stats.count, rel=FP64)


@pytest.mark.parametrize("kind", ["lcm", "ddim"])
def test_gradient_equals_that_of_both_arms_in_one_graph_on_policy(kind):
    """Where the stored log-density stands for the second arm's value."""
    sampler = sampler_of(kind, 3)
    (batch,) = sampled(LinearPolicy(*GAINS), sampler, [3])
    apart, together = moved(0.0), moved(0.0)
    accumulate(apart, sampler, batch, range(3), on_policy=True)
    whole_loss(together, sampler, [batch], range(3))[0].backward()

    assert apart.gain.grad.abs().min() > 1e-3
    torch.testing.assert_close(apart.gain.grad, together.gain.grad, rtol=FP64, atol=FP64)


@pytest.mark.parametrize("on_policy", [True, False])
def test_one_graph_of_both_arms_has_the_gradient_and_the_sums_of_two(on_policy):
    """And one network call where there were two or three."""
    sampler = sampler_of("lcm", 3)
    (batch,) = sampled(LinearPolicy(*GAINS), sampler, [3])
    shift, outcomes = 0.0 if on_policy else 0.03, []
    for joint_from in (None, 0):
        policy = Recorded(moved(shift))
        stats = accumulate(
            policy, sampler, batch, range(3), on_policy=on_policy, joint_from=joint_from
        )
        outcomes.append((len(policy.calls), policy.policy.gain.grad, stats))
    (calls, gradient, apart), (joint_calls, joint_gradient, joint) = outcomes

    assert (calls, joint_calls) == (2 if on_policy else 3, 1)
    torch.testing.assert_close(joint_gradient, gradient, rtol=FP64, atol=FP64)
    assert (joint.count, joint.num_log_ratios) == (apart.count, apart.num_log_ratios)
    for name in ("loss", "log_ratio_square", "clipped", "deviation"):
        one, other = getattr(joint, name), getattr(apart, name)
        torch.testing.assert_close(one, other, rtol=FP64, atol=FP64)


@pytest.mark.parametrize("shift", [0.0, 0.03])
def test_sums_equal_their_definitions(shift):
    """In plain floats, over both arms; the clip range here is that of the settings, 1e-2."""
    sampler = sampler_of("lcm", 2)
    (batch,) = sampled(LinearPolicy(*GAINS), sampler, [3])
    stats = accumulate(moved(shift), sampler, batch, [0, 1])
    with torch.no_grad():
        loss, _ = whole_loss(moved(shift), sampler, [batch], [0, 1])
    ratios = log_ratios(moved(shift), sampler, batch)

    assert stats.count == 2 * 3 * 2
    assert stats.loss.item() == pytest.approx(loss.item() * 12, rel=1e-12)
    assert stats.log_ratio_square.item() == pytest.approx(sum(x * x for x in ratios), abs=1e-15)
    assert stats.clipped.item() == sum(abs(x) > 1e-2 for x in ratios)
    assert stats.deviation.item() == pytest.approx(max(abs(x) for x in ratios), abs=1e-15)
    if shift:
        assert 0 < stats.clipped.item() < 24


def log_ratios(policy, sampler, batch):
    """Return every log-ratio as a float, from torch's own normal density."""
    found = []
    for arm in (batch.rollout.zigzag, batch.rollout.standard):
        gain = policy.gain.detach()[None, :, None, None, None, None]
        told = LinearPolicy.told(sampler.timesteps.double(), GUIDANCE, 1.0)
        output = gain * arm.state + told[:, None, None, None, None, None]
        step = sampler.transition(output, arm.state, torch.arange(2)[:, None, None])
        spread = step.std.expand(arm.log_prob.shape)[..., None, None, None]
        density = torch.distributions.Normal(step.mean, spread).log_prob(arm.action)
        found += (density.mean((-3, -2, -1)) - arm.log_prob).flatten().tolist()
    return found


def test_a_frozen_reference_takes_the_snapshot_s_place_in_the_ratios():
    """Against DPO's loss of both arms in one graph; the deviation stays that of the replay."""
    sampler, batch = sampler_of("lcm", 3), sampled(LinearPolicy(0.5), sampler_of("lcm", 3), [2])[0]
    frozen, policy = moved(0.2), moved(-0.1)
    arms = (batch.rollout.zigzag, batch.rollout.standard)

    def scores(network):
        return PairedLogProb(*(
            replay_log_prob(
                network, sampler, arm, range(3), batch.conditioning, guidance_scale=GUIDANCE
            )
            for arm in arms
        ))  # fmt: skip

    with torch.no_grad():
        reference = scores(frozen)
    dpo = partial(preference_gradients, scale=3.0, clip_range=1.0)
    with_reference = replace(batch, reference=reference)
    for step in range(3):
        stats = accumulate(policy, sampler, with_reference, [step], weight=1 / 3, objective=dpo)
    new = scores(slow := moved(-0.1))
    gap = batch.advantage_gap.expand_as(new.zigzag)
    loss, _ = preference_loss(
        new.zigzag - reference.zigzag, new.standard - reference.standard, gap, scale=3.0,
        clip_range=1.0,
    )  # fmt: skip
    loss.backward()
    deviation = max(
        (mine.detach() - arm.log_prob)[2].abs().max() for mine, arm in zip(new, arms, strict=True)
    )

    torch.testing.assert_close(policy.gain.grad, slow.gain.grad, rtol=1e-9, atol=1e-12)
    assert stats.deviation.item() == pytest.approx(deviation.item(), rel=1e-9)


# -- laws --------------------------------------------------------------------------------


def test_on_policy_two_calls_do():
    """Off policy the second arm's value costs a third, without gradient."""
    sampler = sampler_of("lcm", 3)
    (batch,) = sampled(LinearPolicy(*GAINS), sampler, [3])
    for on_policy, expected in ((True, [True, True]), (False, [False, True, True])):
        policy = Recorded(LinearPolicy(*GAINS))
        accumulate(policy, sampler, batch, range(3), on_policy=on_policy)

        assert [call.with_gradient for call in policy.calls] == expected


def test_no_gap_is_no_gradient():
    """On the sampling parameters, exactly."""
    sampler, policy = sampler_of("lcm", 3), LinearPolicy(*GAINS)
    (batch,) = sampled(policy, sampler, [3], gap=torch.zeros(3, 2, dtype=torch.float64))
    stats = accumulate(policy, sampler, batch, range(3), on_policy=True)

    assert stats.loss == 0.0
    assert torch.equal(policy.gain.grad, torch.zeros(3, dtype=torch.float64))


@settings(max_examples=10)
@given(st.sampled_from(["lcm", "ddim"]), st.integers(0, 99), st.sampled_from([-1.0, 1.0]))
def test_a_small_step_moves_the_arms_apart_as_the_gap_asks(kind, seed, sign):
    """Where zigzag did better, its log-density gains on the standard arm's."""
    sampler, policy = sampler_of(kind, 2), LinearPolicy(*GAINS)
    gap = torch.full((3, 2), sign, dtype=torch.float64)
    (batch,) = sampled(policy, sampler, [3], gap=gap, seed=seed)
    accumulate(policy, sampler, batch, range(2), on_policy=True)
    with torch.no_grad():
        policy.gain -= 1e-6 * policy.gain.grad / policy.gain.grad.norm()
    ratios = log_ratios(policy, sampler, batch)
    zigzag, standard = sum(ratios[:12]), sum(ratios[12:])

    assert sign * (zigzag - standard) > 0


def test_gradients_add_up():
    """A second microbatch adds to the first."""
    sampler = sampler_of("lcm", 2)
    (batch,) = sampled(LinearPolicy(*GAINS), sampler, [3])
    once, twice = moved(0.01), moved(0.01)
    accumulate(once, sampler, batch, [0, 1])
    accumulate(twice, sampler, batch, [0, 1])
    accumulate(twice, sampler, batch, [0, 1])

    torch.testing.assert_close(twice.gain.grad, 2 * once.gain.grad)


class Live:
    """Counts the bytes that graphs keep for their backward passes."""

    def __init__(self):
        self.now = self.peak = 0

    def pack(self, tensor):
        """Keep a tensor for backward."""
        return _Held(self, tensor)

    def counted(self, work):
        """Run some work; return the most bytes held at once."""
        with saved_tensors_hooks(self.pack, lambda held: held.tensor):
            work()
        assert self.now == 0
        return self.peak


class _Held:
    """A tensor that is held as long as its graph."""

    def __init__(self, live, tensor):
        self.live, self.tensor = live, tensor
        live.now += tensor.nbytes
        live.peak = max(live.peak, live.now)

    def __del__(self):
        self.live.now -= self.tensor.nbytes


@pytest.mark.parametrize("on_policy", [True, False])
def test_the_arms_never_hold_two_graphs(on_policy):
    """A pair's peak is one arm's; in one graph it would be both."""
    sampler, gains = sampler_of("lcm", 2), LinearPolicy(*GAINS)
    (batch,) = sampled(gains, sampler, [3], shape=(2, 4, 16, 16))

    def one_arm():
        replay_log_prob(
            moved(0.01),
            sampler,
            batch.rollout.zigzag,
            [0, 1],
            batch.conditioning,
            guidance_scale=GUIDANCE,
        ).sum().backward()

    one = Live().counted(one_arm)
    pair = Live().counted(
        lambda: accumulate(moved(0.01), sampler, batch, [0, 1], on_policy=on_policy)
    )
    both = Live().counted(lambda: whole_loss(moved(0.01), sampler, [batch], [0, 1])[0].backward())

    assert one > 100_000
    assert one <= pair < 1.05 * one
    assert both > 1.9 * one


# -- a batch -----------------------------------------------------------------------------


@given(st.integers(0, 3), st.integers(1, 4))
def test_narrowing_takes_the_same_objects_of_everything(start, length):
    """And remembers where they are in the iteration."""
    first, second = BATCHES
    index = slice(start, min(start + length, 4))
    part = second.objects(index)

    assert first.first_object == 0
    assert part.first_object == 2 + start
    assert torch.equal(part.advantage_gap, gaps(6)[2:][index])
    assert torch.equal(part.rollout.zigzag.state, second.rollout.zigzag.state[:, index])
    assert torch.equal(part.rollout.zigzag.action, second.rollout.zigzag.action[:, index])
    assert torch.equal(part.rollout.standard.log_prob, second.rollout.standard.log_prob[:, index])
    assert torch.equal(part.rollout.standard.denoised, second.rollout.standard.denoised[index])
    numbers = part.conditioning.prompt_embeds[:, 0, 0].tolist()
    assert numbers == list(range(2, 6))[index]


def test_narrowing_copies_nothing():
    """The parts look into the whole's memory."""
    batch = BATCHES[1]
    part = batch.objects(slice(None, 2))

    assert part.first_object == 2
    assert part.rollout.zigzag.state.untyped_storage().data_ptr() == (
        batch.rollout.zigzag.state.untyped_storage().data_ptr()
    )


def test_the_pair_loss_is_an_objective():
    """It is known by its loss and two derivatives."""
    zero = torch.zeros(2)

    assert isinstance(reward_difference_gradients(zero, zero, zero, clip_range=1.0), PairGradients)


# -- errors ------------------------------------------------------------------------------


class Poisoned(LinearPolicy):
    """Gives one number for one view of one object at one timestep."""

    def __init__(self, *gain, number, view, timestep, value):
        super().__init__(*gain)
        self.number, self.view, self.timestep, self.value = number, view, timestep, value

    def forward(self, latent_t, timestep, conditioning, *, guidance_scale, camera_scale=1.0):
        """Evaluate, and spoil one row."""
        output = (
            super()
            .forward(
                latent_t,
                timestep,
                conditioning,
                guidance_scale=guidance_scale,
                camera_scale=camera_scale,
            )
            .clone()
        )
        number = conditioning.prompt_embeds[:, 0, 0].repeat_interleave(conditioning.num_views)
        view = torch.arange(len(output)) % conditioning.num_views
        spoilt = (number == self.number) & (view == self.view)
        output[spoilt & (timestep.expand(len(output)) == self.timestep), 0, 0, 0] = self.value
        return output


@pytest.mark.parametrize("on_policy", [True, False])
def test_names_the_log_density_that_is_not_finite(on_policy):
    """Object within the iteration, view, step of the grid; nothing has gone backward."""
    sampler = sampler_of("lcm", 4)
    _, batch = sampled(LinearPolicy(*GAINS), sampler, [3, 3])
    timestep = int(sampler.timesteps[2])
    policy = Poisoned(*GAINS, number=4, view=1, timestep=timestep, value=math.nan)
    with pytest.raises(NonFiniteError) as raised:
        accumulate(policy, sampler, batch, [1, 2, 3], on_policy=on_policy)
    error = raised.value

    assert (error.what, error.object, error.view, error.step) == ("log_ratio_zigzag", 4, 1, 2)
    assert math.isnan(error.value)
    assert policy.gain.grad is None


@pytest.mark.parametrize("on_policy", [True, False])
def test_names_a_standard_log_density_that_is_not_finite(on_policy):
    """Also one that was stored so."""
    sampler, policy = sampler_of("lcm", 3), LinearPolicy(*GAINS)
    (batch,) = sampled(policy, sampler, [3])
    batch.rollout.standard.log_prob[1, 2, 0] = math.inf
    with pytest.raises(NonFiniteError) as raised:
        accumulate(policy, sampler, batch, range(3), on_policy=on_policy)
    error = raised.value

    assert (error.what, error.object, error.view, error.step) == ("log_ratio_standard", 2, 0, 1)
    assert policy.gain.grad is None


def test_names_an_advantage_that_is_not_finite():
    """At the first step, though it holds for all."""
    sampler, policy = sampler_of("lcm", 2), LinearPolicy(*GAINS)
    gap = torch.zeros(3, 2, dtype=torch.float64)
    gap[1, 1] = math.nan
    (batch,) = sampled(policy, sampler, [3], gap=gap)
    with pytest.raises(NonFiniteError, match="`advantage_gap` must be finite; got nan at object 1"):
        accumulate(policy, sampler, batch, [0, 1], on_policy=True)


def test_names_the_log_density_whose_square_is_not_finite():
    """A loss may overflow though every log-ratio is finite."""
    sampler, policy = sampler_of("lcm", 3), LinearPolicy(*GAINS)
    (batch,) = sampled(policy, sampler, [3])
    batch.rollout.zigzag.log_prob[1, 2, 1] = -1e200
    with pytest.raises(NonFiniteError, match="`loss` must be finite; got inf") as raised:
        accumulate(policy, sampler, batch, range(3), objective=objective_of(clip_range=math.inf))
    error = raised.value

    assert (error.object, error.view, error.step) == (2, 1, 1)
    assert policy.gain.grad is None
