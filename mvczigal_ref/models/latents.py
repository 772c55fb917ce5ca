"""Latents of an autoencoder: scaled to mean 0 and standard deviation 1, and back."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from mvczigal_ref.errors import CheckpointError, quoted
from mvczigal_ref.models.finite import overflow_shown
from mvczigal_ref.models.loading import cast_network
from mvczigal_ref.shapes import BatchLatent

__all__ = ["ScaledAutoencoder", "latent_statistics", "shifted_statistics"]

_Parts = TypeVar("_Parts", bound="ScaledAutoencoder")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaledAutoencoder:
    """An autoencoder, and the statistics by which its latents are scaled."""

    vae: AutoencoderKL
    """Autoencoder: images to latents and back."""

    latent_mean: Float[Tensor, " c"]
    """Mean of the autoencoder's raw latents, by channel [1]."""

    latent_std: Float[Tensor, " c"]
    """Standard deviation of the autoencoder's raw latents, by channel [1]; positive."""

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Networks of the pipeline."""
        return (self.vae,)

    def to(
        self: _Parts, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> _Parts:
        """Move, and where asked cast, every network in place.

        Args:
            device: Target device; unchanged when None.
            dtype: Floating type of the networks; unchanged when None.

        Returns:
            A record of the same networks, the scaling moved too.
        """
        for network in self.networks:
            cast_network(network, device, dtype)
        mean, std = self.latent_mean.to(device), self.latent_std.to(device)
        return replace(self, latent_mean=mean, latent_std=std)

    def encode(
        self, images: Float[Tensor, "*batch rgb height width"]
    ) -> Float[Tensor, "*batch c h w"]:
        r"""Encode images into latents of mean 0 and standard deviation 1.

        .. math:: z = (\mathbb{E}[q(z|x)] - m) / s

        Args:
            images: In [0, 1]. Gradient flows to them.

        Returns:
            The mean of the autoencoder's posterior, scaled [1].
        """
        rows = images.reshape(-1, *images.shape[-3:])
        raw = self.vae.encode((2.0 * rows - 1.0).to(self.vae.dtype)).latent_dist.mean
        mean, std = self._scaling(images)
        latent: Tensor = (raw.to(images.dtype) - mean) / std
        return latent.reshape(*images.shape[:-3], *latent.shape[-3:])

    def decode(self, latent: BatchLatent) -> Float[Tensor, "*batch rgb height width"]:
        r"""Decode scaled latents into images in [0, 1].

        .. math:: x = \mathrm{clip}(\tfrac12 D(s z + m) + \tfrac12, 0, 1)

        Args:
            latent: Scaled latents [1]. Gradient flows to them where the image
                is inside its range.

        Returns:
            Images, clamped; NaN where the autoencoder overflows.
        """
        mean, std = self._scaling(latent)
        raw = (latent * std + mean).reshape(-1, *latent.shape[-3:])
        decoded: Tensor = self.vae.decode(raw.to(self.vae.dtype)).sample.to(latent.dtype)
        image = overflow_shown((0.5 * decoded + 0.5).clamp(0.0, 1.0), decoded)
        return image.reshape(*latent.shape[:-3], *image.shape[-3:])

    def _scaling(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Lay mean and standard deviation over latents."""
        mean, std = self.latent_mean.to(like), self.latent_std.to(like)
        return mean[:, None, None], std[:, None, None]


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

    Raises:
        CheckpointError: If they are not one finite number per channel, or a deviation is not
            positive.
    """

    def read() -> tuple[Tensor, Tensor]:
        config, channels = vae.config, vae.config.latent_channels
        mean = torch.tensor(config.latents_mean or [0.0] * channels).float()
        return mean, torch.tensor(config.latents_std or [1.0] * channels) / config.scaling_factor

    return _checked(read, vae.config)


def shifted_statistics(vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
    """Read the mean and standard deviation of raw latents where the scale is in one of them.

    Args:
        vae: Autoencoder of a flow transformer, or one that this package has saved.

    Returns:
        Mean, the shift where there is none; and deviation, the inverse scaling factor where there
        is none; by channel, fp32 [1].

    Raises:
        CheckpointError: As :func:`latent_statistics`.
    """

    def read() -> tuple[Tensor, Tensor]:
        config, channels = vae.config, vae.config.latent_channels
        mean = torch.tensor(config.latents_mean or [config.shift_factor or 0.0] * channels)
        return mean.float(), torch.tensor(
            config.latents_std or [1.0 / config.scaling_factor] * channels
        )

    return _checked(read, vae.config)


def _checked(read: Callable[[], tuple[Tensor, Tensor]], config: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Refuse statistics that are not one finite number per channel."""
    if (config.latents_mean is None) != (config.latents_std is None):
        raise _unfit_statistics(config)  # diffusers reads both or neither
    try:
        mean, std = read()
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise _unfit_statistics(config) from error
    fit = mean.shape == std.shape == (config.latent_channels,) and bool((std > 0).all())
    if not (fit and bool(mean.isfinite().all() and std.isfinite().all())):
        raise _unfit_statistics(config)
    return mean, std


def _unfit_statistics(config: Any) -> CheckpointError:  # noqa: ANN401 - diffusers is untyped
    got = {n: config.get(n) for n in ("scaling_factor", "latents_mean", "latents_std")}
    return CheckpointError(
        "the autoencoder's config.json must have a positive scaling_factor, and latents_mean and "
        f"positive latents_std of {config.latent_channels} numbers, or neither; got {quoted(got)}. "
        "Download it again."
    )
