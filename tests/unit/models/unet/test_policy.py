"""`SingleViewUnet`: diffusers' own pipelines as oracle, laws, sizes, errors."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from mvczigal_ref.diffusion.ddim import DdimSampler
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar
from mvczigal_ref.models.lora import add_lora, lora_parameters
from mvczigal_ref.models.unet.policy import SINGLE_VIEW_LORA_TARGETS, SingleViewUnet
from mvczigal_ref.preflight.unet_sizes import PUBLISHED_UNETS
from tests.unit.models.small import randn
from tests.unit.models.unet.parts import KINDS, PROMPTS, small_unet, stock_pipeline

TIMES = torch.tensor([900, 250])


def predict(components, *, guidance_scale=1.0, rows=slice(None), **changes):
    """Predict at common states and times, without gradient."""
    record = components.build_conditioning(PROMPTS, image_size=32, negative_prompt="a black can")
    record = replace(record.objects(rows), **changes)
    with torch.no_grad():
        return components.policy(
            randn(2, 4, 8, 8)[rows], TIMES[rows], record, guidance_scale=guidance_scale
        )


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sampled_image_is_that_of_diffusers_own_pipeline(kind, guidance_scale):
    """Text, sizes, guidance and steps of DDIM, from the same noise."""
    components = small_unet(kind)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=True, timestep_spacing="trailing", steps_offset=1,
    )  # fmt: skip
    scheduler.alphas_cumprod = scaled_linear_alpha_bar(dtype=torch.float64)
    pipeline = stock_pipeline(components, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    noise = randn(1, 4, 8, 8)
    theirs = pipeline(
        PROMPTS[0], negative_prompt="a black can", latents=noise, num_inference_steps=3,
        guidance_scale=guidance_scale, height=32, width=32, eta=0.0, output_type="latent",
    ).images  # fmt: skip
    sampler = DdimSampler.create(
        num_steps=3, alpha_bar=scheduler.alphas_cumprod, eta=0.0, timestep_spacing="trailing"
    )
    record = components.build_conditioning(
        PROMPTS[:1], image_size=32, negative_prompt="a black can"
    )
    latent = noise
    for step in range(3):
        with torch.no_grad():
            output = components.policy(
                latent, sampler.timesteps[step], record, guidance_scale=guidance_scale
            )
        taken = sampler.transition(output, latent, step)
        latent = taken.mean

    torch.testing.assert_close(taken.denoised, theirs, rtol=1e-6, atol=1e-7)


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_depends_on_its_own_prompt_alone(kind):
    """Alone it has the numbers that it has beside another; at w = 1 there is no guidance."""
    components = small_unet(kind)
    both = predict(components, guidance_scale=3.0)
    alone = predict(components, guidance_scale=3.0, rows=slice(1, 2))

    torch.testing.assert_close(both[1:], alone, rtol=1e-9, atol=1e-10)
    assert (predict(components) - both).abs().max() > 1e-6
    assert torch.equal(predict(components), predict(components, guidance_scale=0.0))


def test_sdxl_alone_reads_sizes_and_pooled_features():
    """Stable Diffusion 1.5 has neither."""
    for kind, reads in (("sdxl", True), ("sd15", False)):
        components = small_unet(kind)
        other = predict(components, time_ids=torch.full((2, 6), 7.0).double())

        assert components.policy.reads_sizes == reads
        assert torch.equal(other, predict(components)) == (not reads)


def test_a_guidance_embedding_is_called_once():
    """As LCM-SDXL: the scale is an input, and no negative prompt is read."""
    components = small_unet("sdxl", time_cond_proj_dim=8)
    bare = {"negative_prompt_embeds": None, "negative_pooled_prompt_embeds": None}

    assert components.policy.guidance_width == 8
    low, high = (predict(components, guidance_scale=w, **bare) for w in (1.0, 7.0))
    assert (low - high).abs().max() > 1e-6


@pytest.mark.parametrize("name", [n for n in PUBLISHED_UNETS if "turbo" not in n])
def test_a_published_unet_has_its_size_and_its_lora_targets(name):
    """On the meta device: parameters, and layers that a LoRA adapts, two factors each."""
    sizes = PUBLISHED_UNETS[name]
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(sizes.unet))
        policy = SingleViewUnet(unet)
        add_lora(unet, rank=4, alpha=4.0, seed=0, targets=SINGLE_VIEW_LORA_TARGETS)
    adapted = lora_parameters(unet)
    frozen = sum(p.numel() for p in unet.parameters()) - sum(p.numel() for p in adapted.values())
    xl = policy.reads_sizes

    assert frozen == (2_567_463_684 if xl else 859_520_964)
    assert len(adapted) == 2 * (560 if xl else 128)
    place = "up_blocks.0.attentions.2" if xl else "up_blocks.3.attentions.2"
    ending = f"{place}.transformer_blocks.0.attn2.to_k.lora_A.weight"
    assert adapted[ending].shape == (4, 2048 if xl else 768)


# -- errors ------------------------------------------------------------------------------


def test_other_networks_are_refused():
    """Those of classes, and those that take a second image."""
    settings = dict(small_unet("sd15").policy.unet.config)
    settings.pop("_use_default_values")  # of which changes would be dropped
    for change, message in (
        ({"in_channels": 9}, "must give as many channels as it takes; got 4 for 9"),
        ({"class_embed_type": "timestep"}, "must be conditioned as SDXL or Stable Diffusion 1.5"),
    ):
        with torch.device("meta"), pytest.raises(ValueError, match=message):
            SingleViewUnet(UNet2DConditionModel.from_config(settings | change))


def test_conditioning_of_other_shapes_is_refused():
    """Cameras, and another number of rows."""
    components = small_unet("sd15")
    record = components.build_conditioning(PROMPTS, image_size=32)
    call = {"timestep": TIMES[:1], "guidance_scale": 1.0}
    with pytest.raises(ValueError, match=r"`latent_t` must hold one row per object, 2; got 1"):
        components.policy(randn(1, 4, 8, 8), conditioning=record, **call)
    with pytest.raises(ValueError, match="must have one view and no cameras"):
        components.policy(randn(4, 4, 8, 8), conditioning=replace(record, num_views=2), **call)
    with pytest.raises(ValueError, match=r"negative_prompt_embeds` must be given"):
        components.policy(
            randn(2, 4, 8, 8), conditioning=record, **(call | {"guidance_scale": 2.0})
        )
