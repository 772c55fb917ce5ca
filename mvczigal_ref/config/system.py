"""Settings of the networks, the sampler, and the flow kernel."""

from typing import Annotated, Literal, get_args

from pydantic.dataclasses import dataclass

from mvczigal_ref.config.plugins import plugin_names, registered
from mvczigal_ref.config.types import (
    SETTINGS,
    CountOrZero,
    Dtype,
    Elevation,
    Name,
    NonNegative,
    Positive,
    Real,
    Size,
    SizeOrZero,
    Table,
    Text,
    Texts,
)

__all__ = ["FlowConfig", "ModelConfig", "SamplerConfig"]


_SamplerKind = Literal["lcm", "ddim", "euler_ancestral", "tcd", "flow"]
_SAMPLERS = get_args(_SamplerKind)


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class ModelConfig:
    """Network that is trained, and its weights."""

    network: Literal["multiview", "flow", "unet"] = "multiview"
    """Kind of network: the multi-view UNet; or of one view a flow transformer, or a UNet of SDXL
    or Stable Diffusion 1.5. The pipeline's folder says which; docs/models.md lists them."""
    weights: Name = "tiny"
    """Folder of the pipeline's weights [path]; "tiny" and "tiny_flow" are the shipped ones,
    "lcm_sdxl" and "sdxl" the published ones, each part from where it is published."""
    sources: Texts = Table()
    """Folder or hub id of a published model's part, by its name: base, unet, vae or adapter; of a
    single-view UNet's unet, vae, or lora, a distilled LoRA that makes it a few-step one."""
    rig: Literal["world", "paper"] = "world"
    """Cameras: six orthographic ones, in the tiny world's frame or in the paper's."""
    azimuths: tuple[Real, ...] = ()
    """Angles around the object of other cameras in that frame, one per view, -90 in front [deg];
    empty leaves the rig's own. The tiny world's judges know its own cameras alone."""
    elevation: Elevation | None = None
    """Angle of all cameras above the horizon [deg], in [-90, 90]; None leaves the rig's own."""
    image_size: Size = 32
    """Edge of an image [px]."""
    finetune: Literal["lora", "full"] = "lora"
    """Trainable parameters: low-rank adapters, or every weight of the network."""
    lora_rank: Size = 8
    """Rank of an adapter [columns]; at least 1."""
    lora_alpha: Positive = 8.0
    """Numerator of an adapter's scale, `lora_alpha / lora_rank` [1]; positive."""
    dtype: Dtype = "fp32"
    """Dtype of the network's frozen weights and activations."""
    frozen_weights: Literal["stored", "int8", "nf4"] = "stored"
    """Linear weights that are frozen under a LoRA: as `model.dtype` says, or rounded to 8 or 4 bits
    (torchao, an extra); products are in that dtype."""
    gradient_checkpointing: bool | Literal["auto"] = False
    """Whether the backward pass computes activations again: less memory, one more forward pass.
    "auto" does so for as few blocks as free memory asks for."""
    storage_dtype: Dtype = "fp32"
    """Dtype in which sampled latents are stored; they are rounded first and scored after."""
    storage_device: Literal["device", "cpu"] = "device"
    """Device of noise and sampled latents: that of the network, or the CPU, from where each call
    fetches its part."""
    offload_frozen: bool = False
    """Whether text encoders, autoencoder, camera encoder and scorers are on the CPU but while they
    work: less memory on the device, the same numbers."""
    views_per_decode: CountOrZero = 0
    """Images that the autoencoder decodes together [images]; 0 is all of a slice."""
    channels_last: bool | Literal["auto"] = False
    """Whether channels of an image lie side by side in memory; convolutions may round otherwise.
    "auto" does so on a CPU, where weights are whole."""
    compile: Literal["none", "eager", "inductor"] = "none"
    """Backend of `torch.compile` for the trained network, in sampling and training alike; "eager"
    traces it and compiles nothing, "none" does neither."""
    tf32: bool = False
    """Whether factors of fp32 products are rounded to TF32, in the whole process; on CUDA alone."""

    @property
    def one_view(self) -> bool:
        """Whether the network draws one image per prompt, without cameras."""
        return self.network != "multiview"


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class SamplerConfig:
    """Sampling grid, and the guidance along it."""

    kind: Annotated[_SamplerKind, registered("samplers", "flow_samplers")] = "lcm"
    """Transition kernel, or a plug-in's name; the section `flow` sets that of a flow."""
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "v_prediction"
    """Prediction of the network; the tiny weights predict velocity, SDXL noise."""
    num_steps: Size = 4
    """Denoising steps of one trajectory [steps]; at least 1."""
    evaluation_steps: SizeOrZero = 0
    """Denoising steps where held-out prompts are scored [steps]; 0 is `sampler.num_steps`."""
    guidance_scale: NonNegative = 7.0
    """Guidance of sampling and of training, w_high of the paper [1]; 1 is unguided."""
    negative_prompt: Text = ""
    """Text that guidance leads away from, where the network has no guidance embedding."""
    spacing: Literal["usual", "trailing"] = "usual"
    """Timesteps of LCM and DDIM: the grid that LCM was distilled on or DDIM's leading one; or
    trailing, evenly from the last timestep down, as DMD2, Lightning and Hyper-SD are sampled."""
    eta: NonNegative = 1.0
    """Stochasticity of DDIM, ancestral Euler and TCD, whose paper names it gamma [1]; 0 is their
    deterministic limit. LCM does not read it."""
    snr_shift: Positive = 1.0
    """Factor that divides the signal-to-noise ratio at the noisy end [1]; 1 is no shift."""
    camera_scale: NonNegative = 1.0
    """Factor on the camera encoder's features [1]."""

    @property
    def is_plugin(self) -> bool:
        """Whether another package registers the sampler."""
        return self.kind not in _SAMPLERS

    @property
    def is_flow(self) -> bool:
        """Whether the grid is one of a flow's noise levels, the package's or a plug-in's."""
        if self.is_plugin:
            return self.kind in plugin_names("flow_samplers")
        return self.kind == "flow"


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class FlowConfig:
    """Noise of a flow model's steps, and its noise levels."""

    kernel: Literal["sde", "constant", "cps"] = "sde"
    """Kernel of the steps that draw noise: Flow-GRPO's, DanceGRPO's, or coefficient-preserving
    sampling."""
    noise_scale: Positive = 0.7
    """Stochasticity in the kernel's own measure [1]; at most 1 for "cps"."""
    shift: Positive | None = None
    """Shift of the noise levels [1]; None is the one that the network was trained with."""
    image_is_denoised: bool = False
    """Whether the last step's clean prediction is decoded, as in DanceGRPO, and not its action."""
    ode: Literal["euler", "dpm2m"] = "euler"
    """Solver of the steps that draw no noise, evaluation's among them: Euler's, or DPM-Solver++ of
    second order, at the same number of network calls."""
    density: Literal["gaussian", "unscaled"] = "gaussian"
    """Density that scores an action of kernel "cps": the true one, or the squared error without its
    scale, to which the clip of Flow-GRPO-Fast's released trainer belongs."""
    text_length: Size | None = None
    """Length to which prompts are cut or padded for T5 or Qwen3 [tokens], at most its tokenizer's;
    None is the pipeline's default, 512 for FLUX.1 and Z-Image and 256 for Stable Diffusion 3."""
