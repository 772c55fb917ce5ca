"""`solids`: oracle, laws. `test_render` holds every solid against a ray-caster."""

import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mvczigal_ref.tiny_world.grammar import SHAPES
from mvczigal_ref.tiny_world.solids import body_exit, body_reach, ellipsoid_exit
from tests.unit.tiny_world.slow import Solid, last_root

SIZE = torch.tensor([0.5], dtype=torch.float64)


def exit_of(shape, start, direction, dtype=torch.float64):
    """Cast one ray; the direction need not be a unit vector."""
    p = torch.tensor(start, dtype=dtype)[:, None]
    d = torch.nn.functional.normalize(torch.tensor(direction, dtype=dtype), dim=0)[:, None]
    hit, t, normal = body_exit(shape, p, d, SIZE.to(dtype))
    return bool(hit), float(t), torch.nn.functional.normalize(normal[:, 0], dim=0).tolist()


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "direction", "distance", "normal"),
    [
        ("ball", (1.0, 2.0, 2.0), 0.5, (1 / 3, 2 / 3, 2 / 3)),
        ("cube", (0.0, -1.0, 0.0), 0.4, (0.0, -1.0, 0.0)),
        ("cube", (0.1, 0.2, 0.9), 0.4 * math.sqrt(0.86) / 0.9, (0.0, 0.0, 1.0)),
        ("can", (3.0, 4.0, 0.0), 0.36, (0.6, 0.8, 0.0)),
        ("can", (0.0, 0.0, -1.0), 0.475, (0.0, 0.0, -1.0)),
        ("cone", (0.0, 0.0, -1.0), 0.425, (0.0, 0.0, -1.0)),
        # There the cone is 0.95 * 0.95 / 1.8 sizes wide; its side leans 1.8 to 0.95.
        ("cone", (1.0, 0.0, 0.0), 0.5 * 0.95**2 / 1.8, (1.8, 0.0, 0.95)),
        ("cone", (0.0, 0.0, 1.0), 0.475, None),
    ],
)
def test_exits_known_by_hand(shape, direction, distance, normal):
    """From the middle of a body of size one half."""
    hit, t, found = exit_of(shape, (0.0, 0.0, 0.0), direction)

    assert hit
    assert t == pytest.approx(distance, rel=1e-9)
    if normal is not None:
        length = math.hypot(*normal)
        assert found == pytest.approx([n / length for n in normal], abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@given(st.floats(-0.8, 0.8))
def test_reach_is_where_the_surface_is(shape, height):
    """Found by halving, inside against outside."""
    solid = Solid(shape=shape, part="nose", size=1.0, part_height=0.0, part_radius=0.4)
    expected = last_root(lambda x: solid.body(x, 0.0, height), 0.0, 3.0)
    reach = body_reach(shape, torch.tensor([height], dtype=torch.float64))

    assert reach.item() == pytest.approx(expected, abs=1e-9)


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_a_ray_beside_the_body_misses(shape):
    """It passes at 1.2 sizes."""
    assert not exit_of(shape, (0.0, 0.6, 0.1), (1.0, 0.0, 0.0))[0]
    assert not exit_of(shape, (0.0, 0.1, 0.6), (1.0, 0.0, 0.0))[0]
    assert not exit_of(shape, (0.6, 0.1, 0.0), (0.0, 0.0, 1.0))[0]


@given(st.floats(-1.0, 1.0))
@example(0.0)
def test_the_point_of_the_ray_does_not_matter(along):
    """Starting further along the ray brings the exit nearer by as much."""
    direction = torch.tensor([0.6, 0.48, 0.64], dtype=torch.float64)
    start = torch.tensor([0.05, -0.1, 0.02], dtype=torch.float64)
    for shape in SHAPES:
        here = exit_of(shape, start.tolist(), direction.tolist())
        there = exit_of(shape, (start + along * direction).tolist(), direction.tolist())

        assert here[1] - there[1] == pytest.approx(along, abs=1e-9)
        assert here[2] == pytest.approx(there[2], abs=1e-8)


@given(st.floats(-1e-3, 1e-3))
@example(0.0)
@example(1e-9)
@example(-1e-7)
def test_a_ray_along_the_cones_side_is_no_special_case(tilt):
    """In fp32, where the square term all but vanishes, the exit is still that of fp64."""
    slope = math.atan2(1.8, 0.95) + tilt  # elevation of the cone's own side
    direction = (math.cos(slope), 0.0, math.sin(slope))
    assert not exit_of("cone", (-0.2, 0.15, 0.1), direction, torch.float32)[0]
    for start in ((0.1, 0.05, 0.02), (-0.1, 0.02, -0.03), (0.0, 0.2, -0.1)):
        hit, t, normal = exit_of("cone", start, direction, torch.float32)
        expected_hit, expected, expected_normal = exit_of("cone", start, direction)

        assert hit
        assert expected_hit
        assert t == pytest.approx(expected, abs=1e-5)
        assert normal == pytest.approx(expected_normal, abs=1e-4)


@given(st.lists(st.floats(0.2, 2.0), min_size=3, max_size=3))
def test_an_ellipsoid_is_a_stretched_ball(axes):
    """Its exit along an axis is the half axis."""
    for axis in range(3):
        d = torch.zeros(3, 1, dtype=torch.float64)
        d[axis] = 1.0
        half = torch.tensor(axes, dtype=torch.float64)[:, None]
        hit, t, _ = ellipsoid_exit(torch.zeros_like(d), d, half)

        assert hit.item()
        assert t.item() == pytest.approx(axes[axis], rel=1e-12)
