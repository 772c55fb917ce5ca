"""Method, the protocol of a family of algorithms, and the records that it takes and gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.distributed import World
from mvczigal_ref.method.caption import Conditions
from mvczigal_ref.method.slices import Share
from mvczigal_ref.records import Samples
from mvczigal_ref.reward.table import RewardTable
from mvczigal_ref.rollout.noise import derived_generator
from mvczigal_ref.system import System
from mvczigal_ref.update.loss_scale import LossScale

__all__ = ["Advantages", "Drift", "Experience", "Iteration", "Learned", "Learner", "Method"]

Advantages = Sequence[tuple[Float[Tensor, "prompt ... view"], ...]]
"""Advantages of all prompts [1]: per condition one table per decision; of pairs one table alone,
the gap of each."""

Drift = tuple[Float[Tensor, "prompt caption _ view"], ...]
"""Change of log-density under each caption: one table per decision, over its members [unit of the
log-density]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Iteration:
    """Settings and place of one iteration."""

    config: TrainConfig
    """Settings of the run."""

    world: World
    """This process among all."""

    share: Share
    """Slices of this process."""

    index: int
    """Iterations before this one; names its noise."""

    def controlled(self, advantages: Advantages) -> Advantages:
        """Shuffle prompts alike in every table, where ``advantage.shuffle`` asks for the control.

        Args:
            advantages: Advantages of all prompts.

        Returns:
            Advantages as they are, or each prompt with another one's.
        """
        if not self.config.advantage.shuffle:
            return advantages
        generator = derived_generator(self.config.run.seed, self.index, "shuffle")
        order = torch.randperm(len(advantages[0][0]), generator=generator)
        return [tuple(table[order] for table in tables) for tables in advantages]


@dataclass(frozen=True, slots=True)
class Experience:
    """Samples of this process, and everything that is known of them."""

    samples: Sequence[Samples]
    """One record per slice."""

    conditions: Sequence[Conditions]
    """Columns of distinct texts of each slice, the prompts' own first."""

    advantages: Advantages
    """Advantages of all prompts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Learner:
    """System that learns, and the state that its update begins with."""

    system: System
    """Network and sampler; the trainable parameters change."""

    optimizer: torch.optim.Optimizer
    """Optimiser over the trainable parameters."""

    old: Mapping[str, Tensor] | None = None
    """Trainable parameters of the policy that samples, where it is not the one that learns."""

    behaviour: Mapping[str, Tensor] | None = None
    """Trainable parameters of the policy that sampled ahead, before the last update; None where
    it is still there."""

    loss_scale: LossScale | None = None
    """Factor on the loss in the backward pass; None where gradients do not need it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """Outcome of an update."""

    metrics: dict[str, float]
    """Means over the update, by the name of the metric."""

    drift: Drift | None = None
    """Change of every sample's log-density under each caption; None without captions."""

    old: dict[str, Tensor] | None = None
    """Trainable parameters of the policy that samples next, where it is not the one that learns."""

    loss_scale: LossScale | None = None
    """Factor on the loss in the next backward pass; None where gradients do not need it."""


@runtime_checkable
class Method(Protocol):
    """A family of algorithms: how rewards are compared, and how the comparison is learnt."""

    def reward_metrics(self, rewards: RewardTable) -> dict[str, float]:
        """Summarise an iteration's rewards for the metrics file."""
        ...

    def joint_mean(self, rewards: RewardTable) -> float:
        """Average the joint reward for the constraint."""
        ...

    def compare(
        self,
        rewards: RewardTable,
        samples: Sequence[Samples],
        iteration: Iteration,
        *,
        multiplier: float,
    ) -> Advantages:
        """Turn the rewards of all prompts into advantages."""
        ...

    def learn(self, learner: Learner, experience: Experience, iteration: Iteration) -> Learned:
        """Replay this process's samples with gradients, and change the parameters."""
        ...
