"""Distilled LoRA of few-step SDXL or Stable Diffusion 1.5, fused into the UNet's weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from torch import Tensor

from mvczigal_ref.errors import CheckpointError, first_line
from mvczigal_ref.models.file_kinds import plain_name
from mvczigal_ref.models.loading import quiet
from mvczigal_ref.models.lora import adapter_names, lora_parameters
from mvczigal_ref.models.lora_weights import DIFFUSERS_LORA_FILE
from mvczigal_ref.models.pipeline_folders import cached_repository_file
from mvczigal_ref.models.weight_files import read_safetensors

__all__ = ["find_few_step_lora", "fuse_few_step_lora"]

_ADAPTER = "few_step"


def find_few_step_lora(source: str) -> Path:
    """Find the file of a distilled LoRA.

    Args:
        source: A ``.safetensors`` file, a folder with diffusers' LoRA file, or either on the hub,
            such as "ByteDance/Hyper-SD/Hyper-SDXL-4steps-lora.safetensors" or
            "h1t/TCD-SDXL-LoRA". Nothing is downloaded.

    Returns:
        The file.

    Raises:
        CheckpointError: If there is none; says what to download.
    """
    path = Path(source).expanduser()
    path = path / DIFFUSERS_LORA_FILE if path.is_dir() else path
    if path.is_file():
        return path
    *repo, file = source.split("/", 2) if source.count("/") > 1 else (source, DIFFUSERS_LORA_FILE)
    place = "/".join(repo)
    cached = cached_repository_file(place, file)
    if cached is None:
        msg = (
            "`lora` must be a .safetensors file, a folder that holds "
            f"{DIFFUSERS_LORA_FILE}, or either in the local cache of the hub; got {source!r}. "
            f"Download it first: hf download {place} {file}"
        )
        raise CheckpointError(msg)
    return cached


def fuse_few_step_lora(unet: UNet2DConditionModel, source: str) -> None:
    r"""Add a distilled LoRA to a UNet's weights, where it stays.

    .. math:: W' = W + \tfrac{\alpha}{r} B A

    The names of the file, those of diffusers or of kohya's trainer, and the values of alpha in
    it are read by diffusers.

    Source:
        The use that the authors of TCD (arXiv:2402.19159), Hyper-SD (arXiv:2404.13686),
        SDXL-Lightning (arXiv:2402.13929), DMD2 (arXiv:2405.14867) and LCM-LoRA
        (arXiv:2311.05556) publish, with a weight of 1.

    Args:
        unet: Network, changed in place; it must hold no LoRA.
        source: See :func:`find_few_step_lora`.

    Raises:
        CheckpointError: If the file is absent or unreadable, adapts another network than the
            UNet, or holds a tensor that fits no layer of it.
    """
    if adapter_names(unet):
        msg = f"`unet` must hold no LoRA yet; got {', '.join(adapter_names(unet))}."
        raise ValueError(msg)
    path = find_few_step_lora(source)
    try:
        with quiet():
            values, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
                dict(read_safetensors(path)), unet_config=unet.config
            )
            _refuse_other_networks(values, path)
            StableDiffusionXLLoraLoaderMixin.load_lora_into_unet(
                values, network_alphas=alphas, unet=unet, adapter_name=_ADAPTER
            )
    except (ValueError, KeyError, RuntimeError, TypeError) as error:
        if isinstance(error, CheckpointError):
            raise
        msg = f"`{path}` must be a LoRA of this UNet; got {type(error).__name__}: "
        raise CheckpointError(msg + f"{first_line(error)}.") from error
    _refuse_unread(unet, values, path)
    unet.fuse_lora(adapter_names=[_ADAPTER])
    unet.unload_lora()


def _refuse_other_networks(values: Mapping[str, Any], path: Path) -> None:
    """Refuse a file that also adapts a text encoder, or nothing."""
    others = [name for name in values if not name.startswith("unet.")]
    if others or not values:
        msg = (
            f"`{path}` must be a LoRA of the UNet alone; got {len(others)} of {len(values)} "
            f"tensors of another network{f', such as {plain_name(others[0])}' * bool(others)}."
        )
        raise CheckpointError(msg)


def _refuse_unread(unet: Any, values: Mapping[str, Tensor], path: Path) -> None:  # noqa: ANN401
    """Refuse a file with tensors that diffusers found no layer for."""
    read = len(lora_parameters(unet, _ADAPTER))
    stored = len([name for name in values if not name.endswith(".alpha")])
    if read != stored:
        unet.unload_lora()
        msg = (
            f"`{path}` must be a LoRA of this UNet; {abs(stored - read)} of its {stored} tensors "
            "fit no layer. Take the one that was distilled from this base."
        )
        raise CheckpointError(msg)
