"""Slices of an iteration from sampling to scores, one after the other or overlapping.

Overlapping, a slice is captioned and judged in a second thread while the first samples the next
one. Noise, captions and scores are functions of the slice alone, so that no bit differs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mvczigal_ref.condition.protocol import ConditionEnhancer
from mvczigal_ref.method.caption import Conditions, captioned, encoded
from mvczigal_ref.method.protocol import Iteration
from mvczigal_ref.method.sample import decode, sample
from mvczigal_ref.method.score import score
from mvczigal_ref.method.slices import Part
from mvczigal_ref.records import Samples
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.reward.table import RewardTable
from mvczigal_ref.system import System

__all__ = ["Judged", "judged_slices"]

Timer = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Judged:
    """Slices of one process, in order."""

    samples: list[Samples]
    """Samples of each slice."""

    conditions: list[Conditions]
    """Texts of each slice, under which its samples are judged and learnt."""

    scores: list[RewardTable]
    """Rewards of each slice."""


def judged_slices(
    system: System,
    enhancer: ConditionEnhancer | None,
    parts: Sequence[Part],
    here: Iteration,
    *,
    timer: Timer,
    rollout: Callable[[Sequence[str], Tensor], None],
    old: Mapping[str, Tensor] | None = None,
) -> Judged:
    """Sample, describe and judge an iteration's slices.

    Args:
        system: Networks, sampler and scorers.
        enhancer: Makes captions beside the prompts; None is the prompts alone.
        parts: Slices of this process.
        here: The iteration; ``reward.overlap`` of its settings chooses the order.
        timer: Measures the stages; overlapping, of captions and scores only the wait for them.
        rollout: Hears of each slice's prompts and images.
        old: Trainable parameters of the policy that samples; None is the policy itself.

    Returns:
        Samples, conditions and rewards of every slice.

    Raises:
        CaptionError: If captions cannot be made.
        ScorerUnavailableError: If a scorer's service is out.
        NonFiniteError: If latents or images are non-finite.
    """
    config, index, world = here.config, here.index, here.world

    def drawn(part: Part) -> Samples:
        with timer("rollout"):
            return sample(system, part, config, index, old=old)

    def shown(part: Part, samples: Samples) -> Tensor:
        with timer("decode"):
            images: Tensor = decode(system, samples)
        rollout(part.prompts, images)
        return images

    def judge(part: Part, images: Tensor, timer: Timer = _untimed) -> tuple[Any, RewardTable]:
        with timer("condition"):
            texts = captioned(enhancer, part, images, config, index)
        with timer("reward"):
            return texts, score(
                system, images, texts[1], texts_per_call=config.reward.texts_per_call
            )

    if config.reward.overlap:
        with _second_thread(system) as ask:
            samples: list[Samples] = []
            answers: list[Future[Any]] = []
            for part in parts:
                samples.append(drawn(part))
                with world.agreed():
                    images = shown(part, samples[-1])
                with timer("reward"):
                    wait(answers)  # so that no more than two slices' images are there
                if not world.sharded:  # else the others would wait for this one's next call
                    for answer in answers:
                        answer.result()
                answers.append(ask(judge, part, images))
                del images  # gigabytes at full size
            with world.agreed(), timer("reward"):
                judged = [answer.result() for answer in answers]
    else:
        samples, judged = [drawn(part) for part in parts], []
        with world.agreed():
            for part, each in zip(parts, samples, strict=True):
                judged.append(judge(part, shown(part, each), timer))
    with timer("condition"):
        conditions = [encoded(system, texts) for texts, _ in judged]
    return Judged(samples, conditions, [scores for _, scores in judged])


@contextmanager
def _untimed(_stage: str) -> Iterator[None]:
    yield


@contextmanager
def _second_thread(system: System) -> Iterator[Callable[..., Future[Any]]]:
    """Give a way to work in one other thread; after a failure nothing more begins there."""
    failed: list[BaseException] = []

    def guarded(work: Callable[..., Any], *given: Any) -> Any:  # noqa: ANN401
        if failed:
            raise failed[0]
        try:
            return work(*given)
        except BaseException as error:
            failed.append(error)
            raise

    pool = ThreadPoolExecutor(1)
    with ExitStack() as stack:
        for scorer in _scorers(system):
            # Signals reach the first thread alone: it ends the other's wait for a service.
            if hasattr(scorer, "waiting"):
                stack.enter_context(scorer.waiting.hearing())
        try:
            yield lambda work, *given: pool.submit(guarded, work, *given)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _scorers(system: System) -> Iterator[Any]:
    """Go over the scorers that are trained on."""
    for each in (system.per_view, system.joint):
        yield from each.scorers.values() if isinstance(each, Mixture) else (each,)
