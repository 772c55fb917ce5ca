"""Lookup in a grid's tables, and the refusal of indices and levels that do not fit."""

import math

from torch import Tensor

from mvczigal_ref.diffusion.precision import require_full_precision
from mvczigal_ref.shapes import BatchLatent

__all__ = ["level_at", "require_index", "require_levels"]


def level_at(table: Tensor, step: int | Tensor) -> Tensor:
    """Look a level up without reading the index from its device.

    Args:
        table: One entry per step.
        step: An int, which is checked, or int64 indices, which must hold 0..num_steps-1.

    Returns:
        The entries, in the shape of ``step``; 0-d for an int.

    Raises:
        ValueError: If ``step`` is an int outside the grid.

    Examples:
        >>> import torch
        >>> level_at(torch.tensor([0.1, 0.9]), torch.tensor([[1, 0]]))
        tensor([[0.9000, 0.1000]])
    """
    if isinstance(step, Tensor):
        # Plain indexing reads a 0-d index from its device; a gather never does.
        index = step.to(table.device).reshape(-1)
        return table.index_select(0, index).reshape(step.shape)
    num_steps = table.shape[0]
    if not 0 <= step < num_steps:
        msg = f"`step` must be in 0..{num_steps - 1}, 0 the noisiest; got {step}."
        raise ValueError(msg)
    return table[step]


def require_index(step: int | Tensor, latent: BatchLatent) -> None:
    """Refuse indices that broadcasting would pair with another axis of the batch.

    Indices ``(n,)`` on latents ``(n, n, c, h, w)`` would go to the second axis without a word.
    Shapes alone are read, never a value.

    Args:
        step: One index, or indices with one axis per axis of the batch, of its length or 1.
        latent: The latents that are stepped.

    Raises:
        ValueError: If it is a tensor of another shape.

    Examples:
        >>> import torch
        >>> require_index(torch.tensor([[0], [1]]), torch.zeros(2, 3, 1, 1, 1))
    """
    if not isinstance(step, Tensor):
        return
    batch, index = tuple(latent.shape[:-3]), tuple(step.shape)
    if not _fits(index, batch):
        msg = (
            f"`step` must be one index, or have one axis per batch axis of the latents, {batch}, "
            f"of its length or 1; got {index}. One index per row of a table is step[:, None]."
        )
        raise ValueError(msg)


def require_levels(latent: BatchLatent, **levels: Tensor) -> None:
    """Refuse levels and spreads that are narrow, or that broadcasting would pair with other axes.

    Levels ``(n, 1, 1, 1)`` on latents ``(n, c, h, w)`` would make ``n * n`` latents, and levels
    ``(n,)`` on packed tokens ``(n, token, channel)`` too. Shapes alone are read, never a value.

    Args:
        latent: Latents that the levels are of.
        **levels: One number of any shape, or numbers with one axis per axis of the batch, of its
            length or 1; under the name that the caller knows them by.

    Raises:
        ValueError: If one is no tensor, of half precision, or of another shape.

    Examples:
        >>> import torch
        >>> require_levels(torch.zeros(2, 3, 1, 1, 1), sigma_t=torch.tensor([[0.5], [0.25]]))
    """
    require_full_precision(**levels)
    batch = tuple(latent.shape[:-3])
    for name, level in levels.items():
        shape = tuple(level.shape)
        if math.prod(shape) != 1 and not _fits(shape, batch):
            msg = (
                f"`{name}` must be one number, or have one axis per batch axis of the latents "
                f"{tuple(latent.shape)}, {batch}, of its length or 1; got {shape}. "
                f"{_remedy(name, shape, batch)}"
            )
            raise ValueError(msg)


def _fits(shape: tuple[int, ...], batch: tuple[int, ...]) -> bool:
    """Say whether numbers are one for all, or have an axis per axis of the batch."""
    one = math.prod(shape) == 1 and len(shape) <= len(batch)
    paired = len(shape) == len(batch) and all(
        axis in (1, length) for axis, length in zip(shape, batch, strict=True)
    )
    return one or paired


def _remedy(name: str, shape: tuple[int, ...], batch: tuple[int, ...]) -> str:
    """Name the likely cause: axes of the latent itself, packed tokens, or an axis too few."""
    if shape[-3:] == (1, 1, 1):
        return f"Leave the latents' own axes out: `{name}[..., 0, 0, 0]`."
    if not batch:
        return "Packed tokens (row, token, channel) are latents of one channel: `latent[:, None]`."
    if len(shape) < len(batch):
        return f"One number per row of a table is `{name}[:, None]`."
    return "Reshape it."
