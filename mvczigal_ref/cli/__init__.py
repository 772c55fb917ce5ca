"""The command line: commands and their arguments, read by tyro.

Each file holds a group of commands, arguments first. Only these are read here, so that help comes
at once: the functions import what they need.
"""

import errno
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, TypeAlias

import tyro

from mvczigal_ref import __version__
from mvczigal_ref.cli.benchmarking import Benchmark, benchmark
from mvczigal_ref.cli.comparing import Enhance, enhance, reproduce
from mvczigal_ref.cli.comparing_arguments import Reproduce
from mvczigal_ref.cli.evaluating import Evaluate, evaluate
from mvczigal_ref.cli.exporting import Export, Report, print_export, print_report
from mvczigal_ref.cli.launch import REFUSED, end_with_launcher
from mvczigal_ref.cli.output import STANDARD_OUTPUT, json_alone, require_json
from mvczigal_ref.cli.parser_errors import in_one_line
from mvczigal_ref.cli.playing import Play, play
from mvczigal_ref.cli.preflight_arguments import Check, Plan, check_recipe, plan_recipe
from mvczigal_ref.cli.pretraining import Pretrain, pretrain_weights
from mvczigal_ref.cli.pushing import Push, push_run
from mvczigal_ref.cli.recipes import Recipes, show_recipes
from mvczigal_ref.cli.sampling import Sample, sample
from mvczigal_ref.cli.scoring import (
    ConvertReward,
    Score,
    ServeReward,
    convert_reward,
    score,
    serve_reward,
)
from mvczigal_ref.cli.settings import Settings, show_settings
from mvczigal_ref.cli.surroundings import adapt, reader_gone, require_current_folder
from mvczigal_ref.cli.training import Train, train
from mvczigal_ref.errors import ConfigError, ServiceUnavailableError, printable, quoted
from mvczigal_ref.files import to_nothing

__all__ = ["Command", "main"]

Command: TypeAlias = (
    Train
    | Sample
    | Play
    | Evaluate
    | Benchmark
    | Export
    | Push
    | Report
    | Score
    | ServeReward
    | ConvertReward
    | Plan
    | Check
    | Enhance
    | Reproduce
    | Pretrain
    | Recipes
    | Settings
)
"""Arguments of a command."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """A command's arguments, and the function that takes them."""

    arguments: Callable[..., Command]
    function: Callable[[Any], None]


_COMMANDS: Mapping[str, _Entry] = {
    "train": _Entry(Train, train),
    "sample": _Entry(Sample, sample),
    "play": _Entry(Play, play),
    "evaluate": _Entry(Evaluate, evaluate),
    "benchmark": _Entry(Benchmark, benchmark),
    "export": _Entry(Export, print_export),
    "push": _Entry(Push, push_run),
    "report": _Entry(Report, print_report),
    "score": _Entry(Score, score),
    "serve-reward": _Entry(ServeReward, serve_reward),
    "convert-reward": _Entry(ConvertReward, convert_reward),
    "plan": _Entry(Plan, plan_recipe),
    "check": _Entry(Check, check_recipe),
    "enhance": _Entry(Enhance, enhance),
    "reproduce": _Entry(Reproduce, reproduce),
    "pretrain": _Entry(Pretrain, pretrain_weights),
    "recipes": _Entry(Recipes, show_recipes),
    "settings": _Entry(Settings, show_settings),
}
_DESCRIPTION = """RL fine-tuning of few-step text-to-multiview diffusion.

Begin with `mvczigal train tiny`, then open the report.html that it names. To complete words in
bash: `eval "$(mvczigal --tyro-print-completion bash)"`; zsh likewise."""
_SETTING = re.compile(r"[A-Za-z_][\w.]*=.*", re.DOTALL)
# A word after one of these is its value, whatever it looks like.
_TAKES_TEXT = (
    "--config", "--out", "--run", "--weights", "--lora", "--json", "--prompts", "--recipe",
    "--prompt", "--tokenizer", "--url", "--model", "--api-key-env", "--from", "--diff", "--host",
    "--license",
)  # fmt: skip
# A word of these that names something on the disk is that, though it look like a setting.
_NAMES_FILES = ("score", "export", "push", "report", "convert-reward", "enhance")
_INTERRUPTED = 130  # a shell's report of Ctrl-C
_READER_GONE = 1  # as rich ends
_TRY_LATER = 75  # what sendmail's descendants call a failure that will pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after the program's name; those of this process if None.

    Returns:
        Exit status: 0, or 2 where something was refused, or 75 where a scorer's service was
        out, or 130 after Ctrl-C, or 1 where nobody reads the output any more.

    Raises:
        SystemExit: After help, and where the words are no command.

    Examples:
        >>> main(["recipes", "--nonsense"])
        Traceback (most recent call last):
        SystemExit: 2
    """
    adapt()
    try:
        try:
            return _main(list(sys.argv[1:] if argv is None else argv))
        finally:
            sys.stdout.flush()  # else a reader that has gone is noticed when Python ends
    except OSError as error:
        # What is still to be written goes nowhere.
        to_nothing(sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # as after `| head`
            return _READER_GONE
        _say(f"error: standard output must take what is printed; got {error.strerror}.")
        return 2


def _main(words: list[str]) -> int:
    if words == ["--version"]:
        print(__version__)
        return 0
    for word in words:
        if _holds_other_bytes(word):
            _say(
                f"error: {quoted(word)} on the command line holds a byte that is not UTF-8. Type "
                "it in UTF-8, or rename the file."
            )
            return 2
    end_with_launcher()
    command = _read(words or ["--help"])
    (function,) = [e.function for e in _COMMANDS.values() if type(command) is e.arguments]
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            if _needs_folder(command):
                require_current_folder()
            require_json(command)
            with json_alone(command):
                function(command)
        except ServiceUnavailableError as error:
            _say(f"error: {error}")
            return _TRY_LATER
        except REFUSED as error:
            if isinstance(error, BrokenPipeError) and reader_gone():  # else some other pipe
                raise
            full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            if full and getattr(error, "filename", None) is None:  # the output's: files are named
                raise
            _say(f"error: {error}")
            return 2
        except KeyboardInterrupt:
            return _INTERRUPTED
    return 0


def _read(words: list[str]) -> Command:
    """Take the settings out, wherever they stand, and let tyro read the rest."""
    settings: list[str] = []
    words = _with_standard_output(words)
    rest = words[:1]
    for before, word in pairwise(words):
        is_setting = before not in _TAKES_TEXT and _is_setting(word, words[0])
        (settings if is_setting else rest).append(word)
    try:
        with in_one_line():
            command: Command = tyro.extras.subcommand_cli_from_dict(
                {name: entry.arguments for name, entry in _COMMANDS.items()},
                prog="mvczigal", description=_DESCRIPTION, args=rest,
            )  # fmt: skip
    except ConfigError as error:
        _say(f"error: {error}")
        raise SystemExit(2) from error
    if not settings:
        return command
    if isinstance(command, Export | Push | Report | ConvertReward | Enhance | Recipes | Settings):
        _say(f"error: this command takes no settings; got {settings[0]!r}.")
        raise SystemExit(2)
    return replace(command, settings=(*command.settings, *settings))


def _needs_folder(command: Command) -> bool:
    """Tell whether a command may look for a path: lists that go to the terminal need none."""
    if not isinstance(command, Recipes | Settings):
        return True
    return command.json not in (None, STANDARD_OUTPUT)


def _with_standard_output(words: Sequence[str]) -> list[str]:
    """Write out the name that `--json` has where none follows it: that of standard output."""
    written = []
    for word, after in pairwise([*words, "--"]):
        written += [word, "-"] if word == "--json" and after.startswith("--") else [word]
    return written


def _is_setting(word: str, command: str) -> bool:
    """Tell `section.name=value` from a prompt, and from a file that is named so."""
    if not _SETTING.fullmatch(word):
        return False
    if command in _NAMES_FILES and os.path.exists(word):
        return False
    if command != "sample" or len(word.split()) < 2:
        return True
    from mvczigal_ref.config import TrainConfig

    section, dot, _ = word.partition("=")[0].partition(".")
    return bool(dot) and section in {field.name for field in fields(TrainConfig)}


def _holds_other_bytes(word: str) -> bool:
    """Say whether a word came from bytes that are not UTF-8, which Python hides in surrogates."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return True
    return False


def _say(text: str) -> None:
    # Names out of files reach here; one line is one.
    print(f"mvczigal: {printable(text)}", file=sys.stderr, flush=True)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    _say(f"warning: {message}")
