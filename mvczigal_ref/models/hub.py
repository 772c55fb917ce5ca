"""Published full-size networks as one set of components, loaded strictly."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models import reach
from mvczigal_ref.models.components import Components, with_adapter
from mvczigal_ref.models.downloads import file_size
from mvczigal_ref.models.fitting_parts import require_fitting_sdxl
from mvczigal_ref.models.latents import latent_statistics
from mvczigal_ref.models.loading import load_model, quiet
from mvczigal_ref.models.low_bit_reading import FewBits
from mvczigal_ref.models.multiview_unet import PUBLISHED_CAMERA_ENCODER
from mvczigal_ref.models.published import SdxlSources
from mvczigal_ref.models.single_files import refuse_single_file
from mvczigal_ref.models.sources import (
    AbsentError,
    Located,
    cache_first,
    locate_adapter,
    locate_network,
    locate_tokenizer,
)
from mvczigal_ref.models.tokenizer_files import fit_tokenizers, read_tokenizer
from mvczigal_ref.models.weight_files import check_safetensors, read_json

__all__ = ["SdxlSources", "load_sdxl_components"]

# Class of each network, and the name of that class's dtype argument.
_NETWORKS = {
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
}
_TOKENIZERS = ("tokenizer", "tokenizer_2")
_UNREACHED = "the Hugging Face hub does not answer, and these files are not on this machine"


def load_sdxl_components(
    sources: SdxlSources | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    mapped: bool = False,
    few_bits: FewBits | None = None,
) -> Components:
    """Load the published networks of a text-to-multiview pipeline.

    Every file is located, and downloaded where that is allowed, before anything is loaded. In half
    precision a file of the variant "fp16" is preferred to the full one. Code from a repository is
    never run, and tensors are read from safetensors alone.

    Args:
        sources: Places of the parts; the published few-step ones if None.
        dtype: Floating type of the networks. An autoencoder in which float16 overflows, as its
            settings say, stays in float32.
        device: Device of the networks.
        mapped: Whether UNet and row attention keep the types of their files, as
            :func:`~mvczigal_ref.models.components.load_components` says.
        few_bits: Form of the UNet's frozen linear weights, as there.

    Returns:
        Components in evaluation mode; the statistics contain the autoencoder's scaling factor.

    Raises:
        CheckpointError: If files are absent; each is named with its place on the hub and its size.
            Also if a file is unreadable, or a tensor is missing, left over or of another shape;
            each is named.
    """
    sources = sources or SdxlSources()
    for name in ("base", "unet", "vae"):
        refuse_single_file(name, getattr(sources, name) or "")
    searches: dict[str, Callable[[SdxlSources], Any]] = {
        **{name: partial(locate_network, name, dtype=dtype) for name in _NETWORKS},
        **{name: partial(locate_tokenizer, name) for name in _TOKENIZERS},
        "adapter": locate_adapter,
    }
    places: dict[str, Any] = {}
    absent: list[AbsentError] = []
    for name, search in searches.items():
        try:
            places[name] = cache_first(search, sources)
        except AbsentError as error:
            absent.append(error)
    if absent:
        if sources.local_files_only or reach.hub_answers():
            raise CheckpointError(_listed(absent))
        whole = file_size(sum(part.size for part in absent))
        raise CheckpointError(f"{_UNREACHED}, {whole} in all: {_listed(absent)}")
    try:
        with quiet():
            components = _read(places, dtype, mapped=mapped, few_bits=few_bits)
    except (OSError, RuntimeError, SafetensorError) as error:
        msg = f"the networks' files must be readable; got {type(error).__name__}: {error}"
        raise CheckpointError(msg) from error
    return components.to(device)


def _listed(absent: Sequence[AbsentError]) -> str:
    """Give all that is absent, and every part's download, in one line."""
    if len(absent) == 1:
        return str(absent[0])
    names = list(dict.fromkeys(part.name for part in absent))
    first = [next(part for part in absent if part.name == name) for name in names]
    places = ", ".join(f"{part.source!r} ({part.why})" for part in first)
    downloads = ", ".join(part.download for part in absent)
    listed = " and ".join(f"`{name}`" for name in names)
    return (
        f"{listed} must be folders or hub ids that hold their parts, {len(absent)} of which are "
        f"absent; got {places}. Download with {downloads}."
    )


def _read(
    places: dict[str, Any], dtype: torch.dtype, *, mapped: bool, few_bits: FewBits | None
) -> Components:
    """Load every part from the disk."""
    tokenizers = {name: read_tokenizer(CLIPTokenizer, places[name]) for name in _TOKENIZERS}
    check_safetensors(places["adapter"])
    folders = {name: places[name].folder for name in _NETWORKS}
    require_fitting_sdxl(folders, _camera_settings(places["adapter"]))
    loaded = {
        name: _load_network(
            name, places[name], dtype,
            **({"mapped": mapped, "few_bits": few_bits} if name == "unet" else {}),
        )
        for name in _NETWORKS
    }  # fmt: skip
    for name in ("text_encoder", "text_encoder_2"):
        loaded[name].requires_grad_(requires_grad=False)
    encoders = [loaded[name.replace("tokenizer", "text_encoder")] for name in _TOKENIZERS]
    fit_tokenizers(
        dict(zip(_TOKENIZERS, zip(tokenizers.values(), encoders, strict=True), strict=True))
    )
    adapter = places["adapter"]
    settings = _camera_settings(adapter)
    policy = with_adapter(loaded.pop("unet"), adapter, settings, dtype, mapped=mapped)
    vae = loaded["vae"]
    mean, std = latent_statistics(vae)
    # From here on the statistics hold the factor, so that settings saved again agree.
    vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist(), scaling_factor=1.0)
    return Components(
        **tokenizers, **loaded, policy=policy.eval(), latent_mean=mean, latent_std=std
    )


def _load_network(name: str, at: Located, dtype: torch.dtype, **how: Any) -> Any:  # noqa: ANN401
    """Load one network, no pickle accepted."""
    kind = _NETWORKS[name]
    if name == "vae" and dtype == torch.float16:
        config = read_json(at.folder / "config.json")
        dtype = torch.float32 if config.get("force_upcast", True) else dtype
    return load_model(kind, at.folder, dtype=dtype, variant=at.variant, **how)


def _camera_settings(adapter: Path) -> dict[str, Any]:
    """Read the settings beside an adapter's file; the published file has none."""
    place = adapter.parent / "camera_encoder" / "config.json"
    return read_json(place) if place.is_file() else PUBLISHED_CAMERA_ENCODER
