"""LoRA without its network, and the file layouts of PEFT, diffusers and the released code."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors.torch import save
from torch import Tensor

from mvczigal_ref.files import atomic_write, to_json
from mvczigal_ref.models.loading import stored
from mvczigal_ref.models.lora import LORA_TARGETS, Network, lora_state_dict, one_adapter
from mvczigal_ref.models.lora_reading import METADATA, PEFT_CONFIG, PEFT_FILE, PEFT_PREFIX, PLAIN

__all__ = [
    "DIFFUSERS_LORA_FILE",
    "PEFT_CONFIG",
    "PEFT_FILE",
    "RELEASED_FILE",
    "LoraLayout",
    "LoraWeights",
    "write_lora_file",
    "write_peft_files",
]

LoraLayout = Literal["diffusers", "released"]

DIFFUSERS_LORA_FILE = "pytorch_lora_weights.safetensors"
RELEASED_FILE = "lora.safetensors"
"""Our name for a file in the released trainer's layout, which has no fixed name."""

# Settings of an adapter that cannot be read off its values.
_CHANGES = tuple(name for name, only in PLAIN.items() if not only)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraWeights:
    """A LoRA without its network: everything that its files hold."""

    values: Mapping[str, Tensor]
    """Tensors by their names inside the network."""

    rank: int
    """Columns of each factor [columns]."""

    alpha: float
    """Numerator of the scale alpha / rank [1]."""

    targets: Sequence[str] = LORA_TARGETS
    """Ends of the names of the layers that it adapts."""

    network: Literal["unet", "transformer"] = "unet"
    """Name of the network in a diffusers pipeline."""

    @classmethod
    def of(cls, network: Network) -> "LoraWeights":
        """Copy a network's LoRA.

        Args:
            network: UNet or flow transformer that holds one.

        Returns:
            The values and the settings that give them their meaning.

        Raises:
            ValueError: If there is no LoRA, several of which none is the trained one, or one of
                another kind.
        """
        values, name = lora_state_dict(network), one_adapter(network)
        config = network.peft_config[name]
        other = [key for key in _CHANGES if getattr(config, key)]
        if other:
            msg = (
                f"`network` must hold a plain LoRA of one rank to be saved; the adapter {name!r} "
                f"has {', '.join(other)}."
            )
            raise ValueError(msg)
        return cls(
            values=values,
            rank=config.r,
            alpha=float(config.lora_alpha),
            targets=sorted(config.target_modules),
            network="unet" if hasattr(network, "down_blocks") else "transformer",
        )

    @property
    def multiview(self) -> bool:
        """Whether it adapts row attention, so that its network draws several views."""
        return any("_mv." in name for name in self.values)

    def named(self, prefix: str) -> dict[str, Tensor]:
        """Give the values for a file, on the CPU.

        Args:
            prefix: Text before each name.

        Returns:
            Contiguous tensors by name.
        """
        return {prefix + name: value.cpu() for name, value in stored(self.values, None).items()}


def write_peft_files(lora: LoraWeights, folder: Path, *, base_model: str | None = None) -> None:
    """Write a LoRA as PEFT reads it: its settings and its values.

    Args:
        lora: The trained update.
        folder: Folder to write into; made if absent.
        base_model: Hub id of the trained network, for the settings.
    """
    # PEFT completes the rest; its own class would import transformers to write ten lines.
    settings = {
        "peft_type": "LORA",
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_dropout": 0.0,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": sorted(lora.targets),
        "init_lora_weights": "gaussian",
        "inference_mode": True,
        "base_model_name_or_path": base_model,
    }
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / PEFT_CONFIG, to_json(settings))
    values = save(lora.named(PEFT_PREFIX), metadata={"format": "pt"})
    atomic_write(folder / PEFT_FILE, values)


def write_lora_file(lora: LoraWeights, path: Path, *, layout: LoraLayout = "diffusers") -> None:
    """Write a LoRA as one file, its scale included.

    Args:
        lora: The trained update.
        path: A ``.safetensors`` file; its folder is made. diffusers finds
            ``pytorch_lora_weights.safetensors`` by itself.
        layout: "diffusers" for the names that diffusers' pipelines load, "released" for those of
            the released code, which takes the scale alpha / rank to be 1.

    Raises:
        ValueError: If the scale is not 1 in the released layout.
    """
    if layout == "released" and lora.alpha != lora.rank:
        msg = (
            '`layout` "released" must have alpha equal to the rank, as its readers assume; '
            f'got alpha {lora.alpha:g} at rank {lora.rank}. Use "diffusers".'
        )
        raise ValueError(msg)
    scale = {
        f"{lora.network}.r": lora.rank,
        f"{lora.network}.lora_alpha": lora.alpha,
        f"{lora.network}.target_modules": sorted(lora.targets),
    }
    # One entry alone: the order of several would differ from file to file.
    metadata = {METADATA: json.dumps(scale, sort_keys=True)}
    prefix = f"{lora.network}." if layout == "diffusers" else ""
    atomic_write(path, save(lora.named(prefix), metadata=metadata))
