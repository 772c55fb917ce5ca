"""What rollouts are made with: noise, samplers, and recorded runs to compare with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mvczigal_ref.diffusion.ddim import DdimSampler
from mvczigal_ref.diffusion.lcm import LcmSampler
from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.records import Trajectory
from mvczigal_ref.rollout.noise import NoiseSource, SeededNoise
from mvczigal_ref.shapes import ObjectLatent
from tests import golden
from tests.policies import numbered

__all__ = ["RecordedRun", "ReplayedNoise", "noise", "recorded_run", "roll_with", "sampler_of"]


def sampler_of(kind: str, num_steps: int, *, dtype: torch.dtype = torch.float64) -> Sampler:
    """Build a sampler on the published schedule."""
    alpha_bar = scaled_linear_alpha_bar(dtype=torch.float64)
    create = {"lcm": LcmSampler.create, "ddim": DdimSampler.create}[kind]
    return create(num_steps=num_steps, alpha_bar=alpha_bar).to(dtype=dtype)


def noise(objects=(0, 1), shape=(2, 3, 2, 2), seed=0) -> SeededNoise:
    """Give noise to some objects."""
    return SeededNoise(seed=seed, iteration=0, objects=list(objects), shape=shape)


def roll_with(rollout, policy, sampler, drawn: SeededNoise, arm: str, **settings) -> Trajectory:
    """Sample one arm of the objects that the noise names, in fp64 unless told otherwise."""
    settings = {"guidance_scale": 3.0, "storage_dtype": torch.float64, **settings}
    conditioning = numbered(drawn.objects, drawn.shape[0])
    return rollout(policy, sampler, drawn.initial(), conditioning, drawn.arm(arm), **settings)


class ReplayedNoise(SeededNoise):
    """Initial noise and draws that were recorded, given out in the order that they were drawn."""

    __slots__ = ("draws", "start")

    def __init__(self, start: Tensor, **draws: Tensor) -> None:
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "draws", draws)

    def initial(self) -> ObjectLatent:
        """Give x_T."""
        return self.start

    def arm(self, name: str) -> NoiseSource:
        """Give one arm's draws, one a call, whatever the step."""
        waiting: Iterator[Tensor] = iter(self.draws[name])
        return lambda step, draw: next(waiting)


@dataclass(frozen=True)
class RecordedRun:
    """One recorded pair of trajectories and everything that made it."""

    constants: dict
    sampler: Sampler
    conditioning: Conditioning
    noise: ReplayedNoise
    tensors: dict[str, Tensor]
    by_object: Callable[[Tensor], Tensor]

    def by_step(self, name: str) -> Tensor:
        """Return a recorded tensor, its rows taken apart and the steps first."""
        return self.by_object(self.tensors[name]).movedim(2, 0)


def recorded_run(name: str) -> RecordedRun:
    """Load a file of the topic `stages`."""
    values, known = golden.tensors("stages", name), golden.constants("stages", name)
    objects, views = known["batch"], known["num_views"]

    def by_object(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (objects, views))

    alpha_bar, num_steps = values["alphas_cumprod"], known["num_inference_steps"]
    if known["scheduler"] == "lcm":
        sampler = LcmSampler.create(num_steps=num_steps, alpha_bar=alpha_bar)
    else:
        sampler = DdimSampler.create(num_steps=num_steps, alpha_bar=alpha_bar, eta=known["eta"])
    camera = values["control_image"].double().mean(1, keepdim=True)
    blank = torch.zeros(objects, 6, dtype=torch.float64)
    return RecordedRun(
        constants=known,
        sampler=sampler,
        conditioning=Conditioning(
            prompt_embeds=values["prompt_embeds"],
            pooled_prompt_embeds=blank,
            time_ids=blank,
            camera_features=tuple(camera * factor for factor in (0.1, -0.2, 0.05, 0.3)),
            num_views=views,
            negative_prompt_embeds=values["negative_prompt_embeds"],
            negative_pooled_prompt_embeds=blank,
        ),
        noise=ReplayedNoise(
            by_object(values["latents"]),
            standard=values["standard.noise_draws"].unflatten(1, (objects, views)),
            zigzag=values["zmv.noise_draws"].unflatten(1, (objects, views)),
        ),
        tensors=values,
        by_object=by_object,
    )
