"""`condition.measured`: oracle (what was rendered), laws, errors."""

import pytest
import torch

from mvczigal_ref.condition.description import Description
from mvczigal_ref.condition.measured import describe, describe_each
from mvczigal_ref.condition.protocol import CaptionError
from mvczigal_ref.tiny_world.grammar import PARTS, SHAPES, all_prompts
from mvczigal_ref.tiny_world.render import Nuisance
from tests.unit.condition.pictures import PROMPT, picture

# -- oracle: what was rendered -----------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("part", PARTS)
def test_says_what_was_rendered(shape, part):
    """Both colours, shape and part, over sizes, heights and radii of the whole range."""
    prompts = [prompt for prompt in all_prompts() if f" {shape} " in prompt and part in prompt]
    generator = torch.Generator().manual_seed(0)
    drawn = Nuisance.sample(8, generator)
    for index, azimuth in enumerate((0.0, 45.0, 90.0, -45.0, -90.0, 0.0, 45.0, -45.0)):
        prompt = prompts[4 * index % len(prompts)]
        found = describe(
            picture(
                prompt,
                azimuth=azimuth,
                size=float(drawn.size[index]),
                height=float(drawn.part_height[index]),
                radius=float(drawn.part_radius[index]),
            )
        )
        assert str(found.prompt) == prompt
        assert found.side == {0.0: None, 45.0: "left", 90.0: "left"}.get(azimuth, "right")


@pytest.mark.parametrize(
    ("size", "word"),
    [(0.50, "small"), (0.52, "small"), (0.56, None), (0.60, "large"), (0.62, "large")],
)
@pytest.mark.parametrize("azimuth", [0.0, 45.0, -90.0])
def test_says_how_large_it_is(size, word, azimuth):
    """The lowest and highest third of the world's sizes have words, the middle has none."""
    assert describe(picture(size=size, azimuth=azimuth)).size == word


@pytest.mark.parametrize(("azimuth", "side"), [(90.0, "left"), (-90.0, "right")])
def test_the_side_is_where_the_part_is_in_the_image(azimuth, side):
    """Its white pixels have their centre on that side."""
    image = picture(azimuth=azimuth)
    white = (image.amin(0) > 0.5).nonzero()[:, 1].float().mean()

    assert (white < 15.5) == (side == "left")
    assert describe(image).side == side


def test_a_render_of_the_grid_has_no_error():
    """Up to what squares that cancel leave; the same at another image size."""
    exact = {"size": 0.56, "height": 0.075, "radius": 0.425}

    assert describe(picture(**exact)).error < 1e-5
    assert describe(picture(**exact, pixels=16)).error < 1e-5


def test_several_images_are_described_as_each_alone():
    """In their order, the ones that cannot be described among them."""
    grey, noise = torch.full((3, 32, 32), 0.45), torch.rand(3, 32, 32).round()
    images = [picture(), grey, picture("a blue can with a green fin", azimuth=-45.0), noise]
    found = describe_each(torch.stack(images))

    for image, one in zip(images, found, strict=True):
        if isinstance(one, CaptionError):
            with pytest.raises(CaptionError) as refused:
                describe(image)
            assert str(refused.value) == str(one)
        else:
            alone = describe(image)
            assert (one.prompt, one.size, one.side) == (alone.prompt, alone.size, alone.side)
            assert one.error == pytest.approx(alone.error, abs=1e-5)
    assert [isinstance(one, Description) for one in found] == [True, False, True, False]


# -- laws --------------------------------------------------------------------------------


def test_the_truth_survives_noise():
    """A tenth of the range on every pixel changes no word of the plain caption."""
    generator = torch.Generator().manual_seed(0)
    image = picture(height=0.075, radius=0.425)
    noisy = image + 0.1 * torch.randn(image.shape, generator=generator)

    assert str(describe(noisy.clamp(0, 1)).prompt) == PROMPT


# -- errors ------------------------------------------------------------------------------


def uniform_noise():
    return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))


def two_stripes():
    image = torch.full((3, 32, 32), 0.45)
    image[:, :4] = torch.tensor([0.93, 0.12, 0.12])[:, None, None]
    image[:, -4:] = 0.98
    return image


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (torch.full((3, 32, 32), 0.45), "shows 0 colours of a body and a part, none; 2 are"),
        (uniform_noise(), "shows 1 colours of a body and a part, white; 2 are"),
        (two_stripes(), r"no body and part match the image: the nearest, 'a .*at most 0.3"),
        (picture(azimuth=180.0), "shows 1 colours of a body and a part, red; 2 are"),
        (torch.full((3, 32, 32), float("nan")), "2 are needed"),
    ],
)
def test_refuses_what_it_cannot_describe(image, reason):
    """Blank, noise, no object, a hidden part, no numbers: with the reason."""
    with pytest.raises(CaptionError, match=reason):
        describe(image)


def test_rejects_images_that_are_not_square():
    """Every frame of the world is."""
    with pytest.raises(ValueError, match=r"`image` must be square.*\(16, 32\)"):
        describe(torch.zeros(3, 16, 32))
