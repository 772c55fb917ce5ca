"""Parameter averages, and parameters that are swapped for a while."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = [
    "Parameters",
    "follow_parameters",
    "mixed_parameters",
    "named_parameters",
    "parameter_copies",
    "parameters_as",
]

Parameters = Mapping[str, Tensor] | Sequence[Tensor]
"""Trainable parameters, by name or in order."""


def named_parameters(parameters: Parameters) -> Mapping[str, Tensor]:
    """Name parameters by their place where they have no names.

    Args:
        parameters: Parameters by name or in order.

    Returns:
        Parameters by name.

    Examples:
        >>> list(named_parameters([torch.zeros(1), torch.zeros(1)]))
        ['parameters[0]', 'parameters[1]']
    """
    if isinstance(parameters, Mapping):
        return parameters
    return {f"parameters[{place}]": value for place, value in enumerate(parameters)}


def parameter_copies(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy values, which the parameters may leave.

    Args:
        parameters: Parameters by name.

    Returns:
        Detached copies by name.

    Examples:
        >>> parameter_copies({"w": nn.Parameter(torch.ones(1))})
        {'w': tensor([1.])}
    """
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


@torch.no_grad()
def follow_parameters(
    average: Mapping[str, Tensor], parameters: Mapping[str, Tensor], *, decay: float, steps: int
) -> dict[str, Tensor]:
    r"""Let an average follow the parameters, at once in the beginning and slowly later.

    .. math:: \bar\theta \leftarrow d\, \bar\theta + (1 - d)\, \theta, \qquad
        d = \min\Big(\bar d, \frac{1 + n}{10 + n}\Big)

    Source:
        arXiv:2505.05470 (Flow-GRPO), which evaluates and keeps the average.

    Args:
        average: Average by name, in the parameters' dtypes.
        parameters: Parameters by the same names.
        decay: :math:`\bar d` [1], in [0, 1).
        steps: :math:`n`, optimiser steps so far.

    Returns:
        The new average.

    Raises:
        ValueError: If names differ, or ``decay`` or ``steps`` is out of range.

    Examples:
        >>> before, now = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
        >>> follow_parameters(before, now, decay=0.9, steps=8)["w"].item()
        0.5
        >>> round(follow_parameters(before, now, decay=0.9, steps=800)["w"].item(), 6)
        0.1
    """
    if average.keys() != parameters.keys():
        differing = sorted(average.keys() ^ parameters.keys())[:3]
        raise ValueError(f"`average` must have the parameters' names; these differ: {differing}.")
    if not 0.0 <= decay < 1.0 or steps < 0:
        msg = f"`decay` must be in [0, 1) and `steps` not negative; got {decay} and {steps}."
        raise ValueError(msg)
    return mixed_parameters(average, parameters, old_share=min(decay, (1 + steps) / (10 + steps)))


def mixed_parameters(
    old: Mapping[str, Tensor], parameters: Mapping[str, Tensor], *, old_share: float
) -> dict[str, Tensor]:
    r"""Move some values towards the parameters: :math:`d\, \theta' + (1 - d)\, \theta`.

    Args:
        old: Old values by name.
        parameters: Parameters by the same names. No gradient flows.
        old_share: :math:`d`, share of the old values [1].

    Returns:
        The new values.

    Examples:
        >>> zero, one = {"w": torch.zeros(1)}, {"w": torch.ones(1)}
        >>> mixed_parameters(zero, one, old_share=0.75)["w"].item()
        0.25
    """
    return {
        name: old_share * old[name] + (1.0 - old_share) * parameter.detach()
        for name, parameter in parameters.items()
    }


@contextmanager
def parameters_as(
    trained: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]
) -> Iterator[None]:
    """Give trainable parameters other values for a while.

    Args:
        trained: Trainable parameters by name, changed in place.
        values: Values that they have meanwhile.

    Yields:
        Nothing.

    Examples:
        >>> weight = nn.Parameter(torch.ones(1))
        >>> with parameters_as({"w": weight}, {"w": torch.zeros(1)}):
        ...     weight.item()
        0.0
        >>> weight.item()
        1.0
    """
    before = parameter_copies(trained)
    _overwrite(trained, values)
    try:
        yield
    finally:
        _overwrite(trained, before)


@torch.no_grad()
def _overwrite(trained: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, parameter in trained.items():
        parameter.copy_(values[name])
