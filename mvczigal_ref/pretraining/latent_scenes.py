"""Training data of the tiny world's networks: latents of rendered objects, and their prompts."""

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.cameras import camera_image
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar
from mvczigal_ref.models.components import Components
from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.tiny_world.render import IMAGE_SIZE
from mvczigal_ref.tiny_world.scene import AZIMUTHS, WORLD_RIG, SceneSet, azimuth_index

__all__ = ["LatentScenes", "scene_latents"]


@torch.no_grad()
def scene_latents(
    encoder: Components | FlowComponents, scenes: SceneSet
) -> Float[Tensor, "object azimuth c height width"]:
    """Encode every object from the eight azimuths.

    Args:
        encoder: Components of a pipeline.
        scenes: The objects.

    Returns:
        Scaled latents [1]; half precision to save memory.
    """
    azimuths = torch.arange(len(AZIMUTHS))
    return torch.cat(
        [
            encoder.encode(scenes.images(i, azimuths.expand(len(i), -1))).half()
            for i in torch.arange(len(scenes.maps)).split(64)
        ]
    )


class LatentScenes:
    """Latents of every rendered object from the eight azimuths, and the prompts' features.

    Args:
        components: Encoders of images and prompts.
        scenes: The objects.
        prompts: Sentences that ``scenes.prompt_index`` points to; the empty one is added.
    """

    def __init__(self, components: Components, scenes: SceneSet, prompts: list[str]) -> None:
        self.latent = scene_latents(components, scenes)
        with torch.no_grad():
            embeds, pooled = components.encode_prompts([*prompts, ""])
        self.embeds, self.pooled, self.prompt_index = embeds, pooled, scenes.prompt_index
        self.azimuth = azimuth_index(WORLD_RIG)
        self.camera_image = camera_image(WORLD_RIG, height=IMAGE_SIZE, width=IMAGE_SIZE)
        self.time_ids = torch.tensor([[IMAGE_SIZE, IMAGE_SIZE, 0, 0, IMAGE_SIZE, IMAGE_SIZE]])
        self.alpha_bar = scaled_linear_alpha_bar(dtype=torch.float32)

    def draw(
        self, batch: int, generator: torch.Generator, *, dropout: float, gap: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw clean latents, timesteps, noise and prompt indices.

        On average, every second view has ``1 - gap`` times its object's timestep.

        Args:
            batch: Objects [1].
            generator: Draws everything.
            dropout: Fraction of objects without a prompt [1].
            gap: Distance of half of the views from their object's timestep, relative to it [1].

        Returns:
            These four: prompts with one entry per object, the others with one per view.
        """
        index = torch.randint(len(self.latent), (batch,), generator=generator)
        heading = torch.randint(len(self.azimuth), (batch,), generator=generator)
        clean = self.latent[index[:, None], self.azimuth[heading]].float().flatten(0, 1)
        # stratified: one timestep in each equal part of the schedule
        u = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        timestep = (u * 1000).long().clamp(max=999)
        timestep = timestep[torch.randperm(batch, generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        prompt = self.prompt_index[index]
        dropped = torch.rand(batch, generator=generator) < dropout
        prompt = torch.where(dropped, len(self.embeds) - 1, prompt)
        timestep = timestep.repeat_interleave(self.num_views)
        if gap:
            earlier = torch.rand(len(timestep), generator=generator) < 0.5
            timestep = torch.where(earlier, (timestep * (1 - gap)).long(), timestep)
        return clean, timestep, noise, prompt

    @property
    def num_views(self) -> int:
        """Number of views of an object."""
        return self.azimuth.shape[1]

    def conditioning(self, prompt: Tensor, features: tuple[Tensor, ...]) -> Conditioning:
        """Gather the features of drawn prompts.

        Args:
            prompt: Indices of the prompts, one per object.
            features: Features of the cameras.

        Returns:
            Conditioning of the network.
        """
        return Conditioning(
            prompt_embeds=self.embeds[prompt],
            pooled_prompt_embeds=self.pooled[prompt],
            time_ids=self.time_ids.float().expand(len(prompt), 6),
            camera_features=features,
            num_views=self.num_views,
        )

    def noisy(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        r"""Add noise to clean latents.

        .. math:: x_t = \sqrt{\bar\alpha}\,x_0 + \sqrt{1-\bar\alpha}\,\epsilon,\qquad
            v = \sqrt{\bar\alpha}\,\epsilon - \sqrt{1-\bar\alpha}\,x_0

        Args:
            clean: Latents, one row per view [1].
            noise: Noise of the same shape [1].
            timestep: Timesteps, one per row.

        Returns:
            The noisy latents and the velocity.
        """
        root = self.alpha_bar[timestep].sqrt()[:, None, None, None]
        spread = (1 - self.alpha_bar[timestep]).sqrt()[:, None, None, None]
        return root * clean + spread * noise, root * noise - spread * clean
