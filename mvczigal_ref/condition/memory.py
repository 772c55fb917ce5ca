"""Memory of the captions that each prompt has had, so that none is served twice."""

from collections.abc import Iterable, Mapping

from mvczigal_ref.condition.captions import normalised
from mvczigal_ref.condition.protocol import CaptionError

__all__ = ["CaptionMemory"]


class CaptionMemory:
    """The captions that each prompt has had, in order; the prompt itself counts as one.

    Each prompt has its own memory: a caption of one prompt is new to another, so the order of
    prompts does not matter.

    Args:
        earlier: Captions to remember from the start, by prompt.

    Examples:
        >>> memory = CaptionMemory({"a cat": ["A cat at dusk."]})
        >>> memory.knows("a cat", "a cat, at dusk"), memory.knows("a dog", "a cat at dusk")
        (True, False)
    """

    def __init__(self, earlier: Mapping[str, Iterable[str]] | None = None) -> None:
        self._texts: dict[str, list[str]] = {}
        self._forms: dict[str, set[str]] = {}
        for prompt, captions in (earlier or {}).items():
            for caption in captions:
                self.remember(prompt, caption)

    def knows(self, prompt: str, caption: str) -> bool:
        """Tell whether a prompt has had a caption, up to case, punctuation and blanks.

        Args:
            prompt: Prompt whose captions are looked up.
            caption: Any text.

        Returns:
            True if it has, or if the caption is the prompt itself.
        """
        form = normalised(caption)
        return form == normalised(prompt) or form in self._forms.get(prompt, ())

    def remember(self, prompt: str, caption: str) -> None:
        """Store a caption that is new to a prompt.

        Args:
            prompt: Prompt of the caption.
            caption: Any text.

        Raises:
            CaptionError: If the prompt has had it; then nothing is stored.
        """
        if self.knows(prompt, caption):
            raise CaptionError("it repeats the prompt or an earlier caption")
        self._texts.setdefault(prompt, []).append(caption)
        self._forms.setdefault(prompt, set()).add(normalised(caption))

    def earlier(self, prompt: str) -> tuple[str, ...]:
        """List the captions that a prompt has had, oldest first."""
        return tuple(self._texts.get(prompt, ()))
