"""Noise schedules, time grids, and what a network's output says about the clean latent.

Tensors in, tensors out; knows no network, sampler or process.
"""

import math
from typing import Final, Literal, get_args

import torch

from mvczigal_ref.diffusion.levels import require_levels
from mvczigal_ref.diffusion.precision import (
    per_latent,
    require_choice,
    require_full_dtype,
    require_full_precision,
    require_positive,
    working_dtype,
)
from mvczigal_ref.shapes import AlphaBar, BatchLatent, BatchShape, Timesteps

__all__ = [
    "PREDICTION_TYPES",
    "PredictionType",
    "ShiftMode",
    "betas_from_alpha_bar",
    "check_schedule",
    "clean_and_noise",
    "ddim_timesteps",
    "lcm_timesteps",
    "scaled_linear_alpha_bar",
    "shift_snr",
]

PredictionType = Literal["epsilon", "v_prediction", "sample"]
"""Meaning of the network's output: the noise, the velocity v, or the clean latent."""

ShiftMode = Literal["interpolated", "default"]
"""Shift grows with the timestep in log-SNR, or is the same at every timestep."""

PREDICTION_TYPES: Final = get_args(PredictionType)
"""The words of :data:`PredictionType`, to check one by."""

_SHIFT_MODES = get_args(ShiftMode)


def scaled_linear_alpha_bar(
    *,
    num_train_timesteps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    dtype: torch.dtype = torch.float64,
) -> AlphaBar:
    r"""Return the cumulative signal share of the schedule whose square-root betas are linear.

    .. math::

        \beta_t = \big((1-u)\sqrt{\beta_{start}} + u\sqrt{\beta_{end}}\big)^2,\quad
        u = \tfrac{t}{N-1},\qquad \bar\alpha_t = \prod_{k \le t} (1 - \beta_k)

    Source:
        Rombach et al., arXiv:2112.10752, as SDXL is trained. No deviation.

    Args:
        num_train_timesteps: :math:`N`, length of the training grid [timesteps]; at least 2.
        beta_start: Noise share added at timestep 0 [1]; in (0, ``beta_end``].
        beta_end: Noise share added at the last timestep [1]; below 1.
        dtype: float32 or float64; every operation is in it.

    Returns:
        :math:`\bar\alpha` at timesteps 0 to N-1 [1], strictly decreasing in (0, 1).

    Raises:
        ValueError: If a setting is outside its range.

    Examples:
        >>> alpha_bar = scaled_linear_alpha_bar()
        >>> [round(alpha_bar[t].item(), 6) for t in (0, 999)]
        [0.99915, 0.00466]
    """
    if num_train_timesteps < 2:
        msg = f"`num_train_timesteps` must be at least 2; got {num_train_timesteps}."
        raise ValueError(msg)
    if not 0.0 < beta_start <= beta_end:
        msg = f"`beta_start` must be in (0, beta_end = {beta_end}]; got {beta_start}."
        raise ValueError(msg)
    if not beta_end < 1.0:
        msg = f"`beta_end` must be below 1; got {beta_end}."
        raise ValueError(msg)
    require_full_dtype("dtype", dtype)
    root = torch.linspace(
        math.sqrt(beta_start), math.sqrt(beta_end), num_train_timesteps, dtype=dtype
    )
    return (1.0 - root.square()).cumprod(dim=0)


def shift_snr(alpha_bar: AlphaBar, scale: float, *, mode: ShiftMode = "interpolated") -> AlphaBar:
    r"""Divide a schedule's signal-to-noise ratio, more at noisier timesteps or evenly.

    .. math::

        \log\mathrm{SNR}'_t = \log\mathrm{SNR}_t - u_t \log k,\quad
        \bar\alpha'_t = \frac{\mathrm{SNR}'_t}{1+\mathrm{SNR}'_t}

    with :math:`\mathrm{SNR} = \bar\alpha/(1-\bar\alpha)`, :math:`k` = ``scale``, and
    :math:`u_t = t/(N-1)` when ``mode`` is "interpolated", 1 when it is "default".

    Source:
        Huang et al. (MV-Adapter), arXiv:2412.03632, after Hoogeboom et al. (simple diffusion),
        arXiv:2301.11093. The interpolation of log-SNR is the released code's; we stay with
        :math:`\bar\alpha` where it goes through betas and back, so we round less.

    Args:
        alpha_bar: Schedule to shift [1], in (0, 1). Gradient flows.
        scale: :math:`k` [1], positive; above 1 the schedule gets noisier. 1 is the identity.
        mode: "interpolated" or "default".

    Returns:
        The shifted schedule [1], in (0, 1), in ``alpha_bar``'s dtype.

    Raises:
        ValueError: If ``scale`` is not positive, ``mode`` is unknown, or precision is half.

    Examples:
        >>> shift_snr(torch.tensor([0.5, 0.5]), 4.0)
        tensor([0.5000, 0.2000])
        >>> shift_snr(torch.tensor([0.5, 0.5]), 4.0, mode="default")
        tensor([0.2000, 0.2000])
    """
    require_full_precision(alpha_bar=alpha_bar)
    require_positive(scale=scale)
    require_choice("mode", mode, _SHIFT_MODES)
    share = torch.ones_like(alpha_bar)
    if mode == "interpolated":
        share = torch.linspace(
            0.0, 1.0, alpha_bar.shape[0], dtype=alpha_bar.dtype, device=alpha_bar.device
        )
    return torch.sigmoid(torch.logit(alpha_bar) - share * math.log(scale))


def betas_from_alpha_bar(alpha_bar: AlphaBar) -> AlphaBar:
    r"""Return the betas of a schedule, such as a shifted one: the share that each timestep takes.

    .. math:: \beta_t = 1 - \frac{\bar\alpha_t}{\bar\alpha_{t-1}},\qquad \bar\alpha_{-1} = 1

    Source:
        Ho et al., arXiv:2006.11239, Eq. 4, solved for the betas; diffusers' schedulers take them
        as ``trained_betas``. Here the shares are subtracted before they are divided, so small
        betas keep their digits.

    Args:
        alpha_bar: Signal share at every training timestep [1]. Gradient flows.

    Returns:
        Betas [1], in (0, 1), in ``alpha_bar``'s dtype; ``(1 - betas).cumprod(0)`` is
        ``alpha_bar``.

    Raises:
        ValueError: If ``alpha_bar`` is half precision or not strictly decreasing in (0, 1).

    Examples:
        >>> betas_from_alpha_bar(torch.tensor([0.5, 0.125]))
        tensor([0.5000, 0.7500])
    """
    check_schedule(alpha_bar)
    before = torch.cat([torch.ones_like(alpha_bar[:1]), alpha_bar[:-1]])
    return (before - alpha_bar) / before


def check_schedule(alpha_bar: AlphaBar) -> None:
    """Refuse what is no noise schedule; reads the device, so once, when a grid is made.

    Args:
        alpha_bar: Signal share at every training timestep [1].

    Raises:
        ValueError: If it is half precision or not strictly decreasing in (0, 1).

    Examples:
        >>> check_schedule(torch.tensor([0.9, 0.5]))
    """
    require_full_precision(alpha_bar=alpha_bar)
    inside = bool(((alpha_bar > 0.0) & (alpha_bar < 1.0)).all())
    if not inside or not bool((alpha_bar.diff() < 0.0).all()):
        msg = (
            "`alpha_bar` must be strictly decreasing in (0, 1); got values in "
            f"[{alpha_bar.min().item()}, {alpha_bar.max().item()}]."
        )
        raise ValueError(msg)


def ddim_timesteps(
    num_steps: int, *, num_train_timesteps: int = 1000, steps_offset: int = 1
) -> Timesteps:
    r"""Return the evenly spaced grid that starts at the clean end.

    .. math:: t_i = (T - 1 - i) \lfloor N / T \rfloor + \mathrm{offset}

    Source:
        Song et al., arXiv:2010.02502; "leading" spacing of SDXL's scheduler.

    Args:
        num_steps: :math:`T` [steps]; at least 1.
        num_train_timesteps: :math:`N` [timesteps].
        steps_offset: Added to every timestep [timesteps]; SDXL uses 1, which also keeps the
            last step's variance above 0.

    Returns:
        Timesteps in 0..N-1, strictly decreasing.

    Raises:
        ValueError: If a timestep would fall outside 0..N-1.

    Examples:
        >>> ddim_timesteps(4)
        tensor([751, 501, 251,   1])
    """
    _check_num_steps(num_steps, num_train_timesteps)
    stride = num_train_timesteps // num_steps
    largest = (num_steps - 1) * stride + steps_offset
    if steps_offset < 0 or largest >= num_train_timesteps:
        room = num_train_timesteps - 1 - (num_steps - 1) * stride
        msg = (
            f"`steps_offset` must be in 0..{room} for {num_steps} steps of {stride} in "
            f"{num_train_timesteps}; got {steps_offset}."
        )
        raise ValueError(msg)
    return torch.arange(num_steps - 1, -1, -1) * stride + steps_offset


def lcm_timesteps(
    num_steps: int, *, num_train_timesteps: int = 1000, original_num_steps: int = 50
) -> Timesteps:
    r"""Return the grid of a latent consistency model: a subset of the grid it was distilled on.

    .. math:: t_i = (M - \lfloor i M / T \rfloor) \lfloor N / M \rfloor - 1

    Source:
        Luo et al., arXiv:2310.04378, with the index rule of diffusers' scheduler.

    Args:
        num_steps: :math:`T` [steps]; in 1..``original_num_steps``.
        num_train_timesteps: :math:`N` [timesteps].
        original_num_steps: :math:`M`, length of the distillation grid [steps].

    Returns:
        Timesteps in 0..N-1, strictly decreasing.

    Raises:
        ValueError: If the grids do not fit into each other.

    Examples:
        >>> lcm_timesteps(4)
        tensor([999, 759, 499, 259])
    """
    if not 1 <= original_num_steps <= num_train_timesteps:
        msg = (
            f"`original_num_steps` must be in 1..{num_train_timesteps} (num_train_timesteps); "
            f"got {original_num_steps}."
        )
        raise ValueError(msg)
    _check_num_steps(num_steps, original_num_steps)
    stride = num_train_timesteps // original_num_steps
    skipped = torch.arange(num_steps) * original_num_steps // num_steps
    return (original_num_steps - skipped) * stride - 1


def clean_and_noise(
    output: BatchLatent,
    latent_t: BatchLatent,
    *,
    alpha_bar_t: BatchShape,
    prediction_type: PredictionType,
) -> tuple[BatchLatent, BatchLatent]:
    r"""Read a network's output as the clean latent and the noise that made ``latent_t``.

    .. math:: x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon,\qquad
        v = \sqrt{\bar\alpha_t}\,\epsilon - \sqrt{1-\bar\alpha_t}\, x_0

    Source:
        Ho et al., arXiv:2006.11239, Eq. 4; Salimans and Ho, arXiv:2202.00512, for v.

    Args:
        output: The network's output. Gradient flows.
        latent_t: The latent that it saw. Gradient flows.
        alpha_bar_t: Signal share at that latent's level [1], in (0, 1); one number per latent.
        prediction_type: Meaning of ``output``.

    Returns:
        ``clean_pred`` and ``noise_pred``, in the wider dtype of the two latents.

    Raises:
        ValueError: If ``prediction_type`` is unknown or a tensor is half precision or of a shape
            that does not fit.

    Examples:
        >>> output, latent_t = torch.full((1, 1, 1), 0.5), torch.ones(1, 1, 1)
        >>> clean, noise = clean_and_noise(
        ...     output, latent_t, alpha_bar_t=torch.tensor(0.64), prediction_type="epsilon"
        ... )
        >>> round(clean.item(), 4), round(noise.item(), 4)
        (0.875, 0.5)
    """
    require_levels(latent_t, alpha_bar_t=alpha_bar_t)
    require_choice("prediction_type", prediction_type, PREDICTION_TYPES)
    dtype = working_dtype(output=output, latent_t=latent_t)
    # Roots are taken in the schedule's own dtype and rounded once.
    signal = per_latent(alpha_bar_t.sqrt(), dtype)
    noise = per_latent((1.0 - alpha_bar_t).sqrt(), dtype)
    if prediction_type == "epsilon":
        return (latent_t - noise * output) / signal, output.to(dtype)
    if prediction_type == "v_prediction":
        return signal * latent_t - noise * output, signal * output + noise * latent_t
    return output.to(dtype), (latent_t - signal * output) / noise


def noised_latent(
    clean: BatchLatent, noise: BatchLatent, *, alpha_bar_t: BatchShape
) -> BatchLatent:
    r"""Give a clean latent noise.

    .. math:: x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon

    Source:
        Ho et al., arXiv:2006.11239, Eq. 4.

    Args:
        clean: :math:`x_0`. Gradient flows.
        noise: :math:`\epsilon`. Gradient flows.
        alpha_bar_t: Signal share at the level to reach [1], in (0, 1); one number per latent.

    Returns:
        :math:`x_t`, in the wider dtype of the two latents.

    Raises:
        ValueError: If a tensor is half precision or of a shape that does not fit.

    Examples:
        >>> one = torch.ones(1, 1, 1)
        >>> round(noised_latent(one, one, alpha_bar_t=torch.tensor(0.64)).item(), 4)
        1.4
    """
    require_levels(clean, alpha_bar_t=alpha_bar_t)
    dtype = working_dtype(clean=clean, noise=noise)
    signal = per_latent(alpha_bar_t.sqrt(), dtype)
    return signal * clean + per_latent((1.0 - alpha_bar_t).sqrt(), dtype) * noise


def _check_num_steps(num_steps: int, most: int) -> None:
    if not 1 <= num_steps <= most:
        msg = f"`num_steps` must be in 1..{most}, the grid it is taken from; got {num_steps}."
        raise ValueError(msg)
