"""`grammar`: oracle (what was rendered), laws, errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvczigal_ref.condition.description import INSTRUCTIONS, SIDES, SIZES, Description
from mvczigal_ref.condition.measured import describe, describe_each
from mvczigal_ref.condition.protocol import Caption, CaptionError
from mvczigal_ref.condition.tiny_world import GrammarEnhancer
from mvczigal_ref.models.tiny import tiny_tokenizer
from mvczigal_ref.tiny_world.grammar import PARTS, SHAPES, all_prompts, parse
from mvczigal_ref.tiny_world.render import Geometry, Nuisance, colour_maps, paint, render_maps
from tests.unit.condition.fakes import read_caption

PROMPT = "a red cube with a white nose"


def picture(prompt=PROMPT, *, azimuth=45.0, size=0.52, height=0.1, radius=0.46, pixels=32):
    """Render one object by hand."""
    said = parse(prompt)
    nuisance = Nuisance(*(torch.tensor([value]) for value in (size, height, radius)))
    maps = render_maps(
        Geometry(said.shape, said.part, nuisance), torch.tensor([azimuth]), image_size=pixels
    )
    return paint(maps, colour_maps(said))[0, 0]


def group(*pictures):
    """Put pictures into one group of single views."""
    return torch.stack(pictures)[None, :, None]


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


def test_captions_say_one_thing_more():
    """If it can be said; else they are plain."""
    said = parse(PROMPT)
    both = Description(prompt=said, size="large", side="right", error=0.0)
    none = Description(prompt=said, size=None, side=None, error=0.0)

    assert [both.caption(name) for name in INSTRUCTIONS] == [
        PROMPT,
        "a large red cube with a white nose",
        "a red cube with a white nose at right",
    ]
    assert {none.caption(name) for name in INSTRUCTIONS} == {PROMPT}


def test_describes_each_sample_and_names_what_was_said():
    """Whatever the prompt claims; a word that cannot be said makes the caption plain."""
    images = group(picture(), picture(size=0.6), picture(azimuth=0.0, size=0.56))
    for name, captions in {
        "plain": [(PROMPT, "plain")] * 3,
        "size": [
            ("a small red cube with a white nose", "size"),
            ("a large red cube with a white nose", "size"),
            (PROMPT, "plain"),
        ],
        "side": [(f"{PROMPT} at left", "side")] * 2 + [(PROMPT, "plain")],
    }.items():
        (made,) = GrammarEnhancer(instructions=[name])(
            ["a blue ball with a red fin"], images, seed=0
        )
        assert [(c.caption, c.instruction) for c in made] == captions
        assert [c.sample for c in made] == [0, 1, 2]


def test_of_several_views_the_best_explained_is_described():
    """One that hides the part does not matter, and a side is not said."""
    exact = picture(size=0.52, height=0.075, radius=0.425)
    views = torch.stack([picture(azimuth=180.0), exact, picture(size=0.6, height=0.15)])
    for name, caption in {"size": "a small red cube with a white nose", "side": PROMPT}.items():
        (made,) = GrammarEnhancer(instructions=[name])(["x"], views[None, None], seed=0)
        told = "plain" if caption == PROMPT else name
        assert made == (Caption(caption=caption, instruction=told, sample=0),)


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", all_prompts()[::7])
def test_every_caption_reads_back_and_fits_the_text_encoders(prompt):
    """The four added words are the only ones, and none is cut off by 16 tokens."""
    tokenizer = tiny_tokenizer()
    for size in (None, *SIZES):
        for side in (None, *SIDES):
            found = Description(prompt=parse(prompt), size=size, side=side, error=0.0)
            for name in INSTRUCTIONS:
                caption = found.caption(name)
                words = (size if name == "size" else None, side if name == "side" else None)
                assert read_caption(caption) == (prompt, *words)
                assert len(tokenizer(caption).input_ids) <= tokenizer.model_max_length


@settings(max_examples=5)
@given(st.permutations(range(3)), st.integers(0, 99))
def test_permuting_prompts_permutes_captions(order, seed):
    """Instructions are drawn by prompt and sample; equal seeds draw alike."""
    prompts = ["one", "two", "three"]
    images = torch.cat([group(picture(size=size), picture(size=0.6)) for size in (0.5, 0.56, 0.62)])
    enhancer = GrammarEnhancer(instructions=INSTRUCTIONS)
    whole = enhancer(prompts, images, seed=seed)

    assert all(len(captions) == enhancer.num_captions(2) == 2 for captions in whole)
    assert enhancer([prompts[i] for i in order], images[list(order)], seed=seed) == [
        whole[i] for i in order
    ]


def test_every_instruction_is_drawn():
    """Over twenty seeds, each of the three appears."""
    enhancer = GrammarEnhancer(instructions=INSTRUCTIONS)
    images = group(picture())
    told = {enhancer(["x"], images, seed=seed)[0][0].instruction for seed in range(20)}

    assert told == set(INSTRUCTIONS)


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


def test_raises_or_keeps_the_prompt():
    """A sample that cannot be described is named, or has the prompt for a caption."""
    images = group(picture(), torch.full((3, 32, 32), 0.45))
    with pytest.raises(CaptionError, match="the prompt 'a cow', sample 1: the image shows 0"):
        GrammarEnhancer()(["a cow"], images, seed=0)
    (made,) = GrammarEnhancer(on_refusal="prompt")(["a cow"], images, seed=0)

    assert [(c.caption, c.instruction) for c in made] == [(PROMPT, "plain"), ("a cow", "none")]


def test_rejects_images_that_are_not_square():
    """Every frame of the world is."""
    with pytest.raises(ValueError, match=r"`image` must be square.*\(16, 32\)"):
        describe(torch.zeros(3, 16, 32))


def test_rejects_no_images():
    """There is nothing to measure."""
    with pytest.raises(ValueError, match="got no images"):
        GrammarEnhancer()(["a cow"], seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instructions": []}, r"`instructions` must be some of .*; got \(\)"),
        ({"instructions": ["mood"]}, r"`instructions` must be some of .*'mood'"),
        ({"max_error": 0.0}, "`max_error` must be positive; got 0.0"),
    ],
)
def test_rejects_bad_settings(options, message):
    """By name."""
    with pytest.raises(ValueError, match=message):
        GrammarEnhancer(**options)
