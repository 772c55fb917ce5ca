"""The clipped surrogate and its divergence: oracle, laws, gradients, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from mvczigal_ref.objective.clipped import (
    clipped_surrogate_loss,
    reference_kl,
    reference_kl_without_step_length,
    tempflow_step_weights,
)
from tests.scaffold import gaussian_grid, policy_gradient
from tests.strategies import latents, randn
from tests.unannotated import without_shape_checks
from tests.unit.objective.strategies import same_shape
from tests.unit.test_scaffold import (
    LAYOUTS,
    SIZES,
    assert_scaled,
    expected_gradient,
    fixed,
    log_ratio,
    make,
    rollouts,
)

CLIP = st.floats(1e-3, 3.0)
STATS = ("approx_kl", "clip_fraction", "surrogate", "reference_kl")


def flat(*tensors):
    """Walk some tensors together, as floats."""
    return list(zip(*(tensor.flatten().tolist() for tensor in tensors), strict=True))


def slow(log_ratio, advantage, bound):
    """One sample's term, from the ratio itself."""
    ratio = math.exp(log_ratio)
    near = max(1.0 - bound, min(1.0 + bound, ratio))
    return max(-advantage * ratio, -advantage * near)


def mean(values):
    """Mean without rounding on the way."""
    return math.fsum(values) / len(values)


# -- oracle --------------------------------------------------------------------------------


@given(same_shape(4), CLIP, st.floats(0.0, 2.0))
def test_loss_is_the_mean_of_the_worse_term_and_the_divergence(tensors, bound, beta):
    """Weights are the terms' alone, the divergence has its own."""
    ratio, advantage, weight, kl = tensors
    loss, stats = clipped_surrogate_loss(
        ratio, advantage, clip_range=bound, weight=weight, kl=kl, kl_weight=beta
    )
    terms = [w * slow(r, a, bound) for r, a, w in flat(ratio, advantage, weight)]

    assert loss.shape == ()
    assert stats.surrogate.item() == pytest.approx(mean(terms), rel=1e-11, abs=1e-13)
    assert stats.reference_kl.item() == pytest.approx(mean(kl.flatten().tolist()), abs=1e-13)
    assert loss.item() == pytest.approx(
        mean(terms) + beta * mean(kl.flatten().tolist()), rel=1e-11, abs=1e-13
    )


@given(same_shape(2), CLIP)
def test_without_weights_every_term_counts_one(tensors, bound):
    """And without a divergence it is reported as 0."""
    loss, stats = clipped_surrogate_loss(*tensors, clip_range=bound)
    terms = [slow(r, a, bound) for r, a in flat(*tensors)]

    assert loss.item() == pytest.approx(mean(terms), rel=1e-11, abs=1e-13)
    assert stats.reference_kl.item() == 0.0


@given(same_shape(2), CLIP)
def test_diagnostics_count_ratios_beyond_either_bound(tensors, bound):
    """Whatever the advantage: a ratio is counted when it lies strictly outside."""
    _, stats = clipped_surrogate_loss(*tensors, clip_range=bound)
    ratios = tensors[0].flatten().tolist()

    assert stats.approx_kl.item() == pytest.approx(mean([r * r for r in ratios]) / 2, rel=1e-12)
    assert stats.clip_fraction.item() == pytest.approx(
        mean([abs(math.expm1(r)) > bound for r in ratios]), rel=1e-12
    )


@given(latents(2), st.floats(0.05, 3.0), st.floats(0.01, 1.0))
def test_divergence_is_half_the_squared_distance_in_spreads(pair, std, step):
    """Per element; the sum and the mean are of those; the released one times the step."""
    mean_new, mean_ref = pair
    per_element = [(a - b) ** 2 / (2.0 * std**2) for a, b in flat(mean_new, mean_ref)]
    count = mean_new[..., 0, 0, 0].numel()
    rows = torch.tensor(per_element, dtype=torch.float64).reshape(count, -1)
    shape = mean_new.shape[:-3]
    expected = {
        "none": rows.reshape(mean_new.shape),
        "sum": rows.sum(dim=-1).reshape(shape),
        "mean": rows.mean(dim=-1).reshape(shape),
    }
    steps = step * torch.arange(1.0, count + 1.0, dtype=torch.float64).reshape(shape)
    for reduction, target in expected.items():
        true = reference_kl(mean_new, mean_ref, std=std, reduction=reduction)
        torch.testing.assert_close(true, target, rtol=1e-12, atol=1e-14)
        for length in (step, steps):
            released = reference_kl_without_step_length(
                mean_new, mean_ref, std=std, step_length=length, reduction=reduction
            )
            factor = torch.as_tensor(length, dtype=torch.float64)
            factor = factor[..., None, None, None] if reduction == "none" else factor
            torch.testing.assert_close(released, target * factor, rtol=1e-12, atol=1e-14)


@given(st.floats(0.05, 2.0), st.floats(0.01, 1.0))
def test_released_divergence_divides_by_the_noise_of_a_unit_step(sigma, step):
    """The spread of a unit step is the transition's over the root of its length."""
    new, reference = randn(2, 3, 2, 2, 2, dtype=torch.float64)
    released = reference_kl_without_step_length(
        new, reference, std=sigma * math.sqrt(step), step_length=step, reduction="mean"
    )
    expected = (new - reference).square().mean(dim=(1, 2, 3)) / (2.0 * sigma**2)

    torch.testing.assert_close(released, expected, rtol=1e-12, atol=0)


@given(st.lists(st.floats(1e-3, 10.0), min_size=1, max_size=6))
def test_step_weights_follow_the_spread_and_average_to_one(spreads):
    """Ratios of weights are ratios of spreads."""
    weights = tempflow_step_weights(torch.tensor(spreads, dtype=torch.float64)).tolist()

    assert mean(weights) == pytest.approx(1.0, rel=1e-12)
    assert weights == pytest.approx([s / mean(spreads) for s in spreads], rel=1e-12)


# -- laws ----------------------------------------------------------------------------------


@given(same_shape(1), CLIP)
def test_on_policy_loss_is_minus_the_mean_advantage(tensors, bound):
    """Where the policy made the samples every ratio is 1."""
    (advantage,) = tensors
    loss, stats = clipped_surrogate_loss(torch.zeros_like(advantage), advantage, clip_range=bound)

    assert loss.item() == pytest.approx(-advantage.mean().item(), rel=1e-12)
    assert stats.approx_kl.item() == 0.0
    assert stats.clip_fraction.item() == 0.0


@given(same_shape(2), CLIP)
def test_clipping_never_flatters(tensors, bound):
    """The clipped loss is at least the unclipped one, which an infinite range is."""
    ratio, advantage = tensors
    clipped, _ = clipped_surrogate_loss(*tensors, clip_range=bound)
    free, stats = clipped_surrogate_loss(*tensors, clip_range=math.inf)

    assert clipped.item() >= free.item() - 1e-14
    assert free.item() == pytest.approx(-(advantage * ratio.exp()).mean().item(), abs=1e-12)
    assert stats.clip_fraction.item() == 0.0


@given(same_shape(2), CLIP, st.randoms())
def test_the_order_of_samples_does_not_matter(tensors, bound, random):
    """Samples of a group, steps of a rollout: all are one batch."""
    order = list(range(tensors[0].numel()))
    random.shuffle(order)
    one, _ = clipped_surrogate_loss(*tensors, clip_range=bound)
    two, _ = clipped_surrogate_loss(*(x.flatten()[order] for x in tensors), clip_range=bound)

    assert two.item() == pytest.approx(one.item(), rel=1e-11, abs=1e-13)


@pytest.mark.parametrize("bound", [1e-5, 2e-6])
def test_a_tiny_range_is_met_in_single_precision(bound):
    """The change of a ratio is exact to seven digits, the ratio itself to one."""
    inside, outside = (math.log1p(bound * share) for share in (0.999, 1.001))
    ratio = torch.tensor([inside, outside, -inside, -outside], dtype=torch.float32)
    ratio.requires_grad_()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0])
    loss, stats = clipped_surrogate_loss(ratio, advantage, clip_range=bound)
    loss.backward()

    assert stats.clip_fraction.item() == 0.5
    assert (ratio.grad != 0.0).tolist() == [True, False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_ratio_that_no_float_holds_is_clipped_all_the_same(dtype):
    """What it would be is infinite; what is left of it is the range, without a derivative."""
    ratio = torch.tensor([1e3, 1e3, -1e3], dtype=dtype).requires_grad_()
    advantage = torch.tensor([2.0, 0.0, -1.0], dtype=dtype)
    loss, stats = clipped_surrogate_loss(ratio, advantage, clip_range=0.25)
    loss.backward()

    assert loss.item() == pytest.approx((-2.0 * 1.25 + 0.0 + 0.75) / 3)
    assert ratio.grad.tolist() == [0.0, 0.0, 0.0]
    assert stats.clip_fraction.item() == 1.0


def test_without_a_clip_a_sample_without_advantage_teaches_nothing():
    """Not even where its ratio is infinite."""
    ratio = torch.tensor([1e3, 0.5]).requires_grad_()
    loss, _ = clipped_surrogate_loss(ratio, torch.tensor([0.0, 1.0]), clip_range=math.inf)
    loss.backward()

    assert loss.item() == pytest.approx(-math.exp(0.5) / 2)
    assert ratio.grad.tolist() == [0.0, pytest.approx(-math.exp(0.5) / 2)]


@pytest.mark.parametrize("place", range(2))
def test_a_nan_is_passed_on(place):
    """The maximum does not hide a broken number from whoever looks at the loss."""
    tensors = [torch.zeros(2), torch.ones(2)]
    tensors[place][1] = math.nan
    loss, _ = clipped_surrogate_loss(*tensors, clip_range=0.1)

    assert loss.isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_the_inputs(dtype):
    """Nothing is widened or narrowed on the way."""
    one = torch.ones(2, dtype=dtype)
    loss, stats = clipped_surrogate_loss(
        one, one, clip_range=0.1, weight=one, kl=one, kl_weight=1.0
    )
    mean_new = torch.ones(1, 2, 2, dtype=dtype)
    wide = torch.tensor(0.5, dtype=torch.float64)
    released = reference_kl_without_step_length(
        mean_new, mean_new, std=1.0, step_length=wide, reduction="mean"
    )

    assert {x.dtype for x in (loss, released, *(getattr(stats, n) for n in STATS))} == {dtype}


# -- gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize("advantage", [0.7, -0.7])
@pytest.mark.parametrize(
    ("change", "moved_as_wished"),
    [(0.05, None), (-0.05, None), (0.3, 1.0), (-0.3, -1.0)],
)
def test_only_a_ratio_beyond_the_range_on_the_wished_side_stops(advantage, change, moved_as_wished):
    """Inside, and outside on the wrong side, the derivative is minus advantage times ratio."""
    ratio = torch.tensor(math.log1p(change), dtype=torch.float64, requires_grad=True)
    loss, _ = clipped_surrogate_loss(
        ratio, torch.tensor(advantage, dtype=torch.float64), clip_range=0.1
    )
    loss.backward()
    stops = moved_as_wished is not None and moved_as_wished * advantage > 0.0

    assert ratio.grad.item() == pytest.approx(
        0.0 if stops else -advantage * (1.0 + change), rel=1e-12
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dim", "steps"), SIZES)
def test_rewards_as_advantages_give_the_policy_gradient(dim, steps, layout):
    """On policy, minus the analytic gradient over the count, however narrow the range."""
    policy, reward, start = make(dim, steps)
    noise, weights = gaussian_grid(steps, dim)
    states = rollouts(policy, start, noise)
    ratio = LAYOUTS[layout](log_ratio(policy, states))
    scores = reward(states[:, -1])
    advantage = scores.reshape(-1, *(1,) * (ratio.ndim - 1)).expand(ratio.shape)
    losses = torch.func.vmap(lambda r, a: clipped_surrogate_loss(r, a, clip_range=1e-6)[0])(
        ratio, advantage
    )

    assert_scaled(
        expected_gradient(policy, losses, weights),
        -1.0 / ratio[0].numel(),
        policy_gradient(policy, reward, start, fixed(start)),
    )


@pytest.mark.parametrize(("dim", "steps"), SIZES[:2])
def test_a_groups_own_mean_leaves_the_direction(dim, steps):
    """A baseline that holds the sample's own reward shortens the gradient by 1 / G."""
    policy, reward, start = make(dim, steps)
    noise, weights = gaussian_grid(2, steps, dim)
    arms = [rollouts(policy, start, noise[:, arm]) for arm in range(2)]
    scores = torch.stack([reward(states[:, -1]) for states in arms], dim=-1)
    ratio = torch.stack([log_ratio(policy, states).sum(dim=(1, 2)) for states in arms], dim=-1)
    advantage = scores - scores.mean(dim=-1, keepdim=True)
    losses = torch.func.vmap(lambda r, a: clipped_surrogate_loss(r, a, clip_range=1e-6)[0])(
        ratio, advantage
    )

    assert_scaled(
        expected_gradient(policy, losses, weights),
        -(1.0 - 1.0 / 2.0),
        policy_gradient(policy, reward, start, fixed(start)),
    )


def test_derivatives_agree_with_finite_differences():
    """Clipped and free ratios of both signs, weights, and the divergence."""
    ratio = torch.tensor([0.05, 0.30, -0.20, 0.02], dtype=torch.float64, requires_grad=True)
    kl = torch.tensor([0.5, 0.1, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    advantage = torch.tensor([1.0, 0.1, 2.0, -3.0], dtype=torch.float64)
    weight = torch.tensor([1.0, 0.5, 2.0, 0.3], dtype=torch.float64)

    assert torch.autograd.gradcheck(
        lambda r, d: clipped_surrogate_loss(
            r, advantage, clip_range=0.1, weight=weight, kl=d, kl_weight=0.4
        )[0],
        (ratio, kl),
    )


@pytest.mark.parametrize("divergence", ["true", "released"])
def test_the_divergence_pulls_towards_the_reference(divergence):
    """With no advantage at all the policy's mean moves, the reference's does not."""
    policy, reference = randn(2, 2, 1, 2, 2, dtype=torch.float64)
    policy.requires_grad_()
    reference.requires_grad_()
    how = {"std": 0.5, "reduction": "sum"}
    kl = (
        reference_kl(policy, reference, **how)
        if divergence == "true"
        else reference_kl_without_step_length(policy, reference, **how, step_length=0.25)
    )
    zero = torch.zeros(2, dtype=torch.float64)
    loss, _ = clipped_surrogate_loss(zero, zero, clip_range=0.1, kl=kl, kl_weight=0.04)
    loss.backward()
    scale = 0.04 / 2.0 / 0.5**2 * (1.0 if divergence == "true" else 0.25)

    torch.testing.assert_close(
        policy.grad, scale * (policy - reference).detach(), rtol=1e-12, atol=0
    )
    assert reference.grad is None


def test_divergence_agrees_with_finite_differences():
    """By the policy's mean, each reduction."""
    policy, reference = randn(2, 2, 1, 2, 1, dtype=torch.float64)
    for reduction in ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(
            lambda m, how=reduction: reference_kl(m, reference, std=0.7, reduction=how),
            (policy.clone().requires_grad_(),),
        )


def test_no_gradient_reaches_advantages_weights_or_diagnostics():
    """Only the policy learns, and what is logged keeps no graph alive."""
    ratio, advantage, weight, kl = (
        torch.tensor([x], requires_grad=True) for x in (0.05, 1.0, 2.0, 0.5)
    )
    loss, stats = clipped_surrogate_loss(
        ratio, advantage, clip_range=0.25, weight=weight, kl=kl, kl_weight=0.5
    )
    loss.backward()

    assert advantage.grad is None
    assert weight.grad is None
    assert kl.grad.item() == 0.5
    assert not any(getattr(stats, name).requires_grad for name in STATS)


def test_a_divergence_without_weight_is_reported_and_does_not_pull():
    """So that a run without the penalty can still show how far it went."""
    kl = torch.tensor([0.5, 1.5], requires_grad=True)
    ratio = torch.zeros(2, requires_grad=True)
    loss, stats = clipped_surrogate_loss(ratio, torch.zeros(2), clip_range=0.1, kl=kl)
    loss.backward()

    assert stats.reference_kl.item() == 1.0
    assert kl.grad is None


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_range": 0.0}, "`clip_range` must be positive; got 0.0; `math.inf`"),
        ({"clip_range": math.nan}, "`clip_range` must be positive; got nan"),
        ({"kl_weight": -0.1}, "`kl_weight` must be finite and not negative; got -0.1"),
        ({"kl_weight": math.inf}, "`kl_weight` must be finite and not negative; got inf"),
        ({"kl_weight": math.nan}, "`kl_weight` must be finite and not negative; got nan"),
        ({"kl_weight": 0.1}, "`kl` must be given where `kl_weight` is positive; got 0.1"),
    ],
)
def test_refuses_a_setting_out_of_range(settings, message):
    """A weight without its divergence would do nothing."""
    with pytest.raises(ValueError, match=message):
        clipped_surrogate_loss(torch.zeros(1), torch.zeros(1), **{"clip_range": 0.1, **settings})


@pytest.mark.parametrize("name", ["log_ratio", "advantage", "weight", "kl"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_refuses_half_precision(name, dtype):
    """Rounding alone would exceed the clip range."""
    tensors = {key: torch.zeros(2) for key in ("log_ratio", "advantage", "weight", "kl")}
    tensors[name] = tensors[name].to(dtype)
    with pytest.raises(ValueError, match=rf"`{name}` must be float32 or float64"):
        clipped_surrogate_loss(**tensors, clip_range=0.1)


@pytest.mark.parametrize("name", ["advantage", "weight", "kl"])
def test_refuses_what_would_broadcast(name):
    """With and without the annotations' own check."""
    tensors = {key: torch.zeros(2, 3) for key in ("log_ratio", "advantage", "weight", "kl")}
    tensors[name] = torch.zeros(3)
    with pytest.raises(TypeCheckError):
        clipped_surrogate_loss(**tensors, clip_range=0.1)
    with without_shape_checks(), pytest.raises(ValueError, match=rf"`{name}` must have the shape"):
        clipped_surrogate_loss(**tensors, clip_range=0.1)


@pytest.mark.parametrize("bad", [0.0, -0.1, math.inf, math.nan])
def test_refuses_a_step_of_no_length(bad):
    """Levels descend."""
    one = torch.ones(1, 1, 1)
    with pytest.raises(ValueError, match=rf"`step_length` must be positive and finite; got {bad}"):
        reference_kl_without_step_length(one, one, std=1.0, step_length=bad, reduction="mean")


def test_refuses_a_divergence_without_spread():
    """By the name that the caller knows it by."""
    one = torch.ones(1, 1, 1)
    with pytest.raises(ValueError, match=r"`std` must be positive and finite; got 0.0"):
        reference_kl(one, one, std=0.0, reduction="mean")


@pytest.mark.parametrize("bad", [[], [0.1, 0.0], [-0.1], [math.nan], [math.inf]])
def test_refuses_spreads_that_weigh_nothing(bad):
    """A step that draws nothing is not trained."""
    with pytest.raises(ValueError, match="`std` must hold positive finite numbers, at least one"):
        tempflow_step_weights(torch.tensor(bad))
    with pytest.raises(ValueError, match="`std` must be float32 or float64"):
        tempflow_step_weights(torch.ones(2, dtype=torch.float16))


def test_refuses_a_loss_of_nothing():
    """Its mean would be NaN."""
    empty = torch.zeros(2, 0)
    with pytest.raises(ValueError, match=r"`log_ratio` must not be empty; got shape \(2, 0\)"):
        clipped_surrogate_loss(empty, empty, clip_range=0.1)
