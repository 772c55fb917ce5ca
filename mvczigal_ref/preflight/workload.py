"""Work of one slice: calls of the rollout, samples, and the replays that learn from them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.method.first_ratio import first_log_ratio
from mvczigal_ref.method.group_batches import group_update_settings
from mvczigal_ref.method.pair_settings import pair_update_settings
from mvczigal_ref.method.sample import draw_samples
from mvczigal_ref.policy import Conditioning, Policy
from mvczigal_ref.records import GroupDecision, PairedRollout, Samples, Trajectory
from mvczigal_ref.system import System
from mvczigal_ref.update.replay import (
    decision_under,
    member_transition,
    replay_log_prob,
    score_members,
)

__all__ = ["Replay", "SampledCall", "Workload", "num_captions", "workload_of"]


@dataclass(frozen=True, slots=True)
class SampledCall:
    """A network call without gradient, as a rollout makes it."""

    objects: int
    """Objects of the call: prompts times the states of each [objects]."""
    guidance_scale: float
    """Strength of the prompt [1]."""


@dataclass(frozen=True, slots=True)
class Replay:
    """Shape of a network call with gradient."""

    prompts: int
    """Prompts of the call [prompts]."""
    states: int
    """States of each prompt: steps of an arm, parents of a group, or noised samples [states]."""
    actions: int
    """Actions of each prompt that are scored [actions]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Work of one slice of prompts."""

    calls: Sequence[SampledCall]
    """Calls of the rollout, in order."""

    samples: int
    """Samples of each prompt that are judged [samples]."""

    stored: Sequence[Tensor]
    """Tensors that wait for the update."""

    replays: Counter[Replay]
    """Calls with gradient of one pass."""

    function: Mapping[Replay, Callable[[Policy, Conditioning], Tensor]]
    """Replay of each shape: from network and conditioning to log-densities or velocities."""

    inputs: Mapping[Replay, Sequence[Tensor]]
    """Stored tensors that each replay reads."""

    valued: Counter[Replay] = field(default_factory=Counter)
    """Calls without gradient of a pass off policy, for the values of second arms."""

    described: Counter[Replay] = field(default_factory=Counter)
    """Calls without gradient that give actions their densities under captions."""

    conditions: int = 1
    """Texts of each prompt: its own, and its captions, all taken to be distinct."""

    decisions: int = 1
    """Decisions that are trained."""


class _CallNotes:
    """A policy that computes nothing and notes its calls."""

    def __init__(self) -> None:
        self.calls: list[SampledCall] = []

    def __call__(
        self,
        latent_t: Tensor,
        timestep: Tensor,
        conditioning: Conditioning,
        *,
        guidance_scale: float,
        camera_scale: float = 1.0,
    ) -> Tensor:
        self.calls.append(SampledCall(conditioning.num_objects, guidance_scale))
        return torch.zeros_like(latent_t)


def workload_of(
    system: System, config: TrainConfig, conditioning: Conditioning, *, iteration: int = 0
) -> Workload:
    """Sample one slice with a network that only notes its calls, and cut up its replay.

    Args:
        system: System whose tensors may be on the meta device.
        config: The run.
        conditioning: Features of the slice's prompts.
        iteration: Index of the iteration, for windows that move.

    Returns:
        The slice's work.

    Raises:
        ValueError: If window, tree and grid do not fit.
    """
    policy, prompts = _CallNotes(), config.run.objects_per_slice
    noise = system.noise(range(prompts), iteration, seed=config.run.seed)
    samples = draw_samples(
        system, conditioning, noise, config=config, iteration=iteration, policy=policy
    )
    if config.rollout.ahead:
        first_log_ratio(system, samples, conditioning, config, policy=policy)
    if config.objective.prefers_noise or config.objective.kind == "forward_process":
        return _of_noised_samples(system, config, samples, policy.calls)
    if samples.pair is not None:
        return _of_pairs(system, config, samples, samples.pair, policy.calls)
    return _of_groups(system, config, samples, conditioning, policy.calls)


def _of_pairs(
    system: System,
    config: TrainConfig,
    samples: Samples,
    pair: PairedRollout,
    calls: Sequence[SampledCall],
) -> Workload:
    """Cut both arms up as :func:`~mvczigal_ref.update.pairs.update_policy` does."""
    settings, prompts = pair_update_settings(system, config), config.run.objects_per_slice
    size = min(settings.objects_per_microbatch or prompts, prompts)
    first, joint = settings.joint_from, 0
    if first is not None:
        joint = sum(step >= first for step in settings.steps)
    replays: Counter[Replay] = Counter()
    valued: Counter[Replay] = Counter()
    # Steps of one arm per call, twice, and steps of both arms.
    for arms, steps in ((1, len(settings.steps) - joint), (2, joint)):
        for objects in _cut(prompts, size):
            for length in _cut(steps, settings.steps_per_microbatch):
                shape = Replay(arms * objects, length, length)
                replays[shape] += 2 // arms
                valued[shape] += 2 - arms
    both = pair.both()
    sides = {shape: both.objects(slice(0, shape.prompts)) for shape in replays}

    def replayed(
        arm: Trajectory, shape: Replay, policy: Policy, conditioning: Conditioning
    ) -> Tensor:
        return replay_log_prob(
            policy, system.sampler, arm, range(shape.states), conditioning,
            guidance_scale=settings.guidance_scale, camera_scale=settings.camera_scale,
            reduction=settings.reduction,
        )  # fmt: skip

    return Workload(
        calls=calls,
        samples=2,
        stored=_stored(pair),
        replays=replays,
        valued=valued,
        # A frozen reference scores what is trained once, without gradient.
        described=Counter(replays if config.objective.reference == "frozen" else {}),
        function={shape: partial(replayed, side, shape) for shape, side in sides.items()},
        inputs={shape: [side.state, side.action] for shape, side in sides.items()},
    )


def _of_groups(
    system: System,
    config: TrainConfig,
    samples: Samples,
    conditioning: Conditioning,
    calls: Sequence[SampledCall],
) -> Workload:
    """Replay every decision under every text of a prompt."""
    settings = group_update_settings(config)
    captions = num_captions(config, samples=samples.denoised.shape[1])
    pieces = [
        piece for decision in samples.decisions for piece in decision.split(settings.nodes_per_call)
    ]
    by_shape = {
        Replay(piece.state.shape[0], *(t.shape[1] for t in (piece.state, piece.action))): piece
        for piece in pieces
    }
    once = Counter(
        Replay(piece.state.shape[0], *(t.shape[1] for t in (piece.state, piece.action)))
        for piece in pieces
    )
    described = [
        decision_under(
            _CallNotes(), system.sampler, decision, conditioning,
            settings=settings, nodes_per_call=settings.nodes_per_call,
        )
        for decision in samples.decisions
        for _ in range(captions)
    ]  # fmt: skip

    def replayed(decision: GroupDecision, policy: Policy, conditioning: Conditioning) -> Tensor:
        transition = member_transition(
            policy, system.sampler, decision, conditioning, settings=settings
        )
        return score_members(system.sampler, decision, transition, settings=settings)

    paths = [] if samples.leaf_log_prob is None else [samples.leaf_log_prob]
    return Workload(
        calls=calls,
        samples=samples.denoised.shape[1],
        stored=[
            *(t for decision in (*samples.decisions, *described) for t in _tensors(decision)),
            samples.denoised,
            *paths,
        ],
        replays=Counter({shape: (1 + captions) * count for shape, count in once.items()}),
        function={shape: partial(replayed, piece) for shape, piece in by_shape.items()},
        inputs={shape: _tensors(piece) for shape, piece in by_shape.items()},
        described=Counter({shape: captions * count for shape, count in once.items()}),
        conditions=1 + captions,
        decisions=len(samples.decisions),
    )


def _of_noised_samples(
    system: System, config: TrainConfig, samples: Samples, calls: Sequence[SampledCall]
) -> Workload:
    """Predict the velocity or noise of every sample at every noise level."""
    prompts, members = samples.denoised.shape[:2]
    levels = min(config.forward.levels, system.sampler.num_steps)
    shape = Replay(prompts, members, members)
    clean = samples.denoised.transpose(0, 1)
    noise = [torch.empty_like(clean) for _ in range(levels)]

    def velocity(policy: Policy, conditioning: Conditioning) -> Tensor:
        return policy(
            ((1.0 - 0.5) * clean + 0.5 * noise[0]).flatten(0, 2),
            torch.tensor(500.0, device=clean.device),
            conditioning.repeat(members) if members > 1 else conditioning,
            guidance_scale=config.sampler.guidance_scale,
            camera_scale=config.sampler.camera_scale,
        )

    return Workload(
        calls=calls,
        samples=members,
        stored=[samples.denoised, *noise, *(_stored(samples.pair) if samples.pair else ())],
        replays=Counter({shape: levels}),
        function={shape: velocity},
        inputs={shape: [samples.denoised, *noise]},
    )


def _stored(pair: PairedRollout) -> list[Tensor]:
    """List the tensors of both arms."""
    names = ("state", "action", "log_prob", "denoised")
    return [getattr(arm, name) for arm in (pair.zigzag, pair.standard) for name in names]


def num_captions(config: TrainConfig, *, samples: int) -> int:
    """Count the captions of a prompt: one per sample where samples are described.

    Args:
        config: The section ``condition`` is read.
        samples: Samples of each prompt [samples].

    Returns:
        Captions, equal ones among them; 0 without an enhancer.

    Examples:
        >>> num_captions(TrainConfig(), samples=8)
        0
    """
    condition = config.condition
    if condition.enhancer == "none":
        return 0
    return condition.num_captions if condition.enhancer in ("stored", "world_edits") else samples


def _tensors(decision: GroupDecision) -> list[Tensor]:
    tensors = (decision.state, decision.action, decision.log_prob, decision.mean)
    return [tensor for tensor in tensors if tensor is not None]


def _cut(whole: int, size: int) -> list[int]:
    return [min(size, whole - first) for first in range(0, whole, size)]
