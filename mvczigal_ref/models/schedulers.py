"""A diffusers scheduler's settings as this package's sampler: its steps are never called."""

import json
from typing import Any

import torch
from diffusers import DDIMScheduler, LCMScheduler

from mvczigal_ref.diffusion.sampler import DdimSampler, LcmSampler, Sampler
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar, shift_snr
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.scheduler_settings import check_scheduler
from mvczigal_ref.models.sources import SdxlSources, find_file
from mvczigal_ref.shapes import AlphaBar

__all__ = ["sampler_from_scheduler", "sdxl_scheduler", "stored_settings"]

KINDS: dict[str, Any] = {"LCMScheduler": LCMScheduler, "DDIMScheduler": DDIMScheduler}


def sdxl_scheduler(*, few_steps: bool) -> LCMScheduler | DDIMScheduler:
    """Give the scheduler whose settings the published networks are sampled by.

    Args:
        few_steps: Whether the UNet is distilled to few steps; else it is SDXL's own.

    Returns:
        Settings alone, of latent consistency sampling or of implicit-model sampling.

    Examples:
        >>> sdxl_scheduler(few_steps=True).config.beta_schedule
        'scaled_linear'
    """
    noise = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    if few_steps:
        return LCMScheduler(**noise)
    return DDIMScheduler(**noise, clip_sample=False, set_alpha_to_one=True, steps_offset=1)


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
        ValueError: If the scheduler is of another kind, of another noise schedule, or has a
            setting that is not followed; the message names it.

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
        sampler = DdimSampler.create(**grid, eta=eta, steps_offset=config["steps_offset"])
        below = int(sampler.timesteps[-1]) - len(alpha_bar) // num_steps
        if below >= 0:
            msg = (
                "`scheduler` must end at a clean image, with steps_offset below the stride; got "
                f"{config['steps_offset']} in {num_steps} steps of {len(alpha_bar) // num_steps}."
            )
            raise ValueError(msg)
    return sampler.to(dtype=torch.float32)


def stored_settings(source: str, sources: SdxlSources) -> dict[str, Any]:
    """Read how a saved pipeline is sampled.

    Args:
        source: Folder or hub id of the pipeline.
        sources: The hub's cache, and whether to look there alone.

    Returns:
        Those of ``image_size``, ``snr_shift``, ``rig`` and ``scheduler`` that are there.

    Raises:
        CheckpointError: If a file is unreadable or its scheduler is of another kind.
    """
    index, _ = find_file(source, "model_index.json", sources)
    scheduler, _ = find_file(source, "scheduler/scheduler_config.json", sources)
    try:
        told = {} if index is None else json.loads(index.read_text("utf-8"))
        settings = {name: told[name] for name in ("image_size", "snr_shift", "rig") if name in told}
        if scheduler is not None:
            config = json.loads(scheduler.read_text("utf-8"))
            settings["scheduler"] = KINDS[config["_class_name"]].from_config(config)
    except (OSError, ValueError, KeyError) as error:
        msg = (
            f"`{source}` must hold readable settings, and those of an LCMScheduler or a "
            f"DDIMScheduler; got {type(error).__name__}: {error}."
        )
        raise CheckpointError(msg) from error
    return settings


def _alpha_bar(config: Any) -> AlphaBar:  # noqa: ANN401
    """Signal share at every training timestep."""
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
