"""`flow_sizes`: every published pipeline is laid out at its own size."""

import pytest

from mvczigal_ref.models.lora import add_lora, lora_parameters
from mvczigal_ref.preflight.flow_sizes import PUBLISHED_FLOW
from mvczigal_ref.preflight.meta_flow import meta_flow_components
from mvczigal_ref.recipes import RECIPES
from tests.integration.runs import cases

# Parameters of the transformer and of the text encoders; layers that a LoRA adapts; tokens and
# width of a prompt's features, and width of its pooled ones.
NEW = (
    "black-forest-labs/FLUX.1-schnell",
    "stabilityai/stable-diffusion-3.5-large",
    "Tongyi-MAI/Z-Image-Turbo",
)
EXPECTED = {
    "black-forest-labs/FLUX.1-dev": (11_901_408_320, 4_885_371_136, 342, ((128, 4096), 768)),
    "black-forest-labs/FLUX.1-schnell": (11_891_178_560, 4_885_371_136, 342, ((256, 4096), 768)),
    "stabilityai/stable-diffusion-3.5-medium": (
        2_243_171_520, 5_580_620_800, 191, ((205, 4096), 2048),
    ),
    "stabilityai/stable-diffusion-3.5-large": (
        8_056_627_520, 5_580_620_800, 303, ((205, 4096), 2048),
    ),
    "Tongyi-MAI/Z-Image-Turbo": (6_154_908_736, 4_022_468_096, 136, ((512, 2560), 512)),
}  # fmt: skip


def test_every_published_pipeline_has_a_recipe():
    """And the other way round: each flow recipe of full size names one of them."""
    named = {
        config.model.weights
        for config in (build() for build in RECIPES.values())
        if config.model.network == "flow" and config.model.weights != "tiny_flow"
    }

    assert named == PUBLISHED_FLOW.keys() == EXPECTED.keys()


@pytest.mark.parametrize("name", cases({name: name for name in EXPECTED}, *NEW))
def test_a_published_pipeline_has_its_size(name):
    """Transformer, text encoders and adapted layers, without a byte of weights."""
    recipe = next(build for build in RECIPES.values() if build().model.weights == name)
    components, source = meta_flow_components(recipe())
    transformer = components.policy.transformer
    size = sum(p.numel() for p in transformer.parameters())
    texts = sum(p.numel() for encoder in components.text_encoders for p in encoder.parameters())
    add_lora(transformer, rank=4, alpha=4.0, seed=0, targets=components.policy.lora_targets)

    assert source == f"the published {name}"
    adapted = len(lora_parameters(transformer)) // 2
    assert (size, texts, adapted, components.feature_sizes) == EXPECTED[name]
