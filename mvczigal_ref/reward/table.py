"""Tables of rewards: the weighted totals, and each scorer's part."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.shapes import (
    JointViewReward,
    PerViewReward,
)

__all__ = ["GroupRewards", "RewardTable", "ScorerRewards"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerRewards:
    """Raw rewards of one scorer, unweighted [reward units]."""

    zigzag: Float[Tensor, " object *view"]
    """Of the zigzag arm, one a view or one an object."""

    standard: Float[Tensor, " object *view"]
    """Of the standard arm, entry for entry."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardTable:
    """Raw rewards of both arms [reward units]: the weighted sums, and what was added."""

    per_view_zigzag: PerViewReward
    """Of the zigzag arm, one a view."""

    per_view_standard: PerViewReward
    """Of the standard arm, object for object."""

    joint_view_zigzag: JointViewReward
    """Of the zigzag arm, one an object."""

    joint_view_standard: JointViewReward
    """Of the standard arm, object for object."""

    per_view_parts: Mapping[str, ScorerRewards] = field(default_factory=dict)
    """Of each per-view scorer by name."""

    joint_view_parts: Mapping[str, ScorerRewards] = field(default_factory=dict)
    """Of each joint-view scorer by name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRewards:
    """Raw rewards by scorer, conditions first [reward units]."""

    per_view: Mapping[str, Float[Tensor, "condition prompt sample view"]]
    """Of single views."""

    joint: Mapping[str, Float[Tensor, "condition prompt sample"]]
    """Of all views together; empty where the mean of the per-view reward stands for it."""

    weights: Mapping[str, float]
    """Of every scorer [1 / reward units]."""

    def per_view_total(self) -> Float[Tensor, "condition prompt sample view"]:
        """Add the per-view rewards, each times its weight."""
        return _total(self.per_view, self.weights)

    def joint_total(self) -> Float[Tensor, "condition prompt sample"]:
        """Add the joint rewards; the mean over views where there are none."""
        if not self.joint:
            return self.per_view_total().mean(-1)
        return _total(self.joint, self.weights)

    def require_finite(self) -> None:
        """Refuse a reward that is not finite.

        Raises:
            NonFiniteError: Names its scorer and place.
        """
        for name, table in (*self.per_view.items(), *self.joint.items()):
            _check_finite(name, table)


def _total(tables: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    return torch.stack([weights[name] * table for name, table in sorted(tables.items())]).sum(0)


def _check_finite(name: str, table: Tensor) -> None:
    """Name the first reward that is not finite."""
    bad = (~table.isfinite()).nonzero().tolist()
    if not bad:
        return
    condition, prompt, sample, *view = bad[0]
    under = f" under caption {condition}" if condition else ""
    raise NonFiniteError(
        f"reward/{name} of sample {sample}{under}",
        object=prompt,
        view=view[0] if view else None,
        value=table[tuple(bad[0])].item(),
    )
