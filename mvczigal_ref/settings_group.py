"""The sections that groups of samples need: rollout, flow kernel, conditions, forward process."""

from typing import Literal

from pydantic.dataclasses import dataclass

from mvczigal_ref.settings_types import (
    SETTINGS,
    Count,
    CountOrZero,
    HalfOpenShare,
    Name,
    Names,
    NonNegative,
    Positive,
    Size,
)

__all__ = ["ConditionConfig", "FlowConfig", "ForwardConfig", "RolloutConfig"]


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class RolloutConfig:
    """What is sampled of a prompt, and which steps draw noise."""

    kind: Literal["pair", "group", "tree", "branches"] = "pair"
    """Two trajectories; a group that divides once; a tree; or single steps off trunks of the ODE,
    each finished by itself."""
    members: Size = 4
    """Samples of a group, or branches of a trunk at each step [samples]."""
    shared_noise: bool = False
    """Give a group's members the same initial noise."""
    window: Literal["all", "fixed", "random", "sliding", "decaying"] = "all"
    """Steps that draw noise: all that can, or a window of them; the others follow the ODE."""
    window_size: Size = 2
    """Steps of the window [steps]."""
    window_start: CountOrZero = 0
    """First step of a fixed window, or the first start of a random one [step]."""
    window_last_start: CountOrZero = 0
    """Last start of a random window [step]."""
    window_spacing: Count = 1
    """From one step of a fixed window to the next [steps]."""
    window_stride: Count = 1
    """From one place of a moving window to the next [steps]."""
    window_interval: Count = 25
    """Iterations that a moving window stays at a place [iterations]."""
    window_decay: NonNegative = 0.0
    """How much faster a decaying window moves on with each step [1/step]."""
    window_decay_after: CountOrZero = 0
    """Last place at which it stays the whole interval [step]."""
    window_end: Literal["stay", "restart"] = "stay"
    """What a moving window does after its last place: stay there, or go back to the first."""
    split_steps: tuple[CountOrZero, ...] = ()
    """Steps at which a tree divides [steps]."""
    split_width: Size = 2
    """Branches of each node there [branches]."""
    trunks: Size = 1
    """Trunks of a prompt, each with its own initial noise [trunks]."""
    strides: tuple[Count, ...] = (1,)
    """Strides of the grids that finish each branch [steps]."""
    fine_steps: CountOrZero = 0
    """Steps of the plain grid that a branch's finish takes before its stride begins [steps]."""
    nodes_per_call: Count | None = None
    """Latents of every prompt's group in one network call [latents]; None is all."""


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


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class ConditionConfig:
    """Captions under which a group is judged and learnt beside its prompt."""

    enhancer: Literal["none", "world", "world_edits", "stored", "chat", "local"] = "none"
    """Who makes them: nobody; measurements of the tiny world's images; changes of one word of the
    tiny world's prompts; a file that `mvczigal
    enhance` wrote; a vision-language model that is served, or one in this process."""
    num_captions: Size = 4
    """Captions a prompt where no image is described [captions]; else it is one a sample."""
    file: Name | None = None
    """The file [path]."""
    model: Name | None = None
    """Name of the served model, or folder of the local one."""
    url: Name | None = None
    """Address of the served model's OpenAI-compatible endpoint."""
    api_key_env: Name | None = None
    """Environment variable that holds its key."""
    instructions: Names = ()
    """What captions may be asked to add, or which words of the world's may change, by name; empty
    is all that the enhancer knows."""
    weight: NonNegative = 1.0
    """Weight of each caption in the objective, where the prompt's is 1 [1]."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class ForwardConfig:
    """DiffusionNFT's loss on noised samples."""

    mix: Positive = 1.0
    """How far the fitted velocities lie from the old one, b of the paper [1]."""
    levels: Size = 2
    """Noise levels at which each sample is fitted, drawn anew each iteration [levels]."""
    old_decay_rate: NonNegative = 0.001
    """How much more of the old policy is kept with each `old_decay_unit` [1/unit]."""
    old_decay_largest: HalfOpenShare = 0.5
    """Most of the old policy that is kept [1]."""
    old_decay_unit: Literal["iteration", "optimizer_step"] = "iteration"
    """What that rate counts: iterations before this one, or optimiser steps up to now, as
    DiffusionNFT's released trainer."""
