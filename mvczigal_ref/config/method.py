"""Settings of the stages: rollout, zigzag, conditions, reward, advantage, objective, constraint.

The trainer reads them and hands plain keyword arguments on; no mathematical function takes
one of these records.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic.dataclasses import dataclass

from mvczigal_ref.config.plugins import plugin_names, registered
from mvczigal_ref.config.types import (
    SETTINGS,
    Cap,
    Count,
    CountOrZero,
    Fraction,
    HalfOpenFraction,
    Name,
    Names,
    NonNegative,
    Positive,
    PositiveFraction,
    Real,
    Scorers,
    Size,
    SizeOrZero,
    Table,
    Texts,
)

__all__ = [
    "GROUP_KINDS",
    "AdvantageConfig",
    "ConditionConfig",
    "ConstraintConfig",
    "ForwardConfig",
    "ObjectiveConfig",
    "RewardConfig",
    "RolloutConfig",
    "ZigzagConfig",
    "scorer_weights",
]


GROUP_KINDS = ("policy_gradient", "guard", "sequence", "divergence")
"""Objectives of this package that learn groups by the ratios of their densities."""

_ObjectiveKind = Literal[
    "reward_difference",
    "preference",
    "policy_gradient",
    "guard",
    "sequence",
    "divergence",
    "forward_process",
]
_OBJECTIVES = get_args(_ObjectiveKind)


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class RolloutConfig:
    """Samples of a prompt, and the steps that draw noise."""

    kind: Literal["pair", "group", "tree", "branches"] = "pair"
    """Shape of what is sampled of a prompt: two trajectories; a group that divides once; a tree; or
    single steps off trunks of the ODE, each finished by itself."""
    members: Size = 4
    """Samples of a group, or branches of a trunk at each step [samples]; of a group at least 2."""
    shared_noise: bool = False
    """Whether all members of a group begin with the same initial noise."""
    window: Literal["all", "fixed", "random", "sliding", "decaying"] = "all"
    """Steps that draw noise: all that can, or a window of them; the others follow the ODE."""
    window_size: Size = 2
    """Length of the window of steps that draw noise [steps]."""
    window_start: CountOrZero = 0
    """First step of a fixed window, or the first start of a random one [step]."""
    window_last_start: CountOrZero = 0
    """Last start of a random window [step]."""
    window_spacing: Count = 1
    """Distance from one step of a fixed window to the next [steps]."""
    window_stride: Count = 1
    """Distance from one place of a moving window to the next [steps]."""
    window_interval: Count = 25
    """Duration for which a moving window stays at a place [iterations]."""
    window_decay: NonNegative = 0.0
    """Rate at which a decaying window gets faster with each step [1/step]; 0 slides steadily."""
    window_decay_after: CountOrZero = 0
    """Last place at which a decaying window stays the whole interval [step]."""
    window_end: Literal["stay", "restart"] = "stay"
    """End of a moving window's way: it stays at its last place, or goes back to the first."""
    split_steps: tuple[CountOrZero, ...] = ()
    """Steps at which a tree divides [step], the first 0; a tree needs one."""
    split_width: Size = 2
    """Branches of each node where a tree divides [branches]; at least 2."""
    split_noise: Positive = 1.0
    """Factor on the kernel's standard deviation where a tree divides [1]; BranchGRPO's released
    script has 4."""
    split_density: Literal["drawn", "kernel"] = "drawn"
    """Density that scores an action where a tree divides: of the noise that was drawn, or the
    kernel's, as in BranchGRPO's released trainer."""
    pruned_steps: tuple[CountOrZero, ...] = ()
    """Noisy steps of a tree that are not trained, BranchGRPO's depth pruning [step]."""
    pruned_interval: CountOrZero = 0
    """Duration after which those steps move one step towards the noise [iterations]; 0 lets them
    stay."""
    pruned_first: CountOrZero = 0
    """First step that they move to [step]."""
    pruned_leaves: Literal["none", "siblings", "extremes"] = "none"
    """Nodes after a tree's last division that are not trained, its width pruning: none; the worse
    of each node's siblings; or all but the best and the worst of the tree."""
    pruned_share: HalfOpenFraction = 0.5
    """Fraction of them that is not trained [1], in [0, 1)."""
    trunks: Size = 1
    """Trunks per prompt, each with its own initial noise [trunks]."""
    strides: tuple[Count, ...] = (1,)
    """Strides of the grids on which each branch is finished, one grid per stride [steps]."""
    fine_steps: SizeOrZero = 0
    """Steps of the plain grid that a branch's finish takes before its stride begins [steps]."""
    last_stride: Literal["short", "long"] = "short"
    """End of a finish where its stride does not fit: a shorter step, or the last stride goes
    there at once, as in Granular-GRPO's released trainer."""
    tail_share: PositiveFraction = 1.0
    """Fraction of the steps after a group's last noisy one that is taken [1], in (0, 1]; at least
    one step is. MixGRPO-Flash has 0.4."""
    nodes_per_call: Count | None = None
    """Latents of each prompt's group that go through the network together [latents]; None is
    all."""
    ahead: bool = False
    """Whether an iteration is sampled while the one before is still captioned and judged, by the
    policy before its update: from the second iteration on, first ratios are not exactly 1. The
    samples of two iterations are in memory then, and two copies of the trainable parameters."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class ConditionConfig:
    """Captions under which a group is judged and learnt beside its prompt."""

    enhancer: Annotated[
        Literal["none", "world", "world_edits", "stored", "chat", "local"], registered("enhancers")
    ] = "none"
    """Source of captions: none; measurements of the tiny world's images; changes of one word of the
    tiny world's prompts; a file that `mvczigal enhance` wrote; a vision-language model that is
    served; one in this process; or a plug-in's name."""
    num_captions: Size = 4
    """Captions per prompt of "world_edits" and "stored" [captions]; others make one per sample."""
    file: Name | None = None
    """File of captions that "stored" reads [path]."""
    model: Name | None = None
    """Name of the model that "chat" asks, or folder of the one that "local" loads."""
    url: Name | None = None
    """Address of the OpenAI-compatible endpoint that "chat" asks."""
    api_key_env: Name | None = None
    """Environment variable that holds the endpoint's key; None sends no key."""
    requests_at_once: Size = 8
    """Questions that each process asks at once [questions]: as many requests to "chat", or in
    one call of "local". Captions are the same for any number, but for the rounding of "local"."""
    samples_per_question: Count = 1
    """Most samples of a prompt that one question of "chat" or "local" asks about, with a caption
    for each [samples]. Samples that are shown together may change each other's captions."""
    instructions: Names = ()
    """Names of what captions may be asked to add, or of the world's words that may change; empty is
    all that the enhancer knows."""
    weight: NonNegative = 1.0
    """Weight of each caption in the objective, where the prompt's is 1 [1]."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class ForwardConfig:
    """Losses on samples that are noised again: DiffusionNFT's, and those of AWM and DGPO."""

    loss: Literal["nft", "matching", "group_preference"] = "nft"
    """Loss of the forward process: DiffusionNFT's, advantage-weighted matching (AWM), or direct
    group preference (DGPO)."""
    advantage: Literal["all", "positive", "negative", "one", "binary"] = "all"
    """Part of the advantages that DiffusionNFT reads: all; one sign alone; 1 for every better
    sample; or the sign."""
    matching_weight: Literal["uniform", "level", "level_squared", "huber"] = "uniform"
    """Weight of AWM's matching error by the noise level, or its generalised Huber form."""
    shared_noise: bool = False
    """Whether the samples of a group are given the same noise, as in DGPO."""
    mix: Positive = 1.0
    """Distance of the fitted velocities from the old one, b of the paper [1]; positive."""
    levels: Size = 2
    """Noise levels at which each sample is fitted, drawn anew in each iteration [levels]."""
    old_decay_rate: NonNegative = 0.001
    """Growth of the share of the old policy that stays, per `old_decay_unit` [1/unit]."""
    old_decay_largest: HalfOpenFraction = 0.5
    """Largest share of the old policy that stays [1], in [0, 1)."""
    old_decay_after: CountOrZero = 0
    """Units before that growth begins, at none of the old policy [`old_decay_unit`]."""
    old_decay_unit: Literal["iteration", "optimizer_step"] = "iteration"
    """Unit of `old_decay_rate`: iterations before this one, or optimiser steps up to now, as in
    DiffusionNFT's released trainer."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class ZigzagConfig:
    """The zigzag arm: denoise, invert with weak guidance, denoise again."""

    steps: CountOrZero = 1
    """Leading steps that are zigzagged [steps]; `sampler.num_steps` zigzags all of them."""
    rounds: Size = 1
    """Inversions that each zigzagged step makes [inversions]; at least 1."""
    inversion_guidance_scale: NonNegative = 1.0
    """Guidance while inverting, w_low of the paper [1]; 1 is unguided."""
    inversion_camera_scale: NonNegative = 1.0
    """Factor on the camera encoder's features while inverting [1]."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class RewardConfig:
    """Scorers that judge the images, how they are added, and where they are."""

    per_view: Scorers = "world.per_view"
    """Scorer of one image by name, or several by name and weight, as {a: 1, b: 0.5}."""
    joint: Scorers = "world.joint"
    """Scorer of all the views of an object, or several by name and weight; "per_view" is the
    mean of the per-view reward, where nothing judges all views."""
    combine: Literal["rewards", "advantages"] = "rewards"
    """Sum of several scorers: of their weighted raw rewards, or of their standardised ones."""
    weights: Texts = Table()
    """Folder, file or hub id of a scorer, by its name; the published one where none is named. A
    name before the dot is of all its axes. Of a chat judge, the model's name at its server."""
    tokenizers: Texts = Table()
    """Folder or hub id of a scorer's tokenizer, by its name, where it is not with the weights."""
    url: Texts = Table()
    """Address of a scorer, by its name, that runs elsewhere: `mvczigal serve-reward`, or chat."""
    device: Name = "auto"
    """Torch device of the scorers' networks; "auto" is the run's."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Dtype of the scorers' networks."""
    images_per_chunk: Count = 32
    """Images that pass through a scorer's network, or are sent to a service, together [images]."""
    timeout: Positive = 120.0
    """Longest duration of one request to a service [s]."""
    wait: NonNegative = 600.0
    """Time for which a service that fails is tried again; then the run saves and stops [s]."""
    api_key_env: Name | None = None
    """Environment variable that holds the chat judges' key."""
    requests_at_once: Size = 8
    """Questions that each process asks a chat judge at once [requests]; scores are the same for any
    number."""
    images_per_question: Count = 1
    """Most images of one question to a chat judge, each under its own text and with scores of its
    own [images]; of a joint judge whole objects, at least one. Images that are shown together may
    change each other's scores."""
    overlap: bool = False
    """Whether a slice is captioned and judged while the next one is sampled: the same numbers, in
    less time where judges are slow. The images of two slices are in memory then, as they are with
    `rollout.ahead`."""
    texts_per_call: Count = 1
    """Texts of a prompt, its captions among them, under which its samples are judged in one call
    of a scorer [texts]: more of them fill a service's batches and a chat judge's questions."""
    cache: Name | None = None
    """Folder that keeps scores of services, so that no picture is scored twice [path]; None keeps
    none."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class AdvantageConfig:
    """From two rewards to one advantage per view."""

    mode: Literal["constrained", "joint", "per_view", "weighted_sum"] = "constrained"
    """Mixture of both rewards: by the multiplier, one alone, or by a fixed weight."""
    joint_weight: Fraction = 0.5
    """Weight of the joint reward in mode "weighted_sum" [1], in [0, 1]."""
    shuffle: bool = False
    """Whether advantages are permuted over objects: a control that must not learn."""
    spread: Literal["group", "batch"] = "group"
    """Standard deviation that divides a group's rewards: its own, or that of the iteration."""
    ddof: Literal[0, 1] = 0
    """Delta degrees of freedom of that standard deviation [samples]: its divisor is n - ddof."""
    delta: Positive = 1e-4
    """Constant added to a group's standard deviation before it divides [reward units]."""
    clip: Positive = 5.0
    """Largest magnitude of an advantage within a group [1]; larger ones are cut."""
    fusion_inverse_temperature: NonNegative = 0.0
    """Inverse temperature by which likelier leaves of a tree count more [1/nat]; 0 is all alike."""
    fusion: Literal["path", "edge"] = "path"
    """Likelihood by which they count: of a leaf's whole path, as in BranchGRPO's paper, or of the
    step alone at which a node divides, level by level, as in its released trainer."""
    drop_alike: bool = False
    """Whether groups that were all scored alike are left out of every mean, not counted as 0."""
    pruned_share: HalfOpenFraction = 0.0
    """Fraction of a group's samples that is not trained, those of least advantage, as in CPPO
    [1]."""


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class ObjectiveConfig:
    """The loss, over pairs of trajectories or over groups."""

    kind: Annotated[
        _ObjectiveKind,
        registered("objectives", "group_objectives"),
    ] = "reward_difference"
    """Kind of loss: RDL and ZigAL, or DPO, of pairs; the clipped surrogate of PG and GRPO,
    GRPO-Guard's, GSPO's over whole trajectories, or Flow-DPPO's; one on the forward process, by
    `forward.loss`; or a plug-in's name, of pairs or of groups."""
    density: Literal["per_view", "joint"] = "per_view"
    """Log-ratio of a pair's arm: each view's by itself, or the sum over all views of an object."""
    reference: Literal["snapshot", "frozen"] = "snapshot"
    """Policy that DPO's ratios are over: the one that sampled, or the network without its LoRA."""
    divergence_range: Positive = 1e-5
    """Divergence from the sampling policy beyond which Flow-DPPO stops what goes on away from it
    [nats/element, or nats if summed]."""
    pairing: Literal["zigzag", "standard"] = "zigzag"
    """First arm of a pair: a zigzag trajectory, or a second standard one (MV-RDL)."""
    clip_range: Positive = 1e-2
    """Half-width of the trust region on a log-ratio [nats/element, or nats if summed]."""
    clip: bool = True
    """Whether log-ratios are clipped pessimistically, as in the released code; false is the
    formula of the paper."""
    temperature: Positive = 1.0
    """Log-ratio that one unit of advantage asks for, eta of the paper [nats/element]."""
    reduction: Literal["mean", "sum"] = "mean"
    """Unit of a latent's log-density: the mean per element, or the sum of the whole latent."""
    train_last_action: bool = False
    """Whether the last action is trained too, on which the image cannot depend."""
    preference_scale: Positive = 1.0
    """Slope of the preference's logistic, beta of DPO [elements/nat; 1/nat if summed; 1/error]."""
    preference_form: Literal["density", "noise"] = "density"
    """Ratio of a preference: of the actions' densities; or half a difference of two networks'
    errors in the noise of samples that are noised again, as in Diffusion-DPO."""
    kl_weight: NonNegative = 0.0
    """Weight of the divergence from the network without its LoRA [1/unit of the divergence]."""
    kl_form: Literal["divergence", "without_step_length"] = "divergence"
    """Form of that divergence: of two Gaussians, or Flow-GRPO's released stand-in."""
    step_weight: Literal["equal", "noise", "rectified"] = "equal"
    """Weight of each step: all alike; by the noise that it adds, as in TempFlow-GRPO; or by one
    over its gradient's size, as in Flash-GRPO."""
    train_share: Fraction = 1.0
    """Fraction of the stochastic steps that is trained, drawn anew per iteration [1]; 1 is all."""

    @property
    def compares_pairs(self) -> bool:
        """Whether the loss compares both arms of a pair, which a policy gradient does not."""
        if self.is_plugin:
            return self.kind not in plugin_names("group_objectives")
        return self.kind in ("reward_difference", "preference")

    @property
    def prefers_noise(self) -> bool:
        """Whether the loss is Diffusion-DPO's, on pairs whose samples are noised again."""
        return self.kind == "preference" and self.preference_form == "noise"

    @property
    def is_policy_gradient(self) -> bool:
        """Whether each log-ratio has a term of its own: the package's losses or a plug-in's."""
        return not self.compares_pairs and self.kind != "forward_process"

    @property
    def is_plugin(self) -> bool:
        """Whether another package registers the loss."""
        return self.kind not in _OBJECTIVES


@dataclass(frozen=True, kw_only=True, slots=True, config=SETTINGS)
class ConstraintConfig:
    """Dual step on the multiplier, and the threshold's curriculum."""

    step_size_violated: NonNegative = 0.1
    """Multiplier's step size while the joint reward is below the threshold [1/reward unit]."""
    step_size_satisfied: NonNegative = 0.01
    """Multiplier's step size while the joint reward reaches the threshold [1/reward unit]."""
    multiplier_init: NonNegative = 0.0
    """Multiplier before the first iteration [1], at most `multiplier_max`."""
    multiplier_max: Cap = 5.0
    """Upper end of the multiplier's box [1]; "none" is no cap, which the released code spells 0."""
    threshold_init: Real | None = None
    """Threshold before the first iteration [reward units]; None is the first batch's mean."""
    threshold_objects: SizeOrZero = 0
    """Training prompts sampled before the first iteration, whose mean joint reward becomes the
    threshold [objects]; 0 leaves it to the first batch. Not read with `threshold_init`."""
    threshold_decay: Fraction = 0.99
    """Fraction of the threshold that stays with each iteration [1], in [0, 1]; 1 holds it fixed."""
    order: Literal["threshold_first", "multiplier_first"] = "threshold_first"
    """First to move, the threshold or the multiplier; the released code moves the threshold."""


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
