"""The surrogate over several conditions: oracle, laws, gradients, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from mvczigal_ref.advantage.group import group_advantages
from mvczigal_ref.objective.augmented_conditions import (
    augmented_conditions_loss,
    probability_drift,
)
from mvczigal_ref.objective.clipped import clipped_surrogate_loss
from tests.strategies import randn
from tests.unannotated import without_shape_checks
from tests.unit.objective.strategies import vectors

CLIP = st.floats(1e-3, 3.0)


@st.composite
def groups(draw, *, smallest=1, largest=3):
    """Draw log-ratios ``(condition, sample, step)`` and advantages ``(condition, sample)``."""
    shape = (draw(st.integers(smallest, largest)), draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    ratio = draw(vectors(math.prod(shape), low=-1.0, high=1.0)).reshape(shape)
    return ratio, draw(vectors(shape[0] * shape[1], low=-2.0, high=2.0)).reshape(shape[:2])


def term(log_ratio, advantage, bound):
    """One sample's loss at one step under one condition."""
    ratio = math.exp(log_ratio)
    return max(-advantage * ratio, -advantage * max(1.0 - bound, min(1.0 + bound, ratio)))


def plain(log_ratio, advantage, **how):
    """GRPO under one condition."""
    return clipped_surrogate_loss(log_ratio, advantage[:, None].expand_as(log_ratio), **how)


# -- oracle --------------------------------------------------------------------------------


@given(groups(), CLIP, st.lists(st.floats(0.1, 5.0), min_size=3, max_size=3), st.booleans())
def test_loss_is_a_weighted_mean_of_means(group, bound, weights, by_step):
    """Over conditions by weight, over samples and steps alike or with the steps' own."""
    ratio, advantage = group
    conditions, samples, steps = ratio.shape
    shares = weights[:conditions]
    step_weights = [0.5, 2.0, 1.3][:steps] if by_step else [1.0] * steps
    loss, stats = augmented_conditions_loss(
        ratio,
        advantage,
        clip_range=bound,
        condition_weight=torch.tensor(shares, dtype=torch.float64),
        step_weight=torch.tensor(step_weights, dtype=torch.float64) if by_step else None,
    )
    total = 0.0
    for k in range(conditions):
        for i in range(samples):
            for t in range(steps):
                value = term(ratio[k, i, t].item(), advantage[k, i].item(), bound)
                total += shares[k] / sum(shares) * step_weights[t] * value / samples / steps

    assert loss.item() == pytest.approx(total, rel=1e-10, abs=1e-13)
    assert stats.surrogate.item() == pytest.approx(total, rel=1e-10, abs=1e-13)
    assert stats.approx_kl.item() == pytest.approx(ratio.square().mean().item() / 2, rel=1e-12)


@given(groups(), st.integers(1, 2))
def test_drift_is_the_distance_to_the_prompts_own_density(group, prompts):
    """For every prompt, condition but the first, sample and step."""
    log_prob = torch.stack([group[0], group[0].flip(0)][:prompts])
    drift = probability_drift(log_prob)
    expected = [
        abs(log_prob[p, k, i, t].item() - log_prob[p, 0, i, t].item())
        for p in range(prompts)
        for k in range(1, log_prob.shape[1])
        for i in range(log_prob.shape[2])
        for t in range(log_prob.shape[3])
    ]

    assert drift.shape == (prompts, log_prob.shape[1] - 1, *log_prob.shape[2:])
    assert drift.flatten().tolist() == pytest.approx(expected, rel=1e-12)


# -- laws ----------------------------------------------------------------------------------


@given(groups(largest=1), CLIP)
def test_no_augmented_condition_is_plain_grpo(group, bound):
    """To the last bit, value and diagnostics, whatever the one weight."""
    ratio, advantage = group
    loss, stats = plain(ratio[0], advantage[0], clip_range=bound)
    for weight in (None, torch.tensor([0.3], dtype=torch.float64)):
        augmented, more = augmented_conditions_loss(
            ratio, advantage, clip_range=bound, condition_weight=weight
        )
        assert torch.equal(augmented, loss)
        assert torch.equal(more.approx_kl, stats.approx_kl)
        assert torch.equal(more.clip_fraction, stats.clip_fraction)


@given(groups(largest=1), CLIP, st.integers(2, 5), st.booleans())
def test_equal_conditions_are_plain_grpo(group, bound, count, weighted):
    """A caption that says what the prompt says changes nothing, at any weights."""
    ratio, advantage = group
    weight = torch.arange(1.0, count + 1.0, dtype=torch.float64) if weighted else None
    loss, _ = plain(ratio[0], advantage[0], clip_range=bound)
    augmented, _ = augmented_conditions_loss(
        ratio.expand(count, -1, -1),
        advantage.expand(count, -1),
        clip_range=bound,
        condition_weight=weight,
    )

    assert augmented.item() == pytest.approx(loss.item(), rel=1e-11, abs=1e-13)


@given(groups(smallest=2), CLIP)
def test_no_weights_are_equal_weights(group, bound):
    """And only their ratios count."""
    ratio, advantage = group
    loss, _ = augmented_conditions_loss(ratio, advantage, clip_range=bound)
    for scale in (1.0, 7.0):
        weighted, _ = augmented_conditions_loss(
            ratio,
            advantage,
            clip_range=bound,
            condition_weight=torch.full(ratio.shape[:1], scale, dtype=torch.float64),
        )
        assert weighted.item() == pytest.approx(loss.item(), rel=1e-11, abs=1e-13)


@given(groups(smallest=2), CLIP)
def test_a_condition_of_weight_zero_is_not_there(group, bound):
    """Neither its value nor its gradient."""
    ratio, advantage = group
    weight = torch.ones(len(ratio), dtype=torch.float64)
    weight[-1] = 0.0
    ratio.requires_grad_()
    loss, _ = augmented_conditions_loss(ratio, advantage, clip_range=bound, condition_weight=weight)
    loss.backward()
    fewer, _ = augmented_conditions_loss(ratio[:-1], advantage[:-1], clip_range=bound)

    assert loss.item() == pytest.approx(fewer.item(), rel=1e-11, abs=1e-13)
    assert ratio.grad[-1].abs().max() == 0.0


@given(groups(smallest=2), CLIP, st.randoms())
def test_the_order_of_samples_and_of_conditions_does_not_matter(group, bound, random):
    """The first condition is the prompt, yet it counts as the others do."""
    ratio, advantage = group
    conditions, samples = (random.sample(range(n), n) for n in advantage.shape)
    loss, _ = augmented_conditions_loss(ratio, advantage, clip_range=bound)
    shuffled, _ = augmented_conditions_loss(
        ratio[conditions][:, samples], advantage[conditions][:, samples], clip_range=bound
    )

    assert shuffled.item() == pytest.approx(loss.item(), rel=1e-11, abs=1e-13)


@given(groups(smallest=2, largest=2), CLIP)
def test_prompts_are_averaged(group, bound):
    """A leading axis is a mean over what each prompt gives."""
    ratio, advantage = group
    each = [
        augmented_conditions_loss(r, a, clip_range=bound)[0].item()
        for r, a in ((ratio, advantage), (-ratio, 2.0 * advantage))
    ]
    both, _ = augmented_conditions_loss(
        torch.stack([ratio, -ratio]), torch.stack([advantage, 2.0 * advantage]), clip_range=bound
    )

    assert both.item() == pytest.approx(sum(each) / 2, rel=1e-11, abs=1e-13)


def test_a_condition_is_judged_by_its_own_group():
    """A caption that no sample fits well moves no advantage; one order under it does."""
    reward = randn(3, 4, dtype=torch.float64)
    advantage = group_advantages(reward)
    shifted = reward + torch.tensor([0.0, -50.0, 0.0], dtype=torch.float64)[:, None]

    torch.testing.assert_close(group_advantages(shifted), advantage, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(group_advantages(reward[1]), advantage[1], rtol=1e-12, atol=1e-12)


def test_a_divergence_is_averaged_over_conditions():
    """With its weight, and not with the conditions' weights."""
    ratio, advantage = randn(2, 3, 1, dtype=torch.float64), randn(2, 3, dtype=torch.float64)
    kl = torch.arange(6.0, dtype=torch.float64).reshape(2, 3, 1)
    how = {
        "clip_range": 0.1,
        "condition_weight": torch.tensor([1.0, 3.0], dtype=torch.float64),
    }
    without, _ = augmented_conditions_loss(ratio, advantage, **how)
    with_it, stats = augmented_conditions_loss(ratio, advantage, **how, kl=kl, kl_weight=0.1)

    assert stats.reference_kl.item() == 2.5
    assert with_it.item() == pytest.approx(without.item() + 0.25, rel=1e-12)


# -- gradients -----------------------------------------------------------------------------


def test_its_gradient_is_the_weighted_mean_of_each_conditions_own():
    """Through a policy that all conditions share."""
    inputs = randn(3, 4, 2, 5, dtype=torch.float64)
    advantage = group_advantages(randn(3, 4, seed=1, dtype=torch.float64))
    weight = torch.tensor([1.0, 0.5, 2.5], dtype=torch.float64)
    policy = randn(5, seed=2, dtype=torch.float64).requires_grad_()
    ratio = 0.1 * (inputs @ policy)
    loss, _ = augmented_conditions_loss(ratio, advantage, clip_range=0.05, condition_weight=weight)
    (together,) = torch.autograd.grad(loss, policy, retain_graph=True)
    each = [
        torch.autograd.grad(
            plain(ratio[k], advantage[k], clip_range=0.05)[0], policy, retain_graph=True
        )[0]
        for k in range(3)
    ]
    expected = sum(w * g for w, g in zip((weight / 4.0).tolist(), each, strict=True))

    torch.testing.assert_close(together, expected, rtol=1e-11, atol=1e-13)


def test_derivatives_agree_with_finite_differences():
    """Clipped and free ratios, weighted conditions and steps."""
    ratio = 0.2 * randn(2, 3, 2, dtype=torch.float64)
    advantage = randn(2, 3, seed=1, dtype=torch.float64)

    assert torch.autograd.gradcheck(
        lambda r: augmented_conditions_loss(
            r,
            advantage,
            clip_range=0.1,
            condition_weight=torch.tensor([1.0, 3.0]),
            step_weight=torch.tensor([1.5, 0.5]),
        )[0],
        (ratio.requires_grad_(),),
    )


def test_no_gradient_reaches_the_drift():
    """It is watched, not trained."""
    log_prob = randn(2, 1, 1).requires_grad_()[None][0].reshape(2, 1, 1)

    assert not probability_drift(log_prob).requires_grad


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "shown"),
    [
        ([1.0, -0.5], r"\[1.0, -0.5\]"),
        ([0.0, 0.0], r"\[0.0, 0.0\]"),
        ([1.0, math.nan], "nan"),
        ([1.0, math.inf], "inf"),
    ],
)
def test_refuses_weights_that_are_no_shares(weight, shown):
    """Negative, all zero, or not finite."""
    match = rf"`condition_weight` must be finite, not negative, and not all 0; got .*{shown}"
    with pytest.raises(ValueError, match=match):
        augmented_conditions_loss(
            torch.zeros(2, 1, 1),
            torch.ones(2, 1),
            clip_range=0.1,
            condition_weight=torch.tensor(weight),
        )


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("log_ratio", torch.zeros(2, 1, 4)),
        ("log_ratio", torch.zeros(2, 3)),
        ("condition_weight", torch.ones(3)),
        ("step_weight", torch.ones(2)),
        ("kl", torch.zeros(3, 4)),
    ],
)
def test_refuses_what_would_broadcast(name, bad):
    """With and without the annotations' own check."""
    given_ = {"log_ratio": torch.zeros(2, 3, 4), "advantage": torch.ones(2, 3), name: bad}
    with pytest.raises(TypeCheckError):
        augmented_conditions_loss(**given_, clip_range=0.1)
    with without_shape_checks(), pytest.raises(ValueError, match=rf"`{name}` must have"):
        augmented_conditions_loss(**given_, clip_range=0.1)


def test_refuses_half_precision_and_missing_axes():
    """Of the drift too."""
    half = torch.zeros(2, 1, 1, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="`log_ratio` must be float32 or float64"):
        augmented_conditions_loss(half, torch.ones(2, 1), clip_range=0.1)
    with pytest.raises(ValueError, match="`log_prob` must be float32 or float64"):
        probability_drift(half)
    with without_shape_checks(), pytest.raises(ValueError, match="`log_prob` must end in"):
        probability_drift(torch.zeros(2, 1))
