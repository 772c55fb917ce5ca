"""A ray-caster of one ray at a time in plain floats; it shares no formula with the renderer.

A solid is a convex function that is at most 0 inside. Along a ray such a function first falls and
then rises, so its lowest point and then its last root are found by searching.
"""

import math
from dataclasses import dataclass
from functools import cached_property

from mvczigal_ref.tiny_world.grammar import COLOURS, Prompt

PART_AXES = {"nose": (1.0, 1.0, 1.0), "fin": (0.72, 0.72, 1.44)}
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, kw_only=True)
class Solid:
    """A body of one size with one part."""

    shape: str
    part: str
    size: float
    part_height: float
    part_radius: float

    def body(self, x, y, z):
        """Be at most 0 inside the body."""
        s, rho = self.size, math.hypot(x, y)
        if self.shape == "ball":
            return math.sqrt(x * x + y * y + z * z) - s
        if self.shape == "cube":
            return max(abs(x), abs(y), abs(z)) - 0.8 * s
        if self.shape == "can":
            return max(rho - 0.72 * s, abs(z) - 0.95 * s)
        # From an apex at 0.95 s down to a base of radius 0.95 s at -0.85 s.
        return max(rho / 0.95 - (0.95 * s - z) / 1.8, -0.85 * s - z)

    def ellipsoid(self, x, y, z):
        """Be at most 0 inside the part, which lies 0.9 of the way out along +x."""
        cx, cz, a, b, c = self.place
        return math.sqrt(((x - cx) / a) ** 2 + (y / b) ** 2 + ((z - cz) / c) ** 2) - 1

    @cached_property
    def place(self):
        """Give the part's centre in x and z, and its half axes."""
        cz = self.size * self.part_height
        reach = last_root(lambda t: self.body(t, 0.0, cz), 0.0, 3.0)
        return 0.9 * reach, cz, *(self.size * self.part_radius * x for x in PART_AXES[self.part])


def last_root(f, inside, outside):
    """Halve until the crossing between a point inside and one outside is known."""
    for _ in range(60):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if f(middle) <= 0 else (inside, middle)
    return inside


def lowest(f, low, high):
    """Find the lowest point of a convex function."""
    for _ in range(70):
        one, two = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        low, high = (low, two) if f(one) <= f(two) else (one, high)
    return (low + high) / 2


def leave(solid, origin, direction):
    """Tell where a ray leaves a solid and how squarely the camera sees it, or None."""

    def at(t):
        return solid(*(o + t * d for o, d in zip(origin, direction, strict=True)))

    start = lowest(at, -3.0, 3.0)
    if at(start) > 0:
        return None
    t = last_root(at, start, 4.0)
    point = [o + t * d for o, d in zip(origin, direction, strict=True)]
    slope = []
    for axis in range(3):
        ends = ([p + (i == axis) * h for i, p in enumerate(point)] for h in (1e-6, -1e-6))
        up, down = (solid(*end) for end in ends)
        slope.append((up - down) / 2e-6)
    facing = sum(n * d for n, d in zip(slope, direction, strict=True)) / math.hypot(*slope)
    return t, 0.55 + 0.45 * min(1.0, max(0.0, facing))


def ray(solid, pose, u, v):
    """Trace the ray at (u, v) of a camera's plane: shaded body, shaded part, coverage."""
    right, up, towards = ([pose[row][column] for row in range(3)] for column in range(3))
    origin = [u * r + v * w for r, w in zip(right, up, strict=True)]
    body = leave(solid.body, origin, towards)
    part = leave(solid.ellipsoid, origin, towards)
    if part is not None and (body is None or part[0] > body[0]):
        return 0.0, part[1], 1.0
    return (0.0, 0.0, 0.0) if body is None else (body[1], 0.0, 1.0)


def render(solid, pose, n, half_width):
    """Trace one ray through the middle of every pixel: maps[map][row][column]."""
    line = [((i + 0.5) / n * 2 - 1) * half_width for i in range(n)]
    rows = [[ray(solid, pose, u, -v) for u in line] for v in line]
    return [[[pixel[k] for pixel in row] for row in rows] for k in range(3)]


def colour(said: Prompt, body: float, part: float, coverage: float):
    """Give a pixel its colour: surfaces before a grey wall."""
    pairs = zip(COLOURS[said.body_colour], COLOURS[said.part_colour], strict=True)
    return [b * body + p * part + 0.45 * (1 - coverage) for b, p in pairs]
