"""Every part of a text-to-image flow pipeline, and its saving."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mvczigal_ref.diffusion.flow_schedule import resolution_shift, shift_sigma
from mvczigal_ref.models.flow.families import family_of, numbered
from mvczigal_ref.models.flow.policy import FlowPolicy
from mvczigal_ref.models.latents import ScaledAutoencoder
from mvczigal_ref.models.scheduler_settings import check_scheduler
from mvczigal_ref.models.text import text_conditioning
from mvczigal_ref.models.whole_pipelines import require_no_lora, save_pipeline
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.shapes import PromptEmbedding

__all__ = ["FlowComponents"]


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowComponents(ScaledAutoencoder):
    """Networks and tokenizers that turn prompts into images."""

    tokenizers: tuple[PreTrainedTokenizerBase, ...]
    """Tokenizers, one per text encoder."""

    text_encoders: tuple[PreTrainedModel, ...]
    """Text encoders: CLIP and T5 for FLUX.1; CLIP, CLIP and T5 for Stable Diffusion 3; Qwen3 for
    Z-Image."""

    policy: FlowPolicy
    """Transformer as a policy."""

    scheduler: FlowMatchEulerDiscreteScheduler
    """Scheduler that says how the noise levels are shifted; it takes no step here."""

    max_tokens: int
    """Length of the last text encoder's sequences [tokens]."""

    def __post_init__(self) -> None:
        """Refuse a scheduler with settings that are not followed."""
        check_scheduler(self.scheduler)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Networks of the pipeline."""
        return (*self.text_encoders, self.vae, self.policy)

    @property
    def feature_sizes(self) -> tuple[tuple[int, int], int]:
        """Tokens and width of a prompt's token features, and width of its pooled ones [1]."""
        return family_of(self.policy).feature_sizes(self.text_encoders, self.max_tokens)

    def encode_prompts(
        self, prompts: Sequence[str]
    ) -> tuple[PromptEmbedding, Float[Tensor, "object pooled"]]:
        """Encode prompts as the transformer expects them, without gradient.

        Args:
            prompts: One text per object.

        Returns:
            Token features and pooled features [1].

        Raises:
            ValueError: If ``prompts`` is empty or a bare string.
        """
        encode = family_of(self.policy).encode
        return encode(self.tokenizers, self.text_encoders, prompts, max_tokens=self.max_tokens)

    def build_conditioning(
        self, prompts: Sequence[str], *, negative_prompt: str | None = None
    ) -> Conditioning:
        """Encode prompts into the record that the policy reads.

        Args:
            prompts: One text per object.
            negative_prompt: Text that classifier-free guidance leads away from,
                often the empty one; for networks without a guidance embedding.

        Returns:
            A record of one view, without cameras; sizes are zero, as no flow
            transformer takes them.

        Examples:
            >>> from mvczigal_ref.models.flow.tiny import tiny_flow_components
            >>> record = tiny_flow_components(seed=0).build_conditioning(["a red cube", "a can"])
            >>> record.num_objects, record.num_views
            (2, 1)
        """
        return text_conditioning(
            self.encode_prompts, prompts, negative_prompt=negative_prompt, image_size=(0, 0)
        )

    def noise_shift(self, height: int, width: int) -> float:
        """Find the shift of the noise levels that the transformer was trained with.

        Args:
            height: Height of the latents [latent px].
            width: Width of the latents [latent px].

        Returns:
            k of :func:`~mvczigal_ref.diffusion.flow_schedule.flow_sigmas` [1]:
            by the number of tokens for FLUX.1, fixed for Stable Diffusion 3.5.

        Raises:
            ValueError: If a side is no multiple of the policy's patch.
        """
        num_tokens = self.policy.num_tokens(height, width)
        config = self.scheduler.config
        if not config.use_dynamic_shifting:
            return float(config.shift)
        return resolution_shift(
            num_tokens,
            base_tokens=config.base_image_seq_len,
            max_tokens=config.max_image_seq_len,
            base_log_shift=config.base_shift,
            max_log_shift=config.max_shift,
        )

    def lowest_sigma(self, shift: float) -> float | None:
        """Find the level, before the shift, at which diffusers' pipeline takes its last step.

        Args:
            shift: Shift of the noise levels [1].

        Returns:
            ``lowest_sigma`` of :func:`~mvczigal_ref.diffusion.flow_schedule.flow_sigmas` [1]:
            None for FLUX.1, the lowest trained level for Stable Diffusion 3.5, itself shifted
            where the shift is fixed.

        Examples:
            >>> from mvczigal_ref.models.flow.tiny import tiny_flow_components
            >>> tiny_flow_components(seed=0).lowest_sigma(3.0) is None
            True
        """
        if not family_of(self.policy).ends_at_trained_level:
            return None
        config = self.scheduler.config
        lowest = torch.tensor(1.0 / config.num_train_timesteps, dtype=torch.float64)
        return float(lowest if config.use_dynamic_shifting else shift_sigma(lowest, shift))

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write every part into its own sub-folder, as diffusers' pipelines read it.

        Args:
            folder: Folder to write into; made if absent.
            dtype: Floating type of the stored tensors; as they are when None.

        Raises:
            ValueError: If the transformer holds a LoRA, which these files do not.
        """
        require_no_lora(self.policy.transformer)
        folder, family = Path(folder), family_of(self.policy)
        mean, std = self.latent_mean.tolist(), self.latent_std.tolist()
        if len(set(mean)) == len(set(std)) == 1:
            # diffusers' own pipelines know one factor for all channels.
            scaling = {"shift_factor": mean[0], "scaling_factor": 1.0 / std[0]}
            self.vae.register_to_config(latents_mean=None, latents_std=None, **scaling)
        else:
            self.vae.register_to_config(latents_mean=mean, latents_std=std)
        texts = {
            **numbered("tokenizer", self.tokenizers),
            **numbered("text_encoder", self.text_encoders),
        }
        networks = {"transformer": self.policy.transformer, "vae": self.vae}
        save_pipeline(
            folder, pipeline=family.pipeline, texts=texts, networks=networks,
            scheduler=self.scheduler, others={}, dtype=dtype,
        )  # fmt: skip
