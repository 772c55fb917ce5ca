"""Train the tiny world's shipped flow model: FLUX's architecture on single views.

The autoencoder and CLIP are those of the multi-view weights and stay as they are; T5 is random.
Two stages of conditional flow matching; the second starts at half the first's rate.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from mvczigal_ref.files import atomic_write
from mvczigal_ref.models.components import load_components
from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.models.flow.loading import load_flow
from mvczigal_ref.models.flow.policy import FlowPolicy
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.published import weights_folder
from mvczigal_ref.models.tiny import TINY_WORDS
from mvczigal_ref.pretraining.captioned_views import ADDED_WORDS, CaptionedViews
from mvczigal_ref.pretraining.fitting import Log, averaged, file_log, optimiser_steps
from mvczigal_ref.tiny_world.grammar import split_prompts
from mvczigal_ref.tiny_world.scene import sample_scenes

__all__ = ["LAST_STAGE", "FlowPretrainConfig", "flow_matching_loss", "pretrain_flow", "untrained"]

LAST_STAGE = "settle"
"""Name of the last stage and of the folder of finished weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowPretrainConfig:
    """Settings of the shipped flow weights' training; counts are per process unless stated."""

    seed: int = 0
    """Seed of weights, data and noise."""

    weights: str = "tiny"
    """Multi-view weights that give autoencoder and CLIP: a folder, or ``tiny`` (shipped)."""

    objects_per_prompt: int = 40
    """Rendered objects per training prompt [1]."""

    num_heads: int = 3
    """Attention heads of the transformer [1]."""

    head_width: int = 32
    """Width of each attention head [1]."""

    num_layers: int = 3
    """Blocks with separate streams for text and image [1]."""

    num_single_layers: int = 5
    """Blocks with one stream for text and image [1]."""

    max_tokens: int = 12
    """Length of T5's sequences [tokens]."""

    batch: int = 32
    """Images per process and optimiser step [1]."""

    paint_steps: int = 8500
    """Optimiser steps of the first stage [1]."""

    paint_lr: float = 2e-3
    """Peak learning rate of the first stage."""

    settle_steps: int = 3500
    """Optimiser steps of the second stage [1]."""

    settle_lr: float = 1e-3
    """Peak learning rate of the second stage."""

    prompt_dropout: float = 0.1
    """Fraction of images trained without a caption [1]."""

    described: float = 0.3
    """Fraction of captions that add the size or the side, where the image has one [1]."""

    snapshot_every: int = 1000
    """Steps between snapshots [1]."""


def pretrain_flow(out: Path, config: FlowPretrainConfig) -> FlowComponents:
    """Train the tiny world's flow model and write it to a folder.

    A stage that has written its folder is not run again, so a stopped run continues after the last
    finished stage.

    Args:
        out: Folder for the stages' weights and ``pretrain_log.jsonl``.
        config: Sizes and seeds.

    Returns:
        The trained components.

    Raises:
        CheckpointError: If the multi-view weights cannot be read.
    """
    accelerator = Accelerator(cpu=True)
    out.mkdir(parents=True, exist_ok=True)
    log = file_log(accelerator, out / "pretrain_log.jsonl")
    if accelerator.is_main_process:
        atomic_write(out / "pretrain_config.json", json.dumps(asdict(config), indent=1))
    components = untrained(config)
    data: CaptionedViews | None = None
    for name, steps, lr, seed in (
        ("paint", config.paint_steps, config.paint_lr, config.seed + 11),
        (LAST_STAGE, config.settle_steps, config.settle_lr, config.seed + 12),
    ):
        if not (out / name / "model_index.json").exists():
            data = data or _views(components, config)
            _fit(accelerator, components, data, config, out, (name, steps, lr, seed), log)
            if accelerator.is_main_process:
                components.save(out / name)
            accelerator.wait_for_everyone()
        components = load_flow(out / name, text_length=config.max_tokens)
    return components


def untrained(config: FlowPretrainConfig) -> FlowComponents:
    """Join a random transformer and T5 to the autoencoder and CLIP of multi-view weights.

    Args:
        config: Sizes and seed.

    Returns:
        Components in evaluation mode.
    """
    multiview = load_components(weights_folder(config.weights))
    width = multiview.text_encoder.config.hidden_size
    random = tiny_flow_components(
        seed=config.seed,
        num_heads=config.num_heads,
        head_width=config.head_width,
        num_layers=config.num_layers,
        num_single_layers=config.num_single_layers,
        text_width=width,
        max_tokens=config.max_tokens,
        words=(*TINY_WORDS, *ADDED_WORDS),
    )
    return replace(
        random,
        tokenizers=(multiview.tokenizer, random.tokenizers[1]),
        text_encoders=(multiview.text_encoder, random.text_encoders[1]),
        vae=multiview.vae,
        latent_mean=multiview.latent_mean,
        latent_std=multiview.latent_std,
    )


def _views(components: FlowComponents, config: FlowPretrainConfig) -> CaptionedViews:
    """Render and encode the training data; no held-out prompt is among it."""
    prompts, _ = split_prompts()
    generator = torch.Generator().manual_seed(config.seed)
    scenes = sample_scenes(prompts, per_prompt=config.objects_per_prompt, generator=generator)
    return CaptionedViews(components, scenes, prompts)


def flow_matching_loss(
    policy: Callable[..., Tensor],
    data: CaptionedViews,
    config: FlowPretrainConfig,
    generator: torch.Generator,
) -> Tensor:
    r"""Draw a batch and compare the network's velocity with the straight path's.

    .. math:: x_s = (1-s)\,x_0 + s\,\epsilon,\qquad
        L = \lVert v_\theta(x_s, s, c) - (\epsilon - x_0) \rVert^2

    Source:
        Lipman et al., arXiv:2210.02747; Liu et al., arXiv:2209.03003. The noise levels are
        uniform, shifted as in FLUX.

    Args:
        policy: The network.
        data: Latents and captions.
        config: Settings of batch, dropout and share of described images.
        generator: Draws everything.

    Returns:
        Mean squared error [1]. Gradient flows to the network.
    """
    clean, sigma, noise, caption = data.draw(
        config.batch, generator, dropout=config.prompt_dropout, described=config.described
    )
    level = sigma[:, None, None, None]
    noisy = (1 - level) * clean + level * noise
    predicted = policy(noisy, 1000 * sigma, data.conditioning(caption), guidance_scale=1.0)
    return (predicted - (noise - clean)).square().mean()


def _fit(
    accelerator: Accelerator,
    components: FlowComponents,
    data: CaptionedViews,
    config: FlowPretrainConfig,
    out: Path,
    stage: tuple[str, int, float, int],
    log: Log,
) -> None:
    """Train the transformer in place, and leave the average of its weights in it."""
    name, steps, lr, seed = stage
    policy = components.policy.train()
    average = averaged(policy, 0.999)
    for step in optimiser_steps(
        accelerator, policy, lambda g: flow_matching_loss(policy, data, config, g),
        name=name, steps=steps, lr=lr, seed=seed, log=log,
    ):  # fmt: skip
        average.update_parameters(policy)
        if (step + 1) % config.snapshot_every == 0 and accelerator.is_main_process:
            replace(components, policy=cast(FlowPolicy, average.module)).save(out / "snapshot")
    policy.load_state_dict(average.module.state_dict())
    policy.eval()
