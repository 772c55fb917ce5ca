"""Implicit-model sampling with a chosen stochasticity: one step's Gaussian, and its inversion."""

from mvczigal_ref.diffusion.precision import per_latent, require_full_precision, working_dtype
from mvczigal_ref.diffusion.schedule import PredictionType, clean_and_noise
from mvczigal_ref.diffusion.transition import Transition
from mvczigal_ref.shapes import BatchLatent, BatchShape

__all__ = ["ETA_ZERO_VARIANCE", "ddim_invert", "ddim_transition", "require_eta"]

ETA_ZERO_VARIANCE = 1e-8
"""Variance that the released trainer scores a deterministic step with [1].

A step at ``eta`` 0 is drawn without noise and has no density; its square root is the ``std`` for
:func:`~mvczigal_ref.diffusion.gaussian.log_prob` that gives the released number all the same.
"""


def require_eta(eta: float) -> None:
    """Refuse a stochasticity for which some level would have no direction left.

    Args:
        eta: Stochasticity [1].

    Raises:
        ValueError: If it is outside [0, 1].

    Examples:
        >>> require_eta(1.0)
    """
    if not 0.0 <= eta <= 1.0:
        msg = f"`eta` must be in [0, 1]; got {eta}. 0 is deterministic, 1 is ancestral."
        raise ValueError(msg)


def ddim_transition(
    output: BatchLatent,
    latent_t: BatchLatent,
    *,
    alpha_bar_t: BatchShape,
    alpha_bar_prev: BatchShape,
    eta: float,
    prediction_type: PredictionType,
) -> Transition:
    r"""Move towards the predicted clean latent, with a share of fresh noise.

    .. math::

        \sigma = \eta\sqrt{\frac{1-\bar\alpha_s}{1-\bar\alpha_t}
            \Big(1-\frac{\bar\alpha_t}{\bar\alpha_s}\Big)},\qquad
        x_s \sim \mathcal{N}\big(\sqrt{\bar\alpha_s}\,\hat x_0
            + \sqrt{1-\bar\alpha_s-\sigma^2}\,\hat\epsilon,\ \sigma^2 I\big)

    Source:
        Song et al., arXiv:2010.02502, Eqs. 12 and 16. At ``eta`` 0 the spread is 0 and the mean
        is the next latent. The released trainer of arXiv:2505.20107 draws the mean there too,
        but scores it with a variance of its own, :data:`ETA_ZERO_VARIANCE`.

    Args:
        output: The network's output at ``latent_t``. Gradient flows.
        latent_t: :math:`x_t`. Gradient flows.
        alpha_bar_t: :math:`\bar\alpha_t` [1], in (0, 1).
        alpha_bar_prev: :math:`\bar\alpha_s` of the next lower level [1], in
            (``alpha_bar_t``, 1); equal levels have spread 0 and no density.
        eta: :math:`\eta`, stochasticity [1], in [0, 1].
        prediction_type: What ``output`` is.

    Returns:
        Mean and spread of :math:`x_s`, and ``denoised`` :math:`= \hat x_0`. A step without
        spread has no log-density: ``DdimSampler.log_prob`` refuses it by the step's number,
        ``gaussian.check_std`` by its value, and ``gaussian.log_prob``, which reads no value, is
        NaN.

    Raises:
        ValueError: If ``eta`` is outside [0, 1], ``prediction_type`` is unknown, or a tensor is
            half precision.

    Examples:
        >>> import torch
        >>> step = ddim_transition(
        ...     torch.ones(1, 1, 1),
        ...     torch.ones(1, 1, 1),
        ...     alpha_bar_t=torch.tensor(0.36),
        ...     alpha_bar_prev=torch.tensor(0.64),
        ...     eta=0.0,
        ...     prediction_type="epsilon",
        ... )
        >>> round(step.denoised.item(), 4), round(step.mean.item(), 4), step.std.item()
        (0.3333, 0.8667, 0.0)
    """
    require_full_precision(alpha_bar_prev=alpha_bar_prev)
    require_eta(eta)
    dtype = working_dtype(output=output, latent_t=latent_t)
    clean, noise = clean_and_noise(
        output, latent_t, alpha_bar_t=alpha_bar_t, prediction_type=prediction_type
    )
    noise_t, noise_prev = 1.0 - alpha_bar_t, 1.0 - alpha_bar_prev
    # 1 - abar_s - sigma^2 loses its digits near the clean end; here nothing is subtracted.
    kept = alpha_bar_t * noise_prev / (alpha_bar_prev * noise_t)
    direction = noise_prev * ((1.0 - eta**2) + eta**2 * kept)
    drawn = noise_prev * (alpha_bar_prev - alpha_bar_t) / (alpha_bar_prev * noise_t)
    std = (drawn * eta**2).sqrt()
    mean = per_latent(alpha_bar_prev.sqrt(), dtype) * clean
    mean = mean + per_latent(direction.sqrt(), dtype) * noise
    return Transition(mean=mean, std=std.to(dtype), denoised=clean)


def ddim_invert(
    output: BatchLatent,
    latent_prev: BatchLatent,
    *,
    alpha_bar_prev: BatchShape,
    alpha_bar_t: BatchShape,
    prediction_type: PredictionType,
) -> BatchLatent:
    r"""Carry a latent up to a noisier level: the deterministic step, run backwards.

    .. math:: \tilde x_t = \sqrt{\bar\alpha_t}\,\hat x_0 + \sqrt{1-\bar\alpha_t}\,\hat\epsilon,
        \qquad (\hat x_0, \hat\epsilon)\ \text{from}\ (y, \bar\alpha_s)

    Source:
        Song et al., arXiv:2010.02502, Sec. 5.4. No deviation.

    Args:
        output: The network's output for ``latent_prev``. Gradient flows.
        latent_prev: :math:`y`, at the lower level. Gradient flows.
        alpha_bar_prev: :math:`\bar\alpha_s` of the level that ``latent_prev`` is at [1].
        alpha_bar_t: :math:`\bar\alpha_t` of the level to reach [1].
        prediction_type: What ``output`` is.

    Returns:
        :math:`\tilde x_t`.

    Raises:
        ValueError: If ``prediction_type`` is unknown or a tensor is half precision.

    Examples:
        >>> import torch
        >>> latent_t = ddim_invert(
        ...     torch.ones(1, 1, 1),
        ...     torch.full((1, 1, 1), 13 / 15),
        ...     alpha_bar_prev=torch.tensor(0.64),
        ...     alpha_bar_t=torch.tensor(0.36),
        ...     prediction_type="epsilon",
        ... )
        >>> round(latent_t.item(), 4)
        1.0
    """
    require_full_precision(alpha_bar_t=alpha_bar_t, alpha_bar_prev=alpha_bar_prev)
    dtype = working_dtype(output=output, latent_prev=latent_prev)
    clean, noise = clean_and_noise(
        output, latent_prev, alpha_bar_t=alpha_bar_prev, prediction_type=prediction_type
    )
    signal = per_latent(alpha_bar_t.sqrt(), dtype)
    return signal * clean + per_latent((1.0 - alpha_bar_t).sqrt(), dtype) * noise
