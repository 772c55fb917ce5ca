"""The model that docs/models.md adds runs: diffusers' image from the same noise, and training."""

import re
from pathlib import Path

import pytest
import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from torch import nn
from transformers import UMT5Config, UMT5EncoderModel

from mvczigal_ref.config import load_config
from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.flow_schedule import flow_sigmas
from mvczigal_ref.distributed import World
from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.models.flow.families import FLOW_FAMILIES, FLUX, register_flow_family
from mvczigal_ref.models.flow.loading import load_flow
from mvczigal_ref.models.flow.tiny_t5 import tiny_t5_tokenizer
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.recipes import recipe
from mvczigal_ref.training.trainer import train
from tests.integration.runs import HELD_OUT, metrics, parameters

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
(CODE,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
LENGTH = 12


@pytest.fixture(scope="module")
def added():
    """Run the page's code, and take its family out again."""
    names = {}
    exec(CODE, names)
    yield names
    FLOW_FAMILIES.remove(names["AURA_FLOW"])


@pytest.fixture(scope="module")
def folder(added, tmp_path_factory):
    """Save a narrow pipeline of random weights."""
    base = tiny_components(
        seed=0, channels=(8, 8, 8), num_heads=(1, 1, 1), vae_channels=(8, 8, 16), text_width=8
    )
    tokenizer = tiny_t5_tokenizer(length=LENGTH)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        encoder = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
                dropout_rate=0.0,
            )
        )  # fmt: skip
        transformer = AuraFlowTransformer2DModel(
            sample_size=8, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
            num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
            pos_embed_max_size=64,
        )  # fmt: skip
        nn.init.normal_(transformer.pos_embed.pos_embed)
    path = tmp_path_factory.mktemp("aura")
    FlowComponents(
        tokenizers=(tokenizer,),
        text_encoders=(encoder.eval(),),
        vae=base.vae,
        policy=added["AuraFlowPolicy"](transformer).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
        latent_mean=base.latent_mean,
        latent_std=base.latent_std,
        max_tokens=LENGTH,
    ).save(path)
    return path


def test_its_image_is_that_of_diffusers_own_pipeline(folder):
    """Text, time, guidance and grid, from the same noise."""
    components = load_flow(folder)
    pipeline = AuraFlowPipeline(
        tokenizer=components.tokenizers[0],
        text_encoder=components.text_encoders[0],
        vae=components.vae,
        transformer=components.policy.transformer,
        scheduler=components.scheduler,
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = pipeline(
        "a red cube", negative_prompt="a black can", latents=noise, num_inference_steps=3,
        guidance_scale=3.0, height=32, width=32, output_type="latent", max_sequence_length=LENGTH,
    ).images  # fmt: skip
    shift = components.noise_shift(8, 8)
    sigmas = flow_sigmas(3, shift=shift, lowest_sigma=components.lowest_sigma(shift))
    sampler = FlowSampler.create(sigmas=sigmas, kernel="ode")
    record = components.build_conditioning(["a red cube"], negative_prompt="a black can")
    latent = noise
    for step in range(3):
        with torch.no_grad():
            time = sampler.timesteps[step].float()
            output = components.policy(latent, time, record, guidance_scale=3.0)
        latent = sampler.transition(output, latent, step).mean.float()

    assert len(CODE.splitlines()) < 100
    torch.testing.assert_close(latent, theirs, rtol=1e-4, atol=1e-4)


def test_it_trains(folder, prompts, tmp_path):
    """One iteration of Flow-GRPO, from the folder that its index names."""
    config = load_config(
        recipe("tiny_flow_grpo"),
        overrides=[
            f"model.weights={folder}", "model.image_size=32", f"flow.text_length={LENGTH}",
            "sampler.num_steps=3", "rollout.members=2", "rollout.window=all",
            f"run.prompts={prompts}", "run.iterations=1", "run.objects_per_iteration=2",
            "run.objects_per_slice=1", "optim.decay_iterations=1", "run.device=cpu",
            "run.evaluation_noises=1", "sampler.evaluation_steps=0",
        ],
    )  # fmt: skip
    train(config, tmp_path, world=World(), held_out=HELD_OUT)
    (row,) = metrics(tmp_path)

    assert row["grad_norm"] > 0.0
    assert any(value.any() for name, value in parameters(tmp_path).items() if "lora_B" in name)


def test_a_pipeline_that_is_there_is_not_added_again(added):
    """Neither the package's, nor one of the user's a second time."""
    for family in (FLUX, added["AURA_FLOW"]):
        with pytest.raises(ValueError, match="must be of a pipeline and a policy of its own"):
            register_flow_family(family)
