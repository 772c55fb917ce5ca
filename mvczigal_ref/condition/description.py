"""What can be said of an image of the tiny world: a sentence of its grammar, and a word more.

``plain`` captions are sentences of the world's grammar. The others add one of four words that the
grammar does not have, and that its judges refuse: ``small`` or ``large`` before the shape's
colour, ``left`` or ``right`` after ``at``. :func:`parse_description` reads all of them.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

from mvczigal_ref.tiny_world.grammar import Prompt, parse

__all__ = [
    "INSTRUCTIONS",
    "SIDES",
    "SIZES",
    "Description",
    "parse_description",
]

Size = Literal["small", "large"]
Side = Literal["left", "right"]
SIZES: Final[tuple[Size, ...]] = ("small", "large")
"""Words for the lowest and the highest third of the sizes; the middle has none."""

SIDES: Final[tuple[Side, ...]] = ("left", "right")
"""Where in the image the part sticks out of the body; a part in front of it has no side."""

INSTRUCTIONS: Final = ("plain", "size", "side")
"""What a caption may be asked to add: nothing, or one word if it can be said of the image."""

_PATTERN = re.compile(r"(an? )(?:(small|large) )?(.*?)(?: at (left|right))?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """What is in an image, and how well it was recognised."""

    said: Prompt
    """Both colours, shape and part."""

    size: Size | None
    """None in the middle."""

    side: Side | None
    """None for a part in front of the body."""

    error: float
    """Squared error of the nearest render, in shares of its energy [1]; 0 is perfect."""

    def caption(self, instruction: str) -> str:
        """Put the description into words.

        Args:
            instruction: One of ``INSTRUCTIONS``.

        Returns:
            A sentence of the grammar, with at most one word added.

        Examples:
            >>> said = Prompt(body_colour="red", shape="ball", part_colour="white", part="nose")
            >>> found = Description(said=said, size="small", side="left", error=0.0)
            >>> found.caption("size"), found.caption("side")
            ('a small red ball with a white nose', 'a red ball with a white nose at left')
        """
        text = str(self.said)
        if instruction == "size" and self.size is not None:
            return text.replace("a ", f"a {self.size} ", 1)
        if instruction == "side" and self.side is not None:
            return f"{text} at {self.side}"
        return text


def parse_description(caption: str) -> tuple[Prompt, Size | None, Side | None]:
    """Read a caption of the tiny world, with or without the four added words.

    Args:
        caption: Such as ``a small red cube with a white nose``.

    Returns:
        What the grammar says, the size's word and the side's word.

    Raises:
        ConfigError: If it is no sentence of the grammar once these words are taken away.

    Examples:
        >>> said, size, side = parse_description("a red cube with a white nose at left")
        >>> str(said), size, side
        ('a red cube with a white nose', None, 'left')
    """
    found = _PATTERN.fullmatch(caption.strip().lower())
    if found is None:
        return parse(caption), None, None
    article, size_word, rest, side_word = found.groups()
    size = next((word for word in SIZES if word == size_word), None)
    side = next((word for word in SIDES if word == side_word), None)
    return parse(article + rest), size, side
