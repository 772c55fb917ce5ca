"""Loop of a run: its iterations, and what is measured and written after each."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvczigal_ref.condition.protocol import ConditionEnhancer
from mvczigal_ref.distributed import World
from mvczigal_ref.evaluation.guard import guard_step
from mvczigal_ref.evaluation.held_out import HeldOut
from mvczigal_ref.evaluation.scores import Evaluation
from mvczigal_ref.evaluation.watch import Watch
from mvczigal_ref.iteration import Listener, run_iteration
from mvczigal_ref.models.network_rows import network_rows
from mvczigal_ref.reward.table import RewardTable
from mvczigal_ref.training.events import Events, RunView, hears
from mvczigal_ref.training.prompt_batch import prompt_batch
from mvczigal_ref.training.state import TrainingState
from mvczigal_ref.training.trackers import Trackers
from mvczigal_ref.training.tracking import (
    MetricsLog,
    StageTimer,
    peak_memory,
)

__all__ = ["TrainingLoop", "run_view"]


def run_view(state: TrainingState, folder: Path) -> RunView:
    """Give the run's place to those who watch it.

    Args:
        state: State of the run.
        folder: Run folder.

    Returns:
        A record that cannot be changed.
    """
    return RunView(
        folder=folder, config=state.config, finished=state.finished, constraint=state.constraint
    )


@dataclass(frozen=True, slots=True)
class _Copies(Listener):
    """Copies of what an iteration makes, for those who hear of it."""

    tell: Events
    run: RunView

    def rollout(self, prompts: Sequence[str], images: Tensor) -> None:
        if hears(self.tell, "rollout"):
            self.tell.rollout(self.run, tuple(prompts), images.clone())

    def rewards(self, rewards: RewardTable) -> None:
        if hears(self.tell, "rewards"):
            tables = {
                kind: {name: table.clone() for name, table in getattr(rewards, kind).items()}
                for kind in ("per_view", "joint")
            }
            self.tell.rewards(self.run, replace(rewards, weights={**rewards.weights}, **tables))


class TrainingLoop:
    """The iterations that are left, and what is measured and written after each."""

    def __init__(
        self,
        state: TrainingState,
        judge: HeldOut,
        watch: Watch,
        folder: Path,
        tell: Events,
        world: World,
        trackers: Trackers,
        enhancer: ConditionEnhancer | None = None,
    ) -> None:
        self._state, self._judge, self._watch = state, judge, watch
        self._enhancer = enhancer
        self._folder, self._tell, self._world, self._idle = folder, tell, world, False
        self._timer, done = StageTimer(world.device), state.logged
        self._log = MetricsLog(folder / "metrics.jsonl", finished=done) if world.is_main else None
        captioned = world.is_main and enhancer is not None
        self._captions = (
            MetricsLog(folder / "captions.jsonl", finished=state.finished) if captioned else None
        )
        self._trackers = trackers

    def run(self, stopped: Callable[[], bool]) -> None:
        """Go on to the end, or until a stop is asked for."""
        state = self._state
        if state.finished == 0:
            self._check()
            self._save()
        if state.pending is not None:  # a scorer was out when the iteration had been done
            self._finish(stopped)
        while not state.ended:
            self._iterate()
            self._finish(stopped)

    def _iterate(self) -> None:
        state, config = self._state, self._state.config
        state.set_learning_rate()
        goes_on = config.rollout.ahead and state.finished + 1 < config.run.iterations
        with network_rows(state.system.policy) as rows:
            result = run_iteration(
                state.system, state.optimizer, state.constraint, self._batch(state.finished),
                iteration=state.finished, config=config, world=self._world, timer=self._timer,
                enhancer=self._enhancer, old=state.old, loss_scale=state.loss_scale,
                ahead=state.ahead,
                next_prompts=self._batch(state.finished + 1) if goes_on else (),
                listener=_Copies(self._tell, run_view(state, self._folder)),
            )  # fmt: skip
        before, after = (0 if one is None else one.rows for one in (state.ahead, result.ahead))
        calls = self._world.gather_objects(torch.tensor([before + rows() - after])).sum()
        state.ahead = result.ahead
        state.constraint, state.finished = result.constraint, state.finished + 1
        state.old, state.loss_scale = result.old, result.loss_scale
        state.follow()
        state.pending = {**result.metrics, "network_calls": int(calls)}
        with self._world.agreed():
            if self._captions is not None and result.captions is not None:
                self._captions.append(state.finished - 1, result.captions)
            self._tell.update(run_view(state, self._folder), {**state.pending})

    def _batch(self, iteration: int) -> Sequence[str]:
        """Choose the prompts of an iteration."""
        config = self._state.config.run
        return prompt_batch(
            self._state.prompts, seed=config.seed, iteration=iteration,
            count=config.objects_per_iteration,
        )  # fmt: skip

    def _finish(self, stopped: Callable[[], bool]) -> None:
        """Measure what is due after an iteration, write it down, and save."""
        state, run = self._state, self._state.config.run
        iteration, every = state.finished - 1, run.evaluate_every
        best = self._check()  # may end the run, and put the best parameters back
        last = state.ended
        scores: Evaluation | None = None
        if every and state.finished % every == 0:
            with state.averaged():
                scores = self._judge("after" if last else "at", state.finished)
        with self._world.agreed():
            self._report(iteration, scores, last=last)
        stop = self._world.anywhere(stopped() or self._tell.stopping)
        if stop or last or best or state.finished % run.checkpoint_every == 0:
            self._save()
        if stop:
            self._tell.end(run_view(state, self._folder))
            raise KeyboardInterrupt

    def _report(self, iteration: int, scores: Evaluation | None, *, last: bool) -> None:
        """Write an iteration's numbers down, and tell of them."""
        state = self._state
        metrics = {**(state.pending or {})}
        if scores is not None:
            metrics |= scores.means()
            if not last:  # which the trainer tells
                self._tell.evaluation(run_view(state, self._folder), "at", scores.means())
                self._trackers.log_sheet(iteration, "held_out", scores.images)
        metrics |= {**self._timer.take(), "peak_memory": peak_memory(self._world.device)}
        if self._log is not None:
            self._log.append(iteration, metrics)
            self._trackers.log(iteration, metrics)
        state.pending = None
        with suppress(OSError):  # a terminal that has gone must not cost what is to be saved
            self._tell.iteration(state.finished, state.config.run.iterations, metrics)
            self._note_idle_steps(iteration, metrics)

    def _note_idle_steps(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        """Say once that optimiser steps asked for no change."""
        if metrics.get("idle_steps") and not self._idle:
            self._idle = True
            self._tell.note(
                f"iteration {iteration}: {metrics['idle_steps']:.0f} optimiser steps changed "
                "nothing, since every advantage was equal or every ratio clipped; `idle_steps` "
                "counts them from now on."
            )

    def _check(self) -> bool:
        """Let the guard look, if it is time; say whether this is its best check."""
        state, guard = self._state, self._state.config.guard
        checked = state.guard is not None and state.guard.latest.iteration == state.finished
        if checked or not self._watch.due(state.finished):
            return False
        with self._timer("guard"), state.averaged():
            check, metrics = self._watch(state.finished)
        state.guard, verdict = guard_step(
            state.guard, check, margin=guard.margin, unit=guard.unit, fallen=guard.fallen
        )
        if state.pending is not None:
            state.pending |= {
                **metrics,
                "guard/fired": float(verdict.fired),
                "guard/best_iteration": float(state.guard.best.iteration),
            }
        if guard.action == "return":
            if verdict.improved and (self._world.is_main or state.sharded):
                state.keep_best(self._folder)
            self._world.barrier()
            if verdict.fired:
                state.return_to_best(self._folder)
        return verdict.improved and guard.action == "return"

    def _save(self) -> None:
        main, path = self._world.is_main, None
        if main or self._state.sharded:
            path = self._state.save(self._folder)
        with self._world.agreed():
            if main and path is not None:
                self._tell.checkpoint(run_view(self._state, self._folder), path)
        self._world.barrier()
