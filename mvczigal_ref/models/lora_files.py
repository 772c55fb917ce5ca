"""A trained LoRA as files that PEFT, diffusers and the released code load, and back again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.files import atomic_write
from mvczigal_ref.models.loading import load_strict, save_config, stored
from mvczigal_ref.models.lora import (
    LORA_TARGETS,
    adapter_names,
    insert_lora,
    load_lora_state_dict,
    lora_parameters,
)
from mvczigal_ref.models.lora_reading import PEFT_FILE, read_lora
from mvczigal_ref.models.lora_weights import (
    DIFFUSERS_LORA_FILE,
    LoraLayout,
    LoraWeights,
    write_lora_file,
    write_peft_files,
)
from mvczigal_ref.models.model_card import lora_card
from mvczigal_ref.models.multiview_unet import MultiViewUNet
from mvczigal_ref.models.row_attention import is_row_attention

__all__ = ["load_lora", "save_lora_file", "save_lora_folder", "save_unet_folder"]


def save_lora_folder(
    unet: UNet2DConditionModel,
    folder: Path,
    *,
    base_model: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write a LoRA as a PEFT folder, with a model card.

    Args:
        unet: That holds the LoRA.
        folder: Made if absent.
        base_model: Hub id of the UNet that was trained, for the card and the settings.
        settings: Of the run as JSON values, for the card.

    Raises:
        ValueError: If there is no LoRA.
    """
    lora = LoraWeights.of(unet)
    write_peft_files(lora, folder, base_model=base_model)
    card = lora_card(lora, base_model=base_model, settings=settings)
    atomic_write(folder / "README.md", card)


def save_lora_file(
    unet: UNet2DConditionModel, path: Path, *, layout: LoraLayout = "diffusers"
) -> None:
    """Write a LoRA as one file.

    Args:
        unet: That holds the LoRA.
        path: A ``.safetensors`` file; its folder is made. diffusers finds
            ``pytorch_lora_weights.safetensors`` by itself.
        layout: Names that diffusers' pipelines load, or those of the released code, which
            takes the scale alpha / rank to be 1. The scale is stored either way.

    Raises:
        ValueError: If there is no LoRA, or its scale is not 1 in the released layout.
    """
    write_lora_file(LoraWeights.of(unet), path, layout=layout)


def load_lora(unet: UNet2DConditionModel, source: str | Path) -> None:
    """Read a LoRA in any of the three layouts, adding it where there is none.

    Without a stored scale alpha is the rank, as in the released code. It goes beside adapters of
    other names, which stay active; its own is "default".

    Args:
        unet: Changed in place; a LoRA "default" that it holds must be of the same rank and scale.
        source: A PEFT folder, one that holds diffusers' file, or the file itself.

    Raises:
        CheckpointError: If there is no such file or it is unreadable, the LoRA is of another
            kind, rank or scale, a number is not finite, or a tensor is missing, left over or of
            another shape; one line says what and where, and nothing is changed.
    """
    file = read_lora(_find(Path(source).expanduser()))
    path, rank = file.path, file.rank
    alpha = float(rank) if file.alpha is None else file.alpha
    if not lora_parameters(unet):
        # Compared first, so that a file that does not fit leaves no LoRA behind.
        load_strict(_expected(unet, rank), file.values, source=str(path))
        insert_lora(unet, rank=rank, alpha=alpha, seed=0)
    held = unet.peft_config["default"]
    if held.lora_alpha / held.r != alpha / rank:
        msg = (
            f"`{path}` must have the network's scale alpha / rank = {held.lora_alpha:g} / "
            f"{held.r}; got {alpha:g} / {rank}."
        )
        raise CheckpointError(msg)
    load_lora_state_dict(unet, file.values, source=str(path))


def save_unet_folder(
    policy: MultiViewUNet, folder: Path, *, dtype: torch.dtype | None = None
) -> None:
    """Write a trained network: a diffusers UNet folder, with the adapter beside it.

    ``unet/`` is a plain UNet that other tools load; row attention and camera encoder share one
    file under the published adapter's names.

    Args:
        policy: The network, no LoRA in it.
        folder: Made if absent; it may be named as ``unet`` and ``adapter`` of the sources from
            which a pipeline is loaded.
        dtype: Floating type of the stored tensors; as they are when None.

    Raises:
        ValueError: If the network holds a LoRA, which these files do not.
    """
    if adapter_names(policy.unet):
        msg = "`policy` must hold no LoRA to be saved whole; got one. Call merge_lora first."
        raise ValueError(msg)
    tensors, cameras = policy.unet.state_dict(), policy.camera_encoder
    rows = {name: value for name, value in tensors.items() if is_row_attention(name)}
    plain = {name: value for name, value in tensors.items() if name not in rows}
    save_config(policy.unet, folder / "unet")
    save_config(cameras, folder / "camera_encoder")
    for path, values in (
        (folder / "unet" / "diffusion_pytorch_model.safetensors", plain),
        (folder / "mv_adapter.safetensors", rows | cameras.state_dict()),
    ):
        save_file(stored(values, dtype), path, metadata={"format": "pt"})


def _find(source: Path) -> Path:
    """Find the file that holds the tensors."""
    if source.is_file():
        return source
    for name in (PEFT_FILE, DIFFUSERS_LORA_FILE):
        if (source / name).is_file():
            return source / name
    msg = (
        f"`source` must be a LoRA's file, or a folder that holds {PEFT_FILE} or "
        f"{DIFFUSERS_LORA_FILE}; got {str(source)!r}."
    )
    raise CheckpointError(msg)


def _expected(unet: UNet2DConditionModel, rank: int) -> dict[str, Tensor]:
    """Lay out the tensors of a LoRA of some rank, without memory."""
    ends = tuple(f".{target}" for target in LORA_TARGETS)
    shapes = {}
    for name, layer in unet.named_modules():
        name = name.removesuffix(".base_layer")  # of a layer that another adapter wraps
        if isinstance(layer, nn.Linear) and name.endswith(ends):
            shapes[f"{name}.lora_A.weight"] = (rank, layer.in_features)
            shapes[f"{name}.lora_B.weight"] = (layer.out_features, rank)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
