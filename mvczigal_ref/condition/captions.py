"""Read a model's answer as one caption, or say why it is not one."""

import re
import unicodedata
from dataclasses import dataclass

from mvczigal_ref.condition.protocol import CaptionError

__all__ = ["CaptionRules", "normalised", "without_thoughts"]

_THINK = re.compile(r"</?think>", re.IGNORECASE)
_QUOTES = {'"': '"', "'": "'", "`": "`", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb"}
_LABEL = r"(?:captions?|prompts?|descriptions?|answers?|outputs?|rewrites?|versions?|notes?)"
# Text that speaks of the caption, or to the asker, instead of being the caption.
_META = re.compile(
    rf"""
    ^\W*(?:
        here(?:['\u2019]s|\s+(?:is|are))\b
        | (?:sure|certainly|absolutely|of\ course|okay|ok|yes|no|understood)\s*[,.:;!]
        | (?:[a-z]+\s+){{0,4}}{_LABEL}\s*\**\s*:
        | i(?:['\u2019](?:m|ve|ll|d)|\ (?:am|cannot|can|have|will))\b
        | (?:sorry|unfortunately|apologies|as\ an\ ai)\b
    )
    | \bas\ an\ ai\b | \blanguage\ model\b | \blet\ me\ know\b
    | \bi(?:\ have|['\u2019]ve)?\ (?:added|removed|deleted|rewrote|rewritten|changed|kept)\b
    | \b(?:the|this|your)\ (?:original|rewritten|revised|new)\ {_LABEL}\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
# Any tag may be a token of its own to some model, which refuses a later question that quotes it.
_MARKUP = re.compile(r"<[|\uff5c]|[|\uff5c]>|</?\w[\w-]*(?:\s*/)?>|\[/?INST\]|```", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?]+[\"'\u201d\u2019)]*(?=\s|$)|[\u3002\uff01\uff1f]+")
_LOOP = re.compile(r"(?<!\w)(\w.{0,60}?)(?:[\s,.;:!?]+\1(?!\w)){3}", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionRules:
    """Bounds on a caption; a caption that breaks one is refused, never cut to fit."""

    max_characters: int = 600
    """Most characters of a caption [1]."""

    max_sentences: int = 6
    """Most sentences of a caption [1]."""

    def __post_init__(self) -> None:
        for name in ("max_characters", "max_sentences"):
            if getattr(self, name) < 1:
                msg = f"`{name}` must be at least 1; got {getattr(self, name)}."
                raise ValueError(msg)

    def read(self, answer: str) -> str:
        """Take the caption out of an answer.

        Thoughts between ``<think>`` tags, quotes or asterisks around the whole, and outer blanks
        are removed. Nothing else is mended.

        Args:
            answer: Text that a language model gave.

        Returns:
            One line of text.

        Raises:
            CaptionError: If nothing is left, the thoughts do not end, or the text has more than one
                paragraph, a character that does not print or a model's own markup, speaks of the
                caption, repeats itself four times, or is longer than the bounds.

        Examples:
            >>> CaptionRules().read('<think>Add light.</think> "A cat at dusk."')
            'A cat at dusk.'
            >>> CaptionRules().read("Here is the caption: a cat")
            Traceback (most recent call last):
            mvczigal_ref.condition.protocol.CaptionError: it speaks of the caption ...
        """
        text = _unwrapped(without_thoughts(answer))
        if not any(letter.isalnum() for letter in text):
            raise CaptionError("it is empty")
        if len(text) > self.max_characters:
            msg = f"it has {len(text)} characters; at most {self.max_characters} are allowed"
            raise CaptionError(msg)
        if len(text.splitlines()) > 1:
            raise CaptionError("it has more than one line; one paragraph is allowed")
        text = " ".join(text.split())
        if not text.isprintable() or "\ufffd" in text:
            raise CaptionError("it holds a character that does not print")
        if _MARKUP.search(text):
            raise CaptionError("it holds a language model's own markup")
        if _META.search(text):
            raise CaptionError("it speaks of the caption or to the asker instead of describing")
        if _LOOP.search(text):
            raise CaptionError("it says the same four times")
        sentences = len([part for part in _SENTENCE_END.split(text) if part.strip()])
        if sentences > self.max_sentences:
            msg = f"it has {sentences} sentences; at most {self.max_sentences} are allowed"
            raise CaptionError(msg)
        return text


def normalised(caption: str) -> str:
    """Return the form shared by captions that differ only in case, punctuation or blanks.

    Args:
        caption: Any text.

    Returns:
        Letters, marks and digits of the text, in lower case, with single blanks between words.

    Examples:
        >>> normalised("A cat,  at DUSK.") == normalised("a cat at dusk")
        True
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", caption).casefold())
    letters = (c if unicodedata.category(c)[0] in "LMN" else " " for c in folded)
    return " ".join("".join(letters).split())


def without_thoughts(answer: str) -> str:
    """Drop the thoughts that a model wrote before its answer.

    Args:
        answer: Text that a language model gave.

    Returns:
        Text after the last ``</think>``, if any.

    Raises:
        CaptionError: If the thoughts do not end.

    Examples:
        >>> without_thoughts("<think>Add light.</think> A cat at dusk.")
        ' A cat at dusk.'
    """
    texts: list[str] = []
    start, thinking = 0, False
    for tag in _THINK.finditer(answer):
        if tag[0].startswith("</"):
            if not thinking:  # some templates open the thoughts themselves
                texts.clear()
            start, thinking = tag.end(), False
        elif not thinking:
            texts.append(answer[start : tag.start()])
            thinking = True
    if thinking:
        raise CaptionError("its thoughts do not end; allow more tokens, or turn thinking off")
    return "".join([*texts, answer[start:]])


def _unwrapped(text: str) -> str:
    """Remove every pair of quotes or asterisks that encloses the whole text."""
    while True:
        text = text.strip()
        inner = text[1:-1]
        if len(text) > 4 and text.startswith("**") and text.endswith("**"):
            inner = text[2:-2]
            closing = "**"
        elif len(text) > 1 and _QUOTES.get(text[0]) == text[-1]:
            closing = text[-1]
        else:
            return text
        # In `"A" and "B"` the outer quotes are not a pair.
        if closing in inner and not _apostrophes_alone(inner, closing):
            return text
        text = inner


def _apostrophes_alone(text: str, quote: str) -> bool:
    """Tell whether this quote occurs only inside words, as in "it's"."""
    return not re.search(rf"(?<!\w){re.escape(quote)}|{re.escape(quote)}(?!\w)", text)
