"""`update.loop`: oracle, laws, gradients, errors."""

import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.distributed import World
from mvczigal_ref.errors import NonFiniteError, ReplayMismatchError, ZeroGradientError
from mvczigal_ref.models.lora import lora_parameters
from mvczigal_ref.update.loop import asks_for_change, optimizer_step
from mvczigal_ref.update.pair_batch import PairBatch
from mvczigal_ref.update.pairs import update_policy
from tests import oracles
from tests.compare import FP64
from tests.policies import DetachedPolicy, LinearPolicy, Recorded
from tests.trajectories import sampler_of
from tests.unit.models.small import conditioning
from tests.unit.update.network import network_log_prob, network_pair, tuned_policy
from tests.unit.update.pairs import GUIDANCE, gaps, objective_of, sampled, settings_of, whole_loss

GAINS = (0.5, 0.2, -0.1)


def update(
    policy, sampler, batches, *, lr=0.1, objective=None, world=None, parameters=None, **changes
):
    """Update by plain gradient descent; return the metrics."""
    parameters = parameters or [policy.gain]
    trained = parameters.values() if isinstance(parameters, dict) else parameters
    metrics, _ = update_policy(
        policy,
        sampler,
        torch.optim.SGD(trained, lr=lr),
        batches,
        objective or objective_of(),
        parameters=parameters,
        world=world or World(),
        settings=settings_of(sampler, **changes),
    )
    return metrics


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1e9, 1e-3])
def test_one_step_equals_the_gradient_by_hand(limit):
    """One parameter, in plain floats, step by step and element by element."""
    gain, rate, temperature = 0.5, 0.1, 2.0
    policy, sampler = LinearPolicy(gain), sampler_of("lcm", 3)
    (batch,) = sampled(policy, sampler, [2])
    metrics = update(
        policy,
        sampler,
        [batch],
        lr=rate,
        max_grad_norm=limit,
        objective=objective_of(temperature=temperature),
    )

    level = oracles.scaled_linear_alpha_bar(1000, 0.00085, 0.012)
    grid, gap = sampler.timesteps.tolist(), batch.advantage_gap
    gradient, loss, count = 0.0, 0.0, 3 * 2 * 2
    for step, t in enumerate(grid):
        s = grid[min(step + 1, 2)]
        a, b = math.sqrt(level[t]), math.sqrt(1 - level[t])
        c_out = 10 * t / math.sqrt((10 * t) ** 2 + 0.25)
        told = 0.02 * GUIDANCE + 0.05 + 1e-4 * t
        for item in range(2):
            for view in range(2):
                by_gain = {}
                for arm in ("zigzag", "standard"):
                    trajectory = getattr(batch.rollout, arm)
                    x = trajectory.state[step, item, view].flatten().tolist()
                    y = trajectory.action[step, item, view].flatten().tolist()
                    slopes = []
                    for xi, yi in zip(x, y, strict=True):
                        mean, std, _ = oracles.lcm_step(
                            "epsilon", gain * xi + told, xi, t, level[t], level[s]
                        )
                        mean_by_gain = -math.sqrt(level[s]) * c_out * b / a * xi
                        slopes.append((yi - mean) / std**2 * mean_by_gain)
                    by_gain[arm] = sum(slopes) / len(slopes)
                wanted = gap[item, view].item()
                loss += wanted**2 / count
                slope = (by_gain["zigzag"] - by_gain["standard"]) / temperature
                gradient += -2 * wanted * slope / count
    clipped = gradient * min(1.0, limit / (abs(gradient) + 1e-6))

    assert policy.gain.item() == pytest.approx(gain - rate * clipped, rel=1e-10)
    assert metrics["grad_norm"] == pytest.approx(abs(gradient), rel=1e-9)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-12)
    assert metrics["approx_kl"] == metrics["clip_fraction"] == metrics["replay_deviation"] == 0.0


def slow_update(policy, sampler, batches, *, groups, epochs, limit, lr=0.1):
    """Make the same changes by whole graphs of both arms; return what should be measured."""
    found = {"loss": [], "approx_kl": [], "clip_fraction": [], "grad_norm": []}
    size = len(batches) // groups
    for _ in range(epochs):
        for first in range(0, len(batches), size):
            part = batches[first : first + size]
            loss, stats = whole_loss(policy, sampler, part, range(sampler.num_steps))
            (gradient,) = torch.autograd.grad(loss, policy.gain)
            norm = gradient.norm()
            with torch.no_grad():
                policy.gain -= lr * gradient * min(1.0, limit / (norm + 1e-6))
            found["loss"].append(loss.item())
            found["approx_kl"].append(stats.approx_kl.item())
            found["clip_fraction"].append(stats.clip_fraction.item())
            found["grad_norm"].append(norm.item())
    return {name: sum(values) / len(values) for name, values in found.items()}


@pytest.mark.parametrize("kind", ["lcm", "ddim"])
@pytest.mark.parametrize(("groups", "epochs"), [(1, 1), (2, 1), (4, 1), (1, 3), (2, 2)])
def test_equals_slow_updates_by_both_graphs(kind, groups, epochs):
    """Optimiser steps and epochs see the parameters that the ones before them left."""
    sampler, (fast, slow) = sampler_of(kind, 2), (LinearPolicy(*GAINS) for _ in range(2))
    batches = sampled(fast, sampler, [2, 2, 2, 2])
    limit = 0.3
    metrics = update(
        fast, sampler, batches, epochs=epochs, optimizer_steps=groups, max_grad_norm=limit
    )
    expected = slow_update(slow, sampler, batches, groups=groups, epochs=epochs, limit=limit)

    assert not torch.equal(fast.gain, torch.tensor(GAINS))
    torch.testing.assert_close(fast.gain.data, slow.gain.data, rtol=1e-11, atol=1e-11)
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=1e-9, abs=1e-15), name
    assert (metrics["approx_kl"] > 0) == (groups * epochs > 1)
    assert metrics["replay_deviation"] == 0.0


# -- laws --------------------------------------------------------------------------------


@settings(max_examples=12)
@given(
    st.integers(1, 4),
    st.sampled_from([None, 1, 2, 3, 6]),
    st.sampled_from([[6], [2, 4], [1, 2, 3], [2, 2, 2]]),
    st.sampled_from([[0, 1, 2], [0, 2], [1]]),
)
def test_microbatches_do_not_change_the_gradient(length, size, slices, steps):
    """However steps and objects are cut up, equally or not."""
    sampler, (one, many) = sampler_of("lcm", 3), (LinearPolicy(*GAINS) for _ in range(2))
    batches = sampled(one, sampler, slices)
    update(one, sampler, sampled(one, sampler, [6]), steps=steps, steps_per_microbatch=len(steps))
    cut = {"steps_per_microbatch": length, "objects_per_microbatch": size}
    metrics = update(many, sampler, batches, steps=steps, **cut)

    torch.testing.assert_close(many.gain.data, one.gain.data, rtol=FP64, atol=FP64)
    assert metrics["replay_deviation"] < 1e-10


def test_cuts_are_what_was_asked_for():
    """Rows of a call: steps times objects times views; what is left over comes last."""
    policy, sampler = Recorded(LinearPolicy(*GAINS)), sampler_of("lcm", 3)
    batches = sampled(policy, sampler, [3])
    for cut, rows in (
        ({}, [6, 6, 6]),
        ({"steps_per_microbatch": 2}, [12, 6]),
        ({"objects_per_microbatch": 2}, [4, 4, 4, 2, 2, 2]),
        ({"steps_per_microbatch": 3, "objects_per_microbatch": 1}, [6, 6, 6]),
    ):
        policy.calls.clear()
        update(policy, sampler, batches, lr=0.0, parameters=[policy.policy.gain], **cut)

        # On the sampling parameters each microbatch is one call per arm.
        assert [call.rows for call in policy.calls] == [n for n in rows for _ in range(2)]


def test_a_step_that_is_not_trained_is_not_replayed():
    """Such as the last, on which the image does not depend."""
    policy, sampler = Recorded(LinearPolicy(*GAINS)), sampler_of("lcm", 3)
    batches = sampled(policy, sampler, [3])
    policy.calls.clear()
    update(policy, sampler, batches, parameters=[policy.policy.gain], steps=[0, 1])
    trained = {timestep for call in policy.calls for timestep in call.timestep}

    assert trained == set(sampler.timesteps[:2].tolist())


def test_later_passes_leave_the_sampling_parameters():
    """Their ratios are not 1, and each pair costs one call more."""
    policy, sampler = Recorded(LinearPolicy(*GAINS)), sampler_of("lcm", 2)
    batches = sampled(policy, sampler, [3])
    policy.calls.clear()
    update(policy, sampler, batches, parameters=[policy.policy.gain], epochs=2)

    assert [call.with_gradient for call in policy.calls] == [True] * 4 + [False, True, True] * 2


def test_what_an_earlier_update_left_is_forgotten():
    """An update that was stopped half-way leaves gradients behind."""
    sampler, (clean, stained) = sampler_of("lcm", 2), (LinearPolicy(*GAINS) for _ in range(2))
    batches = sampled(clean, sampler, [3])
    stained.gain.grad = torch.ones(3, dtype=torch.float64)
    update(clean, sampler, batches)
    update(stained, sampler, batches)

    assert torch.equal(clean.gain, stained.gain)


class TwoProcesses(World):
    """A world whose other process has the same objects, and no gradient or log-ratio."""

    def __init__(self):
        World.__init__(self, rank=0, size=2)

    def gather_objects(self, share):
        """Add the other's zeros."""
        return torch.cat([share, torch.zeros_like(share)])

    def mean_gradients(self, parameters):
        """Halve."""
        for parameter in parameters:
            parameter.grad /= 2


def test_gradients_and_metrics_are_means_over_the_processes():
    """The deviation is the largest of all."""
    sampler, (alone, both) = sampler_of("lcm", 2), (LinearPolicy(*GAINS) for _ in range(2))
    batches = sampled(alone, sampler, [3])
    told = {"steps_per_microbatch": 2, "guidance_scale": GUIDANCE + 1}
    one = update(alone, sampler, batches, lr=0.2, **told)
    two = update(both, sampler, batches, lr=0.4, world=TwoProcesses(), **told)

    torch.testing.assert_close(alone.gain.data, both.gain.data, rtol=FP64, atol=FP64)
    for name in ("loss", "approx_kl", "clip_fraction", "grad_norm"):
        assert two[name] == pytest.approx(one[name] / 2, rel=1e-12)
        assert two[name] > 0
    assert two["replay_deviation"] == one["replay_deviation"] > 0


# -- the first ratio ---------------------------------------------------------------------


def test_deviation_is_a_share_of_the_clip_range():
    """The largest log-ratio on the sampling parameters, of either arm, whatever the microbatch."""
    sampler, policy = sampler_of("lcm", 2), LinearPolicy(*GAINS)
    batches = sampled(policy, sampler, [2, 2])
    batches[1].rollout.standard.log_prob[1, 1, 0] += 3e-3
    cut = {"steps_per_microbatch": 2, "clip_range": 1e-2}
    metrics = update(policy, sampler, batches, lr=0.0, epochs=2, **cut)

    assert metrics["replay_deviation"] == pytest.approx(0.3, rel=1e-6)


@pytest.mark.parametrize("arm", ["zigzag", "standard"])
@pytest.mark.parametrize("place", [(0, 0), (1, 1)])
def test_refuses_a_ratio_that_is_not_one(arm, place):
    """Of either arm, in any microbatch before the parameters change; they stay as they are."""
    sampler, policy = sampler_of("lcm", 2), LinearPolicy(*GAINS)
    batches = sampled(policy, sampler, [2, 2])
    index, step = place
    getattr(batches[index].rollout, arm).log_prob[step, 0, 1] += 1e-9
    with pytest.raises(ReplayMismatchError) as raised:
        update(policy, sampler, batches)
    message = str(raised.value)

    assert "must be exactly 1 on equal slices; its logarithm deviates by 1e-09" in message
    assert f"starts at object {2 * index}" in message
    assert torch.equal(policy.gain.data, torch.tensor(GAINS, dtype=torch.float64))


@pytest.mark.parametrize(
    "change", [{"guidance_scale": 2.0}, {"camera_scale": 0.5}, {"reduction": "sum"}]
)
def test_refuses_a_replay_with_other_settings(change):
    """The message says what may differ."""
    sampler, policy = sampler_of("lcm", 2), LinearPolicy(*GAINS)
    batches = sampled(policy, sampler, [3])
    with pytest.raises(
        ReplayMismatchError, match="guidance or camera scale, reduction, a changed parameter"
    ):
        update(policy, sampler, batches, **change)


@pytest.mark.parametrize("cut", [{"steps_per_microbatch": 2}, {"objects_per_microbatch": 1}])
def test_unequal_slices_may_deviate(cut):
    """There the deviation is only reported: rounding moves it, and the user chose so."""
    sampler, policy = sampler_of("lcm", 2), LinearPolicy(*GAINS)
    batches = sampled(policy, sampler, [3])
    metrics = update(policy, sampler, batches, guidance_scale=2.0, **cut)

    assert metrics["replay_deviation"] > 0


@pytest.mark.parametrize("size", [3, 4])
def test_slices_that_are_not_cut_are_equal(size):
    """A limit that a slice does not reach leaves it whole, and its ratios exactly 1."""
    sampler, policy = sampler_of("lcm", 2), LinearPolicy(*GAINS)
    batches = sampled(policy, sampler, [3])
    with pytest.raises(ReplayMismatchError):
        update(policy, sampler, batches, objects_per_microbatch=size, guidance_scale=2.0)


# -- gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [math.inf, 1e-2])
def test_a_step_lowers_the_loss(clip):
    """A small one, on the pairs it was taken on."""
    sampler, policy = sampler_of("lcm", 2), LinearPolicy(*GAINS)
    batches = sampled(policy, sampler, [3])
    before, _ = whole_loss(policy, sampler, batches, range(2), clip_range=clip)
    update(policy, sampler, batches, lr=1e-3, objective=objective_of(clip))
    after, _ = whole_loss(policy, sampler, batches, range(2), clip_range=clip)

    assert after.item() < before.item()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_better_arm_becomes_likelier(sign):
    """On a real network with many parameters: its log-density rises, and the other's falls."""
    policy = deepcopy(tuned_policy(torch.float32))
    sampler = sampler_of("lcm", 2, dtype=torch.float32)
    batch = PairBatch(
        rollout=network_pair(policy, sampler, torch.float32),
        conditioning=conditioning(2, 3).to(dtype=torch.float32),
        advantage_gap=torch.full((2, 3), sign),
        first_object=0,
    )
    trained = list(lora_parameters(policy.unet).values())
    update(policy, sampler, [batch], lr=1e-3, parameters=trained)
    for arm, wanted in ((batch.rollout.zigzag, sign), (batch.rollout.standard, -sign)):
        log_prob = network_log_prob(policy, sampler, arm, [0, 1])

        assert wanted * (log_prob - arm.log_prob).mean().item() > 0


def test_a_missing_gradient_is_on_the_device_of_its_output():
    """Answers of all microbatches are put together, with and without a gradient."""
    output = torch.zeros(2, device="meta", requires_grad=True)
    asks = asks_for_change(output)

    assert (asks.device, asks.dtype, asks.shape) == (output.device, torch.bool, ())
    assert not asks_for_change(torch.zeros(2))


def test_no_gap_is_no_change():
    """The parameters stay, bit for bit."""
    sampler, policy = sampler_of("lcm", 2), LinearPolicy(*GAINS)
    batches = sampled(policy, sampler, [3], gap=torch.zeros(3, 2, dtype=torch.float64))
    metrics = update(policy, sampler, batches, epochs=2)

    assert torch.equal(policy.gain.data, torch.tensor(GAINS, dtype=torch.float64))
    assert metrics["loss"] == metrics["grad_norm"] == metrics["approx_kl"] == 0.0
    assert metrics["idle_steps"] == 2.0


# -- errors ------------------------------------------------------------------------------


class SpoiltBackward(LinearPolicy):
    """The gradient through every output is not finite."""

    def forward(self, latent_t, timestep, conditioning, **told):
        """Spoil the gradient, and leave the output."""
        output = super().forward(latent_t, timestep, conditioning, **told)
        if output.requires_grad:
            output.register_hook(lambda gradient: gradient * math.inf)
        return output


@pytest.mark.parametrize("name", ["gain", None])
def test_a_gradient_that_is_not_finite_is_named(name):
    """By its parameter, though every log-density is finite; nothing changes."""
    policy, sampler = SpoiltBackward(*GAINS), sampler_of("lcm", 2)
    batches = sampled(policy, sampler, [3, 3], gap=gaps(6))
    parameters = {name: policy.gain} if name else [policy.gain]
    what = f"gradient_norm of {name}" if name else r"gradient_norm of parameters\[0\]"
    with pytest.raises(NonFiniteError, match=f"`{what}` must be finite"):
        update(policy, sampler, batches, parameters=parameters)

    assert torch.equal(policy.gain.data, torch.tensor(GAINS, dtype=torch.float64))
    assert policy.gain.grad is None


def test_a_gradient_that_never_arrives_stops_the_run():
    """Though advantages differ; parameters stay."""
    policy, sampler = DetachedPolicy(*GAINS), sampler_of("lcm", 2)
    batches = sampled(policy, sampler, [3])
    with pytest.raises(ZeroGradientError, match="exactly zero over a whole optimiser step"):
        update(policy, sampler, batches)

    assert torch.equal(policy.gain.data, torch.tensor(GAINS, dtype=torch.float64))


@pytest.mark.parametrize(("slices", "steps"), [([1, 1, 1], 2), ([1], 2), ([], 1)])
def test_rejects_slices_that_cannot_be_dealt_out(slices, steps):
    """Every optimiser step has as many."""
    policy, sampler = LinearPolicy(*GAINS), sampler_of("lcm", 2)
    batches = sampled(policy, sampler, slices)
    message = f"`batches` must be a positive multiple of the {steps} .*; got {len(slices)} slices"
    with pytest.raises(ValueError, match=message):
        update(policy, sampler, batches, optimizer_steps=steps)


# -- one optimiser step ------------------------------------------------------------------


NUMBERS = st.lists(st.floats(-10, 10), min_size=1, max_size=4)


def parameters_with(*gradients):
    """Build parameters at zero that hold these gradients."""
    found = []
    for gradient in gradients:
        parameter = torch.nn.Parameter(torch.zeros(len(gradient), dtype=torch.float64))
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        found.append(parameter)
    return found


@settings(max_examples=15)
@given(NUMBERS, NUMBERS, st.floats(0.1, 20.0), st.floats(0.01, 1.0))
def test_equals_clipped_gradient_descent(one, two, limit, rate):
    """Over all parameters together; the norm is that before clipping."""
    parameters = parameters_with(one, two)
    optimizer = torch.optim.SGD(parameters, lr=rate)
    norm = optimizer_step(optimizer, parameters, max_grad_norm=limit)

    expected = math.sqrt(sum(x * x for x in [*one, *two]))
    scale = min(1.0, limit / (expected + 1e-6))  # torch's own guard against a norm of zero
    assert norm == pytest.approx(expected, rel=1e-12)
    for parameter, gradient in zip(parameters, (one, two), strict=True):
        torch.testing.assert_close(
            parameter.data, -rate * scale * torch.tensor(gradient, dtype=torch.float64)
        )


def test_forgets_the_gradient():
    """So that the next step adds to nothing."""
    parameters = parameters_with([1.0])
    optimizer_step(torch.optim.SGD(parameters, lr=0.1), parameters, max_grad_norm=1.0)

    assert parameters[0].grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("names", [("a", "b", "c"), None], ids=["names", "places"])
def test_a_gradient_that_is_not_finite_changes_nothing(bad, names):
    """Neither parameters nor the optimiser's state; the error names the first such parameter."""
    parameters = parameters_with([1.0, 2.0], [bad], [bad])
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    named = dict(zip(names, parameters, strict=True)) if names else parameters
    with pytest.raises(NonFiniteError) as raised:
        optimizer_step(optimizer, named, max_grad_norm=5.0)

    assert raised.value.what == f"gradient_norm of {'b' if names else 'parameters[1]'}"
    assert not math.isfinite(raised.value.value)
    assert all(torch.equal(p.data, torch.zeros_like(p)) for p in parameters)
    assert all(p.grad is None for p in parameters)
    assert not optimizer.state


def test_finite_gradients_may_have_a_norm_that_is_not():
    """Then no parameter is named."""
    parameters = parameters_with([1e200], [1e200])
    with pytest.raises(NonFiniteError, match="`gradient_norm` must be finite; got inf"):
        optimizer_step(torch.optim.SGD(parameters, lr=0.1), parameters, max_grad_norm=5.0)


def test_only_a_gradient_of_exactly_zero_is_refused():
    """A norm of the smallest numbers rounds to 0; their step is taken."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    told = {"max_grad_norm": 5.0, "on_zero": pytest.fail}
    for gradient in ([1e-30, 0.0], [1.0, 0.0]):
        parameter.grad = torch.tensor(gradient)
        optimizer_step(torch.optim.SGD([parameter], lr=1.0), [parameter], **told)
    assert parameter.data[0] == -1.0
    parameter.grad = torch.zeros(2)
    with pytest.raises(pytest.fail.Exception):
        optimizer_step(torch.optim.SGD([parameter], lr=1.0), [parameter], **told)
