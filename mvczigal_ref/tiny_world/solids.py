r"""Solids of the tiny world: the point at which a ray leaves one, and the normal there.

A ray is :math:`p + t d`, with :math:`d` towards the camera, so the camera sees the point at which
the ray leaves. Vectors have their components on the first axis; rays are all later axes. Lengths
are in world units.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["Exit", "Vector", "body_exit", "body_reach", "ellipsoid_exit"]

Vector = Float[Tensor, "xyz *#rays"]
"""Positions, directions or normals; axes of size 1 broadcast."""


Exit = tuple[Bool[Tensor, "*rays"], Float[Tensor, "*rays"], Vector]
"""Hit of a ray, its t where it leaves the solid [world units], and the outward normal there."""


_Interval = tuple[Tensor, Tensor]


_CUBE, _CAN_RADIUS, _CAN_HALF = 0.8, 0.72, 0.95  # in sizes, like the next line


_CONE_BASE, _CONE_FLOOR, _CONE_APEX = 0.95, 0.85, 0.95


def body_exit(shape: str, p: Vector, d: Vector, size: Float[Tensor, "*#rays"]) -> Exit:
    r"""Find where rays leave a body.

    .. math::

        \text{ball}\ |x| \le s \qquad \text{cube}\ \max|x_i| \le 0.8 s \qquad
        \text{can}\ \rho \le 0.72 s,\ |z| \le 0.95 s \qquad
        \text{cone}\ \tfrac{\rho}{0.95} \le \tfrac{0.95 s - z}{0.95 + 0.85},\ z \ge -0.85 s

    with :math:`\rho` the distance from the axis of z and :math:`s` the size.

    Args:
        shape: ``ball``, ``cube``, ``can`` or ``cone``.
        p: A point of each ray [world units].
        d: Unit vector towards the camera [1].
        size: Size of the body [world units]; positive.

    Returns:
        Hit, exit and normal; the last two mean nothing where the ray misses.

    Examples:
        >>> p, d = torch.zeros(3, 1), torch.tensor([[1.0], [0.0], [0.0]])
        >>> body_exit("cube", p, d, torch.tensor([0.5]))[1]
        tensor([0.4000])
    """
    if shape == "ball":
        return ellipsoid_exit(p, d, size.expand(3, *size.shape))
    if shape == "cube":
        return _box(p, d, _CUBE * size)
    if shape == "can":
        return _can(p, d, _CAN_RADIUS * size, _CAN_HALF * size)
    slope = _CONE_BASE / (_CONE_APEX + _CONE_FLOOR)
    return _cone(p, d, slope, -_CONE_FLOOR * size, _CONE_APEX * size)


def body_reach(shape: str, height: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return how far a body of size 1 extends towards +x at a height.

    Args:
        shape: ``ball``, ``cube``, ``can`` or ``cone``.
        height: Height above the origin, inside the body [sizes].

    Returns:
        Distance from the axis of z to the surface [sizes].

    Examples:
        >>> body_reach("ball", torch.tensor(0.6))
        tensor(0.8000)
    """
    if shape == "ball":
        return (1 - height**2).sqrt()
    if shape == "cone":
        return _CONE_BASE * (_CONE_APEX - height) / (_CONE_APEX + _CONE_FLOOR)
    return torch.full_like(height, _CUBE if shape == "cube" else _CAN_RADIUS)


def ellipsoid_exit(p: Vector, d: Vector, axes: Vector) -> Exit:
    r"""Find where rays leave an ellipsoid about the origin.

    .. math:: \textstyle\sum_i (x_i / a_i)^2 \le 1

    Args:
        p: A point of each ray [world units].
        d: Unit vector towards the camera [1].
        axes: Half axes along x, y and z [world units]; positive.

    Returns:
        Hit, exit and normal; the last two mean nothing where the ray misses.

    Examples:
        >>> p, d = torch.zeros(3, 1), torch.tensor([[0.0], [0.0], [1.0]])
        >>> ellipsoid_exit(p, d, torch.tensor([[1.0], [1.0], [2.0]]))[1]
        tensor([2.])
    """
    q, e = p / axes, d / axes
    low, high = _quadratic((e * e).sum(0), (q * e).sum(0), (q * q).sum(0) - 1)
    return high >= low, high, (q + _finite(high) * e) / axes


def _finite(t: Tensor) -> Tensor:
    """Put 0 where there is no crossing, so that nothing after it is NaN."""
    return t.nan_to_num(0, 0, 0)


def _quadratic(a: Tensor, b: Tensor, c: Tensor) -> _Interval:
    """Return the interval of a t^2 + 2 b t + c <= 0, for a > 0; (inf, -inf) if empty."""
    disc = b * b - a * c
    root = disc.clamp(min=0).sqrt()
    # The sum that does not cancel gives one root; their product c / a gives the other.
    q = -(b + torch.copysign(root, b))
    one, two = q / a, c / torch.where(q == 0, torch.ones_like(q), q)
    hit = disc >= 0
    low = torch.where(hit, torch.minimum(one, two), math.inf)
    return low, torch.where(hit, torch.maximum(one, two), -math.inf)


def _slab(p: Tensor, d: Tensor, low: Tensor, high: Tensor) -> _Interval:
    """Return the interval of t with low <= p + t d <= high along one axis."""
    safe = torch.where(d.abs() < 1e-9, torch.full_like(d, 1e-9), d)
    one, two = (low - p) / safe, (high - p) / safe
    return torch.minimum(one, two), torch.maximum(one, two)


def _box(p: Vector, d: Vector, half: Tensor) -> Exit:
    """Leave a cube through the face whose plane comes first."""
    lows, highs = _slab(p, d, -half, half)
    high, axis = highs.min(0)
    face = torch.arange(3, device=p.device).view(3, *(1,) * axis.ndim) == axis
    return high >= lows.amax(0), high, face * d.sign()


def _cap(side: _Interval, z: _Interval, normal: Vector, d: Vector) -> Exit:
    """Cut a solid of revolution by two planes; the nearer exit gives the normal."""
    up = torch.zeros_like(normal)
    up[2] = d[2].sign()
    low, high = torch.maximum(side[0], z[0]), torch.minimum(side[1], z[1])
    return high >= low, high, torch.where(z[1] < side[1], up, normal)


def _can(p: Vector, d: Vector, radius: Tensor, half: Tensor) -> Exit:
    (px, py, pz), (dx, dy, dz) = p, d
    along = (dx * dx + dy * dy).clamp(min=1e-9)  # 0 from straight above: no side is seen
    side = _quadratic(along, px * dx + py * dy, px * px + py * py - radius**2)
    t = _finite(side[1])
    normal = torch.stack([px + t * dx, py + t * dy, torch.zeros_like(t)])
    return _cap(side, _slab(pz, dz, -half, half), normal, d)


def _cone(p: Vector, d: Vector, slope: float, bottom: Tensor, apex: Tensor) -> Exit:
    """Leave x^2 + y^2 <= slope^2 (apex - z)^2 between ``bottom`` and ``apex``."""
    (px, py, pz), (dx, dy, dz) = p, d
    k, z = slope**2, pz - apex
    a = dx * dx + dy * dy - k * dz * dz
    b = px * dx + py * dy - k * z * dz
    c = px * px + py * py - k * z * z
    # A camera that looks into the cone sees -f <= 0 between the two nappes, and the lower nappe
    # beyond one of the crossings.
    steep = a <= 0
    low, high = _quadratic(
        a.abs().clamp(min=1e-9), torch.where(steep, -b, b), torch.where(steep, -c, c)
    )
    rising = dz > 0
    low, high = (
        torch.where(steep, torch.where(rising, -math.inf, high), low),
        torch.where(steep, torch.where(rising, low, math.inf), high),
    )
    t = _finite(high)
    normal = torch.stack([px + t * dx, py + t * dy, -k * (z + t * dz)])
    return _cap((low, high), _slab(pz, dz, bottom, apex), normal, d)
