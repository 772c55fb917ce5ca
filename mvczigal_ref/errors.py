"""Exceptions of the package: each is also the builtin that a caller would catch."""

import json
import re
import sys
from contextlib import suppress

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DiskFullError",
    "NonFiniteError",
    "ProcessLostError",
    "ReplayMismatchError",
    "RunFolderInUseError",
    "ScorerUnavailableError",
    "ZeroGradientError",
    "decode_error",
    "encode_error",
    "first_line",
    "newer",
    "one_line",
    "printable",
    "quoted",
]

_LONGEST_VALUE = 120  # length of a value in a message [characters]
_PASSWORD = re.compile(r"(?<=//)[^/\s'\"]*@")  # user and password in a URL


class ConfigError(ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class CheckpointError(ValueError):
    """A checkpoint is damaged, incomplete, or belongs to another run."""


class RunFolderInUseError(BlockingIOError):
    """Another process works in the run folder."""


class DiskFullError(OSError):
    """The disk has no room for what a run writes."""


class ProcessLostError(ConnectionError):
    """Another process of the run has ended, so that the run cannot go on."""


class ReplayMismatchError(RuntimeError):
    """Replay did not reproduce the log-densities that sampling stored."""


class ZeroGradientError(ArithmeticError):
    """No gradient reaches the trainable parameters, though the loss asks for a change."""


class ServiceUnavailableError(ConnectionError):
    """A service that a run needs gave no answer within the time allowed."""


class ScorerUnavailableError(ServiceUnavailableError):
    """A remote scorer gave no usable answer within the time allowed."""


class NonFiniteError(FloatingPointError):
    """A number that training needs is NaN or infinite.

    The exception's arguments are its fields, so that it crosses a process
    boundary unchanged; the sentence is made when it is printed.

    Args:
        what: Name of the quantity, such as ``"loss"`` or ``"joint_view_reward"``.
        object: Index of the object within the iteration, or None if unknown.
        view: Index of the view within the object, or None if unknown.
        step: Index into the sampling grid, or None if unknown.
        value: The non-finite value, or None if it was not read.

    Examples:
        >>> print(NonFiniteError("loss", object=3, step=1, value=float("nan")))
        `loss` must be finite; got nan at object 3, step 1.
    """

    what: str
    object: int | None
    view: int | None
    step: int | None
    value: float | None

    def __init__(
        self,
        what: str,
        object: int | None = None,
        view: int | None = None,
        step: int | None = None,
        value: float | None = None,
    ) -> None:
        super().__init__(what, object, view, step, value)
        self.what, self.object, self.view, self.step, self.value = what, object, view, step, value

    def __str__(self) -> str:
        """Name the non-finite quantity, its value and its place."""
        places = {"object": self.object, "view": self.view, "step": self.step}
        place = ", ".join(f"{name} {index}" for name, index in places.items() if index is not None)
        value = "a non-finite value" if self.value is None else repr(self.value)
        return f"`{self.what}` must be finite; got {value}" + (f" at {place}." if place else ".")


def one_line(error: BaseException) -> str:
    r"""Put an exception's text on one line, for a message that quotes it.

    Args:
        error: Exception of a library or of a user's code.

    Returns:
        The text, its white space replaced by single spaces; may be empty.

    Examples:
        >>> one_line(ValueError("no\n  more"))
        'no more'
    """
    return " ".join(str(error).split())


def first_line(error: BaseException) -> str:
    r"""Cut an exception's text to one line that fits a message.

    Args:
        error: Exception of a library.

    Returns:
        First line of the text, or the exception's kind where it has none.

    Examples:
        >>> first_line(ValueError("no\nmore"))
        'no'
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0][:160]).rstrip(".: ")


def newer(file: str, fault: str) -> str:
    """Give the reason why this version cannot read a file of a checkpoint: a newer one wrote it.

    Args:
        file: Name of the file.
        fault: Clause that says what this version does not understand.

    Returns:
        Clause for a message.

    Examples:
        >>> newer("manifest.json", "its key 'parts' is unknown")
        "a newer version of this package wrote its file 'manifest.json': its key 'parts' is \
unknown; an updated package reads it"
    """
    return (
        f"a newer version of this package wrote its file {file!r}: {fault}; an updated package "
        "reads it"
    )


def quoted(value: object) -> str:
    """Give a value for a message: on one line, cut where it is long, no password of a URL in it.

    Args:
        value: Any value.

    Returns:
        The `repr` of the value, cut to about 120 characters.

    Examples:
        >>> len(quoted("a" * 10_000)) < 150
        True
    """
    if isinstance(value, str | bytes):  # so that no long text is copied
        value = value[: 8 * _LONGEST_VALUE]
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested in itself, or an integer of many digits
        text = f"a {type(value).__name__}"
    text = _PASSWORD.sub("[password]@", text)
    cut = text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."
    return printable(cut)


def printable(text: str) -> str:
    r"""Replace the characters that a terminal would obey instead of showing.

    Args:
        text: Text from elsewhere, such as a name out of a file.

    Returns:
        Text of the same length on one line.

    Examples:
        >>> printable("\x1b[31mred\n")
        ' [31mred '
    """
    return "".join(c if c.isprintable() else " " for c in text)


def encode_error(error: Exception) -> str:
    """Write an exception as JSON, from which another process makes an equal one.

    Args:
        error: An exception of Python or of this package is sent as it is, if its arguments are
            numbers and text. Any other becomes its nearest base class among those, with its text.

    Returns:
        JSON text, for :func:`decode_error`.

    Examples:
        >>> decode_error(encode_error(ConfigError("`seed` must be at least 0; got -1.")))
        ConfigError('`seed` must be at least 0; got -1.')
    """
    words = f"{type(error).__name__}: {error}"
    kind, arguments = type(error), list(error.__reduce__()[1])
    plain = all(value is None or isinstance(value, str | int | float) for value in arguments)
    if not (plain and _is_common(kind)):
        ancestors = (base for base in kind.__mro__[1:] if _is_common(base))
        kind, arguments = next(ancestors, RuntimeError), [words]
    return json.dumps([kind.__module__, kind.__name__, arguments, words])


def decode_error(text: str) -> Exception:
    """Make an exception from the JSON of another process; no code is read from it.

    Args:
        text: Written by :func:`encode_error`.

    Returns:
        The exception; or a RuntimeError with its text where its class is not one of Python's or of
        this package's loaded modules, or refuses the arguments.
    """
    module, name, arguments, words = json.loads(text)
    kind = getattr(sys.modules.get(module), name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and _is_common(kind):
        with suppress(Exception):
            return kind(*arguments)
    return RuntimeError(words)


def _is_common(kind: type) -> bool:
    """Tell whether every process has this class: one of Python's or of the package's."""
    package = __name__.partition(".")[0]
    ours = kind.__module__.partition(".")[0] in ("builtins", package)
    return ours and issubclass(kind, Exception) and kind is not Exception
