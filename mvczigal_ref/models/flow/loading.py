"""Strict loading of flow pipelines, from a folder or from the libraries' own cache."""

from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.models.flow.families import FLOW_FAMILIES, FlowFamily, numbered
from mvczigal_ref.models.latents import shifted_statistics
from mvczigal_ref.models.loading import load_model, quiet
from mvczigal_ref.models.low_bit_reading import FewBits
from mvczigal_ref.models.pipeline_folders import find_pipeline, pipeline_class, require_parts
from mvczigal_ref.models.schedulers import scheduler_of
from mvczigal_ref.models.tokenizer_files import fit_tokenizers, longest_text, read_tokenizer

__all__ = ["load_flow"]

Device = torch.device | str


class _Types(NamedTuple):
    """Floating types of the parts, and how the transformer is read."""

    transformer: torch.dtype
    text_encoders: torch.dtype
    vae: torch.dtype
    mapped: bool
    few_bits: FewBits | None


def load_flow(
    source: str | Path,
    *,
    text_length: int | None = None,
    dtype: torch.dtype = torch.float32,
    vae_dtype: torch.dtype = torch.float32,
    device: Device = "cpu",
    mapped: bool = False,
    few_bits: FewBits | None = None,
) -> FlowComponents:
    """Read a flow pipeline of the family that its index names.

    Args:
        source: Folder of a diffusers pipeline of FLUX.1, Stable Diffusion 3, Z-Image, or what
            :meth:`FlowComponents.save` wrote of one; or the name of one that is in the local
            cache, such as ``stabilityai/stable-diffusion-3.5-medium``. Nothing is downloaded.
        text_length: Length of the last text encoder's sequences [tokens], such as Flow-GRPO's
            128 of T5; None is the pipeline's default, but at most the tokenizer's length.
        dtype: Floating type of transformer and text encoders.
        vae_dtype: Floating type of the autoencoder, which half precision can overflow.
        device: Device of the networks.
        mapped: Whether the transformer keeps the type of its file, if that has one, so that the
            system reads weights when they are used and may forget them again.
        few_bits: Form of the transformer's frozen linear weights; whole if None.

    Returns:
        Components in evaluation mode.

    Raises:
        ConfigError: If ``text_length`` is more than T5's tokenizer allows.
        CheckpointError: If the index names no known pipeline, a part is absent or unreadable, or
            a tensor is missing, left over or of another shape; the message names each.
    """
    folder = find_pipeline(source)
    family = _family(folder)
    texts = numbered("tokenizer", family.tokenizers) | numbered("text_encoder", family.tokenizers)
    require_parts(folder, ["transformer", "vae", "scheduler", *texts], source=str(source))
    try:
        with quiet():
            tokenizers = tuple(
                read_tokenizer(kind, folder / name)
                for name, kind in numbered("tokenizer", family.tokenizers).items()
            )
            length = _text_length(family, folder, tokenizers[-1], text_length)
            types = _Types(
                transformer=dtype, text_encoders=dtype, vae=vae_dtype, mapped=mapped,
                few_bits=few_bits,
            )  # fmt: skip
            components = _read(family, folder, tokenizers, length, types)
    except (OSError, RuntimeError, SafetensorError) as error:
        msg = f"`{folder}` must be readable; got {type(error).__name__}: {error}"
        raise CheckpointError(msg) from error
    return components.to(device)


def _family(folder: Path) -> FlowFamily:
    """Choose the family that the index of a pipeline names."""
    families = {family.pipeline: family for family in FLOW_FAMILIES}
    named = pipeline_class(folder)
    if named not in families:
        msg = f"`{folder}` must hold one of {sorted(families)}; got {named!r}."
        raise CheckpointError(msg)
    return families[named]


def _text_length(
    family: FlowFamily, folder: Path, tokenizer: PreTrainedTokenizerBase, text_length: int | None
) -> int:
    """Choose the length of T5's sequences, before any weights are read."""
    longest = longest_text(tokenizer)
    if text_length is not None and text_length > longest:
        msg = (
            f"`flow.text_length` must be at most {longest}, the longest text of the tokenizer in "
            f"{str(folder)!r}; got {text_length}. Lower it, or leave it out."
        )
        raise ConfigError(msg)
    return min(family.text_length, longest) if text_length is None else text_length


def _read(
    family: FlowFamily,
    folder: Path,
    tokenizers: tuple[PreTrainedTokenizerBase, ...],
    max_tokens: int,
    types: _Types,
) -> FlowComponents:
    """Load every part."""
    euler = {"FlowMatchEulerDiscreteScheduler": FlowMatchEulerDiscreteScheduler}
    scheduler = scheduler_of(euler, folder / "scheduler" / "scheduler_config.json")
    if family.require_fitting is not None:
        parts = ("transformer", "vae", *numbered("text_encoder", family.text_encoders))
        family.require_fitting({name: folder / name for name in parts})
    vae = load_model(AutoencoderKL, folder / "vae", dtype=types.vae)
    mean, std = shifted_statistics(vae)
    transformer = load_model(
        family.transformer, folder / "transformer", dtype=types.transformer, mapped=types.mapped,
        few_bits=types.few_bits,
    )  # fmt: skip
    encoders = tuple(
        load_model(kind, folder / name, dtype=types.text_encoders)
        for name, kind in numbered("text_encoder", family.text_encoders).items()
    )
    for encoder in encoders:
        encoder.requires_grad_(requires_grad=False)
    names = numbered("tokenizer", family.tokenizers)
    clips = zip(names, zip(tokenizers[:-1], encoders[:-1], strict=True), strict=False)
    fit_tokenizers(dict(clips))  # T5's length is chosen
    return FlowComponents(
        tokenizers=tokenizers,
        text_encoders=encoders,
        vae=vae,
        policy=family.policy(transformer).eval(),
        scheduler=scheduler,
        latent_mean=mean,
        latent_std=std,
        max_tokens=max_tokens,
    )
