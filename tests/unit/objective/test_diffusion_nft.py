"""DiffusionNFT: oracle, laws, gradients, golden values, errors."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from mvczigal_ref.diffusion.flow import flow_latent
from mvczigal_ref.objective.diffusion_nft import (
    AdvantagePart,
    diffusion_nft_loss,
    old_policy_decay,
    optimality,
    part_of_advantage,
)
from tests.golden import constants, names, tensors
from tests.strategies import latents, randn
from tests.unannotated import without_shape_checks

MIX = st.floats(0.05, 2.0)
STATS = (
    "policy_loss",
    "positive_loss",
    "negative_loss",
    "optimality",
    "old_distance",
    "reference_distance",
)


def batch(five, advantages=None, levels=None):
    """Name five latents, and give each row per level and an advantage."""
    shape = five[0].shape[:-3]
    count = shape.numel()
    advantages = advantages or [0.7 * (-1.5) ** k for k in range(count)]
    levels = levels or [0.2 + 0.7 * (k + 1) / (count + 1) for k in range(count)]
    return {
        **dict(
            zip(
                ("velocity", "velocity_old", "velocity_reference", "latent_t", "clean"),
                five,
                strict=True,
            )
        ),
        "level": torch.tensor(levels, dtype=torch.float64).reshape(shape),
        "advantage": torch.tensor(advantages, dtype=torch.float64).reshape(shape),
    }


def call(given_, **how):
    """Call the loss with its one positional argument apart."""
    rest = {name: value for name, value in given_.items() if name != "velocity"}
    return diffusion_nft_loss(given_["velocity"], **rest, **how)


def slow(given_, *, mix, clip, floor):
    """Walk the rows and elements one at a time."""
    rows = {
        name: tensor.reshape(
            -1, *([] if name in ("level", "advantage") else [tensor.shape[-3:].numel()])
        ).tolist()
        for name, tensor in given_.items()
    }
    parts = []
    for k, (t, a) in enumerate(zip(rows["level"], rows["advantage"], strict=True)):
        good = min(max(max(-clip, min(clip, a)) / clip / 2 + 0.5, 0.0), 1.0)
        losses = []
        for sign in (1.0, -1.0):
            errors = []
            for new, old, x, x0 in zip(
                *(rows[n][k] for n in ("velocity", "velocity_old", "latent_t", "clean")),
                strict=True,
            ):
                # The positive policy leans to the new velocity, the negative one away from it.
                v = old + sign * mix * (new - old)
                errors.append(x - t * v - x0)
            size = max(math.fsum(map(abs, errors)) / len(errors), floor)
            losses.append(math.fsum(e * e for e in errors) / len(errors) / size)
        parts.append((good, *losses))
    policy = sum(clip * (r * p + (1 - r) * n) / mix for r, p, n in parts) / len(parts)
    return policy, *(sum(column) / len(parts) for column in zip(*parts, strict=True))


# -- oracle --------------------------------------------------------------------------------


@given(latents(5), MIX, st.floats(0.5, 6.0), st.floats(0.0, 2.0))
def test_loss_weighs_two_scaled_errors_by_optimality(five, mix, clip, beta):
    """Row by row; the distance to the reference is added with its weight."""
    given_ = batch(five)
    loss, stats = call(given_, mix=mix, advantage_clip=clip, kl_weight=beta, weight_floor=1e-5)
    policy, good, positive, negative = slow(given_, mix=mix, clip=clip, floor=1e-5)
    distance = (five[0] - five[2]).square().mean().item()

    assert loss.item() == pytest.approx(policy + beta * distance, rel=1e-10)
    assert stats.policy_loss.item() == pytest.approx(policy, rel=1e-10)
    assert stats.optimality.item() == pytest.approx(good, rel=1e-12)
    assert stats.positive_loss.item() == pytest.approx(positive, rel=1e-10)
    assert stats.negative_loss.item() == pytest.approx(negative, rel=1e-10)
    assert stats.old_distance.item() == pytest.approx(
        (five[0] - five[1]).square().mean().item(), rel=1e-12
    )
    assert stats.reference_distance.item() == pytest.approx(distance, rel=1e-12)


@given(st.floats(-20.0, 20.0), st.floats(0.1, 10.0))
def test_optimality_is_a_share(advantage, clip):
    """Half for the average, 0 and 1 at the clip and beyond."""
    share = optimality(torch.tensor(advantage, dtype=torch.float64), advantage_clip=clip).item()

    assert 0.0 <= share <= 1.0
    assert share == pytest.approx(
        0.0 if advantage <= -clip else 1.0 if advantage >= clip else (advantage / clip + 1) / 2,
        abs=1e-12,
    )


@given(st.floats(-9.0, 9.0))
def test_a_part_of_the_advantage_is_what_its_name_says(advantage):
    """In plain floats, as the released trainer's modes."""
    a = advantage
    expected = {
        "all": a, "positive": max(a, 0.0), "negative": min(a, 0.0), "one": float(a > 0),
        "binary": math.copysign(1.0, a) if a else 0.0,
    }  # fmt: skip
    for part, value in expected.items():
        found = part_of_advantage(torch.tensor(a, dtype=torch.float64), part=part)
        assert found.item() == value
    with without_shape_checks(), pytest.raises(ValueError, match="`part` must be"):
        part_of_advantage(torch.zeros(1), part="half")


@pytest.mark.parametrize("part", get_args(AdvantagePart))
def test_an_advantage_that_is_no_number_is_none_of_its_parts(part):
    """It shows in every part, and so in the loss, which the update refuses."""
    advantage = torch.tensor([math.nan, 1.0], dtype=torch.float64)

    assert part_of_advantage(advantage, part=part).isnan().tolist() == [True, False]


@given(st.integers(0, 10_000), st.floats(0.0, 0.1), st.floats(0.0, 0.999))
def test_the_old_policy_is_kept_more_and_more(epoch, rate, largest):
    """In proportion to the epoch, to a limit; the snapshot itself at first."""
    decay = old_policy_decay(epoch, rate=rate, largest=largest)

    assert decay == pytest.approx(rate * epoch if rate * epoch < largest else largest, rel=1e-12)
    assert old_policy_decay(0, rate=rate, largest=largest) == 0.0


def test_the_schedules_defaults_are_the_published_ones():
    """A thousandth an epoch, to a half."""
    assert old_policy_decay(123) == pytest.approx(0.123, rel=1e-12)
    assert old_policy_decay(501) == 0.5
    told = {"rate": 0.0075, "largest": 0.999, "after": 75}
    assert [old_policy_decay(n, **told) for n in (0, 75)] == [0.0, 0.0]
    assert old_policy_decay(175, **told) == pytest.approx(0.75)
    assert old_policy_decay(10_000, **told) == 0.999


# -- laws ----------------------------------------------------------------------------------


@given(latents(5), MIX, st.floats(-10.0, 10.0))
def test_on_policy_the_value_does_not_depend_on_the_advantages(five, mix, advantage):
    """Both errors are one, weighted by shares that add to 1."""
    given_ = batch((five[0], five[0], *five[2:]))
    loss, stats = call(given_, mix=mix, kl_weight=0.0)
    given_["advantage"] = torch.full_like(given_["advantage"], advantage)
    other, _ = call(given_, mix=mix, kl_weight=0.0)

    assert stats.positive_loss.item() == pytest.approx(stats.negative_loss.item(), rel=1e-9)
    assert loss.item() == pytest.approx(5.0 * stats.positive_loss.item() / mix, rel=1e-9)
    assert other.item() == pytest.approx(loss.item(), rel=1e-9)
    assert stats.old_distance.item() == 0.0


@given(latents(5), MIX)
def test_on_policy_the_gradient_is_the_fit_times_twice_the_share_less_one(five, mix):
    """A good sample attracts, a bad one repels, an average one teaches nothing."""
    velocity = five[0].clone().requires_grad_()
    given_ = batch((velocity, five[0], *five[2:]))
    loss, _ = call(given_, mix=mix, kl_weight=0.0)
    loss.backward()
    lean = (2.0 * optimality(given_["advantage"]) - 1.0)[..., None, None, None]
    t = given_["level"][..., None, None, None]
    error = given_["latent_t"] - t * five[0] - given_["clean"]
    size = error.abs().mean(dim=(-3, -2, -1), keepdim=True)
    expected = 5.0 * lean * (-2.0 * t * error / size) / velocity.numel()

    torch.testing.assert_close(velocity.grad, expected, rtol=1e-8, atol=1e-11)


@given(latents(5), MIX)
def test_turning_the_advantages_over_swaps_the_fits(five, mix):
    """Mirroring the new velocity about the old does the same."""
    given_ = batch(five)
    turned = given_ | {
        "advantage": -given_["advantage"],
        "velocity": 2.0 * five[1] - five[0],
    }
    one, stats = call(given_, mix=mix, kl_weight=0.0)
    two, swapped = call(turned, mix=mix, kl_weight=0.0)

    assert two.item() == pytest.approx(one.item(), rel=1e-9)
    assert swapped.positive_loss.item() == pytest.approx(stats.negative_loss.item(), rel=1e-9)


def test_a_small_error_is_scaled_by_the_floor():
    """A perfect fit costs 0, not 0 / 0; below the floor the error is square again."""
    zero = torch.zeros(1, 1, 1, dtype=torch.float64)
    given_ = batch((zero, zero, zero, zero, zero))
    perfect, _ = call(given_, mix=1.0)
    near, _ = call(given_ | {"clean": zero + 1e-3}, mix=1.0, weight_floor=0.1)

    assert perfect.item() == 0.0
    assert near.item() == pytest.approx(5.0 * 1e-6 / 0.1, rel=1e-12)


def test_the_defaults_of_the_loss_are_the_published_ones():
    """Clip 5, floor 1e-5, and 1e-4 of the distance to the reference."""
    zero = torch.zeros(1, 1, 1, dtype=torch.float64)
    loss, _ = call(batch((zero, zero, zero + 1.0, zero, zero + 1e-6)), mix=1.0)

    assert loss.item() == pytest.approx(5.0 * 1e-12 / 1e-5 + 1e-4, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_the_inputs(dtype):
    """Nothing is widened or narrowed on the way."""
    given_ = {k: v.to(dtype) for k, v in batch(randn(5, 2, 1, 2, 2)).items()}
    loss, stats = call(given_, mix=1.0)

    assert {x.dtype for x in (loss, *(getattr(stats, name) for name in STATS))} == {dtype}


# -- gradients -----------------------------------------------------------------------------


def test_the_size_of_the_error_carries_no_gradient():
    """By hand: twice the error over its size, and not the size's own slope."""
    five = randn(5, 1, 1, 2, 2, dtype=torch.float64)
    given_ = batch(five, advantages=[9.0], levels=[0.5])
    given_["velocity"] = five[0].clone().requires_grad_()
    loss, _ = call(given_, mix=0.5, kl_weight=0.0)
    loss.backward()
    error = five[3] - 0.5 * (0.5 * five[0] + 0.5 * five[1]) - five[4]
    by_hand = 5.0 / 0.5 * 2.0 * error / error.abs().mean() * (-0.5 * 0.5) / 4

    torch.testing.assert_close(given_["velocity"].grad, by_hand, rtol=1e-11, atol=0)


def test_only_the_new_velocity_learns():
    """Not the old one, the reference, the noised latent, the sample or its score."""
    given_ = {
        name: tensor.clone().requires_grad_()
        for name, tensor in batch(randn(5, 2, 1, 2, 2, dtype=torch.float64)).items()
    }
    loss, stats = call(given_, mix=0.5, kl_weight=0.1)
    loss.backward()

    assert [name for name, tensor in given_.items() if tensor.grad is not None] == ["velocity"]
    assert not any(getattr(stats, name).requires_grad for name in STATS)


def test_the_distance_to_the_reference_pulls():
    """Its gradient is that of the mean square; without a weight it is reported only."""
    five = list(randn(5, 2, 1, 2, 2, dtype=torch.float64))
    five[1] = five[0]
    velocity = five[0].clone().requires_grad_()
    given_ = batch((velocity, *five[1:]), advantages=[0.0, 0.0])
    pulled, stats = call(given_, mix=1.0, kl_weight=0.3)
    (gradient,) = torch.autograd.grad(pulled, velocity)
    free, _ = call(given_, mix=1.0, kl_weight=0.0)
    (nothing,) = torch.autograd.grad(free, velocity)

    torch.testing.assert_close(gradient, 0.3 * 2.0 * (five[0] - five[2]) / 8, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(nothing, torch.zeros_like(nothing), rtol=0, atol=1e-14)
    assert stats.reference_distance > 0.0


# -- golden --------------------------------------------------------------------------------


def released(case, dtype):
    """Name what a golden file was made from, its tensors of one precision, and its settings."""
    golden = {name: tensor.to(dtype) for name, tensor in tensors("grpo", case).items()}
    made_with = constants("grpo", case)
    given_ = {
        "velocity": golden["prediction"],
        "velocity_old": golden["old_prediction"],
        "velocity_reference": golden["ref_prediction"],
        "latent_t": golden["xt"],
        "clean": golden["x0"],
        "level": golden["t"],
        "advantage": golden["advantages"],
    }
    how = {
        "mix": made_with["beta"],
        "advantage_clip": made_with["adv_clip_max"],
        "kl_weight": made_with["kl_weight"],
        "weight_floor": made_with["weight_floor"],
    }
    return golden, given_, how


def close(actual, expected, atol=0.0):
    """Compare within what sums of each precision are rounded by."""
    relative = 1e-12 if actual.dtype == torch.float64 else 2e-6
    torch.testing.assert_close(actual, expected.reshape(actual.shape), rtol=relative, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", names("grpo", "diffusion_nft_loss"))
def test_released_trainer(case, dtype):
    """Loss, its parts and its gradient; what the release logs as policy loss is the whole."""
    golden, given_, how = released(case, dtype)
    given_["velocity"] = velocity = given_["velocity"].clone().requires_grad_()
    loss, stats = call(given_, **how)
    loss.backward()

    close(loss.detach(), golden["loss"])
    close(loss.detach(), golden["policy_loss_as_logged"])
    close(stats.policy_loss, golden["policy_loss"])
    close(stats.positive_loss, golden["positive_loss"].mean())
    close(stats.negative_loss, golden["negative_loss"].mean())
    close(stats.reference_distance, golden["kl_div_loss"])
    close(optimality(given_["advantage"], advantage_clip=how["advantage_clip"]), golden["r"])
    # Errors of one element are differences that cancel in places: relative to the largest.
    relative = 1e-12 if dtype == torch.float64 else 2e-6
    close(
        velocity.grad, golden["grad_prediction"], relative * golden["grad_prediction"].abs().max()
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", names("grpo", "diffusion_nft_loss"))
def test_released_trainer_row_by_row(case, dtype):
    """Both errors, what they are divided by, and the share of each sample by itself."""
    golden, given_, how = released(case, dtype)
    floor = 1e3  # above every error, so that it is what errors are divided by
    for row in range(len(golden["t"])):
        alone = {name: tensor[row : row + 1] for name, tensor in given_.items()}
        _, stats = call(alone, **how)
        _, floored = call(alone, **how | {"weight_floor": floor})

        close(stats.positive_loss, golden["positive_loss"][row])
        close(stats.negative_loss, golden["negative_loss"][row])
        close(stats.optimality, golden["r"][row])
        close(floor * floored.positive_loss / stats.positive_loss, golden["weight_factor"][row])
        close(
            floor * floored.negative_loss / stats.negative_loss,
            golden["negative_weight_factor"][row],
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", names("grpo", "diffusion_nft_loss"))
def test_released_trainer_noises_samples_alike(case, dtype):
    """The latent that the velocities are asked at."""
    golden, given_, _ = released(case, dtype)
    mixed = flow_latent(golden["x0"], golden["noise"], sigma=golden["t"])

    # Sums of two terms cancel in places: relative to the largest.
    relative = 1e-12 if dtype == torch.float64 else 2e-6
    close(mixed, given_["latent_t"], relative * golden["xt"].abs().max())


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mix": 0.0}, "`mix` must be positive and finite; got 0.0"),
        ({"mix": math.nan}, "`mix` must be positive and finite; got nan"),
        ({"weight_floor": 0.0}, "`weight_floor` must be positive and finite; got 0.0"),
        ({"advantage_clip": 0.0}, "`advantage_clip` must be positive and finite; got 0.0"),
        ({"advantage_clip": math.inf}, "`advantage_clip` must be positive and finite; got inf"),
        ({"kl_weight": -1.0}, "`kl_weight` must be finite and not negative; got -1.0"),
        ({"kl_weight": math.inf}, "`kl_weight` must be finite and not negative; got inf"),
        (
            {"velocity_reference": None, "kl_weight": 0.1},
            "`velocity_reference` must be given where `kl_weight` is positive; got None and 0.1",
        ),
    ],
)
def test_refuses_a_setting_out_of_range(settings, message):
    """By name, rule and value."""
    given_ = batch(randn(5, 1, 1, 1, dtype=torch.float64))
    with pytest.raises(ValueError, match=message):
        call(given_ | {"mix": 1.0} | settings)


def test_needs_no_reference_without_its_weight():
    """Then none is computed."""
    given_ = batch(randn(5, 1, 1, 1, dtype=torch.float64)) | {"velocity_reference": None}
    _, stats = call(given_, mix=1.0, kl_weight=0.0)

    assert stats.reference_distance.item() == 0.0


NAMES = (
    "velocity",
    "velocity_old",
    "velocity_reference",
    "latent_t",
    "clean",
    "level",
    "advantage",
)


@pytest.mark.parametrize("name", NAMES)
def test_refuses_half_precision(name):
    """Of any tensor."""
    given_ = batch(randn(5, 2, 1, 2, 2, dtype=torch.float64))
    given_[name] = given_[name].half()
    with pytest.raises(ValueError, match=rf"`{name}` must be float32 or float64"):
        call(given_, mix=1.0)


@pytest.mark.parametrize("name", NAMES[1:])
def test_refuses_what_would_broadcast(name):
    """With and without the annotations' own check."""
    given_ = batch(randn(5, 2, 1, 2, 2, dtype=torch.float64))
    given_[name] = given_[name][:1]
    with pytest.raises(TypeCheckError):
        call(given_, mix=1.0)
    with without_shape_checks(), pytest.raises(ValueError, match=rf"`{name}` must have shape"):
        call(given_, mix=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epoch": -1}, "`epoch` must not be negative; got -1"),
        ({"epoch": 1, "rate": -0.1}, "`rate` must be finite and not negative; got -0.1"),
        ({"epoch": 1, "rate": math.inf}, "`rate` must be finite and not negative; got inf"),
        ({"epoch": 1, "largest": 1.0}, r"`largest` must be in \[0, 1\); got 1.0"),
        ({"epoch": 1, "after": -1}, "`after` must not be negative; got -1"),
        ({"epoch": 1, "largest": -0.1}, r"`largest` must be in \[0, 1\); got -0.1"),
    ],
)
def test_refuses_a_schedule_out_of_range(arguments, message):
    """An old policy that never moves would not follow."""
    with pytest.raises(ValueError, match=message):
        old_policy_decay(**arguments)


def test_refuses_a_loss_of_nothing():
    """Its mean would be NaN."""
    given_ = batch(randn(5, 0, 1, 2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"`velocity` must not be empty; got shape \(0, 1, 2, 2\)"):
        call(given_, mix=1.0)
