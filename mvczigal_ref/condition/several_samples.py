"""Several samples of a prompt in one question: groups of them, and their captions in an answer."""

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Final

from mvczigal_ref.condition.captions import without_thoughts
from mvczigal_ref.condition.protocol import CaptionError
from mvczigal_ref.language.chat import ChatAnswerError

__all__ = ["CAPTION_TOKENS", "answer_parts", "caption_list", "groups", "refusal_of_all"]

CAPTION_TOKENS: Final = 512
"""Longest answer about one sample, and what each further one adds [tokens]."""


def groups(keys: Mapping[int, Hashable], size: int) -> list[list[int]]:
    """Divide indices into groups of one key each.

    Args:
        keys: Key of each index; only indices of equal keys share a group.
        size: Most indices of a group [1]; positive.

    Returns:
        Groups in the order of their first index's key, and of the indices within a key.

    Examples:
        >>> groups({0: "a cat", 1: "a cat", 3: "a dog", 4: "a cat"}, 2)
        [[0, 1], [4], [3]]
    """
    if size == 1:
        return [[index] for index in keys]
    of_key: dict[Hashable, list[int]] = {}
    for index, key in keys.items():
        of_key.setdefault(key, []).append(index)
    return [
        indices[first : first + size]
        for indices in of_key.values()
        for first in range(0, len(indices), size)
    ]


def answer_parts(
    answer: str | ChatAnswerError, count: int
) -> Sequence[str | ChatAnswerError | CaptionError]:
    """Divide an answer among the samples that it is about.

    Args:
        answer: Answer, or the reason why there is none.
        count: Samples that were asked about [1].

    Returns:
        One text per sample, or the reason why there is none. An answer about one sample is its
        text; one about several that is no list of so many texts is refused for all of them.

    Examples:
        >>> answer_parts("a cat at dusk", 1), answer_parts('["one", "two"]', 2)
        (['a cat at dusk'], ['one', 'two'])
    """
    if count == 1 or isinstance(answer, ChatAnswerError):
        return [answer] * count
    try:
        return caption_list(answer, count)
    except CaptionError as error:
        return [error] * count


def caption_list(answer: str, count: int) -> list[str]:
    """Take the captions of several samples out of one answer, for `CaptionRules` to read.

    Args:
        answer: Text that a language model gave: a JSON list of texts, after its thoughts and
            between Markdown's fences or not.
        count: Samples that were asked about [1].

    Returns:
        One text per sample, in the order of the list.

    Raises:
        CaptionError: If the answer is no such list, or holds another number of texts.

    Examples:
        >>> caption_list('["a cat at dusk"]', 2)
        Traceback (most recent call last):
        mvczigal_ref.condition.protocol.CaptionError: it holds 1 caption for 2 samples
    """
    text = _unfenced(without_thoughts(answer).strip())
    try:
        texts = json.loads(text)
    except (ValueError, RecursionError):
        texts = None
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise CaptionError("it is no JSON list of texts")
    if len(texts) != count:
        plural = "" if len(texts) == 1 else "s"
        raise CaptionError(f"it holds {len(texts)} caption{plural} for {count} samples")
    return texts


def refusal_of_all(refusals: Sequence[str]) -> str:
    """Put the reasons why captions were refused into one sentence.

    Args:
        refusals: Reason for each sample of a question.

    Returns:
        The reason, where it is one; else the samples by number with their reasons.

    Examples:
        >>> refusal_of_all(["it is empty"] * 2), refusal_of_all(["it is empty", "it repeats"])
        ('it is empty', 'of sample 1, it is empty; of sample 2, it repeats')
    """
    if len(set(refusals)) == 1:
        return refusals[0]
    return "; ".join(f"of sample {k}, {reason}" for k, reason in enumerate(refusals, 1))


def _unfenced(text: str) -> str:
    """Take Markdown's fences off; no regular expression, which would take long for blanks."""
    first, _, rest = text.partition("\n")
    if first.rstrip().lower() in ("```", "```json") and rest.endswith("```"):
        return rest.removesuffix("```")
    return text
