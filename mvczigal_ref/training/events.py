"""Events: news of a run for displays and callbacks, which may ask for a stop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.reward.table import RewardTable

__all__ = ["EventGroup", "Events", "RunView", "hears"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """Place of a run at the time of an event; to be read alone."""

    folder: Path
    """Run folder."""

    config: TrainConfig
    """Settings of the run."""

    finished: int
    """Iterations done, those before a resume too [iterations]."""

    constraint: ConstraintState
    """Multiplier and threshold."""

    @property
    def total(self) -> int:
        """Length of the whole run [iterations]."""
        return self.config.run.iterations


class Events:
    """News of a run for whoever watches it, in the main process; the base class says nothing.

    Everything that is handed over is a record that cannot be changed or a copy, so that a watcher
    changes no bit of the run. An exception ends the run where it stands; `stop` saves first.

    Examples:
        >>> class StopEarly(Events):
        ...     def update(self, run, metrics):
        ...         if metrics["grad_norm"] < 1e-6:
        ...             self.stop()
    """

    stopping: bool = False
    """Whether a stop has been asked for."""

    def stop(self) -> None:
        """Ask the run to save and end after the iteration in hand, as SIGTERM does."""
        self.stopping = True

    def stage(self, text: str) -> None:
        """Hear that something long begins.

        Args:
            text: Name of it.
        """

    def progress(self, done: int, total: int) -> None:
        """Hear how far the stage in hand is.

        Args:
            done: Parts of it that are done.
            total: Parts in all.
        """

    def note(self, text: str) -> None:
        """Hear something that a person should read, once.

        Args:
            text: One line.
        """

    def begin(self, run: RunView) -> None:
        """Hear that the iterations begin, or go on after a resume.

        Args:
            run: The run.
        """

    def rollout(
        self,
        run: RunView,
        prompts: Sequence[str],
        images: Float[Tensor, "prompt sample view rgb height width"],
    ) -> None:
        """Hear that a slice of this process has been sampled and decoded.

        Args:
            run: The run, before the iteration.
            prompts: Prompts of the slice.
            images: Copies of their samples in [0, 1].
        """

    def rewards(self, run: RunView, rewards: RewardTable) -> None:
        """Hear the rewards of an iteration, of all processes.

        Args:
            run: The run, before the iteration.
            rewards: Raw rewards by scorer, copied [reward units].
        """

    def update(self, run: RunView, metrics: Mapping[str, float | None]) -> None:
        """Hear that the parameters have changed.

        Args:
            run: The run, after the iteration.
            metrics: Rewards, constraint and update of the iteration.
        """

    def evaluation(self, run: RunView, name: str, scores: Mapping[str, float]) -> None:
        """Hear the held-out scores of an occasion.

        Args:
            run: The run.
            name: ``before``, ``at`` or ``after``.
            scores: Means by metric [reward units].
        """

    def checkpoint(self, run: RunView, path: Path) -> None:
        """Hear that a checkpoint has been written.

        Args:
            run: The run.
            path: Folder of the checkpoint.
        """

    def iteration(self, finished: int, total: int, metrics: Mapping[str, float | None]) -> None:
        """Hear that an iteration has ended.

        Args:
            finished: Iterations done, those before a resume too.
            total: Iterations of the whole run.
            metrics: Row of the metrics file.
        """

    def end(self, run: RunView) -> None:
        """Hear that the run has ended, or has saved and stops; not after an error.

        Args:
            run: The run; it was stopped where ``finished`` is below ``total``, or the guard has
                ended it.
        """


class EventGroup(Events):
    """Several watchers as one: each hears everything, in order; any may stop the run.

    Args:
        watchers: Displays and callbacks.

    Examples:
        >>> one, two = Events(), Events()
        >>> both = EventGroup([one, two])
        >>> two.stop()
        >>> both.stopping, one.stopping
        (True, False)
    """

    def __init__(self, watchers: Sequence[Events]) -> None:
        self._watchers = tuple(watchers)

    @property
    def stopping(self) -> bool:  # type: ignore[override]
        """Whether one of them has asked for a stop."""
        return any(watcher.stopping for watcher in self._watchers)

    def stop(self) -> None:
        """Let each of them ask for a stop."""
        for watcher in self._watchers:
            watcher.stop()

    def __getattribute__(self, name: str) -> Any:  # noqa: ANN401 - whatever the base class holds
        if name in _NEWS:
            return _each([getattr(watcher, name) for watcher in self._watchers])
        return super().__getattribute__(name)


_NEWS = frozenset(
    name for name in vars(Events) if not name.startswith("_") and name not in ("stop", "stopping")
)


def _each(functions: Sequence[Callable[..., None]]) -> Callable[..., None]:
    def call(*arguments: Any, **more: Any) -> None:  # noqa: ANN401 - an event's own
        for function in functions:
            function(*arguments, **more)

    return call


def hears(events: Events, name: str) -> bool:
    """Tell whether anyone hears an event, for whom copies are to be made.

    Args:
        events: A watcher, or a group.
        name: Name of the event's method.

    Returns:
        False where the base class's empty method would be called.

    Examples:
        >>> hears(Events(), "rollout")
        False
    """
    if isinstance(events, EventGroup):
        return any(hears(watcher, name) for watcher in events._watchers)
    return getattr(type(events), name) is not getattr(Events, name)
