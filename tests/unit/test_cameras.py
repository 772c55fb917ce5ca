"""`cameras`: oracle, laws, golden values, errors."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.cameras import (
    PAPER_RIG,
    OrthographicRig,
    camera_image,
    camera_to_world,
    plucker_map,
    projection_matrix,
    world_to_camera,
)
from tests import golden, oracles
from tests.compare import FP64
from tests.strategies import rigs

FP64_KEYS = {"dtype": torch.float64}
SIZES = st.integers(1, 5)


def one_camera(**changes):
    """Return a rig of one camera on the x axis, or elsewhere."""
    fields = {"azimuth_deg": (0.0,), "elevation_deg": (0.0,), "distance": (2.0,)}
    return OrthographicRig(**{**fields, **changes})


# -- oracle ------------------------------------------------------------------------------


@given(rigs(max_elevation=85.0))
def test_poses_equal_look_at_cross_products(rig):
    """One camera at a time, in floats; near the poles cross products lose their digits."""
    expected = [
        oracles.look_at_pose(*camera)
        for camera in zip(rig.azimuth_deg, rig.elevation_deg, rig.distance, strict=True)
    ]

    torch.testing.assert_close(
        camera_to_world(rig, **FP64_KEYS),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-11,
        atol=1e-11,
    )


@given(rigs())
def test_world_to_camera_is_the_inverse(rig):
    """Of a general matrix solver's."""
    torch.testing.assert_close(
        world_to_camera(rig, **FP64_KEYS),
        torch.linalg.inv(camera_to_world(rig, **FP64_KEYS)),
        rtol=1e-11,
        atol=1e-11,
    )


@given(rigs(), st.tuples(*[st.floats(-1.0, 1.0)] * 3))
def test_projection_maps_the_visible_box_to_the_unit_cube(rig, place):
    """A point at shares of the box lands at the same shares, y turned down the image."""
    x, y, depth = place
    middle, half = (rig.near + rig.far) / 2, (rig.far - rig.near) / 2
    point = torch.tensor(
        [x * rig.half_width, y * rig.half_width, -(middle + depth * half), 1.0],
        dtype=torch.float64,
    )
    wanted = torch.tensor([x, -y, depth, 1.0], dtype=torch.float64)
    seen = projection_matrix(rig, **FP64_KEYS) @ point

    # Depths up to 100 are subtracted to get a share of 1.
    torch.testing.assert_close(seen, wanted.expand(rig.num_views, 4), rtol=0, atol=1e-11)


@given(rigs(), SIZES, SIZES)
def test_plucker_map_is_direction_then_place_at_every_pixel(rig, height, width):
    """One camera at a time, in floats."""
    rays = plucker_map(rig, height=height, width=width, **FP64_KEYS)

    assert rays.shape == (rig.num_views, 6, height, width)
    for view, (azimuth, elevation) in enumerate(
        zip(rig.azimuth_deg, rig.elevation_deg, strict=True)
    ):
        a, e = math.radians(azimuth), math.radians(elevation)
        place = [math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)]
        wanted = torch.tensor([*(-x for x in place), *place], dtype=torch.float64)
        torch.testing.assert_close(
            rays[view], wanted[:, None, None].expand(6, height, width), rtol=0, atol=FP64
        )


@given(rigs(), SIZES, SIZES)
def test_camera_image_is_the_map_brought_to_the_unit_interval(rig, height, width):
    """Minus one is black, one is white."""
    rays = plucker_map(rig, height=height, width=width, **FP64_KEYS)
    image = camera_image(rig, height=height, width=width, **FP64_KEYS)

    torch.testing.assert_close(image, rays / 2 + 0.5, rtol=0, atol=FP64)
    assert (image >= 0).all()
    assert (image <= 1).all()


# -- laws --------------------------------------------------------------------------------


@given(rigs())
def test_poses_are_rigid_motions_of_right_handed_axes(rig):
    """Straight above and below too."""
    pose = camera_to_world(rig, **FP64_KEYS)
    axes = pose[:, :3, :3]
    identity = torch.eye(3, dtype=torch.float64).expand_as(axes)

    torch.testing.assert_close(axes.mT @ axes, identity, rtol=0, atol=FP64)
    torch.testing.assert_close(
        torch.linalg.det(axes), torch.ones(rig.num_views, dtype=torch.float64), rtol=0, atol=FP64
    )
    assert pose[:, 3].tolist() == [[0.0, 0.0, 0.0, 1.0]] * rig.num_views


@given(rigs())
def test_every_camera_sees_the_origin_in_the_middle_at_its_distance(rig):
    """It looks along minus z of its own axes."""
    origin = world_to_camera(rig, **FP64_KEYS)[:, :3, 3]
    wanted = torch.tensor([[0.0, 0.0, -d] for d in rig.distance], dtype=torch.float64)

    torch.testing.assert_close(origin, wanted, rtol=1e-12, atol=1e-12 * max(rig.distance))


@given(rigs(max_elevation=89.0))
def test_the_horizon_is_level_and_up_is_up(rig):
    """No camera is tilted or upside down."""
    pose = camera_to_world(rig, **FP64_KEYS)

    assert (pose[:, 2, 0] == 0).all()
    assert (pose[:, 2, 1] > 0).all()


@given(st.floats(-180.0, 180.0), st.floats(-90.0, 90.0), st.floats(0.1, 10.0))
def test_turning_the_rig_turns_its_poses(azimuth, elevation, distance):
    """A quarter turn takes x to y and y to minus x."""
    rig = one_camera(azimuth_deg=(azimuth,), elevation_deg=(elevation,), distance=(distance,))
    turned = one_camera(
        azimuth_deg=(azimuth + 90,), elevation_deg=(elevation,), distance=(distance,)
    )
    before = camera_to_world(rig, **FP64_KEYS)[0]
    after = camera_to_world(turned, **FP64_KEYS)[0]

    torch.testing.assert_close(
        after[:3], torch.stack([-before[1], before[0], before[2]]), rtol=0, atol=1e-11
    )


@given(rigs(), st.floats(0.1, 10.0))
def test_the_map_knows_neither_distance_nor_frustum(rig, factor):
    """Parallel rays have directions alone."""
    other = OrthographicRig(
        azimuth_deg=rig.azimuth_deg,
        elevation_deg=rig.elevation_deg,
        distance=tuple(d * factor for d in rig.distance),
        half_width=rig.half_width * factor,
    )
    near, far = (plucker_map(r, height=2, width=2, **FP64_KEYS) for r in (rig, other))

    torch.testing.assert_close(near, far, rtol=0, atol=FP64)


@pytest.mark.parametrize("function", [camera_to_world, world_to_camera, projection_matrix])
def test_matrices_come_in_the_asked_dtype_on_the_asked_device(function):
    """fp32 is fp64 rounded once."""
    wide = function(PAPER_RIG, **FP64_KEYS)

    assert torch.equal(function(PAPER_RIG), wide.float())
    assert function(PAPER_RIG, device="meta").is_meta


@pytest.mark.parametrize("function", [plucker_map, camera_image])
def test_maps_come_in_the_asked_dtype_on_the_asked_device(function):
    """And own their memory, so that a caller may write into one pixel."""
    image = function(PAPER_RIG, height=2, width=3)
    wide = function(PAPER_RIG, height=2, width=3, **FP64_KEYS)

    assert image.dtype == torch.float32
    assert wide.dtype == torch.float64
    torch.testing.assert_close(image, wide.float(), rtol=0, atol=1e-7)
    assert image.is_contiguous()
    assert function(PAPER_RIG, height=1, width=1, device="meta").is_meta


def test_projections_are_one_a_view_and_own_their_memory():
    """Writing into one leaves the others."""
    projection = projection_matrix(PAPER_RIG)
    projection[0, 0, 0] = 0.0

    assert (projection[1:, 0, 0] > 0).all()


# -- golden parity -----------------------------------------------------------------------


def paper_rig():
    """Return the rig that the golden file says it was made with, and the file."""
    reference = golden.tensors("cameras", "plucker_ortho")
    settings = golden.constants("cameras", "plucker_ortho")
    rig = OrthographicRig(
        azimuth_deg=tuple(reference["azimuth_deg"].tolist()),
        elevation_deg=tuple(reference["elevation_deg"].tolist()),
        distance=tuple(reference["distance"].double().round(decimals=6).tolist()),
        half_width=settings["right"],
        near=settings["near"],
        far=settings["far"],
    )
    return rig, reference, settings["image_size"]


def test_golden_rig_is_the_paper_s():
    """Angles, distance and frustum."""
    rig, _, _ = paper_rig()

    assert rig == PAPER_RIG


def test_golden_matrices():
    """Poses, their inverses, the projection and its product with them.

    The released code turns degrees to fp32 radians, then takes sines in fp32: it is up to 1.6e-7
    from the exact angle's, times 1.8 and 1.8182. Zeros have no relative error, so it is absolute.
    """
    rig, reference, _ = paper_rig()
    pose, inverse, projection = (
        function(rig) for function in (camera_to_world, world_to_camera, projection_matrix)
    )

    torch.testing.assert_close(pose, reference["c2w"], rtol=0, atol=4e-7)
    torch.testing.assert_close(pose[:, :3, 3], reference["cam_pos"], rtol=0, atol=4e-7)
    torch.testing.assert_close(inverse, reference["w2c"], rtol=0, atol=4e-7)
    torch.testing.assert_close(projection, reference["proj_mtx"], rtol=1e-7, atol=0)
    torch.testing.assert_close(projection @ inverse, reference["mvp_mtx"], rtol=0, atol=4e-7)


def test_golden_maps():
    """The map, and the image that the camera encoder takes; absolute, as above."""
    rig, reference, size = paper_rig()

    torch.testing.assert_close(
        plucker_map(rig, height=size, width=size), reference["plucker"], rtol=0, atol=2e-7
    )
    torch.testing.assert_close(
        camera_image(rig, height=size, width=size), reference["control_image"], rtol=0, atol=1e-7
    )


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"azimuth_deg": ()}, "`azimuth_deg` must name at least one view"),
        ({"azimuth_deg": (math.inf,)}, "`azimuth_deg` must be finite"),
        ({"elevation_deg": (0.0, 0.0)}, "`elevation_deg` must have one entry per view, 1 .*got 2"),
        ({"elevation_deg": (90.5,)}, r"`elevation_deg` must be in \[-90, 90\]; got \(90.5,\)"),
        ({"elevation_deg": (math.nan,)}, "`elevation_deg` must be in"),
        ({"distance": ()}, "`distance` must have one entry per view, 1 .*got 0"),
        ({"distance": (0.0,)}, r"`distance` must be positive and finite; got \(0.0,\)"),
        ({"distance": (math.inf,)}, "`distance` must be positive and finite"),
        ({"half_width": 0.0}, "`half_width` must be positive and finite; got 0.0"),
        ({"half_width": math.nan}, "`half_width` must be positive and finite; got nan"),
        ({"near": 1.0, "far": 1.0}, "`near` must be below `far` = 1.0, both finite; got 1.0"),
        ({"far": math.inf}, "`near` must be below `far` = inf"),
    ],
)
def test_a_rig_that_takes_no_picture_is_refused(changes, rule):
    """Each field by its name."""
    with pytest.raises(ValueError, match=rule):
        one_camera(**changes)


@pytest.mark.parametrize("function", [plucker_map, camera_image])
@pytest.mark.parametrize("name", ["height", "width"])
@pytest.mark.parametrize("bad", [0, -1])
def test_an_empty_picture_is_refused(function, name, bad):
    """Each side by its name."""
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1 pixel; got {bad}"):
        function(PAPER_RIG, **{"height": 4, "width": 4, name: bad})
