"""One change of the parameters, and the search for what made a gradient non-finite."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.records import Trajectory
from mvczigal_ref.update.batch import PairBatch, StepLogProb

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
    batches: Iterable[tuple[PairBatch, Sequence[int]]],
    parameters: Sequence[Tensor],
    replay: Callable[[PairBatch, Trajectory, Sequence[int]], StepLogProb],
) -> NonFiniteError:
    """Find the first object, view and step whose log-density has a non-finite gradient.

    One backward pass for every log-density: slow, and run only when a run has failed.

    Args:
        batches: The microbatches of the failed optimiser step.
        parameters: Trained parameters.
        replay: From a batch, one of its arms and some steps to log-densities with gradient.

    Returns:
        The error to raise; it names no place if every log-density's gradient is finite.
    """
    for batch, steps in batches:
        for trajectory in (batch.rollout.zigzag, batch.rollout.standard):
            log_prob = replay(batch, trajectory, steps)
            for step, item, view in torch.ones_like(log_prob).nonzero().tolist():
                found = torch.autograd.grad(
                    log_prob[step, item, view], parameters, retain_graph=True, allow_unused=True
                )
                if not all(g is None or bool(g.isfinite().all()) for g in found):
                    return NonFiniteError(
                        "gradient", object=batch.first_object + item, view=view, step=steps[step]
                    )
    return NonFiniteError("gradient_norm")
