"""A whole system without a network library in it: an iteration of it takes milliseconds."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.models.backbone import Backbone
from mvczigal_ref.models.components import Components
from mvczigal_ref.policy import CameraFeatures
from mvczigal_ref.system import System
from mvczigal_ref.system.sampler import build_sampler
from tests.policies import Call

__all__ = ["PROMPTS", "CoupledPolicy", "analytic_system", "joint_score", "per_view_score"]

PROMPTS = [f"prompt {i}" for i in range(12)]
VIEWS, CHANNELS, EDGE = 3, 4, 4


class CoupledPolicy(nn.Module):
    """Few parameters; every view sees the others, and everything that it is told shows."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64))
        self.mix = nn.Parameter(torch.tensor([0.2], dtype=torch.float64))
        self.bias = nn.Parameter(torch.linspace(-0.3, 0.4, CHANNELS, dtype=torch.float64))
        # What a system looks for a LoRA in.
        self.unet = UNet2DConditionModel.__new__(UNet2DConditionModel)
        nn.Module.__init__(self.unet)
        self.calls: list[Call] = []

    def forward(
        self, latent_t, timestep, conditioning, *, guidance_scale, camera_scale=1.0
    ) -> Tensor:
        """Evaluate on every row, in fp64."""
        call = Call(
            timestep=timestep.reshape(-1).tolist(),
            rows=latent_t.shape[0],
            guidance_scale=guidance_scale,
            camera_scale=camera_scale,
            with_gradient=torch.is_grad_enabled(),
        )
        self.calls.append(call)
        views = conditioning.num_views
        rows = latent_t.double().unflatten(0, (-1, views))
        text = conditioning.prompt_embeds.double().mean((1, 2))[:, None]
        camera = torch.stack([f.double().mean((1, 2, 3)) for f in conditioning.camera_features])
        told = 0.03 * guidance_scale * text + camera_scale * camera.sum(0)
        told = told + torch.cos(timestep.double() / 300).expand(len(latent_t)).view(-1, views)
        output = self.gain[:views, None, None, None] * rows
        output = output + self.mix * torch.tanh(rows).mean(1, keepdim=True)
        output = output + self.bias[:, None, None] * told[..., None, None, None]
        return output.flatten(0, 1).to(latent_t.dtype)


class AnalyticComponents(Components):
    """The parts of a pipeline that an iteration touches."""

    def __init__(self, policy: nn.Module) -> None:
        config = SimpleNamespace(block_out_channels=(1, 1, 1), latent_channels=CHANNELS)
        object.__setattr__(self, "policy", policy)
        vae = nn.Module()
        vae.config = config
        object.__setattr__(self, "vae", vae)

    def decode(self, latent: Tensor) -> Tensor:
        """Squash three channels into the range of images."""
        return torch.sigmoid(latent[..., :3, :, :])


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalyticBackbone(Backbone):
    """The analytic parts as a run knows them."""

    camera_features: CameraFeatures
    num_views: int = VIEWS
    embeds_guidance: bool = True
    text_encoders: tuple[nn.Module, ...] = ()

    @property
    def network(self) -> nn.Module:
        """What trains."""
        return self.policy

    def embed(self, prompt: str) -> tuple[Tensor, Tensor]:
        """Know no prompt but those in the cache."""
        raise KeyError(prompt)

    def add_lora(self, **how: float) -> None:
        """Add none."""

    def load_lora(self, source) -> None:
        """Read none."""

    def lora(self) -> dict[str, nn.Parameter]:
        """Hold none."""
        return {}

    @contextmanager
    def without_lora(self) -> Iterator[None]:
        """Be the network that every run here starts from."""
        now = {name: p.detach().clone() for name, p in self.policy.named_parameters()}
        self.policy.load_state_dict(CoupledPolicy().state_dict())
        try:
            yield
        finally:
            self.policy.load_state_dict(now)


def per_view_score(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Like red, and the later prompts."""
    number = torch.tensor([float(prompt.split()[-1]) for prompt in prompts])
    return (10 * images[:, :, 0] - images[:, :, 1]).mean((-2, -1)) + 0.1 * number[:, None]


def joint_score(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Like views that agree, and blue; about 5."""
    assert len(prompts) == len(images)
    return 5 - 30 * images.var(1).mean((1, 2, 3)) + 4 * images[:, :, 2].mean((1, 2, 3))


def analytic_system(config: TrainConfig, *, policy: CoupledPolicy | None = None) -> System:
    """Build a system whose sampler is the configuration's and whose parts are analytic."""
    generator = torch.Generator().manual_seed(0)
    features = {
        prompt: (torch.randn(1, 2, 3, generator=generator), torch.zeros(1, 3)) for prompt in PROMPTS
    }
    return System(
        backbone=AnalyticBackbone(
            components=AnalyticComponents(CoupledPolicy() if policy is None else policy),
            image_size=4 * EDGE,
            camera_features=(torch.randn(VIEWS, 1, 2, 2, generator=generator),),
        ),
        sampler=build_sampler(config),
        evaluation_sampler=build_sampler(config),
        per_view=per_view_score,
        joint=joint_score,
        device=torch.device("cpu"),
        prompt_cache=features,
    )
