"""A network's LoRA read and written, and a whole trained UNet written as files."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import ModelMixin, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.file_kinds import summary
from mvczigal_ref.models.loading import load_strict, save_config, stored
from mvczigal_ref.models.lora import (
    LORA_TARGETS,
    adapter_names,
    insert_lora,
    load_lora_state_dict,
)
from mvczigal_ref.models.lora_reading import PEFT_FILE, LoraFile, read_lora
from mvczigal_ref.models.lora_weights import (
    DIFFUSERS_LORA_FILE,
    LoraLayout,
    LoraWeights,
    write_lora_file,
    write_peft_files,
)
from mvczigal_ref.models.multiview_unet import MultiViewUNet
from mvczigal_ref.models.row_attention import is_row_attention
from mvczigal_ref.models.weight_files import pickled_weights

__all__ = ["check_lora", "load_lora", "save_lora_file", "save_lora_folder", "save_unet_folder"]

_FILES = (PEFT_FILE, DIFFUSERS_LORA_FILE)


def load_lora(network: ModelMixin, source: str | Path, *, adapter: str = "default") -> None:
    """Read a LoRA in any of the three layouts, adding it where there is none.

    A UNet's file without a stored scale has alpha equal to the rank, as in the released code; a
    flow transformer's must say its scale and which layers it adapts. The LoRA goes beside adapters
    of other names, which stay active: their updates add up. One of its own name is overwritten.

    Args:
        network: UNet or flow transformer, changed in place; a LoRA of this name that it holds must
            be of the same rank and scale.
        source: A PEFT folder, one that holds diffusers' file, or the file itself.
        adapter: Name of the LoRA in the network; "default" is the one that is trained and saved.

    Raises:
        ValueError: If the adapter's name is empty or holds a dot, which no module's name may.
        CheckpointError: If there is no such file or it is unreadable, the LoRA is of another
            kind, rank or scale, a number is not finite, or a tensor is missing, left over or of
            another shape; one line says what and where, and nothing is changed.
    """
    if not adapter or "." in adapter:
        msg = f"`adapter` must be a name without dots; got {adapter!r}."
        raise ValueError(msg)
    is_unet = isinstance(network, UNet2DConditionModel)
    path = _find(Path(source).expanduser())
    file = read_lora(path, network="unet" if is_unet else "transformer")
    rank, alpha, targets = file.rank, file.alpha, file.targets
    if is_unet:
        alpha, targets = float(rank) if alpha is None else alpha, LORA_TARGETS
    if alpha is None or targets is None:
        msg = (
            f"`{path}` must be a LoRA with its rank, alpha and targets; got one that says alpha "
            f"{alpha} and targets {targets}. Write it with write_lora_file."
        )
        raise CheckpointError(msg)
    if adapter not in adapter_names(network):
        # Compared first, so that a file that does not fit leaves no LoRA behind.
        expected = _expected(network, rank, targets)
        if any(is_row_attention(name) for name in expected):
            _refuse_plain(file)
        load_strict(expected, file.values, source=str(path))
        insert_lora(network, rank=rank, alpha=alpha, seed=0, targets=targets, adapter=adapter)
    config = network.peft_config[adapter]
    if config.lora_alpha / config.r != alpha / rank:
        msg = (
            f"`{path}` must have the network's scale alpha / rank = {config.lora_alpha:g} / "
            f"{config.r}; got {alpha:g} / {rank}."
        )
        raise CheckpointError(msg)
    load_lora_state_dict(network, file.values, source=str(path), adapter=adapter)


def check_lora(source: str | Path, *, network: str) -> LoraFile:
    """Read a LoRA's file before its network is loaded, to refuse a damaged one at once.

    Args:
        source: As in :func:`load_lora`.
        network: Kind of the network, as the setting ``model.network`` names it.

    Returns:
        Content of the file.

    Raises:
        CheckpointError: If there is no such file, or it can fit no network of the kind.
    """
    path = _find(Path(source).expanduser())
    file = read_lora(path, network="transformer" if network == "flow" else "unet")
    if network == "multiview":
        _refuse_plain(file)
    return file


def save_lora_file(network: ModelMixin, path: Path, *, layout: LoraLayout = "diffusers") -> None:
    """Write a network's LoRA as one file, its scale included.

    Args:
        network: UNet or flow transformer that holds a LoRA; of several the trained one is written.
        path: A ``.safetensors`` file; its folder is made.
        layout: As in :func:`~mvczigal_ref.models.lora_weights.write_lora_file`.

    Raises:
        ValueError: If there is no LoRA, several of which none is the trained one, one of another
            kind, or a scale other than 1 in the released layout.
    """
    write_lora_file(LoraWeights.of(network), path, layout=layout)


def save_lora_folder(network: ModelMixin, folder: Path, *, base_model: str | None = None) -> None:
    """Write a network's LoRA as PEFT's folder.

    Args:
        network: UNet or flow transformer that holds a LoRA; of several the trained one is written.
        folder: Folder to write into; made if absent.
        base_model: Hub id of the trained network, for the settings.

    Raises:
        ValueError: As :func:`save_lora_file`.
    """
    write_peft_files(LoraWeights.of(network), folder, base_model=base_model)


def save_unet_folder(
    policy: MultiViewUNet, folder: Path, *, dtype: torch.dtype | None = None
) -> None:
    """Write a trained network: a diffusers UNet folder, with the adapter beside it.

    ``unet/`` is a plain UNet that other tools load; row attention and camera encoder share one
    file under the published adapter's names.

    Args:
        policy: The network, without a LoRA.
        folder: Folder to write into; made if absent. A pipeline is loaded from it by naming it as
            the sources' ``unet`` and ``adapter``.
        dtype: Floating type of the stored tensors; as they are when None.

    Raises:
        ValueError: If the network holds a LoRA, which these files do not.
    """
    if adapter_names(policy.unet):
        msg = (
            "`policy` must hold no LoRA to be saved whole; got one. Fuse and unload it first with "
            "diffusers' `fuse_lora` and `unload_lora`."
        )
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


def _refuse_plain(file: LoraFile) -> None:
    """Refuse a LoRA of SDXL itself, which adapts no row attention."""
    if not any(is_row_attention(name) for name in file.values):
        msg = (
            f"`{file.path}` must adapt row attention too; got a LoRA of a plain network, as "
            f"diffusers' trainer writes it, {len(file.values)} tensors: "
            f"{summary(list(file.values), shown=2)}. A pipeline loads it beside the trained one, "
            "by `load_lora_weights`."
        )
        raise CheckpointError(msg)


def _find(source: Path) -> Path:
    """Find the file that holds the tensors."""
    if source.is_file():
        return source
    for name in _FILES:
        if (source / name).is_file():
            return source / name
    why = next(filter(None, (pickled_weights(source, Path(n).stem) for n in _FILES)), None)
    msg = (
        f"`source` must be a LoRA's file, or a folder that holds {PEFT_FILE} or "
        f"{DIFFUSERS_LORA_FILE}; got {str(source)!r}{f': {why}' if why else ''}."
    )
    raise CheckpointError(msg)


def _expected(network: ModelMixin, rank: int, targets: Sequence[str]) -> dict[str, Tensor]:
    """Lay out the tensors of a LoRA of some rank, without memory."""
    ends = tuple(f".{target}" for target in targets)
    shapes = {}
    for name, layer in network.named_modules():
        name = name.removesuffix(".base_layer")  # of a layer that another adapter wraps
        if isinstance(layer, nn.Linear) and (name in targets or name.endswith(ends)):
            shapes[f"{name}.lora_A.weight"] = (rank, layer.in_features)
            shapes[f"{name}.lora_B.weight"] = (layer.out_features, rank)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
