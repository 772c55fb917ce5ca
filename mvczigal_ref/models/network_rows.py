"""Count of what a network is asked."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["network_rows"]


@contextmanager
def network_rows(policy: nn.Module) -> Iterator[Callable[[], int]]:
    """Count what a network is asked while the context lasts.

    Args:
        policy: The network.

    Yields:
        Asked at any time, tells the rows of all forward passes so far [latents]; what backward
        passes compute again is not counted.

    Examples:
        >>> import torch
        >>> network = nn.Linear(2, 2)
        >>> with network_rows(network) as rows:
        ...     _ = network(torch.zeros(3, 2)), network(torch.zeros(4, 2))
        >>> rows()
        7
    """
    total = 0

    def count(module: object, arguments: tuple[Any, ...]) -> None:
        del module
        nonlocal total
        total += arguments[0].shape[0]

    with policy.register_forward_pre_hook(count):
        yield lambda: total
