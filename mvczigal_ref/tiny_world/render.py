r"""Render the tiny world exactly, from any orthographic camera.

Every solid is convex with a closed-form ray interval, so a pixel is the mean of
a few rays and nothing is ever meshed. Geometry is rendered once, as three maps
(shaded body, shaded part, coverage); a colour is then a 3-term product.

Frames: the object stands at the origin, up is +z, its part points to +x before
the heading turns it about z. All lengths are world units.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.tiny_world.grammar import COLOURS, PARTS, SHAPES, Prompt
from mvczigal_ref.tiny_world.solids import Vector, body_exit, body_reach, ellipsoid_exit

__all__ = [
    "AMBIENT",
    "BACKGROUND",
    "HALF_WIDTH",
    "IMAGE_SIZE",
    "Geometry",
    "Nuisance",
    "colour_maps",
    "paint",
    "render_maps",
]

BACKGROUND: Final = 0.45
"""Grey level of every pixel that no surface covers [1]."""


HALF_WIDTH: Final = 0.92
"""Half the edge of the square that a camera sees [world units]."""


IMAGE_SIZE: Final = 32
"""Pixels along an edge of an image."""


AMBIENT: Final = 0.55
"""Brightness of a surface seen edge-on [1]; a surface that faces the camera has 1."""


_AXES = {"nose": (1.0, 1.0, 1.0), "fin": (0.72, 0.72, 1.44)}  # half axes of the part [part radii]


_SUNK = 0.9  # distance of the part's centre from the axis, relative to the body's reach


_CHUNK = 4  # geometries cast at once, so that their rays fit in the processor's cache


@dataclass(frozen=True, slots=True)
class Nuisance:
    """Measures of the solids that prompts leave open, one value per geometry."""

    size: Float[Tensor, " n"]
    """Radius of the ball; the other bodies scale with it [world units]."""

    part_height: Float[Tensor, " n"]
    """Height of the part's centre above the body's centre [sizes]."""

    part_radius: Float[Tensor, " n"]
    """Radius of the part [sizes]."""

    SIZE_RANGE: ClassVar[tuple[float, float]] = (0.50, 0.62)
    HEIGHT_RANGE: ClassVar[tuple[float, float]] = (-0.3, 0.3)
    RADIUS_RANGE: ClassVar[tuple[float, float]] = (0.40, 0.50)
    HEADINGS: ClassVar[tuple[int, ...]] = (-45, 0, 45)

    def __len__(self) -> int:
        """Return the number of geometries."""
        return self.size.shape[0]

    @classmethod
    def sample(cls, n: int, generator: torch.Generator) -> "Nuisance":
        """Draw nuisances, each value uniform in its range.

        Args:
            n: Number of geometries [1].
            generator: CPU generator of the draws.

        Returns:
            ``n`` independent draws, fp32.
        """
        u = torch.rand(3, n, generator=generator)
        ranges = (cls.SIZE_RANGE, cls.HEIGHT_RANGE, cls.RADIUS_RANGE)
        return cls(*(low + (high - low) * x for (low, high), x in zip(ranges, u, strict=True)))

    @classmethod
    def grid(cls, sizes: int = 5, heights: int = 6, radii: int = 3) -> "Nuisance":
        """Combine evenly spaced values: every range is cut into cells, whose centres are taken.

        Args:
            sizes: Number of sizes [1].
            heights: Number of heights of the part [1].
            radii: Number of radii of the part [1].

        Returns:
            ``sizes * heights * radii`` geometries, fp32.

        Examples:
            >>> len(Nuisance.grid())
            90
        """

        def centres(low_high: tuple[float, float], n: int) -> Tensor:
            low, high = low_high
            return low + (high - low) * (torch.arange(n) + 0.5) / n

        axes = (
            centres(cls.SIZE_RANGE, sizes),
            centres(cls.HEIGHT_RANGE, heights),
            centres(cls.RADIUS_RANGE, radii),
        )
        return cls(*(axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")))

    def split(self, n: int) -> "Iterator[Nuisance]":
        """Yield the geometries in order, at most ``n`` at a time."""
        fields = (self.size, self.part_height, self.part_radius)
        for parts in zip(*(field.split(n) for field in fields), strict=True):
            yield Nuisance(*parts)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Bodies of one shape with one kind of part, without colour and heading."""

    shape: str
    """Shape of every body, one of ``SHAPES``."""

    part: str
    """Kind of every part, one of ``PARTS``."""

    nuisance: Nuisance
    """Sizes and places, one entry per body."""


def render_maps(
    geometry: Geometry,
    azimuth_deg: Float[Tensor, " view"],
    elevation_deg: Float[Tensor, " view"] | None = None,
    *,
    image_size: int = IMAGE_SIZE,
    half_width: float = HALF_WIDTH,
    supersample: int = 2,
) -> Float[Tensor, "n view 3 height width"]:
    r"""Render geometries as colour-free maps, from cameras relative to the heading.

    A camera at azimuth :math:`\phi`, elevation :math:`\theta` stands towards
    :math:`d = (\cos\theta\cos\phi, \cos\theta\sin\phi, \sin\theta)`; at
    :math:`\phi = 0` it faces the part. A surface of unit normal :math:`n` has brightness

    .. math:: 0.55 + 0.45 \max(0, n \cdot d)

    Args:
        geometry: Bodies and parts, in fp32 or fp64; the maps have the same dtype.
        azimuth_deg: Camera azimuth minus heading [degrees].
        elevation_deg: Camera elevation [degrees]; 0 if absent.
        image_size: Pixels along an edge.
        half_width: Half the edge of the frame [world units].
        supersample: Rays along a pixel's edge [1].

    Returns:
        Shaded body, shaded part, and coverage, each in [0, 1].

    Raises:
        ValueError: If the shape or part is not one of the grammar's.

    Examples:
        >>> ball = Geometry("ball", "nose", Nuisance.grid(1, 1, 1))
        >>> maps = render_maps(ball, torch.tensor([0.0, 180.0]))
        >>> maps.shape, maps[0, 1, 1].max()
        (torch.Size([1, 2, 3, 32, 32]), tensor(0.))
    """
    if geometry.shape not in SHAPES or geometry.part not in PARTS:
        msg = (
            f"`geometry` must name a shape of {SHAPES} and a part of {PARTS}; got "
            f"{geometry.shape!r} and {geometry.part!r}."
        )
        raise ValueError(msg)
    like = geometry.nuisance.size
    phi = torch.deg2rad(azimuth_deg.to(like))
    theta = torch.zeros_like(phi) if elevation_deg is None else elevation_deg.to(like).deg2rad()
    zero = torch.zeros_like(phi)
    towards = torch.stack([theta.cos() * phi.cos(), theta.cos() * phi.sin(), theta.sin()])
    right = torch.stack([-phi.sin(), phi.cos(), zero])
    up = torch.stack([-theta.sin() * phi.cos(), -theta.sin() * phi.sin(), theta.cos()])
    x, y = _plane(image_size * supersample, half_width, like)
    origin = x * right[..., None] + y * up[..., None]  # (xyz, view, ray)
    maps = torch.cat(
        [
            _cast(geometry.shape, geometry.part, some, origin[:, None], towards[:, None, :, None])
            for some in geometry.nuisance.split(_CHUNK)
        ]
    )
    fine = maps.view(-1, 3, image_size * supersample, image_size * supersample)
    coarse = torch.nn.functional.avg_pool2d(fine, supersample)
    return coarse.view(len(geometry.nuisance), -1, 3, image_size, image_size)


def _plane(n: int, half_width: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the image-plane coordinates of n x n rays, row by row, top row first."""
    line = (torch.arange(n).to(like) + 0.5) / n * 2 * half_width - half_width
    y, x = torch.meshgrid(-line, line, indexing="ij")
    return x.flatten(), y.flatten()


def _cast(
    shape: str, part: str, nuisance: Nuisance, origin: Vector, towards: Vector
) -> Float[Tensor, "n view 3 ray"]:
    """Cast every ray at every geometry; the solid that the ray leaves last hides the other."""
    size, height, radius = (
        value[:, None, None]
        for value in (nuisance.size, nuisance.part_height, nuisance.part_radius)
    )
    centre = torch.stack([_SUNK * body_reach(shape, height), torch.zeros_like(height), height])
    axes = size.new_tensor(_AXES[part])[:, None, None, None]
    body_hit, body_depth, body_normal = body_exit(shape, origin, towards, size)
    part_hit, part_depth, part_normal = ellipsoid_exit(
        origin - size * centre, towards, size * radius * axes
    )
    part_front = part_hit & ~(body_hit & (body_depth >= part_depth))
    body_front = body_hit & ~part_front
    layers = [
        _shade(body_normal, towards) * body_front,
        _shade(part_normal, towards) * part_front,
        (body_front | part_front).to(size.dtype),
    ]
    return torch.stack(layers, 2)


def _shade(normal: Vector, towards: Vector) -> Float[Tensor, "*rays"]:
    """Return the brightness of a surface lit from the camera."""
    length = (normal * normal).sum(0).sqrt().clamp(min=1e-6)
    facing = (normal * towards).sum(0) / length
    return AMBIENT + (1 - AMBIENT) * facing.clamp(0, 1)


def colour_maps(prompt: Prompt) -> Float[Tensor, "3 rgb"]:
    """Return the colour that each map adds to the background.

    Args:
        prompt: Meaning of a sentence.

    Returns:
        The body's colour, the part's colour, and minus the background, which the
        covered share of a pixel loses [RGB].

    Examples:
        >>> prompt = Prompt(body_colour="red", shape="ball", part_colour="white", part="nose")
        >>> colour_maps(prompt)[1]
        tensor([0.9800, 0.9800, 0.9800])
    """
    grey = (-BACKGROUND,) * 3
    return torch.tensor([COLOURS[prompt.body_colour], COLOURS[prompt.part_colour], grey])


def paint(
    maps: Float[Tensor, "*batch 3 height width"], colours: Float[Tensor, "*#batch 3 rgb"]
) -> Float[Tensor, "*batch rgb height width"]:
    r"""Colour rendered maps.

    .. math:: x = \text{background} + \sum_m \text{colour}_m \, \text{map}_m

    Args:
        maps: From :func:`render_maps`. Gradient flows.
        colours: From :func:`colour_maps`. Gradient flows.

    Returns:
        Images in [0, 1], in the dtype of ``maps``.

    Examples:
        >>> paint(torch.zeros(3, 1, 1), torch.ones(3, 3)).flatten()
        tensor([0.4500, 0.4500, 0.4500])
    """
    return BACKGROUND + torch.einsum("...mhw,...mc->...chw", maps, colours.to(maps))
