"""`update.forward`: oracle, laws, errors."""

import math
from contextlib import contextmanager

import pytest
import torch

from mvczigal_ref.distributed import World
from mvczigal_ref.errors import NonFiniteError, ZeroGradientError
from mvczigal_ref.objective.diffusion_nft import diffusion_nft_loss
from mvczigal_ref.update.forward import ForwardBatch, update_forward
from mvczigal_ref.update.replay import ReplaySettings
from tests.policies import DetachedPolicy, LinearPolicy, Recorded, numbered
from tests.strategies import randn
from tests.unit.rollout.flow_cases import GUIDANCE, velocity

GAIN, OLD, HOME = 0.5, 0.4, -0.2
MIX, CLIP, KL = 0.7, 2.0, 0.3
SHAPE = (2, 1, 2, 2)
LEVELS = (0.9, 0.3)


def objective(noised):
    """Bind DiffusionNFT's loss."""
    loss, stats = diffusion_nft_loss(
        noised.velocity, velocity_old=noised.velocity_old,
        velocity_reference=noised.velocity_reference, latent_t=noised.latent_t,
        clean=noised.clean, level=noised.level, advantage=noised.advantage, mix=MIX,
        advantage_clip=CLIP, kl_weight=0.0 if noised.velocity_reference is None else KL,
    )  # fmt: skip
    return loss, {"optimality": stats.optimality}


def batch_of(objects=(0, 1), *, members=3, seed=0, **changes):
    """Give samples, noise and advantages of order one."""
    shape = (members, len(objects), *SHAPE)
    fields = {
        "clean": randn(*shape, seed=seed, dtype=torch.float64),
        "noise": randn(len(LEVELS), *shape, seed=seed + 1, dtype=torch.float64),
        "levels": LEVELS,
        "conditioning": numbered(objects, SHAPE[0]),
        "advantage": randn(*shape[:3], seed=seed + 2, dtype=torch.float64),
        "first_object": objects[0],
    }
    return ForwardBatch(**{**fields, **changes})


def at(policy, *gain):
    """Give the policy another gain for a while."""

    @contextmanager
    def elsewhere():
        assert not torch.is_grad_enabled()
        inner = getattr(policy, "policy", policy)
        now = inner.gain.detach().clone()
        inner.gain.copy_(torch.tensor(gain, dtype=now.dtype))
        yield
        inner.gain.copy_(now)

    return elsewhere


def update(policy, batches, *, lr=0.1, old=(OLD,), reference=None, **changes):
    """Update by plain gradient descent; return the metrics."""
    parameters = list(getattr(policy, "policy", policy).parameters())
    metrics, _ = update_forward(
        policy, torch.optim.SGD(parameters, lr=lr), batches, objective, parameters=parameters,
        world=World(),
        settings=ReplaySettings(**{"guidance_scale": GUIDANCE, "max_grad_norm": 1e9, **changes}),
        old=at(policy, *old), reference=None if reference is None else at(policy, *reference),
    )  # fmt: skip
    return metrics


def slow(batch, gain, *, kl):
    """Evaluate loss and derivative in plain floats, the scales of the errors held fixed."""
    losses, slopes = [], []
    for index, t in enumerate(LEVELS):
        for place in torch.ones_like(batch.advantage).nonzero().tolist():
            place = tuple(place)
            advantage = max(-CLIP, min(CLIP, batch.advantage[place].item()))
            good = advantage / CLIP / 2 + 0.5
            clean = batch.clean[place].flatten().tolist()
            noise = batch.noise[index][place].flatten().tolist()
            loss = slope = 0.0
            for sign, share in ((1.0, good), (-1.0, 1.0 - good)):
                errors, moved = [], []
                for x0, e in zip(clean, noise, strict=True):
                    x = (1 - t) * x0 + t * e
                    new, old = (velocity(g, x, 1000 * t) for g in (gain, OLD))
                    errors.append(x - t * (old + sign * MIX * (new - old)) - x0)
                    moved.append(-t * sign * MIX * x)
                size = sum(map(abs, errors)) / len(errors)
                pairs = list(zip(errors, moved, strict=True))
                loss += CLIP * share * sum(e * e for e in errors) / len(errors) / size / MIX
                slope += CLIP * share * sum(2 * e * m for e, m in pairs) / len(pairs) / size / MIX
            for x0, e in zip(clean, noise, strict=True):
                x = (1 - t) * x0 + t * e
                apart = (gain - HOME) * x
                loss += kl * apart**2 / len(clean)
                slope += kl * 2 * apart * x / len(clean)
            losses.append(loss)
            slopes.append(slope)
    return sum(losses) / len(losses), sum(slopes) / len(slopes)


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [None, (HOME,)])
def test_one_step_equals_the_gradient_by_hand(reference):
    """One parameter, old and reference velocities elsewhere, in plain floats."""
    policy, batch = LinearPolicy(GAIN), batch_of()
    loss, slope = slow(batch, GAIN, kl=0.0 if reference is None else KL)
    metrics = update(policy, [batch], reference=reference)

    assert metrics["loss"] == pytest.approx(loss, rel=1e-6)  # the timestep is made in fp32
    assert policy.gain.item() == pytest.approx(GAIN - 0.1 * slope, rel=1e-6)
    assert metrics["grad_norm"] == pytest.approx(abs(slope), rel=1e-6)
    good = (batch.advantage.clamp(-CLIP, CLIP) / CLIP / 2 + 0.5).mean().item()
    assert metrics["optimality"] == pytest.approx(good, rel=1e-12)
    assert metrics.keys() == {"loss", "grad_norm", "optimality"}


# -- laws --------------------------------------------------------------------------------


def test_slices_add_up_to_the_mean_over_all():
    """Two slices in one optimiser step move the parameters as one slice of both does."""
    gains, old = (0.5, 0.2, -0.1), (0.4, 0.3, 0.0)
    one, two = LinearPolicy(*gains), LinearPolicy(*gains)
    whole = batch_of((0, 1))
    parts = [
        batch_of(
            (i,), clean=whole.clean[:, i : i + 1], noise=whole.noise[:, :, i : i + 1],
            advantage=whole.advantage[:, i : i + 1],
        )
        for i in range(2)
    ]  # fmt: skip
    metrics = [update(one, [whole], old=old), update(two, parts, old=old)]

    torch.testing.assert_close(one.gain, two.gain, rtol=1e-12, atol=1e-14)
    assert metrics[0]["loss"] == pytest.approx(metrics[1]["loss"], rel=1e-12)
    assert one.gain[2] == gains[2]


def test_every_level_is_called_once_a_policy():
    """At its own timestep; only the policy that learns is asked with gradient."""
    policy = Recorded(LinearPolicy(GAIN))
    update(policy, [batch_of()], reference=(HOME,), epochs=2)
    told = [(round(call.timestep[0]), call.with_gradient) for call in policy.calls]
    once = [(900, False), (900, False), (900, True), (300, False), (300, False), (300, True)]

    assert told == once * 2
    assert {call.rows for call in policy.calls} == {3 * 2 * 2}
    assert {call.guidance_scale for call in policy.calls} == {GUIDANCE}


def test_optimiser_steps_share_the_slices_out():
    """The second one starts from what the first one left."""
    batches = [batch_of((0,), seed=n) for n in (3, 7)]
    both, one = LinearPolicy(GAIN), LinearPolicy(GAIN)
    update(both, batches, optimizer_steps=2)
    for batch in batches:
        update(one, [batch])

    assert torch.equal(both.gain, one.gain)


def test_samples_as_good_as_each_other_ask_for_nothing():
    """Both fits pull apart as hard, but for their rounding, which may vanish."""
    alike = batch_of(advantage=torch.zeros(3, 2, SHAPE[0], dtype=torch.float64))
    metrics = update(DetachedPolicy(GAIN), [alike])

    assert metrics["idle_steps"] == 1.0


# -- errors ------------------------------------------------------------------------------


def test_the_reference_alone_asks_for_a_change():
    """Where no sample is better than another."""
    alike = batch_of(advantage=torch.zeros(3, 2, SHAPE[0], dtype=torch.float64))
    with pytest.raises(ZeroGradientError):
        update(DetachedPolicy(GAIN), [alike], reference=(HOME,))


def test_a_good_slice_beside_an_average_one_asks_for_a_change():
    """An advantage is enough that one sample has."""
    alike = batch_of(advantage=torch.zeros(3, 2, SHAPE[0], dtype=torch.float64))
    with pytest.raises(ZeroGradientError):
        update(DetachedPolicy(GAIN), [alike, batch_of((2, 3))])


def test_a_gradient_that_never_arrives_stops_the_run():
    """The loss asks for a change, and none comes of it."""
    with pytest.raises(ZeroGradientError, match="though advantages differ"):
        update(DetachedPolicy(GAIN), [batch_of()])


def test_an_advantage_that_is_no_number_is_named():
    """By object within the iteration, and view; nothing has changed."""
    policy, batch = LinearPolicy(GAIN), batch_of((4, 5))
    batch.advantage[2, 1, 0] = math.nan
    with pytest.raises(NonFiniteError, match=r"`advantage`.* at object 5, view 0"):
        update(policy, [batch])
    assert policy.gain.item() == GAIN


def test_a_velocity_that_is_not_finite_is_named():
    """Such as where a network overflows on one sample."""
    policy, batch = LinearPolicy(GAIN), batch_of((4, 5))
    batch.clean[0, 1, 1] = math.inf
    with pytest.raises(NonFiniteError, match=r"`velocity`.* at object 5, view 1"):
        update(policy, [batch])


def test_a_loss_that_overflows_is_told_with_its_value():
    """Where each number alone is finite: the squares of their distances are not."""
    policy, batch = LinearPolicy(GAIN), batch_of()
    batch.clean.mul_(1e200)
    with pytest.raises(NonFiniteError, match=r"`loss` must be finite; got (inf|nan)"):
        update(policy, [batch])


def test_slices_that_cannot_be_dealt_out_are_refused():
    """One slice for two optimiser steps."""
    with pytest.raises(ValueError, match="`batches` must be a positive multiple of the 2"):
        update(LinearPolicy(GAIN), [batch_of()], optimizer_steps=2)
