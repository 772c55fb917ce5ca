"""`reward.image_reward_network`: laws."""

import torch
from transformers import BlipTextConfig

from mvczigal_ref.reward.image_reward_network import (
    ImageRewardNetwork,
    blip_large,
    from_image_reward,
    to_image_reward,
)
from tests.unit.reward import slow_transformers as slow

MED = {
    "vocab_size": 30524,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "encoder_hidden_size": 1024,
}


def test_full_size_names_and_shapes_are_the_published_ones():
    """BLIP-large, its text encoder and the head; and back without loss."""
    with torch.device("meta"):
        state = ImageRewardNetwork(blip_large(), BlipTextConfig(**MED)).state_dict()
    published = to_image_reward(state)

    assert {name: tuple(value.shape) for name, value in published.items()} == (
        slow.image_reward_shapes(
            vision=(1024, 24),
            text=(768, 12, 3072),
            vocab=30524,
            positions=512,
            patch=16,
            tokens=197,
        )
    )
    back = from_image_reward(published)
    assert back.keys() == state.keys()
    assert all(back[name] is value for name, value in state.items())


def test_what_no_shape_shows():
    """Heads, activation and the norms' floor of BLIP's own vision transformer."""
    config = blip_large()

    assert (config.num_attention_heads, config.hidden_act) == (16, "gelu")
    assert config.layer_norm_eps == 1e-6
