"""Content of a run folder, finished or not, read for reports and tables."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvczigal_ref.config import TrainConfig, to_dict
from mvczigal_ref.config.fingerprint import setting_changes
from mvczigal_ref.config.run_file import run_config
from mvczigal_ref.config.scorer_names import VIEW_MEAN
from mvczigal_ref.errors import CheckpointError, ConfigError
from mvczigal_ref.evaluation.scores import Evaluation, PairedGain, paired_gain, read_evaluation
from mvczigal_ref.recipes import recipe
from mvczigal_ref.tiny_world.grammar import split_prompts
from mvczigal_ref.training.sealed_rows import check_rows
from mvczigal_ref.training.starts import read_starts
from mvczigal_ref.training.tracking import read_metrics

__all__ = [
    "RunContent",
    "changed_settings",
    "informative_metrics",
    "read_run",
    "score_tables",
    "settings_of",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContent:
    """Content of a run folder so far."""

    folder: Path
    """Place of the folder."""

    config: TrainConfig
    """Configuration of the run."""

    rows: list[dict[str, Any]]
    """Metrics, one mapping per iteration."""

    evaluations: dict[int, Evaluation]
    """Held-out scores by the number of finished iterations, in that order, of NumPy."""

    prompts: list[str]
    """Prompts of the evaluations, one per column of the scores."""

    captions: list[dict[str, Any]] = field(default_factory=list)
    """Captions of the prompts, one mapping per iteration."""

    starts: list[dict[str, Any]] = field(default_factory=list)
    """Command, versions, machine and seconds of each start; empty where none was recorded."""

    @property
    def before(self) -> Evaluation | None:
        """Scores before training, or None."""
        return self.evaluations.get(0)

    @property
    def after(self) -> Evaluation | None:
        """The newest comparable scores after some training, or None."""
        newest = max(self.evaluations, default=0)
        scores = self.evaluations.get(newest)
        if newest == 0 or scores is None or self.before is None:
            return None
        return scores if scores.joint.shape == self.before.joint.shape else None

    def gains(self) -> dict[str, PairedGain]:
        """Compare before and after; empty while one of them is absent."""
        before, after = self.before, self.after
        if before is None or after is None:
            return {}
        return {
            name: paired_gain(getattr(before, table), getattr(after, table))
            for name, table in score_tables(self.config).items()
        }


def score_tables(config: TrainConfig) -> dict[str, str]:
    """Name the scores of a run; without a scorer of all views there is one.

    Args:
        config: Configuration of the run.

    Returns:
        Fields of an evaluation by the names of the scores.

    Examples:
        >>> score_tables(TrainConfig())
        {'per view': 'per_view', 'joint view': 'joint'}
    """
    both = {"per view": "per_view", "joint view": "joint"}
    return {"per view": "per_view"} if config.reward.joint == VIEW_MEAN else both


def informative_metrics(config: TrainConfig, keys: Iterable[str]) -> set[str]:
    """Leave out the metrics that every run writes and that say nothing about this one.

    Args:
        config: Configuration of the run.
        keys: Names of metrics.

    Returns:
        The names without the joint reward where no scorer judges all views, without multiplier,
        threshold and slack where there is no constraint, and without the reward of a single
        scorer, which is the reward itself.

    Examples:
        >>> config = recipe("tiny_flow_grpo")
        >>> informative_metrics(config, ["per_view_reward/mean", "joint_view_reward/mean", "slack"])
        {'per_view_reward/mean'}
    """
    reward = config.reward
    left = {f"reward/{name}" for name in (reward.per_view, reward.joint) if isinstance(name, str)}
    if reward.joint == VIEW_MEAN:
        left |= {"joint_view_reward", "held_out/joint", "guard/joint"}
    if config.advantage.mode != "constrained":
        left |= {"multiplier", "threshold", "slack"}
    return {key for key in keys if not left & {key, key.rpartition("/")[0]}}


def read_run(folder: Path) -> RunContent:
    """Read everything that a run has written, except its checkpoints.

    Args:
        folder: A run folder, finished or not.

    Returns:
        Content of the folder.

    Raises:
        CheckpointError: If the folder is no run folder, or a file of scores is damaged.
    """
    config = run_config(folder)
    check_rows(folder)
    place = folder / "evaluations"
    # A glob would find a file, or a folder that may not be read, empty.
    files = sorted(place.iterdir()) if place.exists() else []
    named = (path for path in files if path.match("*_*.safetensors"))
    scores = [(_iteration(path), read_evaluation(path, framework="np")[0]) for path in named]
    evaluations = dict(sorted(scores, key=lambda one: one[0]))
    columns = max((each.joint.shape[1] for each in evaluations.values()), default=0)
    return RunContent(
        folder=folder,
        config=config,
        rows=read_metrics(folder / "metrics.jsonl"),
        evaluations=evaluations,
        prompts=_prompts(folder, columns),
        captions=read_metrics(folder / "captions.jsonl"),
        starts=read_starts(folder),
    )


def _iteration(path: Path) -> int:
    try:
        return int(path.stem.rpartition("_")[2])
    except ValueError as error:
        msg = f"{str(path)!r} is not named after an iteration. Remove the file."
        raise CheckpointError(msg) from error


def _prompts(folder: Path, columns: int) -> list[str]:
    path = folder / "evaluations" / "prompts.json"
    try:
        held_out = json.loads(path.read_bytes()) if path.exists() else split_prompts()[1]
    except (ValueError, RecursionError) as error:
        msg = f"cannot read the held-out prompts in {str(path)!r}: {error}. Restore the file."
        raise CheckpointError(msg) from error
    if isinstance(held_out, list) and len(held_out) == columns:
        return [str(prompt) for prompt in held_out]
    return [f"prompt {place}" for place in range(1, columns + 1)]


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """Give every setting by its dotted path.

    Args:
        config: A configuration.

    Returns:
        Values as in a settings file; the recipe's name is left out.

    Examples:
        >>> settings_of(TrainConfig())["sampler.num_steps"]
        4
    """
    values = to_dict(config)
    sections = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    return {
        f"{name}.{key}": value for name, group in sections.items() for key, value in group.items()
    }


def changed_settings(config: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Find the settings in which a configuration differs from its recipe.

    Args:
        config: A configuration; one of an unknown recipe is compared with the defaults.

    Returns:
        The recipe's value and the configuration's, by dotted path.

    Examples:
        >>> from mvczigal_ref.config import load_config
        >>> changed_settings(load_config(recipe("tiny"), overrides=["run.seed=3"]))
        {'run.seed': (0, 3)}
    """
    try:
        start = recipe(config.recipe)
    except ConfigError:
        start = TrainConfig()
    return setting_changes(to_dict(start), to_dict(config))
