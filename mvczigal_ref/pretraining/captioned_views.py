"""Training data of the tiny world's flow model: latents of single views, and their captions."""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvczigal_ref.diffusion.flow_schedule import shift_sigma
from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.pretraining.latent_scenes import scene_latents
from mvczigal_ref.tiny_world.render import Nuisance
from mvczigal_ref.tiny_world.scene import AZIMUTHS, SceneSet

__all__ = ["ADDED_WORDS", "CaptionedViews", "captions"]

ADDED_WORDS: Final = ("small", "large", "at", "left", "right")
"""Words that captions have and the prompts of the grammar do not."""


_PLAIN, _SMALL, _LARGE, _LEFT, _RIGHT = range(5)  # places of a prompt's captions


def captions(prompt: str) -> tuple[str, str, str, str, str]:
    """List the captions of images of a prompt: itself, and itself with a size or a side.

    Args:
        prompt: A sentence of the grammar.

    Returns:
        Five sentences.

    Examples:
        >>> captions("a red ball with a white nose")[1::3]
        ('a small red ball with a white nose', 'a red ball with a white nose at right')
    """
    small, large = (prompt.replace("a ", f"a {size} ", 1) for size in ("small", "large"))
    return prompt, small, large, f"{prompt} at left", f"{prompt} at right"


class CaptionedViews:
    """Latents of every rendered object from the eight azimuths, and the captions' features.

    A caption is the prompt. A share of the captions adds, where the image has it, the size (small
    and large are the lowest and the highest third of the sizes) or the side at which the part
    sticks out, so that the network also learns captions that describe an image.

    Args:
        components: Encoders of images and captions.
        scenes: The objects.
        prompts: Sentences that ``scenes.prompt_index`` points to.
    """

    def __init__(
        self, components: FlowComponents, scenes: SceneSet, prompts: Sequence[str]
    ) -> None:
        self.latent = scene_latents(components, scenes)
        self.captions = [caption for prompt in prompts for caption in captions(prompt)] + [""]
        self.embeds, self.pooled = components.encode_prompts(self.captions)
        self.shift = components.noise_shift(*self.latent.shape[-2:])
        self._first = scenes.prompt_index * 5
        low, high = Nuisance.SIZE_RANGE
        third = ((scenes.size - low) / (high - low) * 3).long()
        self._size = torch.tensor([_SMALL, _PLAIN, _LARGE])[third.clamp(0, 2)]
        # From in front and from behind the part is at neither side.
        left, right = [_PLAIN, *[_LEFT] * 3], [_PLAIN, *[_RIGHT] * 3]
        self._side = torch.tensor(left + right)  # by azimuth

    def draw(
        self, batch: int, generator: torch.Generator, *, dropout: float, described: float
    ) -> tuple[
        Float[Tensor, "row c height width"],
        Float[Tensor, " row"],
        Float[Tensor, "row c height width"],
        Int[Tensor, " row"],
    ]:
        """Draw clean latents, noise levels, noise and captions.

        The levels are stratified, one in each equal part of [0, 1], and shifted as in the
        scheduler.

        Args:
            batch: Rows [1].
            generator: Draws everything.
            dropout: Fraction of rows without a caption [1].
            described: Fraction of rows whose caption adds a word, where the image has one [1].

        Returns:
            These four, captions as indices into ``captions``.
        """
        index = torch.randint(len(self.latent), (batch,), generator=generator)
        azimuth = torch.randint(len(AZIMUTHS), (batch,), generator=generator)
        part = torch.randperm(batch, generator=generator)
        even = (part + torch.rand(batch, generator=generator)) / batch
        clean = self.latent[index, azimuth].float()
        noise = torch.randn(clean.shape, generator=generator)
        which = torch.rand(batch, generator=generator)
        added = torch.where(which < described / 2, self._size[index], self._side[azimuth])
        added = torch.where(which < described, added, _PLAIN)
        dropped = torch.rand(batch, generator=generator) < dropout
        caption = torch.where(dropped, len(self.captions) - 1, self._first[index] + added)
        return clean, shift_sigma(even, self.shift), noise, caption

    def conditioning(self, caption: Int[Tensor, " row"]) -> Conditioning:
        """Gather the features of drawn captions.

        Args:
            caption: Indices into ``captions``, one per row.

        Returns:
            Conditioning of the network.
        """
        return Conditioning(
            prompt_embeds=self.embeds[caption],
            pooled_prompt_embeds=self.pooled[caption],
            time_ids=self.embeds.new_zeros(len(caption), 6),
            camera_features=(),
            num_views=1,
        )
