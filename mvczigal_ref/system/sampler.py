"""Sampling grid of a configuration, bound to its kernel."""

from typing import Any

import torch
from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.config.plugins import load_plugin
from mvczigal_ref.diffusion.ddim import DdimSampler
from mvczigal_ref.diffusion.euler_ancestral import EulerAncestralSampler
from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.flow_schedule import flow_sigmas
from mvczigal_ref.diffusion.lcm import LcmSampler
from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar, shift_snr
from mvczigal_ref.diffusion.spacing import TimestepSpacing
from mvczigal_ref.diffusion.tcd import TcdSampler
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
        section = "flow" if config.sampler.is_flow else "sampler"
        raise ConfigError(f"the settings of `{section}` leave no grid of steps: {error}") from error


def _built(config: TrainConfig, steps: int, *, shift: float, lowest_sigma: float | None) -> Sampler:
    settings = config.sampler
    kind: str = settings.kind
    sampler: Sampler
    if settings.is_flow:
        flow = config.flow
        shift = shift if flow.shift is None else flow.shift
        sigmas = flow_sigmas(steps, shift=shift, lowest_sigma=lowest_sigma)
        if settings.is_plugin:
            sampler = _plugged("flow_samplers", kind, FlowSampler, steps, sigmas, flow)
        else:
            sampler = FlowSampler.create(
                sigmas=sigmas,
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
    grid: dict[str, Any] = {
        "num_steps": steps, "alpha_bar": alpha_bar, "prediction_type": settings.prediction_type,
    }  # fmt: skip
    trailing = settings.spacing == "trailing"
    if kind == "lcm":
        sampler = LcmSampler.create(**grid, trailing=trailing)
    elif kind == "euler_ancestral":
        sampler = EulerAncestralSampler.create(**grid, eta=settings.eta)
    elif kind == "tcd":
        sampler = TcdSampler.create(**grid, eta=settings.eta)
    elif kind == "ddim":
        spacing: TimestepSpacing = "trailing" if trailing else "leading"
        sampler = DdimSampler.create(**grid, eta=settings.eta, timestep_spacing=spacing)
    else:
        sampler = _plugged("samplers", kind, Sampler, steps, alpha_bar, settings)
    return sampler.to(dtype=torch.float32)


def _plugged(
    group: str, name: str, kind: type[Any], steps: int, levels: Tensor, section: object
) -> Any:  # noqa: ANN401 - of the kind that is named
    """Build a plug-in's sampler, and refuse what is none or has another number of steps."""
    sampler = load_plugin(group, name)(steps, levels, section)
    if not isinstance(sampler, kind):
        got = type(sampler).__name__
        raise ConfigError(f"the plug-in {name!r} must give a {kind.__name__}; got a {got}.")
    if sampler.num_steps != steps:
        msg = f"the plug-in {name!r} must give a grid of {steps} steps; got {sampler.num_steps}."
        raise ConfigError(msg)
    return sampler
