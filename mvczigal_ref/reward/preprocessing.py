"""Preparation of images for the published scorers: resized, cropped, clamped and normalised.

One function serves every scorer; scorers differ in its settings.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from mvczigal_ref.reward.resizing import Interpolation, covering_size, resize_window

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "OPENAI_CLIP_MEAN",
    "OPENAI_CLIP_STD",
    "Interpolation",
    "preprocess",
]

OPENAI_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Means of red, green and blue in CLIP's training [1]."""

OPENAI_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviations of red, green and blue in CLIP's training [1]."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Means of red, green and blue over ImageNet [1]."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviations of red, green and blue over ImageNet [1]."""

_PIXELS_AT_ONCE = 2**20  # of images that are resized together: a pass takes several copies of them
_MOST_CUT_OFF = 8  # largest ratio of resized to cropped area; above it, only the crop is computed


def preprocess(
    images: Float[Tensor, "*batch 3 h w"],
    *,
    size: int | tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    crop: bool = True,
    round_to_bytes: bool = False,
    interpolation: Interpolation = "bicubic",
) -> Float[Tensor, "*batch 3 size_h size_w"]:
    r"""Bring images to a scorer's resolution and statistics.

    .. math:: y_c = \big(\mathrm{clamp}(\mathrm{crop}(\mathrm{resize}(x)), 0, 1)_c - \mu_c\big)
        / \sigma_c

    Resizing is antialiased: a filter as wide as the larger pixel, normalised to sum to one at
    every output pixel, cut off at the border. A bicubic filter (:math:`a = -1/2`) overshoots at
    edges; images made of bytes cannot, hence the clamp. The crop's offset rounds down.

    Source:
        Radford et al., arXiv:2103.00020, section 2.4 (the released ``clip`` package's transform).
        Deviation: images stay floating point unless ``round_to_bytes``.

    Args:
        images: Images in [0, 1], of any leading axes. Gradient flows, and is zero where the
            clamp is active or bytes are rounded.
        size: Height and width to return [pixels]; one number stands for a square.
        mean: One number per colour to subtract [1].
        std: One positive number per colour to divide by [1].
        crop: If true, keep the aspect ratio, so that the shorter side (relative to ``size``)
            just fits, and cut out the centre; if false, stretch each side on its own.
        round_to_bytes: Round to multiples of 1/255 before resizing and after each of its two
            passes, as Pillow does. The published pipelines resize files of 8 bits per colour, so
            published scores are of such images; without rounding, a score is a smooth function
            of the image.
        interpolation: Filter of the resizing.

    Returns:
        Images of this size, in the dtype of ``images`` [standard deviations].

    Raises:
        ValueError: If ``images`` is narrower than fp32 or has an empty side, or if a setting is
            out of range.

    Examples:
        >>> grey = torch.full((2, 3, 8, 6), 0.5)
        >>> out = preprocess(grey, size=4, mean=(0.25, 0.0, 0.0), std=(1.0, 1.0, 0.5))
        >>> out.shape, [round(x, 4) for x in out[0, :, 0, 0].tolist()]
        (torch.Size([2, 3, 4, 4]), [0.25, 0.5, 1.0])
    """
    target = (size, size) if isinstance(size, int) else size
    _check(images, target, mean, std)
    rows = images.flatten(0, -4) if images.ndim > 3 else images[None]
    at_once = max(1, _PIXELS_AT_ONCE // (rows.shape[-2] * rows.shape[-1]))
    between = covering_size(rows.shape[-2:], target) if crop else target
    parts = [
        _resized(part, target, between, round_to_bytes=round_to_bytes, interpolation=interpolation)
        for part in rows.split(at_once)
    ]
    rows = parts[0] if len(parts) == 1 else torch.cat(parts)
    rows = rows.clamp(0.0, 1.0)
    colours = [rows.new_tensor(list(numbers))[:, None, None] for numbers in (mean, std)]
    return ((rows - colours[0]) / colours[1]).reshape(*images.shape[:-2], *target)


def _resized(
    rows: Tensor,
    target: tuple[int, int],
    between: tuple[int, int],
    *,
    round_to_bytes: bool,
    interpolation: Interpolation,
) -> Tensor:
    """Resize to one size, and cut out the centre of another."""
    rows = _to_bytes(rows) if round_to_bytes else rows
    top, left = (between[0] - target[0]) // 2, (between[1] - target[1]) // 2
    if between[0] * between[1] > _MOST_CUT_OFF * target[0] * target[1]:
        rows = resize_window(rows, -1, between[1], range(left, left + target[1]), interpolation)
        rows = _to_bytes(rows) if round_to_bytes else rows
        rows = resize_window(rows, -2, between[0], range(top, top + target[0]), interpolation)
        rows = _to_bytes(rows) if round_to_bytes else rows
    else:
        # Pillow resizes along the rows first, and rounds to bytes in between.
        passes = [(rows.shape[-2], between[1]), between] if round_to_bytes else [between]
        for shape in passes:
            if shape != tuple(rows.shape[-2:]):
                rows = interpolate(rows, size=shape, mode=interpolation, antialias=True)
            rows = _to_bytes(rows) if round_to_bytes else rows
        rows = rows[..., top : top + target[0], left : left + target[1]]
    return rows


def _to_bytes(images: Tensor) -> Tensor:
    return images.mul(255.0).round().clamp(0.0, 255.0).div(255.0)


def _check(
    images: Tensor, target: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> None:
    if images.dtype not in (torch.float32, torch.float64):
        msg = (
            f"`images` must be float32 or float64; got {images.dtype}, whose steps are coarser "
            "than a byte's near 1. Call it with `images.float()`."
        )
        raise ValueError(msg)
    if 0 in images.shape[-2:]:
        msg = f"`images` must have pixels; got shape {tuple(images.shape)}; decode them first."
        raise ValueError(msg)
    if min(target) < 1:
        msg = f"`size` must be positive; got {target}; use the scorer's resolution, such as 224."
        raise ValueError(msg)
    for name, numbers in (("mean", mean), ("std", std)):
        if len(numbers) != 3:
            msg = f"`{name}` must hold one number per colour; got {len(numbers)}; give three."
            raise ValueError(msg)
    if not min(std) > 0.0:
        msg = f"`std` must be positive; got {tuple(std)}; use such as `OPENAI_CLIP_STD`."
        raise ValueError(msg)
