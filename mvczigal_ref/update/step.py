"""One change of the parameters, and the search for what made a gradient non-finite."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.update.microbatch import Culprit

__all__ = ["locate_non_finite_gradient", "optimizer_step"]


def optimizer_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    *,
    max_grad_norm: float,
    loss_scale: float = 1.0,
    locate: Callable[[], NonFiniteError] | None = None,
    refuse_zero: Callable[[], None] | None = None,
) -> float:
    r"""Take the loss scale out, clip the gradient's norm, change the parameters.

    .. math:: g \leftarrow \frac{g}{s} \min\Big(1, \frac{c}{\lVert g / s \rVert_2}\Big)

    The gradient is forgotten.

    Source:
        Pascanu et al., arXiv:1211.5063; the scale is that of Micikevicius et al.,
        arXiv:1710.03740. No deviation.

    Args:
        optimizer: Holds ``parameters``.
        parameters: Trained parameters, with their gradients.
        max_grad_norm: :math:`c`, the largest Euclidean norm [gradient units]; positive.
        loss_scale: :math:`s`, a power of two that the gradient holds as a factor [1].
        locate: Finds out who made a non-finite gradient, called only then.
        refuse_zero: Raises if the gradient should not be exactly zero, called only then.

    Returns:
        Norm before clipping, without the scale [gradient units]; not finite if a gradient that
        was scaled overflowed, and then parameters are unchanged.

    Raises:
        NonFiniteError: If the norm is not finite at a scale of 1; parameters are unchanged.

    Examples:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> optimizer_step(torch.optim.SGD([weight], lr=1.0), [weight], max_grad_norm=1.0)
        5.0
        >>> weight.data
        tensor([-0.6000, -0.8000])
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if loss_scale != 1.0:
        for gradient in gradients:
            gradient /= loss_scale
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if not math.isfinite(norm):
        optimizer.zero_grad()
        if loss_scale > 1.0:
            return norm
        raise locate() if locate else NonFiniteError("gradient_norm", value=norm)
    # The norm of the smallest numbers rounds to 0.
    if norm == 0.0 and refuse_zero and not any(bool(g.any()) for g in gradients):
        refuse_zero()
    optimizer.step()
    optimizer.zero_grad()
    return norm


def locate_non_finite_gradient(
    tables: Iterable[tuple[Tensor, Culprit]], parameters: Sequence[Tensor]
) -> NonFiniteError:
    """Find the first number of some tables whose gradient is not finite.

    One backward pass for every number: slow, and run only when a run has failed.

    Args:
        tables: Such as log-densities with gradient, and who is at fault by a table's index.
        parameters: Trained parameters.

    Returns:
        The error to raise; it names no place if every number's gradient is finite.
    """
    for table, culprit in tables:
        for index in torch.ones_like(table).nonzero().tolist():
            found = torch.autograd.grad(
                table[tuple(index)], parameters, retain_graph=True, allow_unused=True
            )
            if not all(g is None or bool(g.isfinite().all()) for g in found):
                return culprit(index)
    return NonFiniteError("gradient_norm")
