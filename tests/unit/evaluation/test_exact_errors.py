"""`evaluation.exact_errors`: how far images are from the nearest exact render."""

import torch

from mvczigal_ref.config import load_config
from mvczigal_ref.evaluation.exact_errors import exact_errors
from mvczigal_ref.pictures.heat import error_levels
from mvczigal_ref.recipes import recipe
from mvczigal_ref.tiny_world.grammar import split_prompts
from mvczigal_ref.tiny_world.score import nearest_renders

PROMPTS = split_prompts()[1][:2]
IMAGES = torch.rand(2, 6, 3, 32, 32, generator=torch.Generator().manual_seed(0))

# -- oracle ------------------------------------------------------------------------------


def test_errors_are_those_of_each_object_alone():
    """To the renders of one object where cameras are judged, else of each view alone."""
    config = recipe("tiny")
    alone = load_config(config, overrides=["reward.joint=per_view"])
    for settings, options in ((config, {}), (alone, {"rig": None})):
        errors = exact_errors(IMAGES, PROMPTS, settings)
        for place, prompt in enumerate(PROMPTS):
            views = IMAGES[place : place + 1]
            expected = error_levels(views, nearest_renders(views, [prompt], **options))
            assert torch.equal(errors[place : place + 1], expected)


# -- errors ------------------------------------------------------------------------------


def test_images_that_no_exact_judge_looks_at_have_none():
    """Other scorers, prompts and sizes; and no image at all."""
    config = recipe("tiny")
    other = load_config(config, overrides=["reward.joint=other.joint"])

    assert exact_errors(IMAGES, PROMPTS, other) is None
    assert exact_errors(IMAGES, [PROMPTS[0], "a dog"], config) is None
    assert exact_errors(IMAGES[..., :16, :16], PROMPTS, config) is None
    assert exact_errors(IMAGES[:0], [], config) is None
