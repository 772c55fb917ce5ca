"""`ZImagePolicy`: diffusers' pipeline as oracle, laws, errors."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel

from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.flow_schedule import flow_sigmas
from mvczigal_ref.models.flow.loading import load_flow
from mvczigal_ref.models.flow.tiny_z_image import tiny_z_image_components
from mvczigal_ref.models.flow.z_image import ZImagePolicy
from tests.unit.models.small import randn

PROMPTS = ["a red cube with a white nose", "a can"]
TIMES = torch.tensor([900.0, 250.5])


@cache
def small():
    """Build it once; no test changes it."""
    return tiny_z_image_components(seed=0)


def predict(rows=slice(None), *, guidance_scale=1.0, **changes):
    """Predict at common states and times, without gradient."""
    record = small().build_conditioning(PROMPTS, negative_prompt="a black can")
    record = replace(record.objects(rows), **changes)
    latent = randn(2, 4, 8, 8).float()[rows]
    with torch.no_grad():
        return small().policy(latent, TIMES[rows], record, guidance_scale=guidance_scale)


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_sampled_image_is_that_of_diffusers_own_pipeline(guidance_scale):
    """Chat, lengths, time, sign, guidance and grid, from the same noise; its w counts from 0."""
    components = small()
    pipeline = ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=components.vae,
        text_encoder=components.text_encoders[0],
        tokenizer=components.tokenizers[0],
        transformer=components.policy.transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = randn(1, 4, 8, 8).float()
    theirs = pipeline(
        [PROMPTS[0]], negative_prompt=["a black can"], latents=noise, num_inference_steps=3,
        guidance_scale=guidance_scale - 1.0, height=32, width=32, output_type="latent",
        max_sequence_length=components.max_tokens,
    ).images  # fmt: skip
    sampler = FlowSampler.create(sigmas=flow_sigmas(3, shift=3.0), kernel="ode")
    record = components.build_conditioning(PROMPTS[:1], negative_prompt="a black can")
    latent = noise
    for step in range(3):
        with torch.no_grad():
            output = components.policy(
                latent, sampler.timesteps[step].float(), record, guidance_scale=guidance_scale
            )
        latent = sampler.transition(output, latent, step).mean.float()

    assert components.noise_shift(8, 8) == 3.0
    torch.testing.assert_close(latent, theirs, rtol=1e-4, atol=1e-4)


# -- laws --------------------------------------------------------------------------------


def test_a_row_depends_on_its_own_prompt_alone():
    """Beside a prompt of another length it has the numbers that it has alone."""
    both = predict(guidance_scale=3.0)

    assert small().build_conditioning(PROMPTS).pooled_prompt_embeds.sum(-1).unique().numel() == 2
    torch.testing.assert_close(
        both[1:], predict(slice(1, 2), guidance_scale=3.0), rtol=1e-4, atol=1e-5
    )
    assert (both - predict()).abs().max() > 1e-4


def test_padding_is_not_read():
    """What stands where the mask is 0 changes nothing."""
    record = small().build_conditioning(PROMPTS)
    text = record.prompt_embeds + 7.0 * (1.0 - record.pooled_prompt_embeds)[..., None]

    assert torch.equal(predict(prompt_embeds=text), predict())
    assert not torch.equal(predict(prompt_embeds=record.prompt_embeds + 7.0), predict())


def test_it_returns_as_it_was_saved(tmp_path):
    """By the name of its pipeline, with the template of its chats."""
    small().save(tmp_path)
    loaded = load_flow(tmp_path)

    assert loaded.max_tokens == small().max_tokens
    pairs = zip(loaded.encode_prompts(PROMPTS), small().encode_prompts(PROMPTS), strict=True)
    assert all(torch.equal(ours, saved) for ours, saved in pairs)
    states = (c.policy.state_dict() for c in (loaded, small()))
    assert all(map(torch.equal, *(state.values() for state in states)))


# -- errors ------------------------------------------------------------------------------


def test_other_patches_are_refused():
    """The pipeline knows patches of 2 alone."""
    settings = dict(small().policy.transformer.config) | {"all_patch_size": (4,)}
    settings.pop("_use_default_values")
    with torch.device("meta"), pytest.raises(ValueError, match="must take patches of 2"):
        ZImagePolicy(ZImageTransformer2DModel.from_config(settings))
