"""Ask a language model until it gives a caption that may be used, a bounded number of times."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from mvczigal_ref.condition.captions import CaptionRules
from mvczigal_ref.condition.memory import CaptionMemory
from mvczigal_ref.condition.protocol import NO_INSTRUCTION, Caption, CaptionError, OnRefusal
from mvczigal_ref.condition.several_samples import (
    CAPTION_TOKENS,
    answer_parts,
    groups,
    refusal_of_all,
)
from mvczigal_ref.language.at_once import ask_at_once
from mvczigal_ref.language.chat import ChatAnswerError, ChatRefusedError
from mvczigal_ref.language.protocol import LanguageModel, Question

__all__ = ["Asker", "Subject", "checked_prompts"]

_SHOWN = 8  # earlier captions that a question lists


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """Prompt, or one of its samples, that a caption is asked for."""

    prompt: str
    """Text that the caption varies."""

    memory: CaptionMemory
    """Captions that the prompt has had."""

    draws: random.Random
    """Draws instructions and the seeds of answers."""

    images: Sequence[Tensor] = ()
    """Views of the sample to describe, if any."""

    sample: int | None = None
    """Index of that sample, for the record."""

    def __str__(self) -> str:
        """Name prompt and sample, for a message."""
        return repr(self.prompt) + ("" if self.sample is None else f", sample {self.sample}")


class _Drawn(NamedTuple):
    """Subject with what was drawn for it."""

    subject: Subject
    instruction: str
    seed: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Asker:
    """The way in which captions are asked for, with or without images."""

    model: LanguageModel
    """The language model that is asked, local or served."""

    instructions: Mapping[str, str]
    """Instructions by name; each question draws one."""

    question: Callable[[str, str], str]
    """Writes a question from a prompt and the text of an instruction."""

    several: Callable[[str, Sequence[str], int], str] | None = None
    """Writes a question about several samples of a prompt, from the text of an instruction for each
    and the number of views of one; None asks about each by itself."""

    rules: CaptionRules = field(default_factory=CaptionRules)
    """Bounds that every caption must keep."""

    attempts: int = 6
    """Most questions that one caption may take [1]; at least 1."""

    on_refusal: OnRefusal = "raise"
    """Whether an error or the prompt stands in where every answer was refused."""

    def __post_init__(self) -> None:
        if not self.instructions:
            raise ValueError("`instructions` must hold at least one; got none.")
        if NO_INSTRUCTION in self.instructions:
            msg = f"`instructions` must not be named {NO_INSTRUCTION!r}; choose another name."
            raise ValueError(msg)
        if self.attempts < 1:
            msg = f"`attempts` must be at least 1; got {self.attempts}."
            raise ValueError(msg)

    def captions(
        self, subjects: Sequence[Subject], *, workers: int = 1, per_question: int = 1
    ) -> list[Caption]:
        """Ask in rounds until each subject has a caption that is new, and remember these.

        A round asks once for every caption that is still missing. Its answers are read in the
        order of the subjects, so captions are the same for any number of workers, to the rounding
        of a model in this process, which is asked that many questions in one call. Every question
        draws its instruction and its seed anew, lists captions of earlier rounds, and says why the
        last answer was refused. A question about several samples draws an instruction for each,
        and an answer with another number of captions is refused for all of them.

        Args:
            subjects: Subjects, one per caption; those of a prompt share a memory.
            workers: Questions asked at once [1].
            per_question: Most subjects of one question [1], all of one prompt.

        Returns:
            One caption per subject; the prompt itself if all its answers were refused and
            ``on_refusal`` is ``prompt``.

        Raises:
            CaptionError: If all answers were refused and ``on_refusal`` is ``raise``.
            ChatRefusedError: If the endpoint does not take a question; ``on_refusal`` does not
                matter.
        """
        captions = [
            Caption(caption=s.prompt, instruction=NO_INSTRUCTION, sample=s.sample) for s in subjects
        ]
        refusals = dict.fromkeys(range(len(subjects)), "")
        for attempt in range(self.attempts):
            prompts = {k: (id(subjects[k].memory), subjects[k].prompt) for k in refusals}
            asked = groups(prompts, per_question if self.several else 1)
            drawn = [self._drawn([subjects[k] for k in group]) for group in asked]
            questions = [
                self._question(draws, attempt, [refusals[k] for k in group])
                for group, draws in zip(asked, drawn, strict=True)
            ]
            answers = self._answers([subjects[group[0]] for group in asked], questions, workers)
            for group, draws, answer in zip(asked, drawn, answers, strict=True):
                parts = answer_parts(answer, len(group))
                for index, draw, part in zip(group, draws, parts, strict=True):
                    try:
                        captions[index] = self._caption(draw, part)
                        del refusals[index]
                    except (CaptionError, ChatAnswerError) as error:
                        refusals[index] = str(error).rstrip(".")
        if refusals and self.on_refusal == "raise":
            index, refusal = next(iter(refusals.items()))
            msg = (
                f"no caption for the prompt {subjects[index]}: {self.attempts} answers were "
                f"refused, the last because {refusal}. Raise `attempts`, or let "
                '`on_refusal="prompt"` keep the prompt.'
            )
            raise CaptionError(msg)
        return captions

    def _drawn(self, subjects: Sequence[Subject]) -> list[_Drawn]:
        """Draw the name of an instruction and a seed for each subject."""
        names = list(self.instructions)
        return [_Drawn(s, s.draws.choice(names), s.draws.getrandbits(31)) for s in subjects]

    def _caption(self, drawn: _Drawn, text: str | ChatAnswerError | CaptionError) -> Caption:
        """Read a caption that is new, and remember it."""
        if not isinstance(text, str):
            raise text
        subject, caption = drawn.subject, self.rules.read(text)
        subject.memory.remember(subject.prompt, caption)
        return Caption(caption=caption, instruction=drawn.instruction, sample=subject.sample)

    def _question(self, drawn: Sequence[_Drawn], attempt: int, refusals: Sequence[str]) -> Question:
        """Write a question about one or several subjects of a prompt."""
        subject = drawn[0].subject
        instructions = [self.instructions[each.instruction] for each in drawn]
        if self.several is None or len(drawn) == 1:
            parts = [self.question(subject.prompt, *instructions)]
        else:
            parts = [self.several(subject.prompt, instructions, len(subject.images))]
        if earlier := subject.memory.earlier(subject.prompt)[-_SHOWN:]:
            parts.append("These exist already; say none of them again:")
            parts += [f"- {caption}" for caption in earlier]
        if attempt:
            parts.append(f"Your answer number {attempt} was refused: {refusal_of_all(refusals)}.")
        images = tuple(image for each in drawn for image in each.subject.images)
        return Question(
            text="\n".join(parts), images=images, seed=drawn[0].seed,
            more_tokens=CAPTION_TOKENS * (len(drawn) - 1),
        )  # fmt: skip

    def _answers(
        self, subjects: Sequence[Subject], questions: Sequence[Question], workers: int
    ) -> Iterator[str | ChatAnswerError]:
        """Ask all questions, and name the first subject of one that is not taken."""
        subject = iter(subjects)
        answers = ask_at_once(self.model, questions, at_once=workers)
        try:
            for answer in answers:
                next(subject)
                yield answer
        except ChatRefusedError as error:  # no other question would be taken
            msg = f"no caption for the prompt {next(subject)}: {error}"
            raise ChatRefusedError(msg) from error


def checked_prompts(prompts: Sequence[str]) -> Sequence[str]:
    """Return the prompts if they can be asked about and stored; refuse others."""
    if isinstance(prompts, str):
        msg = f"`prompts` must be a sequence of texts; got the text {prompts!r}. Give a list."
        raise ValueError(msg)  # noqa: TRY004 - a setting of the wrong form, as elsewhere
    for index, prompt in enumerate(prompts):
        half = any("\ud800" <= letter <= "\udfff" for letter in prompt)
        if not prompt.strip() or half:
            fault = "half a surrogate pair, which no file holds" if half else "blanks alone"
            raise ValueError(f"`prompts` must hold texts; number {index} holds {fault}.")
    return prompts
