"""Cost of a piece of code, operator by operator: FLOPs, and the bytes of what is alive."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mvczigal_ref.preflight.meter import Meter

__all__ = ["GraphCost", "fused_attention", "measure_graph"]


@contextmanager
def fused_attention() -> Iterator[None]:
    """Let attention on the meta device be computed as GPUs do: its scores are never stored.

    Torch would choose the form that stores them. Attention of real tensors, or with a mask, is
    left as it is. A mode of torch's own would be off in what a backward pass computes once more.

    Yields:
        Nothing.
    """
    plain = functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Tensor:  # noqa: ANN401
        masked = any(value is not None and value is not False for value in rest)
        masked = masked or named.get("attn_mask") is not None or named.get("is_causal", False)
        if masked or not query.is_meta:
            return plain(query, key, value, *rest, **named)
        flash = torch.ops.aten._scaled_dot_product_flash_attention
        output: Tensor = flash(query, key, value)[0]
        return output

    functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


@dataclass(frozen=True, kw_only=True, slots=True)
class GraphCost:
    """One forward pass that keeps its graph, and the backward pass through it."""

    forward: int
    """Forward pass [FLOP]."""
    recompute: int
    """Forward pass, done once more in the backward pass [FLOP]."""
    backward: int
    """Backward pass, without :attr:`recompute` [FLOP]."""
    saved: int
    """Tensors that the graph keeps between the two passes, the output too [bytes]."""
    peak: int
    """The most that both passes hold beside what was there before [bytes]."""


def measure_graph(
    function: Callable[[], Tensor], *, present: Iterable[Tensor], backward: bool = True
) -> GraphCost:
    """Measure a function with gradient.

    Args:
        function: Function of no argument that returns a tensor, on any device, meta too.
        present: Tensors that were there before, and gradients that are added to.
        backward: Whether the backward pass is wanted; if not, its numbers are 0 and the peak is
            that of the forward pass.

    Returns:
        Cost of both passes.

    Examples:
        >>> weight = torch.empty(8, 8, device="meta", requires_grad=True)
        >>> row = torch.empty(1, 8, device="meta")
        >>> cost = measure_graph(lambda: row @ weight, present=[weight, row])
        >>> cost.forward, cost.backward, cost.saved
        (128, 128, 32)
    """
    with Meter(present) as meter, fused_attention(), torch.enable_grad():
        output = function()
        forward, saved = meter.flops, meter.live
        meter.flops_recomputed = 0
        if backward:
            torch.autograd.backward([output], [torch.ones_like(output)])
        again, total = meter.flops_recomputed, meter.flops - forward
    return GraphCost(
        forward=forward, recompute=again, backward=total - again, saved=saved, peak=meter.peak
    )
