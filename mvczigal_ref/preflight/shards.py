"""Bytes of weights that are cut over processes, and of what is gathered for a while."""

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from mvczigal_ref.models.sharding import sharded_blocks

__all__ = ["gathered_bytes", "part_bytes"]


def part_bytes(tensors: Iterable[Tensor], processes: int) -> int:
    """Add up the largest part of each tensor, cut along its first axis.

    Args:
        tensors: Tensors that are cut; those without an axis stay whole.
        processes: Parts of each.

    Returns:
        Memory of one process [bytes].

    Examples:
        >>> import torch
        >>> part_bytes([torch.zeros(5, 2)], 4)
        16
    """
    return sum(
        math.ceil(t.shape[0] / processes) * math.prod(t.shape[1:]) * t.element_size()
        if t.ndim
        else t.element_size()
        for t in tensors
    )


def gathered_bytes(network: Any, *, whole: Iterable[Tensor], trained: bool) -> int:  # noqa: ANN401
    r"""Bound what the engine holds beside the parts during a network call.

    The weights that no block holds are there throughout; of the largest block there are the weights
    in use, those of the next one that are on their way, and the buffer through which they come; and
    where weights are trained, its gradient and the buffer through which that leaves.

    Args:
        network: UNet or flow transformer.
        whole: Parameters that no process cuts, such as a LoRA.
        trained: Whether every weight is trained.

    Returns:
        Memory [bytes].
    """
    seen, sizes = {id(tensor) for tensor in whole}, []
    for block in sharded_blocks(network):
        parameters = [p for p in block.parameters() if id(p) not in seen]
        seen |= {id(p) for p in parameters}
        sizes.append(sum(p.numel() * p.element_size() for p in parameters))
    *blocks, rest = sizes
    return rest + (5 if trained else 3) * max(blocks, default=0)
