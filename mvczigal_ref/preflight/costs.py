"""Cost of a run's network calls, each shape measured once."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.models.backbone import AnyComponents
from mvczigal_ref.models.components import Components
from mvczigal_ref.models.lora_form import lora_form_count
from mvczigal_ref.models.recomputation import Recomputation
from mvczigal_ref.policy import Conditioning, network_output
from mvczigal_ref.preflight.measure import GraphCost, fused_attention, measure_graph
from mvczigal_ref.preflight.meter import Meter
from mvczigal_ref.preflight.workload import Replay, SampledCall, Workload, workload_of
from mvczigal_ref.system import System

__all__ = ["Checkpointing", "Costs", "SampledCall"]

Checkpointing: TypeAlias = bool | Literal["auto"]


@dataclass(slots=True)
class Costs:
    """Measures a system whose tensors are on the meta device."""

    system: System
    """System with everything that trains."""

    config: TrainConfig
    """The run."""

    _sampled: dict[tuple[int, bool], tuple[int, int]] = field(default_factory=dict)
    budget: int = 0
    """Memory for activations where `model.gradient_checkpointing` is "auto" [bytes]."""

    device: str = "cpu"
    """Type of the device for which the forms of a LoRA are chosen."""

    forms: dict[str, Counter[str]] = field(default_factory=dict)
    """Layers of a LoRA by form, in the largest call of a rollout and of the update [layers]."""

    blocks: dict[Replay, tuple[int, int]] = field(default_factory=dict)
    """Blocks of each replay that compute again by that budget, and all of them [blocks]."""

    _graphs: dict[tuple[Replay, Checkpointing, bool], GraphCost] = field(default_factory=dict)
    _references: dict[Replay, int] = field(default_factory=dict)

    def workload(self, *, iteration: int = 0) -> Workload:
        """Find the work of one slice.

        Args:
            iteration: Index of the iteration, for windows that move.

        Returns:
            Calls of its rollout, stored tensors, and replays.

        Raises:
            ValueError: If window, tree and grid do not fit.
        """
        conditioning = self.conditioning(self.config.run.objects_per_slice)
        return workload_of(self.system, self.config, conditioning, iteration=iteration)

    def conditioning(self, objects: int) -> Conditioning:
        """Lay out the conditioning of some objects.

        Args:
            objects: Number of them.

        Returns:
            Text and cameras on the meta device, a negative prompt where guidance needs one.
        """
        prompt = _features(self.system.components)
        negative = None if self.system.negative_prompt is None else prompt
        return self.system.backbone.conditioning([prompt] * objects, negative)

    def sampled(self, call: SampledCall) -> tuple[int, int]:
        """Measure a call of a rollout.

        A compiled network computes it with its graph, which is dropped.

        Args:
            call: Shape of the call.

        Returns:
            Operations [FLOP], and the most that it holds [bytes].
        """
        policy = self.system.components.policy
        doubled = not self.system.backbone.embeds_guidance and call.guidance_scale > 1.0
        key = (call.objects, doubled)
        if key not in self._sampled:
            conditioning = self.conditioning(call.objects)
            latent = self._latent(call.objects, storage=torch.float32)
            step = torch.empty(1, dtype=torch.int64, device=latent.device)
            present = [*self._present(conditioning), latent, step]
            graph = torch.set_grad_enabled(self.config.model.compile != "none")
            with graph, self._forms("rollout"), Meter(present) as meter, fused_attention():
                network_output(
                    policy, self.system.sampler, latent[None], step, conditioning,
                    guidance_scale=call.guidance_scale,
                )  # fmt: skip
            self._sampled[key] = (meter.flops, meter.peak)
        return self._sampled[key]

    def replayed(
        self, workload: Workload, shape: Replay, *, checkpointed: Checkpointing, backward: bool
    ) -> GraphCost:
        """Measure a replay.

        Args:
            workload: One slice's.
            shape: One of its replays.
            checkpointed: Whether activations are computed again in the backward pass; or "auto",
                for those of as few blocks as :attr:`budget` asks for.
            backward: Whether the backward pass is measured too.

        Returns:
            Cost of the replay, as it is once gradients exist that new ones are added to.
        """
        key = (shape, checkpointed, backward)
        earlier = self._graphs.get(key) or self._graphs.get((shape, checkpointed, True))
        if earlier is not None:
            return earlier
        policy = self.system.components.policy
        conditioning = self.conditioning(shape.prompts)
        trained = list(self.system.trained().values())
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        gradients = [p.grad for p in trained if p.grad is not None]
        replay = partial(workload.function[shape], policy, conditioning)

        def forward() -> Tensor:
            with self._forms("update"):
                return replay()

        # The backward pass, which may compute forward again, chooses for the same device.
        with lora_form_count(self.device), self._checkpointed(checkpointed, shape, replay):
            self._graphs[key] = measure_graph(
                forward,
                present=[*self._present(conditioning), *gradients, *workload.inputs[shape]],
                backward=backward,
            )
        return self._graphs[key]

    @contextmanager
    def _forms(self, stage: str) -> Iterator[None]:
        """Note the forms of the stage's largest call, of which most are merged."""
        with lora_form_count(self.device) as forms:
            yield
        if forms["merged"] >= self.forms.get(stage, Counter())["merged"]:
            self.forms[stage] = forms

    @contextmanager
    def _checkpointed(
        self, how: Checkpointing, shape: Replay, replay: Callable[[], Tensor]
    ) -> Iterator[None]:
        """Let blocks compute again as a run would."""
        network = self.system.backbone.network
        if how == "auto":
            choice = Recomputation(network, lambda: self.budget)
            replay()  # in which the blocks are chosen
            self.blocks[shape] = (choice.count, choice.blocks)
            yield
            choice.remove()
            return
        if how:
            network.enable_gradient_checkpointing()
        yield
        network.disable_gradient_checkpointing()

    def reference(self, workload: Workload, shape: Replay) -> int:
        """Measure a replay by the reference policy: without gradient and without the LoRA.

        Args:
            workload: One slice's.
            shape: One of its replays.

        Returns:
            Operations [FLOP].
        """
        if shape not in self._references:
            policy, conditioning = self.system.components.policy, self.conditioning(shape.prompts)
            lora = self.system.backbone.lora()
            elsewhere = self.system.backbone.without_lora() if lora else nullcontext()
            with torch.no_grad(), elsewhere, Meter() as meter, fused_attention():
                workload.function[shape](policy, conditioning)
            self._references[shape] = meter.flops
        return self._references[shape]

    def decoded(self, rows: int) -> tuple[int, int, int]:
        """Measure a decoding.

        Args:
            rows: Samples that are decoded together, all views of each [samples].

        Returns:
            Operations [FLOP], the most that it holds, and its images [bytes].
        """
        latent = self._latent(rows, storage=torch.float32)
        vae = self.system.components.vae
        present = [*vae.parameters(), *vae.buffers(), latent]
        with Meter(present) as meter, fused_attention():
            images = self.system.images(latent)
        return meter.flops, meter.peak, images.numel() * images.element_size()

    def _latent(self, objects: int, *, storage: torch.dtype) -> Tensor:
        shape = (objects, *self.system.latent_shape)
        return torch.empty(shape, dtype=storage, device=self.system.device)

    def _present(self, conditioning: Conditioning) -> Sequence[Tensor]:
        negative = (
            conditioning.negative_prompt_embeds, conditioning.negative_pooled_prompt_embeds,
        )  # fmt: skip
        policy = self.system.components.policy
        return [
            *policy.parameters(), *policy.buffers(), *conditioning.camera_features,
            conditioning.prompt_embeds, conditioning.pooled_prompt_embeds, conditioning.time_ids,
            *(tensor for tensor in negative if tensor is not None),
        ]  # fmt: skip


def _features(parts: AnyComponents) -> tuple[Tensor, Tensor]:
    """Lay out token and pooled features of one prompt, by the text encoders' widths."""
    if isinstance(parts, Components):
        first, second = parts.text_encoder.config, parts.text_encoder_2.config
        tokens = first.max_position_embeddings, first.hidden_size + second.hidden_size
        pooled = second.projection_dim
    else:
        tokens, pooled = parts.feature_sizes
    return torch.empty(1, *tokens, device="meta"), torch.empty(1, pooled, device="meta")
