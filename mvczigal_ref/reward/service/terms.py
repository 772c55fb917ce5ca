"""Terms between a scorer's service and its client: limits, the scorer's name, refusals."""

from dataclasses import dataclass, fields
from typing import Final, Literal, get_args

from mvczigal_ref.errors import ScorerUnavailableError, quoted

__all__ = ["Kind", "Limits", "RefusedError", "ScorerInfo", "ScorerUnavailableError"]

Kind = Literal["per_view", "joint"]
"""Kind of a scorer: ``per_view`` gives one number per view, ``joint`` one per object."""

_NAME_CHARS: Final = 200  # most characters of a name or version


class RefusedError(ValueError):
    """A request that the service refuses; sending it again would not help.

    Args:
        message: Reason of the refusal.
        status: HTTP status.
    """

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits on the requests to a service; every number is positive.

    Raises:
        ValueError: If a number is not positive.
    """

    body_bytes: int = 256 * 2**20
    """Longest body of a request [bytes]."""

    objects: int = 256
    """Most objects in a request [1]."""

    views: int = 32
    """Most views of an object [1]."""

    image_size: int = 2048
    """Longest edge of an image [px]."""

    prompt_chars: int = 4096
    """Most characters of a prompt [1]."""

    requests: int = 8
    """Most whole requests held at a time, including the one that is being scored [1]."""

    read_s: float = 60.0
    """Longest time in which a request, header and body together, must arrive [s]."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                msg = f"`{field.name}` must be positive; got {getattr(self, field.name)!r}."
                raise ValueError(msg)

    @property
    def head_bytes(self) -> int:
        """Longest head that fits these limits [bytes]."""
        # JSON writes a control character in six bytes, and every other in fewer.
        return 512 + self.objects * (6 * self.prompt_chars + 4)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerInfo:
    """Name, version and kind of a scorer; scores under equal infos are comparable.

    Raises:
        ValueError: If a text is empty, long or not printable, or there is no such kind.
    """

    name: str
    """Name of the scorer in a configuration."""

    version: str
    """Version of code and weights; it changes whenever scores may change."""

    kind: Kind
    """Kind of the scorer: one number per view, or one per object."""

    def __post_init__(self) -> None:
        for field in ("name", "version"):
            text = getattr(self, field)
            fits = isinstance(text, str) and 0 < len(text) <= _NAME_CHARS and text.isprintable()
            if not fits:
                msg = (
                    f"`{field}` must be a printable text of 1 to {_NAME_CHARS} characters; got "
                    f"{quoted(text)}."
                )
                raise ValueError(msg)
        if self.kind not in get_args(Kind):
            msg = f"`kind` must be one of {list(get_args(Kind))}; got {quoted(self.kind)}."
            raise ValueError(msg)

    def count(self, views: int) -> int:
        """Return the number of scores of an object.

        Args:
            views: Views of the object [1].

        Returns:
            ``views`` for a per-view scorer, 1 for a joint one.
        """
        return views if self.kind == "per_view" else 1
