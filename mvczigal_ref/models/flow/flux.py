"""FLUX.1 as a policy: latents packed into tokens, positions, embedded guidance."""

from typing import ClassVar

import torch
from diffusers import FluxTransformer2DModel
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from mvczigal_ref.models.flow.policy import FlowPolicy
from mvczigal_ref.shapes import Latent, PromptEmbedding

__all__ = ["FLUX_LORA_TARGETS", "FluxPolicy", "image_positions", "pack_latents", "unpack_latents"]

FLUX_LORA_TARGETS = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
)
"""Layers that Flow-GRPO adapts with rank 64 and alpha 128: every attention, and the MLPs of the
two-stream blocks."""


PackedLatent = Float[Tensor, "row token packed"]


_PATCH = 2


def pack_latents(latent: Latent) -> PackedLatent:
    r"""Lay squares of 2x2 latent pixels out as tokens.

    .. math:: p_{n,\;4c + 2i + j} = z_{c,\;2y + i,\;2x + j},\qquad n = y\,\tfrac{w}{2} + x

    Source:
        FLUX.1 as diffusers runs it. No deviation.

    Args:
        latent: Latents of even height and width [1]. Gradient flows.

    Returns:
        A quarter of the pixels as tokens, of four times the channels.

    Examples:
        >>> pack_latents(torch.arange(4.0).reshape(1, 1, 2, 2))
        tensor([[[0., 1., 2., 3.]]])
    """
    return pixel_unshuffle(latent, _PATCH).flatten(2).mT


def unpack_latents(tokens: PackedLatent, *, height: int, width: int) -> Latent:
    """Undo :func:`pack_latents`.

    Args:
        tokens: One token per square of 2x2 [1]. Gradient flows.
        height: Height of the latents [latent px]; even.
        width: Width of the latents [latent px]; even.

    Returns:
        The latents.

    Examples:
        >>> unpack_latents(torch.arange(4.0).reshape(1, 1, 4), height=2, width=2)
        tensor([[[[0., 1.],
                  [2., 3.]]]])
    """
    rows = tokens.mT.unflatten(2, (height // _PATCH, width // _PATCH))
    return pixel_shuffle(rows, _PATCH)


def image_positions(
    height: int, width: int, *, device: torch.device | str = "cpu"
) -> Float[Tensor, "token 3"]:
    """Place image tokens on a grid; text tokens all stand at zero.

    Args:
        height: Height of the latents [latent px]; even.
        width: Width of the latents [latent px]; even.
        device: Device of the result.

    Returns:
        A zero, the row and the column of each token, fp32 [tokens].

    Examples:
        >>> image_positions(2, 4)
        tensor([[0., 0., 0.],
                [0., 0., 1.]])
    """
    y = torch.arange(height // _PATCH, dtype=torch.float32, device=device)
    x = torch.arange(width // _PATCH, dtype=torch.float32, device=device)
    return torch.cartesian_prod(y.new_zeros(1), y, x)


class FluxPolicy(FlowPolicy):
    """FLUX.1 on unpacked latents.

    FLUX.1-dev embeds the guidance scale, 3.5 in Flow-GRPO's settings; a
    network without that embedding is guided by a doubled batch.

    Source:
        Black Forest Labs, FLUX.1, as diffusers runs it.

    Args:
        transformer: Built or loaded by diffusers.

    Raises:
        ValueError: If ``transformer`` takes no latents packed by four, or gives other channels.
    """

    lora_targets: ClassVar[tuple[str, ...]] = FLUX_LORA_TARGETS

    def __init__(self, transformer: FluxTransformer2DModel) -> None:
        super().__init__(transformer)
        if transformer.config.in_channels % _PATCH**2 or transformer.config.patch_size != 1:
            msg = (
                "`transformer` must take latents packed by four and patch no further; got "
                f"{transformer.config.in_channels} channels and a patch of "
                f"{transformer.config.patch_size}."
            )
            raise ValueError(msg)
        self.patch_size = _PATCH

    def velocity(
        self,
        sample: Latent,
        timestep: Float[Tensor, " row"],
        text: PromptEmbedding,
        pooled: Float[Tensor, "row pooled"],
        *,
        guidance_scale: float,
    ) -> Latent:
        """Call the transformer once, packed.

        Args:
            sample: States in the network's type [1].
            timestep: 1000 times the noise level, fp32 or wider [1].
            text: T5's token features, one set per row [1].
            pooled: CLIP's pooled features [1].
            guidance_scale: Input of networks that embed it [1].

        Returns:
            The network's own prediction [1].
        """
        height, width = sample.shape[-2:]
        guidance = None
        if self.embeds_guidance:
            guidance = timestep.new_full(timestep.shape, guidance_scale)
        tokens: Tensor = self.transformer(
            pack_latents(sample),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            # The network multiplies by 1000 itself.
            timestep=timestep / 1000.0,
            guidance=guidance,
            img_ids=image_positions(height, width, device=sample.device),
            txt_ids=torch.zeros(text.shape[1], 3, device=sample.device),
            return_dict=False,
        )[0]
        return unpack_latents(tokens, height=height, width=width)
