"""What an update is given: pairs, settings, and an objective it knows by its derivatives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.records import ActionReduction, Conditioning, PairedRollout
from mvczigal_ref.shapes import PerViewReward

__all__ = [
    "PairBatch",
    "PairGradients",
    "PairObjective",
    "ReplaySettings",
    "StepLogProb",
    "UpdateSettings",
    "require_counts",
]

StepLogProb = Float[Tensor, "step object view"]
"""One log-density a step, object and view [nats or nats/element]."""


@runtime_checkable
class PairGradients(Protocol):
    """A pair objective's loss and its derivatives by both arms' log-probabilities."""

    @property
    def loss(self) -> Tensor:
        """Mean over the elements."""
        ...

    @property
    def zigzag(self) -> Tensor:
        """By the first arm's log-probabilities."""
        ...

    @property
    def standard(self) -> Tensor:
        """By the second arm's."""
        ...


PairObjective = Callable[[Tensor, Tensor, Tensor], PairGradients]
"""From both log-ratios and the advantage gap, values alone, to loss and derivatives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairBatch:
    """Pairs that are replayed together: one slice of objects."""

    rollout: PairedRollout
    """What was sampled."""

    conditioning: Conditioning
    """Of the same objects."""

    advantage_gap: PerViewReward
    """Zigzag minus standard [1]."""

    first_object: int
    """Index of the first object within the iteration, for messages."""

    def objects(self, index: slice) -> "PairBatch":
        """Narrow to some objects.

        Args:
            index: Which objects, as a slice of the object axis with step 1.

        Returns:
            A record of views onto the same memory.
        """
        first = range(self.advantage_gap.shape[0])[index].start
        return PairBatch(
            rollout=self.rollout.objects(index),
            conditioning=self.conditioning.objects(index),
            advantage_gap=self.advantage_gap[index],
            first_object=self.first_object + first,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplaySettings:
    """How stored actions are replayed, and how often the parameters change."""

    epochs: int = 1
    """Passes over an iteration's samples."""

    optimizer_steps: int = 1
    """Parameter changes a pass; divides the slices."""

    max_grad_norm: float = 5.0
    """Largest Euclidean norm of the gradient [gradient units]."""

    scale_growth_interval: int = 2000
    """Finite gradients after which a loss scale doubles [optimiser steps]."""

    clip_range: float = 1e-2
    """Beyond it a log-ratio counts as clipped [nats or nats/element]."""

    guidance_scale: float
    """As in the rollout [1]."""

    camera_scale: float = 1.0
    """As in the rollout [1]."""

    reduction: ActionReduction = "mean"
    """As in the rollout."""

    def __post_init__(self) -> None:
        """Refuse an update that would train nothing."""
        require_counts(
            epochs=self.epochs,
            optimizer_steps=self.optimizer_steps,
            scale_growth_interval=self.scale_growth_interval,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateSettings(ReplaySettings):
    """How stored pairs are cut up and replayed."""

    steps: Sequence[int]
    """Sampling steps whose actions are trained; at least one."""

    steps_per_microbatch: int = 1
    """Steps replayed in one network call; 1 keeps the first ratio exactly 1."""

    objects_per_microbatch: int | None = None
    """Objects replayed in one network call; None is the rollout's slice, the only value with a
    first ratio of exactly 1."""

    def __post_init__(self) -> None:
        """Refuse an update that would train nothing."""
        if not self.steps:
            msg = (
                "`steps` must name at least one sampling step; got none. A grid of one step has "
                "only its last action to train."
            )
            raise ValueError(msg)
        ReplaySettings.__post_init__(self)
        require_counts(
            steps_per_microbatch=self.steps_per_microbatch,
            objects_per_microbatch=self.objects_per_microbatch,
        )


def require_counts(**counts: int | None) -> None:
    """Refuse a count below 1; None stands for all there are.

    Args:
        **counts: Numbers by the name of their argument.

    Raises:
        ValueError: If one is below 1; names it.
    """
    for name, count in counts.items():
        if count is not None and count < 1:
            msg = f"`{name}` must be at least 1; got {count}."
            raise ValueError(msg)
