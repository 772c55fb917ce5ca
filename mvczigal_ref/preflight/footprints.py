"""Footprints of the scorers in this process, by their sizes on the meta device."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import BlipTextConfig, CLIPConfig, CLIPModel, Qwen2VLConfig, Qwen2VLModel

from mvczigal_ref.preflight.measure import fused_attention
from mvczigal_ref.preflight.meter import Meter
from mvczigal_ref.reward.builders import ScorerOptions
from mvczigal_ref.reward.hpsv2 import vit_h_14
from mvczigal_ref.reward.hyperscore_network import HyperScoreNetwork, HyperScoreSize
from mvczigal_ref.reward.image_reward_network import ImageRewardNetwork, blip_large

__all__ = ["Footprint", "scorer_footprint"]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Weights and work of one scorer in this process."""

    parameters: int
    """Numbers that its networks hold [parameters]."""
    weights: int
    """Memory of these numbers [bytes]."""
    working: int
    """Memory of its image network on one chunk, at its peak [bytes]."""


NOTHING = Footprint(0, 0, 0)
"""Footprint of a scorer that is served elsewhere, or has no network."""


def scorer_footprint(name: str, options: ScorerOptions) -> Footprint:
    """Measure the footprint of a scorer here; sizes are the published ones.

    Args:
        name: Name of the scorer, of either kind.
        options: Dtype, size of a chunk, and whether a service has it.

    Returns:
        Footprint of the scorer; nothing for one of the tiny world or behind a URL.

    Examples:
        >>> scorer_footprint("world.joint", ScorerOptions()).weights
        0
    """
    build = _NETWORKS.get(name.partition(".")[0])
    if build is None or options.url is not None:
        return NOTHING
    with torch.device("meta"):
        network, image_network, size = build()
        network.to(options.dtype)
        rows = torch.empty(options.images_per_chunk, 3, size, size, dtype=options.dtype)
    tensors = [*network.parameters(), *network.buffers()]
    working = 0
    if image_network is not None:
        with torch.no_grad(), Meter([*tensors, rows]) as meter, fused_attention():
            image_network(pixel_values=rows)
        working = meter.peak
    return Footprint(
        parameters=sum(p.numel() for p in network.parameters()),
        weights=sum(t.numel() * t.element_size() for t in tensors),
        working=working,
    )


_Built = tuple[nn.Module, nn.Module | None, int]


def _clip(config: Callable[[], CLIPConfig]) -> _Built:
    network = CLIPModel(config())
    return network, network.vision_model, config().vision_config.image_size


def _vit_l_14() -> CLIPConfig:
    """Sizes of `openai/clip-vit-large-patch14`."""
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    vision = {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "patch_size": 14, "image_size": 224,
    }  # fmt: skip
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=768)


def _image_reward() -> _Built:
    vision = blip_large()
    text = BlipTextConfig(
        vocab_size=30_524, encoder_hidden_size=vision.hidden_size, num_hidden_layers=12,
        num_attention_heads=12, hidden_size=768, intermediate_size=3072,
    )  # fmt: skip
    network = ImageRewardNetwork(vision, text)
    return network, network.vision, vision.image_size


def _hyperscore() -> _Built:
    network = HyperScoreNetwork(HyperScoreSize())
    return network, network.clip.vision_model, HyperScoreSize().image_size


def _hpsv3() -> _Built:
    """Sizes of Qwen2-VL-7B; its images have sizes of their own, so that its work is not counted."""
    text = {
        "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152_064,
    }  # fmt: skip
    vision = {"hidden_size": 3584}
    return Qwen2VLModel(Qwen2VLConfig(text_config=text, vision_config=vision)), None, 1


_NETWORKS: dict[str, Callable[[], _Built]] = {
    "clip_score": partial(_clip, _vit_l_14),
    "pickscore": partial(_clip, vit_h_14),
    "hpsv2": partial(_clip, vit_h_14),
    "image_reward": _image_reward,
    "hyperscore": _hyperscore,
    "hpsv3": _hpsv3,
}
