"""`models.downloads`: a command that fetches what is missing, with its size."""

import math
from collections.abc import Mapping

import pytest
from torch import nn

from mvczigal_ref.config import ModelConfig, TrainConfig
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.downloads import NETWORKS, PARTS, download_hint
from mvczigal_ref.models.flow.loading import load_flow
from mvczigal_ref.preflight.meta_flow import meta_flow_components
from mvczigal_ref.preflight.meta_networks import meta_multiview_components
from mvczigal_ref.preflight.meta_unet import meta_unet_components
from mvczigal_ref.recipes import recipe, recipe_names
from tests.unit.models.test_multiview_unet import published_names

# -- oracle -------------------------------------------------------------------------------


def stored(network: nn.Module) -> int:
    """Count the numbers in a network's file, shared ones once."""
    tensors = {id(tensor): tensor for tensor in network.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() for tensor in tensors.values())


def counted(source: str) -> Mapping[str, int]:
    """Count a published pipeline's numbers by folder, from the shapes of its networks."""
    of_unet = "unet" in PARTS[source]
    config = next(run for run in map(recipe, recipe_names()) if run.model.weights == source)
    components, _ = (meta_unet_components if of_unet else meta_flow_components)(config)
    network = components.policy.unet if of_unet else components.policy.transformer
    encoders = {
        "text_encoder" + (f"_{place}" if place > 1 else ""): stored(encoder)
        for place, encoder in enumerate(components.text_encoders, 1)
    }
    name = "unet" if of_unet else "transformer"
    return {name: stored(network), **encoders, "vae": stored(components.vae)}


# -- laws ---------------------------------------------------------------------------------


@pytest.mark.parametrize("source", PARTS)
def test_sizes_are_those_of_the_shapes(source):
    """Number for number, of every network of every published pipeline."""
    assert counted(source) == PARTS[source]


def test_sizes_of_the_multi_view_pipeline_are_those_of_the_published_files():
    """By the names and shapes of the released code's tensors, and by ours."""
    shapes = {
        name: sum(math.prod(shape) for shape in published_names(f"names_{file}").values())
        for name, file in {
            "unet": "unet_sdxl", "lcm_unet": "unet_lcm_sdxl", "adapter": "custom_adapter_sdxl",
        }.items()
    }  # fmt: skip
    components, _ = meta_multiview_components(TrainConfig(model=ModelConfig(weights="lcm_sdxl")))
    rest = {name: stored(getattr(components, name)) for name in NETWORKS if name not in shapes}

    assert shapes | rest == NETWORKS


def test_every_recipe_of_a_flow_names_sizes():
    """Each pipeline that a recipe trains is one whose parts are known."""
    weights = {recipe(name).model.weights for name in recipe_names()}

    assert {name for name in weights if "/" in name} <= PARTS.keys()


@pytest.mark.parametrize(
    ("source", "sizes"),
    [
        ("black-forest-labs/FLUX.1-dev", ("23.8 GB", "246 MB", "9.52 GB", "168 MB", "33.7 GB")),
        (
            "stabilityai/stable-diffusion-3.5-medium",
            ("4.94 GB", "247 MB", "1.39 GB", "9.52 GB", "168 MB", "16.3 GB"),
        ),
    ],
)
def test_a_pipeline_that_is_not_here_is_named_with_sizes(source, sizes):
    """Every folder, the sum, and a command that leaves out the single files."""
    with pytest.raises(CheckpointError) as caught:
        load_flow(source)
    text = str(caught.value)

    assert f", {sizes[-1]} in all: hf download {source} --include 'transformer/*'" in text
    for part, size in zip(PARTS[source], sizes[:-1], strict=True):
        assert f"{part} ({size})" in text
        assert f"--include '{part}/*'" in text
    assert ("tokenizer_3" in text) == ("text_encoder_3" in PARTS[source])


@pytest.mark.parametrize("source", [name for name, parts in PARTS.items() if "unet" in parts])
def test_of_pipelines_with_a_unet_the_half_precision_files_are_fetched(source):
    """Their folders hold the weights again, twice as large and for other libraries."""
    text = download_hint(source)

    for part in PARTS[source]:
        assert f"--include '{part}/*.json' --include '{part}/*.fp16.safetensors'" in text
        assert f"'{part}/*'" not in text
    assert "--include 'tokenizer/*'" in text
