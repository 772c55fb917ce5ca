"""A run's networks without a byte of weights: sizes from a folder, or the published ones."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, T2IAdapter, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.models.backbone import AnyComponents
from mvczigal_ref.models.components import Components
from mvczigal_ref.models.multiview_unet import PUBLISHED_CAMERA_ENCODER, MultiViewUNet
from mvczigal_ref.models.published import PUBLISHED, weights_folder
from mvczigal_ref.models.tiny import tiny_tokenizer
from mvczigal_ref.preflight.meta_flow import meta_flow_components
from mvczigal_ref.preflight.meta_unet import meta_unet_components
from mvczigal_ref.preflight.unet_sizes import SDXL_TEXT, SDXL_UNET, SDXL_VAE
from mvczigal_ref.system.networks import DTYPES

__all__ = ["meta_components", "meta_multiview_components"]

_GUIDANCE_WIDTH = 256  # of the few-step UNet; the base has no guidance embedding


def meta_components(config: TrainConfig) -> tuple[AnyComponents, str]:
    """Lay out a run's networks on the meta device.

    Args:
        config: ``model.weights`` names a folder, whose sizes are read, or a published model.

    Returns:
        Networks in the types in which they are loaded, and the source of their sizes. Their
        tokenizers are the tiny ones.

    Raises:
        ConfigError: If there is no such folder, or it holds networks of another kind.
    """
    if config.model.network == "flow":
        return meta_flow_components(config)
    if config.model.network == "unet":
        return meta_unet_components(config)
    return meta_multiview_components(config)


def meta_multiview_components(config: TrainConfig) -> tuple[Components, str]:
    """Lay out the multi-view pipeline on the meta device.

    Args:
        config: ``model.weights`` names a folder, whose sizes are read, or a published model.

    Returns:
        As :func:`meta_components`.

    Raises:
        ConfigError: If there is no such folder, or it holds networks of another kind.

    Examples:
        >>> from mvczigal_ref.config import ModelConfig
        >>> config = TrainConfig(model=ModelConfig(weights="lcm_sdxl"))
        >>> components, source = meta_multiview_components(config)
        >>> source, sum(p.numel() for p in components.policy.unet.parameters())
        ('the published lcm_sdxl', 2977228804)
    """
    name = config.model.weights
    sizes: tuple[dict[str, Any], ...]
    if name in PUBLISHED:
        width = None if "unet" in PUBLISHED[name] else _GUIDANCE_WIDTH
        sizes = (
            SDXL_UNET | {"time_cond_proj_dim": width},
            SDXL_VAE,
            PUBLISHED_CAMERA_ENCODER,
            *SDXL_TEXT,
        )
        source, dtype = f"the published {name}", DTYPES[config.model.dtype]
    else:
        folder, dtype = weights_folder(name), torch.float32
        try:
            sizes, source = _read(folder), str(folder)
        except (OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            msg = f"`model.weights` must be one of {list(PUBLISHED)} or a folder: {reason}"
            raise ConfigError(msg) from error
    unet, vae, camera_encoder, first, second = sizes
    with torch.device("meta"):
        autoencoder = AutoencoderKL.from_config(vae)
        channels = autoencoder.config.latent_channels
        components = Components(
            tokenizer=tiny_tokenizer(),
            tokenizer_2=tiny_tokenizer(),
            text_encoder=CLIPTextModel(CLIPTextConfig(**first)),
            text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(**second)),
            vae=autoencoder,
            policy=MultiViewUNet(
                UNet2DConditionModel.from_config(unet), T2IAdapter.from_config(camera_encoder)
            ),
            latent_mean=torch.zeros(channels),
            latent_std=torch.ones(channels),
        )
    return components.to(dtype=dtype), source


def _read(folder: Path) -> tuple[dict[str, Any], ...]:
    """Read the sizes of networks in diffusers' layout."""
    camera_encoder: dict[str, Any] = PUBLISHED_CAMERA_ENCODER
    if (folder / "camera_encoder").is_dir():
        camera_encoder = T2IAdapter.load_config(folder / "camera_encoder")
    return (
        UNet2DConditionModel.load_config(folder / "unet"),
        AutoencoderKL.load_config(folder / "vae"),
        camera_encoder,
        CLIPTextConfig.from_pretrained(folder / "text_encoder").to_dict(),
        CLIPTextConfig.from_pretrained(folder / "text_encoder_2").to_dict(),
    )
