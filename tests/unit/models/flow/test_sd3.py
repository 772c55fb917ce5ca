"""Stable Diffusion 3.5 as a policy: oracle, laws, gradients, errors."""

import pytest
import torch
from diffusers import SD3Transformer2DModel

from mvczigal_ref.models.flow.sd3 import Sd3Policy
from mvczigal_ref.models.lora import add_lora, lora_parameters
from tests.compare import FP64, assert_equal_to
from tests.unit.models.flow_small import TIMES, conditioning, latents, small_sd3

# -- oracle: diffusers' transformer, and the guidance written out ------------------------


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 10)])
@torch.no_grad()
def test_equals_the_transformer_called_by_hand(height, width):
    """At the timestep itself; with guidance, v0 + w (vc - v0) of two separate calls."""
    c, z = small_sd3(), latents(2, height, width)
    record = conditioning(c)

    def call(text, pooled):
        return c.policy.transformer(
            hidden_states=z,
            timestep=TIMES,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            return_dict=False,
        )[0]

    plain = call(record.prompt_embeds, record.pooled_prompt_embeds)
    away = call(
        record.negative_prompt_embeds.expand(2, -1, -1),
        record.negative_pooled_prompt_embeds.expand(2, -1),
    )
    ours = [c.policy(z, TIMES, record, guidance_scale=w) for w in (1.0, 4.5)]

    assert torch.equal(ours[0], plain)
    # The doubled batch is another matrix product, and the difference cancels.
    assert_equal_to(ours[1], away + 4.5 * (plain - away), 100 * FP64, axes=3)


# -- laws --------------------------------------------------------------------------------


def test_full_size():
    """3.5-Medium has 2.24 billion parameters; its LoRA leaves the second attention alone."""
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(
            num_layers=24,
            num_attention_heads=24,
            caption_projection_dim=1536,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            qk_norm="rms_norm",
        )
    policy = Sd3Policy(transformer)
    assert sum(p.numel() for p in policy.parameters()) == 2_243_171_520
    assert policy.num_tokens(64, 64) == 1024

    add_lora(policy.transformer, rank=32, alpha=64.0, seed=0, targets=policy.lora_targets)
    names = list(lora_parameters(policy.transformer))
    # Eight layers a block; the last block's text stream ends without an output.
    assert len(names) == 2 * (24 * 8 - 1)
    assert not any(".attn2." in name for name in names)


# -- gradients ---------------------------------------------------------------------------


def test_gradient_flows():
    """To the latents through both halves of the doubled batch, and to the network."""
    c, z = small_sd3(), latents().requires_grad_()
    y = c.policy(z, TIMES, conditioning(c), guidance_scale=4.5)
    named = dict(c.policy.named_parameters())
    found = torch.autograd.grad(y.square().sum(), [z, *named.values()], allow_unused=True)

    assert (found[0] != 0).all()
    # The last block answers its text's queries to nobody.
    last = "transformer.transformer_blocks.1.attn."
    unmoved = {n for n, g in zip(named, found[1:], strict=True) if g is None or not g.any()}
    assert unmoved == {
        last + name for name in ("add_q_proj.weight", "add_q_proj.bias", "norm_added_q.weight")
    }


# -- errors ------------------------------------------------------------------------------


def test_rejects_sides_that_are_cut():
    """The network would drop the last column without a word."""
    c = small_sd3()
    with pytest.raises(ValueError, match=r"`latent_t` must have sides .* got 7 x 8"):
        c.policy(latents(2, 7, 8), TIMES, conditioning(c), guidance_scale=1.0)
