"""Colours of every page and figure, on light and on dark ground."""

from collections.abc import Mapping
from typing import Final

__all__ = ["DARK", "LIGHT", "variables"]

LIGHT: Final = {
    "paper": "#fbfaf8",
    "card": "#ffffff",
    "ink": "#1d1f24",
    "soft": "#5d636e",
    "line": "#dfe1e5",
    "curve-0": "#c2410c",
    "curve-1": "#1d63c4",
    "curve-2": "#6b7280",
    "mark": "#fdf1e7",
}
"""Colours by their part, where the reader's device is light."""

DARK: Final = {
    "paper": "#15171b",
    "card": "#1d2025",
    "ink": "#e8e9ec",
    "soft": "#a2a8b3",
    "line": "#343941",
    "curve-0": "#fb923c",
    "curve-1": "#6ea8fe",
    "curve-2": "#9ca3af",
    "mark": "#33271c",
}
"""Colours of the same parts where it is dark."""


def variables(colours: Mapping[str, str]) -> str:
    """Write colours as variables of a style sheet.

    Args:
        colours: Colours by name.

    Returns:
        Declarations, each ended by a semicolon.

    Examples:
        >>> variables({"ink": "#1d1f24"})
        '--ink: #1d1f24;'
    """
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())
