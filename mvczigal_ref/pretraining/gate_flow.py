"""The gate of the tiny world's flow weights, which generate single views."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.flow_schedule import flow_sigmas
from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.policy import network_output, step_transition
from mvczigal_ref.pretraining.gate import (
    VISIBLE,
    WRONG,
    Claim,
    Gate,
    GateRow,
    check_settings,
    ordered,
    scored,
    steps_name,
)
from mvczigal_ref.rollout.noise import SeededNoise, derived_generator
from mvczigal_ref.rollout.standard import step_indices
from mvczigal_ref.shapes import Images
from mvczigal_ref.tiny_world.cheats import other_prompt
from mvczigal_ref.tiny_world.grammar import parse, split_prompts
from mvczigal_ref.tiny_world.render import BACKGROUND, IMAGE_SIZE, colour_maps
from mvczigal_ref.tiny_world.scene import AZIMUTHS, sample_scenes

__all__ = ["gate_flow"]

_OCCASION = "flow gate"  # gives noise that no training iteration has


def gate_flow(
    components: FlowComponents,
    *,
    seed: int,
    noises: int,
    steps: Sequence[int] = (20, 10),
    guidance_scale: float,
    prompts: Sequence[str] | None = None,
) -> Gate:
    r"""Judge a flow model's single views on prompts that it was never trained on.

    The per-view score must fall in the order ``real``, ``autoencoder``, the step counts, largest
    first, then ``wrong_prompt``, ``blank`` and ``noise``. A prompt does not name the camera, and
    no part is seen from behind; so samples of the largest step count must show the part at least
    nine tenths as often as real renders. Real renders are all eight azimuths of the scenes;
    samples follow the ODE on the scheduler's grid.

    Args:
        components: Transformer, autoencoder and text encoders.
        seed: Seed of scenes and noise; the same seed gives the same numbers.
        noises: Scenes and initial noises per prompt [1]; at least 1.
        steps: Step counts, largest first; at least two.
        guidance_scale: Guidance scale [1]; 1 is unguided, above 1 samples are led away from
            those of the empty prompt.
        prompts: Sentences of the grammar; the held-out ones if absent.

    Returns:
        Scores with standard errors, every claim with its margin, and the images, with one view
        per noise of a sample.

    Raises:
        ValueError: If ``noises`` is below 1 or ``steps`` do not fall.
    """
    check_settings(noises, steps)
    texts = list(split_prompts()[1] if prompts is None else prompts)
    images = _renders(components, texts, seed, noises)
    for count in steps:
        views = [
            _sampled(components, texts, seed, noise, count, guidance_scale)
            for noise in range(noises)
        ]
        images[steps_name(count)] = torch.cat(views, 1)
    images |= {name: images.pop(name) for name in WRONG}  # the table's last rows
    rows = tuple(scored(name, [images[name]], texts, sets=False) for name in images)
    return Gate(rows=rows, claims=_claims(rows, steps), images=images)


@torch.no_grad()
def _renders(
    components: FlowComponents, prompts: list[str], seed: int, noises: int
) -> dict[str, Images]:
    """Render scenes from all azimuths, and the kinds that must score below every sample."""
    generator = derived_generator(seed, _OCCASION)
    scenes = sample_scenes(prompts, per_prompt=noises, generator=generator)
    index = torch.arange(len(scenes.maps))
    azimuth = torch.arange(len(AZIMUTHS)).expand(len(index), -1)
    wrong = torch.stack([colour_maps(parse(other_prompt(prompt))) for prompt in prompts])
    other = replace(scenes, colours=wrong.repeat_interleave(noises, 0))
    real, wrong_prompt = (
        some.images(index, azimuth).unflatten(0, (len(prompts), noises)).flatten(1, 2)
        for some in (scenes, other)
    )
    device = components.policy.device
    coded = [components.decode(components.encode(x.to(device))).cpu() for x in real.split(8)]
    return {
        "real": real,
        "autoencoder": torch.cat(coded),
        "wrong_prompt": wrong_prompt,
        "blank": torch.full_like(real[:, :1], BACKGROUND),
        "noise": torch.rand(real[:, :noises].shape, generator=generator),
    }


@torch.no_grad()
def _sampled(
    components: FlowComponents,
    prompts: list[str],
    seed: int,
    noise: int,
    num_steps: int,
    guidance_scale: float,
) -> Images:
    """Follow the ODE from one noise per prompt."""
    policy, device = components.policy, components.policy.device
    channels = components.vae.config.latent_channels
    edge = IMAGE_SIZE // 2 ** (len(components.vae.config.block_out_channels) - 1)
    sigmas = flow_sigmas(num_steps, shift=components.noise_shift(edge, edge), dtype=torch.float32)
    sampler = FlowSampler.create(sigmas=sigmas, kernel="ode").to(device)
    conditioning = components.build_conditioning(prompts, negative_prompt="")
    objects = range(noise * len(prompts), (noise + 1) * len(prompts))
    source = SeededNoise(
        seed=seed, iteration=_OCCASION, objects=objects, shape=(1, channels, edge, edge),
        device=device,
    )  # fmt: skip
    latent = source.initial()[None]
    for index in step_indices(sampler, device):
        output = network_output(
            policy, sampler, latent, index, conditioning, guidance_scale=guidance_scale
        )
        latent = step_transition(sampler, output, latent, index).mean
    return components.decode(latent[0]).cpu()


def _claims(rows: tuple[GateRow, ...], steps: Sequence[int]) -> tuple[Claim, ...]:
    """Compare the rows in the order that good weights give."""
    table = {row.name: row for row in rows}
    chain = ["real", "autoencoder", *map(steps_name, steps)]
    pairs = [*pairwise(chain), *((chain[-1], name) for name in WRONG)]
    best = table[chain[2]]
    visible = Claim(
        text=f"{best.name}: part visible {VISIBLE:.0%} as often as in real renders",
        margin=best.part_visible - VISIBLE * table["real"].part_visible,
    )
    return (*ordered(table, pairs, ("per_view",)), visible)
