"""FLUX.1 as a policy: oracle, laws, gradients, errors."""

import math

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.diffusion.flow_schedule import resolution_shift
from mvczigal_ref.models.flow.flux import FluxPolicy
from mvczigal_ref.models.flow.packing import image_positions, pack_latents, unpack_latents
from mvczigal_ref.models.lora import add_lora, lora_parameters
from tests.compare import FP64, assert_equal_to
from tests.unit.models.flow_small import TIMES, conditioning, latents, predict, small_flux
from tests.unit.models.small import randn

HALVES = st.integers(1, 4)


# -- oracle: diffusers' own pipeline functions and transformer ---------------------------


@given(HALVES, HALVES, st.integers(1, 3))
def test_packing_equals_diffusers(h, w, channels):
    """The same tokens in the same order; latents need not be square."""
    z = randn(2, channels, 2 * h, 2 * w)
    packed = pack_latents(z)

    assert torch.equal(packed, FluxPipeline._pack_latents(z, 2, channels, 2 * h, 2 * w))
    # Their function takes the image's size; an autoencoder of factor 1 leaves it.
    assert torch.equal(
        unpack_latents(packed, height=2 * h, width=2 * w),
        FluxPipeline._unpack_latents(packed, 2 * h, 2 * w, 1),
    )


@given(HALVES, HALVES)
def test_positions_equal_diffusers(h, w):
    """A zero, the row and the column of each token."""
    theirs = FluxPipeline._prepare_latent_image_ids(1, h, w, "cpu", torch.float32)
    assert torch.equal(image_positions(2 * h, 2 * w), theirs)


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (128, 96), (128, 128)])
def test_shift_equals_diffusers(size):
    """The exponential of their mu at the number of tokens that the policy counts."""
    policy = small_flux().policy
    tokens = (size[0] // 2) * (size[1] // 2)

    assert policy.num_tokens(*size) == tokens
    assert resolution_shift(tokens) == pytest.approx(math.exp(calculate_shift(tokens)), rel=1e-13)
    assert small_flux().noise_shift(*size) == resolution_shift(tokens)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (4, 6)])
@pytest.mark.parametrize("guidance", [None, 3.5])
def test_equals_the_transformer_called_by_hand(height, width, guidance):
    """Packed, at a thousandth of the timestep, the guidance scale told where it is embedded."""
    c = small_flux(guidance_embeds=guidance is not None)
    record, z = conditioning(c), latents(2, height, width)
    with torch.no_grad():
        tokens = c.policy.transformer(
            hidden_states=FluxPipeline._pack_latents(z, 2, 4, height, width),
            encoder_hidden_states=record.prompt_embeds,
            pooled_projections=record.pooled_prompt_embeds,
            timestep=TIMES / 1000,
            guidance=None if guidance is None else torch.full([2], guidance),
            img_ids=FluxPipeline._prepare_latent_image_ids(
                1, height // 2, width // 2, "cpu", torch.float64
            ),
            txt_ids=torch.zeros(16, 3),
        ).sample
        expected = FluxPipeline._unpack_latents(tokens, height, width, 1)
        ours = c.policy(z, TIMES, record, guidance_scale=guidance or 1.0)

    # The memory layout of the tokens differs, which moves last bits of products.
    assert_equal_to(ours, expected, 10 * FP64, axes=3)


# -- laws --------------------------------------------------------------------------------


@given(HALVES, HALVES)
def test_unpacking_undoes_packing(h, w):
    """No bit is lost."""
    z = randn(1, 3, 2 * h, 2 * w)
    assert torch.equal(unpack_latents(pack_latents(z), height=2 * h, width=2 * w), z)


def test_embedded_guidance_takes_one_call_and_no_negative_prompt():
    """The scale matters, the batch is not doubled, the negative prompt is not read."""
    c, rows = small_flux(guidance_embeds=True), []
    record = c.build_conditioning(["a can", "a red ball"])
    hook = c.policy.transformer.register_forward_pre_hook(
        lambda _module, args, _kwargs: rows.append(args[0].shape[0]), with_kwargs=True
    )
    weak, strong = (predict(c.policy, record, guidance_scale=w) for w in (1.0, 3.5))
    hook.remove()

    assert c.policy.embeds_guidance
    assert rows == [2, 2]
    assert (weak - strong).abs().max() > 1e-3


def test_full_size():
    """FLUX.1-dev has 11.9 billion parameters; its LoRA reaches 342 layers."""
    with torch.device("meta"):
        policy = FluxPolicy(FluxTransformer2DModel(guidance_embeds=True))
    assert sum(p.numel() for p in policy.parameters()) == 11_901_408_320
    assert policy.num_tokens(64, 64) == 1024

    add_lora(policy.transformer, rank=64, alpha=128.0, seed=0, targets=policy.lora_targets)
    low_rank = lora_parameters(policy.transformer)
    # Twelve layers of each two-stream block, three of each other.
    assert len(low_rank) == 2 * (19 * 12 + 38 * 3)
    assert {min(p.shape) for p in low_rank.values()} == {64}
    assert all(p.is_meta for p in policy.parameters())


# -- gradients ---------------------------------------------------------------------------


def test_gradient_flows_through_packing():
    """Every latent pixel and every layer."""
    c, z = small_flux(guidance_embeds=True), latents().requires_grad_()
    y = c.policy(z, TIMES, conditioning(c), guidance_scale=3.5)
    found = torch.autograd.grad(y.square().sum(), [z, *c.policy.parameters()], allow_unused=True)

    assert (found[0] != 0).all()
    assert all(g is not None and g.any() for g in found)


# -- errors ------------------------------------------------------------------------------


def transformer(**settings):
    small = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    small |= {"num_attention_heads": 1, "joint_attention_dim": 8, "pooled_projection_dim": 8}
    return FluxTransformer2DModel(**small, axes_dims_rope=(4, 6, 6), **settings)


def test_rejects_a_transformer_for_inpainting():
    """It takes more channels than it gives."""
    with pytest.raises(ValueError, match="as many channels as it takes; got 16 for 32"):
        FluxPolicy(transformer(in_channels=32, out_channels=16))


@pytest.mark.parametrize(("channels", "patch"), [(6, 1), (16, 2)])
def test_rejects_another_packing(channels, patch):
    """Latents are packed by four, here."""
    with pytest.raises(ValueError, match=f"packed by four .* got {channels} channels"):
        FluxPolicy(transformer(in_channels=channels, patch_size=patch))


def test_rejects_sides_that_do_not_pack():
    """Half a token is none."""
    c = small_flux()
    with pytest.raises(ValueError, match="multiples of 2; got 8 x 7"):
        c.policy(latents(2, 8, 7), TIMES, conditioning(c), guidance_scale=1.0)
