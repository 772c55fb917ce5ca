"""Turntables: one object's views as an animation."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float

from mvczigal_ref.files import atomic_write
from mvczigal_ref.pictures.sheets import contact_sheet

__all__ = ["save_turntable"]


# Format by the suffix of a file's name; all of them keep every pixel but GIF, of 256 colours.
_ANIMATED: dict[str, tuple[str, dict[str, Any]]] = {
    ".gif": ("GIF", {"disposal": 2}),
    ".png": ("PNG", {}),
    ".apng": ("PNG", {}),
    ".webp": ("WEBP", {"lossless": True}),
}


def save_turntable(
    path: Path,
    images: Float[Any, "view rgb height width"],
    azimuth_deg: Sequence[float],
    *,
    seconds: float = 4.0,
    scale: int = 1,
) -> None:
    """Write one object's views as an animation that turns around it without end.

    Views follow one another by azimuth. Each is shown for its share of the turn: half the way from
    the view before it plus half the way to the next.

    Args:
        path: File to write, ``.gif``, ``.png`` or ``.apng``, or ``.webp``; its folder is made.
        images: RGB, of torch or NumPy; values outside [0, 1] are clamped.
        azimuth_deg: Azimuth of each view's camera [deg].
        seconds: Duration of a turn [s]; positive.
        scale: Screen pixels along the edge of an image's pixel; at least 1.

    Raises:
        ValueError: If the suffix is unknown, the azimuths are not one per view, or ``seconds`` is
            not positive.
    """
    if path.suffix.lower() not in _ANIMATED:
        msg = f"`path` must end in {', '.join(_ANIMATED)}; got {path.name!r}."
        raise ValueError(msg)
    if len(azimuth_deg) != len(images):
        msg = f"`azimuth_deg` must hold one angle per view, {len(images)}; got {len(azimuth_deg)}."
        raise ValueError(msg)
    if not seconds > 0.0:
        msg = f"`seconds` must be positive; got {seconds!r}."
        raise ValueError(msg)
    order = sorted(range(len(images)), key=lambda view: azimuth_deg[view] % 360.0)
    angles = [azimuth_deg[view] % 360.0 for view in order]
    around = [angles[-1] - 360.0, *angles, angles[0] + 360.0]
    shares = [(after - before) / 720.0 for before, after in zip(around, around[2:], strict=False)]
    frames = [contact_sheet(images[view][None, None], scale=scale, gap=0) for view in order]
    kind, options = _ANIMATED[path.suffix.lower()]
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        kind,
        save_all=True,
        append_images=frames[1:],
        duration=[round(1000.0 * seconds * share) for share in shares],
        loop=0,
        **options,
    )
    atomic_write(path, buffer.getvalue())
