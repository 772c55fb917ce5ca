"""Network of a configuration: located, loaded, and put together with its cameras."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from mvczigal_ref.config import Dtype, TrainConfig
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.models.backbone import (
    AnyComponents,
    Backbone,
    FlowBackbone,
    MultiviewBackbone,
    UnetBackbone,
)
from mvczigal_ref.models.components import Components, load_components
from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.models.flow.loading import load_flow
from mvczigal_ref.models.hub import load_sdxl_components
from mvczigal_ref.models.low_bit_reading import FewBits
from mvczigal_ref.models.plain_pipelines import stored_prediction, warn_of_grid
from mvczigal_ref.models.published import (
    PUBLISHED,
    SdxlSources,
    published_sources,
    weights_folder,
)
from mvczigal_ref.models.single_files import refuse_single_file
from mvczigal_ref.models.sources import find_file
from mvczigal_ref.models.unet.components import UnetComponents
from mvczigal_ref.models.unet.loading import load_unet
from mvczigal_ref.system.rig import rig_of

__all__ = [
    "DTYPES",
    "backbone_of",
    "load_network",
    "weights_folder",
]

DTYPES: dict[Dtype, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def load_network(
    config: TrainConfig, *, mapped: bool = False, few_bits: FewBits | None = None
) -> AnyComponents:
    """Read the network that a configuration names.

    Args:
        config: Read for its section ``model`` and for ``flow.text_length``.
        mapped: Whether UNet or flow transformer keeps the type of its file, as :func:`load_flow`
            and :func:`load_unet` say.
        few_bits: Form of the frozen linear weights of UNet or flow transformer; whole if None.

    Returns:
        Every part of the model, on the CPU.

    Raises:
        ConfigError: If places are given for parts that the network does not have, or
            ``flow.text_length`` is more than the tokenizer allows.
        CheckpointError: If weights are absent or damaged.
    """
    model, dtype = config.model, DTYPES[config.model.dtype]
    how: dict[str, Any] = {"mapped": mapped, "few_bits": few_bits}
    if model.network == "unet":
        place = str(weights_folder(model.weights))
        _check_prediction(config, place, SdxlSources(base=place, local_files_only=True))
        return load_unet(place, parts=model.sources, dtype=dtype, **how)
    if model.weights in PUBLISHED:
        sources = published_sources(model.weights, model.sources)
        for name in ("base", "unet", "vae"):
            refuse_single_file(f"model.sources.{name}", getattr(sources, name) or "")
        _warn_of_unused_networks(model.sources, sources)
        _check_scheduler(config, sources.unet or sources.base, sources)
        return load_sdxl_components(sources, dtype=dtype, **how)
    if model.sources:
        msg = (
            f"`model.sources` is for `model.weights` of {list(PUBLISHED)}, or for `model.network` "
            f'= "unet"; got {model.weights!r}, a folder that holds all parts.'
        )
        raise ConfigError(msg)
    folder = weights_folder(model.weights)
    refuse_single_file("model.weights", folder)
    if model.network == "flow":
        return load_flow(folder, text_length=config.flow.text_length, dtype=dtype, **how)
    _check_scheduler(config, str(folder), SdxlSources(base=str(folder)))
    return load_components(folder, policy_dtype=dtype, **how)


def _warn_of_unused_networks(named: Mapping[str, str], sources: SdxlSources) -> None:
    """Warn where a base holds networks that are not taken because they were not named."""
    for name in ("unet", "vae"):
        taken = getattr(sources, name)
        if "base" not in named or name in named or taken is None:
            continue
        if find_file(sources.base, f"{name}/config.json", sources)[0] is not None:
            warnings.warn(
                f"`model.sources` takes {taken} for its {name}, not the one in {sources.base!r}; "
                f"name it as {name} too to have that.",
                stacklevel=3,
            )


def _check_prediction(config: TrainConfig, place: str, sources: SdxlSources) -> None:
    """Refuse another prediction type than the network's own pipeline names."""
    prediction, setting = stored_prediction(place, sources), config.sampler.prediction_type
    if prediction not in (None, setting):
        msg = (
            f"`sampler.prediction_type` must be {prediction!r}, as the scheduler in {place!r} says "
            f"of its network; got {setting!r}."
        )
        raise ConfigError(msg)


def _check_scheduler(config: TrainConfig, place: str, sources: SdxlSources) -> None:
    """Refuse another prediction type than the network's own pipeline names; warn of its grid."""
    _check_prediction(config, place, sources)
    kind, trailing = config.sampler.kind, config.sampler.spacing == "trailing"
    if kind in ("lcm", "ddim"):
        warn_of_grid(place, sources, few_steps=kind == "lcm", trailing=trailing)


def backbone_of(config: TrainConfig, loaded: AnyComponents) -> Backbone:
    """Put loaded components together with the cameras and image size of a run.

    Args:
        config: Read for its section ``model``.
        loaded: Components on their device and in their dtype.

    Returns:
        The backbone of their kind.

    Raises:
        ConfigError: If they are of another kind than the configuration says.
    """
    size, network = config.model.image_size, config.model.network
    if isinstance(loaded, FlowComponents) and network == "flow":
        return FlowBackbone(components=loaded, image_size=size)
    if isinstance(loaded, UnetComponents) and network == "unet":
        return UnetBackbone(components=loaded, image_size=size)
    if isinstance(loaded, Components) and network == "multiview":
        return MultiviewBackbone(components=loaded, image_size=size, rig=rig_of(config.model))
    msg = (
        f"`components` must be of the kind that `model.network` = {config.model.network!r} names; "
        f"got {type(loaded).__name__}."
    )
    raise ConfigError(msg)
