"""`scene`: oracle, laws, errors."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.cameras import PAPER_RIG, OrthographicRig
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.tiny_world.grammar import all_prompts, parse
from mvczigal_ref.tiny_world.render import Geometry, Nuisance, colour_maps, paint, render_maps
from mvczigal_ref.tiny_world.scene import (
    AZIMUTHS,
    WORLD_RIG,
    azimuth_index,
    sample_scenes,
)
from tests.renders import render_prompts
from tests.strategies import rigs

PROMPTS = ["a red cube with a white nose", "a blue cone with a green fin"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# -- oracle ------------------------------------------------------------------------------


def test_the_rig_is_the_papers_with_a_wider_frame():
    """Six cameras at elevation 0 around the object."""
    assert WORLD_RIG.azimuth_deg == (-90.0, -45.0, 0.0, 90.0, 180.0, 225.0)
    assert WORLD_RIG.half_width == 0.92
    assert replace(WORLD_RIG, half_width=PAPER_RIG.half_width) == PAPER_RIG


@given(st.lists(st.integers(-20, 20), min_size=1, max_size=5), st.lists(st.integers(-9, 9)))
def test_a_camera_sees_its_azimuth_minus_the_heading(cameras, headings):
    """One camera and one heading at a time, in whole degrees."""
    rig = OrthographicRig(
        azimuth_deg=tuple(45.0 * c for c in cameras),
        elevation_deg=(0.0,) * len(cameras),
        distance=(1.0,) * len(cameras),
    )
    index = azimuth_index(rig, [45 * h for h in headings])

    assert index.tolist() == [
        [AZIMUTHS.index((45 * c + 90 - 45 * h) % 360) for c in cameras] for h in headings
    ]


def test_the_front_camera_sees_the_part_of_an_object_that_heads_there():
    """Relative azimuth 0 is the part's side; by default all three headings are given."""
    index = azimuth_index(WORLD_RIG)

    assert index.shape == (3, 6)
    assert index[:, 0].tolist() == [1, 0, 7]


@settings(max_examples=10)
@given(rigs(), st.integers(0, 100))
def test_any_rig_is_rendered_camera_by_camera(rig, seed):
    """Each view is the render from its camera's azimuth, elevation and frame."""
    images = render_prompts(PROMPTS, generator=generator(seed), rig=rig, image_size=8)
    draws = generator(seed)
    for prompt, views in zip(map(parse, PROMPTS), images, strict=True):
        nuisance = Nuisance.sample(1, draws)
        heading = (-45, 0, 45)[int(torch.randint(3, (), generator=draws))]
        for view, image in enumerate(views):
            maps = render_maps(
                Geometry(prompt.shape, prompt.part, nuisance),
                torch.tensor([rig.azimuth_deg[view] + 90 - heading]),
                torch.tensor([rig.elevation_deg[view]]),
                image_size=8,
                half_width=rig.half_width,
            )
            expected = paint(maps[0, 0], colour_maps(prompt))
            torch.testing.assert_close(image, expected, rtol=0, atol=1e-6)


def test_scenes_hold_each_prompts_renders_from_the_eight_azimuths():
    """Prompt by prompt, and rounded to half precision."""
    scenes = sample_scenes(PROMPTS, per_prompt=3, generator=generator())
    draws = generator()

    assert scenes.prompt_index.tolist() == [0, 0, 0, 1, 1, 1]
    assert scenes.maps.dtype == torch.float16
    for first, prompt in zip((0, 3), map(parse, PROMPTS), strict=True):
        geometry = Geometry(prompt.shape, prompt.part, Nuisance.sample(3, draws))
        maps = render_maps(geometry, torch.tensor([0.0, 45, 90, 135, 180, 225, 270, 315]))
        assert torch.equal(scenes.maps[first : first + 3], maps.half())
        assert torch.equal(scenes.colours[first + 2], colour_maps(prompt))


def test_images_are_painted_from_the_asked_azimuths():
    """Object by object, azimuth by azimuth, in the order asked for."""
    scenes = sample_scenes(PROMPTS, per_prompt=2, generator=generator())
    index, azimuth = torch.tensor([3, 0]), torch.tensor([[1, 7, 1], [4, 0, 2]])
    images = scenes.images(index, azimuth)

    assert images.dtype == torch.float32
    for row in range(2):
        for column in range(3):
            maps = scenes.maps[index[row], azimuth[row, column]].float()
            expected = paint(maps, scenes.colours[index[row]])
            torch.testing.assert_close(images[row, column], expected)


# -- laws --------------------------------------------------------------------------------


def test_an_index_and_a_camera_show_the_same():
    """What the atlas calls a view is what the camera sees."""
    images = render_prompts(PROMPTS[:1], generator=generator(3))
    draws = generator(3)
    scenes = sample_scenes(PROMPTS[:1], per_prompt=1, generator=draws)
    heading = int(torch.randint(3, (), generator=draws))
    views = scenes.images(torch.tensor([0]), azimuth_index(WORLD_RIG)[heading][None])

    # The scenes are kept in half precision.
    torch.testing.assert_close(views, images, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: render_prompts(PROMPTS, generator=generator(seed), image_size=8),
        lambda seed: sample_scenes(PROMPTS, per_prompt=1, generator=generator(seed)).maps,
    ],
)
def test_draws_come_from_the_generator_alone(draw):
    """The same seed, the same scene; the global generator stays where it was."""
    state = torch.get_rng_state()

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), state)


def test_objects_of_a_prompt_differ():
    """Nuisance and heading are drawn for each."""
    images = render_prompts([PROMPTS[0]] * 8, generator=generator(), image_size=8)

    assert len({tuple(image.flatten().tolist()) for image in images}) == 8


def test_every_prompt_renders_into_images():
    """All 240 lie in [0, 1]."""
    images = render_prompts(all_prompts(), generator=generator(), image_size=4)

    assert images.shape == (240, 6, 3, 4, 4)
    assert images.min() >= 0
    assert images.max() <= 1


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"azimuth_deg": (-90.0, -45.0, 0.0, 90.0, 180.0, 224.0)},
        {"elevation_deg": (0.0, 0.0, 0.0, 0.0, 0.0, 10.0)},
    ],
)
def test_a_camera_off_the_grid_is_refused(change):
    """The atlas knows eight azimuths at elevation 0."""
    with pytest.raises(ConfigError, match="`rig` must stand at elevation 0 and azimuths that are"):
        azimuth_index(replace(WORLD_RIG, **change))


def test_a_heading_off_the_grid_is_refused():
    """The message blames the heading, not the rig."""
    with pytest.raises(
        ConfigError, match=r"`heading_deg` must hold multiples of 45 .*got \(0, 30\)"
    ):
        azimuth_index(WORLD_RIG, (0, 30))
