"""Frozen weights in 8 or 4 bits under a LoRA, by torchao, an optional package.

A network of diffusers is rounded as it is read, by diffusers' own quantization config, so that its
device never holds it whole. What no file of diffusers holds is rounded by torchao at its place: row
attention, networks that a distilled LoRA was fused into, and networks that were built already.
"""

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from mvczigal_ref.errors import ConfigError

__all__ = [
    "LOW_BITS",
    "FewBits",
    "LowBit",
    "cast_whole_weights",
    "check_low_bit",
    "holds_low_bits",
    "low_bit_layers",
    "low_bit_reading",
    "low_bit_saving",
    "mark_low_bit",
    "store_low_bit",
]

LOW_BITS = "low_bits"
"""Attribute of a layer whose weight is stored in few bits, which multiplies in its own way."""

LowBit = Literal["int8", "nf4"]

_SMALLEST = 4096  # numbers of a weight that is worth it
_MULTIPLE = {"int8": 1, "nf4": 64 * 256}  # numbers per scale, and scales per scale of theirs


class FewBits(NamedTuple):
    """Form in which the frozen weights of a network are read from its file."""

    kind: LowBit
    """Form of the weights."""

    device: torch.device
    """Device on which they are rounded, tensor by tensor, and stay."""


def check_low_bit(kind: str) -> None:
    """Refuse weights of few bits where their package is absent, before anything is loaded.

    Args:
        kind: ``model.frozen_weights``.

    Raises:
        ConfigError: If torchao is needed and not installed.

    Examples:
        >>> check_low_bit("stored")
    """
    if kind != "stored" and importlib.util.find_spec("torchao") is None:
        msg = (
            f'`model.frozen_weights` = "{kind}" needs the package torchao, which is not installed. '
            'Run `pip install -e ".[lowbit]"`, or choose "stored".'
        )
        raise ConfigError(msg)


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
    config = _torchao_config(few_bits.kind)
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


def store_low_bit(network: nn.Module, kind: LowBit) -> int:
    """Store a network's frozen linear weights in few bits; products are in the network's dtype.

    A weight is rounded once and for all, so that sampling and replay see the same one: the first
    ratio stays exactly 1.

    Source:
        Dettmers et al., QLoRA, arXiv:2305.14314 (NF4, with its scales in 8 bits); one scale per
        output and the absolute maximum for int8, as torchao has it.

    Args:
        network: Network with its LoRA, on its device and in its dtype; changed in place.
        kind: "int8" has a scale per output; "nf4" has 4 bits per number and a scale per 64.

    Returns:
        Layers that were rounded now; those that were read so stay.
    """
    config = _torchao_config(kind)
    with warnings.catch_warnings(action="ignore"):
        from torchao.quantization import quantize_
    layers = list(low_bit_layers(network, kind))
    for layer in layers:
        quantize_(layer, config, filter_fn=lambda *_: True)
        setattr(layer, LOW_BITS, True)
    return len(layers)


def _torchao_config(kind: LowBit) -> Any:  # noqa: ANN401 - an optional package
    """Build torchao's configuration, for diffusers and for `quantize_` alike."""
    with warnings.catch_warnings(action="ignore"):
        from torchao.prototype._nf4tensor_api import NF4WeightOnlyConfig
        from torchao.quantization import Int8WeightOnlyConfig
    return Int8WeightOnlyConfig() if kind == "int8" else NF4WeightOnlyConfig()


def holds_low_bits(network: nn.Module) -> bool:
    """Tell whether some weights of a network are stored in few bits.

    Args:
        network: Any network.

    Returns:
        Whether a layer is marked.

    Examples:
        >>> holds_low_bits(nn.Linear(2, 2))
        False
    """
    return any(LOW_BITS in module.__dict__ for module in network.modules())


def cast_whole_weights(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Cast a network's floating tensors but its weights of few bits, which a cast would break.

    Args:
        network: Network, changed in place.
        dtype: Floating type.

    Returns:
        The network.
    """
    few = {id(module.weight) for module in network.modules() if LOW_BITS in module.__dict__}
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point() and id(tensor) not in few:
            tensor.data = tensor.data.to(dtype)
    return network


def low_bit_layers(network: nn.Module, kind: LowBit) -> Iterator[nn.Linear]:
    """Find the layers whose weight is stored in few bits.

    Args:
        network: Network, in which a LoRA's own layers are trained.
        kind: "int8" or "nf4".

    Yields:
        Frozen linear layers of at least 4096 numbers that are whole; for "nf4" of a multiple of
        16384.

    Examples:
        >>> layers = nn.Sequential(nn.Linear(64, 64), nn.Linear(8, 8)).requires_grad_(False)
        >>> len(list(low_bit_layers(layers, "int8"))), len(list(low_bit_layers(layers, "nf4")))
        (1, 0)
    """
    for module in network.modules():
        if not isinstance(module, nn.Linear) or module.weight.requires_grad:
            continue
        if LOW_BITS in module.__dict__:
            continue
        count = module.weight.numel()
        if count >= _SMALLEST and count % _MULTIPLE[kind] == 0:
            yield module


def low_bit_saving(network: nn.Module, kind: LowBit) -> int:
    """Count the memory that weights of few bits spare.

    Args:
        network: Network whose weights are still whole.
        kind: "int8" or "nf4".

    Returns:
        Memory [bytes].

    Examples:
        >>> layer = nn.Linear(64, 64, bias=False).requires_grad_(False)
        >>> low_bit_saving(layer, "int8") == 64 * 64 * 4 - (64 * 64 + 64 * 4)
        True
    """
    return sum(_saving(layer.weight, kind) for layer in low_bit_layers(network, kind))


def _saving(weight: Tensor, kind: LowBit) -> int:
    count, width = weight.numel(), weight.element_size()
    if kind == "int8":
        stored = count + width * weight.shape[0]
    else:  # two numbers per byte, a byte per scale, one of fp32 or the weight's dtype per 256
        stored = count // 2 + count // 64 + width * (count // (64 * 256))
    return count * width - stored
