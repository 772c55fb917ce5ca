"""What the rest of the package knows of a condition enhancer, and what an enhancer may ask.

A prompt says one thing of its samples; an enhancer says K more, and a group of samples is then
judged and learnt under all K + 1 captions. Nothing needs to be subclassed.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

__all__ = [
    "NO_INSTRUCTION",
    "Caption",
    "CaptionError",
    "ConditionEnhancer",
    "GroupImages",
    "OnRefusal",
    "stream",
]

GroupImages = Float[Tensor, "object sample view rgb height width"]
"""The group of samples drawn for each prompt, each the set of its views, in [0, 1]."""


OnRefusal = Literal["raise", "prompt"]
"""What stands in for a caption that cannot be made: an error, or the prompt itself."""


NO_INSTRUCTION: Final = "none"
"""Instruction of a caption that is the prompt itself, since no other could be made."""


class CaptionError(ValueError):
    """A caption is unfit for training, is absent, or could not be made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """One augmented condition."""

    caption: str
    """The text; one line."""

    instruction: str
    """Name of the instruction that it follows, or ``NO_INSTRUCTION``."""

    sample: int | None = None
    """Index within the group of the sample that it describes; None if it describes none."""


@runtime_checkable
class ConditionEnhancer(Protocol):
    """Give K captions a prompt.

    Equal arguments give equal captions, but for a memory that an enhancer was given to keep.
    The captions of a prompt depend on that prompt and its own images, not on the others or
    their order.
    """

    @property
    def needs_images(self) -> bool:
        """Whether captions describe samples; those of other enhancers can be made before."""
        ...

    def num_captions(self, group_size: int) -> int:
        """Tell K, exactly.

        Args:
            group_size: Samples a prompt.

        Returns:
            Captions a prompt.
        """
        ...

    def __call__(
        self, prompts: Sequence[str], images: GroupImages | None = None, *, seed: int
    ) -> list[tuple[Caption, ...]]:
        """Make the captions.

        Args:
            prompts: One an object.
            images: One group of samples a prompt, where ``needs_images``.
            seed: Of every draw; a new one for each occasion.

        Returns:
            K captions a prompt, in the order of ``prompts``.
        """
        ...


def stream(*names: int | str) -> random.Random:
    """Make a generator from what its numbers are for.

    Args:
        *names: Such as seed, prompt and sample; 1 and "1" differ.

    Returns:
        A generator whose numbers differ whenever a name does.

    Examples:
        >>> stream(0, "a cat").random() == stream(0, "a cat").random()
        True
        >>> stream(0, "a cat").random() == stream(1, "a cat").random()
        False
    """
    # Python hashes a text seed with SHA-512, alike in every process.
    return random.Random(repr(names))
