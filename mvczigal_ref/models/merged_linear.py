r"""A linear map with its low-rank update merged in, as one product per network call."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

__all__ = ["Update", "merge", "merged_linear", "product"]

_ONEDNN = (
    "AVX512" in torch.backends.cpu.get_cpu_capability() and torch.backends.mkldnn.is_available()
)
"""Whether oneDNN can be the faster one on this CPU: without AVX-512 MKL is, by 1/1.1 to 1/1.4."""
_LARGE = 2**19
"""Multiplications from which oneDNN's product is the faster one there."""
_THIN = 4
"""Quotient of width and rank up to which a weight's whole gradient takes no more operations than
thin products."""
_KEPT = 2**20
"""Numbers of a sum that is kept from call to call, at most. A larger one is made in every call, of
whose operations it is then a small part."""


def product(
    tokens: Float[Tensor, "*token into"],
    weight: Float[Tensor, "out into"],
    bias: Float[Tensor, " out"] | None = None,
) -> Float[Tensor, "*token out"]:
    r"""Multiply as ``torch.nn.functional.linear``, on a CPU with oneDNN where that is faster.

    .. math:: y = x W^\top + b

    torch multiplies fp32 matrices with MKL, which leaves half of an AMD core with AVX-512 idle.
    Forward and backward passes choose by shape alone, so that equal calls have equal bits.

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
    faster = _ONEDNN and tokens.numel() * weight.shape[0] >= _LARGE
    if faster and tokens.device.type == "cpu" and tokens.dtype is weight.dtype is torch.float32:
        output: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, "none", [], "")
        return output
    return functional.linear(tokens, weight, bias)


class Update(NamedTuple):
    """Low-rank updates of frozen maps, laid out for calls until the parameters change."""

    weight: Float[Tensor, "all_out into"]
    """Matrices W_k below each other, or the sums W_k + s B_k A_k [1]."""

    down: Float[Tensor, "*part rank into"]
    """Matrices A_k [1]; without an axis of their own where there is one map."""

    up: Float[Tensor, "*part out rank"]
    """Matrices B_k [1], likewise."""

    scale: float
    """Factor s = alpha / rank [1]."""

    summed: bool
    """Whether ``weight`` holds the sums."""


@torch.no_grad()
def merge(
    weight: Float[Tensor, "all_out into"],
    down: Sequence[Float[Tensor, "rank into"]],
    up: Sequence[Float[Tensor, "out rank"]],
    *,
    scale: float,
) -> Update:
    """Lay out low-rank updates, and add small ones to their weights.

    Args:
        weight: Matrices W_k below each other [1].
        down: Matrices A_k [1], of one rank; at least one.
        up: Matrices B_k [1].
        scale: Factor s = alpha / rank [1].

    Returns:
        The updates, good for as long as none of the tensors changes.

    Examples:
        >>> one = torch.ones(1, 2)
        >>> merge(torch.eye(2), [one], [one.T], scale=2.0).weight
        tensor([[3., 2.],
                [2., 3.]])
    """
    a, b = (part[0] if len(part) == 1 else torch.stack(tuple(part)) for part in (down, up))
    update = Update(weight, a.detach(), b.detach(), scale, summed=False)
    if weight.numel() > _KEPT:
        return update
    return update._replace(weight=_sum(update), summed=True)


def merged_linear(
    tokens: Float[Tensor, "*token into"],
    weight: Float[Tensor, "all_out into"],
    bias: Float[Tensor, " all_out"] | None,
    down: Sequence[Float[Tensor, "rank into"]] = (),
    up: Sequence[Float[Tensor, "out rank"]] = (),
    *,
    scale: float = 1.0,
    update: Update | None = None,
) -> Float[Tensor, "*token all_out"]:
    r"""Apply frozen linear maps of the same tokens, each with its low-rank update, at once.

    .. math::
        y_k = x (W_k + s B_k A_k)^\top + b_k, \qquad
        \nabla A_k = s\,(g_k B_k)^\top x, \quad \nabla B_k = s\, g_k^\top (x A_k^\top)

    A small sum is made once per change of the parameters, and every graph keeps that one; a large
    one is made in each forward and each backward pass, whose graph keeps the tokens and the
    parameters alone. Without a low-rank update it keeps no tokens.

    Source:
        Hu et al., LoRA, arXiv:2106.09685, section 4.1. No deviation.

    Args:
        tokens: Rows x [1]. Gradient flows.
        weight: Matrices W_1, W_2, ... below each other [1]; frozen.
        bias: Vectors b_k, one after the other [1]; frozen; None without.
        down: Matrices A_k [1], of one rank; none without a low-rank update. Gradient flows.
        up: Matrices B_k [1]. Gradient flows.
        scale: Factor s = alpha / rank [1].
        update: Result of :func:`merge` for the same tensors, whose matrices then count and not
            ``weight``; made here if None.

    Returns:
        The outputs y_1, y_2, ... side by side.

    Examples:
        >>> eye, one = torch.eye(2), torch.ones(1, 2)
        >>> merged_linear(one, torch.cat([eye, eye]), None, [one, one], [one.T, 0 * one.T])
        tensor([[3., 3., 1., 1.]])
    """
    if down and update is None:
        update = merge(weight, down, up, scale=scale)
    if not torch.is_grad_enabled():
        return product(tokens, weight if update is None else _sum(update), bias)
    output: Tensor = _MergedLinear.apply(tokens, weight, bias, update, *down, *up)
    return output


class _MergedLinear(torch.autograd.Function):
    """Autograd through tokens and low-rank factors alone."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's context
        tokens: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        update: Update | None,
        *factors: Tensor,
    ) -> Tensor:
        if update is None:
            ctx.save_for_backward(weight)
            return product(tokens, weight, bias)
        ctx.save_for_backward(update.weight, tokens, update.down, update.up)
        ctx.scale, ctx.summed, ctx.parts = update.scale, update.summed, len(factors) // 2
        return product(tokens, _sum(update), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        weight, *more = ctx.saved_tensors
        if not more:
            return product(gradient, weight.t()), None, None, None
        tokens, down, up = more
        update = Update(weight, down, up, ctx.scale, ctx.summed)
        by_tokens = None
        by_factors: Sequence[Tensor | None] = [None] * (2 * ctx.parts)
        if ctx.needs_input_grad[0]:
            by_tokens = product(gradient, _sum(update).t())
        if any(ctx.needs_input_grad[4:]):
            rows = gradient.flatten(0, -2), tokens.flatten(0, -2)
            by_factors = _by_factors(*rows, update)
        return by_tokens, None, None, None, *by_factors


def _sum(update: Update) -> Tensor:
    """Add the low-rank updates to the weights, unless that is done."""
    weight, down, up, scale, summed = update
    if summed:
        return weight
    if down.ndim == 2:
        return torch.addmm(weight, up, down, alpha=scale)
    blocks = weight.view(len(down), -1, weight.shape[1])
    return torch.baddbmm(blocks, up, down, alpha=scale).view_as(weight)


def _by_factors(gradient: Tensor, tokens: Tensor, update: Update) -> Sequence[Tensor]:
    """Differentiate by A_1, A_2, ..., B_1, B_2, ...

    A rank above 1 is the first side of every thin product, since MKL takes up to five times as long
    where it is the last. A product with a vector keeps the order that earlier runs were summed in.
    """
    down, up, scale = update.down, update.up, update.scale
    rank, into = down.shape[-2:]
    if down.ndim == 2:
        if into <= _THIN * rank:
            whole = product(gradient.t(), tokens.t())
            pair = torch.mm(up.t(), whole), torch.mm(whole, down.t())
        elif rank == 1:
            pair = (gradient @ up).t() @ tokens, gradient.t() @ (tokens @ down.t())
        else:
            back, reduced = up.t() @ gradient.t(), down @ tokens.t()
            pair = back @ tokens, (reduced @ gradient).t()
        return pair if scale == 1.0 else (pair[0] * scale, pair[1] * scale)
    parts = len(down)
    if into <= _THIN * rank:
        wholes = product(gradient.t(), tokens.t()).view(parts, -1, into)
        by_down, by_up = torch.bmm(up.mT, wholes), torch.bmm(wholes, down.mT)
    else:
        split = gradient.unflatten(1, (parts, -1)).transpose(0, 1)
        if rank == 1:
            reduced = product(tokens, down.flatten(0, 1)).unflatten(1, (parts, 1)).transpose(0, 1)
            back = torch.bmm(split, up).mT.reshape(parts, -1)
            by_up = torch.bmm(split.mT, reduced)
        else:
            reduced = (down.flatten(0, 1) @ tokens.t()).unflatten(0, (parts, rank))
            back = torch.bmm(up.mT, split.mT).flatten(0, 1)
            by_up = torch.bmm(reduced, split).mT
        by_down = (back @ tokens).view_as(down)
    if scale != 1.0:
        by_down, by_up = by_down * scale, by_up * scale
    return *by_down.unbind(), *by_up.unbind()
