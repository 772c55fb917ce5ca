"""Trial: one slice of a run that is sampled, replayed, learnt from and compared."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from mvczigal_ref.config import Dtype, TrainConfig
from mvczigal_ref.distributed import World
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.system import System
from mvczigal_ref.training.state import TrainingState, begin

__all__ = ["Place", "Trial"]

_PROMPT = "a red cube with a white nose"


class Trial(ABC):
    """One slice of a run, and ways to sample it, replay it and learn from it."""

    zero_tolerance: ClassVar[float] = 0.0
    """Largest gradient of no advantage, as a share of that of an advantage of 1 [1]."""

    goal: ClassVar[str] = "raises the log-density"
    """Effect that an advantage of 1 must have."""

    no_density: ClassVar[str | None] = None
    """Reason why actions have no log-density; None where they have one."""

    def __init__(self, system: System, config: TrainConfig, objects: int) -> None:
        self.system, self.config, self.objects = system, config, objects
        self.prompts = [_PROMPT] * objects
        self._samples: dict[Dtype, Any] = {}

    @property
    def conditioning(self) -> Conditioning:
        """Features of the prompts."""
        return self.system.conditioning(self.prompts)

    @abstractmethod
    def sample(self, storage: Dtype) -> Any:  # noqa: ANN401 - of each kind its own record
        """Sample as an iteration does, stored in a dtype."""

    def samples(self, storage: Dtype) -> Any:  # noqa: ANN401
        """Sample once for all attempts, which find the same parameters.

        Args:
            storage: Dtype in which samples are stored.

        Returns:
            Samples as :meth:`sample` gives them.
        """
        if storage not in self._samples:
            self._samples[storage] = self.sample(storage)
        return self._samples[storage]

    @abstractmethod
    def drawn(self, samples: Any) -> Sequence[Tensor]:  # noqa: ANN401
        """Give everything that was drawn."""

    @abstractmethod
    def places(self, samples: Any) -> Sequence["Place"]:  # noqa: ANN401
        """Give every replay that an update may make; the first is learnt from."""

    @abstractmethod
    def learn(self, samples: Any, step: int, *, advantage: float) -> float:  # noqa: ANN401
        """Leave the gradient of the run's loss in the parameters, for one advantage of all.

        Every element weighs what it weighs in an optimiser step of the run, and the loss is
        scaled as there.

        Args:
            samples: Samples of one slice.
            step: Index of the trained step or decision.
            advantage: The advantage, or the gap of every pair [1].

        Returns:
            The loss scale that the gradient was made with, before it was taken out [1].
        """

    @abstractmethod
    def rescored(self, samples: Any, step: int) -> Any:  # noqa: ANN401
        """Give a step's actions the density that the network has now."""

    @abstractmethod
    def progress(self, samples: Any) -> float:  # noqa: ANN401
        """Measure what an advantage of 1 must raise."""

    def noise(self) -> SeededNoise:
        """Name the noise of the slice."""
        return self.system.noise(range(self.objects), "check", seed=self.config.run.seed)

    def stored_in(self, storage: Dtype) -> TrainConfig:
        """Give the run's settings with another storage dtype."""
        return replace(self.config, model=replace(self.config.model, storage_dtype=storage))

    def state(self) -> TrainingState:
        """Begin a run, its threshold given so that nothing is scored."""
        given = replace(self.config.constraint, threshold_init=0.0)
        state = begin(self.system, replace(self.config, constraint=given), World(), self.prompts)
        state.set_learning_rate()
        return state

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Give every network, part by part."""
        yield "network", self.system.policy
        yield "autoencoder", self.system.components.vae
        for index, encoder in enumerate(self.system.backbone.text_encoders, 1):
            yield f"text encoder {index}", encoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """One replay of stored samples."""

    name: str
    """Place of the replay in the samples, for messages."""

    replay: Callable[[bool], Tensor]
    """Replays with gradient or without; gives densities, or velocities where there are none."""

    stored: Tensor | None
    """Log-densities of the same actions when they were drawn; None where there are none."""

    finite: Tensor
    """Table that is not finite where the network's output is not."""
