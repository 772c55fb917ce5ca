"""Table of docs/torture.md: the rows of the areas that were tried replace those there."""

from collections.abc import Mapping
from pathlib import Path

__all__ = ["HEAD", "PAGE", "write_rows"]

PAGE = Path(__file__).parents[2] / "docs" / "torture.md"
HEAD = (
    "| area | scale | seed | tried | held | failed | of these |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | --- |"
)


def write_rows(rows: Mapping[str, str], *, page: Path = PAGE) -> None:
    """Put rows in their places, and those of new areas at the end.

    Args:
        rows: Line of the table by area.
        page: File that holds the table.
    """
    before, head, rest = page.read_text("utf-8").partition(HEAD)
    lines = rest.lstrip("\n").split("\n")
    size = next(n for n, line in enumerate([*lines, ""]) if not line.startswith("|"))
    table = {line.split("|")[1].strip(): line for line in lines[:size]} | rows
    page.write_text("\n".join([before + head, *table.values(), *lines[size:]]), "utf-8")
