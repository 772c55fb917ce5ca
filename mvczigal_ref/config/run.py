"""Settings of a run: its length and files, the optimiser, and the held-out guard."""

from typing import Literal

from pydantic.dataclasses import dataclass

from mvczigal_ref.config.types import (
    SETTINGS,
    Count,
    CountOrZero,
    HalfOpenFraction,
    Name,
    Names,
    Positive,
    PowerOfTwo,
    Rate,
    RateOrZero,
    Seed,
    Size,
    TrackerName,
)

__all__ = ["GuardConfig", "OptimConfig", "RunConfig"]


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class GuardConfig:
    """Held-out scores that training must not spoil while its reward rises."""

    every: CountOrZero = 0
    """Iterations between checks on the held-out prompts [iterations]; 0 is no guard."""
    per_view: Names = ()
    """Scorers of one image that are watched and not trained on."""
    joint: Names = ()
    """Scorers of all the views of an object that are watched and not trained on."""
    diversity: bool = False
    """Whether a fall of diversity counts as a watched score's; it is measured and shown anyway."""
    noises: Size = 2
    """Initial noises per held-out prompt [noises]; diversity needs two."""
    margin: Positive = 2.0
    """Fall of a watched mean that is too much, in `guard.unit`."""
    unit: Literal["standard_errors", "reward"] = "standard_errors"
    """Unit of `guard.margin`: standard errors of the paired fall over prompts, or reward units."""
    fallen: Literal["any", "all"] = "any"
    """Number of watched scores that must have fallen by the margin: any one, or all."""
    action: Literal["stop", "return"] = "stop"
    """Action on a fall: end the run where it is, or at the parameters of its best check."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class OptimConfig:
    """AdamW, its rate, and how often it steps."""

    kind: Literal["adamw", "adamw8bit"] = "adamw"
    """Moments of AdamW: in the parameters' dtype, or in blocks of 8 bits (torchao, an extra)."""
    lr: Rate = 2e-3
    """Learning rate of AdamW [parameter units per step]; positive, at most 1000."""
    betas: tuple[HalfOpenFraction, HalfOpenFraction] = (0.9, 0.999)
    """Decays of AdamW's two moments [1], each in [0, 1)."""
    eps: Positive = 1e-8
    """Constant added to the root of AdamW's second moment [gradient units]; positive."""
    weight_decay: RateOrZero = 1e-4
    """Decoupled weight decay of AdamW [1]; at least 0."""
    max_grad_norm: Positive = 5.0
    """Largest Euclidean norm of the whole gradient, which is scaled down to it [loss units per
    parameter unit]."""
    loss_scale: PowerOfTwo | None = None
    """Factor on the loss in the first backward pass [1], a power of two in [1, 2^32], which lifts
    gradients over the smallest number of fp16; it halves when one overflows. 1 is no scale; None
    is 65536 for a network in fp16 and 1 for others."""
    loss_scale_growth_interval: Count = 2000
    """Finite gradients after which the loss scale doubles [optimiser steps]."""
    epochs_per_iteration: Size = 1
    """Passes over the trajectories of an iteration [passes]."""
    optimizer_steps_per_epoch: Size = 2
    """Parameter changes in one pass over an iteration's trajectories [steps]."""
    steps_per_microbatch: Count = 1
    """Sampling steps replayed in one network call [steps]; 1 keeps the first ratio exactly 1."""
    warmup_iterations: CountOrZero = 0
    """Iterations over which the learning rate rises linearly [iterations]; 0 is none."""
    decay_iterations: CountOrZero = 0
    """Iterations over which the learning rate falls linearly to 0 [iterations]; 0 is none."""
    step_per_decision: bool = False
    """Whether parameters change after each stochastic step of a group, and not once for all."""
    average_decay: HalfOpenFraction = 0.0
    """Decay of the average of the parameters that is evaluated and kept in their place [1], in
    [0, 1); 0 is no average."""
    average_every: Count = 4
    """Iterations between updates of the average [iterations]."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class RunConfig:
    """Length of a run, its slices, and what it writes."""

    iterations: Count = 60
    """Passes from rollout to constraint [iterations]."""
    objects_per_iteration: Size = 24
    """Prompts rolled out in an iteration, over all processes [objects]."""
    objects_per_slice: Size = 8
    """Objects that go through the network together [objects]; divides the iteration's."""
    replay_objects_per_slice: Size | None = None
    """Objects that are replayed together [objects]; None is as many as were sampled together, the
    only value with a first ratio of exactly 1."""
    arms_per_call: Literal[1, 2] = 1
    """Arms of a pair that go through the network together [arms]: 2 makes fewer and larger calls,
    and one graph of both arms, which takes twice the memory."""
    sharding: Literal["none", "full"] = "none"
    """Weights of the trained network in each of several processes: all of them, or "full" for one
    part, of which a block's are gathered for as long as it computes. A LoRA stays whole."""
    reduction: Literal["auto", "ordered", "engine"] = "auto"
    """Sum of gradients over processes: "ordered" adds in the order of the processes, whose bits no
    backend changes, "engine" as the backend prefers; "auto" is ordered for up to 2^24 trained
    numbers that are whole in every process. Those that are sharded are summed by the engine."""
    compute_dtype: Literal["stored", "bf16"] = "stored"
    """Dtype in which a sharded network computes whose every weight is trained: that of its weights,
    or bf16 while parts, sums of gradients and moments stay in fp32."""
    offload_parameters: bool = False
    """Whether the parts of a sharded network, their gradients and moments are on the CPU, from
    where a block's weights come while it computes: less memory on the device, the same numbers."""
    prompts: Name = "world.train"
    """Training prompts: "world.train"; a text file with one prompt per line; FILE.jsonl:COLUMN or
    FILE.csv:COLUMN; or hf:USER/DATASET:COLUMN of the hub, @REVISION after it for a fixed one."""
    held_out: Name = "world.held_out"
    """Prompts that are evaluated and never trained on: "world.held_out", or as `run.prompts`."""
    seed: Seed = 0
    """Seed of every generator of the run; in [0, 2^63)."""
    checkpoint_every: Count = 10
    """Iterations between checkpoints [iterations]; the last iteration always writes one."""
    keep_checkpoints: Count = 3
    """Newest checkpoints that stay on the disk [checkpoints]; at least 1."""
    evaluate_every: CountOrZero = 0
    """Iterations between evaluations [iterations]; 0 evaluates before and after only."""
    evaluation_noises: Size = 4
    """Initial noises on which each held-out prompt is evaluated [noises]."""
    trackers: tuple[TrackerName, ...] = ()
    """Trackers beside the metrics file, each a package to install; those that can take the sheets
    of every evaluation, too."""
    device: Name = "auto"
    """Torch device of the run, or "auto" for an accelerator where there is one."""
