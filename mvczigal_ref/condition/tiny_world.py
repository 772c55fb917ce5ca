"""Enhancers of the tiny world: captions read off the image, and edits of the prompt."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from mvczigal_ref.condition.description import INSTRUCTIONS, Description
from mvczigal_ref.condition.measured import describe_each
from mvczigal_ref.condition.online import checked_groups
from mvczigal_ref.condition.protocol import (
    NO_INSTRUCTION,
    Caption,
    CaptionError,
    GroupImages,
    OnRefusal,
    stream,
)
from mvczigal_ref.tiny_world.grammar import COLOURS, PARTS, SHAPES, Prompt, parse

__all__ = ["WORDS", "GrammarEditor", "GrammarEnhancer", "one_word_edits"]


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
        groups = checked_groups(prompts, images)
        found = iter(describe_each(groups.flatten(0, 2), max_error=self._max_error))
        _, samples, views = groups.shape[:3]
        return [
            tuple(
                self._caption(prompt, index, list(islice(found, views)), seed)
                for index in range(samples)
            )
            for prompt in prompts
        ]

    def _caption(
        self, prompt: str, index: int, views: Sequence[Description | CaptionError], seed: int
    ) -> Caption:
        instruction = stream(seed, prompt, index).choice(self._instructions)
        found = [view for view in views if isinstance(view, Description)]
        if not found:
            if self._on_refusal == "prompt":
                return Caption(caption=prompt, instruction=NO_INSTRUCTION, sample=index)
            msg = f"no caption for the prompt {prompt!r}, sample {index}: {views[-1]}"
            raise CaptionError(msg)
        best = min(found, key=lambda description: description.error)
        if instruction == "side" and len(views) > 1:
            instruction = "plain"
        text = best.caption(instruction)
        told = "plain" if text == str(best.said) else instruction
        return Caption(caption=text, instruction=told, sample=index)


WORDS: Final = {
    "body_colour": COLOURS,
    "shape": SHAPES,
    "part_colour": COLOURS,
    "part": PARTS,
}
"""What a word of a prompt may be changed into, by the word's name."""


def one_word_edits(prompt: Prompt) -> list[tuple[str, Prompt]]:
    """List the prompts that differ in one word, each with that word's name.

    Args:
        prompt: Of the grammar.

    Returns:
        Pairs in a fixed order; both colours stay apart.

    Examples:
        >>> from mvczigal_ref.tiny_world.grammar import parse
        >>> edits = one_word_edits(parse("a red cube with a white nose"))
        >>> len(edits), str(edits[-1][1])
        (12, 'a red cube with a white fin')
    """
    found = []
    for name, choices in WORDS.items():
        for word in choices:
            edited = replace(prompt, **{name: word})
            if edited != prompt and edited.body_colour != edited.part_colour:
                found.append((name, edited))
    return found


class GrammarEditor:
    """Change one word of the prompt for every caption; a sample is not looked at.

    Source:
        The offline enhancer of arXiv:2603.12648 (MV-GRPO) rewrites prompts by a language model;
        of its edits only the replacement of a word stays within the world's grammar, which the
        world's judges can read.

    Args:
        num_captions: K, distinct for each prompt [1]; at least 1.
        words: Names of the words that may be changed, some of ``WORDS``.

    Raises:
        ValueError: If a word is unknown, none is given, or ``num_captions`` is below 1 or above
            what one word can make.

    Examples:
        >>> edit = GrammarEditor(num_captions=2)
        >>> [c.instruction for c in edit(["a red cube with a white nose"], seed=0)[0]]
        ['part_colour', 'body_colour']
    """

    needs_images: bool = False

    def __init__(self, *, num_captions: int, words: Sequence[str] = tuple(WORDS)) -> None:
        if not words or not set(words) <= WORDS.keys():
            msg = f"`words` must be some of {tuple(WORDS)}; got {tuple(words)}."
            raise ValueError(msg)
        self._words = frozenset(words)
        most = len(self._edits("a red cube with a white nose"))  # as of any prompt
        if not 1 <= num_captions <= most:
            msg = f"`num_captions` must be from 1 to {most}; got {num_captions}."
            raise ValueError(msg)
        self._num_captions = num_captions

    def num_captions(self, group_size: int) -> int:
        """Tell K, whatever the size of the group."""
        del group_size
        return self._num_captions

    def __call__(
        self, prompts: Sequence[str], images: GroupImages | None = None, *, seed: int
    ) -> list[tuple[Caption, ...]]:
        """Draw the edits.

        Args:
            prompts: Sentences of the grammar.
            images: Ignored.
            seed: Of the draw.

        Returns:
            K captions a prompt, each named by the word that it changes.

        Raises:
            ConfigError: If a prompt is no sentence of the grammar.
        """
        del images
        return [self._drawn(prompt, seed) for prompt in prompts]

    def _drawn(self, prompt: str, seed: int) -> tuple[Caption, ...]:
        chosen = stream(seed, prompt).sample(self._edits(prompt), self._num_captions)
        return tuple(Caption(caption=str(text), instruction=name) for name, text in chosen)

    def _edits(self, prompt: str) -> list[tuple[str, Prompt]]:
        return [(name, text) for name, text in one_word_edits(parse(prompt)) if name in self._words]
