"""Strict loading of single-view UNet pipelines, from a folder or from the hub's cache."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import CLIPTokenizer

from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.models.fitting_parts import require_fitting_unet
from mvczigal_ref.models.flow.families import numbered
from mvczigal_ref.models.latents import latent_statistics
from mvczigal_ref.models.loading import load_model, quiet
from mvczigal_ref.models.low_bit_reading import FewBits
from mvczigal_ref.models.pipeline_folders import (
    find_part,
    find_pipeline,
    pipeline_class,
    require_parts,
    weights_variant,
)
from mvczigal_ref.models.tokenizer_files import fit_tokenizers, read_tokenizer
from mvczigal_ref.models.unet.components import UnetComponents
from mvczigal_ref.models.unet.families import UNET_FAMILIES, UnetFamily
from mvczigal_ref.models.unet.few_step import find_few_step_lora, fuse_few_step_lora
from mvczigal_ref.models.unet.policy import SingleViewUnet

__all__ = ["UNET_PARTS", "load_unet"]

UNET_PARTS = ("unet", "vae", "lora")
"""Parts of a pipeline that may come from elsewhere; the LoRA is fused into the UNet."""


def load_unet(
    source: str | Path,
    *,
    parts: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    mapped: bool = False,
    few_bits: FewBits | None = None,
) -> UnetComponents:
    """Read a single-view pipeline of the family that its index names.

    Args:
        source: Folder of a diffusers pipeline of SDXL or Stable Diffusion 1.5, or what
            :meth:`UnetComponents.save` wrote; or the name of one that is in the local cache, such
            as ``stabilityai/sdxl-turbo``. Nothing is downloaded, and no safety checker is read.
        parts: Other places of the UNet or the autoencoder, and of a distilled LoRA that makes a
            UNet a few-step one.
        dtype: Floating type of UNet and text encoders; the autoencoder, which half precision can
            overflow, is in fp32.
        device: Device of the networks.
        mapped: Whether the UNet keeps the type of its file, if that has one, so that the system
            reads weights when they are used and may forget them again; but where a distilled LoRA
            is fused into all of them.
        few_bits: Form of the UNet's frozen linear weights; whole if None, and where a distilled
            LoRA is fused into them.

    Returns:
        Components in evaluation mode.

    Raises:
        ConfigError: If a part is unknown.
        CheckpointError: If the index names no known pipeline, a part is absent or unreadable, or
            a tensor is missing, left over or of another shape; the message names each.
    """
    parts = parts or {}
    unknown = [name for name in parts if name not in UNET_PARTS]
    if unknown:
        raise ConfigError(f"`model.sources` must name some of {UNET_PARTS}; got {unknown}.")
    folder = find_pipeline(source)
    named = pipeline_class(folder)
    if named not in UNET_FAMILIES:
        msg = f"`{folder}` must hold one of {sorted(UNET_FAMILIES)}; got {named!r}."
        raise CheckpointError(msg)
    family = UNET_FAMILIES[named]
    texts = numbered("tokenizer", family.text_encoders) | numbered(
        "text_encoder", family.text_encoders
    )
    require_parts(folder, [*(n for n in ("unet", "vae") if n not in parts), *texts])
    places = {n: find_part(n, parts[n]) if n in parts else folder / n for n in ("unet", "vae")}
    if "lora" in parts:
        find_few_step_lora(parts["lora"])  # before gigabytes are read
    try:
        with quiet():
            whole = "lora" in parts
            how = {"mapped": mapped and not whole, "few_bits": None if whole else few_bits}
            components = _read(family, folder, places, dtype, how)
    except (OSError, RuntimeError, SafetensorError) as error:
        msg = f"`{folder}` must be readable; got {type(error).__name__}: {error}"
        raise CheckpointError(msg) from error
    if "lora" in parts:
        fuse_few_step_lora(components.policy.unet, parts["lora"])
    return components.to(device)


def _read(
    family: UnetFamily,
    folder: Path,
    places: Mapping[str, Path],
    dtype: torch.dtype,
    how: Mapping[str, Any],
) -> UnetComponents:
    """Load every part; `how` is for the UNet alone."""

    def loaded(kind: Any, place: Path, dtype: torch.dtype, **how: Any) -> Any:  # noqa: ANN401
        return load_model(kind, place, dtype=dtype, variant=weights_variant(place, dtype), **how)

    texts = numbered("text_encoder", family.text_encoders)
    require_fitting_unet(places["unet"], places["vae"], [folder / name for name in texts])
    vae = loaded(AutoencoderKL, places["vae"], torch.float32)
    mean, std = latent_statistics(vae)
    encoders = tuple(
        loaded(kind, folder / name, dtype).requires_grad_(requires_grad=False)
        for name, kind in texts.items()
    )
    names = list(numbered("tokenizer", encoders))
    tokenizers = tuple(read_tokenizer(CLIPTokenizer, folder / name) for name in names)
    pairs = zip(tokenizers, encoders, strict=True)
    fit_tokenizers(dict(zip(names, pairs, strict=True)))
    unet = loaded(UNet2DConditionModel, places["unet"], dtype, **how)
    return UnetComponents(
        family=family,
        tokenizers=tokenizers,
        text_encoders=encoders,
        vae=vae,
        policy=SingleViewUnet(unet).eval(),
        latent_mean=mean,
        latent_std=std,
    )
