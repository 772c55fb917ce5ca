"""One iteration of the released trainer at a small shape, from a checkout of it.

    python -m bench.cost --released PATH

Nothing of it is part of this project. Networks, settings and rewards are those of `bench.cost`; the
checkout's own packages must be installed, of which this project lacks `einops`, but for `wandb` and
`trimesh`, which it imports and does not use here.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, T2IAdapter
from diffusers.models.attention_processor import AttnProcessor2_0
from peft import LoraConfig

from mvczigal_ref.models.components import Components

__all__ = ["released_trainee"]

VIEWS = 6
TARGETS = ["to_k", "to_q", "to_v", "to_out.0", "to_k_mv", "to_q_mv", "to_v_mv", "to_out_mv.0"]


def released_trainee(
    checkout: Path, parts: Components, *, image_size: int, num_steps: int, prompts: tuple[str, ...]
) -> Callable[[], None]:
    """Bind one iteration after the other of the released trainer."""
    sys.path.insert(0, str(checkout))
    for name in ("wandb", "trimesh"):
        sys.modules.setdefault(name, ModuleType(name))
    from mvczigal.core.mvczigal_trainer import mvczigal_trainer

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=num_steps * len(prompts))
    pipeline = _pipeline(parts)
    settings = _settings(image_size, num_steps, len(prompts))
    drawn = SimpleNamespace(sample=lambda: list(prompts))

    def iterate() -> None:
        mvczigal_trainer(accelerator, settings, pipeline, pipeline.unet, _per_view, _joint, drawn)

    return iterate


def _per_view(images: torch.Tensor, prompts: Any) -> torch.Tensor:
    return images.mean((1, 2, 3)) + 0.1 * images.std((1, 2, 3))


def _joint(images: torch.Tensor, prompts: Any) -> torch.Tensor:
    return _per_view(images.unflatten(0, (-1, VIEWS)).flatten(1, 2), prompts)


def _settings(image_size: int, num_steps: int, prompts: int) -> SimpleNamespace:
    """Give the released settings of one iteration."""
    training = SimpleNamespace(
        logdir="", save_interval=10**9, use_lora=True, lora_scale=1.0, seed=0,
        image_height=image_size, image_width=image_size, num_views=VIEWS,
        num_inference_steps=num_steps, guidance_scale=7.0, negative_prompt="", eta=1.0, lr=1e-4,
        sample_batch_size_per_gpu=prompts, train_batch_size_per_gpu=1, num_sample_iters=1,
        clip_range=1e-4, max_grad_norm=5.0, adv_clip_max=10.0, num_epochs=1, batches_per_epoch=1,
        gradient_accumulation_steps=num_steps * prompts, num_inner_epochs=1, lambda_init=0.0,
        lambda_lr=0.1, lambda_max=5.0, lambda_update_delay_steps=0, ema_beta=0.99,
        constrain_threshold_init=0.0, reward_fn="", mv_reward_fn="",
    )  # fmt: skip
    return SimpleNamespace(training=training, wandb=SimpleNamespace(log=False))


def _pipeline(parts: Components) -> Any:
    """Put the released pipeline around small networks, as its script does."""
    from mvadapter.schedulers.scheduling_shift_snr import ShiftSNRScheduler
    from mvczigal.diffusers_patch.lcm_inv_scheduler import LCMInverseScheduler
    from mvczigal.diffusers_patch.lcm_scheduler import LCMScheduler
    from mvczigal.diffusers_patch.pipeline import MVAdapterT2MVSDXLPipeline

    unet = parts.policy.unet
    unet.set_attn_processor(AttnProcessor2_0())
    schedule = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pipeline = MVAdapterT2MVSDXLPipeline(
        vae=parts.vae, text_encoder=parts.text_encoder, text_encoder_2=parts.text_encoder_2,
        tokenizer=parts.tokenizer, tokenizer_2=parts.tokenizer_2, unet=unet, scheduler=schedule,
        add_watermarker=False,
    )  # fmt: skip
    for name, kind in (("scheduler", LCMScheduler), ("inv_scheduler", LCMInverseScheduler)):
        shifted = ShiftSNRScheduler.from_scheduler(
            schedule, shift_mode="interpolated", shift_scale=8.0, scheduler_class=kind
        )
        setattr(pipeline, name, shifted)
    pipeline.vae.enable_slicing()
    pipeline.init_custom_adapter(num_views=VIEWS)
    pipeline.cond_encoder = T2IAdapter.from_config(parts.policy.camera_encoder.config)
    for network in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2, unet):
        network.requires_grad_(requires_grad=False)
    pipeline.cond_encoder.requires_grad_(requires_grad=False)
    unet.add_adapter(
        LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=TARGETS)
    )
    unet.enable_gradient_checkpointing()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
