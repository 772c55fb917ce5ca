"""FLUX's joint attention of text and image, with queries, keys and values as one product."""

from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from mvczigal_ref.models.projections import project

__all__ = ["QuickFluxAttention"]

Tokens = Float[Tensor, "row _ _"]


class QuickFluxAttention(FluxAttention):
    """diffusers' layer of FLUX.1, whose projections of the same tokens are one product.

    Source:
        Black Forest Labs, FLUX.1, as diffusers runs it. No deviation but for rounding.
    """

    def forward(
        self,
        hidden_states: Tokens,
        encoder_hidden_states: Tokens | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
        **options: Any,  # noqa: ANN401 - diffusers'
    ) -> Any:  # noqa: ANN401 - one set of tokens or two
        """Attend, or do as diffusers does where it was set up otherwise."""
        if attention_mask is not None or options or not self._is_stock():
            return super().forward(
                hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb, **options
            )
        parts = self._project(hidden_states, "to_q", "to_k", "to_v")
        query, key, value = self.norm_q(parts[0]), self.norm_k(parts[1]), parts[2]
        words = 0
        if encoder_hidden_states is not None:
            words = encoder_hidden_states.shape[1]
            text = self._project(encoder_hidden_states, "add_q_proj", "add_k_proj", "add_v_proj")
            query = torch.cat([self.norm_added_q(text[0]), query], dim=2)
            key = torch.cat([self.norm_added_k(text[1]), key], dim=2)
            value = torch.cat([text[2], value], dim=2)
        if image_rotary_emb is not None:
            query = apply_rotary_emb(query, image_rotary_emb)
            key = apply_rotary_emb(key, image_rotary_emb)
        attended = functional.scaled_dot_product_attention(query, key, value)
        attended = attended.transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return attended
        out, dropout = self.to_out
        image = dropout(out(attended[:, words:]))
        return image, self.to_add_out(attended[:, :words])

    def _project(self, tokens: Tokens, *names: str) -> tuple[Tensor, ...]:
        return project(tokens, *(getattr(self, name) for name in names), heads=self.heads)

    def _is_stock(self) -> bool:
        processor = self.processor
        return (
            type(processor) is FluxAttnProcessor
            and processor._attention_backend is None
            and processor._parallel_config is None
            and not self.fused_projections
        )
