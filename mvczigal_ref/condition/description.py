"""Descriptions of images of the tiny world: a sentence of its grammar, and at most one more word.

``plain`` captions are sentences of the world's grammar. The others add one of four words that the
grammar does not have, and that its judges refuse: ``small`` or ``large`` before the shape's
colour, ``left`` or ``right`` after ``at``.
"""

from dataclasses import dataclass
from typing import Final, Literal

from mvczigal_ref.tiny_world.grammar import Prompt

__all__ = ["INSTRUCTIONS", "SIDES", "SIZES", "Description"]

Size = Literal["small", "large"]
Side = Literal["left", "right"]
SIZES: Final[tuple[Size, ...]] = ("small", "large")
"""Words for the lowest and the highest third of the sizes; the middle has none."""

SIDES: Final[tuple[Side, ...]] = ("left", "right")
"""Sides of the image at which the part sticks out; a part in front of the body has none."""

INSTRUCTIONS: Final = ("plain", "size", "side")
"""Additions that a caption may be asked for: none, a word for the size, or one for the side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """An image in words, and how well it was recognised."""

    prompt: Prompt
    """Both colours, shape and part."""

    size: Size | None
    """Word for the size; None in the middle third."""

    side: Side | None
    """Side at which the part sticks out; None for a part in front of the body."""

    error: float
    """Squared error of the nearest render, relative to its energy [1]; 0 is perfect."""

    def caption(self, instruction: str) -> str:
        """Put the description into words.

        Args:
            instruction: One of ``INSTRUCTIONS``.

        Returns:
            A sentence of the grammar, with at most one word added.

        Examples:
            >>> prompt = Prompt(body_colour="red", shape="ball", part_colour="white", part="nose")
            >>> text = Description(prompt=prompt, size="small", side="left", error=0.0)
            >>> text.caption("size"), text.caption("side")
            ('a small red ball with a white nose', 'a red ball with a white nose at left')
        """
        text = str(self.prompt)
        if instruction == "size" and self.size is not None:
            return text.replace("a ", f"a {self.size} ", 1)
        if instruction == "side" and self.side is not None:
            return f"{text} at {self.side}"
        return text
