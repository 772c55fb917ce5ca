"""Stable Diffusion 3.5 as a policy: guided by a doubled batch."""

from typing import ClassVar

from diffusers import SD3Transformer2DModel
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.models.flow.policy import ATTENTION_LORA_TARGETS, FlowPolicy
from mvczigal_ref.shapes import Latent, PromptEmbedding

__all__ = ["SD3_LORA_TARGETS", "Sd3Policy"]

SD3_LORA_TARGETS = ATTENTION_LORA_TARGETS
"""Layers that Flow-GRPO adapts with rank 32 and alpha 64: every joint attention. The second
attention of 3.5-Medium's first blocks, ``attn2``, stays as it is."""


class Sd3Policy(FlowPolicy):
    """Stable Diffusion 3 or 3.5.

    Flow-GRPO guides it with w = 4.5 by a doubled batch.

    Source:
        Esser et al., arXiv:2403.03206, as diffusers runs it.

    Args:
        transformer: Built or loaded by diffusers.

    Raises:
        ValueError: If ``transformer`` gives other channels than it takes.
    """

    lora_targets: ClassVar[tuple[str, ...]] = SD3_LORA_TARGETS

    def __init__(self, transformer: SD3Transformer2DModel) -> None:
        super().__init__(transformer)
        self.patch_size = int(transformer.config.patch_size)

    def velocity(
        self,
        sample: Latent,
        timestep: Float[Tensor, " row"],
        text: PromptEmbedding,
        pooled: Float[Tensor, "row pooled"],
        *,
        guidance_scale: float,
    ) -> Latent:
        """Call the transformer once; it packs latents itself and embeds no guidance."""
        output: Tensor = self.transformer(
            sample,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=timestep,
            return_dict=False,
        )[0]
        return output
