"""Saving of whole pipelines, every part in its own sub-folder, as diffusers reads them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from mvczigal_ref.files import atomic_write, to_json, usual_mode
from mvczigal_ref.models.loading import quiet, save_config, stored
from mvczigal_ref.models.lora import adapter_names

__all__ = ["WEIGHTS_FILE", "require_no_lora", "save_pipeline"]

WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
"""File of a network's tensors in its folder."""


def require_no_lora(network: nn.Module) -> None:
    """Refuse a network with a LoRA, which the files of a whole network do not hold.

    Args:
        network: Network of a policy.

    Raises:
        ValueError: If it has one.
    """
    if adapter_names(network):
        msg = (
            "`policy` must hold no LoRA to be saved whole; got one that does. Save it with "
            "save_policy, or fuse and unload it with diffusers' `fuse_lora` and `unload_lora`."
        )
        raise ValueError(msg)


def save_pipeline(
    folder: Path,
    *,
    pipeline: str,
    texts: Mapping[str, Any],
    networks: Mapping[str, Any],
    scheduler: Any,  # noqa: ANN401 - untyped libraries
    others: Mapping[str, Any],
    dtype: torch.dtype | None,
) -> None:
    """Write every part into its own sub-folder, and the index last.

    Args:
        folder: Folder to write into; made if absent.
        pipeline: Name of the pipeline's class in diffusers.
        texts: Tokenizers and text encoders by name.
        networks: Networks of diffusers by name.
        scheduler: Scheduler of the pipeline.
        others: Further entries of the index.
        dtype: Floating type of the stored tensors; as they are when None.
    """
    with quiet():
        for name, part in texts.items():
            values: dict[str, Any] = {}
            if isinstance(part, PreTrainedModel):
                values = {"state_dict": stored(part.state_dict(), dtype)}
            part.save_pretrained(folder / name, **values)
    for name, network in networks.items():
        save_config(network, folder / name)
        tensors = stored(network.state_dict(), dtype)
        save_file(tensors, folder / name / WEIGHTS_FILE, metadata={"format": "pt"})
    usual_mode(folder)
    scheduler.save_config(folder / "scheduler")
    index: dict[str, Any] = {"_class_name": pipeline}
    for name, part in {**texts, **networks, "scheduler": scheduler}.items():
        library = "transformers" if name in texts else "diffusers"
        index[name] = [library, type(part).__name__]
    atomic_write(folder / "model_index.json", to_json(index | dict(others)))
