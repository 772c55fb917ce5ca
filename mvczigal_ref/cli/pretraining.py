"""Pretraining as a person asks for it: its settings, its processes, and what is shipped of it."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from mvczigal_ref.cli.arguments import Pretrain
from mvczigal_ref.cli.launch import launch, starts_processes
from mvczigal_ref.cli.processes import join
from mvczigal_ref.config.loading import read_value, unknown_setting
from mvczigal_ref.errors import ConfigError, quoted
from mvczigal_ref.pretraining import flow as pretrain_flow
from mvczigal_ref.pretraining import multiview as pretrain
from mvczigal_ref.pretraining import ship as shipped
from mvczigal_ref.pretraining.flow import FlowPretrainConfig
from mvczigal_ref.pretraining.multiview import PretrainConfig

__all__ = ["pretrain_weights"]

_Numbers = TypeVar("_Numbers")  # settings of one kind of pretraining


def pretrain_weights(command: Pretrain) -> None:
    """Make the tiny world's weights, in as many processes as were asked for.

    Args:
        command: What was asked for.

    Raises:
        ConfigError: If a setting is unknown, or of the wrong kind.
        SystemExit: Where the processes did not end well; they have said why.
    """
    flow = command.model == "flow"
    kind: type[FlowPretrainConfig | PretrainConfig] = FlowPretrainConfig if flow else PretrainConfig
    config = _config(kind, command.settings)
    if starts_processes(command.processes):
        if status := launch(command.processes, _words(command)):
            raise SystemExit(status)
        return
    here = join("cpu")
    if isinstance(config, FlowPretrainConfig):
        pretrain_flow.pretrain_flow(command.out, config)
    else:
        pretrain.pretrain(command.out, config)
    if here.is_main:
        shipping = shipped.ship_flow if flow else shipped.ship
        print(shipping(command.out, command.out / "shipped"))
        print(f"\nweights to ship: {command.out / 'shipped'}")


def _words(command: Pretrain) -> list[str]:
    options = ["--model", command.model, "--out", str(command.out)]
    return ["pretrain", *command.settings, *options, "--processes", str(command.processes)]


def _config(kind: type[_Numbers], words: Sequence[str]) -> _Numbers:
    """Read `name=value` words into pretraining's settings."""
    known, values = [field.name for field in fields(cast(Any, kind))], {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            msg = f"a setting must read `name=value`; got {word!r}."
            raise ConfigError(msg)
        if name not in known:
            raise unknown_setting(name, known)
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
