"""Frozen weights that diffusers rounds to 8 or 4 bits as it reads them, by its `TorchAoConfig`.

Each tensor is rounded on the device where it stays, which never holds the network whole. There is
no choice of bitsandbytes, by which diffusers reads on GPUs alone.
"""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mvczigal_ref.models.low_bit_weights import LOW_BITS, LowBit, low_bit_layers, torchao_config

__all__ = ["FewBits", "few_bit_weights", "low_bit_reading", "mark_low_bit"]


class FewBits(NamedTuple):
    """Form in which the frozen weights of a network are read from its file."""

    kind: LowBit
    """Form of the weights."""

    device: torch.device
    """Device on which they are rounded, tensor by tensor, and stay."""


def low_bit_reading(kind: Any, folder: Path, few_bits: FewBits) -> dict[str, Any]:  # noqa: ANN401
    """Give the keywords by which diffusers' ``from_pretrained`` rounds weights as it reads them.

    Args:
        kind: Class of the network, of diffusers.
        folder: Folder of its settings.
        few_bits: Form of the weights.

    Returns:
        Keywords; none where no layer is worth it. :func:`mark_low_bit` comes after the reading.
    """
    with torch.device("meta"):
        network = kind.from_config(kind.load_config(folder)).requires_grad_(requires_grad=False)
    layers = {id(layer) for layer in low_bit_layers(network, few_bits.kind)}
    names = [name for name, module in network.named_modules() if id(module) in layers]
    if not names:
        return {}
    config = torchao_config(few_bits.kind)
    with warnings.catch_warnings(action="ignore"):
        from diffusers import TorchAoConfig
        from torchao.quantization import FqnToConfig
    rounding = TorchAoConfig(FqnToConfig(dict.fromkeys(names, config)))
    options: dict[str, Any] = {"quantization_config": rounding}
    if few_bits.device.type != "cpu":  # diffusers takes the CPU for a place of whole weights
        options["device_map"] = {"": few_bits.device}
    return options


def mark_low_bit(network: nn.Module) -> None:
    """Mark the layers of few bits in a network that was read by :func:`low_bit_reading`.

    Args:
        network: Network, changed in place.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear) and type(module.weight.data) is not Tensor:
            setattr(module, LOW_BITS, True)


def few_bit_weights(network: nn.Module) -> set[Tensor]:
    """Find the weights that a network stores in few bits.

    Args:
        network: Any network.

    Returns:
        Weights of the marked layers.

    Examples:
        >>> few_bit_weights(nn.Linear(2, 2))
        set()
    """
    linear = (module for module in network.modules() if isinstance(module, nn.Linear))
    return {module.weight for module in linear if LOW_BITS in module.__dict__}
