"""Captions that a language model makes from the prompt alone, by editing it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from mvczigal_ref.condition.asking import Asker, Subject, checked_prompts
from mvczigal_ref.condition.captions import CaptionRules
from mvczigal_ref.condition.memory import CaptionMemory
from mvczigal_ref.condition.protocol import Caption, GroupImages, OnRefusal, stream
from mvczigal_ref.language.protocol import LanguageModel

__all__ = ["EDITS", "OfflineEnhancer"]

EDITS: Final[Mapping[str, str]] = {
    "add": (
        "Add one visual detail that the caption leaves open, such as light, place, material, "
        "weather or viewpoint. Keep all that it says."
    ),
    "delete": (
        "Leave out one detail that the main subject can do without. Keep the main subject and "
        "all other details, and add nothing."
    ),
    "rewrite": (
        "Say the same scene in other words and another order. Keep every subject, number, "
        "colour and relation; add nothing and leave nothing out."
    ),
}
"""Edits that a question may ask for, by name."""


def _question(prompt: str, instruction: str) -> str:
    """Word the question; the wording is this package's own."""
    return (
        "You vary captions for a text-to-image model.\n"
        f"{instruction}\n"
        "Answer with the new caption alone, in one paragraph and in the caption's language: no "
        "introduction, no quotes, no remarks.\n"
        f"Caption: {prompt}"
    )


class OfflineEnhancer:
    """Vary each prompt K times, by an edit drawn at random each time.

    Every caption of a prompt differs from the prompt and from all that its memory holds, up to
    case, punctuation and blanks. Needs no samples, so it can run before training, with
    :func:`~mvczigal_ref.condition.stored.enhance_prompts`.

    Source:
        arXiv:2603.12648 (MV-GRPO), its enhancer with a language model, from its words: the
        questions, bounds and refusals are ours.

    Args:
        model: Answers the questions.
        num_captions: K [1]; at least 1.
        edits: Instructions by name; each question draws one.
        rules: Bounds on every caption.
        attempts: Most questions that one caption may take [1].
        on_refusal: Whether an error or the prompt stands in where every answer for a caption
            was refused.
        memory: Captions served before; new ones are added. If None, each call starts anew, and
            equal calls give equal captions.

    Examples:
        >>> class Parrot:
        ...     def ask(self, text, images=(), *, seed=None):
        ...         return f"a cat in light number {seed}"
        >>> enhancer = OfflineEnhancer(Parrot(), num_captions=2)
        >>> [len(captions) for captions in enhancer(["a cat", "a dog"], seed=0)]
        [2, 2]
    """

    needs_images: bool = False

    def __init__(
        self,
        model: LanguageModel,
        *,
        num_captions: int,
        edits: Mapping[str, str] = EDITS,
        rules: CaptionRules | None = None,
        attempts: int = 6,
        on_refusal: OnRefusal = "raise",
        memory: CaptionMemory | None = None,
    ) -> None:
        if num_captions < 1:
            msg = f"`num_captions` must be at least 1; got {num_captions}."
            raise ValueError(msg)
        self._num_captions = num_captions
        self._memory = memory
        self._asker = Asker(
            model=model,
            instructions=edits,
            question=_question,
            rules=rules or CaptionRules(),
            attempts=attempts,
            on_refusal=on_refusal,
        )

    @property
    def memory(self) -> CaptionMemory | None:
        """Captions served before; None if there is no memory."""
        return self._memory

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that decide the captions, besides model and seed, as JSON values."""
        return {
            "num_captions": self._num_captions,
            "edits": dict(self._asker.instructions),
            "rules": asdict(self._asker.rules),
            "attempts": self._asker.attempts,
            "on_refusal": self._asker.on_refusal,
        }

    def num_captions(self, group_size: int) -> int:
        """Return K, which does not depend on the size of the group."""
        del group_size
        return self._num_captions

    def __call__(
        self, prompts: Sequence[str], images: GroupImages | None = None, *, seed: int
    ) -> list[tuple[Caption, ...]]:
        """Make the captions; images are ignored.

        Args:
            prompts: Texts to vary.
            images: Ignored.
            seed: Seed of the draws and of the answers.

        Returns:
            K captions per prompt.

        Raises:
            CaptionError: If a caption could not be made and ``on_refusal`` is ``raise``.
            ValueError: If a prompt is blank.
        """
        del images
        captions = []
        for prompt in checked_prompts(prompts):
            memory = CaptionMemory() if self._memory is None else self._memory
            row: list[Caption] = []
            for k in range(self._num_captions):  # one by one, as each question lists the others
                subject = Subject(prompt=prompt, memory=memory, draws=stream(seed, prompt, k))
                row += self._asker.captions([subject])
            captions.append(tuple(row))
        return captions
