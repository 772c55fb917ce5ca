"""Prompts that a run has met: they stay what they were, the others may be mended."""

import hashlib
import warnings
from collections.abc import Sequence
from functools import partial

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.files import to_json
from mvczigal_ref.training.checkpoint import Checkpoint
from mvczigal_ref.training.prompt_batch import prompt_batch
from mvczigal_ref.training.saved_state import restored

__all__ = ["met_prompts_digest", "prompts_digest", "require_same_prompts"]


def require_same_prompts(
    prompts: Sequence[str], config: TrainConfig, checkpoint: Checkpoint
) -> None:
    """Refuse to go on with other prompts than those that a run has met.

    Args:
        prompts: All training prompts; those that the run has not met yet may be others, and a
            warning tells.
        config: The run.
        checkpoint: Checkpoint that the run goes on from.

    Raises:
        CheckpointError: If there are fewer or more, or one that was met differs.
    """
    then = restored("prompts", partial(checkpoint.state.__getitem__, "prompts"))
    if then == prompts_digest(prompts):
        return
    met = met_prompts_digest(prompts, config, checkpoint.iteration)
    if checkpoint.state.get("prompts_met") != met:
        msg = (
            f"`run.prompts` = {config.run.prompts!r} must hold the prompts that the run began "
            f"with, at least as many and those it has met; what it holds now, {len(prompts)} "
            "prompts, differs. Restore the file, or choose another folder."
        )
        raise CheckpointError(msg)
    warnings.warn(
        f"`run.prompts` = {config.run.prompts!r} differs from what the run began with, in "
        "prompts that it has not met yet: it goes on as if it had begun with these.",
        stacklevel=2,
    )


def prompts_digest(prompts: Sequence[str]) -> str:
    """Digest a list of prompts.

    Args:
        prompts: The list, in its order.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    return hashlib.sha256(to_json(list(prompts)).encode()).hexdigest()


def met_prompts_digest(prompts: Sequence[str], config: TrainConfig, finished: int) -> str:
    """Digest how many prompts there are, and those that a run has met so far.

    Args:
        prompts: All training prompts.
        config: The run.
        finished: Iterations done.

    Returns:
        SHA-256 in hexadecimal digits.
    """
    count = finished * config.run.objects_per_iteration
    if config.constraint.threshold_init is None:
        count = max(count, config.constraint.threshold_objects)
    met = prompt_batch(prompts, seed=config.run.seed, iteration=0, count=min(count, len(prompts)))
    return prompts_digest([str(len(prompts)), *met])
