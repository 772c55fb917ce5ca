"""Orthographic cameras around an object, and the camera maps that a network takes.

World axes are right-handed with z up. A camera looks at the origin; its own axes are right, up
and backwards, as in Blender. Any number of views.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.shapes import PluckerMap

__all__ = [
    "PAPER_RIG",
    "CameraMatrix",
    "OrthographicRig",
    "camera_image",
    "camera_to_world",
    "plucker_map",
    "projection_matrix",
    "world_to_camera",
]

CameraMatrix = Float[Tensor, "view 4 4"]
"""One homogeneous matrix per view."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OrthographicRig:
    """Position of each camera, and the box that all of them see."""

    azimuth_deg: tuple[float, ...]
    """Angle of each camera about +z from +x, counter-clockwise seen from above [deg]."""

    elevation_deg: tuple[float, ...]
    """Angle of each camera above the horizontal plane [deg], in [-90, 90]."""

    distance: tuple[float, ...]
    """Distance of each camera from the origin [world units]; positive."""

    half_width: float = 0.55
    """Half the side of the visible square [world units]; positive."""

    near: float = 0.1
    """Nearest visible depth [world units]."""

    far: float = 100.0
    """Farthest visible depth [world units]; above ``near``."""

    def __post_init__(self) -> None:
        """Refuse a rig that could take no picture.

        Raises:
            ValueError: If a field is outside its range or lengths differ.
        """
        if not self.azimuth_deg:
            msg = "`azimuth_deg` must name at least one view; got none."
            raise ValueError(msg)
        for name in ("elevation_deg", "distance"):
            length = len(getattr(self, name))
            if length != self.num_views:
                msg = (
                    f"`{name}` must have one entry per view, {self.num_views} as `azimuth_deg`; "
                    f"got {length}."
                )
                raise ValueError(msg)
        if not all(math.isfinite(angle) for angle in self.azimuth_deg):
            msg = f"`azimuth_deg` must be finite; got {self.azimuth_deg}."
            raise ValueError(msg)
        if not all(-90.0 <= angle <= 90.0 for angle in self.elevation_deg):
            msg = f"`elevation_deg` must be in [-90, 90]; got {self.elevation_deg}."
            raise ValueError(msg)
        if not all(0.0 < distance < math.inf for distance in self.distance):
            msg = f"`distance` must be positive and finite; got {self.distance}."
            raise ValueError(msg)
        if not 0.0 < self.half_width < math.inf:
            msg = f"`half_width` must be positive and finite; got {self.half_width}."
            raise ValueError(msg)
        if not -math.inf < self.near < self.far < math.inf:
            msg = f"`near` must be below `far` = {self.far}, both finite; got {self.near}."
            raise ValueError(msg)

    @property
    def num_views(self) -> int:
        """Number of cameras [views]."""
        return len(self.azimuth_deg)


PAPER_RIG: Final = OrthographicRig(
    azimuth_deg=(-90.0, -45.0, 0.0, 90.0, 180.0, 225.0),
    elevation_deg=(0.0,) * 6,
    distance=(1.8,) * 6,
)
"""The six cameras of arXiv:2412.03632 and arXiv:2505.20107: front, front right, right, back, ..."""


def camera_to_world(
    rig: OrthographicRig,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> CameraMatrix:
    r"""Return the pose of every camera: its axes as columns, then its position.

    .. math::

        r = (-\sin\alpha, \cos\alpha, 0),\quad
        u = (-\sin\epsilon\cos\alpha, -\sin\epsilon\sin\alpha, \cos\epsilon),\quad
        b = (\cos\epsilon\cos\alpha, \cos\epsilon\sin\alpha, \sin\epsilon),\quad p = d\,b

    Source:
        Spherical coordinates in closed form, which a camera straight above does not break; the
        released code of arXiv:2412.03632 goes through a look-at product in fp32.

    Args:
        rig: The cameras.
        dtype: dtype of the result; trigonometry is always in float64.
        device: Device of the result.

    Returns:
        Camera-to-world matrices, columns right, up, backwards, position [world units].

    Examples:
        >>> front = OrthographicRig(azimuth_deg=(0.0,), elevation_deg=(0.0,), distance=(2.0,))
        >>> camera_to_world(front)[0, :3, 3]
        tensor([2., 0., 0.])
    """
    azimuth, elevation = (
        torch.tensor(angle, dtype=torch.float64).deg2rad()
        for angle in (rig.azimuth_deg, rig.elevation_deg)
    )
    sin_a, cos_a, sin_e, cos_e = azimuth.sin(), azimuth.cos(), elevation.sin(), elevation.cos()
    right = torch.stack([-sin_a, cos_a, torch.zeros_like(sin_a)], dim=-1)
    up = torch.stack([-sin_e * cos_a, -sin_e * sin_a, cos_e], dim=-1)
    back = torch.stack([cos_e * cos_a, cos_e * sin_a, sin_e], dim=-1)
    position = back * torch.tensor(rig.distance, dtype=torch.float64)[:, None]
    top = torch.stack([right, up, back, position], dim=-1)
    return _homogeneous(top).to(device=device, dtype=dtype)


def world_to_camera(
    rig: OrthographicRig,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> CameraMatrix:
    r"""Return the inverse of every camera's pose.

    .. math:: \begin{pmatrix} R & p \\ 0 & 1 \end{pmatrix}^{-1}
        = \begin{pmatrix} R^\top & -R^\top p \\ 0 & 1 \end{pmatrix}

    Source:
        Inverse of a rigid motion; no solve, no rounding beyond ``dtype``'s.

    Args:
        rig: The cameras.
        dtype: dtype of the result.
        device: Device of the result.

    Returns:
        World-to-camera matrices; the origin lands at depth -distance.

    Examples:
        >>> front = OrthographicRig(azimuth_deg=(0.0,), elevation_deg=(0.0,), distance=(2.0,))
        >>> world_to_camera(front)[0, 2, 3]
        tensor(-2.)
    """
    pose = camera_to_world(rig, dtype=torch.float64)
    rotation = pose[:, :3, :3].mT
    top = torch.cat([rotation, -rotation @ pose[:, :3, 3:]], dim=-1)
    return _homogeneous(top).to(device=device, dtype=dtype)


def projection_matrix(
    rig: OrthographicRig,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> CameraMatrix:
    r"""Return the map from camera space to the unit cube.

    .. math:: \mathrm{diag}\Big(\tfrac1w, -\tfrac1w, \tfrac{-2}{f-n}, 1\Big),\quad
        P_{23} = -\frac{f+n}{f-n}

    Source:
        OpenGL's orthographic matrix with y pointing down the image, as the released code of
        arXiv:2412.03632.

    Args:
        rig: The cameras; all share one frustum, repeated for every view.
        dtype: dtype of the result.
        device: Device of the result.

    Returns:
        One projection per view; x to the right and y down the image, both in [-1, 1].

    Examples:
        >>> projection_matrix(PAPER_RIG)[0].diagonal()
        tensor([ 1.8182, -1.8182, -0.0200,  1.0000])
    """
    depth = rig.far - rig.near
    scale = [1.0 / rig.half_width, -1.0 / rig.half_width, -2.0 / depth, 1.0]
    projection = torch.tensor(scale, dtype=torch.float64).diag()
    projection[2, 3] = -(rig.far + rig.near) / depth
    return projection.expand(rig.num_views, 4, 4).to(device=device, dtype=dtype).contiguous()


def plucker_map(
    rig: OrthographicRig,
    *,
    height: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> PluckerMap:
    r"""Return direction and position of the ray of each pixel of each view.

    .. math:: m = (-b,\ p/\lVert p \rVert)

    where :math:`b` points backwards out of the camera and :math:`p` is its position.

    Source:
        Huang et al. (MV-Adapter), arXiv:2412.03632, and its released code: rays of an
        orthographic camera are parallel, so the map is constant over pixels; distance and
        frustum do not enter.

    Args:
        rig: The cameras.
        height: Rows of the map [pixels]; positive.
        width: Columns of the map [pixels]; positive.
        dtype: dtype of the result.
        device: Device of the result.

    Returns:
        Three channels of view direction, three of normalised position, each in [-1, 1].

    Raises:
        ValueError: If ``height`` or ``width`` is not positive.

    Examples:
        >>> plucker_map(PAPER_RIG, height=1, width=1)[2, 3:, 0, 0]
        tensor([1., 0., 0.])
    """
    for name, size in (("height", height), ("width", width)):
        if size < 1:
            msg = f"`{name}` must be at least 1 pixel; got {size}."
            raise ValueError(msg)
    pose = camera_to_world(rig, dtype=torch.float64)
    direction, position = -pose[:, :3, 2], pose[:, :3, 3]
    channels = torch.cat([direction, position / position.norm(dim=-1, keepdim=True)], dim=-1)
    repeated = channels[:, :, None, None].expand(-1, -1, height, width)
    return repeated.to(device=device, dtype=dtype).contiguous()


def camera_image(
    rig: OrthographicRig,
    *,
    height: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> PluckerMap:
    r"""Return the camera map rescaled to an image, the input of the camera encoder.

    .. math:: \mathrm{clamp}\big(\tfrac{m + 1}{2}, 0, 1\big)

    Source:
        Released pipeline of arXiv:2412.03632. No deviation.

    Args:
        rig: The cameras.
        height: Rows of the image [pixels]; positive.
        width: Columns of the image [pixels]; positive.
        dtype: dtype of the result.
        device: Device of the result.

    Returns:
        Six channels per view, each in [0, 1].

    Raises:
        ValueError: If ``height`` or ``width`` is not positive.

    Examples:
        >>> camera_image(PAPER_RIG, height=1, width=1)[2, :, 0, 0]
        tensor([0.0000, 0.5000, 0.5000, 1.0000, 0.5000, 0.5000])
    """
    rays = plucker_map(rig, height=height, width=width, dtype=dtype, device=device)
    return ((rays + 1.0) / 2.0).clamp(0.0, 1.0)


def _homogeneous(top: Tensor) -> Tensor:
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=top.dtype, device=top.device)
    return torch.cat([top, bottom.expand(top.shape[0], 1, 4)], dim=-2)
