"""Slices of an iteration from sampling to scores, one after the other or overlapping.

Overlapping, a slice is captioned and judged in a second thread while the first samples the next
one. Noise, captions and scores are functions of the slice alone, so that no bit differs. Ahead, the
first thread samples a slice of the next iteration meanwhile: by the parameters of now, before the
update that these judges are asked for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import islice

from torch import Tensor

from mvczigal_ref.condition.distinct import TextColumn
from mvczigal_ref.condition.protocol import ConditionEnhancer
from mvczigal_ref.method.ahead import Ahead
from mvczigal_ref.method.caption import Captions, Conditions, captioned, encoded
from mvczigal_ref.method.protocol import Iteration
from mvczigal_ref.method.sample import decode, sample
from mvczigal_ref.method.score import score
from mvczigal_ref.method.second_thread import second_thread
from mvczigal_ref.method.slices import Part
from mvczigal_ref.models.network_rows import network_rows
from mvczigal_ref.records import Samples
from mvczigal_ref.reward.table import RewardTable
from mvczigal_ref.system import System
from mvczigal_ref.update.parameters import parameter_copies

__all__ = ["Judged", "judged_slices"]

Timer = Callable[[str], AbstractContextManager[None]]
Answer = tuple[tuple[Captions, tuple[TextColumn, ...]], RewardTable]


@dataclass(frozen=True, slots=True)
class Judged:
    """Slices of one process, in order."""

    samples: list[Samples]
    """Samples of each slice."""

    conditions: list[Conditions]
    """Texts of each slice, under which its samples are judged and learnt."""

    scores: list[RewardTable]
    """Rewards of each slice."""

    ahead: Ahead | None = None
    """Rollout of the next iteration; None without ``rollout.ahead``."""


def judged_slices(
    system: System,
    enhancer: ConditionEnhancer | None,
    parts: Sequence[Part],
    here: Iteration,
    *,
    timer: Timer,
    rollout: Callable[[Sequence[str], Tensor], None],
    old: Mapping[str, Tensor] | None = None,
    ahead: Ahead | None = None,
    later: Sequence[Part] = (),
) -> Judged:
    """Sample, describe and judge an iteration's slices.

    Args:
        system: Networks, sampler and scorers.
        enhancer: Makes captions beside the prompts; None is the prompts alone.
        parts: Slices of this process.
        here: The iteration; ``reward.overlap`` and ``rollout.ahead`` choose the order.
        timer: Measures the stages; overlapping, of captions and scores only the wait for them.
        rollout: Hears of each slice's prompts and images.
        old: Trainable parameters of the policy that samples; None is the policy itself.
        ahead: This iteration's rollout, where it has been sampled before the last update, or is to
            be sampled as if it had.
        later: Slices of the next iteration, sampled meanwhile; none of the last.

    Returns:
        Samples, conditions and rewards of every slice, and the next iteration's rollout.

    Raises:
        CaptionError: If captions cannot be made.
        ScorerUnavailableError: If a scorer's service is out.
        NonFiniteError: If latents or images are non-finite.
    """
    stages = _Stages(system, enhancer, here, timer, rollout)
    policy, ready = (old, ()) if ahead is None else (ahead.behaviour, ahead.samples)
    drawn = iter(ready) if ready else (stages.draw(part, here.index, policy) for part in parts)
    following = _Following(stages, iter(later), old)
    if here.config.reward.overlap or here.config.rollout.ahead:
        samples, answers = _overlapping(stages, parts, drawn, following.draw)
    else:
        samples = list(drawn)
        with here.world.agreed():
            answers = [
                stages.judge(part, stages.show(part, each), timer)
                for part, each in zip(parts, samples, strict=True)
            ]
    with timer("condition"):
        conditions = [encoded(system, texts) for texts, _ in answers]
    scores = [table for _, table in answers]
    return Judged(samples, conditions, scores, following.rollout())


@dataclass(frozen=True, slots=True)
class _Stages:
    """Stages of one slice."""

    system: System
    enhancer: ConditionEnhancer | None
    here: Iteration
    timer: Timer
    rollout: Callable[[Sequence[str], Tensor], None]

    def draw(self, part: Part, iteration: int, policy: Mapping[str, Tensor] | None) -> Samples:
        with self.timer("rollout"):
            return sample(self.system, part, self.here.config, iteration, old=policy)

    def show(self, part: Part, samples: Samples) -> Tensor:
        with self.timer("decode"):
            images: Tensor = decode(self.system, samples)
        self.rollout(part.prompts, images)
        return images

    def judge(self, part: Part, images: Tensor, timer: Timer) -> Answer:
        config = self.here.config
        with timer("condition"):
            texts = captioned(self.enhancer, part, images, config, self.here.index)
        with timer("reward"):
            calls = config.reward.texts_per_call
            return texts, score(self.system, images, texts[1], texts_per_call=calls)


@dataclass(slots=True)
class _Following:
    """Slices of the next iteration, one at a time."""

    stages: _Stages
    parts: Iterator[Part]
    old: Mapping[str, Tensor] | None
    samples: list[Samples] = field(default_factory=list)
    rows: int = 0

    def draw(self) -> None:
        """Sample one more slice, if one is left."""
        for part in islice(self.parts, 1):
            with network_rows(self.stages.system.policy) as rows:
                index = self.stages.here.index + 1
                self.samples.append(self.stages.draw(part, index, self.old))
            self.rows += rows()

    def rollout(self) -> Ahead | None:
        """Give what has been sampled, where sampling goes ahead."""
        if not self.stages.here.config.rollout.ahead:
            return None
        trained = self.stages.system.trained()
        behaviour = parameter_copies(trained) if self.old is None else dict(self.old)
        return Ahead(behaviour=behaviour, samples=self.samples, rows=self.rows)


def _overlapping(
    stages: _Stages, parts: Sequence[Part], drawn: Iterator[Samples], draw_next: Callable[[], None]
) -> tuple[list[Samples], list[Answer]]:
    """Judge each slice in a second thread, while the first samples others."""
    world, samples = stages.here.world, []
    answers: list[Future[Answer]] = []
    with second_thread(stages.system) as ask:
        for part, each in zip(parts, drawn, strict=True):
            samples.append(each)
            with world.agreed():
                images = stages.show(part, each)
            with stages.timer("reward"):
                wait(answers)  # so that no more than two slices' images are there
            if not world.sharded:  # else the others would wait for this one's next call
                for answer in answers:
                    answer.result()
            answers.append(ask(stages.judge, part, images, _untimed))
            del images  # gigabytes at full size
            draw_next()
        with world.agreed(), stages.timer("reward"):
            return samples, [answer.result() for answer in answers]


@contextmanager
def _untimed(_stage: str) -> Iterator[None]:
    yield
