"""Diffusion as pure mathematics: tensors in, tensors out, fp32 or wider, torch alone."""

from mvczigal_ref.diffusion.ddim import ddim_invert, ddim_transition
from mvczigal_ref.diffusion.gaussian import (
    Reduction,
    check_std,
    joint_log_prob,
    kl_divergence,
    log_prob,
    sample,
)
from mvczigal_ref.diffusion.guidance import classifier_free_guidance, guidance_embedding
from mvczigal_ref.diffusion.lcm import lcm_invert, lcm_transition
from mvczigal_ref.diffusion.sampler import DdimSampler, LcmSampler, Sampler
from mvczigal_ref.diffusion.schedule import (
    PredictionType,
    clean_and_noise,
    ddim_timesteps,
    lcm_timesteps,
    scaled_linear_alpha_bar,
    shift_snr,
)
from mvczigal_ref.diffusion.transition import Transition

__all__ = [
    "DdimSampler",
    "LcmSampler",
    "PredictionType",
    "Reduction",
    "Sampler",
    "Transition",
    "check_std",
    "classifier_free_guidance",
    "clean_and_noise",
    "ddim_invert",
    "ddim_timesteps",
    "ddim_transition",
    "guidance_embedding",
    "joint_log_prob",
    "kl_divergence",
    "lcm_invert",
    "lcm_timesteps",
    "lcm_transition",
    "log_prob",
    "sample",
    "scaled_linear_alpha_bar",
    "shift_snr",
]
