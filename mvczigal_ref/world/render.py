r"""Render the tiny world exactly, from any orthographic camera.

Every solid is convex with a closed-form ray interval, so a pixel is the mean of
a few rays and nothing is ever meshed. Geometry is rendered once, as three maps
(shaded body, shaded part, coverage); a colour is then a 3-term product.

Frames: the object stands at the origin, up is +z, its part points to +x before
the heading turns it about z. All lengths are world units.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.world.grammar import COLOURS, PARTS, SHAPES, Prompt

__all__ = [
    "BACKGROUND",
    "HALF_WIDTH",
    "IMAGE_SIZE",
    "Geometry",
    "Nuisance",
    "colour_maps",
    "paint",
    "render_maps",
]

BACKGROUND = 0.45
"""Grey level of every pixel that no surface covers [1]."""

HALF_WIDTH = 0.92
"""Half the width of the square that a camera sees [world units]."""

IMAGE_SIZE = 32
"""Pixels along an edge."""

_AMBIENT = 0.55  # brightness of a surface seen edge-on; facing the camera it is 1

Maps = Float[Tensor, "*batch 3 height width"]
Vector = Float[Tensor, "*rays 3"]
Interval = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Nuisance:
    """What a prompt leaves unsaid about the solid, one value a geometry."""

    size: Float[Tensor, " n"]
    """Radius of the ball; the other bodies scale with it [world units]."""

    part_height: Float[Tensor, " n"]
    """Height of the part's centre above the body's centre [sizes]."""

    part_radius: Float[Tensor, " n"]
    """Radius of the part [sizes]."""

    SIZE_RANGE = (0.50, 0.62)
    HEIGHT_RANGE = (-0.3, 0.3)
    RADIUS_RANGE = (0.40, 0.50)
    HEADINGS = (-45, 0, 45)

    def __len__(self) -> int:
        """Return the number of geometries."""
        return self.size.shape[0]

    @classmethod
    def sample(cls, n: int, generator: torch.Generator) -> "Nuisance":
        """Draw ``n`` nuisances, each uniform in its range."""
        u = torch.rand(3, n, generator=generator)
        ranges = (cls.SIZE_RANGE, cls.HEIGHT_RANGE, cls.RADIUS_RANGE)
        return cls(*(low + (high - low) * x for (low, high), x in zip(ranges, u, strict=True)))

    @classmethod
    def grid(cls, sizes: int = 5, heights: int = 6, radii: int = 3) -> "Nuisance":
        """Return every combination of evenly spaced values, cell centres of the ranges."""

        def centres(low_high: tuple[float, float], n: int) -> Tensor:
            low, high = low_high
            return low + (high - low) * (torch.arange(n) + 0.5) / n

        axes = (
            centres(cls.SIZE_RANGE, sizes),
            centres(cls.HEIGHT_RANGE, heights),
            centres(cls.RADIUS_RANGE, radii),
        )
        return cls(*(axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")))


@dataclass(frozen=True, slots=True)
class Geometry:
    """A body with a part: everything but colour and heading."""

    shape: str
    part: str
    nuisance: Nuisance


def _quadratic(a: Tensor, b: Tensor, c: Tensor) -> Interval:
    """Return where a t^2 + 2 b t + c <= 0, for a > 0; empty as (inf, -inf)."""
    disc = b * b - a * c
    hit = disc >= 0
    root = disc.clamp(min=0).sqrt()
    inf = torch.full_like(disc, math.inf)
    return torch.where(hit, (-b - root) / a, inf), torch.where(hit, (-b + root) / a, -inf)


def _slab(p: Tensor, d: Tensor, low: Tensor, high: Tensor) -> Interval:
    """Return where low <= p + t d <= high along one axis."""
    safe = torch.where(d.abs() < 1e-9, torch.full_like(d, 1e-9), d)
    one, two = (low - p) / safe, (high - p) / safe
    return torch.minimum(one, two), torch.maximum(one, two)


def _ellipsoid(p: Vector, d: Vector, axes: Tensor) -> tuple[Interval, Vector]:
    q, e = p / axes, d / axes
    interval = _quadratic((e * e).sum(-1), (q * e).sum(-1), (q * q).sum(-1) - 1)
    return interval, (q + interval[1][..., None].nan_to_num(0, 0, 0) * e) / axes


def _box(p: Vector, d: Vector, half: Tensor) -> tuple[Interval, Vector]:
    lows, highs = _slab(p, d, -half, half)
    far, axis = highs.min(-1)
    normal = torch.nn.functional.one_hot(axis, 3).to(p.dtype) * d.sign()
    return (lows.amax(-1), far), normal


def _cap(side: Interval, z: Interval, normal: Vector, d: Vector) -> tuple[Interval, Vector]:
    """Cut a solid of revolution by two planes; the nearer exit gives the normal."""
    up = torch.zeros_like(normal)
    up[..., 2] = d[..., 2].sign()
    normal = torch.where((z[1] < side[1])[..., None], up, normal)
    return (torch.maximum(side[0], z[0]), torch.minimum(side[1], z[1])), normal


def _can(p: Vector, d: Vector, radius: Tensor, half: Tensor) -> tuple[Interval, Vector]:
    (px, py, pz), (dx, dy, dz) = p.unbind(-1), d.unbind(-1)
    side = _quadratic(
        (dx * dx + dy * dy).clamp(min=1e-9), px * dx + py * dy, px * px + py * py - radius**2
    )
    t = side[1].nan_to_num(0, 0, 0)
    normal = torch.stack([px + t * dx, py + t * dy, torch.zeros_like(t)], -1)
    return _cap(side, _slab(pz, dz, -half, half), normal, d)


def _cone(
    p: Vector, d: Vector, slope: Tensor, bottom: Tensor, apex: Tensor
) -> tuple[Interval, Vector]:
    """Intersect x^2 + y^2 <= slope^2 (apex - z)^2 between ``bottom`` and ``apex``."""
    (px, py, pz), (dx, dy, dz) = p.unbind(-1), d.unbind(-1)
    k, z = slope**2, pz - apex
    a = dx * dx + dy * dy - k * dz * dz
    b = px * dx + py * dy - k * z * dz
    c = px * px + py * py - k * z * z
    steep = a <= 0  # the camera looks into the cone: one crossing bounds the lower half
    low, high = _quadratic(a.abs().clamp(min=1e-9), torch.where(steep, -b, b), torch.where(steep, -c, c))
    inf = torch.full_like(a, math.inf)
    # between the nappes -a t^2 - 2bt - c <= 0, so the lower half lies beyond one of the roots
    low, high = (
        torch.where(steep, torch.where(dz > 0, -inf, high), low),
        torch.where(steep, torch.where(dz > 0, low, inf), high),
    )
    t = high.nan_to_num(0, 0, 0)
    x, y, h = px + t * dx, py + t * dy, z + t * dz
    normal = torch.stack([x, y, -k * h], -1)
    return _cap((low, high), _slab(pz, dz, bottom, apex), normal, d)


def _body(shape: str, p: Vector, d: Vector, size: Tensor) -> tuple[Interval, Vector]:
    if shape == "ball":
        return _ellipsoid(p, d, size[..., None].expand_as(p))
    if shape == "cube":
        return _box(p, d, 0.8 * size[..., None].expand_as(p))
    if shape == "can":
        return _can(p, d, 0.72 * size, 0.95 * size)
    slope = torch.full_like(size, _CONE_BASE / (_CONE_APEX + _CONE_FLOOR))
    return _cone(p, d, slope, -_CONE_FLOOR * size, _CONE_APEX * size)


_CONE_BASE, _CONE_FLOOR, _CONE_APEX = 0.95, 0.85, 0.95


def _surface(shape: str, height: Tensor) -> Tensor:
    """Return the body's extent towards +x at a height [both in sizes]."""
    if shape == "ball":
        return (1 - height**2).sqrt()
    if shape == "cone":
        return _CONE_BASE * (_CONE_APEX - height) / (_CONE_APEX + _CONE_FLOOR)
    return torch.full_like(height, 0.8 if shape == "cube" else 0.72)


def _shade(normal: Vector, towards: Vector) -> Tensor:
    """Return the brightness of a surface lit from the camera."""
    facing = torch.nn.functional.normalize(normal, dim=-1, eps=1e-6) * towards
    return _AMBIENT + (1 - _AMBIENT) * facing.sum(-1).clamp(0, 1)


def _rays(size: int, half_width: float, supersample: int) -> tuple[Tensor, Tensor]:
    """Return the plane coordinates of every sub-pixel, row by row, top row first."""
    n = size * supersample
    line = (torch.arange(n) + 0.5) / n * 2 * half_width - half_width
    y, x = torch.meshgrid(-line, line, indexing="ij")
    return x.flatten(), y.flatten()


_CHUNK = 4  # geometries cast at once: their rays stay in the cache


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

    A camera at azimuth :math:`\phi`, elevation :math:`\theta` looks along
    :math:`-(\cos\theta\cos\phi, \cos\theta\sin\phi, \sin\theta)`; at
    :math:`\phi = 0` it faces the part.

    Args:
        geometry: Bodies and parts, one a nuisance.
        azimuth_deg: Camera azimuth minus heading [degrees].
        elevation_deg: Camera elevation [degrees], 0 if absent.
        image_size: Pixels along an edge.
        half_width: Half the frame [world units].
        supersample: Rays along a pixel's edge.

    Returns:
        Shaded body, shaded part, and coverage, each in [0, 1].

    Raises:
        ValueError: If the shape or part is not one of the grammar's.
    """
    if geometry.shape not in SHAPES or geometry.part not in PARTS:
        msg = f"`geometry` must name a shape of {SHAPES} and a part of {PARTS}; got {geometry}."
        raise ValueError(msg)
    nuisance = geometry.nuisance
    if len(nuisance) > _CHUNK:
        parts = zip(
            *(x.split(_CHUNK) for x in (nuisance.size, nuisance.part_height, nuisance.part_radius)),
            strict=True,
        )
        return torch.cat(
            [
                render_maps(
                    Geometry(geometry.shape, geometry.part, Nuisance(*part)),
                    azimuth_deg,
                    elevation_deg,
                    image_size=image_size,
                    half_width=half_width,
                    supersample=supersample,
                )
                for part in parts
            ]
        )
    phi = torch.deg2rad(azimuth_deg)[:, None]
    theta = torch.zeros_like(phi) if elevation_deg is None else torch.deg2rad(elevation_deg)[:, None]
    zero = torch.zeros_like(phi)
    towards = torch.stack([theta.cos() * phi.cos(), theta.cos() * phi.sin(), theta.sin()], -1)
    right = torch.stack([-phi.sin(), phi.cos(), zero], -1)
    up = torch.stack([-theta.sin() * phi.cos(), -theta.sin() * phi.sin(), theta.cos()], -1)
    x, y = _rays(image_size, half_width, supersample)
    origin = (x[:, None] * right + y[:, None] * up)[None]  # (1, view, ray, 3)
    towards = towards[None].expand_as(origin)

    size, height, radius = (
        v[:, None, None] for v in (geometry.nuisance.size, geometry.nuisance.part_height,
                                   geometry.nuisance.part_radius)
    )  # fmt: skip
    centre = torch.stack([0.9 * _surface(geometry.shape, height), 0 * height, height], -1)
    axes = torch.tensor([1.0, 1.0, 1.0] if geometry.part == "nose" else [0.72, 0.72, 1.44])
    n = len(geometry.nuisance)
    origin, towards = origin.expand(n, -1, -1, -1), towards.expand(n, -1, -1, -1)
    body, body_normal = _body(geometry.shape, origin, towards, size)
    part, part_normal = _ellipsoid(
        origin - size[..., None] * centre, towards, (size * radius)[..., None] * axes
    )
    body_hit, part_hit = body[1] >= body[0], part[1] >= part[0]
    depth = torch.where(body_hit, body[1], -math.inf)
    part_front = part_hit & (part[1] > depth)
    body_front = body_hit & ~part_front
    maps = torch.stack(
        [
            _shade(body_normal, towards) * body_front,
            _shade(part_normal, towards) * part_front,
            (body_front | part_front).to(origin.dtype),
        ],
        2,
    )
    n_views = azimuth_deg.shape[0]
    fine = maps.view(n * n_views, 3, image_size * supersample, image_size * supersample)
    coarse = torch.nn.functional.avg_pool2d(fine, supersample)
    return coarse.view(n, n_views, 3, image_size, image_size)


def colour_maps(prompt: Prompt) -> Float[Tensor, "3 rgb"]:
    """Return what each map adds to a pixel above the background [RGB]."""
    grey = (-BACKGROUND,) * 3
    return torch.tensor([COLOURS[prompt.body_colour], COLOURS[prompt.part_colour], grey])


def paint(maps: Maps, colours: Float[Tensor, "*#batch 3 rgb"]) -> Float[Tensor, "*batch rgb height width"]:
    """Colour rendered maps.

    Args:
        maps: From :func:`render_maps`.
        colours: From :func:`colour_maps`.

    Returns:
        Images in [0, 1].
    """
    return BACKGROUND + torch.einsum("...mhw,...mc->...chw", maps, colours)
