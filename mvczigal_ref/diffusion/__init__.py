"""Diffusion as pure mathematics: tensors in, tensors out, fp32 or wider, torch alone."""

from mvczigal_ref.diffusion.ddim import ETA_ZERO_VARIANCE, DdimSampler, ddim_invert, ddim_transition
from mvczigal_ref.diffusion.euler_ancestral import (
    EulerAncestralSampler,
    euler_ancestral_transition,
)
from mvczigal_ref.diffusion.flow import (
    flow_clean_and_noise,
    flow_invert,
    flow_latent,
    flow_ode_transition,
    flow_step,
    flow_velocity,
)
from mvczigal_ref.diffusion.flow_dpm import OdeMemory, dpm2m_transition, dpm2m_weight
from mvczigal_ref.diffusion.flow_noise import (
    constant_noise_transition,
    cps_transition,
    cps_unscaled_log_prob,
    flow_sde_transition,
)
from mvczigal_ref.diffusion.flow_sampler import FlowKernel, FlowSampler
from mvczigal_ref.diffusion.flow_schedule import flow_sigmas, resolution_shift, shift_sigma
from mvczigal_ref.diffusion.gaussian import (
    Reduction,
    check_std,
    joint_log_prob,
    kl_divergence,
    log_prob,
    sample,
)
from mvczigal_ref.diffusion.guidance import classifier_free_guidance, guidance_embedding
from mvczigal_ref.diffusion.lcm import LcmSampler, lcm_invert, lcm_transition
from mvczigal_ref.diffusion.sampler import Sampler, Transition
from mvczigal_ref.diffusion.schedule import (
    PredictionType,
    betas_from_alpha_bar,
    clean_and_noise,
    ddim_timesteps,
    lcm_timesteps,
    noised_latent,
    scaled_linear_alpha_bar,
    shift_snr,
)
from mvczigal_ref.diffusion.tcd import TcdSampler, tcd_transition

__all__ = [
    "ETA_ZERO_VARIANCE",
    "DdimSampler",
    "EulerAncestralSampler",
    "FlowKernel",
    "FlowSampler",
    "LcmSampler",
    "OdeMemory",
    "PredictionType",
    "Reduction",
    "Sampler",
    "TcdSampler",
    "Transition",
    "betas_from_alpha_bar",
    "check_std",
    "classifier_free_guidance",
    "clean_and_noise",
    "constant_noise_transition",
    "cps_transition",
    "cps_unscaled_log_prob",
    "ddim_invert",
    "ddim_timesteps",
    "ddim_transition",
    "dpm2m_transition",
    "dpm2m_weight",
    "euler_ancestral_transition",
    "flow_clean_and_noise",
    "flow_invert",
    "flow_latent",
    "flow_ode_transition",
    "flow_sde_transition",
    "flow_sigmas",
    "flow_step",
    "flow_velocity",
    "guidance_embedding",
    "joint_log_prob",
    "kl_divergence",
    "lcm_invert",
    "lcm_timesteps",
    "lcm_transition",
    "log_prob",
    "noised_latent",
    "resolution_shift",
    "sample",
    "scaled_linear_alpha_bar",
    "shift_sigma",
    "shift_snr",
    "tcd_transition",
]
