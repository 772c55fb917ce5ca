"""`models.downloads`: a command that fetches what is missing, with its size."""

import pytest

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.downloads import PARTS
from mvczigal_ref.models.flow.loading import load_flow
from mvczigal_ref.recipes import recipe, recipe_names


def test_every_recipe_of_a_flow_names_sizes():
    """Each pipeline that a recipe trains is one whose parts are known."""
    weights = {recipe(name).model.weights for name in recipe_names()}

    assert {name for name in weights if "/" in name} <= PARTS.keys()


@pytest.mark.parametrize(
    ("source", "size"),
    [("black-forest-labs/FLUX.1-dev", "33.7"), ("stabilityai/stable-diffusion-3.5-medium", "16.2")],
)
def test_a_pipeline_that_is_not_here_is_named_with_sizes(source, size):
    """Every folder, the sum, and a command that leaves out the single files."""
    with pytest.raises(CheckpointError) as caught:
        load_flow(source)
    text = str(caught.value)

    assert f", {size} GB in all: hf download {source} --include 'transformer/*'" in text
    for part, weight in PARTS[source].items():
        assert f"{part} ({weight:.1f} GB)" in text
        assert f"--include '{part}/*'" in text
    assert ("tokenizer_3" in text) == ("text_encoder_3" in PARTS[source])
