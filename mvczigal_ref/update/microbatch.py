"""What one backward pass covers, as the update's loop knows it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.shapes import Scalar

__all__ = ["Culprit", "GradientStats", "Microbatch", "asks_for_change"]

Culprit = Callable[[Sequence[int]], NonFiniteError]
"""From the index of a table's entry to the error that names where it belongs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientStats:
    """What one accumulation saw: sums over its elements or log-ratios, detached."""

    loss: Scalar
    """Sum of the loss over elements [1]."""

    log_ratio_square: Scalar
    """Sum of squared log-ratios [(nats or nats/element)^2]."""

    clipped: Scalar
    """Log-ratios beyond the clip range [log-ratios]."""

    deviation: Scalar
    """Largest absolute log-ratio [nats or nats/element]."""

    asks: Bool[Tensor, ""]
    """Whether the loss asks for a change: not where all advantages are equal, or all clipped."""

    count: int
    """Elements, over which the loss is a mean."""

    num_log_ratios: int
    """Log-ratios: one an element, or one for each arm of a pair."""

    extra: Mapping[str, Scalar] = field(default_factory=dict)
    """Further sums over elements, by the name of their metric."""


@runtime_checkable
class Microbatch(Protocol):
    """Some elements whose share of the gradient is made in one go."""

    @property
    def count(self) -> int:
        """Elements, over which the loss is a mean."""
        ...

    @property
    def exact(self) -> bool:
        """Whether the network is called as in the rollout, so that a first ratio must be 1."""
        ...

    @property
    def place(self) -> str:
        """Say which part of the iteration this is, for messages."""
        ...

    def accumulate(self, *, weight: float, on_policy: bool) -> GradientStats:
        """Add this microbatch's share of the loss gradient to the parameters.

        Args:
            weight: The share, times the loss scale [1].
            on_policy: Whether the parameters are those that sampled.

        Returns:
            Sums for the metrics.

        Raises:
            NonFiniteError: If a number is not finite; names object, view and step.
        """
        ...

    def scores(self) -> Iterator[tuple[Tensor, Culprit]]:
        """Replay once more, to search for what made a gradient non-finite.

        Returns:
            Tables with gradient, and who is at fault by a table's index.
        """
        ...


def asks_for_change(output: Tensor) -> Bool[Tensor, ""]:
    """Find out whether a loss asks for a change of what a network gave, after its backward pass.

    Args:
        output: In the type of the loss, so that nothing has rounded away; it retains its gradient.

    Returns:
        Whether any derivative by it is not 0.
    """
    gradient = output.grad
    return torch.tensor(data=False) if gradient is None else gradient.any()
