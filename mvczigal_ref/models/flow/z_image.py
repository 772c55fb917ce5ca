"""Z-Image as a policy: prompts of their own length, time that runs from noise to image."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import ZImageTransformer2DModel
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.models.flow.policy import FlowPolicy
from mvczigal_ref.models.text import require_texts
from mvczigal_ref.shapes import Latent, PromptEmbedding

__all__ = [
    "Z_IMAGE_LORA_TARGETS",
    "ZImagePolicy",
    "encode_z_image_prompts",
    "z_image_feature_sizes",
]

Z_IMAGE_LORA_TARGETS = (
    "attention.to_q",
    "attention.to_k",
    "attention.to_v",
    "attention.to_out.0",
)
"""Layers that diffusers' LoRA training of Z-Image adapts: every projection of every attention."""

_PATCH = 2


class ZImagePolicy(FlowPolicy):
    """Z-Image or Z-Image-Turbo.

    Turbo is sampled unguided, at w = 1. Otherwise a doubled batch guides; diffusers' pipeline
    counts its scale from the conditional prediction, so its w is one less than here.

    Source:
        Z-Image, arXiv:2511.22699, as diffusers runs it.

    Args:
        transformer: Built or loaded by diffusers.

    Raises:
        ValueError: If ``transformer`` has no patch of 2.
    """

    lora_targets: ClassVar[tuple[str, ...]] = Z_IMAGE_LORA_TARGETS

    def __init__(self, transformer: ZImageTransformer2DModel) -> None:
        super().__init__(transformer)
        if _PATCH not in transformer.config.all_patch_size:
            msg = (
                f"`transformer` must take patches of {_PATCH}; got "
                f"{transformer.config.all_patch_size}."
            )
            raise ValueError(msg)
        self.patch_size = _PATCH

    @property
    def weight(self) -> Tensor:
        """Weight that says where and in which dtype the network computes."""
        weight: Tensor = self.transformer.cap_embedder[1].weight
        return weight

    def velocity(
        self,
        sample: Latent,
        timestep: Float[Tensor, " row"],
        text: PromptEmbedding,
        pooled: Float[Tensor, "row pooled"],
        *,
        guidance_scale: float,
    ) -> Latent:
        """Call the transformer once, each prompt cut to its own length by its mask.

        The lengths are read from the device, once per call.

        Args:
            sample: States in the network's type [1].
            timestep: 1000 times the noise level, fp32 or wider [1].
            text: Token features, one set per row [1].
            pooled: Mask of the tokens, 1 where there is one [1].
            guidance_scale: Without effect.

        Returns:
            Noise less image, as other flows predict it [1].
        """
        whole = [text.shape[1]] * text.shape[0]  # of a plan, whose masks have no values
        lengths = whole if pooled.is_meta else pooled.sum(-1).int().tolist()
        images = self.transformer(
            list(sample.unsqueeze(2).unbind(0)),
            # Here time is 0 at the noise; the network multiplies by 1000 itself.
            (1.0 - timestep / 1000.0).to(sample.dtype),
            [row[:length] for row, length in zip(text, lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(images).squeeze(2)


@torch.no_grad()
def encode_z_image_prompts(
    tokenizers: Sequence[Any],
    text_encoders: Sequence[Any],
    prompts: Sequence[str],
    *,
    max_tokens: int,
) -> tuple[PromptEmbedding, Float[Tensor, "object pooled"]]:
    """Encode prompts with Qwen3, as a user's turn of a chat that leaves room to think.

    Source:
        Z-Image, arXiv:2511.22699, as diffusers runs it. No deviation.

    Args:
        tokenizers: Qwen's.
        text_encoders: Qwen3, whose penultimate hidden states are taken.
        prompts: One text per object; longer ones are cut.
        max_tokens: Length to which chats are padded [tokens].

    Returns:
        Token features [1] and, in the place of pooled features, the mask of the tokens, 1 where
        there is one; without gradient.

    Raises:
        ValueError: If ``prompts`` is empty or a bare string.
    """
    require_texts(prompts)
    tokenizer, encoder = tokenizers[0], text_encoders[0]
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=True,
        )
        for prompt in prompts
    ]
    inputs = tokenizer(
        chats, padding="max_length", max_length=max_tokens, truncation=True, return_tensors="pt"
    ).to(encoder.device)
    mask = inputs.attention_mask
    hidden: Tensor = encoder(
        input_ids=inputs.input_ids, attention_mask=mask.bool(), output_hidden_states=True
    ).hidden_states[-2]
    return hidden, mask.to(hidden.dtype)


def z_image_feature_sizes(
    text_encoders: Sequence[Any], max_tokens: int
) -> tuple[tuple[int, int], int]:
    """Size what :func:`encode_z_image_prompts` gives for one prompt.

    Args:
        text_encoders: Qwen3.
        max_tokens: Length to which chats are padded [tokens].

    Returns:
        Tokens and width of the token features, and length of the mask [tokens].
    """
    return (max_tokens, text_encoders[0].config.hidden_size), max_tokens
