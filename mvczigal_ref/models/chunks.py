"""Work in chunks that fit in memory, on the device and in the dtype of a network."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["as_input", "device_of", "in_chunks"]


def in_chunks(function: Callable[[Tensor], Tensor], rows: Tensor, *, size: int) -> Tensor:
    r"""Apply a function to chunks of rows and join the results.

    .. math:: y = [f(x_{1 \dots n}), f(x_{n+1 \dots 2n}), \dots]

    For a function that treats each row by itself, the size changes the memory, and the results
    only by rounding.

    Args:
        function: Returns one entry per row along the first axis. Gradient flows where the
            function lets it.
        rows: Tensor of any shape with a first axis; no row at all is one empty chunk.
        size: Rows per call [1]; positive. The last call gets the rest.

    Returns:
        The joined results.

    Raises:
        ValueError: If ``size`` is not positive, or if the function returns another number
            of rows than it was given.

    Examples:
        >>> in_chunks(lambda part: part * len(part), torch.ones(5), size=2).tolist()
        [2.0, 2.0, 2.0, 2.0, 1.0]
    """
    if size < 1:
        msg = f"`size` must be positive; got {size}; use the rows that fit in memory at once."
        raise ValueError(msg)
    results = []
    for part in rows.split(size):
        result = function(part)
        if result.shape[:1] != part.shape[:1]:
            msg = (
                f"`function` must return one entry per row; got shape {tuple(result.shape)} for "
                f"{len(part)} rows; keep the first axis."
            )
            raise ValueError(msg)
        results.append(result)
    return torch.cat(results)


def device_of(network: nn.Module) -> torch.device:
    """Return the device of a network.

    Args:
        network: Has at least one parameter, and all of them in one place.

    Returns:
        The device of its first parameter.

    Examples:
        >>> device_of(nn.Linear(1, 1))
        device(type='cpu')
    """
    return next(network.parameters()).device


def as_input(tensor: Tensor, network: nn.Module) -> Tensor:
    """Put a tensor on a network's device; floating-point numbers also take its dtype.

    Args:
        tensor: Token ids or numbers. Gradient flows through numbers.
        network: Has at least one parameter, and all of them of one kind in one place.

    Returns:
        The tensor itself where nothing needs to change.

    Examples:
        >>> network = nn.Linear(1, 1, dtype=torch.bfloat16)
        >>> as_input(torch.ones(1), network).dtype, as_input(torch.tensor([7]), network).dtype
        (torch.bfloat16, torch.int64)
    """
    like = next(network.parameters())
    return tensor.to(like.device, like.dtype if tensor.is_floating_point() else None)
