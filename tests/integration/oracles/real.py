"""Calls into the package: one training run, the network that it trained, and its samplers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mvczigal_ref.config import from_dict
from mvczigal_ref.diffusion.ddim import DdimSampler
from mvczigal_ref.diffusion.flow_sampler import FlowSampler
from mvczigal_ref.diffusion.flow_schedule import flow_sigmas
from mvczigal_ref.diffusion.lcm import LcmSampler
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar, shift_snr
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.tiny import tiny_components
from mvczigal_ref.tiny_world.scene import WORLD_RIG
from mvczigal_ref.training.tracking import read_metrics
from tests.integration.runs import checkpoints, run
from tests.plain_scorers import registered

__all__ = [
    "DdimSampler",
    "FlowSampler",
    "LcmSampler",
    "Run",
    "flow_components",
    "flow_sigmas",
    "multiview_components",
    "scaled_linear_alpha_bar",
    "shift_snr",
    "trained",
]

PROMPTS = (
    "a red ball with a white nose",
    "a blue can",
    "the green cone",
    "a pink cube with a black fin",
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run, and its network at fp64."""

    start: dict[str, Tensor]
    """Trained parameters before the first iteration, fp64."""

    end: dict[str, Tensor]
    """Trained parameters after the last iteration, fp64."""

    metrics: list[dict[str, Any]]
    """Rows of the metrics file."""

    parameters: dict[str, nn.Parameter]
    """Parameters inside the network, fp64, by the same names."""

    components: Any
    """Every network of the pipeline, fp64."""

    def restart(self) -> None:
        """Give the network its first parameters back."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(self.start[name])

    @contextmanager
    def without_lora(self) -> Iterator[None]:
        """Let every B be zero inside, without gradient."""
        outer = {n: p.detach().clone() for n, p in self.parameters.items() if ".lora_B." in n}
        with torch.no_grad():
            for name in outer:
                self.parameters[name].zero_()
            yield
            for name, value in outer.items():
                self.parameters[name].copy_(value)

    def network(self, prompts: Sequence[str]) -> Callable[..., Tensor]:
        """Return a function of latents (object, view, ...), time and guidance, for some prompts.

        With `copies` every prompt stands so many times in a row.
        """
        parts = self.components
        told = ()
        if hasattr(parts.policy, "camera_encoder"):
            told = (WORLD_RIG,)

        def predict(latent: Tensor, time: float, *, guidance: float, copies: int = 1) -> Tensor:
            texts = [prompt for prompt in prompts for _ in range(copies)]
            size = {"image_size": 32} if told else {}
            record = parts.build_conditioning(texts, *told, **size).to(dtype=torch.float64)
            moment = torch.tensor(time, dtype=torch.int64 if told else torch.float64)
            rows = parts.policy(latent.flatten(0, 1), moment, record, guidance_scale=guidance)
            return rows.reshape(latent.shape)

        return predict

    def images(self, latent: Tensor) -> Tensor:
        """Decode latents (object, view, ...) by diffusers' autoencoder, in [0, 1]."""
        parts = self.components
        mean, std = (
            value.double()[:, None, None] for value in (parts.latent_mean, parts.latent_std)
        )
        with torch.no_grad():
            raw = parts.vae.decode(latent.flatten(0, 1) * std + mean).sample
        return (0.5 * raw + 0.5).clamp(0, 1).unflatten(0, latent.shape[:2])


def trained(folder: Path, components: Any, **sections: dict[str, Any]) -> Run:
    """Train as a user does, with the plain judges, and read start and end from checkpoints."""
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        per_view, joint = registered(patch)
        reward = {"per_view": per_view, "joint": joint}
        config = from_dict(
            {
                **sections,
                "reward": {**reward, **sections.get("reward", {})},
                "run": {
                    "iterations": 1, "objects_per_iteration": 4, "objects_per_slice": 2,
                    "prompts": str(prompts), "checkpoint_every": 1, "keep_checkpoints": 9,
                    "evaluation_noises": 1, "device": "cpu", **sections.get("run", {}),
                },
            }
        )  # fmt: skip
        run(config, folder / "run", components=components, held_out=[PROMPTS[0]])
    first, *_, last = checkpoints(folder / "run")
    start, end = (_parameters(folder / "run" / "checkpoints" / name) for name in (first, last))
    wide = components.to(dtype=torch.float64)
    return Run(
        start=start,
        end=end,
        metrics=read_metrics(folder / "run" / "metrics.jsonl"),
        parameters=_inside(wide.policy, start),
        components=wide,
    )


def multiview_components() -> Any:
    """Build a narrow multi-view network whose guidance embedding is in use."""
    parts = tiny_components(seed=0, channels=(16, 16, 16), num_heads=(1, 1, 1))
    weight = parts.policy.unet.time_embedding.cond_proj.weight
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return parts


def flow_components() -> Any:
    """Build a narrow flow transformer of one view."""
    return tiny_flow_components(seed=0, num_heads=1, num_layers=1, num_single_layers=1)


def _parameters(checkpoint: Path) -> dict[str, Tensor]:
    """Read the trained parameters of a checkpoint, fp64."""
    values = load_file(checkpoint / "policy.safetensors")
    return {name: value.double() for name, value in values.items()}


def _inside(policy: nn.Module, names: dict[str, Tensor]) -> dict[str, nn.Parameter]:
    """Find the network's parameters by the names of a checkpoint."""
    inside = {n.replace(".default.", "."): p for n, p in policy.named_parameters()}
    return {
        name: next(p for n, p in inside.items() if n == name or n.endswith(f".{name}"))
        for name in names
    }
