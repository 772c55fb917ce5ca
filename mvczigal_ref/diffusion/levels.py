"""Lookup in a grid's tables, and the refusal of indices that do not fit."""

from torch import Tensor

from mvczigal_ref.shapes import BatchLatent

__all__ = ["level_at", "require_index"]


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
    one = step.numel() == 1 and len(index) <= len(batch)
    paired = len(index) == len(batch) and all(
        i in (1, b) for i, b in zip(index, batch, strict=True)
    )
    if not one and not paired:
        msg = (
            f"`step` must be one index, or have one axis per batch axis of the latents, {batch}, "
            f"of its length or 1; got {index}. One index per row of a table is step[:, None]."
        )
        raise ValueError(msg)
