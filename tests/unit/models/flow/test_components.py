"""Flow pipelines: oracle, laws, gradients, errors."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
)
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5EncoderModel,
    T5Tokenizer,
)

from mvczigal_ref.diffusion.flow_schedule import flow_sigmas
from mvczigal_ref.models.flow.families import FLUX, SD3, family_of
from mvczigal_ref.models.flow.packing import pack_latents
from mvczigal_ref.models.loading import quiet
from mvczigal_ref.models.lora import add_lora
from tests.compare import FP64, assert_equal_to
from tests.unit.models.flow_small import (
    PROMPTS,
    fresh_flux,
    fresh_sd3,
    latents,
    sd3_pipeline,
    small_flux,
    small_sd3,
)

FRESH = {"flux": fresh_flux, "sd3": fresh_sd3}
STOCK = {
    "flux": {
        "transformer": FluxTransformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModel,
        "text_encoder_2": T5EncoderModel,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": T5Tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler,
    },
    "sd3": {
        "transformer": SD3Transformer2DModel,
        "vae": AutoencoderKL,
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "tokenizer_3": T5Tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler,
    },
}


@torch.no_grad()
def sampled(components, sigmas, noise, *, guidance_scale, negative_prompt=None):
    """Follow the ODE with Euler's steps and decode."""
    record = components.build_conditioning(PROMPTS, negative_prompt=negative_prompt)
    x = noise
    for here, below in pairwise(sigmas):
        v = components.policy(x, 1000 * here, record, guidance_scale=guidance_scale)
        x = x + (below - here) * v
    return components.decode(x)


# -- oracle: diffusers' own pipelines, from prompts to images ----------------------------


def test_flux_samples_the_images_of_diffusers(tmp_path):
    """The saved folder, run by diffusers, gives our images: every part means the same."""
    c = fresh_flux(guidance_embeds=True).to(dtype=torch.float32)
    scaling = {"latent_mean": torch.full((4,), 0.25), "latent_std": torch.full((4,), 2.0)}
    c = replace(c, **scaling)
    c.save(tmp_path)
    with quiet():
        pipeline = FluxPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    noise = latents().float()
    theirs = pipeline(
        PROMPTS,
        height=32,
        width=32,
        num_inference_steps=3,
        guidance_scale=3.5,
        latents=pack_latents(noise),
        max_sequence_length=16,
        output_type="pt",
    ).images
    sigmas = flow_sigmas(3, shift=c.noise_shift(8, 8), dtype=torch.float32)
    ours = sampled(c, sigmas, noise, guidance_scale=3.5)

    # fp32 through three steps and the decoder.
    assert_equal_to(ours, theirs, 2e-5, axes=3)


def test_sd3_samples_the_images_of_diffusers():
    """With guidance away from the empty text, on the grid of a fixed shift."""
    c = fresh_sd3().to(dtype=torch.float32)
    c.vae.register_to_config(shift_factor=0.25, scaling_factor=0.5)
    pipeline = sd3_pipeline(c)
    pipeline.set_progress_bar_config(disable=True)
    noise = latents().float()
    theirs = pipeline(
        PROMPTS,
        height=32,
        width=32,
        num_inference_steps=3,
        guidance_scale=4.5,
        latents=noise,
        max_sequence_length=12,
        output_type="pt",
    ).images
    shift = c.noise_shift(8, 8)
    lowest = c.lowest_sigma(shift)
    sigmas = flow_sigmas(3, shift=shift, lowest_sigma=lowest, dtype=torch.float32)
    ours = sampled(c, sigmas, noise, guidance_scale=4.5, negative_prompt="")

    assert shift == 3.0
    # fp32 through three guided steps and the decoder.
    assert_equal_to(ours, theirs, 5e-5, axes=3)


@torch.no_grad()
def test_encode_and_decode_scale_each_channel():
    """Latents are the posterior's mean, less a mean, over a standard deviation; and back."""
    mean, std = (0.5, -1.0, 2.0, 0.0), (2.0, 0.5, 1.0, 3.0)
    c = replace(small_flux(), latent_mean=torch.tensor(mean), latent_std=torch.tensor(std))
    images = torch.rand(2, 1, 3, 16, 8, generator=torch.Generator().manual_seed(0)).double()
    latent = c.encode(images)
    raw = torch.stack([latent[:, 0, k] * std[k] + mean[k] for k in range(4)], dim=1)

    assert latent.shape == (2, 1, 4, 4, 2)
    assert_equal_to(raw, c.vae.encode(images[:, 0] * 2 - 1).latent_dist.mode(), FP64, axes=3)
    expected = (c.vae.decode(raw).sample / 2 + 0.5).clamp(0, 1)
    assert_equal_to(c.decode(latent)[:, 0], expected, FP64, axes=3)


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("small", [small_flux, small_sd3])
def test_conditioning_is_the_record_of_all_policies(small):
    """One view, no cameras, one negative prompt for all; it narrows and repeats."""
    c = small()
    record = c.build_conditioning(PROMPTS, negative_prompt="")
    embeds, pooled = c.encode_prompts(PROMPTS)
    away, away_pooled = c.encode_prompts([""])

    assert torch.equal(record.prompt_embeds, embeds)
    assert torch.equal(record.pooled_prompt_embeds, pooled)
    assert torch.equal(record.negative_prompt_embeds, away)
    assert torch.equal(record.negative_pooled_prompt_embeds, away_pooled)
    assert (record.num_views, record.camera_features) == (1, ())
    assert not record.time_ids.any()
    assert record.objects(slice(1, 2)).repeat(3).num_objects == 3
    assert c.build_conditioning(PROMPTS).negative_prompt_embeds is None


def test_images_stay_in_their_range_and_type():
    """Whatever the latent, and whatever the autoencoder computes in."""
    c = fresh_flux().to(dtype=torch.bfloat16)
    image = c.decode(100.0 * latents())

    assert image.dtype == torch.float64
    assert (image.min(), image.max()) == (0.0, 1.0)
    assert c.encode(torch.rand(1, 3, 32, 32)).dtype == torch.float32


def test_moving_returns_components_of_the_same_networks():
    """Networks move in place."""
    c = fresh_flux()
    moved = c.to("cpu", torch.float32)

    assert moved.policy is c.policy
    for network in (*moved.text_encoders, moved.vae, moved.policy):
        assert {value.dtype for value in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_stock_classes_load_every_part(kind, tmp_path):
    """Without a tensor missing or left over; the index names each class."""
    c = FRESH[kind]()
    c.save(tmp_path, dtype=torch.float16)
    index = json.loads((tmp_path / "model_index.json").read_text("utf-8"))

    assert index.pop("_class_name") == family_of(c.policy).pipeline
    assert {name: value[1] for name, value in index.items()} == {
        name: stock.__name__ for name, stock in STOCK[kind].items()
    }
    for name, stock in STOCK[kind].items():
        with quiet():
            if name.startswith(("tokenizer", "scheduler")):
                stock.from_pretrained(tmp_path / name)
                continue
            network, info = stock.from_pretrained(tmp_path / name, output_loading_info=True)
        assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert sum(p.numel() for p in network.parameters()) > 0
    scaling = json.loads((tmp_path / "vae" / "config.json").read_text("utf-8"))
    expected = {"flux": (0.0, 1.0), "sd3": (0.25, 0.5)}[kind]
    assert (scaling["shift_factor"], scaling["scaling_factor"]) == expected
    assert c.policy.dtype == torch.float64


def test_families_are_told_apart():
    """By the policy."""
    assert family_of(small_flux().policy) is FLUX
    assert family_of(small_sd3().policy) is SD3


# -- gradients ---------------------------------------------------------------------------


def test_gradient_flows_through_both_ways():
    """Images to latents, latents to images."""
    c = small_flux()
    images = torch.rand(1, 3, 16, 16, dtype=torch.float64).requires_grad_()
    latent = latents(1, 4, 4).requires_grad_()
    (g_images,) = torch.autograd.grad(c.encode(images).sum(), images)
    (g_latent,) = torch.autograd.grad(c.decode(latent).sum(), latent)

    assert g_images.any()
    assert g_latent.any()


# -- errors ------------------------------------------------------------------------------


def test_rejects_saving_with_a_lora(tmp_path):
    """Its names would not be a plain transformer's."""
    c = fresh_flux()
    add_lora(c.policy.transformer, rank=1, alpha=1.0, seed=0, targets=["attn.to_q"])
    with pytest.raises(ValueError, match="`policy` must hold no LoRA to be saved whole"):
        c.save(tmp_path)


def test_rejects_another_policy():
    """Only two families are known."""

    class Other(type(small_flux().policy).__mro__[1]):
        def velocity(self, sample, timestep, text, pooled, *, guidance_scale):
            return sample

    with pytest.raises(ValueError, match=r"must be one of FluxPolicy, Sd3Policy, .*; got Other"):
        family_of(Other(small_flux().policy.transformer))
