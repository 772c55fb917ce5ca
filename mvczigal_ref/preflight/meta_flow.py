"""A flow pipeline's networks without a byte of weights: sizes from a folder, or published ones."""

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.models.flow.families import FLOW_FAMILIES
from mvczigal_ref.models.flow.tiny_t5 import tiny_t5_tokenizer
from mvczigal_ref.models.mapped import cast_as_read
from mvczigal_ref.models.tiny import tiny_tokenizer
from mvczigal_ref.preflight.flow_sizes import PUBLISHED_FLOW, config_class, stored_flow_sizes
from mvczigal_ref.preflight.pipeline_sizes import pipeline_sizes
from mvczigal_ref.system.networks import DTYPES

__all__ = ["meta_flow_components"]


def meta_flow_components(config: TrainConfig) -> tuple[FlowComponents, str]:
    """Lay out a flow pipeline on the meta device.

    Args:
        config: ``model.weights`` names a folder, whose sizes are read, or a published pipeline.

    Returns:
        Networks in the types in which they are loaded, and the source of their sizes. Their
        tokenizers are the tiny ones.

    Raises:
        ConfigError: If there is no such folder, or it holds another pipeline.

    Examples:
        >>> from mvczigal_ref.recipes import recipe
        >>> components, source = meta_flow_components(recipe("flow_grpo"))
        >>> source, sum(p.numel() for p in components.policy.parameters())
        ('the published black-forest-labs/FLUX.1-dev', 11901408320)
    """
    families = {family.pipeline: family for family in FLOW_FAMILIES}
    sizes, source = pipeline_sizes(
        config.model.weights, PUBLISHED_FLOW, families, stored_flow_sizes
    )
    dtype = DTYPES[config.model.dtype]
    usual = min(sizes.family.text_length, sizes.longest_text)
    with torch.device("meta"):
        transformer = sizes.family.transformer.from_config(dict(sizes.transformer))
        vae = AutoencoderKL.from_config(dict(sizes.vae))
        encoders = tuple(
            kind(config_class(kind)(**settings))
            for kind, settings in zip(sizes.family.text_encoders, sizes.text_encoders, strict=True)
        )
        policy = sizes.family.policy(transformer).eval()
        channels = vae.config.latent_channels
        components = FlowComponents(
            tokenizers=(*(tiny_tokenizer() for _ in encoders[:-1]), tiny_t5_tokenizer()),
            text_encoders=tuple(cast_as_read(encoder, dtype) for encoder in encoders),
            vae=vae,
            policy=policy.to(dtype),
            scheduler=FlowMatchEulerDiscreteScheduler.from_config(dict(sizes.scheduler)),
            latent_mean=torch.zeros(channels),
            latent_std=torch.ones(channels),
            max_tokens=config.flow.text_length or usual,
        )
    return components, source
