"""The sections of a run's configuration: frozen, typed, a unit in every field.

Settings are read by the trainer and handed on as plain keyword arguments; no
mathematical function takes one of these objects. What only groups of samples need is in
:mod:`mvczigal_ref.settings_group`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic.dataclasses import dataclass

from mvczigal_ref.settings_file import Table
from mvczigal_ref.settings_types import (
    SETTINGS,
    Cap,
    Count,
    CountOrZero,
    Dtype,
    Elevation,
    HalfOpenShare,
    Name,
    Names,
    NonNegative,
    Positive,
    PowerOfTwo,
    Rate,
    RateOrZero,
    Real,
    Scorers,
    Seed,
    Share,
    Size,
    Text,
    Texts,
)

__all__ = [
    "AdvantageConfig",
    "ConstraintConfig",
    "Dtype",
    "GuardConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "RewardConfig",
    "RunConfig",
    "SamplerConfig",
    "ZigzagConfig",
    "scorer_weights",
    "weights_folder",
]


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class ModelConfig:
    """Which network is trained, and which of its weights."""

    network: Literal["multiview", "flow"] = "multiview"
    """Kind of network: the multi-view UNet, or a flow transformer of one view (FLUX.1, SD3)."""
    weights: Name = "tiny"
    """Folder of the pipeline's weights [path]; "tiny" and "tiny_flow" are the shipped ones,
    "lcm_sdxl" and "sdxl" the published ones, each part from where it is published."""
    sources: Texts = Table()
    """Where published parts come from instead: folder or hub id of base, unet, vae or adapter."""
    rig: Literal["world", "paper"] = "world"
    """Cameras: six orthographic ones, in the tiny world's frame or in the paper's."""
    azimuths: tuple[Real, ...] = ()
    """Angles around the object of other cameras in that frame, one a view, -90 in front [deg];
    empty leaves the rig's own. The tiny world's judges know its own cameras alone."""
    elevation: Elevation | None = None
    """Angle of all cameras above the horizon [deg], in [-90, 90]; None leaves the rig's own."""
    image_size: Size = 32
    """Edge of an image [px]."""
    finetune: Literal["lora", "full"] = "lora"
    """Train low-rank adapters or every weight of the network."""
    lora_rank: Size = 8
    """Rank of an adapter [columns]; at least 1."""
    lora_alpha: Positive = 8.0
    """Numerator of an adapter's scale, `lora_alpha / lora_rank` [1]; positive."""
    dtype: Dtype = "fp32"
    """Dtype of the network's frozen weights and activations."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, one more forward."""
    storage_dtype: Dtype = "fp32"
    """Dtype in which sampled latents are stored; they are rounded first and scored after."""
    storage_device: Literal["device", "cpu"] = "device"
    """Where noise and sampled latents are: beside the network, or on the CPU, from where each
    call fetches its own."""
    offload_frozen: bool = False
    """Keep text encoders, autoencoder, camera encoder and scorers on the CPU but while they
    work: less memory on the device, the same numbers."""
    views_per_decode: CountOrZero = 0
    """Images that the autoencoder decodes together [images]; 0 is all of a slice."""
    channels_last: bool = False
    """Lay the channels of an image side by side in memory; convolutions may round otherwise."""
    compile: Literal["none", "eager", "inductor"] = "none"
    """What `torch.compile` makes of the trained network, for sampling and training alike; "eager"
    traces it and makes nothing of it."""
    tf32: bool = False
    """Round factors of fp32 products to TF32, in the whole process; read on CUDA devices alone."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class SamplerConfig:
    """The sampling grid, and the guidance along it."""

    kind: Literal["lcm", "ddim", "flow"] = "lcm"
    """Transition kernel; that of a flow is told by the section `flow`."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "v_prediction"
    """What the network predicts; the tiny weights predict velocity, SDXL noise."""
    num_steps: Size = 4
    """Denoising steps of one trajectory [steps]; at least 1."""
    evaluation_steps: CountOrZero = 0
    """The same where held-out prompts are scored [steps]; 0 is `num_steps`."""
    guidance_scale: NonNegative = 7.0
    """Guidance of sampling and of training, w_high of the paper [1]; 1 is unguided."""
    negative_prompt: Text = ""
    """What guidance leads away from where the network has no guidance embedding."""
    eta: NonNegative = 1.0
    """Stochasticity of DDIM [1]; 0 is its deterministic limit. LCM does not read it."""
    snr_shift: Positive = 1.0
    """Factor that divides the signal-to-noise ratio at the noisy end [1]; 1 is no shift."""
    camera_scale: NonNegative = 1.0
    """Factor on the camera encoder's features [1]."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class ZigzagConfig:
    """The zigzag arm: denoise, invert with weak guidance, denoise again."""

    steps: CountOrZero = 1
    """Leading steps that are zigzagged [steps]; `sampler.num_steps` zigzags all of them."""
    rounds: Count = 1
    """Inversions a zigzagged step makes [1]; at least 1."""
    inversion_guidance_scale: NonNegative = 1.0
    """Guidance while inverting, w_low of the paper [1]; 1 is unguided."""
    inversion_camera_scale: NonNegative = 1.0
    """Factor on the camera encoder's features while inverting [1]."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class RewardConfig:
    """Which scorers judge the images, how they are added, and where they are."""

    per_view: Scorers = "world.per_view"
    """Scorer of one image by name, or several by name and weight, as {a: 1, b: 0.5}."""
    joint: Scorers = "world.joint"
    """Scorer of all the views of an object, or several by name and weight; "per_view" is the
    mean of the per-view reward, where nothing judges all views."""
    combine: Literal["rewards", "advantages"] = "rewards"
    """Add weighted raw rewards and standardise the sum, or standardise each and add those."""
    weights: Texts = Table()
    """A scorer's folder, file or hub id; the published one where none is named. A name before
    the dot is of all its axes. For a chat judge, the model's name at its server."""
    tokenizers: Texts = Table()
    """A scorer's tokenizer, as folder or hub id, where it does not lie with the weights."""
    url: Texts = Table()
    """Service of a scorer that runs elsewhere, by `mvczigal serve-reward` or for chat."""
    device: Name = "auto"
    """Torch device of the scorers; "auto" is the run's."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Dtype of the scorers' networks."""
    images_per_chunk: Count = 32
    """Images that pass through a scorer's network together [images]."""
    timeout: Positive = 120.0
    """Longest duration of one request to a service [s]."""
    wait: NonNegative = 600.0
    """Time for which a service that fails is tried again; then the run saves and stops [s]."""
    api_key_env: Name | None = None
    """Environment variable that holds the chat judges' key."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class GuardConfig:
    """Held-out scores that are watched: what training must not spoil while its reward rises."""

    every: CountOrZero = 0
    """Iterations between checks on the held-out prompts [iterations]; 0 is no guard."""
    per_view: Names = ()
    """Scorers of one image that are watched and not trained on."""
    joint: Names = ()
    """Scorers of all the views of an object that are watched and not trained on."""
    diversity: bool = False
    """Count a fall of diversity as a watched score's; it is measured and shown anyway."""
    noises: Size = 2
    """Initial noises a prompt [noises]; diversity needs two."""
    margin: Positive = 2.0
    """Fall of a watched mean that is too much, in `guard.unit`."""
    unit: Literal["standard_errors", "reward"] = "standard_errors"
    """The margin's unit: standard errors of the paired fall over prompts, or reward units."""
    fallen: Literal["any", "all"] = "any"
    """How many of the watched scores must have fallen by the margin."""
    action: Literal["stop", "return"] = "stop"
    """End the run where it is, or at the parameters of its best check."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class AdvantageConfig:
    """How the two rewards become one advantage a view."""

    mode: Literal["constrained", "joint", "per_view", "weighted_sum"] = "constrained"
    """Mix by the multiplier, use one reward alone, or mix by a fixed weight."""
    joint_weight: Share = 0.5
    """Weight of the joint reward in mode "weighted_sum" [1], in [0, 1]."""
    shuffle: bool = False
    """Permute the advantages over objects: a control that must not learn."""
    spread: Literal["group", "batch"] = "group"
    """Whose standard deviation divides a group's rewards: its own, or that of the iteration."""
    ddof: Literal[0, 1] = 0
    """What that deviation's divisor lacks to the number of samples [samples]."""
    delta: Positive = 1e-4
    """Added to that deviation [reward units]."""
    clip: Positive = 5.0
    """Largest magnitude of a group's advantage [1]."""
    fusion_inverse_temperature: NonNegative = 0.0
    """How much more a tree's likelier leaves count in its inner nodes [1/nat]; 0 is alike."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class ObjectiveConfig:
    """The loss, over pairs of trajectories or over groups."""

    kind: Literal[
        "reward_difference", "preference", "policy_gradient", "guard", "forward_process"
    ] = "reward_difference"
    """RDL and ZigAL, or DPO, of pairs; the clipped surrogate of PG and GRPO, GRPO-Guard's, or
    DiffusionNFT's loss on the forward process."""
    pairing: Literal["zigzag", "standard"] = "zigzag"
    """What the first arm is: a zigzag trajectory, or a second standard one (MV-RDL)."""
    clip_range: Positive = 1e-2
    """Half-width of the trust region on a log-ratio [nats/element, or nats if summed]."""
    clip: bool = True
    """Clip pessimistically, as the released code; False is the paper's formula."""
    temperature: Positive = 1.0
    """Log-ratio that one unit of advantage asks for, eta of the paper [nats/element]."""
    reduction: Literal["mean", "sum"] = "mean"
    """Log-density of a latent: per element, or of the whole latent."""
    train_last_action: bool = False
    """Train on the last LCM action too, on which the image cannot depend."""
    preference_scale: Positive = 1.0
    """Slope of the preference's logistic, beta of DPO [elements/nat, or 1/nat if summed]."""
    kl_weight: NonNegative = 0.0
    """Weight of the divergence from the network without its LoRA [1/unit of the divergence]."""
    kl_form: Literal["divergence", "without_step_length"] = "divergence"
    """The divergence of two Gaussians, or Flow-GRPO's released stand-in."""
    step_weight: Literal["equal", "noise"] = "equal"
    """Weigh steps alike, or by the noise they add, as TempFlow-GRPO."""
    train_share: Share = 1.0
    """Share of the stochastic steps that is trained, drawn anew each iteration [1]."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class ConstraintConfig:
    """The dual step on the multiplier, and the threshold's curriculum."""

    step_size_violated: NonNegative = 0.1
    """Multiplier's step size while the joint reward is below the threshold [1/reward unit]."""
    step_size_satisfied: NonNegative = 0.01
    """Multiplier's step size otherwise [1/reward unit]."""
    multiplier_init: NonNegative = 0.0
    """Multiplier before the first iteration [1], at most `multiplier_max`."""
    multiplier_max: Cap = 5.0
    """Upper end of the multiplier's box [1]; "none" is no cap, which the released code spells 0."""
    threshold_init: Real | None = None
    """Threshold before the first iteration [reward units]; None is the first batch's mean."""
    threshold_objects: CountOrZero = 0
    """Training prompts sampled before the first iteration, whose mean joint reward becomes the
    threshold [objects]; 0 leaves it to the first batch. Not read with `threshold_init`."""
    threshold_decay: Share = 0.99
    """Share of the threshold that an iteration keeps [1]; 1 holds it fixed."""
    order: Literal["threshold_first", "multiplier_first"] = "threshold_first"
    """Which of the two moves first; the released code moves the threshold."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class OptimConfig:
    """AdamW, and how often it steps."""

    lr: Rate = 2e-3
    """Learning rate [1]."""
    betas: tuple[HalfOpenShare, HalfOpenShare] = (0.9, 0.999)
    """Decay of the two moments [1], each in [0, 1)."""
    eps: Positive = 1e-8
    """Added to the root of the second moment [gradient units]."""
    weight_decay: RateOrZero = 1e-4
    """Decoupled weight decay [1]."""
    max_grad_norm: Positive = 5.0
    """Largest Euclidean norm of the whole gradient [loss units per parameter unit]."""
    loss_scale: PowerOfTwo | None = None
    """Factor on the loss in the first backward pass [1], a power of two in [1, 2^32], which lifts
    gradients over the smallest number of fp16; it halves when one overflows. 1 is no scale; None
    is 65536 for a network in fp16 and 1 for others."""
    loss_scale_growth_interval: Count = 2000
    """Finite gradients after which the loss scale doubles [optimiser steps]."""
    epochs_per_iteration: Count = 1
    """Passes over an iteration's trajectories [passes]."""
    optimizer_steps_per_epoch: Count = 2
    """Parameter changes in one pass [steps]."""
    steps_per_microbatch: Count = 1
    """Sampling steps replayed in one network call [steps]; 1 keeps the first ratio exactly 1."""
    warmup_iterations: CountOrZero = 0
    """Iterations over which the learning rate rises linearly [iterations]; 0 is none."""
    decay_iterations: CountOrZero = 0
    """Iterations over which the learning rate falls linearly to 0 [iterations]; 0 is none."""
    step_per_decision: bool = False
    """Change the parameters after each stochastic step of a group, and not once."""
    average_decay: HalfOpenShare = 0.0
    """Decay of the average of the parameters that is evaluated and kept in their place [1], in
    [0, 1); 0 is no average."""
    average_every: Count = 4
    """Iterations between updates of the average [iterations]."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class RunConfig:
    """How long a run is, how it is cut up, and what it writes."""

    iterations: Count = 60
    """Passes from rollout to constraint [iterations]."""
    objects_per_iteration: Size = 24
    """Prompts rolled out in an iteration, over all processes [objects]."""
    objects_per_slice: Size = 8
    """Objects that go through the network together [objects]; divides the iteration's."""
    replay_objects_per_slice: Size | None = None
    """The same in replay [objects]; None is equal, the only value with a first ratio of 1."""
    prompts: Name = "world.train"
    """A named list, or the path of a text file with one prompt a line."""
    held_out: Name = "world.held_out"
    """The same for the prompts that are evaluated and never trained on."""
    seed: Seed = 0
    """Seed of every generator of the run."""
    checkpoint_every: Count = 10
    """Iterations between checkpoints [iterations]; the last iteration always writes one."""
    keep_checkpoints: Count = 3
    """Checkpoints kept, the newest first [checkpoints]."""
    evaluate_every: CountOrZero = 0
    """Iterations between evaluations [iterations]; 0 evaluates before and after only."""
    evaluation_noises: Size = 4
    """Initial noises a held-out prompt is evaluated on [noises]."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Trackers beside the metrics file; each is an extra to install."""
    device: Name = "auto"
    """Torch device, or "auto" for an accelerator where there is one."""


def weights_folder(weights: str) -> Path:
    """Find the folder that `model.weights` names.

    Args:
        weights: A path, or "tiny" or "tiny_flow" for weights shipped with the package.

    Returns:
        The folder [path]; it need not exist.
    """
    shipped = {"tiny": "tiny_world", "tiny_flow": "tiny_flow"}
    if weights not in shipped:
        return Path(weights).expanduser()
    package = Path(__file__).parent
    installed = package / "fixtures" / shipped[weights]
    return installed if installed.is_dir() else package.parent / "fixtures" / shipped[weights]


def scorer_weights(scorers: str | Mapping[str, float]) -> dict[str, float]:
    """Give the weight of each scorer that a setting names.

    Args:
        scorers: `reward.per_view` or `reward.joint`.

    Returns:
        Weights by name [1 / reward units]; a bare name has weight 1.

    Examples:
        >>> scorer_weights("world.joint")
        {'world.joint': 1.0}
    """
    return {scorers: 1.0} if isinstance(scorers, str) else dict(scorers)
