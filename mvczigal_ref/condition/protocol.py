"""ConditionEnhancer: the protocol by which the package gets K more captions for a prompt.

A group of samples is judged and trained on under the prompt and its K captions. Nothing needs to be
subclassed.
"""

import operator
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
"""Images in [0, 1] of the samples of each prompt: every sample is a set of views."""


OnRefusal = Literal["raise", "prompt"]
"""Stand-in for a caption that cannot be made: an error, or the prompt itself."""


NO_INSTRUCTION: Final = "none"
"""Instruction of a caption that is the prompt itself because no other could be made."""


class CaptionError(ValueError):
    """A caption is unfit for training, is absent, or could not be made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """One augmented condition: a text beside the prompt."""

    caption: str
    """The text; one line."""

    instruction: str
    """Name of the instruction that the caption follows, or ``NO_INSTRUCTION``."""

    sample: int | None = None
    """Index, in the group, of the sample that the caption describes; None if of no sample."""


@runtime_checkable
class ConditionEnhancer(Protocol):
    """Make K captions per prompt.

    Equal arguments give equal captions, unless the enhancer has a memory.
    The captions of a prompt depend on that prompt and its own images, not on other prompts or
    their order.
    """

    @property
    def needs_images(self) -> bool:
        """Whether captions describe samples; if not, they can be made before sampling."""
        ...

    def num_captions(self, group_size: int) -> int:
        """Return K, the exact number of captions.

        Args:
            group_size: Samples per prompt [1].

        Returns:
            Captions per prompt [1].
        """
        ...

    def __call__(
        self, prompts: Sequence[str], images: GroupImages | None = None, *, seed: int
    ) -> list[tuple[Caption, ...]]:
        """Make the captions.

        Args:
            prompts: Texts, one per object.
            images: One group of samples per prompt, where ``needs_images``.
            seed: Seed of every draw; a new one for each call.

        Returns:
            K captions per prompt, in the order of ``prompts``.
        """
        ...


def stream(*names: int | str) -> random.Random:
    """Make a generator that is seeded by names.

    Args:
        *names: Such as seed, prompt and sample; 1 and "1" differ, and an integer of any type is
            the number.

    Returns:
        A generator whose numbers differ whenever a name does.

    Examples:
        >>> stream(0, "a cat").random() == stream(0, "a cat").random()
        True
        >>> stream(0, "a cat").random() == stream(1, "a cat").random()
        False
    """
    # Python hashes a text seed with SHA-512, alike in every process.
    plain = tuple(str(name) if isinstance(name, str) else operator.index(name) for name in names)
    return random.Random(repr(plain))
