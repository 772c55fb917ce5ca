"""The guarded ratio: oracle, laws, gradients, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.gaussian import log_prob
from mvczigal_ref.objective.grpo_guard import guard_loss, guarded_log_ratio
from tests.scaffold import gaussian_grid, policy_gradient
from tests.strategies import latents, randn
from tests.unannotated import without_shape_checks
from tests.unit.test_scaffold import assert_scaled, fixed, make, rollouts

REDUCTIONS = st.sampled_from(["mean", "sum"])
STD = st.floats(0.05, 2.0)


def transition(pair, noise, std, reduction):
    """Draw from the second mean; return the log-ratio of the first to it."""
    mean, mean_old = pair
    action = mean_old + std * noise
    return log_prob(action, mean=mean, std=std, reduction=reduction) - log_prob(
        action, mean=mean_old, std=std, reduction=reduction
    )


def inputs():
    """Return two transitions' arguments of the loss."""
    mean, mean_old, noise = randn(3, 2, 1, 2, 2, dtype=torch.float64)
    return {
        "log_ratio": transition((mean, mean_old), noise, 0.5, "mean"),
        "advantage": torch.tensor([1.0, -0.5], dtype=torch.float64),
        "mean": mean,
        "mean_old": mean_old,
        "std": 0.5,
        "step_length": 0.25,
        "reduction": "mean",
    }


# -- oracle --------------------------------------------------------------------------------


@given(latents(2), STD, REDUCTIONS, st.floats(-3.0, 3.0))
def test_adds_the_divergence_and_multiplies_by_the_spread(pair, std, reduction, value):
    """For any log-ratio, one transition at a time; a spread a latent is one for all."""
    mean, mean_old = pair
    ratio = torch.full(mean.shape[:-3], value, dtype=torch.float64)
    for spread in (std, torch.full_like(ratio, std)):
        guarded = guarded_log_ratio(
            ratio, mean=mean, mean_old=mean_old, std=spread, reduction=reduction
        )
        rows = (mean - mean_old).reshape(-1, mean[..., :, :, :].shape[-3:].numel()).tolist()
        expected = []
        for row in rows:
            squares = math.fsum(x * x for x in row) / (len(row) if reduction == "mean" else 1)
            expected.append((value + squares / (2.0 * std**2)) * std)
        assert guarded.shape == ratio.shape
        assert guarded.flatten().tolist() == pytest.approx(expected, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("bound", [2e-6, 0.05, math.inf])
def test_loss_is_the_worse_term_over_the_steps_length(bound):
    """Each step has its own length; diagnostics tell the two ratios apart."""
    given_ = inputs() | {"step_length": torch.tensor([0.25, 0.1], dtype=torch.float64)}
    loss, stats = guard_loss(**given_, clip_range=bound)
    guarded = guarded_log_ratio(
        given_["log_ratio"], **{k: given_[k] for k in ("mean", "mean_old", "std", "reduction")}
    )
    terms = []
    for ratio, a, step in zip(
        guarded.exp().tolist(), given_["advantage"].tolist(), (0.25, 0.1), strict=True
    ):
        near = max(1.0 - bound, min(1.0 + bound, ratio))
        terms.append(max(-a * ratio, -a * near) / step)
    outside = [abs(math.expm1(x)) > bound for x in guarded.tolist()]

    assert loss.item() == pytest.approx(math.fsum(terms) / 2, rel=1e-11)
    assert stats.surrogate.item() == pytest.approx(math.fsum(terms) / 2, rel=1e-11)
    assert stats.clip_fraction.item() == sum(outside) / 2
    assert stats.approx_kl.item() == pytest.approx(
        math.fsum(x * x for x in given_["log_ratio"].tolist()) / 4, rel=1e-12
    )


# -- laws ----------------------------------------------------------------------------------


@given(latents(3), STD, REDUCTIONS)
def test_what_is_left_is_the_move_along_the_noise(three, std, reduction):
    """The same at any noise level, and linear in the move: the spread cancels."""
    mean, mean_old, noise = three
    guarded = guarded_log_ratio(
        transition((mean, mean_old), noise, std, reduction),
        mean=mean,
        mean_old=mean_old,
        std=std,
        reduction=reduction,
    )
    along = (noise * (mean - mean_old)).flatten(-3)
    expected = along.mean(dim=-1) if reduction == "mean" else along.sum(dim=-1)

    torch.testing.assert_close(guarded, expected, rtol=1e-9, atol=1e-10)


def test_under_the_sampling_policy_its_mean_is_zero():
    """The plain log-ratio's is minus the divergence; over all noise, by quadrature."""
    noise, weights = gaussian_grid(1, 2, 2)
    mean, mean_old = randn(2, 1, 2, 2, dtype=torch.float64)
    pair = (mean.expand_as(noise), mean_old.expand_as(noise))
    plain = transition(pair, noise, 0.3, "sum")
    guarded = guarded_log_ratio(plain, mean=pair[0], mean_old=pair[1], std=0.3, reduction="sum")

    assert (weights @ guarded).item() == pytest.approx(0.0, abs=1e-12)
    assert (weights @ plain).item() == pytest.approx(
        -((mean - mean_old) ** 2).sum().item() / (2 * 0.3**2), rel=1e-12
    )


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_a_divergence_is_added_undivided(weight):
    """The step's length is not its concern."""
    kl = torch.tensor([0.5, 1.5], dtype=torch.float64)
    without, _ = guard_loss(**inputs())
    with_it, stats = guard_loss(**inputs(), kl=kl, kl_weight=weight)

    assert with_it.item() == pytest.approx(without.item() + weight * 1.0, rel=1e-12)
    assert stats.reference_kl.item() == 1.0


def test_the_default_range_is_the_published_one():
    """A setting left out is not another setting."""
    given_ = inputs()
    given_["mean"] = given_["mean_old"]
    for change, counted in ((1.9e-6, 0.0), (2.1e-6, 1.0)):
        given_["log_ratio"] = torch.full((2,), change / given_["std"], dtype=torch.float64)
        assert guard_loss(**given_)[1].clip_fraction.item() == counted


# -- gradients -----------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_on_policy_it_is_the_policy_gradient_times_the_spread_over_the_step(reduction):
    """The divergence has no slope where it is 0."""
    policy, reward, start = make(2, 2)
    noise, weights = gaussian_grid(2, 2)
    states = rollouts(policy, start, noise)
    means = policy.mean(states[:, :-1]).reshape(-1, 2, 1, 1, 2)
    actions = states[:, 1:].reshape(means.shape)
    density = log_prob(actions, mean=means, std=policy.std, reduction=reduction)
    share = weights[:, None] * len(weights)
    loss, _ = guard_loss(
        density - density.detach(),
        (share * reward(states[:, -1])[:, None]).expand(-1, 2),
        mean=means,
        mean_old=means.detach(),
        std=policy.std,
        step_length=0.2,
        reduction=reduction,
        clip_range=1e-6,
    )
    elements = 2 if reduction == "mean" else 1

    assert_scaled(
        torch.autograd.grad(loss, (policy.weight, policy.bias)),
        -policy.std / (0.2 * 2 * elements),
        policy_gradient(policy, reward, start, fixed(start)),
    )


def test_derivatives_agree_with_finite_differences():
    """By the log-ratio and by the mean, through ratio and divergence."""
    given_ = inputs()
    ratio, mean = given_.pop("log_ratio"), given_.pop("mean")

    assert torch.autograd.gradcheck(
        lambda r, m: guard_loss(r, mean=m, **given_, clip_range=math.inf)[0],
        (ratio.requires_grad_(), mean.requires_grad_()),
    )


def test_no_gradient_reaches_the_old_mean_or_the_diagnostics():
    """It is a stored number."""
    given_ = inputs()
    for name in ("log_ratio", "mean", "mean_old"):
        given_[name].requires_grad_()
    loss, stats = guard_loss(**given_)
    loss.backward()

    assert given_["mean_old"].grad is None
    assert not stats.approx_kl.requires_grad


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"std": 0.0}, "`std` must be positive and finite; got 0.0"),
        ({"step_length": 0.0}, "`step_length` must be positive and finite; got 0.0"),
        ({"step_length": math.nan}, "`step_length` must be positive and finite; got nan"),
        ({"reduction": "none"}, "`reduction` must be 'mean' or 'sum', as .*; got 'none'"),
        ({"log_ratio": torch.zeros(2).half()}, "`log_ratio` must be float32 or float64"),
        ({"clip_range": -1.0}, "`clip_range` must be positive; got -1.0"),
    ],
)
def test_refuses_bad_arguments(changed, message):
    """By name, rule and value."""
    with without_shape_checks(), pytest.raises(ValueError, match=message):
        guard_loss(**inputs() | changed)


def test_refuses_a_divergence_that_would_broadcast():
    """As many views as prompts would be shifted by another one's divergence."""
    given_ = inputs()
    given_ |= {name: given_[name].expand(2, 2) for name in ("log_ratio", "advantage")}
    with (
        without_shape_checks(),
        pytest.raises(ValueError, match="`log_ratio` must have one number per latent of `mean`"),
    ):
        guard_loss(**given_)
