"""Estimators against a policy whose gradient is known: oracle of the scaffold, then laws.

Expectations are quadratures, exact up to rounding; nothing is sampled.
"""

import math

import pytest
import torch

from mvczigal_ref.diffusion.gaussian import joint_log_prob, log_prob
from mvczigal_ref.objective import reward_difference_gradients, reward_difference_loss
from tests.scaffold import (
    LinearGaussianPolicy,
    QuadraticReward,
    expected_reward,
    gaussian_grid,
    policy_gradient,
)

SIZES = [(1, 3), (2, 2), (2, 3)]
"""Dimensions and steps."""

EXACT = {"rtol": 1e-10, "atol": 1e-11}
"""Rounding of sums over up to 16384 points."""

LAYOUTS = {
    "object": lambda density: density.sum(dim=(-2, -1)),
    "step": lambda density: density.sum(dim=-1),
    "step and view": lambda density: density,
}
"""What one log-ratio covers, from one log-density a step and coordinate."""


def make(dim, steps):
    """Return a policy that couples its coordinates, a reward that does too, and a start."""
    weight = torch.tensor([[0.9, -0.4], [0.3, 0.7]], dtype=torch.float64)[:dim, :dim]
    bias = torch.tensor([0.2, -0.5], dtype=torch.float64)[:dim]
    policy = LinearGaussianPolicy(
        weight=weight.clone().requires_grad_(),
        bias=bias.clone().requires_grad_(),
        std=0.6,
        num_steps=steps,
    )
    quadratic = torch.tensor([[-1.0, 0.25], [0.25, -0.5]], dtype=torch.float64)[:dim, :dim]
    linear = torch.tensor([1.5, -0.7], dtype=torch.float64)[:dim]
    start = torch.tensor([0.8, -1.1], dtype=torch.float64)[:dim]
    return policy, QuadraticReward(linear=linear, quadratic=quadratic), start


def fixed(start):
    """Return the covariance of a start that does not vary."""
    return torch.zeros(len(start), len(start), dtype=start.dtype)


def rollouts(policy, start, noise):
    """Roll out noise ``(point, step, dim)`` to states ``(point, step + 1, dim)``, as data."""
    with torch.no_grad():
        return policy.rollout(start, noise.movedim(1, 0)).movedim(0, 1)


def log_ratio(policy, states):
    """Return log-ratios ``(point, step, dim)`` of the policy to itself: zeros with a gradient."""
    density = policy.log_prob(states[:, 1:], states[:, :-1])
    return density - density.detach()


def expected_gradient(policy, losses, weights):
    """Return the exact mean of the losses' gradients by weight and bias."""
    return torch.autograd.grad(weights @ losses, (policy.weight, policy.bias))


def pair_losses(zigzag, standard, gap, **settings):
    """Return the objective of each point's pair on its own."""
    gap = gap.reshape(-1, *(1,) * (zigzag.ndim - gap.ndim), *gap.shape[1:]).expand(zigzag.shape)
    return torch.func.vmap(lambda z, s, a: reward_difference_loss(z, s, a, **settings)[0])(
        zigzag, standard, gap
    )


def assert_scaled(gradient, factor, expected):
    """Compare gradients by weight and bias with ``factor`` times the expected ones."""
    for actual, target in zip(gradient, expected, strict=True):
        torch.testing.assert_close(actual, factor * target.detach(), **EXACT)


# -- oracle of the scaffold ----------------------------------------------------------------


@pytest.mark.parametrize(("dim", "steps"), SIZES)
def test_expected_reward_is_the_mean_over_rollouts(dim, steps):
    """Moments carried through the steps give what all rollouts give."""
    policy, reward, start = make(dim, steps)
    noise, weights = gaussian_grid(steps, dim)
    scores = reward(rollouts(policy, start, noise)[:, -1])

    torch.testing.assert_close(
        expected_reward(policy, reward, start, fixed(start)).detach(), weights @ scores, **EXACT
    )


@pytest.mark.parametrize("spread", [0.0, 0.7])
@pytest.mark.parametrize(("dim", "steps"), SIZES)
def test_policy_gradient_differentiates_the_expected_reward(dim, steps, spread):
    """The recursion by hand equals automatic differentiation, also from a random start."""
    policy, reward, start = make(dim, steps)
    covariance = spread * (fixed(start) + 0.2 + torch.eye(dim, dtype=torch.float64))
    value = expected_reward(policy, reward, start, covariance)
    automatic = torch.autograd.grad(value, (policy.weight, policy.bias))

    assert_scaled(policy_gradient(policy, reward, start, covariance), 1.0, automatic)


@pytest.mark.parametrize(("dim", "steps"), SIZES)
def test_reward_times_score_is_the_policy_gradient(dim, steps):
    """The identity on which every estimator rests."""
    policy, reward, start = make(dim, steps)
    noise, weights = gaussian_grid(steps, dim)
    states = rollouts(policy, start, noise)
    surrogate = reward(states[:, -1]) * log_ratio(policy, states).sum(dim=(1, 2))

    assert_scaled(
        expected_gradient(policy, surrogate, weights),
        1.0,
        policy_gradient(policy, reward, start, fixed(start)),
    )


@pytest.mark.parametrize("order", [2, 3])
def test_the_grid_has_the_moments_of_a_normal(order):
    """0, 1, 0 for degrees 1 to 3, and 3 for degree 4 once the order allows."""
    nodes, weights = gaussian_grid(2, order=order)
    moments = [(weights @ nodes**degree).tolist() for degree in range(1, 5)]
    expected = [[0.0] * 2, [1.0] * 2, [0.0] * 2, [3.0 if order == 3 else 1.0] * 2]

    assert weights.sum().item() == pytest.approx(1.0, rel=1e-12)
    for actual, target in zip(moments, expected, strict=True):
        assert actual == pytest.approx(target, rel=1e-12, abs=1e-12)


# -- the pair's regression -----------------------------------------------------------------


@pytest.mark.parametrize("clip_range", [1e-4, math.inf])
@pytest.mark.parametrize("temperature", [1.0, 0.25])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dim", "steps"), SIZES)
def test_independent_arms_give_the_policy_gradient(dim, steps, layout, temperature, clip_range):
    """Minus four over temperature and count: 2 of the square, and one policy gradient an arm."""
    policy, reward, start = make(dim, steps)
    noise, weights = gaussian_grid(2, steps, dim)
    zigzag, standard = (rollouts(policy, start, noise[:, arm]) for arm in range(2))
    ratios = [LAYOUTS[layout](log_ratio(policy, states)) for states in (zigzag, standard)]
    losses = pair_losses(
        *ratios,
        reward(zigzag[:, -1]) - reward(standard[:, -1]),
        clip_range=clip_range,
        temperature=temperature,
    )

    assert_scaled(
        expected_gradient(policy, losses, weights),
        -4.0 / (temperature * ratios[0][0].numel()),
        policy_gradient(policy, reward, start, fixed(start)),
    )


@pytest.mark.parametrize(("dim", "steps"), SIZES[:2])
def test_a_zigzag_start_adds_the_gradient_from_where_it_starts(dim, steps):
    """One arm first goes a step down and is inverted; only what follows is an action."""
    policy, reward, start = make(dim, steps)
    noise, weights = gaussian_grid(2 * steps + 1, dim)
    invert = torch.tensor([[1.2, 0.1], [-0.3, 0.8]], dtype=torch.float64)[:dim, :dim]
    with torch.no_grad():
        first = policy.mean(start)
        inverted = (first + policy.std * noise[:, 0]) @ invert.mT
    zigzag = rollouts(policy, inverted, noise[:, 1 : 1 + steps])
    standard = rollouts(policy, start, noise[:, 1 + steps :])
    losses = pair_losses(
        *(LAYOUTS["object"](log_ratio(policy, states)) for states in (zigzag, standard)),
        reward(zigzag[:, -1]) - reward(standard[:, -1]),
        clip_range=1e-4,
    )
    by_zigzag = policy_gradient(policy, reward, invert @ first, policy.std**2 * invert @ invert.mT)
    by_standard = policy_gradient(policy, reward, start, fixed(start))
    total = [one + two for one, two in zip(by_zigzag, by_standard, strict=True)]

    assert_scaled(expected_gradient(policy, losses, weights), -2.0, total)


@pytest.mark.parametrize(("dim", "steps"), SIZES)
def test_arms_that_share_their_noise_do_not_give_the_policy_gradient(dim, steps):
    """Common noise cancels the bias's gradient: step noise has to be each arm's own."""
    policy, reward, start = make(dim, steps)
    noise, weights = gaussian_grid(steps, dim)
    shift = torch.tensor([0.5, 0.9], dtype=torch.float64)[:dim]
    zigzag, standard = (rollouts(policy, x, noise) for x in (start + shift, start))
    losses = pair_losses(
        *(LAYOUTS["object"](log_ratio(policy, states)) for states in (zigzag, standard)),
        reward(zigzag[:, -1]) - reward(standard[:, -1]),
        clip_range=math.inf,
    )
    weight = policy.weight.detach()
    powers = [torch.linalg.matrix_power(weight, step) for step in range(steps + 1)]
    pull = reward.quadratic @ powers[steps] @ shift
    by_weight = sum(
        torch.outer(powers[steps - 1 - step].mT @ pull, powers[step] @ shift)
        for step in range(steps)
    )

    assert_scaled(
        expected_gradient(policy, losses, weights),
        -2.0,
        (by_weight, torch.zeros_like(policy.bias)),
    )


def test_a_views_own_gap_teaches_that_view_alone():
    """Each view's parameters follow its own reward, not what they do to other views'."""
    policy, _, start = make(2, 2)
    noise, weights = gaussian_grid(2, 2, 2)
    zigzag, standard = (rollouts(policy, start, noise[:, arm]) for arm in range(2))
    views = [
        QuadraticReward(
            linear=torch.eye(2, dtype=torch.float64)[view],
            quadratic=-torch.diag(torch.eye(2, dtype=torch.float64)[view]),
        )
        for view in range(2)
    ]
    gap = torch.stack([r(zigzag[:, -1]) - r(standard[:, -1]) for r in views], dim=-1)
    losses = pair_losses(
        *(log_ratio(policy, states) for states in (zigzag, standard)), gap, clip_range=1e-4
    )
    gradients = [policy_gradient(policy, r, start, fixed(start)) for r in views]
    own = [torch.stack([gradients[view][part][view] for view in range(2)]) for part in range(2)]

    assert_scaled(expected_gradient(policy, losses, weights), -4.0 / 4, own)


def test_the_gradient_vanishes_at_the_optimum_and_points_to_it_elsewhere():
    """The bias that puts the last mean on the reward's peak is where learning rests."""
    policy, reward, start = make(2, 2)
    noise, weights = gaussian_grid(2, 2, 2)
    weight = policy.weight.detach()
    peak = torch.linalg.solve(reward.quadratic, -reward.linear)
    reach = torch.eye(2, dtype=torch.float64) + weight
    best = torch.linalg.solve(reach, peak - weight @ weight @ start)

    def by_bias(bias):
        policy.bias.data.copy_(bias)
        zigzag, standard = (rollouts(policy, start, noise[:, arm]) for arm in range(2))
        losses = pair_losses(
            *(LAYOUTS["step"](log_ratio(policy, states)) for states in (zigzag, standard)),
            reward(zigzag[:, -1]) - reward(standard[:, -1]),
            clip_range=1e-4,
        )
        return expected_gradient(policy, losses, weights)[1]

    torch.testing.assert_close(by_bias(best), torch.zeros_like(best), rtol=0, atol=1e-11)
    for away in torch.tensor([[0.5, 0.0], [0.0, -2.0], [-1.0, 1.0]], dtype=torch.float64):
        assert by_bias(best + away) @ away > 0.0


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (1, 1, 1, 2), (1, 1, 2, 1)])
def test_latents_scored_by_the_samplers_density_give_the_policy_gradient(shape, reduction):
    """Arm by arm, through the package's log-density; a mean divides by a latent's elements."""
    policy, reward, start = make(2, 2)
    noise, weights = gaussian_grid(2, 2, 2)
    arms = [rollouts(policy, start, noise[:, arm]) for arm in range(2)]

    def score(states):
        means = policy.mean(states[:, :-1]).reshape(-1, 2, *shape)
        actions = states[:, 1:].reshape(-1, 2, *shape)
        by_view = log_prob(actions, mean=means, std=policy.std, reduction=reduction)
        return joint_log_prob(by_view, reduction="sum")

    densities = [score(states) for states in arms]
    gap = reward(arms[0][:, -1]) - reward(arms[1][:, -1])
    gradients = reward_difference_gradients(
        *(density - density.detach() for density in densities),
        gap[:, None].expand(-1, 2),
        clip_range=1e-4,
        temperature=0.5,
    )
    # The mean over points gives each the same weight; the expectation has the grid's.
    share = weights[:, None] * len(weights)
    surrogate = sum(
        (share * factor * density).sum()
        for factor, density in zip((gradients.zigzag, gradients.standard), densities, strict=True)
    )
    elements = math.prod(shape[1:]) if reduction == "mean" else 1

    assert_scaled(
        torch.autograd.grad(surrogate, (policy.weight, policy.bias)),
        -4.0 / (0.5 * 2 * elements),
        policy_gradient(policy, reward, start, fixed(start)),
    )
