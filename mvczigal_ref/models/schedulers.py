"""Samplers from the settings of diffusers' schedulers, whose steps are never called."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, LCMScheduler

from mvczigal_ref.diffusion.ddim import DdimSampler
from mvczigal_ref.diffusion.lcm import LcmSampler
from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.diffusion.schedule import PredictionType, scaled_linear_alpha_bar, shift_snr
from mvczigal_ref.errors import CheckpointError, first_line
from mvczigal_ref.models.published import SdxlSources
from mvczigal_ref.models.scheduler_settings import check_length, check_scheduler
from mvczigal_ref.models.sources import find_file
from mvczigal_ref.models.weight_files import read_json
from mvczigal_ref.shapes import AlphaBar

__all__ = [
    "KINDS",
    "SCHEDULER_FILE",
    "SDXL_NOISE",
    "sampler_from_scheduler",
    "scheduler_of",
    "sdxl_scheduler",
    "stored_settings",
]

SCHEDULER_FILE = "scheduler/scheduler_config.json"
"""Name of a scheduler's settings in a pipeline's folder."""

SDXL_NOISE: Mapping[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
"""Noise schedule that SDXL is trained with."""

KINDS: Mapping[str, Any] = {"LCMScheduler": LCMScheduler, "DDIMScheduler": DDIMScheduler}
"""Classes whose steps are followed, by name."""


def sdxl_scheduler(
    *, few_steps: bool, prediction_type: PredictionType = "epsilon"
) -> LCMScheduler | DDIMScheduler:
    """Make the scheduler with the settings that the published networks are sampled by.

    Args:
        few_steps: Whether the UNet is distilled to few steps; else it is SDXL's own.
        prediction_type: Quantity that the UNet predicts.

    Returns:
        Settings of latent consistency sampling or of implicit-model sampling.

    Examples:
        >>> sdxl_scheduler(few_steps=True).config.beta_schedule
        'scaled_linear'
    """
    settings = {**SDXL_NOISE, "prediction_type": prediction_type}
    if few_steps:
        return LCMScheduler(**settings)
    return DDIMScheduler(**settings, clip_sample=False, set_alpha_to_one=True, steps_offset=1)


def sampler_from_scheduler(
    scheduler: Any,  # noqa: ANN401 - diffusers is untyped
    *,
    num_steps: int,
    snr_shift: float = 1.0,
    eta: float = 1.0,
) -> Sampler:
    """Read a scheduler's settings into a sampler.

    Source:
        The settings are those of diffusers' schedulers of the same names; the shift is of
        arXiv:2412.03632 and its released code, which stores the shifted betas as trained ones.

    Args:
        scheduler: An ``LCMScheduler`` or ``DDIMScheduler``, or anything with its settings.
        num_steps: Length of the grid [steps].
        snr_shift: Factor that divides the signal-to-noise ratio at the noisy end [1]; trained
            betas are taken as they are.
        eta: Stochasticity of implicit-model sampling [1].

    Returns:
        The sampler, its tables computed in fp64 and rounded to fp32.

    Raises:
        ValueError: If the scheduler is of another kind or another noise schedule, or has a setting
            that is not followed; the message names it. Also if ``eta`` is above 0 and the grid
            ends at timestep 0, where no step has a spread.

    Examples:
        >>> sampler_from_scheduler(sdxl_scheduler(few_steps=True), num_steps=4).timesteps
        tensor([999, 759, 499, 259])
    """
    kind = type(scheduler).__name__
    if kind not in KINDS:
        msg = (
            f"`scheduler` must be an LCMScheduler or a DDIMScheduler; got {kind}. Make one with "
            "its `from_config`."
        )
        raise ValueError(msg)
    check_scheduler(scheduler)
    config = scheduler.config
    alpha_bar = _alpha_bar(config)
    if config.get("trained_betas") is None and snr_shift != 1.0:
        alpha_bar = shift_snr(alpha_bar, snr_shift)
    grid: dict[str, Any] = {
        "num_steps": num_steps,
        "alpha_bar": alpha_bar,
        "prediction_type": config["prediction_type"],
    }
    sampler: Sampler
    if kind == "LCMScheduler":
        sampler = LcmSampler.create(
            **grid,
            original_num_steps=config["original_inference_steps"],
            timestep_scaling=config["timestep_scaling"],
        )
    else:
        names = ("steps_offset", "timestep_spacing", "set_alpha_to_one")
        sampler = DdimSampler.create(**grid, eta=eta, **{name: config[name] for name in names})
    return sampler.to(dtype=torch.float32)


def scheduler_of(kinds: Mapping[str, Any], path: Path) -> Any:  # noqa: ANN401
    """Read a scheduler of which every setting is followed.

    Args:
        kinds: Classes by name.
        path: File of the settings.

    Returns:
        The scheduler.

    Raises:
        CheckpointError: If the settings are unreadable, of another class, or not followed.
    """
    config = read_json(path)
    kind = config.get("_class_name")
    if not isinstance(kind, str) or kind not in kinds:
        msg = f"`{path}` must be the settings of {' or '.join(kinds)}; got {kind!r}."
        raise CheckpointError(msg)
    try:
        check_length(config)
        scheduler = kinds[kind].from_config(config)
        check_scheduler(scheduler)
        if kind in KINDS:  # what no grid fits is refused before a network is loaded
            sampler_from_scheduler(scheduler, num_steps=1, eta=0.0)
    except Exception as error:  # unfit values reach nearly every kind of exception
        raise CheckpointError(f"`{path}`: {first_line(error)}.") from error
    return scheduler


def stored_settings(source: str, sources: SdxlSources) -> dict[str, Any]:
    """Read the sampling settings of a saved pipeline.

    Args:
        source: Folder or hub id of the pipeline.
        sources: Read for the hub's cache, and for whether to look there alone.

    Returns:
        ``image_size``, ``snr_shift``, ``rig`` and ``scheduler``, as far as they are stored.

    Raises:
        CheckpointError: If a file is unreadable, or its scheduler is of another kind or not
            followed.
    """
    index, _ = find_file(source, "model_index.json", sources)
    scheduler, _ = find_file(source, SCHEDULER_FILE, sources)
    content = {} if index is None else read_json(index)
    names = ("image_size", "snr_shift", "rig")
    settings = {name: content[name] for name in names if name in content}
    if scheduler is not None:
        settings["scheduler"] = scheduler_of(KINDS, scheduler)
    return settings


def _alpha_bar(config: Any) -> AlphaBar:  # noqa: ANN401
    """Compute the signal share at every training timestep."""
    if config.get("trained_betas") is not None:
        betas = torch.as_tensor(config["trained_betas"], dtype=torch.float64)
        if betas.shape != (config["num_train_timesteps"],):
            msg = (
                "`scheduler` must have as many trained_betas as num_train_timesteps, "
                f"{config['num_train_timesteps']}; got {tuple(betas.shape)}."
            )
            raise ValueError(msg)
        return (1.0 - betas).cumprod(0)
    if config["beta_schedule"] != "scaled_linear":
        msg = (
            '`scheduler` must have the noise schedule "scaled_linear" or trained betas; got '
            f"{config['beta_schedule']!r}."
        )
        raise ValueError(msg)
    return scaled_linear_alpha_bar(
        num_train_timesteps=config["num_train_timesteps"],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
    )
