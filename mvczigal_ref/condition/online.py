"""Captions that a vision-language model makes by describing each sample."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

from mvczigal_ref.condition.asking import Asker, Subject, checked_prompts
from mvczigal_ref.condition.captions import CaptionRules
from mvczigal_ref.condition.memory import CaptionMemory
from mvczigal_ref.condition.protocol import Caption, GroupImages, OnRefusal, stream
from mvczigal_ref.language.protocol import LanguageModel

__all__ = ["ASPECTS", "OnlineEnhancer", "checked_groups"]

ASPECTS: Final[Mapping[str, str]] = {
    "lighting": "the light: where it comes from, how hard it is, its colour",
    "composition": "the composition: where things stand, how they are framed",
    "style": "the style: medium, technique, how finished it looks",
    "motion": "motion: what moves or rests, gestures and poses",
    "colour": "the colours: which prevail, how they contrast",
    "background": "the background: what lies behind and around the subject",
    "texture": "materials and surfaces: smooth, rough, matt, glossy",
    "mood": "the mood that the scene has",
    "viewpoint": "the viewpoint: distance, height and angle of the camera",
}
"""Aspects that a description may be asked to add, by name."""


def _question(prompt: str, aspect: str) -> str:
    """Word the question; the wording is this package's own."""
    return (
        "What you see was made for the caption below. Write a new caption that describes what "
        "is really there: follow the caption where it is right, and correct it where it is "
        f"wrong. Add exactly one thing that it leaves open, about {aspect}.\n"
        "Answer with the new caption alone, in one paragraph of at most three sentences and in "
        "the caption's language: no introduction, no quotes, no remarks.\n"
        f"Caption: {prompt}"
    )


def _question_of_several(prompt: str, aspects: Sequence[str], views: int) -> str:
    """Word a question about several samples of a prompt, each of so many views."""
    count = len(aspects)
    each = "image" if views == 1 else f"group of {views} images, one after the other,"
    listed = "\n".join(f"{k}. {aspect}" for k, aspect in enumerate(aspects, 1))
    return (
        f"What you see are {count} samples, each {each} made for the caption below. Write a new "
        "caption for each sample that describes what is really there, in this sample and not in "
        "the others: follow the caption where it is right, and correct it where it is wrong. Add "
        f"exactly one thing that it leaves open, about this for each sample:\n{listed}\n"
        f"Answer with a JSON list of {count} texts and nothing else, in the order of the samples: "
        "of each the new caption alone, in one paragraph of at most three sentences and in the "
        "caption's language, no two alike.\n"
        f"Caption: {prompt}"
    )


class OnlineEnhancer:
    """Describe every sample anew with one aspect added, drawn at random: K = G.

    A group's captions differ from the prompt and from each other, up to case, punctuation and
    blanks. All views of a sample are shown together. A first round asks about all samples; where
    an answer is refused, or repeats that of an earlier sample, further rounds follow.

    Source:
        arXiv:2603.12648 (MV-GRPO), its enhancer with a vision-language model, from its words:
        the questions, bounds and refusals are ours, and so are some aspects.

    Args:
        model: Answers questions about images.
        aspects: Aspects that a question may ask to add, by name.
        rules: Bounds on every caption.
        attempts: Most questions that one caption may take [1].
        on_refusal: Whether an error or the prompt stands in where every answer for a caption
            was refused. ``prompt`` lets a long training outlive one bad answer.
        workers: Questions asked at once [1]: so many requests to a served model, or so many in
            one call of a local one. Captions are the same for any number, to the latter's rounding.
        samples_per_question: Most samples of a prompt that a question asks about, with a caption
            for each [1]. Samples that are shown together may change each other's captions.

    Examples:
        >>> import torch
        >>> class Witness:
        ...     def ask(self, text, images=(), *, seed=None):
        ...         return f"a cat under lamp number {seed}"
        >>> captions = OnlineEnhancer(Witness())(["a cat"], torch.zeros(1, 3, 1, 3, 8, 8), seed=0)
        >>> [caption.sample for caption in captions[0]]
        [0, 1, 2]
    """

    needs_images: bool = True

    def __init__(
        self,
        model: LanguageModel,
        *,
        aspects: Mapping[str, str] = ASPECTS,
        rules: CaptionRules | None = None,
        attempts: int = 6,
        on_refusal: OnRefusal = "raise",
        workers: int = 1,
        samples_per_question: int = 1,
    ) -> None:
        counts = {"workers": workers, "samples_per_question": samples_per_question}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1; got {value}.")
        self._workers, self._per_question = workers, samples_per_question
        self._asker = Asker(
            model=model,
            instructions=aspects,
            question=_question,
            several=_question_of_several,
            rules=rules or CaptionRules(),
            attempts=attempts,
            on_refusal=on_refusal,
        )

    def num_captions(self, group_size: int) -> int:
        """Return K: one caption per sample."""
        return group_size

    def __call__(
        self, prompts: Sequence[str], images: GroupImages | None = None, *, seed: int
    ) -> list[tuple[Caption, ...]]:
        """Make the captions.

        Args:
            prompts: Texts that the samples were made for.
            images: One group of samples per prompt.
            seed: Seed of the draws and of the answers.

        Returns:
            One caption per sample, in the samples' order.

        Raises:
            CaptionError: If a caption could not be made and ``on_refusal`` is ``raise``.
            ValueError: If a prompt is blank, or there are not as many groups as prompts.
        """
        subjects, groups = [], checked_groups(checked_prompts(prompts), images)
        for prompt, samples in zip(prompts, groups, strict=True):
            memory = CaptionMemory()
            subjects += [
                Subject(
                    prompt=prompt,
                    memory=memory,
                    draws=stream(seed, prompt, index),
                    images=tuple(views),
                    sample=index,
                )
                for index, views in enumerate(samples)
            ]
        captions = iter(
            self._asker.captions(subjects, workers=self._workers, per_question=self._per_question)
        )
        return [tuple(islice(captions, groups.shape[1])) for _ in prompts]


def checked_groups(prompts: Sequence[str], images: GroupImages | None) -> GroupImages:
    """Return the images if there is one group per prompt; refuse others."""
    if images is None or images.shape[0] != len(prompts) or 0 in images.shape[1:]:
        got = "no images" if images is None else f"shape {tuple(images.shape)}"
        msg = (
            f"`images` must hold one group per prompt, {len(prompts)}, each of at least one sample "
            f"and view; got {got}."
        )
        raise ValueError(msg)
    return images
