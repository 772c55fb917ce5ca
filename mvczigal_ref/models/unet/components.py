"""Every part of a single-view UNet's pipeline, and its saving."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTokenizer, PreTrainedModel

from mvczigal_ref.models.flow.families import numbered
from mvczigal_ref.models.latents import ScaledAutoencoder
from mvczigal_ref.models.schedulers import sdxl_scheduler
from mvczigal_ref.models.text import encode_clip_prompts, text_conditioning
from mvczigal_ref.models.unet.families import UnetFamily
from mvczigal_ref.models.unet.policy import SingleViewUnet
from mvczigal_ref.models.whole_pipelines import require_no_lora, save_pipeline
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.shapes import PromptEmbedding

__all__ = ["UnetComponents"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UnetComponents(ScaledAutoencoder):
    """Networks and tokenizers that turn prompts into images."""

    family: UnetFamily
    """Pipeline that the parts are of."""

    tokenizers: tuple[CLIPTokenizer, ...]
    """Tokenizers, one per text encoder."""

    text_encoders: tuple[PreTrainedModel, ...]
    """Text encoders: one CLIP for Stable Diffusion 1.5, two for SDXL."""

    policy: SingleViewUnet
    """UNet as a policy."""

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Networks of the pipeline."""
        return (*self.text_encoders, self.vae, self.policy)

    @property
    def max_tokens(self) -> int:
        """Length of the last tokenizer's sequences [tokens]."""
        return int(self.tokenizers[-1].model_max_length)

    @property
    def feature_sizes(self) -> tuple[tuple[int, int], int]:
        """Tokens and width of a prompt's token features, and width of its pooled ones [1]."""
        configs = [encoder.config for encoder in self.text_encoders]
        width = sum(config.hidden_size for config in configs)
        pooled = configs[-1].projection_dim if len(configs) > 1 else 0
        return (configs[0].max_position_embeddings, width), pooled

    def encode_prompts(
        self, prompts: Sequence[str]
    ) -> tuple[PromptEmbedding, Float[Tensor, "object pooled"]]:
        """Encode prompts with one CLIP or two by :func:`encode_clip_prompts`."""
        return encode_clip_prompts(self.tokenizers, self.text_encoders, prompts)

    def build_conditioning(
        self, prompts: Sequence[str], *, image_size: int, negative_prompt: str | None = None
    ) -> Conditioning:
        """Encode prompts into the record that the policy reads.

        Args:
            prompts: One text per object.
            image_size: Edge of the images [px].
            negative_prompt: Text that classifier-free guidance leads away from, often the empty
                one, which is encoded too; for networks without a guidance embedding.

        Returns:
            A record of one view, without cameras.

        Examples:
            >>> from mvczigal_ref.models.unet.tiny import tiny_unet_components
            >>> record = tiny_unet_components("sd15", seed=0).build_conditioning(
            ...     ["a red cube", "a can"], image_size=32
            ... )
            >>> record.num_objects, record.num_views
            (2, 1)
        """
        return text_conditioning(
            self.encode_prompts,
            prompts,
            negative_prompt=negative_prompt,
            image_size=(image_size, image_size),
        )

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write every part into its own sub-folder, as diffusers' pipelines read it.

        Args:
            folder: Folder to write into; made if absent.
            dtype: Floating type of the stored tensors; as they are when None.

        Raises:
            ValueError: If the UNet holds a LoRA, which these files do not.
        """
        require_no_lora(self.policy.unet)
        folder = Path(folder)
        mean, std = self.latent_mean.tolist(), self.latent_std.tolist()
        scaling = {"latents_mean": mean, "latents_std": std, "scaling_factor": 1.0}
        if not any(mean) and len(set(std)) == 1:
            # Stable Diffusion 1.5's pipeline knows one factor for all channels and nothing else.
            scaling = {"latents_mean": None, "latents_std": None, "scaling_factor": 1.0 / std[0]}
        self.vae.register_to_config(**scaling)
        texts = {
            **numbered("tokenizer", self.tokenizers),
            **numbered("text_encoder", self.text_encoders),
        }
        networks = {"unet": self.policy.unet, "vae": self.vae}
        others: dict[str, Any] = {}
        if len(self.tokenizers) == 1:  # diffusers' pipeline asks for these
            others = {"safety_checker": [None, None], "feature_extractor": [None, None]}
            others["requires_safety_checker"] = False
        save_pipeline(
            folder, pipeline=self.family.pipeline, texts=texts, networks=networks,
            scheduler=sdxl_scheduler(few_steps=self.policy.guidance_width is not None),
            others=others, dtype=dtype,
        )  # fmt: skip
