"""Names and places of published and shipped weights; nothing of them is read here."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvczigal_ref.errors import ConfigError

__all__ = [
    "ADAPTER_FILE",
    "ADAPTER_FILES",
    "LCM_UNET",
    "MV_ADAPTER",
    "PUBLISHED",
    "SDXL_BASE",
    "SDXL_VAE",
    "SHIPPED",
    "SdxlSources",
    "published_sources",
    "weights_folder",
]

SDXL_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
SDXL_VAE = "madebyollin/sdxl-vae-fp16-fix"
LCM_UNET = "latent-consistency/lcm-sdxl"
MV_ADAPTER = "huanngzh/mv-adapter"
ADAPTER_FILE = "mv_adapter.safetensors"
"""File of row attention and camera encoder in a folder that this package wrote."""
ADAPTER_FILES = ("mvadapter_t2mv_sdxl.safetensors", ADAPTER_FILE)
"""Names of that file: the published one, and ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SdxlSources:
    """Place of each part: a folder, or a hub id, optionally followed by ``@revision``."""

    base: str = SDXL_BASE
    """Diffusers pipeline with the text encoders and tokenizers."""

    unet: str | None = LCM_UNET
    """UNet, alone or in a pipeline's ``unet/``; None is the base's own."""

    vae: str | None = SDXL_VAE
    """Autoencoder, alone or in a pipeline's ``vae/``; None is the base's own."""

    adapter: str = MV_ADAPTER
    """Row attention and camera encoder; may also be the file itself."""

    cache: str | None = None
    """Folder of the hub's cache; None is the hub client's own choice."""

    local_files_only: bool = False
    """Whether to look into the cache alone; so does ``HF_HUB_OFFLINE`` in the environment."""


PUBLISHED: dict[str, dict[str, str | None]] = {"lcm_sdxl": {}, "sdxl": {"unet": None}}
"""Names of published models, and the sources in which each differs from the few-step one."""


SHIPPED = {"tiny": "tiny_world", "tiny_flow": "tiny_flow"}
"""Folders of the weights that are shipped with the package, by their names as `model.weights`."""


def published_sources(weights: str, sources: Mapping[str, str]) -> SdxlSources:
    """Give the places of the parts of a published model.

    Args:
        weights: "lcm_sdxl" or "sdxl".
        sources: Other places of some parts, named base, unet, vae or adapter.

    Returns:
        Place of every part.

    Raises:
        ConfigError: If a part is unknown.
    """
    parts = ("base", "unet", "vae", "adapter")
    unknown = [name for name in sources if name not in parts]
    if unknown:
        raise ConfigError(f"`model.sources` must name some of {parts}; got {unknown}.")
    places: dict[str, Any] = {**PUBLISHED[weights], **sources}
    return SdxlSources(**places)


def weights_folder(weights: str) -> Path:
    """Give the folder that `model.weights` names.

    Args:
        weights: A path, or "tiny" or "tiny_flow" for weights shipped with the package.

    Returns:
        The folder; it need not exist.
    """
    if weights not in SHIPPED:
        return Path(weights).expanduser()
    package = Path(__file__).parent.parent
    installed = package / "fixtures" / SHIPPED[weights]
    return installed if installed.is_dir() else package.parent / "fixtures" / SHIPPED[weights]
