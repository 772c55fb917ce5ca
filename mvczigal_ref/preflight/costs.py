"""What the network calls of a run cost, each shape measured once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.method.sample import draw_pair
from mvczigal_ref.policy import Conditioning, network_output
from mvczigal_ref.preflight.measure import GraphCost, Meter, fused_attention, measure_graph
from mvczigal_ref.records import PairedRollout
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.system import System
from mvczigal_ref.update.replay import replay_log_prob

__all__ = ["Costs", "SampledCall"]


@dataclass(frozen=True, slots=True)
class SampledCall:
    """A network call without gradient, as a rollout makes it."""

    objects: int
    """[objects]"""
    guidance_scale: float
    """[1]"""


class _Recorder:
    """A policy that computes nothing and notes how it is called."""

    def __init__(self) -> None:
        self.calls: list[SampledCall] = []

    def __call__(
        self,
        latent_t: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        *,
        guidance_scale: float,
        camera_scale: float = 1.0,
    ) -> Tensor:
        self.calls.append(SampledCall(conditioning.num_objects, guidance_scale))
        return torch.zeros_like(latent_t)


@dataclass(slots=True)
class Costs:
    """Measures a system whose tensors are on the meta device."""

    system: System
    """With everything that trains."""

    config: TrainConfig
    """The run."""

    _sampled: dict[tuple[int, bool], tuple[int, int]] = field(default_factory=dict)
    _graphs: dict[tuple[int, int, bool, bool], GraphCost] = field(default_factory=dict)

    def rollout(self) -> tuple[PairedRollout, list[SampledCall]]:
        """Sample one slice with a network that only notes its calls.

        Returns:
            What a slice stores, and the calls that it takes.
        """
        wanted, policy = self.config, _Recorder()
        objects = wanted.run.objects_per_slice
        noise = SeededNoise(
            seed=0, iteration=0, objects=range(objects), shape=self.system.latent_shape,
            device=self.system.device,
        )  # fmt: skip
        pair = draw_pair(
            self.system, self.conditioning(objects), noise, config=wanted, policy=policy
        )
        return pair, policy.calls

    def conditioning(self, objects: int) -> Conditioning:
        """Lay out what the network is told of some objects.

        Args:
            objects: How many.

        Returns:
            Text and cameras on the meta device, a negative prompt where guidance needs one.
        """
        parts = self.system.components
        first, second = parts.text_encoder.config, parts.text_encoder_2.config
        prompt = (
            torch.empty(
                1, first.max_position_embeddings, first.hidden_size + second.hidden_size,
                device="meta",
            ),
            torch.empty(1, second.projection_dim, device="meta"),
        )  # fmt: skip
        negative = None if self.system.negative_prompt is None else prompt
        return self.system.backbone.conditioning([prompt] * objects, negative)

    def sampled(self, call: SampledCall) -> tuple[int, int]:
        """Measure a call of a rollout: without gradient, or of a compiled network, whose graph is
        dropped, with it.

        Args:
            call: Its shape.

        Returns:
            Operations [FLOP], and the most that it holds [bytes].
        """
        policy = self.system.components.policy
        key = (call.objects, policy.guidance_width is None and call.guidance_scale > 1.0)
        if key not in self._sampled:
            told = self.conditioning(call.objects)
            latent = self._latent(call.objects, storage=torch.float32)
            step = torch.empty(1, dtype=torch.int64, device=latent.device)
            known = [*self._known(told), latent, step]
            graph = torch.set_grad_enabled(self.config.model.compile != "none")
            with graph, Meter(known) as meter, fused_attention():
                network_output(
                    policy, self.system.sampler, latent[None], step, told,
                    guidance_scale=call.guidance_scale,
                )  # fmt: skip
            self._sampled[key] = (meter.flops, meter.peak)
        return self._sampled[key]

    def replayed(
        self, pair: PairedRollout, objects: int, steps: int, *, checkpointed: bool, backward: bool
    ) -> GraphCost:
        """Measure the replay of one arm.

        Args:
            pair: One slice's.
            objects: How many of it.
            steps: How many, in one call.
            checkpointed: Whether activations are computed again in the backward pass.
            backward: Whether the backward pass is wanted.

        Returns:
            Its cost, as it is once gradients exist that new ones are added to.
        """
        key = (objects, steps, checkpointed, backward)
        known = self._graphs.get(key) or self._graphs.get((*key[:3], True))
        if known is not None:
            return known
        policy, wanted = self.system.components.policy, self.config
        if checkpointed:
            policy.unet.enable_gradient_checkpointing()
        else:
            policy.unet.disable_gradient_checkpointing()
        trajectory = pair.standard.objects(slice(0, objects))
        told = self.conditioning(objects)
        trained = list(self.system.trained().values())
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        gradients = [p.grad for p in trained if p.grad is not None]
        stored = [trajectory.state, trajectory.action]
        self._graphs[key] = measure_graph(
            lambda: replay_log_prob(
                policy, self.system.sampler, trajectory, range(steps), told,
                guidance_scale=wanted.sampler.guidance_scale,
                reduction=wanted.objective.reduction,
            ),
            known=[*self._known(told), *gradients, *stored],
            backward=backward,
        )  # fmt: skip
        return self._graphs[key]

    def decoded(self) -> tuple[int, int, int]:
        """Measure decoding one arm of a slice.

        Returns:
            Operations [FLOP], the most that it holds, and its images [bytes].
        """
        latent = self._latent(self.config.run.objects_per_slice, storage=torch.float32)
        vae = self.system.components.vae
        known = [*vae.parameters(), *vae.buffers(), latent]
        with Meter(known) as meter, fused_attention():
            images = self.system.images(latent)
        return meter.flops, meter.peak, images.numel() * images.element_size()

    def _latent(self, objects: int, *, storage: torch.dtype) -> Tensor:
        shape = (objects, *self.system.latent_shape)
        return torch.empty(shape, dtype=storage, device=self.system.device)

    def _known(self, told: Conditioning) -> Sequence[Tensor]:
        negative = (told.negative_prompt_embeds, told.negative_pooled_prompt_embeds)
        policy = self.system.components.policy
        return [
            *policy.parameters(), *policy.buffers(), *told.camera_features, told.prompt_embeds,
            told.pooled_prompt_embeds, told.time_ids, *(t for t in negative if t is not None),
        ]  # fmt: skip
