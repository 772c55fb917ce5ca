"""Language models that are asked: the protocol, for one question or several at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.language.chat import ChatAnswerError

__all__ = ["BatchLanguageModel", "LanguageModel", "Question"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question."""

    text: str
    """Text that the model reads after the images."""

    images: Sequence[Float[Tensor, "rgb height width"]] = ()
    """RGB in [0, 1], in the order in which the model sees them."""

    seed: int | None = None
    """Seed of the answer's sampling; the model's own when None."""

    more_tokens: int = 0
    """Length of the answer beyond the model's usual longest [tokens]."""


@runtime_checkable
class LanguageModel(Protocol):
    """Answers questions; served and local models have the same interface."""

    def ask(
        self,
        text: str,
        images: Sequence[Float[Tensor, "rgb height width"]] = (),
        *,
        seed: int | None = None,
    ) -> str:
        """Answer one question, independent of all others.

        Args:
            text: Text that the model reads after the images.
            images: RGB in [0, 1], in the order in which the model sees them.
            seed: Seed of the answer's sampling; the model's own when None.

        Returns:
            The answer as the model gave it.
        """
        ...


@runtime_checkable
class BatchLanguageModel(LanguageModel, Protocol):
    """Answers several questions in one call of its network, each independent of the others."""

    def ask_all(self, questions: Sequence[Question]) -> list[str | ChatAnswerError]:
        """Answer some questions together.

        Args:
            questions: The questions.

        Returns:
            One answer per question, or the reason why there is none that may be used.
        """
        ...
