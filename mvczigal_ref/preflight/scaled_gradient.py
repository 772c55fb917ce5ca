"""Gradient of one optimiser step of a run, with its loss scale and without a change."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mvczigal_ref.errors import ZeroGradientError
from mvczigal_ref.system import System
from mvczigal_ref.update.loss_scale import LossScale

__all__ = ["scaled_gradient"]


class _Catcher(torch.optim.Optimizer):
    """An optimiser that changes nothing and keeps the gradient."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        super().__init__(parameters, {})
        self.gradients: list[Tensor | None] = []

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ANN401
        """Keep the gradient of every parameter."""
        del closure
        self.gradients = [p.grad for group in self.param_groups for p in group["params"]]


def scaled_gradient(
    system: System,
    loss_scale: LossScale | None,
    update: Callable[[torch.optim.Optimizer, LossScale | None], tuple[Any, LossScale | None]],
) -> float:
    """Leave the gradient of one optimiser step in the parameters, which do not change.

    A gradient that rounds away whole, at which a run stops, is left as zeros.

    Args:
        system: System whose trained parameters hold the gradient afterwards.
        loss_scale: Scale to begin with; it falls while the gradient overflows.
        update: An update of one optimiser step, with an optimiser and a loss scale.

    Returns:
        The loss scale that the gradient was made with, before it was taken out [1].
    """
    parameters = list(system.trained().values())
    catcher = _Catcher(parameters)
    scale = 1.0
    while not catcher.gradients:
        scale = 1.0 if loss_scale is None else loss_scale.scale
        try:
            _, loss_scale = update(catcher, loss_scale)
        except ZeroGradientError:
            catcher.gradients = [torch.zeros_like(parameter) for parameter in parameters]
    for parameter, gradient in zip(parameters, catcher.gradients, strict=True):
        parameter.grad = gradient
    return scale
