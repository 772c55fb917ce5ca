"""`CaptionedViews`: oracle, laws."""

from dataclasses import fields

import pytest
import torch

from mvczigal_ref.condition.measured import describe
from mvczigal_ref.condition.protocol import CaptionError
from mvczigal_ref.diffusion.flow_schedule import shift_sigma
from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.pretraining.captioned_views import CaptionedViews, captions
from mvczigal_ref.tiny_world.grammar import all_prompts
from mvczigal_ref.tiny_world.scene import sample_scenes
from tests.unit.condition.fakes import read_caption

PROMPTS = ["a red ball with a white nose", "a blue can with a yellow fin"]


class Seeing(FlowComponents):
    """A pipeline whose latents are the images themselves."""

    def encode(self, images):
        return images


@pytest.fixture(scope="module")
def components():
    small = tiny_flow_components(
        seed=0, num_heads=1, head_width=8, num_layers=1, num_single_layers=1
    )
    return Seeing(**{field.name: getattr(small, field.name) for field in fields(small)})


@pytest.fixture(scope="module")
def views(components):
    scenes = sample_scenes(PROMPTS, per_prompt=30, generator=torch.Generator().manual_seed(0))
    return CaptionedViews(components, scenes, PROMPTS)


def drawn(views, batch=64, *, seed=0, dropout=0.0, described=0.0):
    """Draw a batch, its captions in words."""
    generator = torch.Generator().manual_seed(seed)
    clean, sigma, noise, caption = views.draw(
        batch, generator, dropout=dropout, described=described
    )
    return clean, sigma, noise, [views.captions[i] for i in caption.tolist()]


# -- oracle ------------------------------------------------------------------------------


def test_captions_are_read_by_the_measuring_enhancer():
    """Of every prompt: itself, and one word more."""
    added = [(None, None), ("small", None), ("large", None), (None, "left"), (None, "right")]
    for prompt in all_prompts():
        read = [read_caption(caption) for caption in captions(prompt)]

        assert [plain for plain, _, _ in read] == [prompt] * 5
        assert [(size, side) for _, size, side in read] == added


def test_what_a_caption_adds_is_what_is_measured(views):
    """The side wherever the part is seen; the size but where it lies between two renders."""
    images, _, _, said = drawn(views, 96, described=1.0)
    sides, sizes = [], []
    for image, caption in zip(images, said, strict=True):
        _, size, side = read_caption(caption)
        try:
            found = describe(image)
        except CaptionError:  # the part is hidden
            continue
        if side is not None:
            sides.append(side == found.side)
        if size is not None:
            sizes.append(size == found.size)
            assert {size, found.size} != {"small", "large"}

    assert len(sides) > 12
    assert all(sides)
    assert len(sizes) > 12
    assert sum(sizes) > 0.8 * len(sizes)


def test_a_plain_caption_is_the_prompt_of_its_image(views):
    """The measured colours, shape and part are those that it names."""
    for image, caption in zip(*drawn(views, 12, seed=1)[::3], strict=True):
        try:
            assert str(describe(image).prompt) == caption
        except CaptionError:
            continue


def test_features_are_those_of_the_captions(components, views):
    """Token and pooled features of each, the empty one last."""
    at = torch.tensor([1, 8, len(views.captions) - 1])
    record = views.conditioning(at)
    embeds, pooled = components.encode_prompts([views.captions[i] for i in at])

    assert views.captions[-1] == ""
    torch.testing.assert_close(record.prompt_embeds, embeds)
    torch.testing.assert_close(record.pooled_prompt_embeds, pooled)


# -- laws --------------------------------------------------------------------------------


def test_levels_are_stratified_and_shifted(views):
    """One in each equal part of the levels, shifted as the scheduler's; in no order."""
    sigma = drawn(views, 32)[1]
    edges = shift_sigma(torch.arange(33) / 32, views.shift)
    ranked = sigma.sort().values

    assert views.shift > 1
    assert (ranked >= edges[:-1]).all()
    assert (ranked <= edges[1:]).all()
    assert not torch.equal(ranked, sigma)


def test_shares_of_dropped_and_described_captions(views):
    """All, none, and about as many as asked for."""
    for described, least, most in ((0.0, 0.0, 0.0), (0.4, 0.2, 0.35), (1.0, 0.6, 0.8)):
        said = drawn(views, 512, described=described)[3]
        # Two thirds of sizes and six of eight azimuths have a word.
        assert least <= sum(caption not in PROMPTS for caption in said) / 512 <= most
    dropped = [drawn(views, 512, dropout=share)[3].count("") for share in (0.0, 0.1, 1.0)]

    assert dropped[0] == 0
    assert 30 <= dropped[1] <= 75
    assert dropped[2] == 512


def test_the_generator_alone_decides(views):
    """The same generator, the same batch, and the global one untouched."""
    state = torch.get_rng_state()
    one, same, other = drawn(views), drawn(views), drawn(views, seed=1)

    assert torch.equal(torch.get_rng_state(), state)
    for part, again, else_ in zip(one[:3], same[:3], other[:3], strict=True):
        assert torch.equal(part, again)
        assert not torch.equal(part, else_)
