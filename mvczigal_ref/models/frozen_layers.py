"""Layers in the hot path whose graphs keep no more than their backward passes read."""

import math
from typing import Any, cast

import torch
from diffusers.models.activations import GEGLU
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mvczigal_ref.models.merged_linear import merged_linear

__all__ = ["QuickConv", "QuickGEGLU", "activated_norm"]

Maps = Float[Tensor, "row _ _ _"]
Tokens = Float[Tensor, "*token _"]


class QuickConv(nn.Conv2d):
    """A frozen convolution, whose graph keeps no input; torch's own keeps it for the weight."""

    def forward(self, maps: Maps) -> Maps:
        """Convolve; where channels lie side by side, a kernel of one pixel is a linear map."""
        weight, bias = self.weight, self.bias
        trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        if trained or torch.compiler.is_compiling():
            return super().forward(maps)
        if self.kernel_size == (1, 1) and self._is_linear(maps):
            tokens = merged_linear(maps.permute(0, 2, 3, 1), weight.flatten(1), bias)
            return tokens.permute(0, 3, 1, 2)
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            return super().forward(maps)
        if not (torch.is_grad_enabled() and maps.requires_grad):
            return super().forward(maps)
        settings = self.stride, self.padding, self.dilation, self.groups
        output: Tensor = _FrozenConv.apply(maps, weight, bias, settings)
        return output

    def _is_linear(self, maps: Maps) -> bool:
        plain = self.stride == (1, 1) and self.padding == (0, 0) and self.groups == 1
        last = maps.is_contiguous(memory_format=torch.channels_last)
        return plain and last and not maps.is_contiguous()


class QuickGEGLU(GEGLU):
    """A gated linear unit, whose graph keeps the projection alone."""

    def forward(self, hidden_states: Tokens, *args: Any, **kwargs: Any) -> Tokens:  # noqa: ANN401
        """Project, and gate one half by the other."""
        if args or kwargs or torch.compiler.is_compiling():
            return cast("Tensor", super().forward(hidden_states, *args, **kwargs))
        output: Tensor = _Gated.apply(self.proj(hidden_states))
        return output


def activated_norm(norm: nn.GroupNorm, maps: Maps) -> Maps:
    r"""Normalise and activate, with a graph that keeps the input alone.

    .. math:: y = \mathrm{SiLU}(\mathrm{GroupNorm}(x))

    Args:
        norm: Layer; where its parameters train, torch differentiates.
        maps: Input x [1]. Gradient flows.

    Returns:
        The activated maps y, with torch's bits.

    Examples:
        >>> activated_norm(nn.GroupNorm(1, 2), torch.zeros(1, 2, 1, 1)).flatten().tolist()
        [0.0, 0.0]
    """
    frozen = not (norm.weight.requires_grad or norm.bias.requires_grad)
    needs = torch.is_grad_enabled() and maps.requires_grad
    hooks = (
        norm._forward_pre_hooks, norm._forward_hooks,
        norm._backward_pre_hooks, norm._backward_hooks,
    )  # fmt: skip
    hooked = any(hooks)
    if hooked or not (frozen and needs) or torch.compiler.is_compiling():
        return functional.silu(norm(maps))
    output: Tensor = _ActivatedNorm.apply(
        maps, norm.weight, norm.bias, norm.num_groups, norm.eps
    )  # fmt: skip
    return output


class _FrozenConv(torch.autograd.Function):
    """Autograd through the input alone, whose values its derivative does not read."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        maps: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        settings: tuple[Any, ...],
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.settings, ctx.shape = settings, maps.shape
        ctx.last = maps.is_contiguous(memory_format=torch.channels_last)
        return functional.conv2d(maps, weight, bias, *settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (weight,) = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        layout = torch.channels_last if ctx.last else torch.contiguous_format
        # Memory without values, which tells torch the shape and the layout.
        like = torch.empty(
            ctx.shape, dtype=gradient.dtype, device=gradient.device, memory_format=layout
        )
        by_maps = torch.ops.aten.convolution_backward(
            gradient, like, weight, None, stride, padding, dilation, False, (0, 0), groups,
            (True, False, False),
        )[0]  # fmt: skip
        return by_maps, None, None, None


class _Gated(torch.autograd.Function):
    """A half times the GELU of the other, which the backward pass computes again."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(projected)
        value, gate = projected.chunk(2, dim=-1)
        return functional.gelu(gate).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ANN401
        (projected,) = ctx.saved_tensors
        value, gate = projected.chunk(2, dim=-1)
        by_projected = torch.empty_like(projected)
        by_value, by_gate = by_projected.chunk(2, dim=-1)
        torch.mul(gradient, functional.gelu(gate), out=by_value)
        torch.ops.aten.gelu_backward.grad_input(gradient * value, gate, grad_input=by_gate)
        return by_projected


class _ActivatedNorm(torch.autograd.Function):
    """Norm by groups, then SiLU; the backward pass normalises again."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        maps: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
    ) -> Tensor:
        normal, mean, deviation = _group_norm(maps, weight, bias, groups, eps)
        ctx.save_for_backward(maps, weight, bias, mean, deviation)
        ctx.settings = groups, eps
        return functional.silu(normal, inplace=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        maps, weight, bias, mean, deviation = ctx.saved_tensors
        groups, eps = ctx.settings
        normal = _group_norm(maps, weight, bias, groups, eps)[0]
        by_normal = torch.ops.aten.silu_backward(gradient, normal)
        rows, channels, *pixels = maps.shape
        by_maps = torch.ops.aten.native_group_norm_backward(
            by_normal, maps, mean, deviation, weight, rows, channels, math.prod(pixels), groups,
            (True, False, False),
        )[0]  # fmt: skip
        return by_maps, None, None, None, None


def _group_norm(
    maps: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise as ``torch.nn.functional.group_norm``, and give means and inverse deviations."""
    rows, channels, *pixels = maps.shape
    return torch.native_group_norm(
        maps, weight, bias, rows, channels, math.prod(pixels), groups, eps
    )
