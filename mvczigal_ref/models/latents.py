"""Latents of an autoencoder: scaled to mean 0 and standard deviation 1, and back."""

import torch
from diffusers import AutoencoderKL
from torch import Tensor

__all__ = ["latent_statistics"]


def latent_statistics(vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
    r"""Read the mean and standard deviation of an autoencoder's raw latents from its settings.

    .. math:: x = z\,s / k + m

    Source:
        diffusers' SDXL pipeline: k is the scaling factor, m and s are 0 and 1 where the settings
        have none.

    Args:
        vae: The autoencoder.

    Returns:
        Mean and standard deviation by channel, fp32 [1].
    """
    channels = vae.config.latent_channels
    mean = torch.tensor(vae.config.latents_mean or [0.0] * channels)
    std = torch.tensor(vae.config.latents_std or [1.0] * channels)
    return mean, std / vae.config.scaling_factor
