"""Optimiser of a run."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mvczigal_ref.config import OptimConfig
from mvczigal_ref.training.low_bit import adamw_8bit

__all__ = ["build_optimizer", "set_rate"]


def build_optimizer(
    parameters: Mapping[str, nn.Parameter], optim: OptimConfig
) -> torch.optim.Optimizer:
    """Make the optimiser of a run, as at its beginning.

    Args:
        parameters: Trainable parameters by name.
        optim: Rate, decays and kind.

    Returns:
        An optimiser without moments.

    Examples:
        >>> weight = nn.Parameter(torch.ones(1))
        >>> build_optimizer({"weight": weight}, OptimConfig(lr=0.5)).param_groups[0]["lr"]
        0.5
    """
    numbers: dict[str, Any] = {
        "lr": optim.lr, "betas": optim.betas, "eps": optim.eps, "weight_decay": optim.weight_decay
    }  # fmt: skip
    trained = list(parameters.values())
    if optim.kind == "adamw8bit":
        return adamw_8bit(trained, **numbers)
    # Bits of the loop over parameters, which torch takes on a CPU, in a tenth of its launches.
    return torch.optim.AdamW(trained, foreach=True, **numbers)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate.

    Args:
        optimizer: Optimiser, which may hold its rate as a tensor.
        rate: Learning rate [parameter units per step].

    Examples:
        >>> optimizer = build_optimizer({"weight": nn.Parameter(torch.ones(1))}, OptimConfig())
        >>> set_rate(optimizer, 0.25)
        >>> optimizer.param_groups[0]["lr"]
        0.25
    """
    for group in optimizer.param_groups:
        before = group["lr"]
        group["lr"] = torch.full_like(before, rate) if isinstance(before, torch.Tensor) else rate
