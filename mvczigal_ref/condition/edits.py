"""Prompts of the tiny world with one word changed: what a language model does, in closed form."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from mvczigal_ref.condition.protocol import Caption, GroupImages, stream
from mvczigal_ref.world.grammar import COLOURS, PARTS, SHAPES, Prompt, parse

__all__ = ["WORDS", "GrammarEditor", "one_word_edits"]

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
        >>> from mvczigal_ref.world.grammar import parse
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
