"""Optimiser of a run."""

from collections.abc import Mapping

import torch
from torch import nn

from mvczigal_ref.config import OptimConfig

__all__ = ["build_optimizer"]


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
    return torch.optim.AdamW(
        list(parameters.values()), lr=optim.lr, betas=optim.betas, eps=optim.eps,
        weight_decay=optim.weight_decay,
    )  # fmt: skip
