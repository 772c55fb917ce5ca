"""Train the tiny world's shipped weights: autoencoder, base model, few-step model.

Four stages, each a plain loop on accelerate: an autoencoder on renders; a
v-prediction base model on its latents; the same model on objects some of whose
views are less noisy, which teaches it to look across views; and its
classifier-free guidance distilled into the guidance embedding that few-step
sampling uses.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mvczigal_ref.cameras import camera_image
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar
from mvczigal_ref.models.components import Components, load_components
from mvczigal_ref.models.multiview_unet import MultiViewUNet
from mvczigal_ref.models.text import encode_prompts
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.records import Conditioning
from mvczigal_ref.world.grammar import split_prompts
from mvczigal_ref.world.render import IMAGE_SIZE
from mvczigal_ref.world.scene import WORLD_RIG, SceneSet, azimuth_index, sample_scenes

__all__ = ["PretrainConfig", "pretrain"]

Log = Callable[[str, int, float], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig:
    """How the shipped weights are made; counts are per process unless said."""

    seed: int = 0
    """Of weights, data and noise."""

    objects_per_prompt: int = 60
    """Rendered objects a training prompt [1]."""

    autoencoder_steps: int = 4800
    """Optimiser steps [1]."""

    autoencoder_batch: int = 16
    """Images a process and step [1]."""

    autoencoder_lr: float = 2e-3
    """Peak learning rate."""

    base_steps: int = 12000
    """Optimiser steps of the learning rate's schedule [1]."""

    base_stop: int = 8000
    """Optimiser steps after which the base model is taken, at most ``base_steps`` [1]."""

    base_batch: int = 8
    """Objects a process and step [1]."""

    base_lr: float = 1.2e-3
    """Peak learning rate."""

    views_steps: int = 3600
    """Optimiser steps of the stage that teaches row attention [1]."""

    views_lr: float = 1.2e-3
    """Peak learning rate."""

    distil_steps: int = 600
    """Optimiser steps [1]."""

    distil_lr: float = 4e-4
    """Peak learning rate."""

    prompt_dropout: float = 0.1
    """Share of base-model objects trained without a prompt [1]."""

    guidance_range: tuple[float, float] = (1.0, 5.0)
    """Guidance scales that the embedding learns [1]."""

    snapshot_every: int = 1000
    """Base-model steps between snapshots [1]."""


def pretrain(out: Path, config: PretrainConfig) -> Components:
    """Train the tiny world's weights and write them to a folder.

    A stage that has already written its folder is not run again, so a stopped
    run goes on from the last finished stage.

    Args:
        out: Folder of the stages' weights and ``pretrain_log.jsonl``.
        config: Sizes and seeds.

    Returns:
        The few-step components.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    torch.manual_seed(config.seed)
    out.mkdir(parents=True, exist_ok=True)
    started = time.time()

    def log(stage: str, step: int, loss: float) -> None:
        if accelerator.is_main_process:
            line = {"stage": stage, "step": step, "loss": loss, "seconds": time.time() - started}
            with (out / "pretrain_log.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            accelerator.print(line, flush=True)

    prompts, _ = split_prompts()
    generator = torch.Generator().manual_seed(config.seed)
    scenes = sample_scenes(prompts, per_prompt=config.objects_per_prompt, generator=generator)
    components = tiny_components(seed=config.seed)
    if accelerator.is_main_process:
        (out / "pretrain_config.json").write_text(json.dumps(asdict(config), indent=1))

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
    data = _Data(components, scenes, prompts)
    components = stage("base", lambda c: _base(accelerator, c, data, config, log, out), components)
    components = stage(
        "views", lambda c: _views(accelerator, c, data, config, log, out), components
    )
    return stage("fewstep", lambda c: _distil(accelerator, c, data, config, log), components)


def _cosine(step: int, steps: int, *, warmup: int = 100, hold: float = 0.3) -> float:
    """Warm up, hold, then fall along a cosine to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    share = max(0.0, (step / steps - hold) / (1 - hold))
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))


def _steps(
    accelerator: Accelerator,
    module: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    *,
    name: str,
    steps: int,
    lr: float,
    seed: int,
    log: Log,
) -> Iterator[int]:
    """Run the optimiser over a loss, one yield a step."""
    trained = [p for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.99), weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: _cosine(s, steps))
    generator = torch.Generator().manual_seed(seed * 1000 + accelerator.process_index)
    running = 0.0
    for step in range(steps):
        value = loss(generator)
        value.backward()
        for p in trained:  # one flat mean over processes would be faster; these are small
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        _average_gradients(accelerator, trained)
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        scheduler.step()
        running += float(value.detach())
        if (step + 1) % 50 == 0:
            log(name, step + 1, running / 50)
            running = 0.0
        yield step


def _average_gradients(accelerator: Accelerator, trained: list[nn.Parameter]) -> None:
    """Average gradients over processes in one message."""
    if accelerator.num_processes == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    torch.distributed.all_reduce(flat)
    flat /= accelerator.num_processes
    offset = 0
    for p in trained:
        if p.grad is not None:
            p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
        offset += p.numel()


def _autoencoder(
    accelerator: Accelerator,
    components: Components,
    scenes: SceneSet,
    config: PretrainConfig,
    log: Log,
) -> Components:
    """Fit the autoencoder to single renders, then measure its latents."""
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

    for _ in _steps(
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


class _Data:
    """Latents of every rendered object, and the prompts' features."""

    def __init__(self, components: Components, scenes: SceneSet, prompts: list[str]) -> None:
        everything = torch.arange(8)
        with torch.no_grad():
            self.latent = torch.cat(
                [
                    components.encode(scenes.images(i, everything.expand(len(i), 8))).half()
                    for i in torch.arange(len(scenes.maps)).split(64)
                ]
            )
            embeds, pooled = encode_prompts(components, [*prompts, ""])
        self.embeds, self.pooled, self.prompt_index = embeds, pooled, scenes.prompt_index
        self.azimuth = azimuth_index(WORLD_RIG)
        self.camera_image = camera_image(WORLD_RIG, height=IMAGE_SIZE, width=IMAGE_SIZE)
        self.time_ids = torch.tensor([[IMAGE_SIZE, IMAGE_SIZE, 0, 0, IMAGE_SIZE, IMAGE_SIZE]])
        self.alpha_bar = scaled_linear_alpha_bar(dtype=torch.float32)

    def draw(
        self, batch: int, generator: torch.Generator, *, dropout: float, gap: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw clean latents (rows), timesteps (rows), noise (rows) and prompt indices.

        Every second view on average stands at ``1 - gap`` times its object's timestep.
        """
        index = torch.randint(len(self.latent), (batch,), generator=generator)
        heading = torch.randint(len(self.azimuth), (batch,), generator=generator)
        clean = self.latent[index[:, None], self.azimuth[heading]].float().flatten(0, 1)
        # stratified: one timestep an equal part of the schedule
        u = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        timestep = (u * 1000).long().clamp(max=999)
        timestep = timestep[torch.randperm(batch, generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        prompt = self.prompt_index[index]
        dropped = torch.rand(batch, generator=generator) < dropout
        prompt = torch.where(dropped, len(self.embeds) - 1, prompt)
        timestep = timestep.repeat_interleave(self.num_views)
        if gap:
            earlier = torch.rand(len(timestep), generator=generator) < 0.5
            timestep = torch.where(earlier, (timestep * (1 - gap)).long(), timestep)
        return clean, timestep, noise, prompt

    @property
    def num_views(self) -> int:
        return self.azimuth.shape[1]

    def conditioning(self, prompt: Tensor, features: tuple[Tensor, ...]) -> Conditioning:
        """Gather the features of drawn prompts."""
        return Conditioning(
            prompt_embeds=self.embeds[prompt],
            pooled_prompt_embeds=self.pooled[prompt],
            time_ids=self.time_ids.float().expand(len(prompt), 6),
            camera_features=features,
            num_views=self.num_views,
        )

    def noisy(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Return x_t and the velocity."""
        root = self.alpha_bar[timestep].sqrt()[:, None, None, None]
        spread = (1 - self.alpha_bar[timestep]).sqrt()[:, None, None, None]
        return root * clean + spread * noise, root * noise - spread * clean


def _averaged(module: nn.Module, decay: float) -> AveragedModel:
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def _base(
    accelerator: Accelerator,
    components: Components,
    data: _Data,
    config: PretrainConfig,
    log: Log,
    out: Path,
) -> Components:
    """Train the base model, all views of an object equally noisy."""
    return _fit_velocity(
        accelerator, components, data, config, out,
        _Fit("base", config.base_steps, config.base_stop, config.base_lr, config.seed + 2, log),
    )  # fmt: skip


def _views(
    accelerator: Accelerator,
    components: Components,
    data: _Data,
    config: PretrainConfig,
    log: Log,
    out: Path,
) -> Components:
    """Teach the views to look at each other.

    Where all views are equally noisy, each tells nearly as much of itself as
    of the others, and the base model hardly uses its row attention. So half
    of the views begin clean, and rise to the others' timestep over three
    quarters of the stage.
    """
    steps = config.views_steps
    return _fit_velocity(
        accelerator, components, data, config, out,
        _Fit("views", steps, steps, config.views_lr, config.seed + 4, log),
        gap=lambda step: max(0.0, 1 - step / (0.75 * steps)),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Fit:
    """One stage's schedule."""

    name: str
    steps: int
    stop: int
    lr: float
    seed: int
    log: Log


def _fit_velocity(
    accelerator: Accelerator,
    components: Components,
    data: _Data,
    config: PretrainConfig,
    out: Path,
    fit: _Fit,
    *,
    gap: Callable[[int], float] = lambda step: 0.0,
) -> Components:
    """Train the network to predict velocity, cameras and row attention with it."""
    policy = components.policy.train()
    guidance = policy.unet.time_embedding.cond_proj
    if guidance is not None:
        guidance.requires_grad_(requires_grad=False)
    done = 0

    def loss(generator: torch.Generator) -> Tensor:
        clean, timestep, noise, prompt = data.draw(
            config.base_batch, generator, dropout=config.prompt_dropout, gap=gap(done)
        )
        noisy, velocity = data.noisy(clean, noise, timestep)
        features = policy.encode_cameras(data.camera_image)
        conditioning = data.conditioning(prompt, features)
        predicted: Tensor = policy(noisy, timestep, conditioning, guidance_scale=1.0)
        error = (predicted - velocity).square().mean((1, 2, 3))
        # A nearly clean view is there to be looked at: its own velocity is mostly chance.
        noisiest = timestep.view(-1, data.num_views)
        noisiest = (noisiest == noisiest.amax(1, keepdim=True)).flatten()
        return error[noisiest].mean()

    average = _averaged(policy, 0.999)
    for step in _steps(
        accelerator, policy, loss, name=fit.name, steps=fit.steps, lr=fit.lr,
        seed=fit.seed, log=fit.log,
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
    data: _Data,
    config: PretrainConfig,
    log: Log,
) -> Components:
    """Distil classifier-free guidance into the guidance embedding."""
    policy, teacher = components.policy.train(), deepcopy(components.policy).eval()
    policy.camera_encoder.requires_grad_(requires_grad=False)
    low, high = config.guidance_range
    with torch.no_grad():
        features = teacher.encode_cameras(data.camera_image)

    def loss(generator: torch.Generator) -> Tensor:
        clean, timestep, noise, prompt = data.draw(config.base_batch, generator, dropout=0.0)
        noisy, _ = data.noisy(clean, noise, timestep)
        scale = low + (high - low) * float(torch.rand((), generator=generator))
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
        distance: Tensor = (predicted - target).square().mean()
        return distance

    average = _averaged(policy, 0.998)
    for _ in _steps(
        accelerator, policy, loss, name="distil", steps=config.distil_steps, lr=config.distil_lr,
        seed=config.seed + 3, log=log,
    ):  # fmt: skip
        average.update_parameters(policy)
    policy.load_state_dict(average.module.state_dict())
    policy.eval()
    return components
