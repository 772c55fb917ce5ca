"""What a scorer's service and its client agree on: limits, who answers, and how it fails."""

from dataclasses import dataclass, fields
from typing import Final, Literal, get_args

from mvczigal_ref.errors import ScorerUnavailableError

__all__ = ["Kind", "Limits", "RefusedError", "ScorerInfo", "ScorerUnavailableError"]

Kind = Literal["per_view", "joint"]
"""Whether a scorer gives one number a view or one an object."""

_NAME_CHARS: Final = 200


class RefusedError(ValueError):
    """A request that would be refused however often it were sent.

    Args:
        message: What was wrong.
        status: Of HTTP.
    """

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What a service accepts; every number is positive.

    Raises:
        ValueError: If one is not.
    """

    body_bytes: int = 256 * 2**20
    """A request's whole body [bytes]."""

    objects: int = 256
    """Objects in a request."""

    views: int = 32
    """Views of an object."""

    image_size: int = 2048
    """Longer edge of an image [px]."""

    prompt_chars: int = 4096
    """Characters of a prompt."""

    requests: int = 8
    """Requests held at a time, the one that is being scored among them."""

    read_s: float = 60.0
    """Time that a request may take to arrive [s]."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                msg = f"`{field.name}` must be positive; got {getattr(self, field.name)!r}."
                raise ValueError(msg)

    @property
    def head_bytes(self) -> int:
        """Longest head that these limits leave room for [bytes]."""
        # JSON writes a control character in six bytes, and every other in fewer.
        return 512 + self.objects * (6 * self.prompt_chars + 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerInfo:
    """Which scorer answers: scores under equal infos are comparable.

    Raises:
        ValueError: If a text is empty or long, or there is no such kind.
    """

    name: str
    """As a configuration names it."""

    version: str
    """Changes whenever scores may: of the code, and of the weights where there are any."""

    kind: Kind
    """One number a view, or one an object."""

    def __post_init__(self) -> None:
        for what in ("name", "version"):
            text = getattr(self, what)
            if not isinstance(text, str) or not 0 < len(text) <= _NAME_CHARS:
                msg = f"`{what}` must be a text of 1 to {_NAME_CHARS} characters; got {text!r}."
                raise ValueError(msg)
        if self.kind not in get_args(Kind):
            msg = f"`kind` must be one of {list(get_args(Kind))}; got {self.kind!r}."
            raise ValueError(msg)

    def count(self, views: int) -> int:
        """Say how many scores an object has.

        Args:
            views: Its views.

        Returns:
            As many, or 1.
        """
        return views if self.kind == "per_view" else 1
