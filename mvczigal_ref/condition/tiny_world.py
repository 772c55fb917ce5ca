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
    """Describe every sample by measuring it: K = G, one caption per sample.

    Equal samples give equal captions, and a sample that shows its prompt gets the prompt as its
    caption.

    Args:
        instructions: Words that captions may be asked to add, one drawn per caption; some of
            ``INSTRUCTIONS``. ``plain`` alone gives sentences that the world's judges know.
        max_error: Largest error of a match, relative to the render's energy [1]; positive.
        on_refusal: Whether an error or the prompt stands in for a sample that cannot be
            described.

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
        """Return K: one caption per sample."""
        return group_size

    def __call__(
        self, prompts: Sequence[str], images: GroupImages | None = None, *, seed: int
    ) -> list[tuple[Caption, ...]]:
        """Make the captions; the texts of the prompts do not enter them.

        Args:
            prompts: Texts that the samples were made for.
            images: One group of samples per prompt. Of several views the one with the least
                error is described, without a side.
            seed: Seed of the draws.

        Returns:
            One caption per sample, in the samples' order. A sample that does not have the word
            asked for gets a plain caption with the instruction ``plain``.

        Raises:
            CaptionError: If a sample cannot be described and ``on_refusal`` is ``raise``.
            ValueError: If there are not as many groups as prompts, or images are not square.
        """
        groups = checked_groups(prompts, images)
        descriptions = iter(describe_each(groups.flatten(0, 2), max_error=self._max_error))
        _, samples, views = groups.shape[:3]
        return [
            tuple(
                self._caption(prompt, index, list(islice(descriptions, views)), seed)
                for index in range(samples)
            )
            for prompt in prompts
        ]

    def _caption(
        self, prompt: str, index: int, views: Sequence[Description | CaptionError], seed: int
    ) -> Caption:
        instruction = stream(seed, prompt, index).choice(self._instructions)
        described = [view for view in views if isinstance(view, Description)]
        if not described:
            if self._on_refusal == "prompt":
                return Caption(caption=prompt, instruction=NO_INSTRUCTION, sample=index)
            msg = f"no caption for the prompt {prompt!r}, sample {index}: {views[-1]}"
            raise CaptionError(msg)
        best = min(described, key=lambda description: description.error)
        if instruction == "side" and len(views) > 1:
            instruction = "plain"
        text = best.caption(instruction)
        instruction = "plain" if text == str(best.prompt) else instruction
        return Caption(caption=text, instruction=instruction, sample=index)


WORDS: Final = {
    "body_colour": COLOURS,
    "shape": SHAPES,
    "part_colour": COLOURS,
    "part": PARTS,
}
"""Choices for each word of a prompt, by the word's name."""


def one_word_edits(prompt: Prompt) -> list[tuple[str, Prompt]]:
    """List the prompts that differ in one word, each with that word's name.

    Args:
        prompt: Sentence of the grammar.

    Returns:
        Pairs in a fixed order; the two colours always differ.

    Examples:
        >>> from mvczigal_ref.tiny_world.grammar import parse
        >>> edits = one_word_edits(parse("a red cube with a white nose"))
        >>> len(edits), str(edits[-1][1])
        (12, 'a red cube with a white fin')
    """
    edits = []
    for name, choices in WORDS.items():
        for word in choices:
            edited = replace(prompt, **{name: word})
            if edited != prompt and edited.body_colour != edited.part_colour:
                edits.append((name, edited))
    return edits


class GrammarEditor:
    """Change one word of the prompt for every caption; images are ignored.

    Source:
        The offline enhancer of arXiv:2603.12648 (MV-GRPO) rewrites prompts by a language model.
        Of its edits, only replacing a word stays within the grammar that the world's judges read.

    Args:
        num_captions: K, distinct for each prompt [1]; at least 1.
        words: Names of the words that may be changed, some of ``WORDS``.

    Raises:
        ValueError: If a word is unknown, none is given, or ``num_captions`` is below 1 or above
            the number of possible edits.

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
        most = len(self._edits("a red cube with a white nose"))  # as many for every prompt
        if not 1 <= num_captions <= most:
            msg = f"`num_captions` must be from 1 to {most}; got {num_captions}."
            raise ValueError(msg)
        self._num_captions = num_captions

    def num_captions(self, group_size: int) -> int:
        """Return K, which does not depend on the size of the group."""
        del group_size
        return self._num_captions

    def __call__(
        self, prompts: Sequence[str], images: GroupImages | None = None, *, seed: int
    ) -> list[tuple[Caption, ...]]:
        """Draw the edits.

        Args:
            prompts: Sentences of the grammar.
            images: Ignored.
            seed: Seed of the draw.

        Returns:
            K captions per prompt, each named by the word that it changes.

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
