"""Held-out scores of a run: each occasion measured once and kept, and what the guard watches."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mvczigal_ref.config import TrainConfig, fingerprint
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.evaluation.evaluate import evaluate
from mvczigal_ref.evaluation.exact_errors import exact_errors
from mvczigal_ref.evaluation.scores import (
    MEASURED,
    Evaluation,
    read_evaluation,
    sealed_evaluation,
)
from mvczigal_ref.files import atomic_write, to_json
from mvczigal_ref.system import System

__all__ = ["HeldOut"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Held-out scores of a run, each kept in a file so that a resume finds it."""

    system: System
    """Network, sampler and scorers."""

    prompts: Sequence[str]
    """Prompts that are scored."""

    folder: Path
    """The run folder."""

    config: TrainConfig
    """Settings of the run."""

    world: World
    """This process among all."""

    progress: Callable[[int, int], None] | None = None
    """Called with the parts of a measurement that are done, and with all of them."""

    def __call__(self, name: str, iteration: int) -> Evaluation:
        """Read the scores of an occasion, or measure and keep them.

        Scores of other noises, another number of steps or other settings are measured again.

        Args:
            name: Such as ``before``.
            iteration: Iterations finished.

        Returns:
            Scores, the same in every process.

        Raises:
            CheckpointError: If the folder's scores are those of other prompts, or damaged.
            NonFiniteError: If a score is not finite.
        """
        path = self._path(name, iteration)
        noises = self.config.run.evaluation_noises
        older = f"{noises} noises, {self._num_steps} steps"
        measured = f"{older}, run {fingerprint(self.config)[:16]}"
        with self.world.agreed():
            scores = self._stored(path, (measured, older))
        if scores is not None:
            return scores
        scores = evaluate(
            self.system, self.prompts, config=self.config, world=self.world, num_noises=noises,
            progress=self.progress,
        )  # fmt: skip
        self.world.barrier()  # until all have looked for the file
        with self.world.agreed():
            if self.world.is_main:
                atomic_write(self._listed, to_json(list(self.prompts)))
                shown = self.prompts[: len(scores.images)]
                errors = exact_errors(scores.images, shown, self.config)  # for the report
                content = sealed_evaluation(replace(scores, errors=errors), path, measured)
                atomic_write(path, content)
        self.world.barrier()
        return scores

    def _stored(self, path: Path, measured: Sequence[str]) -> Evaluation | None:
        """Read the file of an occasion, if there is one that was measured so."""
        self.refuse_other_prompts()
        if not path.is_file():
            return None
        scores, metadata = read_evaluation(path)
        return scores if metadata.get(MEASURED, "").partition(";")[0] in measured else None

    def refuse_other_prompts(self) -> None:
        """Compare the prompts with those of the folder's scores, if it has any.

        Raises:
            CheckpointError: If they are others, or cannot be read.
        """
        listed = self._listed
        try:
            saved = json.loads(listed.read_bytes()) if listed.is_file() else list(self.prompts)
        except (ValueError, RecursionError) as error:
            msg = f"{str(listed)!r} must list the prompts of the scores beside it; it is damaged. "
            raise CheckpointError(msg + "Restore it, or choose another folder.") from error
        if saved != list(self.prompts):
            msg = (
                f"`held_out` must be the prompts of {str(listed)!r}, on which the run's earlier "
                "scores were made; got others. Pass those, or choose another folder."
            )
            raise CheckpointError(msg)

    def refuse_damaged(self, *occasions: tuple[str, int]) -> None:
        """Read scores that a run will read after its folder has changed.

        Args:
            *occasions: Name and iterations finished of each; scores that are absent are made.

        Raises:
            CheckpointError: If the scores of one are damaged.
        """
        for name, iteration in occasions:
            path = self._path(name, iteration)
            if path.is_file():
                read_evaluation(path)

    def _path(self, name: str, iteration: int) -> Path:
        return self._listed.parent / f"{name}_{iteration:06d}.safetensors"

    @property
    def _listed(self) -> Path:
        return self.folder / "evaluations" / "prompts.json"

    @property
    def _num_steps(self) -> int:
        return self.system.evaluation_sampler.num_steps
