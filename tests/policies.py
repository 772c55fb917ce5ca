"""Networks small enough to be known exactly, and one that remembers how it was called."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mvczigal_ref.diffusion.guidance import guidance_embedding
from mvczigal_ref.policy import Conditioning

__all__ = ["AnalyticPolicy", "Call", "DetachedPolicy", "LinearPolicy", "Recorded", "numbered"]


def numbered(objects: Iterable[int], num_views: int) -> Conditioning:
    """Condition on objects that are told apart by a number, which is all of their text."""
    number = torch.tensor([float(index) for index in objects], dtype=torch.float64)
    return Conditioning(
        prompt_embeds=number[:, None, None].expand(-1, 2, 3),
        pooled_prompt_embeds=number[:, None].expand(-1, 3),
        time_ids=torch.zeros(len(number), 6, dtype=torch.float64),
        camera_features=(torch.zeros(num_views, 1, 2, 2, dtype=torch.float64),),
        num_views=num_views,
    )


class AnalyticPolicy:
    """The network of the recorded trajectories: elementwise, but rows see their neighbours.

    With negative prompts it always doubles the batch, as the recorded pipeline did while
    inverting too; with ``guidance_width`` the guidance's embedding is added instead.
    """

    def __init__(self, guidance_width: int = 0) -> None:
        self.guidance_width = guidance_width
        self.timestep_cond: list[Tensor] = []

    def __call__(
        self,
        latent_t: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        *,
        guidance_scale: float,
        camera_scale: float = 1.0,
    ) -> Tensor:
        """Evaluate the formula on every row."""
        text, negative = conditioning.prompt_embeds, conditioning.negative_prompt_embeds
        doubled = not self.guidance_width and negative is not None
        if doubled:
            text, latent_t = torch.cat([negative, text]), torch.cat([latent_t, latent_t])
        rows, views = latent_t.shape[0], conditioning.num_views
        added = 0.3 * torch.cos(3.0 * timestep.double() / 1000.0).expand(rows)
        added = added + 0.2 * text.mean(dim=(1, 2)).repeat_interleave(views)
        if self.guidance_width:
            scale = torch.full((1,), guidance_scale)
            self.timestep_cond.append(guidance_embedding(scale, width=self.guidance_width))
            added = added + 0.1 * self.timestep_cond[-1][:, 0]
        for feature in conditioning.camera_features:
            added = added + feature.mean() * camera_scale
        output = 0.6 * latent_t + 0.25 * torch.tanh(latent_t.roll(1, dims=0))
        output = output + added[:, None, None, None]
        if doubled:
            uncond, cond = output.chunk(2)
            output = uncond + guidance_scale * (cond - uncond)
        return output


class LinearPolicy(nn.Module):
    """Predicts ``gain * latent`` plus what it is told, so that all it is given shows.

    An object's number is its text, so its gain is the same whatever other objects share the call.
    """

    def __init__(self, *gain: float, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=dtype))

    def forward(
        self,
        latent_t: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        *,
        guidance_scale: float,
        camera_scale: float = 1.0,
    ) -> Tensor:
        """Evaluate on every row."""
        number = conditioning.prompt_embeds[:, 0, 0].long() % len(self.gain)
        rows = self.gain[number].repeat_interleave(conditioning.num_views)
        told = LinearPolicy.told(timestep.to(latent_t.dtype), guidance_scale, camera_scale)
        output = rows[:, None, None, None] * latent_t + told.expand(len(rows))[:, None, None, None]
        return output.to(latent_t.dtype)

    @staticmethod
    def told(timestep: Tensor, guidance_scale: float, camera_scale: float) -> Tensor:
        """Give the part that does not depend on the latent."""
        return 0.02 * guidance_scale + 0.05 * camera_scale + 1e-4 * timestep


class DetachedPolicy(LinearPolicy):
    """The same numbers, with a graph in which no gradient arrives."""

    def forward(self, *given: object, **told: object) -> Tensor:
        """Cut the graph off."""
        output = super().forward(*given, **told)  # type: ignore[arg-type]
        return output.detach() + 0.0 * self.gain.sum()


@dataclass(frozen=True)
class Call:
    """What one network call was told."""

    timestep: list[int]
    rows: int
    guidance_scale: float
    camera_scale: float
    with_gradient: bool


@dataclass
class Recorded:
    """A policy that remembers every call."""

    policy: object
    calls: list[Call] = field(default_factory=list)

    def __call__(self, latent_t, timestep, conditioning, *, guidance_scale, camera_scale=1.0):
        """Note the call and pass it on."""
        call = Call(
            timestep=timestep.reshape(-1).tolist(),
            rows=latent_t.shape[0],
            guidance_scale=guidance_scale,
            camera_scale=camera_scale,
            with_gradient=torch.is_grad_enabled(),
        )
        self.calls.append(call)
        return self.policy(
            latent_t,
            timestep,
            conditioning,
            guidance_scale=guidance_scale,
            camera_scale=camera_scale,
        )
