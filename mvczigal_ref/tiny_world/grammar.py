"""The closed grammar of the tiny world: all its prompts, and their meaning.

``a red cube with a white nose``: a shape, its colour, one part, the part's
colour. Size, heading and the part's height and size are left open.
"""

import random
import re
from dataclasses import dataclass
from typing import Final

from mvczigal_ref.errors import ConfigError, quoted

__all__ = [
    "COLOURS",
    "PARTS",
    "SHAPES",
    "Prompt",
    "all_prompts",
    "is_sentence",
    "parse",
    "split_prompts",
]

SHAPES: Final = ("ball", "cube", "cone", "can")
"""Shapes of bodies."""


PARTS: Final = ("nose", "fin")
"""Parts that stick out of a body: a ball, or an ellipsoid twice as tall as wide."""


COLOURS: Final[dict[str, tuple[float, float, float]]] = {
    "red": (0.93, 0.12, 0.12),
    "green": (0.10, 0.78, 0.20),
    "blue": (0.16, 0.28, 0.98),
    "yellow": (0.98, 0.90, 0.12),
    "purple": (0.66, 0.14, 0.80),
    "white": (0.98, 0.98, 0.98),
}
"""Linear RGB of a surface that faces the camera, in [0, 1]."""


_PATTERN = re.compile(
    r"an? (?P<body_colour>\w+) (?P<shape>\w+) with an? (?P<part_colour>\w+) (?P<part>\w+)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """Meaning of one sentence of the grammar."""

    body_colour: str
    """Colour of the body, one of ``COLOURS``."""

    shape: str
    """Shape of the body, one of ``SHAPES``."""

    part_colour: str
    """Colour of the part, another of ``COLOURS``."""

    part: str
    """Kind of the part, one of ``PARTS``."""

    def __str__(self) -> str:
        """Return the sentence."""
        return f"a {self.body_colour} {self.shape} with a {self.part_colour} {self.part}"


def all_prompts() -> list[str]:
    """List the 240 prompts: 4 shapes, 6 colours, 5 other part colours, 2 parts.

    Returns:
        Every sentence of the grammar, in a fixed order.

    Examples:
        >>> len(all_prompts()), all_prompts()[0]
        (240, 'a red ball with a green nose')
    """
    return [
        str(Prompt(body_colour=body, shape=shape, part_colour=part_colour, part=part))
        for shape in SHAPES
        for body in COLOURS
        for part_colour in COLOURS
        if part_colour != body
        for part in PARTS
    ]


def split_prompts(*, num_held_out: int = 40, seed: int = 0) -> tuple[list[str], list[str]]:
    """Split the grammar into prompts to train on and prompts never trained on.

    Args:
        num_held_out: Prompts kept aside [1], 0 to 240.
        seed: Seed of the split.

    Returns:
        Training prompts and held-out prompts, each in the grammar's order.

    Raises:
        ConfigError: If ``num_held_out`` is outside 0 to 240.

    Examples:
        >>> train, held_out = split_prompts()
        >>> len(train), len(held_out), set(train) & set(held_out)
        (200, 40, set())
    """
    prompts = all_prompts()
    if not 0 <= num_held_out <= len(prompts):
        msg = f"`num_held_out` must lie in 0..{len(prompts)}; got {num_held_out}."
        raise ConfigError(msg)
    held_out = set(random.Random(seed).sample(prompts, num_held_out))
    return [p for p in prompts if p not in held_out], [p for p in prompts if p in held_out]


def is_sentence(prompt: str) -> bool:
    """Tell whether a prompt is a sentence of the grammar.

    Args:
        prompt: Any text.

    Returns:
        Whether :func:`parse` reads it.

    Examples:
        >>> is_sentence("a red cube with a white nose"), is_sentence("a red cube")
        (True, False)
    """
    try:
        parse(prompt)
    except ConfigError:
        return False
    return True


def parse(prompt: str) -> Prompt:
    """Read a sentence of the grammar.

    Args:
        prompt: Sentence such as ``a red cube with a white nose``; case and outer
            blanks do not matter.

    Returns:
        Meaning of the sentence.

    Raises:
        ConfigError: If the sentence is not in the grammar; the message lists the
            possible words.

    Examples:
        >>> parse("a red cube with a white nose").part_colour
        'white'
    """
    match = _PATTERN.fullmatch(prompt.strip().lower())
    if match is not None:
        parsed = Prompt(**match.groupdict())
        colours = {parsed.body_colour, parsed.part_colour}
        if len(colours & COLOURS.keys()) == 2 and parsed.shape in SHAPES and parsed.part in PARTS:
            return parsed
    msg = (
        f"`prompt` must read 'a COLOUR SHAPE with an OTHER-COLOUR PART', with colours of "
        f"{', '.join(COLOURS)}, a shape of {', '.join(SHAPES)} and a part of "
        f"{', '.join(PARTS)}; got {quoted(prompt)}."
    )
    raise ConfigError(msg)
