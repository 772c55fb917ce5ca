"""diffusers' blocks with the arithmetic of theirs and fewer passes over memory."""

from typing import Any

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from mvczigal_ref.models.flow.attention import QuickFluxAttention
from mvczigal_ref.models.frozen_layers import QuickConv, QuickGEGLU, activated_norm
from mvczigal_ref.models.memo import memo

__all__ = ["QuickResnet", "QuickTransformer", "install_quick_blocks"]

Maps = Float[Tensor, "row _ _ _"]

_EMBEDDING = object()
"""Owner of the time embedding, which all blocks read."""


class QuickResnet(ResnetBlock2D):
    """A residual block that divides by no 1, and activates the time embedding once per call."""

    def forward(
        self,
        input_tensor: Maps,
        temb: Float[Tensor, "row width"] | None,
        *args: Any,  # noqa: ANN401 - diffusers'
        **kwargs: Any,  # noqa: ANN401
    ) -> Maps:
        """Add what two convolutions make of the input to it."""
        if self.training:
            trained: Tensor = super().forward(input_tensor, temb, *args, **kwargs)
            return trained
        hidden = self.conv1(activated_norm(self.norm1, input_tensor))
        if temb is not None and self.time_emb_proj is not None:
            hidden = hidden + self.time_emb_proj(_activated(temb))[..., None, None]
        hidden = self.conv2(activated_norm(self.norm2, hidden))
        shortcut = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        output: Tensor = shortcut + hidden
        return output


class QuickTransformer(Transformer2DModel):
    """A transformer between convolutions that leaves channels last where they are."""

    def _get_output_for_continuous_inputs(
        self,
        hidden_states: Float[Tensor, "row token width"],
        residual: Maps,
        batch_size: int,
        height: int,
        width: int,
        inner_dim: int,
    ) -> Maps:
        last = residual.is_contiguous(memory_format=torch.channels_last)
        if residual.is_contiguous() or not last or not self.use_linear_projection:
            output: Tensor = super()._get_output_for_continuous_inputs(
                hidden_states, residual, batch_size, height, width, inner_dim
            )
            return output
        tokens = self.proj_out(hidden_states)
        output = tokens.view(batch_size, height, width, inner_dim).permute(0, 3, 1, 2) + residual
        return output


_QUICK = {
    Transformer2DModel: QuickTransformer,
    FluxAttention: QuickFluxAttention,
    ResnetBlock2D: QuickResnet,
    GEGLU: QuickGEGLU,
    nn.Conv2d: QuickConv,
}


def install_quick_blocks(network: nn.Module) -> None:
    """Let the blocks of a network that allow it run in this module's form.

    Args:
        network: Changed in place: classes of blocks change, parameters and names do not.
    """
    for module in network.modules():
        kind = _QUICK.get(type(module))
        if kind is not None and (kind is not QuickResnet or _is_plain(module)):
            module.__class__ = kind


def _is_plain(block: Any) -> bool:  # noqa: ANN401 - diffusers is untyped
    return (
        block.time_embedding_norm == "default"
        and block.output_scale_factor == 1.0
        and not block.skip_time_act
        and isinstance(block.nonlinearity, nn.SiLU)
        and block.upsample is None
        and block.downsample is None
    )


def _activated(temb: Tensor) -> Tensor:
    """Activate the time embedding, for all blocks of a network call that share values."""
    if temb.requires_grad or torch.compiler.is_compiling():
        return functional.silu(temb)
    return memo(_EMBEDDING, "activated", [temb], lambda: functional.silu(temb))
