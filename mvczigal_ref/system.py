"""Everything that an iteration acts with, built once from a configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.grids import build_sampler
from mvczigal_ref.models.backbone import Backbone, FlowBackbone
from mvczigal_ref.models.components import Components
from mvczigal_ref.models.flow_components import FlowComponents
from mvczigal_ref.networks import DTYPES, backbone_of, load_network
from mvczigal_ref.records import CameraFeatures, Conditioning
from mvczigal_ref.reward.protocols import JointViewScorer, PerViewScorer
from mvczigal_ref.scorers import build_scorers
from mvczigal_ref.shapes import Images, JointViewReward, ObjectLatent, PerViewReward

__all__ = ["DTYPES", "System", "build_system", "with_samplers"]


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """Network, sampler, scorers and cameras of a run."""

    backbone: Backbone
    """The model, on the device."""

    sampler: Sampler
    """Grid and transition kernel."""

    evaluation_sampler: Sampler
    """The same kernel on the grid of evaluation."""

    per_view: PerViewScorer
    """Judges single views; the weighted sum where there are several scorers."""

    joint: JointViewScorer | None
    """Judges all views of an object; the weighted sum where there are several scorers; None
    where the mean of the per-view reward stands for it."""

    device: torch.device
    """Where the network computes."""

    negative_prompt: str | None = None
    """What classifier-free guidance leads away from; None where the batch is never doubled."""

    prompt_cache: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Token and pooled features of every prompt met so far."""

    watched_per_view: Mapping[str, PerViewScorer] = field(default_factory=dict)
    """Scorers of single views that the guard watches, by name."""

    watched_joint: Mapping[str, JointViewScorer] = field(default_factory=dict)
    """Scorers of all views that the guard watches, by name."""

    @property
    def policy(self) -> nn.Module:
        """The network that is trained."""
        return self.backbone.policy

    @property
    def components(self) -> Any:  # noqa: ANN401 - of either kind
        """Every model, on the device."""
        return self.backbone.components

    @property
    def camera_features(self) -> CameraFeatures:
        """Of the cameras, computed once; none for networks without."""
        return self.backbone.camera_features

    @property
    def image_size(self) -> int:
        """Edge of an image [px]."""
        return self.backbone.image_size

    @property
    def num_views(self) -> int:
        """Images that are drawn together."""
        return self.backbone.num_views

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Views, channels, height and width of one object's latents."""
        return self.backbone.latent_shape

    def trained(self) -> dict[str, nn.Parameter]:
        """Find what trains.

        Returns:
            LoRA parameters by published name, or without a LoRA every parameter that
            requires a gradient.
        """
        return self.backbone.trained()

    def conditioning(self, prompts: Sequence[str], *, remember: bool = True) -> Conditioning:
        """Gather the features of prompts, encoding each the first time it is met.

        Args:
            prompts: One an object.
            remember: Whether to keep what is encoded; not of captions, which are met once.

        Returns:
            What the policy is told of these objects.

        Raises:
            ValueError: If there are no prompts.
        """
        if not prompts:
            msg = "`prompts` must hold at least one prompt; got none."
            raise ValueError(msg)
        found: dict[str, tuple[Tensor, Tensor]] = {}
        negative = [] if self.negative_prompt is None else [self.negative_prompt]
        for text in dict.fromkeys([*prompts, *negative]):
            # One by one, so that no prompt's features depend on its company.
            known = self.prompt_cache.get(text)
            found[text] = self.backbone.embed(text) if known is None else known
        if remember:
            self.prompt_cache.update(found)
        return self.backbone.conditioning(
            [found[prompt] for prompt in prompts], found[negative[0]] if negative else None
        )

    @torch.no_grad()
    def images(self, denoised: ObjectLatent) -> Images:
        """Decode final latents.

        Args:
            denoised: Final latents [1].

        Returns:
            Images in [0, 1], fp32, without gradient.
        """
        images: Tensor = self.backbone.components.decode(denoised)
        return images.float().clamp(0, 1)

    def score(
        self, images: Images, prompts: Sequence[str]
    ) -> tuple[PerViewReward, JointViewReward]:
        """Ask both scorers.

        Args:
            images: In [0, 1].
            prompts: One an object.

        Returns:
            One number a view, and one an object [reward units].
        """
        per_view = self.per_view(images, prompts)
        joint = per_view.mean(-1) if self.joint is None else self.joint(images, prompts)
        return per_view, joint


def build_system(
    config: TrainConfig,
    *,
    device: torch.device,
    components: Components | FlowComponents | None = None,
    scorers: Mapping[str, Any] | None = None,
) -> System:
    """Load the models, choose what trains, and compute what is constant.

    Args:
        config: The run's configuration.
        device: Where everything goes.
        components: Models already loaded, changed in place; read from ``model.weights`` if
            absent.
        scorers: From :func:`build_scorers` or :func:`no_scorers`; built if absent.

    Returns:
        The system, every network in evaluation mode: without dropout.

    Raises:
        ConfigError: If all weights are to be trained in half precision, the components are of
            another kind, or a scorer is unknown.
        CheckpointError: If weights, of the model or of a scorer, cannot be read.
        ScorerUnavailableError: If a scorer's service does not answer.
    """
    model = config.model
    if model.finetune == "full" and model.dtype != "fp32":
        msg = (
            '`model.dtype` must be "fp32" where `model.finetune` is "full"; got '
            f"{model.dtype!r}. Updates of trained half-precision weights round away; train "
            "a LoRA, whose weights are fp32."
        )
        raise ConfigError(msg)
    if scorers is None:  # first, for what is missing shows at once
        scorers = build_scorers(config, device=device)
    if components is None:
        components = load_network(config)
    loaded = components.to(device)
    if model.finetune == "lora":
        loaded.policy.to(DTYPES[model.dtype])
    backbone = backbone_of(config, loaded)
    backbone.freeze()
    if model.finetune == "full":
        backbone.network.requires_grad_(requires_grad=True)
    else:
        backbone.add_lora(rank=model.lora_rank, alpha=model.lora_alpha, seed=config.run.seed)
    if model.gradient_checkpointing:
        # diffusers recomputes wherever gradients are on, so the network stays in evaluation mode.
        backbone.network.enable_gradient_checkpointing()
    return System(
        backbone=backbone,
        **_samplers(config, backbone, device),
        device=device,
        negative_prompt=_negative_prompt(config, backbone),
        **scorers,
    )


def with_samplers(system: System, config: TrainConfig) -> System:
    """Give a system the grids of another configuration.

    Args:
        system: Any.
        config: Its sections ``sampler`` and ``flow`` are read.

    Returns:
        The same network with other grids.
    """
    return replace(system, **_samplers(config, system.backbone, system.device))


def _samplers(config: TrainConfig, backbone: Backbone, device: torch.device) -> dict[str, Any]:
    """Build the grids of training and of evaluation."""
    shift = backbone.noise_shift() if isinstance(backbone, FlowBackbone) else 1.0
    grids = {"sampler": None, "evaluation_sampler": config.sampler.evaluation_steps or None}
    return {
        name: build_sampler(config, shift=shift, num_steps=steps).to(device)
        for name, steps in grids.items()
    }


def _negative_prompt(config: TrainConfig, backbone: Backbone) -> str | None:
    """Find out whether any call doubles its batch."""
    scales = [config.sampler.guidance_scale, config.zigzag.inversion_guidance_scale]
    doubled = max(scales) > 1.0 and not backbone.embeds_guidance
    return config.sampler.negative_prompt if doubled else None
