"""Flow models beside FLUX.1-dev and Stable Diffusion 3.5 Medium: GRPO of this package.

Each network is sampled as its authors publish it: steps, guidance and image size are those of
FLUX.1-schnell (4 steps, no guidance), of Stable Diffusion 3.5 Large (guidance 3.5) and of
Z-Image-Turbo (arXiv:2511.22699; 8 steps, no guidance). Method, rate, LoRA and noise are
Flow-GRPO's (arXiv:2505.05470), whose networks these are not: the choice is ours, and no run at
this size has been made. A few-step network is sampled for evaluation as for training.
"""

from dataclasses import replace

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.recipes.flow import flow_grpo

__all__ = ["flux_schnell_grpo", "sd35_large_grpo", "z_image_turbo_grpo"]


def flux_schnell_grpo() -> TrainConfig:
    """Flow-GRPO on FLUX.1-schnell: 4 unguided steps, noise at all of them but the last."""
    base = _few_steps("flux_schnell_grpo", "black-forest-labs/FLUX.1-schnell", num_steps=4)
    return replace(base, flow=replace(base.flow, text_length=256))


def z_image_turbo_grpo() -> TrainConfig:
    """Flow-GRPO on Z-Image-Turbo: 8 unguided steps, noise at all of them but the last."""
    return _few_steps("z_image_turbo_grpo", "Tongyi-MAI/Z-Image-Turbo", num_steps=8)


def sd35_large_grpo() -> TrainConfig:
    """Flow-GRPO on Stable Diffusion 3.5 Large: 10 steps, guidance 3.5, noise at 9 of them."""
    base = _on("sd35_large_grpo", "stabilityai/stable-diffusion-3.5-large")
    return replace(
        base,
        model=replace(base.model, lora_rank=32, lora_alpha=64.0),
        sampler=replace(base.sampler, num_steps=10, evaluation_steps=28, guidance_scale=3.5),
        flow=replace(base.flow, noise_scale=0.7),
        rollout=replace(base.rollout, window_size=9),
    )


def _few_steps(name: str, weights: str, *, num_steps: int) -> TrainConfig:
    """Sample a distilled network in its own number of steps, without guidance."""
    base = _on(name, weights)
    return replace(
        base,
        model=replace(base.model, image_size=1024, views_per_decode=1),
        sampler=replace(base.sampler, num_steps=num_steps, evaluation_steps=0, guidance_scale=1.0),
        flow=replace(base.flow, noise_scale=0.7, text_length=None),
        rollout=replace(base.rollout, members=8, window_size=num_steps - 1, nodes_per_call=2),
        advantage=replace(base.advantage, spread="group"),
        run=replace(base.run, objects_per_iteration=16),
    )


def _on(name: str, weights: str) -> TrainConfig:
    """Put another network in FLUX.1-dev's place."""
    base = flow_grpo()
    return replace(base, recipe=name, model=replace(base.model, weights=weights))
