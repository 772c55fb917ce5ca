"""List the settings: name, default, unit, values and meaning, from the source's docstrings."""

from dataclasses import dataclass
from typing import Annotated

from tyro.conf import Positional, arg

from mvczigal_ref.cli.output import Printed, console_of, write_json
from mvczigal_ref.errors import ConfigError, quoted

__all__ = ["Settings", "show_settings"]


@dataclass(frozen=True, kw_only=True)
class Settings(Printed):
    """List the settings of a run, all or of a section: default, unit, values and meaning."""

    section: Annotated[
        Positional[str | None], arg(metavar="[SECTION]", help_behavior_hint="(default: all)")
    ] = None
    """Section, such as optim; or one setting, such as optim.lr."""


def show_settings(command: Settings) -> None:
    """Print settings in a row each.

    Args:
        command: A section or a setting, if any.

    Raises:
        ConfigError: If there is no such section or setting; names the nearest.
    """
    from rich.markup import escape
    from rich.table import Table

    from mvczigal_ref.config.loading import nearest_name
    from mvczigal_ref.config.setting_docs import described_sections

    sections = described_sections()
    rows = {
        f"{name}.{setting.name}": setting
        for name, (_, settings) in sections.items()
        for setting in settings
    }
    asked = command.section
    chosen = {
        path: setting
        for path, setting in rows.items()
        if asked is None or path == asked or path.startswith(f"{asked}.")
    }
    if asked is not None and not chosen:
        near = nearest_name(asked, [*sections, *rows])
        msg = f"unknown section or setting: {quoted(asked)}; the nearest name is `{near}`."
        raise ConfigError(msg)
    write_json(
        command,
        {
            path: {key: value for key, value in setting._asdict().items() if key != "name"}
            for path, setting in chosen.items()
        },
    )
    console = console_of(command)
    for section in dict.fromkeys(path.partition(".")[0] for path in chosen):
        table = Table(title=f"{section}: {sections[section][0].partition(chr(10))[0]}")
        for heading in ("setting", "default", "unit", "values", "meaning"):
            table.add_column(heading, overflow="fold")
        for path, setting in chosen.items():
            if path.startswith(f"{section}."):
                cells = (setting.default, setting.unit, setting.values, setting.meaning)
                table.add_row(path, *map(escape, cells))
        console.print(table)
