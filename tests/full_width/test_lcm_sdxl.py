"""`lcm_sdxl_mate3d` at its own width, 64 pixels, 6 views and 2 steps, in both half precisions."""

import gc
import json

import pytest
import torch
from diffusers import LCMScheduler, StableDiffusionXLPipeline

from bench.networks import random_components
from mvczigal_ref.cameras import PAPER_RIG
from mvczigal_ref.models.row_attention import is_row_attention
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
from tests.golden import GOLDEN
from tests.gpu.checks import configured
from tests.oracles import scaled_linear_alpha_bar
from tests.plain_scorers import registered
from tests.unit.models.test_multiview_unet import published_names

RECIPE = configured(name="lcm_sdxl_mate3d")
SHORT = (
    "model.image_size=64", "sampler.num_steps=2", "run.objects_per_iteration=1",
    "run.objects_per_slice=1", "optim.optimizer_steps_per_epoch=1", "run.iterations=1",
    "run.evaluation_noises=1", "run.device=cpu", "reward.per_view=plain.per_view",
    "reward.joint=plain.joint", "reward.weights={}",
)  # fmt: skip
STEP = (499, 379)
"""Two neighbours of the recipe's own grid."""


def configuration(folder, dtype):
    """Shorten the recipe and nothing else."""
    half = (f"model.dtype={dtype}", f"model.storage_dtype={dtype}")
    return configured(
        *SHORT, *half, f"run.prompts={folder / 'prompts.txt'}", name="lcm_sdxl_mate3d"
    )


@pytest.fixture(scope="module", params=["bf16", "fp16"])
def run(request, tmp_path_factory):
    """Train one iteration in one precision; the former network is forgotten first."""
    gc.collect()
    folder = tmp_path_factory.mktemp(request.param)
    config = configuration(folder, request.param)
    components = random_components(config, CPU)

    def answer():
        with torch.no_grad():
            return predicted(components)

    with pytest.MonkeyPatch.context() as patch:
        registered(patch)
        return trained(config, components, components.policy.unet, folder, answer)


def states():
    """Draw the noisy latents of six views."""
    return torch.randn(6, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def predicted(components):
    """Call the network once at the recipe's guidance."""
    record = components.build_conditioning([PROMPT], PAPER_RIG, image_size=64)
    guidance = RECIPE.sampler.guidance_scale
    return components.policy(
        states(), torch.tensor(STEP[0]), record, guidance_scale=guidance
    ).float()


def test_one_iteration_learns(run, table):
    """Replay gives the rollout's bits; every LoRA layer gets a gradient."""
    table[f"lcm_sdxl_mate3d {run.dtype}"] = cells(run)

    assert_learned(run)


def test_names_and_counts_are_the_published_ones(run):
    """Network, adapter and LoRA: name by name, shape by shape, and in number."""
    state = run.components.policy.unet.state_dict()
    lora = {n.replace(".default.", "."): list(p.shape) for n, p in run.lora().items()}
    plain = {n.replace(".base_layer.", "."): v for n, v in state.items() if ".lora_" not in n}
    shapes = {name: list(value.shape) for name, value in plain.items()}
    adapter = {name: shape for name, shape in shapes.items() if is_row_attention(name)}
    cameras = run.components.policy.camera_encoder.state_dict()
    adapter |= {name: list(value.shape) for name, value in cameras.items()}
    counts = json.loads((GOLDEN / "names_custom_adapter_sdxl.json").read_text("utf-8"))

    assert lora == published_names("names_lora_lcm_sdxl_r16")
    assert adapter == published_names("names_custom_adapter_sdxl")
    assert {n: s for n, s in shapes.items() if n not in adapter} == published_names(
        "names_unet_lcm_sdxl"
    )
    assert sum(v.numel() for v in plain.values()) == counts["unet_params_with_mv"]


def test_gradients_survive_the_precision(run, table):
    """At the weight that a step of the full-size run has, with the loss scaled by 2^16.

    The mean is over 96x96x4 numbers, 32 objects, 8 steps and 6 views; the gap is 1.
    """
    level = scaled_linear_alpha_bar(1000, 0.00085, 0.012)
    objects = RECIPE.run.objects_per_iteration // RECIPE.optim.optimizer_steps_per_epoch

    def loss():
        high, low = level[STEP[0]], level[STEP[1]]
        clean = (states() - (1 - high) ** 0.5 * predicted(run.components)) / high**0.5
        return step_loss(
            low**0.5 * clean, (1 - low) ** 0.5, elements=96 * 96 * 4,
            weight=2.0 / (objects * RECIPE.sampler.num_steps * 6),
        )  # fmt: skip

    assert_gradients_survive(run, loss, table.setdefault(f"lcm_sdxl_mate3d {run.dtype}", {}))


def test_the_lora_reloads_elsewhere(run, table):
    """PEFT gives the same bits; diffusers holds the stored values, rounded to its layers' type."""
    parts = run.components

    def pipeline():
        return StableDiffusionXLPipeline(
            vae=parts.vae, text_encoder=parts.text_encoder, text_encoder_2=parts.text_encoder_2,
            tokenizer=parts.tokenizer, tokenizer_2=parts.tokenizer_2, unet=run.network,
            scheduler=LCMScheduler(),
        )  # fmt: skip

    difference = reloaded(run, pipeline)
    table.setdefault(f"lcm_sdxl_mate3d {run.dtype}", {}).update(
        {f"{name} - trained": f"{value:.1e}" for name, value in difference.items()}
    )

    assert difference["peft"] == 0.0 < difference["base"]
