"""Record of everything that an iteration acts with, built once from a configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.config.sharding import processes_contradiction
from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.models.backbone import (
    AnyComponents,
    Backbone,
    FlowBackbone,
    MultiviewBackbone,
)
from mvczigal_ref.models.chunks import device_of, in_chunks
from mvczigal_ref.models.lora_files import check_lora
from mvczigal_ref.models.placement import (
    at_work,
    take_latents_from,
)
from mvczigal_ref.policy import CameraFeatures, Conditioning
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.reward.protocols import JointViewScorer, PerViewScorer
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.shapes import Images, JointViewReward, ObjectLatent, PerViewReward
from mvczigal_ref.system.networks import backbone_of, load_network
from mvczigal_ref.system.preparation import (
    check_training,
    choose_trained,
    cut_network,
    few_bits_of,
    place_parts,
    quicken,
)
from mvczigal_ref.system.rig import rig_of
from mvczigal_ref.system.sampler import build_sampler
from mvczigal_ref.system.scorers import build_scorers

__all__ = ["System", "build_system", "with_sampling"]

REMEMBERED = 256
"""Largest number of prompts whose features are cached: all of the tiny world's; 1 GB for FLUX.1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """Network, sampler, scorers and cameras of a run."""

    backbone: Backbone
    """The model; its policy is on the networks' device, the rest there or waiting on the CPU."""

    sampler: Sampler
    """Grid and transition kernel of training."""

    evaluation_sampler: Sampler
    """Kernel of training on the grid of evaluation."""

    per_view: PerViewScorer
    """Scorer of single views; the weighted sum where there are several."""

    joint: JointViewScorer | None
    """Scorer of all views of an object; the weighted sum where there are several; None where the
    mean of the per-view reward stands for it."""

    device: torch.device
    """Device of noise, latents and log-densities; the networks may be on another."""

    negative_prompt: str | None = None
    """Prompt that classifier-free guidance leads away from; None where no batch is doubled."""

    prompt_cache: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Token and pooled features of the latest prompts, the oldest first."""

    watched_per_view: Mapping[str, PerViewScorer] = field(default_factory=dict)
    """Scorers of single views that the guard watches, by name."""

    watched_joint: Mapping[str, JointViewScorer] = field(default_factory=dict)
    """Scorers of all views that the guard watches, by name."""

    views_per_decode: int = 0
    """Images that the autoencoder decodes together [images]; 0 is all."""

    compute_device: torch.device | None = None
    """Device on which the networks compute, where the trained one's parts wait elsewhere."""

    @property
    def network_device(self) -> torch.device:
        """Device on which the networks compute."""
        return self.compute_device or device_of(self.policy)

    @property
    def policy(self) -> nn.Module:
        """Network that is trained."""
        return self.backbone.policy

    @property
    def components(self) -> Any:  # noqa: ANN401 - of either kind
        """Every part of the model."""
        return self.backbone.components

    @property
    def camera_features(self) -> CameraFeatures:
        """Features of the cameras, computed once; none for networks without cameras."""
        return self.backbone.camera_features

    @property
    def image_size(self) -> int:
        """Edge of an image [px]."""
        return self.backbone.image_size

    @property
    def num_views(self) -> int:
        """Number of images that are drawn together [views]."""
        return self.backbone.num_views

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Views, channels, height and width of one object's latents."""
        return self.backbone.latent_shape

    def trained(self) -> dict[str, nn.Parameter]:
        """Find the trainable parameters.

        Returns:
            LoRA parameters by published name, or without a LoRA every parameter that
            requires a gradient.
        """
        return self.backbone.trained()

    def conditioning(self, prompts: Sequence[str], *, remember: bool = True) -> Conditioning:
        """Gather the features of prompts, encoding only those that are not cached.

        Args:
            prompts: One per object.
            remember: Whether to cache what is encoded; not of captions, which occur once.

        Returns:
            The policy's conditioning on these objects.

        Raises:
            ValueError: If there are no prompts.
        """
        if not prompts:
            msg = "`prompts` must hold at least one prompt; got none."
            raise ValueError(msg)
        negative = [] if self.negative_prompt is None else [self.negative_prompt]
        texts = dict.fromkeys([*prompts, *negative])
        features = {text: self.prompt_cache[text] for text in texts if text in self.prompt_cache}
        if len(features) < len(texts):
            with at_work(*self.backbone.text_encoders, device=self.network_device):
                # One by one, so that no prompt's features depend on the others.
                features |= {t: self.backbone.embed(t) for t in texts if t not in features}
        if remember:
            self.prompt_cache.update(features)
            for text in list(self.prompt_cache)[:-REMEMBERED]:
                del self.prompt_cache[text]
        return self.backbone.conditioning(
            [features[prompt] for prompt in prompts], features[negative[0]] if negative else None
        )

    def noise(self, objects: Sequence[int], occasion: int | str, *, seed: int) -> SeededNoise:
        """Name the noise of some objects, of the latents' shape and on their device.

        Args:
            objects: Indices within the occasion.
            occasion: Index of the iteration, or a name such as ``"evaluation"``.
            seed: Seed of the run.

        Returns:
            Noise that is the same whatever the slices and processes.
        """
        return SeededNoise(
            seed=seed, iteration=occasion, objects=objects, shape=self.latent_shape,
            device=self.device,
        )  # fmt: skip

    @torch.no_grad()
    def images(self, denoised: ObjectLatent) -> Images:
        """Decode final latents, ``views_per_decode`` images at a time.

        Args:
            denoised: Final latents [1].

        Returns:
            Images in [0, 1], fp32, without gradient, on the networks' device.
        """
        parts, device = self.components, self.network_device

        def decoded(rows: Tensor) -> Tensor:
            images: Tensor = parts.decode(rows.to(device))
            return images.float().clamp(0, 1)

        rows = denoised.flatten(0, 1)
        with at_work(parts.vae, device=device):
            images = in_chunks(decoded, rows, size=self.views_per_decode or max(1, len(rows)))
        whole: Images = images.unflatten(0, denoised.shape[:2])
        return whole

    @property
    def mixtures(self) -> tuple[Mixture, Mixture]:
        """Scorers of single views, and scorers of all views together, where there are such.

        Raises:
            ValueError: If a scorer of one kind has the name of one of the other.
        """
        per_view = Mixture.of(self.per_view, "per_view")
        empty = Mixture(scorers={}, weights={})
        joint = empty if self.joint is None else Mixture.of(self.joint, "joint_view")
        if shared := sorted({*per_view.scorers} & {*joint.scorers}):
            msg = f"`joint` must name its scorers as `per_view` does not; got {shared} in both."
            raise ValueError(msg)
        return per_view, joint

    def tables(self, images: Images, prompts: Sequence[str]) -> dict[str, Tensor]:
        """Ask every scorer of the reward.

        Args:
            images: Images in [0, 1].
            prompts: One per object.

        Returns:
            Raw rewards by scorer, one per view or one per object [reward units].
        """
        per_view, joint = self.mixtures
        return per_view.tables(images, prompts) | joint.tables(images, prompts)

    def totals(self, tables: Mapping[str, Tensor]) -> tuple[PerViewReward, JointViewReward]:
        """Add rewards up, each times its weight.

        Args:
            tables: Raw rewards by scorer, as :meth:`tables` gives them [reward units].

        Returns:
            One number per view, and one per object [reward units].
        """
        per_view, joint = self.mixtures
        rewards = per_view.total({name: tables[name] for name in sorted(per_view.scorers)})
        if not joint.scorers:
            return rewards, rewards.mean(-1)
        return rewards, joint.total({name: tables[name] for name in sorted(joint.scorers)})

    def score(
        self, images: Images, prompts: Sequence[str]
    ) -> tuple[PerViewReward, JointViewReward]:
        """Ask every scorer, and add their rewards up.

        Args:
            images: Images in [0, 1].
            prompts: One per object.

        Returns:
            One number per view, and one per object [reward units].
        """
        return self.totals(self.tables(images, prompts))


def build_system(
    config: TrainConfig,
    *,
    device: torch.device,
    components: AnyComponents | None = None,
    scorers: Mapping[str, Any] | None = None,
    lora: Path | None = None,
    world: World | None = None,
) -> System:
    """Load the models, choose the trainable parameters, and compute what is constant.

    Args:
        config: The run's configuration.
        device: Device on which the networks compute.
        components: Models already loaded, changed in place; read from ``model.weights`` if None.
        scorers: Scorers from :func:`build_scorers` or :func:`no_scorers`; built if None.
        lora: A trained LoRA, as :meth:`Backbone.load_lora` reads it, in place of what
            ``model.finetune`` would train.
        world: Processes over which ``run.sharding`` cuts the trained network; whole if None.

    Returns:
        The system, every network in evaluation mode: without dropout.

    Raises:
        ConfigError: If all weights are to be trained in half precision, the components are of
            another kind, or a scorer is unknown.
        CheckpointError: If weights, of the model, of a scorer or the LoRA's, cannot be read.
        ScorerUnavailableError: If a scorer's service does not answer.
    """
    model = config.model
    if world is not None and (fault := processes_contradiction(config.run, world.size)):
        raise ConfigError(fault)
    check_training(config)
    if scorers is None:  # first, so that a missing one is reported at once
        scorers = build_scorers(config, device=device)
    if lora is not None:
        check_lora(lora, network=model.network)
    cut = world is not None and world.size > 1 and config.run.sharding == "full"
    if components is None:
        components = load_network(config, mapped=cut, few_bits=few_bits_of(config, device))
    parts = place_parts(config, components, device, cut=cut)
    backbone = backbone_of(config, parts)
    choose_trained(config, backbone, device, lora)
    quicken(config, backbone, parts.vae, device)
    if cut and world is not None:
        cut_network(config, backbone, parts.vae, device, world)
    latents = device if model.storage_device == "device" else torch.device("cpu")
    if latents != device:
        take_latents_from(backbone.policy, latents, work=device)
    return System(
        backbone=backbone,
        **_samplers(config, backbone, latents),
        device=latents,
        compute_device=device if cut and config.run.offload_parameters else None,
        views_per_decode=model.views_per_decode,
        negative_prompt=_negative_prompt(config, backbone),
        **scorers,
    )


def with_sampling(system: System, config: TrainConfig) -> System:
    """Give a system the grids and cameras of another configuration.

    Args:
        system: Any system.
        config: Read for its sections ``sampler``, ``flow`` and ``zigzag``, the cameras, and
            ``model.views_per_decode``.

    Returns:
        A system of the same networks with the other grids and cameras.
    """
    backbone = system.backbone
    if isinstance(backbone, MultiviewBackbone) and backbone.rig != rig_of(config.model):
        backbone = replace(backbone, rig=rig_of(config.model))
    return replace(
        system,
        backbone=backbone,
        views_per_decode=config.model.views_per_decode,
        negative_prompt=_negative_prompt(config, backbone),
        **_samplers(config, backbone, system.device),
    )


def _samplers(config: TrainConfig, backbone: Backbone, device: torch.device) -> dict[str, Any]:
    """Build the grids of training and of evaluation."""
    levels: dict[str, Any] = {}
    if isinstance(backbone, FlowBackbone):
        shift = config.flow.shift or backbone.noise_shift()
        levels = {"shift": shift, "lowest_sigma": backbone.lowest_sigma(shift)}
    grids = {"sampler": None, "evaluation_sampler": config.sampler.evaluation_steps or None}
    return {
        name: build_sampler(config, num_steps=steps, **levels).to(device)
        for name, steps in grids.items()
    }


def _negative_prompt(config: TrainConfig, backbone: Backbone) -> str | None:
    """Give the negative prompt if any call doubles its batch."""
    scales = [config.sampler.guidance_scale, config.zigzag.inversion_guidance_scale]
    doubled = max(scales) > 1.0 and not backbone.embeds_guidance
    return config.sampler.negative_prompt if doubled else None
