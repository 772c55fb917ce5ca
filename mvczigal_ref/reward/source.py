"""Function that the user has typed or handed over: its import, and the hash of its source."""

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.machinery import SourceFileLoader
from operator import attrgetter
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from mvczigal_ref.config.code_names import is_typed, note_typed
from mvczigal_ref.config.plugins import GROUPS, load_plugin, plugin
from mvczigal_ref.errors import ConfigError, one_line
from mvczigal_ref.reward.provenance import note
from mvczigal_ref.reward.user_code import FAULTS, unchanged_defaults

__all__ = ["Source", "hand_over", "load_source", "plugin_source"]

_NAME = re.compile(r"(?P<place>.+):(?P<name>[^\W\d]\w*(?:\.[^\W\d]\w*)*)")
_MODULE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")

_BEGIN = "fit."  # of the names of functions that were handed over
_HANDED: dict[str, "Source"] = {}
_FILES: dict[tuple[Path, str], ModuleType] = {}  # each file is run once for each of its contents


@dataclass(frozen=True, slots=True)
class Source:
    """A function, and where its source is."""

    name: str
    """Name in the settings."""

    function: Callable[..., Any]
    """The function."""

    place: str
    """Absolute path of the file, or what stands for it."""

    sha256: str | None
    """SHA-256 of the file that was named, or of the source of a function that was handed over; None
    where the source cannot be read."""


def hand_over(argument: str, function: Callable[..., Any]) -> str:
    """Make a function of this process known to settings, as the user's own.

    Args:
        argument: Name of the argument that it was passed as.
        function: The function.

    Returns:
        The name by which settings ask for it.

    Raises:
        ConfigError: If it cannot be called.

    Examples:
        >>> hand_over("reward", len)
        'fit.reward:len'
    """
    if not callable(function):
        raise ConfigError(f"`{argument}` must be a function; got a {type(function).__name__}.")
    plain = function.func if isinstance(function, partial) else function
    written = plain if inspect.isroutine(plain) else type(plain)
    name = f"{_BEGIN}{argument}:{written.__name__.strip('<>')}"
    try:
        text = inspect.getsource(written)
    except (OSError, TypeError):  # built in, or typed into a console
        digest = None
    else:
        digest = hashlib.sha256(text.encode()).hexdigest()
    module = getattr(written, "__module__", None)
    _HANDED[name] = Source(name, function, f"{argument} in {module}", digest)
    note_typed([name])
    return name


def plugin_source(name: str, options: Any | None = None) -> Source:  # noqa: ANN401 - ScorerOptions
    """Load the scorer that an installed package registers.

    Args:
        name: Name of an entry of ``mvczigal_ref.scorers``.
        options: Options that the entry builds the scorer with; None builds none.

    Returns:
        The scorer and the source of its module; without options the entry itself.

    Raises:
        ConfigError: If the entry cannot be loaded or called.
    """
    entry, build = plugin("scorers", name), load_plugin("scorers", name)
    assert entry is not None
    file = getattr(sys.modules.get(entry.module), "__file__", None)
    digest = None if file is None else hashlib.sha256(note(Path(file)).read_bytes()).hexdigest()
    function = build if options is None else build(options)
    if not callable(function):
        kind = type(function).__name__
        raise ConfigError(f"the plug-in {name!r} must be a {GROUPS['scorers']}; got a {kind}.")
    return Source(name, function, entry.value, digest)


def load_source(name: str, *, setting: str) -> Source:
    """Import a function by the name that the user has typed.

    Args:
        name: ``FILE.py:NAME`` or ``package.module:NAME``.
        setting: Setting that names it.

    Returns:
        The function and its source.

    Raises:
        ConfigError: If it was not typed, or cannot be imported or called.
    """
    if name.startswith(_BEGIN) and name not in _HANDED:
        place = f"`{setting}=my_rewards.py:{name.partition(':')[2]}`"
        msg = (
            f"`{setting}` names {name!r}, a function that was handed to `fit` in Python. Hand it "
            f"over there again, or name its file: {place}."
        )
        raise ConfigError(msg)
    if not is_typed(name):
        msg = (
            f"`{setting}` names {name!r}, which is code, in a file of settings or a run. Code is "
            f"run only where you type it: add `{setting}={name}`, or hand it to `fit`."
        )
        raise ConfigError(msg)
    if name in _HANDED:
        return _HANDED[name]
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise ConfigError(f"`{setting}` must read FILE.py:NAME or package.module:NAME; {name!r}.")
    begin = f"`{setting}` = {name!r}"
    module, place, digest = _imported(parts["place"], begin)
    try:
        function = attrgetter(parts["name"])(module)
    except AttributeError as error:
        functions = sorted(
            key for key, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", "") == module.__name__
        )  # fmt: skip
        there = f"it defines {', '.join(functions)}" if functions else "it defines no function"
        raise ConfigError(f"{begin} must name a function of {place!r}; {there}.") from error
    if not callable(function):
        raise ConfigError(f"{begin} must be a function; got a {type(function).__name__}.")
    return Source(name, function, place, digest)


def _imported(place: str, begin: str) -> tuple[ModuleType, str, str | None]:
    """Import a file or a module; give its file's path and digest."""
    if place.endswith(".py"):
        path = Path(place).expanduser().absolute()
        if not path.is_file():
            raise ConfigError(f"{begin} must be a function of a file; there is no {str(path)!r}.")
        digest = hashlib.sha256(note(path).read_bytes()).hexdigest()
        if (path, digest) not in _FILES:
            _FILES[path, digest] = _run(path, digest, begin)
        return _FILES[path, digest], str(path), digest
    if not _MODULE.fullmatch(place):
        msg = f"must read FILE.py:NAME or package.module:NAME; {place!r} is neither."
        raise ConfigError(f"{begin} {msg}")
    try:
        with unchanged_defaults(begin):
            module = importlib.import_module(place)
    except ConfigError:
        raise
    except FAULTS as error:
        raise ConfigError(_broken(begin, f"the module {place!r}", error)) from error
    file = getattr(module, "__file__", None)
    if file is None or not file.endswith(".py"):
        return module, place, None
    return module, file, hashlib.sha256(note(Path(file)).read_bytes()).hexdigest()


def _run(path: Path, digest: str, begin: str) -> ModuleType:
    """Run a file as a module that nothing else is named like."""
    name = f"{path.stem}_{digest[:12]}"
    loader = _FreshLoader(name, str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickles look it up
    try:
        with unchanged_defaults(begin):
            loader.exec_module(module)
    except ConfigError:
        del sys.modules[name]
        raise
    except FAULTS as error:
        del sys.modules[name]
        raise ConfigError(_broken(begin, repr(str(path)), error)) from error
    return module


class _FreshLoader(SourceFileLoader):
    """Loader that compiles the source each time, so that what runs is what is hashed.

    Python's own cache overlooks a change that keeps a file's second and length.
    """

    def get_code(self, fullname: str) -> CodeType:
        """Compile the file; ``__pycache__`` is neither read nor written."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


def _broken(begin: str, what: str, error: BaseException) -> str:
    text = one_line(error)
    hint = ""
    if isinstance(error, ModuleNotFoundError):
        hint = " Install it; a file beside you is named by its path, as in my_rewards.py:score."
    return f"{begin} cannot be imported: {what} raised {type(error).__name__}: {text}.{hint}"
