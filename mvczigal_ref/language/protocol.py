"""LanguageModel: the protocol of a language model that is asked."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

__all__ = ["LanguageModel"]


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
