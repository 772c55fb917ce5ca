"""What a sampler's step returns, whichever sampler it is."""

from dataclasses import dataclass

from mvczigal_ref.shapes import BatchLatent, BatchShape

__all__ = ["Transition"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """The Gaussian of the next latent, and the image that the step would stop at."""

    mean: BatchLatent
    """Mean of the next latent; gradient flows to the network's output."""

    std: BatchShape
    """Standard deviation of the next latent, one number a latent; no gradient."""

    denoised: BatchLatent
    """The clean latent that the step believes in; the last step's is decoded to the image."""
