"""Plain torch that several oracles share: random streams, the optimiser step, the comparison."""

import hashlib
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = [
    "AdamW",
    "assert_same_end",
    "distance",
    "log_density",
    "noise",
    "order",
    "standardised",
]


def stream(*names: int | str) -> torch.Generator:
    """Generator seeded by what its numbers are for: 8 bytes of BLAKE2b of the names."""
    digest = hashlib.blake2b(repr(names).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def noise(shape: Sequence[int], *names: int | str) -> Tensor:
    """Standard normal numbers, drawn in fp32."""
    return torch.randn(tuple(shape), generator=stream(*names)).double()


def order(prompts: Sequence[str], *, seed: int, count: int, iteration: int = 0) -> list[str]:
    """Prompts of an iteration that goes once through the list: a shuffled pass."""
    assert count == len(prompts)
    places = torch.randperm(count, generator=stream(seed, "prompts", iteration))
    return [prompts[place] for place in places.tolist()]


def log_density(action: Tensor, mean: Tensor, std: float) -> Tensor:
    """Gaussian log-density, averaged over channels, height and width."""
    scaled = -((action - mean) ** 2) / (2 * std**2)
    return scaled.mean((-3, -2, -1)) - math.log(std) - 0.5 * math.log(2 * math.pi)


def standardised(reward: Tensor, *, delta: float) -> Tensor:
    """Rewards less their mean, over their population's deviation."""
    centred = reward - reward.mean()
    return centred / (centred.square().mean().sqrt() + delta)


class AdamW:
    """AdamW on gradients whose norm is clipped first."""

    def __init__(
        self, parameters: Sequence[Tensor], *, max_grad_norm: float, **settings: float
    ) -> None:
        self.parameters, self.max_grad_norm = parameters, max_grad_norm
        self.optimiser = torch.optim.AdamW(parameters, **settings)

    def step(self, loss: Callable[[], Tensor]) -> float:
        """Change the parameters by the gradient of a loss; return its norm before clipping."""
        self.optimiser.zero_grad()
        loss().backward()
        gradients = [p.grad for p in self.parameters]
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
        for gradient in gradients:
            gradient.mul_(min(1.0, self.max_grad_norm / (norm + 1e-6)))  # as torch clips
        self.optimiser.step()
        return norm


def distance(run, end) -> float:
    """Largest difference of the ends, as a share of the largest movement."""
    moved = max(float((run.end[name] - run.start[name]).abs().max()) for name in run.start)
    worst = max(float((run.end[name] - end[name]).abs().max()) for name in run.start)
    assert moved > 1e-3
    return worst / moved


def assert_same_end(run, end, tolerance: float) -> None:
    """Fail unless a run ended at these parameters, up to a share of its movement."""
    found = distance(run, end)
    print(f"\nlargest difference: {found:.1e} of the largest movement")
    assert found < tolerance
