r"""A linear map with its low-rank update merged in, as one product per network call."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["merged_linear", "merges", "product"]

_LARGE = 2**19
"""Multiplications from which oneDNN's product is the faster one on a CPU."""
_THIN = 12
"""Quotient of width and rank up to which a weight's whole gradient is cheaper than thin products:
they take fewer operations, at a lower rate and in more launches."""


def product(
    tokens: Float[Tensor, "*token into"],
    weight: Float[Tensor, "out into"],
    bias: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, "*token out"]:
    r"""Multiply as ``torch.nn.functional.linear``, on a CPU with oneDNN where that is faster.

    .. math:: y = x W^\top + b

    torch multiplies fp32 matrices with MKL, which leaves half of an AMD core idle. Forward and
    backward passes choose by shape alone, so that equal calls have equal bits.

    Args:
        tokens: Rows x [1].
        weight: Matrix W [1], in any memory layout.
        bias: Vector b [1], if any.

    Returns:
        The product; no gradient flows through oneDNN's.

    Examples:
        >>> product(torch.ones(1, 2), torch.eye(2), torch.ones(2))
        tensor([[2., 2.]])
    """
    large = tokens.numel() * weight.shape[0] >= _LARGE
    if large and tokens.device.type == "cpu" and tokens.dtype is weight.dtype is torch.float32:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, "none", [], "")
        return output
    return functional.linear(tokens, weight, bias)


def merges(rows: int, weight: Float[Tensor, "out into"], factor: Tensor) -> bool:
    r"""Choose the form of a low-rank update: merged into the weight, or beside it.

    Merging costs :math:`2 r\,m\,n` operations per call and spares :math:`2 r (m + n)` per token.
    A weight in half precision would round the update away.

    Args:
        rows: Tokens of the call [tokens].
        weight: Frozen matrix of m times n numbers.
        factor: One of the update's two matrices.

    Returns:
        Whether the merged form is exact and takes fewer operations.

    Examples:
        >>> weight, factor = torch.empty(8, 8), torch.empty(2, 8)
        >>> merges(4, weight, factor), merges(3, weight, factor)
        (True, False)
    """
    out, into = weight.shape
    return weight.dtype == factor.dtype and rows * (out + into) >= out * into


def merged_linear(
    tokens: Float[Tensor, "*token into"],
    weight: Float[Tensor, "all_out into"],
    bias: Float[Tensor, " all_out"] | None,
    down: Sequence[Float[Tensor, "rank into"]] = (),
    up: Sequence[Float[Tensor, "out rank"]] = (),
    *,
    scale: float = 1.0,
) -> Float[Tensor, "*token all_out"]:
    r"""Apply frozen linear maps of the same tokens, each with its low-rank update, at once.

    .. math::
        y_k = x (W_k + s B_k A_k)^\top + b_k, \qquad
        \nabla A_k = s\,(g_k B_k)^\top x, \quad \nabla B_k = s\, g_k^\top (x A_k^\top)

    The sum is made once per call, in the forward pass and again in the backward pass, which keeps
    the tokens and the parameters alone.

    Source:
        Hu et al., LoRA, arXiv:2106.09685, section 4.1. No deviation.

    Args:
        tokens: Rows x [1]. Gradient flows.
        weight: Matrices W_1, W_2, ... below each other [1]; frozen.
        bias: Vectors b_k, one after the other [1]; frozen; None without.
        down: Matrices A_k [1], of one rank; none without a low-rank update. Gradient flows.
        up: Matrices B_k [1]. Gradient flows.
        scale: Factor s = alpha / rank [1].

    Returns:
        The outputs y_1, y_2, ... side by side.

    Examples:
        >>> eye, one = torch.eye(2), torch.ones(1, 2)
        >>> merged_linear(one, torch.cat([eye, eye]), None, [one, one], [one.T, 0 * one.T])
        tensor([[3., 3., 1., 1.]])
    """
    if not torch.is_grad_enabled():
        return product(tokens, _merged(weight, (*down, *up), scale), bias)
    output: Tensor = _MergedLinear.apply(tokens, weight, bias, scale, *down, *up)
    return output


class _MergedLinear(torch.autograd.Function):
    """Autograd through tokens and low-rank factors alone."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        tokens: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        *factors: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(tokens, weight, *factors)
        ctx.scale = scale
        return product(tokens, _merged(weight, factors, scale), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        tokens, weight, *factors = ctx.saved_tensors
        by_tokens = None
        by_factors: Sequence[Tensor | None] = [None] * len(factors)
        if ctx.needs_input_grad[0]:
            by_tokens = product(gradient, _merged(weight, factors, ctx.scale).t())
        if any(ctx.needs_input_grad[4:]):
            rows = gradient.flatten(0, -2), tokens.flatten(0, -2)
            by_factors = _by_factors(*rows, factors, ctx.scale)
        return by_tokens, None, None, None, *by_factors


def _merged(weight: Tensor, factors: Sequence[Tensor], scale: float) -> Tensor:
    """Add the low-rank updates to the weights."""
    if not factors:
        return weight
    if len(factors) == 2:
        return torch.addmm(weight, factors[1], factors[0], alpha=scale)
    down, up = _stacked(factors)
    blocks = weight.view(len(down), -1, weight.shape[1])
    return torch.baddbmm(blocks, up, down, alpha=scale).view_as(weight)


def _stacked(factors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    parts = len(factors) // 2
    return torch.stack(tuple(factors[:parts])), torch.stack(tuple(factors[parts:]))


def _by_factors(
    gradient: Tensor, tokens: Tensor, factors: Sequence[Tensor], scale: float
) -> Sequence[Tensor]:
    """Differentiate by A_1, A_2, ..., B_1, B_2, ..."""
    rank, into = factors[0].shape
    if len(factors) == 2:
        down, up = factors
        if into <= _THIN * rank:
            whole = product(gradient.t(), tokens.t())
            pair = torch.mm(up.t(), whole), torch.mm(whole, down.t())
        else:
            pair = (gradient @ up).t() @ tokens, gradient.t() @ (tokens @ down.t())
        return pair if scale == 1.0 else (pair[0] * scale, pair[1] * scale)
    down, up = _stacked(factors)
    parts = len(down)
    if into <= _THIN * rank:
        wholes = product(gradient.t(), tokens.t()).view(parts, -1, into)
        by_down, by_up = torch.bmm(up.mT, wholes), torch.bmm(wholes, down.mT)
    else:
        split = gradient.unflatten(1, (parts, -1)).transpose(0, 1)
        reduced = product(tokens, down.flatten(0, 1)).unflatten(1, (parts, rank)).transpose(0, 1)
        back = torch.bmm(split, up).mT.reshape(parts * rank, -1)
        by_down, by_up = (back @ tokens).view_as(down), torch.bmm(split.mT, reduced)
    if scale != 1.0:
        by_down, by_up = by_down * scale, by_up * scale
    return *by_down.unbind(), *by_up.unbind()
