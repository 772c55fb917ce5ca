"""One change of the parameters, and the search for what made a gradient non-finite."""

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
    locate: Callable[[], NonFiniteError] | None = None,
) -> float:
    r"""Clip the gradient's norm, change the parameters, forget the gradient.

    .. math:: g \leftarrow g \min(1, c / \lVert g \rVert_2)

    Source:
        Pascanu et al., arXiv:1211.5063. No deviation.

    Args:
        optimizer: Holds ``parameters``.
        parameters: Trained parameters, with their gradients.
        max_grad_norm: :math:`c`, the largest Euclidean norm [gradient units]; positive.
        locate: Finds out who made a non-finite gradient, called only then.

    Returns:
        Norm before clipping [gradient units].

    Raises:
        NonFiniteError: If the norm is not finite; parameters are unchanged.

    Examples:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> optimizer_step(torch.optim.SGD([weight], lr=1.0), [weight], max_grad_norm=1.0)
        5.0
        >>> weight.data
        tensor([-0.6000, -0.8000])
    """
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if not norm < float("inf"):
        optimizer.zero_grad()
        raise locate() if locate else NonFiniteError("gradient_norm", value=norm)
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
