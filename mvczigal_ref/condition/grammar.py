r"""Describe images of the tiny world by measuring them; no language model is asked.

The two colours are those that cover the most pixels. Shape, part, size and side are those of the
nearest of 1344 renders painted in these colours, by

.. math:: \lVert x - r \rVert^2 / \lVert r - \mathrm{background} \rVert^2

and an image that no render explains is refused. ``plain`` captions are sentences of the world's
grammar. The others add one of four words that the grammar does not have, and that its judges
refuse: ``small`` or ``large`` before the shape's colour, ``left`` or ``right`` after ``at``.
:func:`parse_description` reads all of them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations, product
from typing import Final, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.condition.online import checked_groups
from mvczigal_ref.condition.protocol import (
    NO_INSTRUCTION,
    Caption,
    CaptionError,
    GroupImages,
    OnRefusal,
    stream,
)
from mvczigal_ref.world.grammar import COLOURS, PARTS, SHAPES, Prompt, parse
from mvczigal_ref.world.render import (
    BACKGROUND,
    IMAGE_SIZE,
    Geometry,
    Nuisance,
    colour_maps,
    render_maps,
)
from mvczigal_ref.world.visible import colour_area

__all__ = [
    "INSTRUCTIONS",
    "SIDES",
    "SIZES",
    "Description",
    "GrammarEnhancer",
    "describe",
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
_RENDERED: Final = (0, 45, 90, 135)  # azimuths; behind 135 no part is seen
_AZIMUTHS: Final = (*_RENDERED, -45, -90, -135)  # the rest are mirror images
_GRID: Final = (3, 4, 2)  # sizes, heights, radii
_LEAST_AREA: Final = 3  # blocks of a colour that is there, at the world's own image size


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


class GrammarEnhancer:
    """Describe every sample by measuring it: K = G, one caption a sample.

    Equal samples give equal captions, and a sample that is what the prompt says gives the
    prompt: the truth comes before variety.

    Args:
        instructions: What captions may be asked to add, one drawn for each; some of
            ``INSTRUCTIONS``. ``plain`` alone keeps to sentences that the world's judges know.
        max_error: Largest error of a render that still explains an image, in shares of the
            render's energy [1]; positive.
        on_refusal: What happens when a sample cannot be described.

    Raises:
        ValueError: If an instruction is unknown, none is given, or ``max_error`` is not
            positive.
    """

    needs_images: bool = True

    def __init__(
        self,
        *,
        instructions: Sequence[str] = ("plain",),
        max_error: float = 0.3,
        on_refusal: OnRefusal = "raise",
    ) -> None:
        if not instructions or not set(instructions) <= set(INSTRUCTIONS):
            msg = f"`instructions` must be some of {INSTRUCTIONS}; got {tuple(instructions)}."
            raise ValueError(msg)
        if not max_error > 0:
            raise ValueError(f"`max_error` must be positive; got {max_error}.")
        self._instructions = tuple(instructions)
        self._max_error = max_error
        self._on_refusal = on_refusal

    def num_captions(self, group_size: int) -> int:
        """Tell K: one caption a sample."""
        return group_size

    def __call__(
        self, prompts: Sequence[str], images: GroupImages | None = None, *, seed: int
    ) -> list[tuple[Caption, ...]]:
        """Make the captions; what a prompt says has no part in them.

        Args:
            prompts: Texts.
            images: One group of samples a prompt. Of several views the best explained one is
                described, without a side.
            seed: Of the instructions drawn.

        Returns:
            One caption a sample, in the samples' order. Where the word asked for cannot be
            said of a sample, its caption is plain, and says so.

        Raises:
            CaptionError: If a sample cannot be described and ``on_refusal`` is ``raise``.
            ValueError: If there are not as many groups as prompts, or images are not square.
        """
        return [
            tuple(self._caption(prompt, index, views, seed) for index, views in enumerate(group))
            for prompt, group in zip(prompts, checked_groups(prompts, images), strict=True)
        ]

    def _caption(self, prompt: str, index: int, views: Tensor, seed: int) -> Caption:
        instruction = stream(seed, prompt, index).choice(self._instructions)
        found: list[Description] = []
        refusal = ""
        for view in views:
            try:
                found.append(describe(view, max_error=self._max_error))
            except CaptionError as error:
                refusal = str(error)
        if not found:
            if self._on_refusal == "prompt":
                return Caption(caption=prompt, instruction=NO_INSTRUCTION, sample=index)
            msg = f"no caption for the prompt {prompt!r}, sample {index}: {refusal}"
            raise CaptionError(msg)
        best = min(found, key=lambda description: description.error)
        if instruction == "side" and len(views) > 1:
            instruction = "plain"
        text = best.caption(instruction)
        told = "plain" if text == str(best.said) else instruction
        return Caption(caption=text, instruction=told, sample=index)


@torch.no_grad()
def describe(image: Float[Tensor, "rgb height width"], *, max_error: float = 0.3) -> Description:
    """Say what one image of the tiny world shows.

    Args:
        image: RGB in [0, 1], square, from a camera at elevation 0 with the world's frame.
        max_error: Largest error of a render that still explains it, in shares of the render's
            energy [1].

    Returns:
        The description of the nearest render.

    Raises:
        CaptionError: If the image does not show two colours, as where the part is hidden, or
            no render explains it.
        ValueError: If the image is not square.

    Examples:
        >>> describe(torch.full((3, 32, 32), 0.45))
        Traceback (most recent call last):
        mvczigal_ref.condition.protocol.CaptionError: the image shows 0 colours ...
    """
    size = image.shape[-1]
    if image.shape[-2] != size:
        msg = f"`image` must be square, as every frame; got {tuple(image.shape[-2:])} pixels."
        raise ValueError(msg)
    image = image.detach().float().cpu()
    area = {colour: int(colour_area(image, colour)) for colour in COLOURS}
    least = _LEAST_AREA * (size / IMAGE_SIZE) ** 2
    colours = sorted((c for c in COLOURS if area[c] >= least), key=lambda c: -area[c])[:2]
    if len(colours) < 2 or not bool(image.isfinite().all()):
        what = " and ".join(colours) or "none"
        msg = f"the image shows {len(colours)} colours of a body and a part, {what}; 2 are needed."
        raise CaptionError(msg)
    fits = (
        fit
        for shape, part in product(SHAPES, PARTS)
        for fit in _nearest(image, shape, part, colours)
    )
    found = min(fits, key=lambda fit: fit.error)
    if found.error > max_error:
        msg = (
            f"no body and part explain the image: the nearest, {str(found.said)!r}, has an error "
            f"of {found.error:.2f} of its energy, and at most {max_error:g} may be."
        )
        raise CaptionError(msg)
    return found


def _nearest(image: Tensor, shape: str, part: str, colours: Sequence[str]) -> Iterator[Description]:
    """Find the nearest render for either order of two colours."""
    maps = _renders(shape, part, image.shape[-1])
    above = (image - BACKGROUND).flatten(1)
    seen, gram = maps @ above.mT, maps @ maps.mT  # (geometry, azimuth, map, rgb or map)
    for body, other in permutations(colours):
        said = Prompt(body_colour=body, shape=shape, part_colour=other, part=part)
        weights = colour_maps(said)
        energy = (gram * (weights @ weights.mT)).sum((-2, -1))
        square = above.square().sum() - 2 * (seen * weights).sum((-2, -1)) + energy
        relative = (square / energy).clamp(min=0)
        geometry, azimuth = divmod(int(relative.argmin()), len(_AZIMUTHS))
        angle = _AZIMUTHS[azimuth]
        yield Description(
            said=said,
            size={0: SIZES[0], _GRID[0] - 1: SIZES[1]}.get(geometry // (_GRID[1] * _GRID[2])),
            # The camera stands beside the front: its picture has the part on the other side.
            side=None if angle == 0 else SIDES[angle < 0],
            error=float(relative[geometry, azimuth]),
        )


@lru_cache(maxsize=16)
def _renders(shape: str, part: str, image_size: int) -> Float[Tensor, "geometry azimuth 3 pixel"]:
    """Render every geometry of the grid from every azimuth at which the part may show."""
    geometry = Geometry(shape, part, Nuisance.grid(*_GRID))
    maps = render_maps(geometry, torch.tensor(_RENDERED).float(), image_size=image_size)
    return torch.cat([maps, maps[:, 1:].flip(-1)], 1).flatten(-2)
