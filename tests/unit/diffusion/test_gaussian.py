"""`diffusion.gaussian`: oracle, laws, gradients, errors. Golden log-densities are the steps'."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Independent, Normal
from torch.distributions import kl_divergence as torch_kl_divergence

from mvczigal_ref.diffusion.gaussian import (
    check_std,
    joint_log_prob,
    kl_divergence,
    log_prob,
    sample,
)
from tests import oracles
from tests.compare import FP32, FP64, assert_equal_to
from tests.strategies import latents, randn

REDUCTIONS = ["mean", "sum", "none"]
SPREADS = st.floats(0.01, 10.0)


@st.composite
def gaussians(draw, count=2):
    """Draw latents and as many spreads, one number per latent."""
    drawn = draw(latents(count))
    batch = drawn[0].shape[:-3]
    spreads = st.lists(SPREADS, min_size=batch.numel(), max_size=batch.numel())
    return drawn, tuple(
        torch.tensor(draw(spreads), dtype=torch.float64).reshape(batch) for _ in drawn
    )


def reduced(values, reduction):
    """Reduce over c, h, w the way the names say."""
    if reduction == "none":
        return values
    return getattr(values.flatten(-3), reduction)(-1)


# -- oracle ------------------------------------------------------------------------------


@given(gaussians(), st.sampled_from(REDUCTIONS))
def test_log_prob_equals_the_scalar_density(drawn, reduction):
    """One element at a time, in floats, then reduced."""
    (action, mean), (std, _) = drawn
    each = oracles.per_element(oracles.normal_log_density, (action, mean), (std,))
    actual = log_prob(action, mean=mean, std=std, reduction=reduction)

    torch.testing.assert_close(actual, reduced(each, reduction), rtol=1e-11, atol=1e-11)


@given(gaussians())
def test_log_prob_equals_torch_distributions(drawn):
    """The sum is the density of one vector; "none" is the density of every element."""
    (action, mean), (std, _) = drawn
    normal = Normal(mean, std[..., None, None, None].expand_as(mean))
    joint = Independent(normal, 3).log_prob(action)

    assert_equal_to(log_prob(action, mean=mean, std=std, reduction="sum"), joint, 1e-11)
    torch.testing.assert_close(
        log_prob(action, mean=mean, std=std, reduction="none"),
        normal.log_prob(action),
        rtol=1e-12,
        atol=1e-12,
    )


@given(gaussians(), st.sampled_from(REDUCTIONS))
def test_divergence_equals_the_scalar_formula(drawn, reduction):
    """One element at a time, in floats, then reduced."""
    (mean_p, mean_q), (std_p, std_q) = drawn
    each = oracles.per_element(
        lambda m, n, s, r: oracles.normal_divergence(m, s, n, r), (mean_p, mean_q), (std_p, std_q)
    )
    actual = kl_divergence(
        mean_p=mean_p, std_p=std_p, mean_q=mean_q, std_q=std_q, reduction=reduction
    )

    torch.testing.assert_close(actual, reduced(each, reduction), rtol=1e-11, atol=1e-11)


@given(gaussians())
def test_divergence_equals_torch_distributions(drawn):
    """Summed over the elements of a latent."""
    (mean_p, mean_q), (std_p, std_q) = drawn
    p, q = (
        Independent(Normal(m, s[..., None, None, None].expand_as(m)), 3)
        for m, s in ((mean_p, std_p), (mean_q, std_q))
    )
    actual = kl_divergence(mean_p=mean_p, std_p=std_p, mean_q=mean_q, std_q=std_q, reduction="sum")

    torch.testing.assert_close(actual, torch_kl_divergence(p, q), rtol=1e-11, atol=1e-11)


@given(gaussians())
def test_sample_equals_the_scalar_formula(drawn):
    """Mean plus spread times noise, exactly."""
    (mean, noise), (std, _) = drawn
    expected = oracles.per_element(lambda m, n, s: m + s * n, (mean, noise), (std,))

    assert_equal_to(sample(mean, std, noise), expected, FP64, axes=3)


@given(latents(1), st.sampled_from(["mean", "sum"]))
def test_joint_log_prob_adds_or_averages_the_last_axis(drawn, reduction):
    """The views are the last axis; the others stay."""
    per_view = drawn[0].flatten(-2)
    rows = per_view.reshape(-1, per_view.shape[-1]).tolist()
    totals = [math.fsum(row) / (len(row) if reduction == "mean" else 1) for row in rows]
    expected = torch.tensor(totals, dtype=torch.float64).reshape(per_view.shape[:-1])

    torch.testing.assert_close(
        joint_log_prob(per_view, reduction=reduction), expected, rtol=1e-12, atol=1e-12
    )


# -- laws --------------------------------------------------------------------------------


@given(gaussians())
def test_sum_is_mean_times_elements(drawn):
    """The two reductions differ by the number of elements alone."""
    (action, mean), (std, _) = drawn
    total = log_prob(action, mean=mean, std=std, reduction="sum")
    average = log_prob(action, mean=mean, std=std, reduction="mean")

    torch.testing.assert_close(
        total, average * math.prod(action.shape[-3:]), rtol=1e-11, atol=1e-11
    )


@given(gaussians(), st.sampled_from(REDUCTIONS))
def test_density_is_highest_at_the_mean(drawn, reduction):
    """Every other action is less likely."""
    (action, mean), (std, _) = drawn
    here = log_prob(mean, mean=mean, std=std, reduction=reduction)
    there = log_prob(action, mean=mean, std=std, reduction=reduction)

    assert (there <= here).all()


@given(gaussians(), st.floats(0.1, 10.0))
def test_density_scales_by_minus_log_k(drawn, k):
    """Stretching space thins the density."""
    (action, mean), (std, _) = drawn
    plain = log_prob(action, mean=mean, std=std, reduction="mean")
    stretched = log_prob(k * action, mean=k * mean, std=k * std, reduction="mean")

    torch.testing.assert_close(stretched, plain - math.log(k), rtol=1e-10, atol=1e-10)


@given(gaussians(), st.sampled_from(REDUCTIONS))
def test_divergence_is_zero_from_itself_and_never_negative(drawn, reduction):
    """Gibbs' inequality."""
    (mean_p, mean_q), (std_p, std_q) = drawn
    itself = kl_divergence(
        mean_p=mean_p, std_p=std_p, mean_q=mean_p, std_q=std_p, reduction=reduction
    )
    other = kl_divergence(
        mean_p=mean_p, std_p=std_p, mean_q=mean_q, std_q=std_q, reduction=reduction
    )

    assert (itself == 0).all()
    assert (other >= 0).all()


@given(gaussians(count=2), SPREADS)
def test_a_float_spread_is_the_same_as_a_tensor_of_it(drawn, std):
    """One number serves every latent."""
    (action, mean), _ = drawn
    wide = torch.full(mean.shape[:-3], std, dtype=torch.float64)

    assert torch.equal(sample(mean, std, action), sample(mean, wide, action))
    for reduction in REDUCTIONS:
        assert torch.equal(
            log_prob(action, mean=mean, std=std, reduction=reduction),
            log_prob(action, mean=mean, std=wide, reduction=reduction),
        )
        assert torch.equal(
            kl_divergence(mean_p=action, std_p=std, mean_q=mean, std_q=std, reduction=reduction),
            kl_divergence(mean_p=action, std_p=wide, mean_q=mean, std_q=wide, reduction=reduction),
        )


@given(gaussians())
def test_a_draw_is_as_likely_as_its_noise(drawn):
    """Sampling and scoring use one and the same spread."""
    (mean, noise), (std, _) = drawn
    action = sample(mean, std, noise)
    standard = log_prob(noise, mean=torch.zeros_like(noise), std=1.0, reduction="mean")

    torch.testing.assert_close(
        log_prob(action, mean=mean, std=std, reduction="mean"),
        standard - std.log(),
        rtol=1e-8,
        atol=1e-8,
    )


def test_fp32_stays_fp32_and_near_fp64():
    """Computed in the input's own dtype, whatever the spread's."""
    action, mean = randn(2, 5, 4, 32, 32, dtype=torch.float64)
    std = torch.linspace(0.1, 1.0, 5, dtype=torch.float64)
    for reduction in REDUCTIONS:
        wide = log_prob(action, mean=mean, std=std, reduction=reduction)
        narrow = log_prob(action.float(), mean=mean.float(), std=std, reduction=reduction)

        assert_equal_to(narrow, wide.float(), FP32, axes=3 if reduction == "none" else 0)
        assert log_prob(action, mean=mean.float(), std=0.1, reduction=reduction).dtype == (
            torch.float64
        )
    assert sample(mean.float(), std, action.float()).dtype == torch.float32


@pytest.mark.parametrize("apart", [1e-4, 1e-3, 0.1])
def test_the_divergence_of_nearly_equal_spreads_keeps_its_digits(apart):
    """Where its two terms all but cancel; of spreads that far apart it is about their square."""
    zero = torch.zeros(2, 1, 1, 1)
    spread = {"std_p": torch.full((2,), 0.3), "std_q": torch.tensor([1.0 + apart, 1.0 - apart])}
    spread["std_q"] = 0.3 * spread["std_q"]
    actual = kl_divergence(mean_p=zero, mean_q=zero, **spread, reduction="none")
    (p, *_), q = spread["std_p"].tolist(), spread["std_q"].tolist()
    change = [p / other - 1.0 for other in q]
    exact = [d + d * d / 2 - math.log1p(d) for d in change]

    assert actual.dtype == torch.float32
    assert actual.flatten().tolist() == pytest.approx(exact, rel=2e-3, abs=0)


@pytest.mark.parametrize(("reduction", "error"), [("mean", 5e-7), ("sum", 0.02)])
@pytest.mark.parametrize("std", [0.02, 0.3, 0.9])
def test_a_log_ratio_in_fp32_is_as_exact_as_its_docstring_says(reduction, error, std):
    """At full size, of a mean that has moved by a thousandth of the spread."""
    mean, noise, moved = randn(3, 16, 4, 96, 96, dtype=torch.float32)
    action, other = mean + std * noise, mean + 1e-3 * std * moved
    narrow, wide = (
        log_prob(action.to(dtype), mean=other.to(dtype), std=std, reduction=reduction)
        - log_prob(action.to(dtype), mean=mean.to(dtype), std=std, reduction=reduction)
        for dtype in (torch.float32, torch.float64)
    )

    assert (narrow - wide).abs().max() < error
    assert wide.abs().max() > 5 * error


def test_checked_spreads_pass():
    """Positive and finite is all that is asked, in any shape."""
    check_std(torch.tensor(1e-30))
    check_std(torch.rand(2, 3) + 0.1)
    check_std(torch.empty(0))


# -- gradients ---------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_flow_to_every_tensor(reduction):
    """By finite differences."""
    mean_p, mean_q = randn(2, 2, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    std_p = torch.tensor([0.5, 1.5], dtype=torch.float64, requires_grad=True)
    std_q = torch.tensor([0.8, 0.9], dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(
        lambda a, m, s: log_prob(a, mean=m, std=s, reduction=reduction), (mean_p, mean_q, std_p)
    )
    assert torch.autograd.gradcheck(
        lambda m, s, n, r: kl_divergence(mean_p=m, std_p=s, mean_q=n, std_q=r, reduction=reduction),
        (mean_p, std_p, mean_q, std_q),
    )
    assert torch.autograd.gradcheck(sample, (mean_p, std_p, mean_q))


def test_score_points_from_the_mean_to_the_action():
    """The gradient of the true density in the mean is the error over the variance."""
    action, mean = randn(2, 3, 1, 2, 2, dtype=torch.float64)
    mean.requires_grad_()
    log_prob(action, mean=mean, std=0.5, reduction="sum").sum().backward()

    assert_equal_to(mean.grad, ((action - mean) / 0.25).detach(), FP64)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_float_that_is_no_spread_is_refused_by_name(bad):
    """NaN compares false, so it is refused too."""
    zero = torch.zeros(1, 1, 1)
    rule = rf"must be positive and finite; got {bad}"
    with pytest.raises(ValueError, match=f"`std` {rule}"):
        sample(zero, bad, zero)
    with pytest.raises(ValueError, match=f"`std` {rule}"):
        log_prob(zero, mean=zero, std=bad, reduction="sum")
    with pytest.raises(ValueError, match=f"`std_p` {rule}"):
        kl_divergence(mean_p=zero, std_p=bad, mean_q=zero, std_q=1.0, reduction="sum")
    with pytest.raises(ValueError, match=f"`std_q` {rule}"):
        kl_divergence(mean_p=zero, std_p=1.0, mean_q=zero, std_q=bad, reduction="sum")


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_check_std_names_the_first_bad_entry(bad):
    """The one function that reads a spread from its device."""
    with pytest.raises(ValueError, match=rf"`sigma` must be .* got {bad} at index 2\."):
        check_std(torch.tensor([[1.0, 1.0], [bad, bad]]), name="sigma")


@pytest.mark.parametrize("name", ["action", "mean", "std"])
def test_log_prob_refuses_half_precision_by_name(name):
    """A spread too: its logarithm would be rounded to a thousandth."""
    tensors = {"action": torch.zeros(1, 1, 1), "mean": torch.zeros(1, 1, 1), "std": torch.ones(())}
    tensors[name] = tensors[name].bfloat16()
    with pytest.raises(ValueError, match=rf"`{name}` must be float32 or float64"):
        log_prob(**tensors, reduction="mean")


@pytest.mark.parametrize("name", ["mean", "noise"])
def test_sample_refuses_half_precision_by_name(name):
    """The draw is rounded by its caller, once, where it is stored."""
    tensors = {"mean": torch.zeros(1, 1, 1), "noise": torch.zeros(1, 1, 1)}
    tensors[name] = tensors[name].half()
    with pytest.raises(ValueError, match=rf"`{name}` must be float32 or float64"):
        sample(std=1.0, **tensors)


@pytest.mark.parametrize("name", ["mean_p", "mean_q", "std_p", "std_q"])
def test_divergence_refuses_half_precision_by_name(name):
    """Any of the four tensors."""
    tensors = {
        "mean_p": torch.zeros(1, 1, 1),
        "mean_q": torch.zeros(1, 1, 1),
        "std_p": torch.ones(()),
        "std_q": torch.ones(()),
    }
    tensors[name] = tensors[name].half()
    with pytest.raises(ValueError, match=rf"`{name}` must be float32 or float64"):
        kl_divergence(**tensors, reduction="sum")


def test_joint_log_prob_refuses_half_precision():
    """The sum over views is as exact as its terms."""
    with pytest.raises(ValueError, match="`log_prob` must be float32 or float64"):
        joint_log_prob(torch.zeros(2, 3).half(), reduction="sum")


def test_unknown_reductions_are_refused():
    """Where annotations are not checked; views can't be left unreduced."""
    zero = torch.zeros(1, 1, 1)
    reduce = inspect.unwrap(inspect.unwrap(log_prob).__globals__["_reduce"])
    with pytest.raises(ValueError, match=r"`reduction` must be one of .*'none'.*; got 'max'"):
        reduce(zero, "max")
    with pytest.raises(
        ValueError, match=r"`reduction` must be one of \('mean', 'sum'\); got 'none'"
    ):
        inspect.unwrap(joint_log_prob)(zero, reduction="none")
