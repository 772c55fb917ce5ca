"""Captions of the tiny world that say what a sample shows, without a language model."""

from collections.abc import Sequence
from itertools import islice

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

__all__ = ["GrammarEnhancer"]


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
