"""Flow transformers as policies: rows, guidance and dtypes, which all of them share."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mvczigal_ref.models.guided import GuidedBatch, RowTime, require_one_view
from mvczigal_ref.models.sharding import compute_dtype_of
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.shapes import Latent, PromptEmbedding

__all__ = ["ATTENTION_LORA_TARGETS", "FlowPolicy"]

ATTENTION_LORA_TARGETS = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
)
"""Layers of every joint attention of text and image, which a LoRA adapts in either family."""


class FlowPolicy(nn.Module, ABC):
    """A diffusers flow transformer that predicts one image per prompt, guidance applied.

    Args:
        transformer: Network that takes and gives latents of the same channels.

    Raises:
        ValueError: If ``transformer`` gives other channels than it takes.
    """

    lora_targets: ClassVar[tuple[str, ...]]
    """Ends of the names of the layers that a LoRA adapts."""

    patch_size: int
    """Edge of the square of latent pixels that makes a token [latent px]."""

    def __init__(self, transformer: Any) -> None:  # noqa: ANN401 - diffusers is untyped
        super().__init__()
        if transformer.out_channels != transformer.config.in_channels:
            msg = (
                "`transformer` must give as many channels as it takes; got "
                f"{transformer.out_channels} for {transformer.config.in_channels}. Networks for "
                "inpainting or control take a second image: use one from text alone."
            )
            raise ValueError(msg)
        self.transformer = transformer

    @property
    def weight(self) -> Tensor:
        """Weight that says where and in which dtype the network computes; no LoRA adapts it."""
        weight: Tensor = self.transformer.proj_out.weight
        return weight

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which the network computes."""
        return compute_dtype_of(self.transformer, self.weight)

    @property
    def device(self) -> torch.device:
        """Device on which the network computes."""
        return self.weight.device

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network takes the guidance scale as an input, so that no batch is doubled."""
        return bool(self.transformer.config.get("guidance_embeds", False))

    def num_tokens(self, height: int, width: int) -> int:
        """Count the image tokens that the network sees.

        Args:
            height: Height of the latents [latent px]; a multiple of ``patch_size``.
            width: Width of the latents [latent px]; a multiple of ``patch_size``.

        Returns:
            Tokens per image [1].

        Raises:
            ValueError: If a side is no multiple of ``patch_size``.
        """
        if height % self.patch_size or width % self.patch_size:
            msg = (
                f"`latent_t` must have sides that are multiples of {self.patch_size}; got "
                f"{height} x {width}. Choose an image size that the tokens divide."
            )
            raise ValueError(msg)
        return (height // self.patch_size) * (width // self.patch_size)

    def forward(
        self,
        latent_t: Latent,
        timestep: RowTime,
        conditioning: Conditioning,
        *,
        guidance_scale: float,
        camera_scale: float = 1.0,
    ) -> Latent:
        r"""Predict the velocity of every row, guidance applied.

        A network with a guidance embedding is called once and takes w;
        otherwise, for w > 1, it is called on the doubled batch and

        .. math:: v = v_\emptyset + w\,(v_c - v_\emptyset),\qquad v \approx \epsilon - x_0.

        Source:
            Ho and Salimans, arXiv:2207.12598 (the doubled batch); FLUX.1-dev's
            guidance distillation as diffusers calls it.

        Args:
            latent_t: States, one per object [1]. Gradient flows through them.
            timestep: 1000 times the noise level, one for all rows or one each.
            conditioning: Prompts of as many objects, of one view and without
                cameras.
            guidance_scale: w [1]. Without an embedding, w <= 1 is the plain
                conditional prediction.
            camera_scale: Without effect: there are no cameras.

        Returns:
            The guided velocity in the type of ``latent_t``.

        Raises:
            ValueError: If rows and objects disagree, the conditioning has
                cameras, a side of the latents is no multiple of the patch, or
                guidance needs a negative prompt that is not there.
        """
        require_one_view(
            conditioning, latent_t, network="flow transformer",
            builder="FlowComponents.build_conditioning",
        )  # fmt: skip
        self.num_tokens(*latent_t.shape[-2:])
        # Levels in half precision would differ by thousandths from those of the kernel.
        time = timestep.to(torch.promote_types(latent_t.dtype, torch.float32))
        batch = GuidedBatch.of(
            latent_t, time, conditioning,
            doubled=not self.embeds_guidance and guidance_scale > 1.0, dtype=self.dtype,
        )  # fmt: skip
        output = self.velocity(
            batch.sample, batch.timestep, batch.text, batch.pooled, guidance_scale=guidance_scale
        )
        return batch.guided(output, latent_t, guidance_scale)

    @abstractmethod
    def velocity(
        self,
        sample: Latent,
        timestep: Float[Tensor, " row"],
        text: PromptEmbedding,
        pooled: Float[Tensor, "row pooled"],
        *,
        guidance_scale: float,
    ) -> Latent:
        """Call the transformer once.

        Args:
            sample: States in the network's type [1].
            timestep: 1000 times the noise level, fp32 or wider [1].
            text: Token features, one set per row [1].
            pooled: Pooled features [1].
            guidance_scale: Input of networks that embed it [1].

        Returns:
            The network's own prediction [1].
        """
