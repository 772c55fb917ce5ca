"""Bytes of weights that are cut over processes, and of what is gathered for a while."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mvczigal_ref.models.sharding import sharded_blocks

__all__ = ["block_bytes", "gathered_bytes", "part_bytes"]


def part_bytes(tensors: Iterable[Tensor], processes: int) -> int:
    """Add up the largest part of each tensor, cut along its first axis.

    Args:
        tensors: Tensors that are cut; those without an axis stay whole.
        processes: Parts of each.

    Returns:
        Memory of one process [bytes].

    Examples:
        >>> part_bytes([torch.zeros(5, 2)], 4)
        16
    """
    return sum(
        math.ceil(t.shape[0] / processes) * math.prod(t.shape[1:]) * t.element_size()
        if t.ndim
        else t.element_size()
        for t in tensors
    )


def gathered_bytes(
    network: Any,  # noqa: ANN401 - diffusers is untyped
    *,
    whole: Iterable[Tensor],
    trained: bool,
    compute_dtype: torch.dtype | None = None,
) -> int:
    r"""Bound what the engine holds beside the parts during a network call.

    The weights that no block holds are there throughout; of the largest block there are the weights
    in use, those of the next one that are on their way, and the buffer through which they come; and
    where weights are trained, its gradient and the buffer, in fp32, through which that leaves.

    Args:
        network: UNet or flow transformer.
        whole: Parameters that no process cuts, such as a LoRA.
        trained: Whether every weight is trained.
        compute_dtype: Floating type of gathered weights; None is that of the parts.

    Returns:
        Memory [bytes].
    """
    *blocks, rest = _blocks(network, whole)

    def size(block: Sequence[Tensor]) -> int:
        return sum(p.numel() * (compute_dtype or p.dtype).itemsize for p in block)

    def with_buffers(block: Sequence[Tensor]) -> int:
        leaving = size(block) + 4 * sum(p.numel() for p in block)
        return 3 * size(block) + trained * leaving

    return size(rest) + max(map(with_buffers, blocks), default=0)


def block_bytes(network: Any, *, whole: Iterable[Tensor]) -> int:  # noqa: ANN401
    """Size the largest set of weights that are gathered together.

    Args:
        network: UNet or flow transformer.
        whole: Parameters that no process cuts, such as a LoRA.

    Returns:
        Memory [bytes].
    """
    blocks = _blocks(network, whole)
    return max(sum(p.numel() * p.element_size() for p in block) for block in blocks)


def _blocks(network: Any, whole: Iterable[Tensor]) -> list[list[Tensor]]:  # noqa: ANN401
    """List the parameters of each block, the network's own last."""
    seen = {id(tensor) for tensor in whole}
    blocks: list[list[Tensor]] = []
    for block in sharded_blocks(network):
        parameters: list[Tensor] = [p for p in block.parameters() if id(p) not in seen]
        seen |= {id(p) for p in parameters}
        blocks.append(parameters)
    return blocks
