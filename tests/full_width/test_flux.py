"""Two double and two single blocks of FLUX.1-dev at its own width, in both half precisions."""

import gc
import math

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from bench.networks import materialise
from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.models.flow.flux import FluxPolicy
from mvczigal_ref.models.flow.tiny_t5 import tiny_t5_tokenizer
from mvczigal_ref.models.tiny import tiny_tokenizer
from mvczigal_ref.system.networks import DTYPES
from tests.full_width.trial import (
    CPU,
    PROMPT,
    assert_gradients_survive,
    assert_learned,
    cells,
    reloaded,
    step_loss,
    trained,
)
from tests.gpu.checks import configured
from tests.plain_scorers import registered

RECIPE = configured(name="flow_grpo")
SHORT = (
    "model.image_size=64", "sampler.num_steps=2", "sampler.evaluation_steps=0",
    "rollout.members=2", "rollout.window_size=1", "run.objects_per_iteration=1",
    "optim.optimizer_steps_per_epoch=1", "optim.average_decay=0", "run.iterations=1",
    "run.device=cpu", "reward.per_view=plain.per_view",
)  # fmt: skip
LEVELS = (0.75, 0.6)
"""Of one step, at which gradients are compared."""


def flux_components(dtype):
    """Build transformer and autoencoder at their sizes, and thin text encoders of their width."""
    tokenizers = tiny_tokenizer(length=77), tiny_t5_tokenizer(length=16)
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(
            num_layers=2, num_single_layers=2, guidance_embeds=True
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=16,
        )  # fmt: skip
        clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizers[0]), hidden_size=768, intermediate_size=64,
                num_hidden_layers=1, num_attention_heads=12,
                eos_token_id=tokenizers[0].eos_token_id,
            )
        )  # fmt: skip
        t5 = T5EncoderModel(
            T5Config(
                vocab_size=len(tokenizers[1]), d_model=4096, d_kv=64, d_ff=64, num_layers=1,
                num_heads=2, feed_forward_proj="gated-gelu",
            )
        )  # fmt: skip
    networks = [
        materialise(network.to(dtype), CPU, seed=seed).eval()
        for seed, network in enumerate((clip, t5, vae, FluxPolicy(transformer)))
    ]
    return FlowComponents(
        tokenizers=tokenizers,
        text_encoders=tuple(networks[:2]),
        vae=networks[2],
        policy=networks[3],
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        latent_mean=torch.zeros(16),
        latent_std=torch.ones(16),
        max_tokens=16,
    )


@pytest.fixture(scope="module", params=["bf16", "fp16"])
def run(request, tmp_path_factory):
    """Train one iteration in one precision; the former network is forgotten first."""
    gc.collect()
    folder, dtype = tmp_path_factory.mktemp(request.param), request.param
    half = (f"model.dtype={dtype}", f"model.storage_dtype={dtype}")
    config = configured(*SHORT, *half, f"run.prompts={folder / 'prompts.txt'}", name="flow_grpo")
    components = flux_components(DTYPES[dtype])

    def answer():
        with torch.no_grad():
            return predicted(components)

    with pytest.MonkeyPatch.context() as patch:
        registered(patch)
        return trained(config, components, components.policy.transformer, folder, answer)


def states():
    """Draw the noisy latents of one image."""
    return torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))


def predicted(components):
    """Call the network once at the recipe's guidance."""
    record, time = components.build_conditioning([PROMPT]), torch.tensor(1000 * LEVELS[0])
    guidance = RECIPE.sampler.guidance_scale
    return components.policy(states(), time, record, guidance_scale=guidance).float()


def test_one_iteration_learns(run, table):
    """Replay gives the rollout's bits; every LoRA layer gets a gradient."""
    table[f"FLUX.1, 2 + 2 blocks, {run.dtype}"] = cells(run)

    assert_learned(run)


def test_the_blocks_are_flux_s(run):
    """With 19 double and 38 single blocks of this size FLUX.1-dev has its 11,901,408,320 weights.

    Their LoRA reaches twelve layers of a double block and three of a single one.
    """
    counts = {"": 0, "transformer_blocks": 0, "single_transformer_blocks": 0}
    for name, value in run.network.named_parameters():
        if ".lora_" not in name:
            part = name.partition(".")[0]
            counts[part if part in counts else ""] += value.numel()
    double, single = counts["transformer_blocks"] // 2, counts["single_transformer_blocks"] // 2

    assert counts[""] + 19 * double + 38 * single == 11_901_408_320
    assert len(run.lora()) == 2 * (2 * 12 + 2 * 3)


def test_gradients_survive_the_precision(run, table):
    """At the weight that a step of the full-size run has, with the loss scaled by 2^16.

    The mean is over 64x64x16 numbers, 24 groups of 24 and 5 steps; the advantage is 1.
    """
    groups = RECIPE.run.objects_per_iteration // RECIPE.optim.optimizer_steps_per_epoch
    (s, r), x = LEVELS, states()

    def loss():
        velocity, spread = (
            predicted(run.components),
            RECIPE.flow.noise_scale * math.sqrt(s / (1 - s)),
        )
        score = -(x + (1 - s) * velocity) / s
        return step_loss(
            x - velocity * (s - r) + spread**2 / 2 * score * (s - r), spread * math.sqrt(s - r),
            elements=64 * 64 * 16,
            weight=1.0 / (groups * RECIPE.rollout.members * RECIPE.rollout.window_size),
        )  # fmt: skip

    assert_gradients_survive(run, loss, table.setdefault(f"FLUX.1, 2 + 2 blocks, {run.dtype}", {}))


def test_the_lora_reloads_elsewhere(run, table):
    """PEFT gives the same bits; diffusers holds the stored values, rounded to its layers' type."""
    parts = run.components

    def pipeline():
        return FluxPipeline(
            scheduler=parts.scheduler, vae=parts.vae, text_encoder=parts.text_encoders[0],
            tokenizer=parts.tokenizers[0], text_encoder_2=parts.text_encoders[1],
            tokenizer_2=parts.tokenizers[1], transformer=run.network,
        )  # fmt: skip

    difference = reloaded(run, pipeline)
    table.setdefault(f"FLUX.1, 2 + 2 blocks, {run.dtype}", {}).update(
        {f"{name} - trained": f"{value:.1e}" for name, value in difference.items()}
    )

    assert difference["peft"] == 0.0 < difference["base"]
