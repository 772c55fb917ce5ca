"""Iterations of every method on the analytic system: configurations, whole runs, and stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from mvczigal_ref.condition.protocol import Caption
from mvczigal_ref.config import TrainConfig, from_dict
from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.distributed import World
from mvczigal_ref.iteration import run_iteration
from mvczigal_ref.method.caption import Conditions, describe
from mvczigal_ref.method.protocol import Experience, Iteration
from mvczigal_ref.method.sample import decode, sample
from mvczigal_ref.method.score import score
from mvczigal_ref.method.slices import Share
from mvczigal_ref.records import Samples
from mvczigal_ref.reward.table import RewardTable
from mvczigal_ref.system import System
from mvczigal_ref.training.tracking import StageTimer
from tests.analytic_system import PROMPTS, analytic_system

# Joint rewards are about 1.1 here, so the constraint is violated.
START = ConstraintState(multiplier=0.5, threshold=2.0, initialised=True)
FLOW = {
    "model.network": "flow",
    "sampler.kind": "flow",
    "reward.joint": "per_view",
    "advantage.mode": "per_view",
}
GROUP = {"objective.kind": "policy_gradient", "rollout.kind": "group", "rollout.members": 3}
SMALL = {
    "run.objects_per_slice": 1,
    "sampler.num_steps": 3,
    "sampler.guidance_scale": 2.0,
    "optim.optimizer_steps_per_epoch": 1,
    "optim.max_grad_norm": 1e6,
    "run.objects_per_iteration": 2,
    "objective.clip_range": 0.5,
    "advantage.delta": 0.01,
}
ZIGAL = {
    "run.objects_per_iteration": 4,
    "run.objects_per_slice": 2,
    "sampler.num_steps": 2,
    "sampler.guidance_scale": 2.0,
    "optim.optimizer_steps_per_epoch": 1,
}
"""MVC-ZigAL: pairs of a zigzag and a standard trajectory, compared by their gap."""
PAIRS = {**SMALL, "objective.kind": "policy_gradient"}
"""The same pairs as groups of two."""
LCM = {**SMALL, **GROUP}
DDIM = {**LCM, "sampler.kind": "ddim"}
ONE_VIEW = {**LCM, **FLOW}
TREE = {**ONE_VIEW, "rollout.kind": "tree", "rollout.split_steps": [0, 1]}
BRANCHES = {**ONE_VIEW, "rollout.kind": "branches"}
FORWARD = {**ONE_VIEW, "objective.kind": "forward_process"}


def config_of(*parts: Mapping[str, Any], **dotted: Any) -> TrainConfig:
    """Configure a run; settings are named by dotted path."""
    nested: dict[str, Any] = {}
    for path, value in {
        "sampler.prediction_type": "epsilon",
        **{k: v for part in parts for k, v in part.items()},
        **dotted,
    }.items():
        section, _, name = path.rpartition(".")
        nested.setdefault(section, {})[name] = value
    return from_dict(nested)


class Said:
    """An enhancer that says the same of everything; an empty text is the prompt."""

    needs_images = True

    def __init__(self, *texts):
        self.texts, self.asked = texts, []

    def num_captions(self, group_size):
        """Tell K."""
        return len(self.texts)

    def __call__(self, prompts, images=None, *, seed):
        """Note what is asked."""
        self.asked.append((list(prompts), tuple(images.shape), seed))
        return [
            tuple(Caption(caption=text or prompt, instruction="said") for text in self.texts)
            for prompt in prompts
        ]


class SaidOfTheFirst(Said):
    """Says other things of the first prompt alone."""

    def __call__(self, prompts, images=None, *, seed):
        """Give every other prompt itself."""
        made = super().__call__(prompts, images, seed=seed)
        return [
            texts
            if prompt == PROMPTS[0]
            else tuple(Caption(caption=prompt, instruction="said") for _ in texts)
            for prompt, texts in zip(prompts, made, strict=True)
        ]


def telling(images, prompts):
    """Like another colour for each prompt, so that a caption changes who is better."""
    number = torch.tensor([float(prompt.split()[-1]) for prompt in prompts])[:, None]
    red, _, blue = images.mean((-2, -1)).unbind(-1)
    return 10 * (torch.cos(number) * red + torch.sin(number) * blue)


def system_of(config: TrainConfig, **parts: Any) -> System:
    """Build the analytic system; in groups captions change who is better."""
    judge = {} if config.objective.compares_pairs else {"per_view": telling}
    return replace(analytic_system(config), **{**judge, **parts})


def learn(
    config, *, iterations=2, first=0, stride=1, start=START, lr=0.05, enhancer=None, world=None,
    old=None, loss_scale=None, meanwhile=True, **parts,
):  # fmt: skip
    """Run some iterations; return parameters, metrics, network calls and the last result.

    Where settings sample ahead and ``meanwhile`` is false, samples are drawn when they are needed,
    as after a resume.
    """
    prompts, ahead = PROMPTS[: config.run.objects_per_iteration], None
    meanwhile = meanwhile and config.rollout.ahead and stride == 1
    last = first + iterations - 1
    system = system_of(config, **parts)
    trained = system.trained()
    optimizer, metrics = torch.optim.SGD(list(trained.values()), lr=lr), []
    if config.objective.kind == "forward_process" and old is None:
        old = {name: p.detach().clone() for name, p in trained.items()}
    for index in (first + stride * n for n in range(iterations)):
        result = run_iteration(
            system, optimizer, start, prompts,
            iteration=index, config=config, world=world or World(), timer=StageTimer(),
            enhancer=enhancer, old=old, loss_scale=loss_scale, ahead=ahead,
            next_prompts=prompts if meanwhile and index < last else (),
        )  # fmt: skip
        start, old, loss_scale = result.constraint, result.old, result.loss_scale
        ahead = result.ahead
        metrics.append(result.metrics)
    parameters = torch.cat([p.detach().flatten() for p in trained.values()])
    return parameters, metrics, system.policy.calls, result


@dataclass(frozen=True)
class Stages:
    """What the stages before the advantages give."""

    here: Iteration
    samples: list[Samples]
    conditions: list[Conditions]
    rewards: RewardTable

    def under(self, advantages: Any) -> Experience:
        """Put the advantages beside."""
        return Experience(samples=self.samples, conditions=self.conditions, advantages=advantages)


def staged(
    system: System,
    config: TrainConfig,
    *,
    index: int = 0,
    enhancer: Any = None,
    prompts: Sequence[str] | None = None,
) -> Stages:
    """Sample, describe and judge one iteration's prompts, stage by stage."""
    share = Share.of(config, World())
    here = Iteration(config=config, world=World(), share=share, index=index)
    parts = share.parts(prompts or PROMPTS[: config.run.objects_per_iteration])
    samples = [sample(system, part, config, index) for part in parts]
    images = [decode(system, drawn) for drawn in samples]
    conditions = [
        describe(system, enhancer, part, seen, config, index)
        for part, seen in zip(parts, images, strict=True)
    ]
    scores = [
        score(system, seen, condition.columns)
        for seen, condition in zip(images, conditions, strict=True)
    ]
    return Stages(here, samples, conditions, share.gather_rewards(scores, World()))
