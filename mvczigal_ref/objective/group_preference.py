"""Prefer the better part of a whole group at once, by the errors of two networks on its samples."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.diffusion.precision import require_positive
from mvczigal_ref.objective.advantage_matching import matching_error
from mvczigal_ref.objective.clipped import SurrogateStats
from mvczigal_ref.objective.reward_difference import check_paired
from mvczigal_ref.shapes import BatchLatent, Scalar

__all__ = ["group_preference_loss", "group_preference_weight"]


def group_preference_weight(
    error: Float[Tensor, "member ..."],
    error_reference: Float[Tensor, "member ..."],
    advantage: Float[Tensor, "member ..."],
    *,
    scale: float,
) -> Float[Tensor, "..."]:
    r"""Weigh a group by how far the network is from preferring its better part.

    .. math:: w_g = \mathrm{sigmoid}\Big(\frac{\beta}{G} \sum_i A_i (e_i - e^{ref}_i)\Big)

    Where errors of good samples have fallen below the reference's, the weight goes to 0.

    Source:
        arXiv:2510.08425 (DGPO), the derivative of its logistic loss by the group's score.

    Args:
        error: :math:`e` of each sample under the network, members first [velocity^2].
        error_reference: Errors under the frozen network.
        advantage: :math:`A` within the group, of sum 0 [1].
        scale: :math:`\beta` [1 / velocity^2]; positive. Published: 100.

    Returns:
        :math:`w` in (0, 1), without gradient; 1/2 at the reference.

    Raises:
        ValueError: If ``scale`` is not positive, shapes differ, or a tensor is empty or half
            precision.

    Examples:
        >>> group_preference_weight(
        ...     torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5]), torch.tensor([1.0, -1.0]),
        ...     scale=100.0,
        ... ).item()
        0.5
    """
    require_positive(scale=scale)
    check_paired(error=error, error_reference=error_reference, advantage=advantage)
    return (scale * (advantage * (error - error_reference)).mean(dim=0)).sigmoid().detach()


def group_preference_loss(
    velocity: BatchLatent,
    *,
    velocity_old: BatchLatent,
    velocity_reference: BatchLatent,
    clean: BatchLatent,
    latent_t: BatchLatent,
    level: Float[Tensor, "member ..."],
    advantage: Float[Tensor, "member ..."],
    scale: float,
    clip_range: float,
    kl_weight: float = 0.0,
) -> tuple[Scalar, SurrogateStats]:
    r"""Lower the errors of a group's better samples and raise the others', as far as needed.

    .. math:: L = \frac{1}{n} \sum_{g, i} w_g A_i e_i
        + \beta_{KL}\, \overline{(v_\theta - v_{ref})^2}

    with :math:`w` of :func:`group_preference_weight`. An error whose ratio
    :math:`e^{e^{old} - e}` has left :math:`1 \pm` ``clip_range`` the way its advantage points
    gives no gradient.

    Source:
        arXiv:2510.08425 (DGPO) in the form of equal gradient of its released trainer, whose
        clip it has. A group of two with advantages 1 and -1 is Diffusion-DPO (arXiv:2311.12908)
        of half the scale.

    Args:
        velocity: :math:`v_\theta`, members of a group first, fp32 or fp64. Gradient flows.
        velocity_old: Velocity of the policy that sampled, for the clip. No gradient flows.
        velocity_reference: Velocity of the frozen network. No gradient flows.
        clean: :math:`x_0`, the sample that was scored. No gradient flows.
        latent_t: :math:`x_t = (1 - t) x_0 + t \epsilon`. No gradient flows.
        level: :math:`t` of each latent [noise level] in (0, 1].
        advantage: :math:`A` of each latent's sample [1]. No gradient flows.
        scale: :math:`\beta` [1 / velocity^2]; positive.
        clip_range: Largest trusted change of a ratio [1]; positive, ``math.inf`` for no clip.
        kl_weight: :math:`\beta_{KL}` [1 / velocity^2]; finite, not negative.

    Returns:
        The loss, and its detached diagnostics.

    Raises:
        ValueError: If a setting is out of its range, shapes differ, or a tensor is empty or half
            precision.

    Examples:
        >>> zero, one = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
        >>> loss, _ = group_preference_loss(
        ...     zero, velocity_old=zero, velocity_reference=zero, clean=zero, latent_t=one,
        ...     level=torch.tensor([0.5, 1.0]), advantage=torch.tensor([1.0, -1.0]), scale=1.0,
        ...     clip_range=0.1,
        ... )
        >>> loss.item()
        0.75
    """
    if not clip_range > 0.0:
        msg = f"`clip_range` must be positive; got {clip_range!r}; `math.inf` clips nothing."
        raise ValueError(msg)
    if not 0.0 <= kl_weight < math.inf:
        msg = f"`kl_weight` must be finite and not negative; got {kl_weight!r}; 0.0 is without."
        raise ValueError(msg)
    old, reference = velocity_old.detach(), velocity_reference.detach()
    error, error_old, error_reference = (
        matching_error(v, clean=clean, latent_t=latent_t, level=level)
        for v in (velocity, old, reference)
    )
    better = advantage.detach()
    weight = group_preference_weight(error.detach(), error_reference, better, scale=scale)
    log_ratio = (error_old - error).detach()
    change = log_ratio.expm1() * better.sign()
    clipped = change > clip_range
    surrogate = (weight * better * torch.where(clipped, error.detach(), error)).mean()
    distance = (velocity - reference).square().mean()
    loss = surrogate + kl_weight * distance if kl_weight else surrogate
    stats = SurrogateStats(
        approx_kl=log_ratio.square().mean() / 2,
        clip_fraction=clipped.to(error.dtype).mean(),
        surrogate=surrogate.detach(),
        reference_kl=distance.detach(),
    )
    return loss, stats
