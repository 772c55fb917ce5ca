"""Linear layers in the hot path: those of the same tokens fused, LoRA merged in.

Parameters, their names and PEFT's bookkeeping stay where they are; only the products change.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from peft.tuners import lora
from torch import Tensor, nn

from mvczigal_ref.models.lora_form import note_form
from mvczigal_ref.models.low_bit_weights import LOW_BITS
from mvczigal_ref.models.memo import memo
from mvczigal_ref.models.merged_linear import Update, merge, merged_linear

__all__ = ["MergedLinear", "QuickLinear", "install_merged_linears", "project"]

Tokens = Float[Tensor, "*token width"]
Projected = Float[Tensor, "*token _"]
Heads = Float[Tensor, "*batch head token _"]


class _Map(NamedTuple):
    """A frozen linear map, with its low-rank update if it has one."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor | None = None
    up: Tensor | None = None
    scale: float = 1.0

    def fits(self, other: "_Map") -> bool:
        """Tell whether two maps can be one product."""
        ranks = [None if m.down is None else m.down.shape[0] for m in (self, other)]
        return (
            self.weight.shape == other.weight.shape
            and (self.bias is None) == (other.bias is None)
            and ranks[0] == ranks[1]
            and self.scale == other.scale
        )


class QuickLinear(nn.Linear):
    """A frozen linear layer whose product is the faster of two; nothing else differs."""

    def forward(self, tokens: Tokens) -> Projected:
        """Multiply."""
        weight, bias = self.weight, self.bias
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        if trained or torch.compiler.is_compiling() or LOW_BITS in self.__dict__:
            return super().forward(tokens)
        return merged_linear(tokens, weight, bias)


class MergedLinear(lora.Linear):
    """PEFT's layer, whose plain LoRA is merged into the weight inside each call."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401 - PEFT's
        """Multiply once, or do as PEFT does where the update is not plain."""
        merged = None if args or kwargs else _at_once(x, (self,))
        output: Tensor = super().forward(x, *args, **kwargs) if merged is None else merged
        return output


def install_merged_linears(network: nn.Module) -> None:
    """Let every linear layer of a network, adapted or not, multiply by this module's products.

    Args:
        network: Changed in place: classes of layers change, parameters and names do not.
    """
    kinds = {nn.Linear: QuickLinear, lora.Linear: MergedLinear}
    inside = {id(m.base_layer) for m in network.modules() if isinstance(m, lora.Linear)}
    for module in network.modules():
        if type(module) in kinds and id(module) not in inside:
            module.__class__ = kinds[type(module)]


def project(
    tokens: Tokens, *layers: nn.Module, heads: int, again: bool = False
) -> tuple[Heads, ...]:
    """Apply layers to the same tokens, as one product where they allow it.

    Args:
        tokens: Rows of every layer [1]. Gradient flows.
        *layers: Linear layers, with or without a LoRA.
        heads: Heads of attention, which divide a layer's outputs.
        again: Whether calls to come have the same tokens, as a prompt's are in sampling: then
            those that share values and need no gradient share the outputs.

    Returns:
        One output per layer, split into heads.

    Examples:
        >>> layers = [nn.Linear(2, 6).requires_grad_(False) for _ in range(2)]
        >>> [tuple(output.shape) for output in project(torch.ones(5, 2), *layers, heads=3)]
        [(3, 5, 2), (3, 5, 2)]
    """
    # A hook, such as one that moves weights, is called by its layer alone.
    hooked = any(layer._forward_pre_hooks or layer._forward_hooks for layer in layers)
    joint = None if hooked else _at_once(tokens, layers, again=again)
    if joint is None:
        return tuple(_by_head(layer(tokens), heads) for layer in layers)
    if len(layers) == 1:
        return (_by_head(joint, heads),)
    split = joint.unflatten(-1, (len(layers), heads, -1))
    if split.requires_grad:  # the gradients then come back side by side, without a copy
        return tuple(part.transpose(-2, -3) for part in split.unbind(-3))
    last = split.ndim - 1
    axes = (last - 2, *range(last - 3), last - 1, last - 3, last)
    by_layer: tuple[Tensor, ...] = split.permute(axes).unbind()
    return by_layer


def _by_head(output: Projected, heads: int) -> Heads:
    by_head: Tensor = output.unflatten(-1, (heads, -1)).transpose(-2, -3)
    return by_head


def _at_once(
    tokens: Tokens, layers: Sequence[nn.Module], *, again: bool = False
) -> Projected | None:
    """Multiply once; None where a layer trains its weight, computes otherwise, or differs."""
    if torch.compiler.is_compiling():  # which fuses by itself
        return None
    maps: list[_Map] = []
    for layer in layers:
        part = _read(layer)
        if part is None or (maps and not part.fits(maps[0])):
            return None
        maps.append(part)
    first = maps[0]
    down, up = (
        [m.down for m in maps if m.down is not None],
        [m.up for m in maps if m.up is not None],
    )
    rows = tokens.numel() // tokens.shape[-1]
    if down and not note_form(rows, first.weight, down[0], layers=len(maps)):
        return None
    bias = None if first.bias is None else _fused([m.bias for m in maps if m.bias is not None])
    if not again or torch.is_grad_enabled():
        return _multiplied(tokens, layers[0], maps, bias, down, up)
    sources = [tokens, *(m.weight for m in maps), *down, *up]
    return memo(
        layers[0],
        "output",
        sources if bias is None else [*sources, bias],
        partial(_multiplied, tokens, layers[0], maps, bias, down, up),
    )


def _multiplied(
    tokens: Tokens,
    layer: nn.Module,
    maps: Sequence[_Map],
    bias: Tensor | None,
    down: Sequence[Tensor],
    up: Sequence[Tensor],
) -> Projected:
    """Apply maps, with their low-rank updates where there are any."""
    if not down:
        return merged_linear(tokens, _fused([m.weight for m in maps]), bias)
    sources = [*(m.weight for m in maps), *down, *up]
    # Merged once for all calls that share values.
    update = memo(layer, f"update of {len(maps)}", sources, partial(_merged, maps, down, up))
    return merged_linear(tokens, update.weight, bias, down, up, update=update)


def _merged(maps: Sequence[_Map], down: Sequence[Tensor], up: Sequence[Tensor]) -> Update:
    return merge(_fused([m.weight for m in maps]), down, up, scale=maps[0].scale)


def _read(layer: Any) -> _Map | None:  # noqa: ANN401 - PEFT is untyped
    """Read a layer's map; None where it is not a frozen linear one with at most one plain LoRA.

    Modules' own dictionaries are read: attributes of theirs take a microsecond each, and there are
    thousands in a network call.
    """
    base: Any = layer
    names: tuple[str, ...] = ()
    if isinstance(layer, lora.Linear):
        if layer.lora_variant or layer.merged_adapters or layer.fan_in_fan_out:
            return None
        base = layer._modules["base_layer"]
        if not layer._disable_adapters:
            downs = layer._modules["lora_A"]._modules
            names = tuple(name for name in layer.active_adapters if name in downs)
    # A subclass, such as one of quantised weights, multiplies in its own way.
    if type(base) not in (nn.Linear, QuickLinear) or len(names) > 1:
        return None
    weight, bias = base._parameters["weight"], base._parameters["bias"]
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return None
    if LOW_BITS in base.__dict__:
        return None
    if not names:
        return _Map(weight, bias)
    up = layer._modules["lora_B"]._modules[names[0]]._parameters
    dropout = layer._modules["lora_dropout"]._modules[names[0]]
    if type(dropout) is not nn.Identity or up["bias"] is not None:
        return None
    down = downs[names[0]]._parameters["weight"]
    return _Map(weight, bias, down, up["weight"], layer.scaling[names[0]])


def _fused(parameters: Sequence[Tensor]) -> Tensor:
    """Join parameters; the first time they become parts of one memory, so that none is copied."""
    first = parameters[0]
    if len(parameters) == 1:
        return first
    size, start, memory = first.numel(), first.storage_offset(), first.untyped_storage()._cdata
    adjacent = all(
        p.storage_offset() == start + place * size and p.untyped_storage()._cdata == memory
        for place, p in enumerate(parameters)
    )
    shape = (len(parameters) * first.shape[0], *first.shape[1:])
    if adjacent:
        return first.as_strided(shape, first.stride())
    whole = torch.cat([p.detach() for p in parameters])
    for parameter, part in zip(parameters, whole.chunk(len(parameters)), strict=True):
        parameter.data = part
    return whole
