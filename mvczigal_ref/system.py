"""Everything that an iteration acts with, built once from a configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mvczigal_ref.cameras import PAPER_RIG, OrthographicRig
from mvczigal_ref.config import TrainConfig, weights_folder
from mvczigal_ref.diffusion.ddim_sampler import DdimSampler
from mvczigal_ref.diffusion.lcm_sampler import LcmSampler
from mvczigal_ref.diffusion.sampler import Sampler
from mvczigal_ref.diffusion.schedule import scaled_linear_alpha_bar, shift_snr
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.models.components import Components, load_components
from mvczigal_ref.models.lora import add_lora, lora_parameters
from mvczigal_ref.models.text import encode_prompts
from mvczigal_ref.records import CameraFeatures, Conditioning
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.reward.protocols import JointViewScorer, PerViewScorer
from mvczigal_ref.reward.registry import (
    ScorerOptions,
    check_scorers,
    joint_view_scorer,
    mixture,
    per_view_scorer,
    scorer_options,
)
from mvczigal_ref.shapes import Images, ObjectLatent
from mvczigal_ref.world.scene import WORLD_RIG

__all__ = ["DTYPES", "System", "build_sampler", "build_scorers", "build_system", "no_scorers"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_RIGS: dict[str, OrthographicRig] = {"world": WORLD_RIG, "paper": PAPER_RIG}


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """Network, sampler, scorers and cameras of a run."""

    components: Components
    """Every model, on the device."""

    sampler: Sampler
    """Grid and transition kernel."""

    per_view: PerViewScorer
    """Judges single views; the weighted sum where there are several scorers."""

    joint: JointViewScorer
    """Judges all views of an object; the weighted sum where there are several scorers."""

    rig: OrthographicRig
    """The cameras."""

    image_size: int
    """Edge of an image [px]."""

    camera_features: CameraFeatures
    """Of the rig, computed once."""

    device: torch.device
    """Where the network computes."""

    prompt_cache: dict[str, tuple[Tensor, Tensor]]
    """Token and pooled features of every prompt met so far."""

    watched_per_view: Mapping[str, PerViewScorer] = field(default_factory=dict)
    """Scorers of single views that the guard watches, by name."""

    watched_joint: Mapping[str, JointViewScorer] = field(default_factory=dict)
    """Scorers of all views that the guard watches, by name."""

    @property
    def policy(self) -> nn.Module:
        """The network that is trained."""
        return self.components.policy

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Views, channels, height and width of one object's latents."""
        vae = self.components.vae
        edge = self.image_size // 2 ** (len(vae.config.block_out_channels) - 1)
        return (self.rig.num_views, int(vae.config.latent_channels), edge, edge)

    def trained(self) -> dict[str, nn.Parameter]:
        """Find what trains.

        Returns:
            LoRA parameters by published name, or without a LoRA every parameter that
            requires a gradient.
        """
        lora = lora_parameters(self.components.policy.unet)
        if lora:
            return lora
        named = self.components.policy.named_parameters()
        return {name: p for name, p in named if p.requires_grad}

    def conditioning(self, prompts: Sequence[str]) -> Conditioning:
        """Gather the features of prompts, encoding each the first time it is met.

        Args:
            prompts: One an object.

        Returns:
            What the policy is told of these objects.

        Raises:
            ValueError: If there are no prompts.
        """
        if not prompts:
            msg = "`prompts` must hold at least one prompt; got none."
            raise ValueError(msg)
        new = [p for p in dict.fromkeys(prompts) if p not in self.prompt_cache]
        for sentence in new:  # one by one, so that no prompt's features depend on its company
            embeds, pooled = encode_prompts(self.components, [sentence])
            self.prompt_cache[sentence] = (embeds, pooled)
        embeds = torch.cat([self.prompt_cache[p][0] for p in prompts])
        size = float(self.image_size)
        ids = torch.tensor([size, size, 0.0, 0.0, size, size], device=embeds.device)
        return Conditioning(
            prompt_embeds=embeds,
            pooled_prompt_embeds=torch.cat([self.prompt_cache[p][1] for p in prompts]),
            time_ids=ids.expand(len(prompts), 6),
            camera_features=self.camera_features,
            num_views=self.rig.num_views,
        )

    @torch.no_grad()
    def images(self, denoised: ObjectLatent) -> Images:
        """Decode final latents.

        Args:
            denoised: Final latents [1].

        Returns:
            Images in [0, 1], fp32, without gradient.
        """
        return self.components.decode(denoised).float().clamp(0, 1)


def build_sampler(config: TrainConfig) -> Sampler:
    """Build the sampling grid of a configuration.

    Args:
        config: Its ``sampler`` section is read.

    Returns:
        The sampler, its tables computed in fp64 and rounded to fp32.

    Examples:
        >>> build_sampler(TrainConfig()).timesteps
        tensor([999, 759, 499, 259])
    """
    wanted = config.sampler
    alpha_bar = scaled_linear_alpha_bar(dtype=torch.float64)
    if wanted.snr_shift != 1.0:
        alpha_bar = shift_snr(alpha_bar, wanted.snr_shift)
    sampler: Sampler
    if wanted.kind == "lcm":
        sampler = LcmSampler.create(
            num_steps=wanted.num_steps,
            alpha_bar=alpha_bar,
            prediction_type=wanted.prediction_type,
        )
    else:
        sampler = DdimSampler.create(
            num_steps=wanted.num_steps,
            alpha_bar=alpha_bar,
            prediction_type=wanted.prediction_type,
            eta=wanted.eta,
        )
    return sampler.to(dtype=torch.float32)


def build_scorers(
    config: TrainConfig, *, device: torch.device, watched: bool = True
) -> dict[str, Any]:
    """Build every scorer of a configuration, those that the guard watches too.

    Args:
        config: Its sections ``reward`` and ``guard`` are read, and the cameras' number.
        device: Of the run.
        watched: Whether the guard will look.

    Returns:
        The fields of a :class:`System` that judge images, by name.

    Raises:
        ConfigError: If a scorer is unknown or lacks what it needs.
        CheckpointError: If a scorer's weights are absent or damaged.
        ScorerUnavailableError: If a scorer's service does not answer.

    Examples:
        >>> list(build_scorers(TrainConfig(), device=torch.device("cpu")))
        ['per_view', 'joint', 'watched_per_view', 'watched_joint']
    """
    check_scorers(config.reward, config.guard)
    views = _RIGS[config.model.rig].num_views

    def options(name: str) -> ScorerOptions:
        return scorer_options(name, config.reward, device=device, num_views=views)

    def per_view(name: str) -> PerViewScorer:
        return per_view_scorer(name, options(name))

    def joint(name: str) -> JointViewScorer:
        return joint_view_scorer(name, options(name))

    guard, looks = config.guard, watched and config.guard.every > 0
    return {
        "per_view": mixture(config.reward.per_view, per_view),
        "joint": mixture(config.reward.joint, joint),
        "watched_per_view": {name: per_view(name) for name in guard.per_view if looks},
        "watched_joint": {name: joint(name) for name in guard.joint if looks},
    }


def no_scorers() -> dict[str, Any]:
    """Give the scorers of a system that only samples: none that could be asked.

    Returns:
        The fields of a :class:`System` that judge images, by name.

    Examples:
        >>> no_scorers()["joint"].scorers
        {}
    """
    nobody = Mixture(scorers={}, weights={})
    return {"per_view": nobody, "joint": nobody}


def build_system(
    config: TrainConfig,
    *,
    device: torch.device,
    components: Components | None = None,
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
        ConfigError: If all weights are to be trained in half precision, or a scorer is unknown.
        CheckpointError: If weights, of the model or of a scorer, cannot be read.
        ScorerUnavailableError: If a scorer's service does not answer.
    """
    if config.model.finetune == "full" and config.model.dtype != "fp32":
        msg = (
            '`model.dtype` must be "fp32" where `model.finetune` is "full"; got '
            f"{config.model.dtype!r}. Updates of trained half-precision weights round away; train "
            "a LoRA, whose weights are fp32."
        )
        raise ConfigError(msg)
    if scorers is None:  # first, for what is missing shows at once
        scorers = build_scorers(config, device=device)
    if components is None:
        components = load_components(weights_folder(config.model.weights))
    loaded = components.to(device)
    for part in (loaded.text_encoder, loaded.text_encoder_2, loaded.vae, loaded.policy):
        part.requires_grad_(requires_grad=False)
        part.eval()
    unet = loaded.policy.unet
    if config.model.finetune == "full":
        unet.requires_grad_(requires_grad=True)
    else:
        loaded.policy.to(DTYPES[config.model.dtype])
        add_lora(
            unet, rank=config.model.lora_rank, alpha=config.model.lora_alpha, seed=config.run.seed
        )
    if config.model.gradient_checkpointing:
        # diffusers recomputes wherever gradients are on, so the network stays in evaluation mode.
        unet.enable_gradient_checkpointing()
    rig = _RIGS[config.model.rig]
    return System(
        components=loaded,
        sampler=build_sampler(config).to(device),
        rig=rig,
        image_size=config.model.image_size,
        camera_features=loaded.encode_rig(rig, image_size=config.model.image_size),
        device=device,
        prompt_cache={},
        **scorers,
    )
