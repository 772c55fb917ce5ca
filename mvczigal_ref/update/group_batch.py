"""What an update over groups is given: decisions, advantages, and an objective."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.policy import Conditioning
from mvczigal_ref.records import GroupDecision

__all__ = [
    "GroupBatch",
    "GroupDiagnostics",
    "GroupObjective",
    "MemberTable",
    "Reference",
    "ReplayedDecision",
]

# Members differ from decision to decision: a tree grows.
StoredTable = Float[Tensor, "prompt _ view"]


MemberTable = Float[Tensor, "member prompt view"]


MemberLatent = Float[Tensor, "member prompt view c h w"]


Reference = Callable[[], AbstractContextManager[None]]
"""Turns the policy into the network that training started from, for a while."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayedDecision:
    """What an objective may ask of one decision under the present parameters."""

    log_ratio: MemberTable
    """New log-density minus the old one, under one condition [nats or nats/element]. Gradient
    flows."""

    advantage: MemberTable
    """Of each member [1]."""

    weight: MemberTable
    """Of each term [1]."""

    repeats: MemberTable
    """How many conditions each term stands for, as a share of the mean [1]."""

    mean: MemberLatent
    """Of the Gaussians [1]. Gradient flows."""

    std: MemberTable
    """Their standard deviation [1]."""

    step: int
    """Index into the sampling grid."""

    mean_old: MemberLatent | None
    """When the actions were drawn [1]; None where the rollout did not keep it."""

    mean_reference: MemberLatent | None
    """Under the reference network [1]; None where there is none."""


@runtime_checkable
class GroupDiagnostics(Protocol):
    """What an objective tells beside its loss."""

    @property
    def clip_fraction(self) -> Tensor:
        """Share of ratios beyond the clip range."""
        ...

    @property
    def reference_kl(self) -> Tensor:
        """Mean divergence from the reference; 0 if none."""
        ...


GroupObjective = Callable[[ReplayedDecision], tuple[Tensor, GroupDiagnostics]]
"""From a replayed decision to the mean loss of its terms, with gradient, and diagnostics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupBatch:
    """One slice of prompts under one condition each: what is replayed together."""

    decisions: tuple[GroupDecision, ...]
    """What the members drew, with the densities that the network which sampled gives it under
    this condition."""

    conditioning: Conditioning
    """Of the prompts, or of other captions in their place."""

    advantage: tuple[StoredTable, ...]
    """A table per decision, under this condition [1]."""

    step_weight: tuple[float, ...]
    """A weight per decision [1]."""

    objects: tuple[int, ...]
    """Index of each prompt within the iteration, for messages."""

    condition_weight: tuple[float, ...] | None = None
    """What those of each prompt's conditions weigh together that this one stands for, where a
    condition weighs 1 on average [1]; None is 1 each."""

    repeats: tuple[int, ...] | None = None
    """How many conditions of each prompt this one stands for; None is 1 each."""

    def __post_init__(self) -> None:
        """Refuse tables that do not fit the decisions."""
        count = len(self.decisions)
        tables = (self.advantage, self.step_weight)
        if not count or any(len(table) != count for table in tables):
            msg = (
                "`decisions`, `advantage` and `step_weight` must have one entry per decision, at "
                f"least one; got {count}, {', '.join(str(len(t)) for t in tables)}."
            )
            raise ValueError(msg)
        per_prompt = {"condition_weight": self.condition_weight, "repeats": self.repeats}
        for name, values in per_prompt.items():
            if values is not None and len(values) != len(self.objects):
                msg = (
                    f"`{name}` must have one entry per prompt, {len(self.objects)}; "
                    f"got {len(values)}."
                )
                raise ValueError(msg)
