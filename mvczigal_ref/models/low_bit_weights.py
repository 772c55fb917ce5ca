"""Frozen weights in 8 or 4 bits under a LoRA, by torchao, an optional package.

Networks are rounded as they are read where diffusers can, see :mod:`.low_bit_reading`. What no file
of diffusers holds is rounded here, at its place: row attention, networks that a distilled LoRA was
fused into, and networks that were built already.
"""

import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any, Literal

from torch import Tensor, nn

from mvczigal_ref.errors import ConfigError

__all__ = [
    "LOW_BITS",
    "LowBit",
    "check_low_bit",
    "low_bit_layers",
    "low_bit_saving",
    "store_low_bit",
    "torchao_config",
]

LOW_BITS = "low_bits"
"""Attribute of a layer whose weight is stored in few bits, which multiplies in its own way."""

LowBit = Literal["int8", "nf4"]

_SMALLEST = 4096  # numbers of a weight that is worth it
_MULTIPLE = {"int8": 1, "nf4": 64 * 256}  # numbers per scale, and scales per scale of theirs


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
    config = torchao_config(kind)
    with warnings.catch_warnings(action="ignore"):
        from torchao.quantization import quantize_
    layers = list(low_bit_layers(network, kind))
    for layer in layers:
        quantize_(layer, config, filter_fn=lambda *_: True)
        setattr(layer, LOW_BITS, True)
    return len(layers)


def torchao_config(kind: LowBit) -> Any:  # noqa: ANN401 - an optional package
    """Build torchao's configuration, which diffusers and `quantize_` take.

    Args:
        kind: "int8" or "nf4".

    Returns:
        An `AOBaseConfig`.
    """
    with warnings.catch_warnings(action="ignore"):
        if kind == "int8":
            from torchao.quantization import Int8WeightOnlyConfig

            return Int8WeightOnlyConfig()
        from torchao.prototype._nf4tensor_api import NF4WeightOnlyConfig

        return NF4WeightOnlyConfig()


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
        >>> low_bit_saving(layer, "int8") == 64 * 64 * 4 - (64 * 64 + 64 * 5)
        True
    """
    return sum(_saving(layer.weight, kind) for layer in low_bit_layers(network, kind))


def _saving(weight: Tensor, kind: LowBit) -> int:
    count, width = weight.numel(), weight.element_size()
    if kind == "int8":
        stored = count + 5 * weight.shape[0]  # per output a scale of fp32, and a zero point
    else:  # two numbers per byte, a byte per scale, one of fp32 or the weight's dtype per 256
        stored = count // 2 + count // 64 + width * (count // (64 * 256))
    return count * width - stored
