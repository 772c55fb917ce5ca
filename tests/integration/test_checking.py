"""`check` over the tiny recipes, on the networks that they train."""

import pytest
import torch

from mvczigal_ref.config import load_config
from mvczigal_ref.preflight.check import check
from mvczigal_ref.recipes import RECIPES, recipe

# One of each trial: pairs, groups under captions, the forward process.
SLICE = ("tiny", "tiny_mv_grpo_vlm", "tiny_diffusion_nft")
NAMES = [
    pytest.param(name, marks=() if name in SLICE else pytest.mark.slow)
    for name in RECIPES
    if name.startswith("tiny")
]


@pytest.mark.parametrize("name", NAMES)
def test_every_tiny_recipe_passes_its_check(name):
    """With shipped weights and nothing shrunk; every attempt is made."""
    result = check(load_config(recipe(name)), device=torch.device("cpu"))

    assert [(f.name, f.reason) for f in result.findings if not f.passed] == []
    assert len({finding.name for finding in result.findings}) == 10
    assert any(finding.tried for finding in result.findings)


def test_the_slice_is_of_recipes():
    """A renamed one would leave it in silence."""
    assert set(SLICE) <= set(RECIPES)
