"""Held-out scores of a run, each occasion measured once and kept."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.evaluation import Evaluation, evaluate
from mvczigal_ref.files import atomic_write, to_json
from mvczigal_ref.system import System

__all__ = ["HeldOut"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """Held-out scores of a run, each kept in a file so that a resume finds it."""

    system: System
    """Network, sampler and scorers."""

    prompts: Sequence[str]
    """What is scored."""

    folder: Path
    """The run folder."""

    config: TrainConfig
    """Settings of the run."""

    world: World
    """This process among all."""

    def __call__(self, name: str, iteration: int) -> Evaluation:
        """Read the scores of an occasion, or measure and keep them.

        Args:
            name: Such as ``before``.
            iteration: Iterations finished.

        Returns:
            Scores, the same in every process.

        Raises:
            CheckpointError: If the folder's scores are those of other prompts.
            NonFiniteError: If a score is not finite.
        """
        folder = self.folder / "evaluations"
        listed, path = folder / "prompts.json", folder / f"{name}_{iteration:06d}.safetensors"
        noises = self.config.run.evaluation_noises
        if listed.is_file() and json.loads(listed.read_text("utf-8")) != list(self.prompts):
            msg = (
                f"`held_out` must be the prompts of {str(listed)!r}, on which the run's earlier "
                "scores were made; got others. Pass those, or choose another folder."
            )
            raise CheckpointError(msg)
        if path.is_file():
            kept = Evaluation(**load_file(path))
            if len(kept.joint) == noises:
                return kept
        scores = evaluate(
            self.system, self.prompts, config=self.config, world=self.world, num_noises=noises
        )
        self.world.barrier()  # until all have looked for the file
        if self.world.is_main:
            named = {"per_view": scores.per_view, "joint": scores.joint, "images": scores.images}
            atomic_write(listed, to_json(list(self.prompts)))
            atomic_write(path, save(named))
        self.world.barrier()
        return scores

    def metrics(self, name: str, iteration: int) -> dict[str, float]:
        """Give the mean scores of an occasion as the metrics file names them.

        Args:
            name: Such as ``at``.
            iteration: Iterations finished.

        Returns:
            Both means [reward units].
        """
        scores = self(name, iteration)
        return {
            "held_out/per_view": float(scores.per_view.double().mean()),
            "held_out/joint": float(scores.joint.double().mean()),
        }
