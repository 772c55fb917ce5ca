"""Records of an update over groups: decisions, advantages, and what an objective reads."""

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
"""Parameter swap: turns the policy into the reference policy for a while."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayedDecision:
    """One decision under the present parameters, as an objective reads it."""

    log_ratio: MemberTable
    """New log-density of each action minus its old one, both under one condition [nats or
    nats/element]. Gradient flows."""

    advantage: MemberTable
    """Advantage of each member under that condition [1]."""

    weight: MemberTable
    """Weight of each member's term in the loss, over its step and conditions; 1 on average [1]."""

    repeats: MemberTable
    """Number of conditions that each term stands for, divided by its mean [1]."""

    mean: MemberLatent
    """Mean of each member's Gaussian [1]. Gradient flows."""

    std: MemberTable
    """Standard deviation of each member's Gaussian [1]."""

    step: int
    """Index into the sampling grid."""

    mean_old: MemberLatent | None
    """Mean of each member's Gaussian when its action was drawn [1]; None where the rollout did not
    keep it."""

    mean_reference: MemberLatent | None
    """Mean of each member's Gaussian under the reference policy [1]; None where there is none."""

    share: MemberTable | None = None
    """Weight of each prompt's terms in every mean, divergences among them; 1 on average [1]; None
    is 1 each."""

    sequence: MemberTable | None = None
    """Mean log-ratio of each member's trajectory over its trained steps, without gradient [nats or
    nats/element]; None where no objective reads it."""


@runtime_checkable
class GroupDiagnostics(Protocol):
    """Numbers that an objective gives beside its loss."""

    @property
    def clip_fraction(self) -> Tensor:
        """Fraction of ratios beyond the clip range [1]."""
        ...

    @property
    def reference_kl(self) -> Tensor:
        """Mean divergence from the reference policy; 0 without one."""
        ...


GroupObjective = Callable[[ReplayedDecision], tuple[Tensor, GroupDiagnostics]]
"""From a replayed decision to the mean loss of its terms, with gradient, and diagnostics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupBatch:
    """Prompts of one slice under one condition each, replayed together."""

    decisions: tuple[GroupDecision, ...]
    """Actions that the members drew, with the log-densities that the sampling policy gives them
    under this condition."""

    conditioning: Conditioning
    """Text and cameras of the prompts, or of other captions in their place."""

    advantage: tuple[StoredTable, ...]
    """Advantages under this condition, one table per decision [1]."""

    step_weight: tuple[float, ...]
    """Weight of each decision's step, one number per decision [1]."""

    objects: tuple[int, ...]
    """Index of each prompt within the iteration, for messages."""

    condition_weight: tuple[float, ...] | None = None
    """Weight of each prompt under this text: the sum over the conditions with this text, each of
    which weighs 1 on average [1]; None is 1 each."""

    repeats: tuple[int, ...] | None = None
    """Number of each prompt's conditions with this text; None is 1 each."""

    shares: tuple[float, ...] | None = None
    """Weight of each prompt in every mean, 0 where its group is left out and 1 on average [1]; None
    is 1 each."""

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
        per_prompt = {
            "condition_weight": self.condition_weight,
            "repeats": self.repeats,
            "shares": self.shares,
        }
        for name, values in per_prompt.items():
            if values is not None and len(values) != len(self.objects):
                msg = (
                    f"`{name}` must have one entry per prompt, {len(self.objects)}; "
                    f"got {len(values)}."
                )
                raise ValueError(msg)
