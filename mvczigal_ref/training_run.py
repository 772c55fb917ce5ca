"""Training run in one call: a recipe, and whatever of it is the caller's own."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvczigal_ref.cli.launch import join
from mvczigal_ref.cli.notebook import NotebookDisplay, notebook_output
from mvczigal_ref.config import TrainConfig, load_config
from mvczigal_ref.errors import CheckpointError, ConfigError, quoted
from mvczigal_ref.evaluation.evaluate import sample_objects
from mvczigal_ref.evaluation.scores import PairedGain
from mvczigal_ref.files import atomic_write
from mvczigal_ref.recipes import recipe as named_recipe
from mvczigal_ref.reward.source import hand_over
from mvczigal_ref.shapes import Images
from mvczigal_ref.system.scorers import no_scorers
from mvczigal_ref.text_files import text_lines
from mvczigal_ref.training.events import EventGroup, Events
from mvczigal_ref.training.prompt_rows import list_rows
from mvczigal_ref.training.run_policy import load_policy
from mvczigal_ref.training.tracking import read_metrics
from mvczigal_ref.training.trainer import RunResult, train

if TYPE_CHECKING:
    from mvczigal_ref.system import System

__all__ = ["Result", "TrainedPolicy", "fit"]

_PROMPTS = "prompts.txt"
"""File of a run folder that holds the prompts of a list."""


class TrainedPolicy:
    """Trained policy of a run, loaded at the first sample.

    Args:
        folder: Run folder.
        config: Settings of the run.
    """

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self.folder, self.config = folder, config

    @cached_property
    def system(self) -> "System":
        """Network and sampler with the newest checkpoint's parameters; no scorers."""
        device = join(self.config.run.device).device
        return load_policy(self.folder, device=device, scorers=no_scorers())[0]

    def sample(self, prompts: Sequence[str], *, seed: int = 0) -> Images:
        """Sample every view of one object per prompt, as evaluation does.

        Args:
            prompts: One text per object.
            seed: Seed of the noise; equal seeds give equal images.

        Returns:
            Images in [0, 1], (object, view, rgb, height, width), on the CPU.

        Raises:
            CheckpointError: If the run holds no checkpoint.
        """
        noise = self.system.noise(range(len(prompts)), "sample", seed=seed)
        return sample_objects(self.system, list(prompts), noise, config=self.config).cpu()


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Outcome of :func:`fit`."""

    folder: Path
    """Run folder."""

    metrics: list[dict[str, Any]]
    """Numbers of every iteration, as the metrics file holds them."""

    policy: TrainedPolicy
    """Trained policy, to be sampled."""

    gain: PairedGain | None
    """Held-out per-view reward before and after, and its gain with a standard error; None of a
    run that was stopped."""

    joint_gain: PairedGain | None
    """Held-out joint reward before and after; None of a run that was stopped."""

    @property
    def stopped(self) -> bool:
        """Whether a callback has stopped the run; the same call goes on with it."""
        return self.gain is None


def fit(
    recipe: str | TrainConfig,
    *,
    reward: Callable[..., Any] | str | None = None,
    joint_reward: Callable[..., Any] | str | None = None,
    prompts: Sequence[str] | str | Path | None = None,
    callbacks: Sequence[Events] = (),
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
) -> Result:
    """Train a recipe, or go on with the run that its folder holds, and show the progress.

    Args:
        recipe: Name of a recipe, or a configuration.
        reward: Function of images (object, view, rgb, height, width) in [0, 1] and a list of
            prompts, one per object, that returns (object, view); or the name of a scorer. A new
            run records the hash of its source, and a resume compares it.
        joint_reward: As ``reward``, of all the views of an object together: it returns (object,).
        prompts: Prompts to train on, or what ``run.prompts`` may name, such as a file; the
            recipe's if None.
        callbacks: Watchers of the run, which may ask it to stop.
        overrides: Words such as ``run.iterations=10``; a later one wins.
        out: Run folder; ``runs/RECIPE-SEED`` if None.

    Returns:
        The run's folder, metrics, gain and policy.

    Raises:
        CheckpointError: If the folder holds another run, or a reward or the prompts have changed.
        ConfigError: If a setting, a prompt or a reward is refused; nothing is loaded then.
        KeyboardInterrupt: After Ctrl-C, with a checkpoint.
        SystemExit: After a stop since the output's reader has gone, as after ``| head``, with a
            checkpoint and a line on standard error; of several processes, in the main one.

    Examples:
        >>> fit("tiny", reward="pickscore", overrides=["optim.lr=0"])
        Traceback (most recent call last):
        mvczigal_ref.errors.ConfigError: `optim.lr`: input should be greater than 0; got 0.
    """
    base = named_recipe(recipe) if isinstance(recipe, str) else recipe
    words = [
        f"{setting}={value if isinstance(value, str) else hand_over(argument, value)}"
        for argument, setting, value in (
            ("reward", "reward.per_view", reward),
            ("joint_reward", "reward.joint", joint_reward),
        )
        if value is not None
    ]
    config = load_config(base, overrides=[*words, *overrides])
    folder = Path(out or Path("runs") / f"{config.recipe}-{config.run.seed}")
    if prompts is not None:
        source = _prompt_source(prompts, folder)
        config = load_config(config, overrides=[f"run.prompts={source}"])
    outcome = _train(config, folder, callbacks)
    return Result(
        folder=folder,
        metrics=read_metrics(folder / "metrics.jsonl"),
        policy=TrainedPolicy(folder, config),
        gain=None if outcome is None else outcome.per_view,
        joint_gain=None if outcome is None else outcome.joint,
    )


def _train(config: TrainConfig, folder: Path, callbacks: Sequence[Events]) -> RunResult | None:
    """Train under a display and the callbacks; None if one of them has stopped the run."""
    from mvczigal_ref.cli.display import TrainingDisplay
    from mvczigal_ref.cli.patient_console import PatientConsole, end_unread
    from mvczigal_ref.report import write_report

    here, asked = join(config.run.device), EventGroup(callbacks)
    console = PatientConsole(quiet=not here.is_main)
    with ExitStack() as stack:
        show = notebook_output() if here.is_main else None
        display: Events = (
            stack.enter_context(TrainingDisplay(console, config))
            if show is None
            else NotebookDisplay(show)
        )
        try:
            result = train(config, folder, world=here, events=EventGroup([display, asked]))
        except KeyboardInterrupt:
            if here.anywhere(asked.stopping):
                return None
            if console.reader_gone:
                end_unread(folder, "The same call goes on.")
            raise
        if here.is_main:
            write_report(folder)
        return result


def _prompt_source(prompts: Sequence[str] | str | Path, folder: Path) -> str:
    """Give ``run.prompts``; prompts of a list are written into the run folder, to stay with it."""
    if isinstance(prompts, str | Path):
        return str(prompts)
    texts = [prompt for _, prompt in list_rows(prompts, setting="prompts").texts]
    for prompt in texts:
        if len(text_lines(prompt)) != 1:
            raise ConfigError(f"`prompts` must hold texts of one line each; got {quoted(prompt)}.")
    content, path = ("\n".join(texts) + "\n").encode(), (folder / _PROMPTS).absolute()
    if path.is_file() and path.read_bytes() == content:
        return str(path)
    if path.is_file() and (folder / "config.json").is_file():
        # It may be in use, and no other list would go on with it.
        msg = (
            f"`prompts` must be those that the run in {str(folder)!r} began with, as its "
            f"{_PROMPTS} holds them; got others. Restore them, or choose another `out`."
        )
        raise CheckpointError(msg)
    atomic_write(path, content)
    return str(path)
