"""Settings of what acts: the networks, the sampler, and the flow kernel."""

from typing import Literal

from pydantic.dataclasses import dataclass

from mvczigal_ref.config.types import (
    SETTINGS,
    Count,
    CountOrZero,
    Dtype,
    Elevation,
    Name,
    NonNegative,
    Positive,
    Real,
    Size,
    Table,
    Text,
    Texts,
)

__all__ = ["FlowConfig", "ModelConfig", "SamplerConfig"]


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
class FlowConfig:
    """How a flow model's steps draw noise, and where its noise levels lie."""

    kernel: Literal["sde", "constant", "cps"] = "sde"
    """Flow-GRPO's, DanceGRPO's, or coefficient-preserving sampling."""
    noise_scale: Positive = 0.7
    """Stochasticity in the kernel's own measure [1]; at most 1 for "cps"."""
    shift: Positive | None = None
    """Shift of the noise levels [1]; None is what the network was trained with."""
    image_is_denoised: bool = False
    """Decode the last step's clean prediction, as DanceGRPO, and not its action."""
    text_length: Count | None = None
    """Length of every prompt for T5, cut or padded [tokens], at most its tokenizer's; None is the
    pipeline's default, 512 for FLUX.1 and 256 for Stable Diffusion 3."""
