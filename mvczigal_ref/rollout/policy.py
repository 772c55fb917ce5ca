"""The protocol of a network: all that rollout and update know of it."""

from typing import Protocol, runtime_checkable

from jaxtyping import Int
from torch import Tensor

from mvczigal_ref.records import Conditioning
from mvczigal_ref.shapes import Latent

__all__ = ["Policy"]


@runtime_checkable
class Policy(Protocol):
    """Anything that predicts from noisy latents, guidance already applied."""

    def __call__(
        self,
        latent_t: Latent,
        timestep: Int[Tensor, "*#row"],
        conditioning: Conditioning,
        *,
        guidance_scale: float,
        camera_scale: float = 1.0,
    ) -> Latent:
        """Predict noise, velocity or clean latents for every row.

        Args:
            latent_t: States, the views of one object adjacent [1].
            timestep: Training-time noise index, one for all rows or one each.
            conditioning: Prompts and cameras, one object for every
                ``conditioning.num_views`` rows.
            guidance_scale: Strength of the prompt [1]; 1 is the plain
                conditional prediction.
            camera_scale: Strength of the camera features [1]; 0 hides the
                cameras.

        Returns:
            The guided prediction, in the type of ``latent_t``.
        """
        ...
