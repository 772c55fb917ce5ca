r"""A policy simple enough that its expected reward and policy gradient have closed forms.

The state is a vector, the policy linear-Gaussian with shared parameters over ``num_steps`` steps,

    s_{t+1} = a_t ~ N(W s_t + b, sigma^2 I),    R(s_T) = c' s_T + s_T' Q s_T / 2,

so states stay Gaussian and ``J = E[R]`` needs their first two moments alone. Every estimator
must agree with its gradient, and need not be sampled to be tried: in the noise, the summand of
a score-function estimator is a polynomial, which Gauss-Hermite quadrature integrates exactly.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "LinearGaussianPolicy",
    "QuadraticReward",
    "expected_reward",
    "gaussian_grid",
    "policy_gradient",
]


@dataclass(frozen=True, kw_only=True)
class LinearGaussianPolicy:
    """Weight W (d, d), bias b (d,), spread sigma, and the number of steps."""

    weight: Tensor
    bias: Tensor
    std: float
    num_steps: int

    def mean(self, state: Tensor) -> Tensor:
        """Return the mean action of states ``(..., d)``."""
        return state @ self.weight.mT + self.bias

    def log_prob(self, action: Tensor, state: Tensor) -> Tensor:
        """Return each coordinate's log-density, up to the constant that no gradient sees."""
        return -((action - self.mean(state)) ** 2) / (2.0 * self.std**2)

    def rollout(self, start: Tensor, noise: Tensor) -> Tensor:
        """Return all states ``(num_steps + 1, ..., d)`` for noise ``(num_steps, ..., d)``."""
        states = [start]
        for draw in noise:
            states.append(self.mean(states[-1]) + self.std * draw)
        return torch.stack(torch.broadcast_tensors(*states))

    def moments(self, mean: Tensor, covariance: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return every state's mean and covariance, from the start's."""
        moments = [(mean, covariance)]
        for _ in range(self.num_steps):
            mean, covariance = moments[-1]
            spread = self.weight @ covariance @ self.weight.mT
            moments.append(
                (self.mean(mean), spread + self.std**2 * torch.eye(len(mean), dtype=mean.dtype))
            )
        return moments


@dataclass(frozen=True, kw_only=True)
class QuadraticReward:
    """Linear part c (d,) and symmetric quadratic part Q (d, d)."""

    linear: Tensor
    quadratic: Tensor

    def __call__(self, state: Tensor) -> Tensor:
        """Score states ``(..., d)``."""
        return state @ self.linear + ((state @ self.quadratic) * state).sum(dim=-1) / 2.0


def expected_reward(
    policy: LinearGaussianPolicy, reward: QuadraticReward, start: Tensor, covariance: Tensor
) -> Tensor:
    """Return J, for a start that is Gaussian (or fixed, with covariance 0)."""
    mean, covariance = policy.moments(start, covariance)[-1]
    return reward(mean) + (reward.quadratic * covariance).sum() / 2.0


def policy_gradient(
    policy: LinearGaussianPolicy, reward: QuadraticReward, start: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor]:
    """Return dJ/dW and dJ/db, by carrying dJ/d(moments) backward through the steps."""
    moments = policy.moments(start, covariance)
    by_mean = reward.linear + reward.quadratic @ moments[-1][0]
    by_covariance = reward.quadratic / 2.0
    by_weight, by_bias = torch.zeros_like(policy.weight), torch.zeros_like(policy.bias)
    for mean, covariance in reversed(moments[:-1]):
        by_weight += torch.outer(by_mean, mean) + 2.0 * by_covariance @ policy.weight @ covariance
        by_bias += by_mean
        by_mean = policy.weight.mT @ by_mean
        by_covariance = policy.weight.mT @ by_covariance @ policy.weight
    return by_weight, by_bias


def gaussian_grid(*shape: int, order: int = 2) -> tuple[Tensor, Tensor]:
    """Return standard-normal nodes ``(point, *shape)`` and weights ``(point,)``.

    Sums over the points are expectations of every polynomial of degree up to
    ``2 * order - 1`` in each variable: a quadratic reward times a score is of degree 3.
    """
    node, weight = np.polynomial.hermite_e.hermegauss(order)
    count = int(np.prod(shape))
    points = np.array(list(itertools.product(node, repeat=count)))
    weights = np.array(list(itertools.product(weight / weight.sum(), repeat=count))).prod(axis=1)
    return torch.from_numpy(points).reshape(-1, *shape), torch.from_numpy(weights)
