"""`diffusion.transition`: a frozen record of a step."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from jaxtyping import TypeCheckError

from mvczigal_ref.diffusion.sampler import Transition


def test_one_spread_may_serve_many_latents():
    """Its shape broadcasts to the leading axes."""
    latent = torch.zeros(4, 3, 2, 5, 5)
    step = Transition(mean=latent, std=torch.ones(4, 1), denoised=latent)

    assert step.std.shape == (4, 1)


def test_it_is_frozen():
    """A stage hands it on, and nobody writes into it."""
    latent = torch.zeros(1, 1, 1)
    step = Transition(mean=latent, std=torch.ones(()), denoised=latent)
    with pytest.raises(FrozenInstanceError):
        step.mean = latent


def test_mean_and_denoised_have_one_shape():
    """A mismatch is caught where the record is made."""
    with pytest.raises(TypeCheckError):
        Transition(
            mean=torch.zeros(2, 1, 1, 1), std=torch.ones(2), denoised=torch.zeros(3, 1, 1, 1)
        )
