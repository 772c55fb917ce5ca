"""Ask a language model until it gives a caption that may be used, a bounded number of times."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from mvczigal_ref.condition.captions import CaptionRules
from mvczigal_ref.condition.memory import CaptionMemory
from mvczigal_ref.condition.protocol import NO_INSTRUCTION, Caption, CaptionError, OnRefusal
from mvczigal_ref.language.chat import ChatAnswerError, ChatRefusedError
from mvczigal_ref.language.protocol import LanguageModel

__all__ = ["Asker", "checked_prompts"]

_SHOWN = 8  # earlier captions that a question lists


@dataclass(frozen=True, kw_only=True, slots=True)
class Asker:
    """The way in which captions are asked for, with or without images."""

    model: LanguageModel
    """The language model that is asked, local or served."""

    instructions: Mapping[str, str]
    """Instructions by name; each question draws one."""

    question: Callable[[str, str], str]
    """Writes a question from a prompt and the text of an instruction."""

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

    def caption(
        self,
        prompt: str,
        *,
        memory: CaptionMemory,
        draws: random.Random,
        images: Sequence[Tensor] = (),
        sample: int | None = None,
    ) -> Caption:
        """Ask until an answer keeps the rules and is new to the prompt, and remember it.

        Every question draws its instruction and its seed anew, and says why the last answer
        was refused.

        Args:
            prompt: Text that the caption varies.
            memory: Captions that the prompt has had.
            draws: Draws instructions and the seeds of answers.
            images: Views of the sample to describe, if any.
            sample: Index of that sample, for the record.

        Returns:
            The caption; the prompt itself if all answers were refused and ``on_refusal`` is
            ``prompt``.

        Raises:
            CaptionError: If all answers were refused and ``on_refusal`` is ``raise``.
            ChatRefusedError: If the endpoint does not take the question; ``on_refusal`` does not
                matter.
        """
        refusal = ""
        for attempt in range(self.attempts):
            name = draws.choice(list(self.instructions))
            parts = [self.question(prompt, self.instructions[name])]
            if earlier := memory.earlier(prompt)[-_SHOWN:]:
                parts.append("These exist already; say none of them again:")
                parts += [f"- {caption}" for caption in earlier]
            if attempt:
                parts.append(f"Your answer number {attempt} was refused: {refusal}.")
            seed = draws.getrandbits(31)
            try:
                text = self.rules.read(self.model.ask("\n".join(parts), images, seed=seed))
                memory.remember(prompt, text)
            except ChatRefusedError:  # no other question would be taken
                raise
            except (CaptionError, ChatAnswerError) as error:
                refusal = str(error).rstrip(".")
                continue
            return Caption(caption=text, instruction=name, sample=sample)
        if self.on_refusal == "prompt":
            return Caption(caption=prompt, instruction=NO_INSTRUCTION, sample=sample)
        place = "" if sample is None else f", sample {sample}"
        msg = (
            f"no caption for the prompt {prompt!r}{place}: {self.attempts} answers were refused, "
            f'the last because {refusal}. Raise `attempts`, or let `on_refusal="prompt"` keep the '
            "prompt."
        )
        raise CaptionError(msg)


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
