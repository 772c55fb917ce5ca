"""Grid: the base of every sampler, whose tables move together."""

from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from mvczigal_ref.diffusion.precision import require_full_dtype
from mvczigal_ref.shapes import Timesteps

__all__ = ["Device", "Grid"]

_Grid = TypeVar("_Grid", bound="Grid")

Device = torch.device | str | None
"""Device to move to; None stays."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Steps from the noisiest down, with one entry per step in every table."""

    timesteps: Timesteps
    """Training-time noise index of each step [timesteps]."""

    @property
    def num_steps(self) -> int:
        """Length of the grid [steps]."""
        return self.timesteps.shape[0]

    def to(self: _Grid, device: Device = None, dtype: torch.dtype | None = None) -> _Grid:
        """Return a copy with its tables elsewhere.

        Args:
            device: Device to move to; None stays.
            dtype: Dtype of the tables that are no integers, float32 or float64; None stays.

        Returns:
            The copy.

        Raises:
            ValueError: If ``dtype`` is half precision.

        Examples:
            >>> Grid(timesteps=torch.tensor([751, 501])).to(dtype=torch.float64).timesteps
            tensor([751, 501])
        """
        if dtype is not None:
            require_full_dtype("dtype", dtype)
        tables = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {
            name: table.to(device, dtype if table.is_floating_point() else None)
            for name, table in tables.items()
            if isinstance(table, Tensor)
        }
        return replace(self, **moved)
