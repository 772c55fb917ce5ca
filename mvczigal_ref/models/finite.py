"""Non-finite numbers, named by the part that made them and by their place."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mvczigal_ref.errors import NonFiniteError

__all__ = ["AUTOENCODER_IMAGE", "NETWORK_LATENT", "overflow_shown", "require_finite"]

NETWORK_LATENT = "latent of the denoising network"
AUTOENCODER_IMAGE = "image of the autoencoder"


def require_finite(what: str, values: Tensor, objects: Sequence[int]) -> None:
    """Refuse non-finite numbers of views, with a single read of their device.

    Args:
        what: Name of the quantity and of the part that made it.
        values: One axis of objects, then views and any more; or objects alone.
        objects: Index of each object.

    Raises:
        NonFiniteError: Names the part, the first object and its view.

    Examples:
        >>> require_finite("image of the autoencoder", torch.full((1, 2, 3), torch.inf), [7])
        Traceback (most recent call last):
        mvczigal_ref.errors.NonFiniteError: `image of ...` must be finite; got inf at object 7, ...
    """
    if bool(values.isfinite().all()):
        return
    row, *rest = (~values.isfinite()).nonzero()[0].tolist()
    raise NonFiniteError(
        what,
        object=objects[row],
        view=rest[0] if rest else None,
        value=float(values[(row, *rest)]),
    )


def overflow_shown(image: Tensor, decoded: Tensor) -> Tensor:
    """Mark an autoencoder's overflow as NaN in the image; clamping would make it white or black.

    Args:
        image: Clamped to its range. Gradient flows.
        decoded: The image before it was clamped.

    Returns:
        The image, NaN where ``decoded`` is infinite.

    Examples:
        >>> overflow_shown(torch.ones(2), torch.tensor([torch.inf, 3.0]))
        tensor([nan, 1.])
    """
    return image.masked_fill(decoded.isinf(), torch.nan)
