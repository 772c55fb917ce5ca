"""Train the tiny world's shipped weights: autoencoder, base model, few-step model.

Seven stages, each a plain loop on accelerate: an autoencoder on renders; a
v-prediction base model on its latents; the same model on objects with some less
noisy views, which teaches it to look across views; two stages on objects with
equally noisy views, the second at a lower rate; and two stages that distil the
classifier-free guidance into the guidance embedding of few-step sampling.
"""

import json
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from mvczigal_ref.files import atomic_write
from mvczigal_ref.models.components import Components, load_components
from mvczigal_ref.models.multiview_unet import MultiViewUNet
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.pretraining.fitting import Log, averaged, file_log, optimiser_steps
from mvczigal_ref.pretraining.latent_scenes import LatentScenes
from mvczigal_ref.tiny_world.grammar import split_prompts
from mvczigal_ref.tiny_world.scene import SceneSet, sample_scenes

__all__ = ["PretrainConfig", "pretrain"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """Settings of the shipped weights' training; counts are per process unless stated."""

    seed: int = 0
    """Seed of weights, data and noise."""

    objects_per_prompt: int = 60
    """Rendered objects per training prompt [1]."""

    autoencoder_steps: int = 4800
    """Optimiser steps of the autoencoder [1]."""

    autoencoder_batch: int = 16
    """Images per process and step of the autoencoder [1]."""

    autoencoder_lr: float = 2e-3
    """Peak learning rate of the autoencoder."""

    base_steps: int = 12000
    """Optimiser steps of the base model's learning-rate schedule [1]."""

    base_stop: int = 8000
    """Optimiser steps after which the base model's training stops, at most ``base_steps`` [1]."""

    base_batch: int = 8
    """Objects per process and step of every stage after the autoencoder [1]."""

    base_lr: float = 1.2e-3
    """Peak learning rate of the base model."""

    views_steps: int = 3600
    """Optimiser steps of the stage that teaches row attention [1]."""

    views_lr: float = 1.2e-3
    """Peak learning rate of the stage that teaches row attention."""

    together_steps: int = 7000
    """Optimiser steps of the stage in which all views are equally noisy again [1]."""

    together_lr: float = 1.2e-3
    """Peak learning rate of the stage with equally noisy views."""

    settle_steps: int = 2500
    """Optimiser steps of the second stage with equally noisy views [1]."""

    settle_lr: float = 6e-4
    """Peak learning rate of the second stage with equally noisy views."""

    distil_steps: int = 1500
    """Optimiser steps of the distillation [1]."""

    distil_lr: float = 1e-3
    """Peak learning rate of the distillation."""

    polish_steps: int = 500
    """Optimiser steps of the second distillation [1]."""

    polish_lr: float = 4e-4
    """Peak learning rate of the second distillation."""

    prompt_dropout: float = 0.1
    """Fraction of objects trained without a prompt, except in the distillation [1]."""

    guidance_range: tuple[float, float] = (1.0, 8.0)
    """Lowest and highest guidance scale that the embedding learns [1]."""

    guidance_draw: Literal["uniform", "log_uniform"] = "uniform"
    """Distribution of the guidance scales within their range."""

    snapshot_every: int = 1000
    """Base-model steps between snapshots [1]."""


def pretrain(out: Path, config: PretrainConfig) -> Components:
    """Train the tiny world's weights and write them to a folder.

    A stage that has written its folder is not run again, so a stopped run
    continues after the last finished stage.

    Args:
        out: Folder for the stages' weights and ``pretrain_log.jsonl``.
        config: Sizes and seeds.

    Returns:
        The few-step components.
    """
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)
    log = file_log(accelerator, out / "pretrain_log.jsonl")
    prompts, _ = split_prompts()
    generator = torch.Generator().manual_seed(config.seed)
    scenes = sample_scenes(prompts, per_prompt=config.objects_per_prompt, generator=generator)
    components = tiny_components(seed=config.seed)
    if accelerator.is_main_process:
        atomic_write(out / "pretrain_config.json", json.dumps(asdict(config), indent=1))

    def stage(name: str, run: Callable[[Components], Components], now: Components) -> Components:
        if not (out / name / "unet").exists():
            now = run(now)
            if accelerator.is_main_process:
                now.save(out / name)
            accelerator.wait_for_everyone()
        return load_components(out / name)

    components = stage(
        "autoencoder", lambda c: _autoencoder(accelerator, c, scenes, config, log), components
    )
    data = LatentScenes(components, scenes, prompts)
    for fit in _velocity_stages(config):
        one = partial(
            _fit_velocity, accelerator, data=data, config=config, out=out, fit=fit, log=log
        )
        components = stage(fit.name, one, components)
    teacher = deepcopy(components.policy).eval()  # the stages train the policy in place
    for fit in _distil_stages(config):
        one = partial(
            _distil, accelerator, teacher=teacher, data=data, config=config, fit=fit, log=log
        )
        components = stage(fit.name, one, components)
    return components


def _autoencoder(
    accelerator: Accelerator,
    components: Components,
    scenes: SceneSet,
    config: PretrainConfig,
    log: Log,
) -> Components:
    """Fit the autoencoder to single renders, then measure its latents' mean and deviation."""
    vae = components.vae.train()

    def loss(generator: torch.Generator) -> Tensor:
        index = torch.randint(len(scenes.maps), (config.autoencoder_batch,), generator=generator)
        azimuth = torch.randint(8, (config.autoencoder_batch, 1), generator=generator)
        image = scenes.images(index, azimuth)[:, 0] * 2 - 1
        posterior = vae.encode(image).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        error = decoded - image
        divergence: Tensor = posterior.kl().mean() / 768
        total: Tensor = error.abs().mean() + 4 * error.square().mean() + 1e-4 * divergence
        return total

    for _ in optimiser_steps(
        accelerator, vae, loss, name="autoencoder", steps=config.autoencoder_steps,
        lr=config.autoencoder_lr, seed=config.seed + 1, log=log,
    ):  # fmt: skip
        pass
    vae.eval()
    neutral = replace(components, latent_mean=torch.zeros(4), latent_std=torch.ones(4))
    generator = torch.Generator().manual_seed(config.seed)
    index = torch.randint(len(scenes.maps), (512,), generator=generator)
    with torch.no_grad():
        latent = neutral.encode(scenes.images(index, torch.arange(8).expand(512, 8)))
    axes = (0, 1, 3, 4)
    return replace(neutral, latent_mean=latent.mean(axes), latent_std=latent.std(axes))


@dataclass(frozen=True, slots=True)
class _Fit:
    """One stage of the network's training."""

    name: str
    steps: int
    lr: float
    seed: int
    stop: int | None = None
    """Steps after which to stop, before the schedule ends; None for no earlier stop."""

    clean_until: float = 0.0
    """Fraction of the stage over which half the views rise from clean to the others' step [1]."""

    def gap(self, step: int) -> float:
        """Distance of half of the views from their object's timestep, relative to it [1]."""
        return max(0.0, 1 - step / (self.clean_until * self.steps)) if self.clean_until else 0.0


def _velocity_stages(config: PretrainConfig) -> tuple[_Fit, ...]:
    """List the stages between autoencoder and few-step model.

    Where all views are equally noisy, other views tell the network little that a
    view does not show itself, and the base model hardly uses its row attention. So
    in the second stage half of the views begin clean, and rise to the others'
    timestep over three quarters of the stage. The last two stages have equally noisy
    views again.
    """
    return (
        _Fit("base", config.base_steps, config.base_lr, config.seed + 2, stop=config.base_stop),
        _Fit("views", config.views_steps, config.views_lr, config.seed + 4, clean_until=0.75),
        _Fit("together", config.together_steps, config.together_lr, config.seed + 5),
        _Fit("settle", config.settle_steps, config.settle_lr, config.seed + 6),
    )


def _distil_stages(config: PretrainConfig) -> tuple[_Fit, ...]:
    """List the stages that distil one teacher into the few-step model."""
    return (
        _Fit("guided", config.distil_steps, config.distil_lr, config.seed + 3),
        _Fit("fewstep", config.polish_steps, config.polish_lr, config.seed + 7),
    )


def _fit_velocity(
    accelerator: Accelerator,
    components: Components,
    data: LatentScenes,
    config: PretrainConfig,
    out: Path,
    fit: _Fit,
    log: Log,
) -> Components:
    """Train the network, with its cameras and row attention, to predict velocity."""
    policy = components.policy.train()
    guidance = policy.unet.time_embedding.cond_proj
    if guidance is not None:
        guidance.requires_grad_(requires_grad=False)
    done = 0

    def loss(generator: torch.Generator) -> Tensor:
        clean, timestep, noise, prompt = data.draw(
            config.base_batch, generator, dropout=config.prompt_dropout, gap=fit.gap(done)
        )
        noisy, velocity = data.noisy(clean, noise, timestep)
        features = policy.encode_cameras(data.camera_image)
        conditioning = data.conditioning(prompt, features)
        predicted: Tensor = policy(noisy, timestep, conditioning, guidance_scale=1.0)
        error = (predicted - velocity).square().mean((1, 2, 3))
        # A less noisy view serves the others only: its own velocity is mostly chance.
        noisiest = timestep.view(-1, data.num_views)
        noisiest = (noisiest == noisiest.amax(1, keepdim=True)).flatten()
        return error[noisiest].mean()

    average = averaged(policy, 0.999)
    for step in optimiser_steps(
        accelerator, policy, loss, name=fit.name, steps=fit.steps, lr=fit.lr,
        seed=fit.seed, log=log,
    ):  # fmt: skip
        done = step + 1
        average.update_parameters(policy)
        if done % config.snapshot_every == 0 and accelerator.is_main_process:
            snapshot = replace(components, policy=cast(MultiViewUNet, average.module))
            snapshot.save(out / "snapshot")
        if done == fit.stop:
            break
    policy.load_state_dict(average.module.state_dict())
    policy.eval()
    return components


def _distil(
    accelerator: Accelerator,
    components: Components,
    teacher: MultiViewUNet,
    data: LatentScenes,
    config: PretrainConfig,
    fit: _Fit,
    log: Log,
) -> Components:
    """Distil the teacher's classifier-free guidance into the guidance embedding."""
    policy = components.policy.train()
    policy.camera_encoder.requires_grad_(requires_grad=False)
    with torch.no_grad():
        features = teacher.encode_cameras(data.camera_image)

    def loss(generator: torch.Generator) -> Tensor:
        clean, timestep, noise, prompt = data.draw(config.base_batch, generator, dropout=0.0)
        noisy, _ = data.noisy(clean, noise, timestep)
        scale = _guidance_scale(config, generator)
        none = torch.full_like(prompt, len(data.embeds) - 1)
        with torch.no_grad():
            with_prompt = teacher(
                noisy, timestep, data.conditioning(prompt, features), guidance_scale=1.0
            )
            without = teacher(
                noisy, timestep, data.conditioning(none, features), guidance_scale=1.0
            )
            target = without + scale * (with_prompt - without)
        predicted: Tensor = policy(
            noisy, timestep, data.conditioning(prompt, features), guidance_scale=scale
        )
        # The target's distance from the plain prediction grows with the scale: all count alike.
        distance: Tensor = ((predicted - target) / scale).square().mean()
        return distance

    average = averaged(policy, 0.998)
    for _ in optimiser_steps(
        accelerator, policy, loss, name=fit.name, steps=fit.steps, lr=fit.lr, seed=fit.seed,
        log=log,
    ):  # fmt: skip
        average.update_parameters(policy)
    policy.load_state_dict(average.module.state_dict())
    policy.eval()
    return components


def _guidance_scale(config: PretrainConfig, generator: torch.Generator) -> float:
    """Draw the guidance scale of a step."""
    low, high = config.guidance_range
    share = float(torch.rand((), generator=generator))
    if config.guidance_draw == "log_uniform":
        return low * math.exp(share * math.log(high / low))
    return low + (high - low) * share
