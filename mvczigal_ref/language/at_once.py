"""Several questions at once: in threads that wait for a server, or in one call of a network."""

from collections.abc import Iterator, Sequence
from functools import partial

from mvczigal_ref.language.chat import ChatAnswerError, ChatEndpoint, ChatRefusedError
from mvczigal_ref.language.protocol import BatchLanguageModel, LanguageModel, Question
from mvczigal_ref.language.threads import in_order

__all__ = ["ask_at_once"]


def ask_at_once(
    model: LanguageModel, questions: Sequence[Question], *, at_once: int
) -> Iterator[str | ChatAnswerError]:
    """Ask a model questions, some of them at once.

    Args:
        model: Model that is asked: in several threads, or where it can in one call. A model that
            is neither served nor takes questions together does not read ``more_tokens``.
        questions: Questions, independent of each other.
        at_once: Questions at once [1].

    Yields:
        Answers in the order of the questions, or the reason why there is none.

    Raises:
        ChatRefusedError: If a question is not taken, as no other would be.
        ValueError: If ``at_once`` is below 1.

    Examples:
        >>> class Echo:
        ...     def ask(self, text, images=(), *, seed=None):
        ...         return text
        >>> list(ask_at_once(Echo(), [Question(text="a"), Question(text="b")], at_once=2))
        ['a', 'b']
    """
    if at_once > 0 and isinstance(model, BatchLanguageModel):
        for first in range(0, len(questions), at_once):
            yield from model.ask_all(questions[first : first + at_once])
    else:
        yield from in_order(partial(_answer, model), questions, workers=at_once)


def _answer(model: LanguageModel, question: Question) -> str | ChatAnswerError:
    """Ask one question, in any thread."""
    if isinstance(model, ChatEndpoint):
        model = model.longer(question.more_tokens)
    try:
        return model.ask(question.text, question.images, seed=question.seed)
    except ChatRefusedError:
        raise
    except ChatAnswerError as error:
        return error
