"""Trained policies as folders that other tools load; a folder is whole or absent."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save_file
from torch import nn

from mvczigal_ref.files import discard, sync, sync_files, usual_mode, writing
from mvczigal_ref.models.file_sums import write_sums
from mvczigal_ref.models.loading import save_config, stored
from mvczigal_ref.models.lora import adapter_names
from mvczigal_ref.models.lora_weights import (
    DIFFUSERS_LORA_FILE,
    RELEASED_FILE,
    LoraWeights,
    write_lora_file,
    write_peft_files,
)
from mvczigal_ref.models.model_card import CardFacts, hub_id, model_card

__all__ = ["PolicyLayout", "save_policy", "trained_lora", "whole_folder"]

PolicyLayout = Literal["peft", "diffusers", "released"]


def trained_lora(policy: Any) -> LoraWeights | None:  # noqa: ANN401 - of either kind
    """Copy a policy's LoRA.

    Args:
        policy: A UNet or a flow transformer.

    Returns:
        The LoRA, or None where there is none.
    """
    network = getattr(policy, "transformer", None) or policy.unet
    return LoraWeights.of(network) if adapter_names(network) else None


def save_policy(
    trained: LoraWeights | nn.Module,
    folder: Path,
    *,
    facts: CardFacts | None = None,
    layout: PolicyLayout | None = None,
) -> None:
    """Write a trained policy; the folder gets its name only once all of it is on the disk.

    A LoRA becomes PEFT's files, diffusers' file and, where its scale is 1 as the released code
    supposes, that code's file. A network that was trained whole becomes a diffusers folder; beside
    that of a multi-view UNet lie row attention and camera encoder. Either has a model card, and a
    list of checksums by which a later load sees a file that has changed.

    Args:
        trained: A LoRA, or a UNet or flow transformer that was trained whole.
        folder: Folder to write; replaced if it exists. A kill leaves all of it or nothing.
        facts: Facts about the weights, for the model card.
        layout: The one layout to write of a LoRA; every one that fits if None.

    Raises:
        ValueError: If the layout does not fit: a whole network has no layouts, and the released
            one is for a UNet's LoRA with a scale of 1.
    """
    facts, lora = facts or CardFacts(), None
    network = "transformer" if hasattr(trained, "transformer") else "unet"
    if isinstance(trained, LoraWeights):
        _refuse(trained, layout)
        lora, network = trained, trained.network
    elif layout is not None:
        msg = f"`layout` is for a LoRA; every weight was trained here. Leave {layout!r} out."
        raise ValueError(msg)
    multiview = hasattr(trained, "camera_encoder") if lora is None else lora.multiview
    card = model_card(lora, facts, network=network, multiview=multiview)
    with whole_folder(folder) as aside:
        aside.mkdir()
        if isinstance(trained, LoraWeights):
            _write_lora(trained, aside, layout, hub_id(facts.base))
        else:
            _write_network(trained, aside)
        write_sums(aside)  # of what is loaded; a card may be edited
        (aside / "README.md").write_text(card, "utf-8")
        usual_mode(aside)


def _refuse(lora: LoraWeights, layout: PolicyLayout | None) -> None:
    """Refuse a layout that does not fit this LoRA, before anything is written."""
    if layout == "released" and not _has_released(lora):
        msg = (
            '`layout` "released" is for the multi-view UNet with alpha equal to the rank; got '
            f'{lora.network} with alpha {lora.alpha:g} at rank {lora.rank}. Use "diffusers".'
        )
        raise ValueError(msg)


def _has_released(lora: LoraWeights) -> bool:
    return lora.multiview and lora.alpha == lora.rank


def _write_lora(
    lora: LoraWeights, folder: Path, layout: PolicyLayout | None, base_model: str | None
) -> None:
    if layout in (None, "peft"):
        write_peft_files(lora, folder, base_model=base_model)
    if layout in (None, "diffusers"):
        write_lora_file(lora, folder / DIFFUSERS_LORA_FILE)
    if layout == "released" or (layout is None and _has_released(lora)):
        write_lora_file(lora, folder / RELEASED_FILE, layout="released")


def _write_network(policy: Any, folder: Path) -> None:  # noqa: ANN401 - of either kind
    """Write a network that was trained whole."""
    if hasattr(policy, "camera_encoder"):
        from mvczigal_ref.models.lora_files import save_unet_folder  # which imports diffusers

        save_unet_folder(policy, folder)
        return
    name = "transformer" if hasattr(policy, "transformer") else "unet"
    network = getattr(policy, name)
    save_config(network, folder / name)
    save_file(
        stored(network.state_dict(), None),
        folder / name / "diffusion_pytorch_model.safetensors",
        metadata={"format": "pt"},
    )


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a hidden place for a folder, which takes its name once all of it is on the disk.

    Args:
        folder: Folder to write; replaced if it exists. Those above it are made if absent.

    Yields:
        Path where it is to be made; nothing of it is left after an error or a kill.

    Raises:
        OSError: The error of the disk, with the path.
    """
    for left in folder.parent.glob(f".{escape(folder.name)}.*.tmp"):  # of writers that were killed
        discard(left)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.replaced.tmp")
    try:
        with writing(folder):
            yield aside
            sync_files(aside)
    except BaseException:
        discard(aside)
        raise
    if os.path.lexists(folder):
        folder.rename(old)
    aside.rename(folder)
    sync(folder.parent)
    discard(old)
