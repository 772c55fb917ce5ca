"""Pretrain the tiny world's weights: arguments, settings, processes, and what is shipped."""

import io
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

from tyro.conf import Positional, arg

from mvczigal_ref.cli.launch import join, launch, starts_processes
from mvczigal_ref.cli.output import Quiet
from mvczigal_ref.cli.policy_settings import require_folder
from mvczigal_ref.errors import ConfigError, quoted
from mvczigal_ref.files import owned

if TYPE_CHECKING:
    from mvczigal_ref.distributed import World

__all__ = ["Pretrain", "pretrain_weights"]

_LAST_WORD = 1.0  # seconds for the main process's message: a launcher ends all as soon as one has
_Numbers = TypeVar("_Numbers")  # settings of one kind of pretraining


@dataclass(frozen=True, kw_only=True)
class Pretrain(Quiet):
    """Make the tiny world's weights: autoencoder, base model, few-step model; or the flow model.

    The flow model takes its autoencoder and CLIP from the multi-view weights.
    """

    settings: Annotated[
        Positional[tuple[str, ...]], arg(metavar="[NAME=VALUE ...]", help_behavior_hint="")
    ] = ()
    """Numbers to change, such as base_steps=100."""
    model: Literal["multiview", "flow"] = "multiview"
    """Model to make."""
    processes: int = 1
    """Processes on this machine that share the work; another number continues the same folder, and
    rounds otherwise."""
    out: Annotated[Path, arg(metavar="FOLDER")]
    """Folder of the weights; a stage that it already holds is not made again."""


def pretrain_weights(command: Pretrain) -> None:
    """Make the tiny world's weights, in as many processes as the command asks for.

    Args:
        command: Model, settings, processes and folder.

    Raises:
        ConfigError: If a setting is unknown, or of the wrong kind.
        RunFolderInUseError: If another process writes the folder.
        SystemExit: Where the processes did not end well; they have printed why.
    """
    require_folder(command.out)
    from mvczigal_ref.pretraining import flow as pretrain_flow
    from mvczigal_ref.pretraining import multiview as pretrain
    from mvczigal_ref.pretraining import ship as shipped
    from mvczigal_ref.pretraining.flow import FlowPretrainConfig
    from mvczigal_ref.pretraining.multiview import PretrainConfig

    flow = command.model == "flow"
    kind: type[FlowPretrainConfig | PretrainConfig] = FlowPretrainConfig if flow else PretrainConfig
    config = _config(kind, command.settings)
    if starts_processes(command.processes):
        if status := launch(command.processes, _words(command)):
            raise SystemExit(status)
        return
    here = join("cpu")
    with _owned_by_main(command.out, here):
        with redirect_stdout(io.StringIO()) if command.quiet else nullcontext():
            if isinstance(config, FlowPretrainConfig):
                pretrain_flow.pretrain_flow(command.out, config)
            else:
                pretrain.pretrain(command.out, config)
        if here.is_main:
            shipping = shipped.ship_flow if flow else shipped.ship
            print(shipping(command.out, command.out / "shipped"))
            print(f"\nweights to ship: {command.out / 'shipped'}")


@contextmanager
def _owned_by_main(folder: Path, here: "World") -> Iterator[None]:
    """Let the main process own the folder; where it may not, it alone says so."""
    with ExitStack() as ownership:
        try:
            with here.together():
                if here.is_main:
                    ownership.enter_context(owned(folder))
                here.barrier()  # until the folder is ours
        except OSError as error:
            if here.is_main:
                raise
            time.sleep(_LAST_WORD)
            raise SystemExit(2) from error
        yield


def _words(command: Pretrain) -> list[str]:
    options = ["--model", command.model, "--out", str(command.out)]
    options += ["--quiet"] * command.quiet
    return ["pretrain", *command.settings, *options, "--processes", str(command.processes)]


def _config(kind: type[_Numbers], words: Sequence[str]) -> _Numbers:
    """Read `name=value` words into pretraining's settings."""
    from pydantic import TypeAdapter, ValidationError

    from mvczigal_ref.config.loading import read_value, unknown_setting

    names, values = [field.name for field in fields(cast(Any, kind))], {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            msg = f"a setting must read `name=value`; got {word!r}."
            raise ConfigError(msg)
        if name not in names:
            raise unknown_setting(name, names)
        try:
            values[name] = read_value(text)
        except ConfigError as error:
            msg = f"`{name}` cannot be read from {quoted(text)}: {error}"
            raise ConfigError(msg) from error
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        problems = [
            f"`{e['loc'][0]}`: {e['msg']}; got {quoted(e['input'])}." for e in error.errors()
        ]
        raise ConfigError(" ".join(problems)) from error
