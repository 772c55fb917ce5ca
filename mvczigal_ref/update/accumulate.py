"""One microbatch: replay both arms, one graph after the other, and add up gradients."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.policy import Policy
from mvczigal_ref.records import Trajectory
from mvczigal_ref.update.batch import PairBatch, PairObjective, StepLogProb, UpdateSettings
from mvczigal_ref.update.microbatch import GradientStats
from mvczigal_ref.update.replay import replay_log_prob

__all__ = ["accumulate_pairs", "replay"]


def accumulate_pairs(
    policy: Policy,
    sampler: Sampler,
    batch: PairBatch,
    steps: Sequence[int],
    objective: PairObjective,
    *,
    weight: float,
    on_policy: bool,
    settings: UpdateSettings,
) -> GradientStats:
    r"""Add one microbatch's share of the loss gradient to the parameters.

    .. math::
        \nabla L = \sum_i \frac{\partial L}{\partial \ell^z_i} \nabla \log p_\theta(z_i)
        + \frac{\partial L}{\partial \ell^s_i} \nabla \log p_\theta(s_i)

    Source:
        The chain rule on the pair loss of arXiv:2505.20107; the released trainer holds both
        graphs, this never does.

    Args:
        policy: The network; its gradients grow.
        sampler: The kernel that sampled the pairs.
        batch: Some pairs.
        steps: Steps replayed together, in one network call an arm.
        objective: Gives the loss and both derivatives from numbers alone.
        weight: This microbatch's share of the whole loss, times the loss scale [1].
        on_policy: Whether the parameters are those that sampled. Then the
            second arm's stored log-density stands for its value; otherwise it is
            replayed once more, without gradient.
        settings: Guidance, reduction and clip range.

    Returns:
        Sums for the metrics.

    Raises:
        NonFiniteError: If a log-density or the loss is not finite; names object, view and step.
    """
    index = list(steps)
    old_zigzag = batch.rollout.zigzag.log_prob[index]
    old_standard = batch.rollout.standard.log_prob[index]
    gap = batch.advantage_gap.to(old_zigzag.dtype).expand_as(old_zigzag)
    standard_value = old_standard
    if not on_policy:
        with torch.no_grad():
            standard_value = replay(policy, sampler, batch, batch.rollout.standard, steps, settings)
    zigzag = replay(policy, sampler, batch, batch.rollout.zigzag, steps, settings)
    zigzag_ratio, standard_ratio = zigzag.detach() - old_zigzag, standard_value - old_standard
    gradients = objective(zigzag_ratio, standard_ratio, gap)
    _check_finite(
        gradients.loss,
        batch,
        steps,
        log_ratio_zigzag=zigzag_ratio,
        log_ratio_standard=standard_ratio,
        advantage_gap=gap,
    )
    zigzag.backward(weight * gradients.zigzag)
    del zigzag
    standard = replay(policy, sampler, batch, batch.rollout.standard, steps, settings)
    standard_ratio = standard.detach() - old_standard
    _check_finite(gradients.loss, batch, steps, log_ratio_standard=standard_ratio)
    standard.backward(weight * gradients.standard)
    both = torch.stack([zigzag_ratio, standard_ratio])
    return GradientStats(
        loss=gradients.loss * gap.numel(),
        log_ratio_square=both.square().sum(),
        clipped=(both.abs() > settings.clip_range).sum().to(both.dtype),
        deviation=both.abs().max(),
        asks=gradients.zigzag.any() | gradients.standard.any(),
        count=gap.numel(),
        num_log_ratios=2 * gap.numel(),
    )


def replay(
    policy: Policy,
    sampler: Sampler,
    batch: PairBatch,
    trajectory: Trajectory,
    steps: Sequence[int],
    settings: UpdateSettings,
) -> StepLogProb:
    """Score one arm of a batch as its settings say; see :func:`replay_log_prob`.

    Args:
        policy: The network.
        sampler: The kernel that sampled the pairs.
        batch: Some pairs.
        trajectory: One arm of them.
        steps: Which steps.
        settings: Guidance and reduction.

    Returns:
        Log-densities [nats or nats/element]. Gradient flows to the policy.
    """
    return replay_log_prob(
        policy,
        sampler,
        trajectory,
        steps,
        batch.conditioning,
        guidance_scale=settings.guidance_scale,
        camera_scale=settings.camera_scale,
        reduction=settings.reduction,
    )


def _check_finite(
    loss: Tensor, batch: PairBatch, steps: Sequence[int], **tables: StepLogProb
) -> None:
    """Name the first entry of the first table that is not finite, or what made the loss so."""
    finite = torch.stack([table.isfinite().all() for table in tables.values()])
    if bool(finite.all() & loss.isfinite()):
        return
    for name, table in tables.items():
        bad = (~table.isfinite()).nonzero().tolist()
        if bad:
            step, item, view = bad[0]
            raise NonFiniteError(
                name,
                object=batch.first_object + item,
                view=view,
                step=steps[step],
                value=float(table[step, item, view]),
            )
    # All entries are finite, and the square of the largest is not.
    table = torch.stack([table.abs() for table in tables.values()]).amax(0)
    step, item, view = (table == table.max()).nonzero().tolist()[0]
    raise NonFiniteError(
        "loss", object=batch.first_object + item, view=view, step=steps[step], value=float(loss)
    )
