"""RewardTable, the rewards of an iteration: one number per condition, prompt, sample and view."""

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.reward.aggregate import weighted_sum

__all__ = ["RewardTable"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardTable:
    """Raw rewards by scorer; condition 0 is the prompt itself [reward units].

    A pair is a group of two: sample 0 is the zigzag arm, sample 1 the standard one.

    Examples:
        >>> import torch
        >>> table = RewardTable(
        ...     per_view={"sharp": torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])},
        ...     joint={}, weights={"sharp": 0.5},
        ... )
        >>> table.per_view_total().tolist(), table.joint_total().tolist()
        ([[[[0.5, 1.5], [2.5, 3.5]]]], [[[1.0, 3.0]]])
    """

    per_view: Mapping[str, Float[Tensor, "condition prompt sample view"]]
    """Rewards of single views by scorer [reward units]."""

    joint: Mapping[str, Float[Tensor, "condition prompt sample"]]
    """Rewards of all views together by scorer; empty if the mean of the per-view rewards
    is the joint reward [reward units]."""

    weights: Mapping[str, float]
    """Weight of every scorer [1 / reward units]."""

    def per_view_total(self) -> Float[Tensor, "condition prompt sample view"]:
        """Add the per-view rewards, each times its weight."""
        return self._total(self.per_view)

    def joint_total(self) -> Float[Tensor, "condition prompt sample"]:
        """Add the joint rewards, each times its weight; without one, average over views."""
        if not self.joint:
            return self.per_view_total().mean(-1)
        return self._total(self.joint)

    def require_finite(self) -> None:
        """Refuse a non-finite reward.

        Raises:
            NonFiniteError: If a reward is NaN or infinite; names its scorer and place.
        """
        for name, table in (*self.per_view.items(), *self.joint.items()):
            _require_finite(name, table)

    def _total(self, tables: Mapping[str, Tensor]) -> Tensor:
        names = sorted(tables)
        return weighted_sum(
            {name: tables[name] for name in names},
            weights={name: self.weights[name] for name in names},
        )


def _require_finite(name: str, table: Tensor) -> None:
    """Name the first non-finite reward."""
    places = (~table.isfinite()).nonzero().tolist()
    if not places:
        return
    condition, prompt, sample, *view = places[0]
    under = f" under caption {condition}" if condition else ""
    raise NonFiniteError(
        f"reward/{name} of sample {sample}{under}",
        object=prompt,
        view=view[0] if view else None,
        value=table[tuple(places[0])].item(),
    )
