"""`visible`: oracle, laws, errors."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.cameras import OrthographicRig
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.tiny_world.cheats import hand_built_sets
from mvczigal_ref.tiny_world.colour_area import colour_area
from mvczigal_ref.tiny_world.grammar import COLOURS, all_prompts, parse
from mvczigal_ref.tiny_world.render import colour_maps
from mvczigal_ref.tiny_world.scene import WORLD_RIG, azimuth_index, sample_scenes
from mvczigal_ref.tiny_world.visible import part_visible, views_showing_part
from tests.renders import render_prompts

PROMPTS = all_prompts()
NAMES = list(COLOURS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def scenes():
    """Give one object of every prompt, and the azimuths that the cameras see it from."""
    draws = generator(1)
    made = sample_scenes(PROMPTS, per_prompt=1, generator=draws)
    heading = torch.randint(3, (len(PROMPTS),), generator=draws)
    return made, azimuth_index(WORLD_RIG)[heading]


# -- oracle ------------------------------------------------------------------------------


def slow_area(image, colour):
    """Go over pixels and colours, and try a hundred brightnesses of each."""

    def kind(pixel):
        best, name = sum((x - 0.45) ** 2 for x in pixel), None
        for candidate, full in COLOURS.items():
            for i in range(101):
                shade = 0.55 + 0.45 * i / 100
                distance = sum((x - shade * c) ** 2 for x, c in zip(pixel, full, strict=True))
                if distance < best:
                    best, name = distance, candidate
        return name

    _, height, width = image.shape
    kinds = [[kind(image[:, r, c].tolist()) for c in range(width)] for r in range(height)]
    return sum(
        all(kinds[r + i][c + j] == colour for i in (0, 1) for j in (0, 1))
        for r in range(height - 1)
        for c in range(width - 1)
    )


@pytest.mark.parametrize("prompt", ["a red can with a white nose", "a purple cone with a blue fin"])
def test_area_equals_a_slow_count(prompt):
    """On a small real view."""
    image = render_prompts([prompt], generator=generator(2), image_size=14)[0, 0]
    for colour in COLOURS:
        assert colour_area(image, colour).item() == slow_area(image, colour)


@pytest.mark.parametrize("colour", NAMES)
@given(st.floats(0.55, 1.0))
def test_a_shaded_patch_is_of_its_colour_and_no_other(colour, shade):
    """3 x 4 pixels hold 2 x 3 blocks."""
    patch = (shade * torch.tensor(COLOURS[colour]))[:, None, None].expand(3, 3, 4)

    assert {name: colour_area(patch, name).item() for name in NAMES} == {
        name: 6 if name == colour else 0 for name in NAMES
    }


def test_lines_and_specks_are_no_area():
    """Every pixel of a block must have the colour."""
    image = torch.full((3, 8, 8), 0.45)
    red = torch.tensor(COLOURS["red"])[:, None]
    image[:, 2, :] = red
    image[:, :, 5] = red
    image[:, 6, 1] = red[:, 0]

    assert colour_area(image, "red") == 0
    image[:, 3, 4] = red[:, 0]
    assert colour_area(image, "red") == 1


# -- laws --------------------------------------------------------------------------------


def test_real_sets_show_their_part(scenes):
    """Every one of 240."""
    made, seen = scenes
    assert part_visible(made.images(torch.arange(240), seen), PROMPTS).all()


def test_a_part_in_the_bodys_colour_is_missing(scenes):
    """None of 240."""
    made, seen = scenes
    colours = made.colours.clone()
    colours[:, 1] = colours[:, 0]
    images = replace(made, colours=colours).images(torch.arange(240), seen)

    assert not part_visible(images, PROMPTS).any()


@pytest.mark.parametrize("turn", range(1, 6))
def test_a_part_in_another_colour_is_missing(scenes, turn):
    """None of 240, for any of the five other colours."""
    made, seen = scenes
    colours = made.colours.clone()
    for index, said in enumerate(map(parse, PROMPTS)):
        other = NAMES[(NAMES.index(said.part_colour) + turn) % 6]
        colours[index, 1] = torch.tensor(COLOURS[other])
    images = replace(made, colours=colours).images(torch.arange(240), seen)

    assert not part_visible(images, PROMPTS).any()


def test_one_view_is_enough():
    """A part that shows in a single view is shown; one that shows in none is not."""
    prompt = "a red cube with a white nose"
    said = parse(prompt)
    made = sample_scenes([prompt], per_prompt=1, generator=generator())
    bare = replace(made, colours=colour_maps(said)[None, [0, 0, 2]])
    at = torch.tensor([[0, 1, 2, 4, 6, 7]])
    images = bare.images(torch.tensor([0]), at)

    assert not part_visible(images, [prompt])
    images[0, 0] = made.images(torch.tensor([0]), at)[0, 0]
    assert part_visible(images, [prompt])


def test_half_of_the_smallest_part_is_asked_for():
    """A sliver is too little; the same patch on a wall of any shade will do if it is large."""
    prompt = "a red cube with a white nose"
    images = torch.full((1, 6, 3, 32, 32), 0.45)
    images[0, 2, :, 10:13, 10:13] = 0.98  # 4 blocks; the smallest nose has about 27
    assert not part_visible(images, [prompt])
    images[0, 2, :, 10:16, 10:16] = 0.98  # 25 blocks
    assert part_visible(images, [prompt])


def test_the_area_asked_for_grows_with_the_resolution():
    """It is measured on renders of the images' own size and frame."""
    prompt, near = "a red cube with a white nose", replace(WORLD_RIG, half_width=0.46)
    for rig, size in ((WORLD_RIG, 64), (near, 32)):
        images = torch.full((1, 6, 3, size, size), 0.45)
        images[0, 2, :, 10:16, 10:16] = 0.98
        assert not part_visible(images, [prompt], rig=rig)
        images[0, 2, :, 10:22, 10:22] = 0.98
        assert part_visible(images, [prompt], rig=rig)


def test_any_cameras_will_do():
    """Two from above, off the grid of azimuths."""
    rig = OrthographicRig(
        azimuth_deg=(-100.0, 33.0), elevation_deg=(20.0, 40.0), distance=(1.0,) * 2, half_width=0.92
    )
    images = render_prompts(PROMPTS[::7], generator=generator(), rig=rig)

    assert part_visible(images, PROMPTS[::7], rig=rig).all()


def test_each_view_shows_the_part_by_itself(scenes):
    """From in front always, from behind never, in as many views as one likes."""
    made, _ = scenes
    some = torch.arange(0, 240, 7)
    said = [PROMPTS[i] for i in some.tolist()]
    shown = views_showing_part(made.images(some, torch.arange(8).expand(len(some), 8)), said)

    assert shown[:, 0].all()
    assert not shown[:, 4].any()
    assert shown[:, [1, 7]].all()
    with pytest.raises(ValueError, match="`prompts` must hold one per object, 1; got 2"):
        views_showing_part(torch.zeros(1, 3, 3, 32, 32), PROMPTS[:2])


def test_blank_and_noise_show_no_part():
    """Noise has pixels of every colour, but hardly a block."""
    sets = hand_built_sets(PROMPTS[::4], generator=generator())

    assert not part_visible(sets["blank"], PROMPTS[::4]).any()
    assert part_visible(sets["noise"], PROMPTS[::4]).double().mean() < 0.05


def test_no_object_is_no_answer():
    """An empty batch is legal."""
    assert part_visible(torch.zeros(0, 6, 3, 32, 32), []).shape == (0,)


# -- errors ------------------------------------------------------------------------------


def test_counts_and_pixels_must_agree():
    """An object per prompt, a view per camera, square images, a known prompt."""
    with pytest.raises(ValueError, match=r"`images` must hold an object per prompt.*got \(2, 6\)"):
        part_visible(torch.zeros(2, 6, 3, 32, 32), PROMPTS[:1])
    with pytest.raises(ValueError, match=r"`images` must hold an object per prompt.*got \(1, 5\)"):
        part_visible(torch.zeros(1, 5, 3, 32, 32), PROMPTS[:1])
    with pytest.raises(ValueError, match=r"`images` must be square.*got \(32, 16\)"):
        part_visible(torch.zeros(1, 6, 3, 32, 16), PROMPTS[:1])
    with pytest.raises(ConfigError, match="`prompt` must read"):
        part_visible(torch.zeros(1, 6, 3, 32, 32), ["a cat"])
