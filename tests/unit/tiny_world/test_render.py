"""`render`: oracle, laws, gradients, errors."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mvczigal_ref.cameras import OrthographicRig, camera_to_world
from mvczigal_ref.tiny_world import render
from mvczigal_ref.tiny_world.grammar import COLOURS, PARTS, SHAPES, all_prompts, parse
from mvczigal_ref.tiny_world.render import Geometry, Nuisance, colour_maps, paint, render_maps
from tests.unit.tiny_world import slow

PROMPTS = st.sampled_from(all_prompts())
AZIMUTHS = st.floats(-360.0, 360.0)
ELEVATIONS = st.floats(-90.0, 90.0)
KINDS = [(shape, part) for shape in SHAPES for part in PARTS]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def nuisance_of(n, seed=0, dtype=torch.float64, radius=None):
    """Draw geometries; a radius near 0 buries the part in the body."""
    drawn = Nuisance.sample(n, generator(seed))
    radii = drawn.part_radius if radius is None else torch.full((n,), radius)
    return Nuisance(*(x.to(dtype) for x in (drawn.size, drawn.part_height, radii)))


def seen(shape, part, nuisance, azimuth, elevation=0.0, **settings):
    """Render from one camera and drop the view's axis."""
    angles = (torch.tensor([float(angle)], dtype=torch.float64) for angle in (azimuth, elevation))
    return render_maps(Geometry(shape, part, nuisance), *angles, **settings)[:, 0]


# -- oracle: one ray at a time, in plain floats -------------------------------------------


@pytest.mark.parametrize(("shape", "part"), KINDS)
@settings(max_examples=8)
@given(AZIMUTHS, ELEVATIONS, st.integers(0, 1000))
@example(0.0, 0.0, 0)
@example(45.0, 0.0, 1)
@example(180.0, 0.0, 3)
@example(30.0, 90.0, 4)
@example(-120.0, -90.0, 5)
@example(75.0, 65.0, 6)
@example(75.0, -40.0, 7)
def test_every_ray_equals_a_slow_search(shape, part, azimuth, elevation, seed):
    """Hit, which solid hides which, and shading, with the camera of `cameras`.

    No ray of an even number meets a cube's edge or a cone's tip, which have no normal.
    """
    nuisance = nuisance_of(1, seed)
    maps = seen(shape, part, nuisance, azimuth, elevation,
                image_size=6, half_width=0.8, supersample=1)  # fmt: skip
    solid = slow.Solid(
        shape=shape, part=part, size=nuisance.size.item(),
        part_height=nuisance.part_height.item(), part_radius=nuisance.part_radius.item(),
    )  # fmt: skip
    rig = OrthographicRig(azimuth_deg=(azimuth,), elevation_deg=(elevation,), distance=(1.0,))
    pose = camera_to_world(rig, dtype=torch.float64)[0].tolist()
    expected = torch.tensor(slow.render(solid, pose, 6, 0.8), dtype=torch.float64)

    # A ray that grazes a surface loses half of fp64's digits to a square root.
    torch.testing.assert_close(maps[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("shape", "part"), KINDS)
def test_single_precision_renders_what_double_does(shape, part):
    """Rounding moves shading by 1e-5 where a ray grazes, and now and then turns a hit over."""
    azimuth, elevation = (0.0, 45.0, 90.0, 200.0), (0.0, 0.0, 0.0, 35.0)
    maps = [
        render_maps(
            Geometry(shape, part, nuisance_of(6, dtype=dtype)),
            torch.tensor(azimuth, dtype=torch.float64),
            torch.tensor(elevation, dtype=torch.float64),
        )
        for dtype in (torch.float32, torch.float64)
    ]
    assert [m.dtype for m in maps] == [torch.float32, torch.float64]
    error = (maps[0] - maps[1]).abs()

    assert (error > 2e-5).double().mean() < 1e-5
    assert error.mean() < 1e-7


@settings(max_examples=10)
@given(PROMPTS, st.integers(0, 100))
def test_a_painted_pixel_is_surface_before_wall(prompt, seed):
    """Pixel by pixel: each colour by its brightness, the wall where nothing covers it."""
    said = parse(prompt)
    maps = seen(said.shape, said.part, nuisance_of(1, seed), 30.0, image_size=6)[0]
    image = paint(maps, colour_maps(said))
    for row in range(6):
        for column in range(6):
            expected = slow.colour(said, *maps[:, row, column].tolist())
            assert image[:, row, column].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_face_that_meets_the_camera_has_its_colour_in_full():
    """The middle of a cube's face, and of a nose."""
    said = parse("a red cube with a yellow nose")
    level = Nuisance(torch.tensor([0.6]), torch.tensor([0.0]), torch.tensor([0.4]))
    faces = paint(
        render_maps(Geometry("cube", "nose", level), torch.tensor([0.0, 180.0])), colour_maps(said)
    )

    assert faces[0, 0, :, 15:17, 15:17].mean((1, 2)).tolist() == pytest.approx(
        COLOURS["yellow"], abs=0.01
    )
    assert faces[0, 1, :, 16, 16].tolist() == pytest.approx(COLOURS["red"], abs=1e-6)
    assert faces[0, 1, :, 0, 0].tolist() == pytest.approx([0.45] * 3, abs=1e-6)


def test_the_grid_lists_the_middles_of_equal_cells():
    """By hand for two sizes, three heights and one radius; the last axis runs fastest."""
    grid = Nuisance.grid(2, 3, 1)

    assert grid.size.tolist() == pytest.approx([0.53] * 3 + [0.59] * 3)
    assert grid.part_height.tolist() == pytest.approx([-0.2, 0.0, 0.2] * 2, abs=1e-7)
    assert grid.part_radius.tolist() == pytest.approx([0.45] * 6)


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "part"), KINDS)
@settings(max_examples=8)
@given(AZIMUTHS, ELEVATIONS)
def test_the_other_side_is_the_mirror_image(shape, part, azimuth, elevation):
    """The scene is its own mirror image in the plane through its part."""
    one, other = (
        seen(shape, part, nuisance_of(2), angle, elevation, image_size=12)
        for angle in (azimuth, -azimuth)
    )
    torch.testing.assert_close(one, other.flip(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", ["ball", "can", "cone"])
@settings(max_examples=8)
@given(AZIMUTHS, ELEVATIONS)
def test_a_body_of_revolution_looks_the_same_all_round(shape, azimuth, elevation):
    """With its part buried inside."""
    bare = nuisance_of(2, radius=1e-3)
    turned, still = (
        seen(shape, "nose", bare, angle, elevation, image_size=12) for angle in (azimuth, 0.0)
    )
    torch.testing.assert_close(turned, still, rtol=0, atol=1e-6)


@settings(max_examples=8)
@given(AZIMUTHS, ELEVATIONS)
def test_a_cube_looks_the_same_after_a_quarter_turn(azimuth, elevation):
    """And not after an eighth."""
    bare = nuisance_of(2, radius=1e-3)
    one, quarter = (
        seen("cube", "nose", bare, angle, elevation, image_size=12)
        for angle in (azimuth, azimuth + 90.0)
    )
    torch.testing.assert_close(one, quarter, rtol=0, atol=1e-6)
    eighth = seen("cube", "nose", bare, 45.0, image_size=12)
    assert (eighth - seen("cube", "nose", bare, 0.0, image_size=12)).abs().max() > 0.1


@pytest.mark.parametrize(("shape", "part"), KINDS)
@settings(max_examples=8)
@given(AZIMUTHS, ELEVATIONS, st.integers(0, 100))
def test_shading_lies_between_edge_on_and_full(shape, part, azimuth, elevation, seed):
    """Coverage is a share; each covered ray is body or part, with brightness 0.55 to 1."""
    maps = seen(shape, part, nuisance_of(2, seed), azimuth, elevation, image_size=12)
    body, hidden, cover = maps.unbind(1)

    assert maps.min() >= 0
    assert maps.max() <= 1 + 1e-12
    assert (body + hidden <= cover + 1e-12).all()
    assert (body + hidden >= 0.55 * cover - 1e-12).all()
    assert cover.max() == 1


@settings(max_examples=10)
@given(PROMPTS, AZIMUTHS, ELEVATIONS)
def test_images_are_images(prompt, azimuth, elevation):
    """Every value lies in [0, 1]."""
    said = parse(prompt)
    maps = seen(said.shape, said.part, nuisance_of(2), azimuth, elevation, image_size=12)
    image = paint(maps, colour_maps(said))

    assert image.min() >= 0
    assert image.max() <= 1


@pytest.mark.parametrize(("shape", "part"), KINDS)
def test_the_part_shows_in_front_and_hides_behind(shape, part):
    """A tall fin looks over a cube's edge, and a cone narrows: a little may show."""
    geometry = Geometry(shape, part, Nuisance.grid(3, 6, 3))
    area = render_maps(geometry, torch.tensor([0.0, 90.0, 180.0]))[:, :, 1].sum((-1, -2))
    front, side, back = area.unbind(1)
    shown = {("cone", "nose"): 0.21, ("cone", "fin"): 0.18, ("cube", "fin"): 0.07}

    assert front.min() > 30
    assert (side > 0.1 * front).all()
    assert (back <= shown.get((shape, part), 0.0) * front).all()


def test_the_part_points_to_plus_x():
    """The camera at azimuth 90 looks along -y with +x on its left; at -90, on its right."""
    left, right = (
        seen("ball", "nose", nuisance_of(1), azimuth)[0, 1].sum(0) for azimuth in (90.0, -90.0)
    )

    assert left[:8].sum() > 0
    assert left[16:].sum() == 0
    assert right[24:].sum() > 0
    assert right[:16].sum() == 0


def test_a_higher_part_is_higher_in_the_image():
    """Row 0 is the top."""
    low, high = (
        Nuisance(*(torch.tensor([x]) for x in (0.55, height, 0.45))) for height in (-0.3, 0.3)
    )
    rows = torch.arange(32.0)
    centre = []
    for nuisance in (low, high):
        mass = seen("can", "nose", nuisance, 0.0)[0, 1].sum(-1)
        centre.append(float((mass * rows).sum() / mass.sum()))

    # 0.6 sizes apart, 1.84 units an image of 32 pixels
    assert centre[0] - centre[1] == pytest.approx(0.6 * 0.55 / 1.84 * 32, abs=0.3)


def test_a_camera_above_sees_the_lid():
    """From 90 degrees the can is a disc of brightness 1, its part a bump at the bottom."""
    bare = seen("can", "nose", nuisance_of(1, radius=1e-3), 0.0, 90.0)[0]
    covered = bare[2] == 1

    assert bare[0][covered].min() == pytest.approx(1.0)
    part = seen("can", "nose", nuisance_of(1), 0.0, 90.0)[0, 1]
    assert part[20:].sum() > 0
    assert part[:16].sum() == 0


@settings(max_examples=8)
@given(st.floats(0.5, 2.0), AZIMUTHS)
def test_a_larger_object_in_a_larger_frame_is_the_same_image(scale, azimuth):
    """Only their ratio matters."""
    nuisance = nuisance_of(2)
    grown = Nuisance(scale * nuisance.size, nuisance.part_height, nuisance.part_radius)
    near = seen("cone", "fin", nuisance, azimuth, 20.0, image_size=12)
    far = seen("cone", "fin", grown, azimuth, 20.0, image_size=12, half_width=0.92 * scale)

    torch.testing.assert_close(near, far, rtol=0, atol=1e-6)


def test_a_pixel_is_the_mean_of_its_rays():
    """Four rays a pixel are the 2 x 2 means of an image of twice the size with one."""
    coarse = seen("cube", "fin", nuisance_of(2), 30.0, image_size=8)
    fine = seen("cube", "fin", nuisance_of(2), 30.0, image_size=16, supersample=1)

    means = fine.unflatten(-1, (8, 2)).unflatten(-3, (8, 2)).mean((-1, -3))
    torch.testing.assert_close(coarse, means, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("shape", "part"), KINDS)
def test_company_changes_nothing(shape, part):
    """Nine geometries at once are nine alone, bit for bit, and views do not mix either."""
    azimuth = torch.tensor([0.0, 100.0])
    nuisance = nuisance_of(9, dtype=torch.float32)
    together = render_maps(Geometry(shape, part, nuisance), azimuth, image_size=16)
    for index, alone in enumerate(nuisance.split(1)):
        maps = render_maps(Geometry(shape, part, alone), azimuth, image_size=16)
        assert torch.equal(maps[0], together[index])
    one = render_maps(Geometry(shape, part, nuisance), azimuth[1:], image_size=16)
    assert torch.equal(one[:, 0], together[:, 1])


def test_split_keeps_order_and_loses_nothing():
    """The last piece may be short."""
    nuisance = nuisance_of(5)
    pieces = list(nuisance.split(2))

    assert [len(piece) for piece in pieces] == [2, 2, 1]
    for field in ("size", "part_height", "part_radius"):
        joined = torch.cat([getattr(piece, field) for piece in pieces])
        assert torch.equal(joined, getattr(nuisance, field))


def test_draws_fill_their_ranges_independently():
    """A thousand draws: uniform in each range, and uncorrelated."""
    drawn = Nuisance.sample(1000, generator())
    fields = torch.stack([drawn.size, drawn.part_height, drawn.part_radius]).double()
    for values, (low, high) in zip(fields, [(0.50, 0.62), (-0.3, 0.3), (0.40, 0.50)], strict=True):
        unit = (values - low) / (high - low)
        assert unit.min() >= -1e-6
        assert unit.max() <= 1 + 1e-6
        quarters = torch.histc(unit, 4, 0, 1) / 1000
        assert quarters.tolist() == pytest.approx([0.25] * 4, abs=0.05)
    off_diagonal = torch.corrcoef(fields) - torch.eye(3)
    assert off_diagonal.abs().max() < 0.1


def test_draws_come_from_the_generator_alone():
    """The same seed, the same geometry; the global generator stays where it was."""
    state = torch.get_rng_state()
    one, same, other = (Nuisance.sample(3, generator(seed)) for seed in (1, 1, 2))

    assert torch.equal(one.size, same.size)
    assert not torch.equal(one.size, other.size)
    assert torch.equal(torch.get_rng_state(), state)


@settings(max_examples=10)
@given(PROMPTS, PROMPTS, st.floats(0.0, 1.0))
def test_paint_is_linear_in_colour(one, other, share):
    """Mixed colours give mixed images."""
    maps = seen("ball", "nose", nuisance_of(2), 20.0, image_size=8)
    first, second = (colour_maps(parse(prompt)) for prompt in (one, other))
    mixed = paint(maps, share * first + (1 - share) * second)

    expected = share * paint(maps, first) + (1 - share) * paint(maps, second)
    torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-6)


def test_paint_gives_each_object_its_own_colours():
    """Colours may have any of the maps' leading axes."""
    maps = torch.rand(2, 3, 3, 4, 4, generator=generator())
    colours = torch.rand(2, 1, 3, 3, generator=generator(1))
    images = paint(maps, colours)
    for index in range(2):
        torch.testing.assert_close(images[index], paint(maps[index], colours[index, 0]))


def test_the_world_is_lit_as_it_says():
    """Names that other modules read hold the numbers that the weights were trained on."""
    assert (render.AMBIENT, render.BACKGROUND, render.HALF_WIDTH, render.IMAGE_SIZE) == (
        0.55, 0.45, 0.92, 32,
    )  # fmt: skip
    assert Nuisance.HEADINGS == (-45, 0, 45)


# -- gradients ---------------------------------------------------------------------------


def test_gradient_flows_to_maps_and_colours():
    """`paint` is bilinear, so its gradients are exact."""
    maps, colours = (
        torch.rand(shape, dtype=torch.float64, generator=generator()).requires_grad_()
        for shape in ((3, 2, 2), (3, 3))
    )

    assert torch.autograd.gradcheck(paint, (maps, colours))


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "part"), [("pyramid", "nose"), ("ball", "tail")])
def test_an_unknown_shape_or_part_is_refused(shape, part):
    """The message names what there is."""
    with pytest.raises(ValueError, match=rf"`geometry` must name.*ball.*fin.*{shape}.*{part}"):
        seen(shape, part, nuisance_of(1), 0.0)
