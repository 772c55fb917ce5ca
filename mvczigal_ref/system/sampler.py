"""Sampling grid of a configuration, bound to its kernel."""

from typing import Any

import torch

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.config.plugins import load_plugin
from mvczigal_ref.diffusion.ddim import DdimSampler
from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.flow_schedule import flow_sigmas
from mvczigal_ref.diffusion.lcm import LcmSampler
from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar, shift_snr
from mvczigal_ref.errors import ConfigError

__all__ = ["build_sampler"]


def build_sampler(
    config: TrainConfig,
    *,
    shift: float = 1.0,
    lowest_sigma: float | None = None,
    num_steps: int | None = None,
) -> Sampler:
    """Build the sampling grid of a configuration.

    Args:
        config: Read for its sections ``sampler`` and ``flow``.
        shift: Shift of a flow's noise levels, where ``flow.shift`` leaves it to the network [1].
        lowest_sigma: Level of a flow's last step before the shift [1]; None is 1 / steps.
        num_steps: Length of the grid in place of ``sampler.num_steps`` [steps].

    Returns:
        The sampler, its tables computed in fp64 and rounded to fp32.

    Raises:
        ConfigError: If the settings leave no steps, such as a shift that makes noise levels equal.

    Examples:
        >>> build_sampler(TrainConfig()).timesteps
        tensor([999, 759, 499, 259])
    """
    steps = num_steps or config.sampler.num_steps
    try:
        return _built(config, steps, shift=shift, lowest_sigma=lowest_sigma)
    except ConfigError:
        raise
    except ValueError as error:
        section = "flow" if config.sampler.kind == "flow" else "sampler"
        raise ConfigError(f"the settings of `{section}` leave no grid of steps: {error}") from error


def _built(config: TrainConfig, steps: int, *, shift: float, lowest_sigma: float | None) -> Sampler:
    settings = config.sampler
    kind: str = settings.kind
    sampler: Sampler
    if kind == "flow":
        flow = config.flow
        shift = shift if flow.shift is None else flow.shift
        sampler = FlowSampler.create(
            sigmas=flow_sigmas(steps, shift=shift, lowest_sigma=lowest_sigma),
            kernel=flow.kernel,
            noise_scale=flow.noise_scale,
            image_is_denoised=flow.image_is_denoised,
            ode=flow.ode,
            density=flow.density if flow.kernel == "cps" else "gaussian",
        )
        return sampler.to(dtype=torch.float32)
    alpha_bar = scaled_linear_alpha_bar(dtype=torch.float64)
    if settings.snr_shift != 1.0:
        alpha_bar = shift_snr(alpha_bar, settings.snr_shift)
    if kind == "lcm":
        sampler = LcmSampler.create(
            num_steps=steps, alpha_bar=alpha_bar, prediction_type=settings.prediction_type
        )
    elif kind != "ddim":
        plugged: Any = load_plugin("samplers", kind)(steps, alpha_bar, settings)
        if not isinstance(plugged, Sampler):
            name = type(plugged).__name__
            raise ConfigError(f"the plug-in {kind!r} must give a Sampler; got a {name}.")
        sampler = plugged
    else:
        sampler = DdimSampler.create(
            num_steps=steps,
            alpha_bar=alpha_bar,
            prediction_type=settings.prediction_type,
            eta=settings.eta,
        )
    return sampler.to(dtype=torch.float32)
