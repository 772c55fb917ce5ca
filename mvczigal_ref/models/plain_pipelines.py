"""Schedulers of plain SDXL pipelines: what the network predicts, and the grid it is sampled on."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import diffusers
from diffusers import DDIMScheduler

from mvczigal_ref.diffusion.schedule import PREDICTION_TYPES, PredictionType
from mvczigal_ref.errors import CheckpointError, first_line
from mvczigal_ref.models.published import LCM_UNET, SDXL_BASE, SdxlSources
from mvczigal_ref.models.scheduler_settings import FOLLOWED, REFUSED
from mvczigal_ref.models.schedulers import (
    KINDS,
    SCHEDULER_FILE,
    SDXL_NOISE,
    scheduler_of,
    sdxl_scheduler,
)
from mvczigal_ref.models.sources import find_file
from mvczigal_ref.models.weight_files import read_json

__all__ = ["plain_scheduler", "stored_prediction", "warn_of_grid"]

_NOISE: dict[str, Any] = {
    **SDXL_NOISE,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "use_flow_sigmas": False,
}

# Without noise in a step, Euler's is DDIM's at eta 0; with it, the ancestral one is DDIM's at 1.
_SAME_STEPS = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
_OTHER_STEPS = (
    "DDPMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler", "PNDMScheduler",
    "LMSDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "DPMSolverSDEScheduler", "DEISMultistepScheduler",
    "UniPCMultistepScheduler", "SASolverScheduler", "TCDScheduler",
)  # fmt: skip
# Settings of Euler's schedulers that change its levels, with the one value that is followed.
_LEVELS: dict[str, Any] = {
    "use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False,
    "interpolation_type": "linear", "timestep_type": "discrete", "final_sigmas_type": "zero",
    "sigma_min": None, "sigma_max": None,
}  # fmt: skip


def stored_prediction(source: str, sources: SdxlSources) -> PredictionType | None:
    """Read from a pipeline's scheduler what its network was trained to predict.

    Args:
        source: Folder or hub id of the pipeline in which the UNet lies.
        sources: Read for the hub's cache, and for whether to look there alone.

    Returns:
        The prediction type; None where the settings do not say it.

    Raises:
        CheckpointError: If the settings are unreadable, or of another noise schedule than SDXL's.
    """
    path = _settings_of(source, sources)
    return None if path is None else _prediction(path, read_json(path))


def plain_scheduler(source: str, sources: SdxlSources, *, few_steps: bool) -> Any:  # noqa: ANN401
    """Choose the settings that a plain pipeline is sampled by.

    Those of an LCM or DDIM scheduler are taken whole. Of another one the spacing of the grid and
    its offset are taken, for DDIM's steps; Euler's are the same steps, of any other a warning
    says what is taken instead. A network that is distilled to few steps keeps its own grid.

    Args:
        source: Folder or hub id of the pipeline in which the UNet lies.
        sources: Read for the hub's cache, and for whether to look there alone.
        few_steps: Whether the UNet has a guidance embedding.

    Returns:
        An ``LCMScheduler`` or ``DDIMScheduler``.

    Raises:
        CheckpointError: If the settings are unreadable, of another noise schedule than SDXL's, or
            not followed.
    """
    path = _settings_of(source, sources)
    if path is None:
        return sdxl_scheduler(few_steps=few_steps)
    config = read_json(path)
    kind, prediction = config.get("_class_name"), _prediction(path, config) or "epsilon"
    if kind == "LCMScheduler" or (kind == "DDIMScheduler" and not few_steps):
        return scheduler_of(KINDS, path)
    plain = sdxl_scheduler(few_steps=few_steps, prediction_type=prediction)
    if few_steps or kind is None:
        return plain
    spacing, offset, dropped = _grid(path, kind, config)
    if dropped:
        warnings.warn(
            f"`{path}` samples with {', '.join(dropped)}; DDIM's steps on a {spacing} grid are "
            "taken in its place. Give `scheduler`, a DDIMScheduler or LCMScheduler, for another.",
            stacklevel=3,
        )
    return type(plain).from_config(plain.config, timestep_spacing=spacing, steps_offset=offset)


def warn_of_grid(
    source: str, sources: SdxlSources, *, few_steps: bool, trailing: bool = False
) -> None:
    """Warn where a pipeline's scheduler says another grid than the one that a run takes.

    A run samples on the grid of its own settings: latent consistency's, or the leading one of
    implicit models unless they ask for the trailing one.

    Args:
        source: Folder or hub id of the pipeline in which the UNet lies.
        sources: Read for the hub's cache, and for whether to look there alone.
        few_steps: Whether the run samples by latent consistency.
        trailing: Whether the run asks for a trailing grid.

    Raises:
        CheckpointError: If the settings are unreadable, or of another noise schedule than SDXL's.
    """
    path = _settings_of(source, sources)
    if path is None:
        return
    config, ours = read_json(path), sdxl_scheduler(few_steps=few_steps)
    if trailing and not few_steps:
        ours = DDIMScheduler.from_config(ours.config, timestep_spacing="trailing")
    _prediction(path, config)  # refuses another noise schedule
    if other := _differences(path, config, ours):
        msg = (
            f"`{path}` samples with {', '.join(other)}; the grid of the run's section `sampler` is "
            "taken in its place. TextToMultiviewPipeline.from_pretrained reads the file."
        )
        warnings.warn(msg, stacklevel=3)


def _settings_of(source: str, sources: SdxlSources) -> Path | None:
    """Find the settings of a pipeline that is not the published one, which is known."""
    if source.partition("@")[0] in (LCM_UNET, SDXL_BASE):
        return None
    return find_file(source, SCHEDULER_FILE, sources)[0]


def _differences(path: Path, config: Mapping[str, Any], ours: Any) -> list[str]:  # noqa: ANN401
    """List the settings of a pipeline's scheduler that a run's own grid does not have."""
    kind, name = config.get("_class_name"), type(ours).__name__
    if kind == name:
        theirs = _with_defaults(path, name, config)
        inert = ["prediction_type"]  # which is refused where it differs
        inert += ["steps_offset"] if theirs.get("timestep_spacing") != "leading" else []
        names = [n for n in (*FOLLOWED[name], *REFUSED[name]) if n not in inert]
        odd = {n: theirs.get(n) for n in names if theirs.get(n) != ours.config.get(n)}
    elif name == "LCMScheduler" or kind is None:
        return []  # a network that is distilled to few steps keeps its own grid
    elif kind == "LCMScheduler":
        return ["LCMScheduler"]
    else:
        spacing, offset, dropped = _grid(path, kind, config)
        grid: dict[str, Any] = {"timestep_spacing": spacing}
        grid |= {"steps_offset": offset} if spacing == "leading" else {}  # the other has none
        odd = {n: value for n, value in grid.items() if value != ours.config[n]}
        return dropped + [f"{n} = {value}" for n, value in odd.items()]
    return [f"{n} = {str(value)[:40]}" for n, value in odd.items()]


def _prediction(path: Path, config: Mapping[str, Any]) -> PredictionType | None:
    """Check the noise schedule, and read the prediction."""
    kind, kinds = config.get("_class_name"), (*KINDS, *_SAME_STEPS, *_OTHER_STEPS)
    if kind is not None and kind not in kinds:
        msg = (
            f"`{path}` must be the settings of a scheduler of SDXL's noise, such as "
            f"{', '.join((*KINDS, _SAME_STEPS[0]))}; got {str(kind)[:80]!r}."
        )
        raise CheckpointError(msg)
    for name, only in _NOISE.items():
        if config.get(name, only) != only and (config.get(name) or only):
            msg = (
                f"`{path}` must have SDXL's {name} = {only!r}, the only noise schedule that is "
                f"supported for a plain pipeline; got {str(config.get(name))[:80]}."
            )
            raise CheckpointError(msg)
    prediction = config.get("prediction_type")
    if prediction is not None and prediction not in PREDICTION_TYPES:
        msg = (
            f"`{path}` must have a prediction_type of {', '.join(PREDICTION_TYPES)}; got "
            f"{prediction!r}."
        )
        raise CheckpointError(msg)
    return cast("PredictionType | None", prediction)


def _with_defaults(path: Path, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings of a scheduler with the class's own values of those that are absent."""
    try:
        return dict(getattr(diffusers, kind).from_config(config).config)
    except Exception as error:  # unfit values reach nearly every kind of exception
        raise CheckpointError(f"`{path}`: {first_line(error)}.") from error


def _grid(path: Path, kind: str, config: Mapping[str, Any]) -> tuple[str, int, list[str]]:
    """Read spacing and offset of another scheduler, and list what is not followed."""
    settings = _with_defaults(path, kind, config)
    spacing, offset = settings.get("timestep_spacing", "leading"), settings.get("steps_offset", 0)
    if spacing not in ("leading", "trailing", "linspace") or type(offset) is not int:
        msg = (
            f"`{path}` must have a timestep_spacing of leading, trailing or linspace and a whole "
            f"steps_offset; got {str(spacing)[:40]!r} and {str(offset)[:40]!r}."
        )
        raise CheckpointError(msg)
    dropped = [] if kind in _SAME_STEPS else [kind]
    dropped += [
        f"{name} = {str(settings[name])[:40]}"
        for name, only in (_NOISE | _LEVELS).items()
        if (settings.get(name, only) or only) != only
    ]
    if spacing == "linspace":
        dropped.append("timestep_spacing = linspace")
        spacing, offset = "leading", 1
    if spacing == "leading" and offset < 1:
        dropped.append(f"steps_offset = {offset}")
        offset = 1
    return spacing, offset, dropped
