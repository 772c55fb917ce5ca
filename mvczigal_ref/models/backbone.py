"""Interface of a run to its model: prompts in, latents out, and the trainable parameters.

The kinds are the multi-view UNet, which draws all views of a rig at once, and the single-view
UNets and flow transformers, which draw one image.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvczigal_ref.cameras import OrthographicRig
from mvczigal_ref.models.components import Components
from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.models.lora import LORA_TARGETS, add_lora, lora_parameters
from mvczigal_ref.models.lora_files import load_lora
from mvczigal_ref.models.unet.components import UnetComponents
from mvczigal_ref.models.unet.policy import SINGLE_VIEW_LORA_TARGETS
from mvczigal_ref.policy import CameraFeatures, Conditioning

__all__ = ["AnyComponents", "Backbone", "FlowBackbone", "MultiviewBackbone", "UnetBackbone"]

AnyComponents = Components | FlowComponents | UnetComponents
"""Every part of a model of any kind."""

Embedded = tuple[Tensor, Tensor]
"""Token features and pooled features of one prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backbone(ABC):
    """A loaded model with the cameras and image size of a run."""

    components: Any
    """Every part of the model, changed in place."""

    image_size: int
    """Edge of an image [px]."""

    @property
    def num_views(self) -> int:
        """Number of images that are drawn together [views]."""
        return 1

    @property
    @abstractmethod
    def network(self) -> Any:  # noqa: ANN401 - diffusers is untyped
        """Diffusers network that holds the trainable parameters."""

    @property
    def text_encoders(self) -> tuple[nn.Module, ...]:
        """Networks that read prompts."""
        encoders: tuple[nn.Module, ...] = self.components.text_encoders
        return encoders

    @property
    def embeds_guidance(self) -> bool:
        """Whether the network takes the guidance scale as an input, so that no batch is doubled."""
        return bool(self.components.policy.embeds_guidance)

    @property
    def camera_features(self) -> CameraFeatures:
        """Features of the cameras, computed once; none for networks without cameras."""
        return ()

    def embed(self, prompt: str) -> Embedded:
        """Encode one prompt into token and pooled features, without gradient."""
        embedded: Embedded = self.components.encode_prompts([prompt])
        return embedded

    @property
    def lora_targets(self) -> Sequence[str]:
        """Ends of the names of the layers that a LoRA adapts."""
        return LORA_TARGETS

    def add_lora(self, *, rank: int, alpha: float, seed: int) -> None:
        """Add a trainable low-rank update and freeze the rest."""
        add_lora(self.network, rank=rank, alpha=alpha, seed=seed, targets=self.lora_targets)

    def load_lora(self, source: Path) -> None:
        """Read a trained low-rank update, adding one where there is none, and freeze the rest."""
        load_lora(self.network, source)

    def lora(self) -> dict[str, nn.Parameter]:
        """Find the LoRA's parameters by published name; none without a LoRA."""
        return lora_parameters(self.network)

    @property
    def policy(self) -> nn.Module:
        """Network in the form that rollout and update call."""
        policy: nn.Module = self.components.policy
        return policy

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Views, channels, height and width of one object's latents."""
        vae = self.components.vae
        edge = self.image_size // 2 ** (len(vae.config.block_out_channels) - 1)
        return (self.num_views, int(vae.config.latent_channels), edge, edge)

    def trained(self) -> dict[str, nn.Parameter]:
        """Find the trainable parameters.

        Returns:
            LoRA parameters by published name, or without a LoRA every parameter of the policy
            that requires a gradient.
        """
        named = self.policy.named_parameters()
        return self.lora() or {name: p for name, p in named if p.requires_grad}

    def freeze(self) -> None:
        """Put every network into evaluation mode, and require no gradient."""
        for part in (*self.text_encoders, self.components.vae, self.policy):
            part.requires_grad_(requires_grad=False)
            part.eval()

    @contextmanager
    def without_lora(self) -> Iterator[None]:
        """Switch the LoRA off: the policy is the network that training started from.

        Evaluate the policy inside without gradient: a pass that is recomputed for its gradient
        would run after the LoRA is back.

        Yields:
            Nothing.
        """
        self.network.disable_adapters()
        try:
            yield
        finally:
            # PEFT makes the adapter trainable again with this.
            self.network.enable_adapters()

    def conditioning(self, embedded: list[Embedded], negative: Embedded | None) -> Conditioning:
        """Put encoded prompts together with what is the same for every object.

        Args:
            embedded: Features from :meth:`embed`, one pair per object.
            negative: Features of the prompt that classifier-free guidance leads away from, if any.

        Returns:
            The policy's conditioning on these objects.
        """
        embeds = torch.cat([tokens for tokens, _ in embedded])
        size = float(self.image_size)
        # Original size, crop and target size; flow transformers do not take them.
        ids = torch.tensor([size, size, 0.0, 0.0, size, size], device=embeds.device)
        return Conditioning(
            prompt_embeds=embeds,
            pooled_prompt_embeds=torch.cat([pooled for _, pooled in embedded]),
            time_ids=ids.expand(len(embedded), 6),
            camera_features=self.camera_features,
            num_views=self.num_views,
            negative_prompt_embeds=None if negative is None else negative[0],
            negative_pooled_prompt_embeds=None if negative is None else negative[1],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class MultiviewBackbone(Backbone):
    """The multi-view UNet with its camera encoder."""

    components: Components
    """Every part of the model, changed in place."""

    rig: OrthographicRig
    """The cameras."""

    features: CameraFeatures = field(init=False)
    """Camera features of the rig."""

    def __post_init__(self) -> None:
        """Encode the cameras once."""
        features = self.components.encode_rig(self.rig, image_size=self.image_size)
        object.__setattr__(self, "features", features)

    @property
    def num_views(self) -> int:
        """Number of images that are drawn together [views]."""
        return self.rig.num_views

    @property
    def network(self) -> Any:  # noqa: ANN401 - diffusers is untyped
        """Diffusers network that holds the trainable parameters."""
        return self.components.policy.unet

    @property
    def camera_features(self) -> CameraFeatures:
        """Features of the cameras, computed once."""
        return self.features


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowBackbone(Backbone):
    """A flow transformer, which draws one view."""

    components: FlowComponents
    """Every part of the model, changed in place."""

    @property
    def network(self) -> Any:  # noqa: ANN401 - diffusers is untyped
        """Diffusers network that holds the trainable parameters."""
        return self.components.policy.transformer

    @property
    def lora_targets(self) -> Sequence[str]:
        """Ends of the names of the layers that a LoRA adapts."""
        return self.components.policy.lora_targets

    def lora(self) -> dict[str, nn.Parameter]:
        """Find the LoRA's parameters by published name; none without a LoRA."""
        return {f"transformer.{name}": p for name, p in lora_parameters(self.network).items()}

    def noise_shift(self) -> float:
        """Return the shift of the noise levels that the network was trained with [1]."""
        _, _, height, width = self.latent_shape
        return self.components.noise_shift(height, width)

    def lowest_sigma(self, shift: float) -> float | None:
        """Return the level of a grid's last step, before the shift [1]; None is 1 / steps."""
        return self.components.lowest_sigma(shift)


@dataclass(frozen=True, kw_only=True, slots=True)
class UnetBackbone(Backbone):
    """A UNet of SDXL or Stable Diffusion 1.5, which draws one view."""

    components: UnetComponents
    """Every part of the model, changed in place."""

    @property
    def network(self) -> Any:  # noqa: ANN401 - diffusers is untyped
        """Diffusers network that holds the trainable parameters."""
        return self.components.policy.unet

    @property
    def lora_targets(self) -> Sequence[str]:
        """Ends of the names of the layers that a LoRA adapts."""
        return SINGLE_VIEW_LORA_TARGETS
