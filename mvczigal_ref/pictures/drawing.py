"""Figures as SVG text, in the palette of every page: elements of a page, or files of their own."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from mvczigal_ref.pictures.palette import DARK, LIGHT

__all__ = ["CURVES", "GRID", "INK", "bare_axes", "element", "picture", "style"]

INK: Final = "#010101"
"""Colour that stands for the palette's ``soft``, of text and axes."""

GRID: Final = "#020202"
"""Colour that stands for the palette's ``line``."""

CURVES: Final = ("#0a0a01", "#0a0a02", "#0a0a03")
"""Colours that stand for the palette's three curves."""

_PARTS = {INK: "soft", GRID: "line"} | {c: f"curve-{place}" for place, c in enumerate(CURVES)}
_FILE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "mvczigal",  # equal numbers give equal pictures
    "path.simplify": True,
}
_STYLE = {
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@contextmanager
def style(grid: str) -> Iterator[None]:
    """Draw in the house's style while the context lasts.

    Args:
        grid: Axis whose ticks have lines, ``x`` or ``y``.

    Yields:
        Nothing.
    """
    with matplotlib.rc_context({**_STYLE, "axes.grid.axis": grid}):
        yield


def bare_axes(width: float, height: float, *, left: float, bottom: float) -> tuple[Figure, Axes]:
    """Make a figure with one pair of axes on a transparent ground.

    Args:
        width: Width of the figure [in].
        height: Height of the figure [in].
        left: Room for the vertical axis's name and numbers [in].
        bottom: Room for the horizontal axis's [in].

    Returns:
        Figure and axes.
    """
    figure = Figure(figsize=(width, height))
    sides = {"left": left / width, "right": 1 - 0.1 / width}
    figure.subplots_adjust(**sides, bottom=bottom / height, top=1 - 0.16 / height)
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0.0)
    axes.tick_params(length=0, which="both")
    return figure, axes


def element(figure: Figure, *, name: str, title: str) -> str:
    """Write a figure as an element of a page, whose variables give the colours.

    Args:
        figure: Drawn in :func:`style`.
        name: Prefix of the element's ids, unique on the page.
        title: Name for those who do not see the figure.

    Returns:
        An ``<svg>`` element of the page's width, with the role of an image.
    """
    svg = _svg(figure)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    # Only elements that are referred to keep their id, made unique on the page.
    used = set(re.findall(r"#([\w.-]+)[\")]", svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(|href=")#([\w.-]+)', rf"\1#{name}-\2", svg)
    # The page gives the size; the view box keeps the shape.
    for side in ("width", "height"):
        svg = re.sub(rf'^<svg( [^>]*?)? {side}="[^"]*"', r"<svg\1", svg)
    for colour, part in _PARTS.items():
        svg = svg.replace(colour, f"var(--{part})")
    return _titled(svg, name, title)


def picture(figure: Figure, *, title: str) -> str:
    """Write a figure as a file, light or dark as the reader's device, on a transparent ground.

    Args:
        figure: Drawn in :func:`style`.
        title: Name for those who do not see the figure.

    Returns:
        An SVG file's text.
    """
    svg, dark = _svg(figure), []
    for colour, part in _PARTS.items():
        svg = svg.replace(colour, LIGHT[part])
        dark += [
            f'[style*="{use}: {LIGHT[part]}"] {{ {use}: {DARK[part]} !important; }}'
            for use in ("fill", "stroke")
        ]
    sheet = f"<style>@media (prefers-color-scheme: dark) {{ {' '.join(dark)} }}</style>"
    return _titled(svg, "picture", title).replace("</title>", f"</title>{sheet}", 1) + "\n"


def _svg(figure: Figure) -> str:
    """Write matplotlib's file without its preamble, its own style and its font."""
    text = io.StringIO()
    with matplotlib.rc_context(_FILE):
        FigureCanvasSVG(figure).print_svg(text, metadata=_NO_METADATA)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    return re.sub(
        r"(font(?:-family)?:[^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1system-ui, sans-serif", svg
    )


def _titled(svg: str, name: str, title: str) -> str:
    head, body = svg.split(">", 1)
    labelled = f'{head} role="img" aria-labelledby="{name}-title">'
    return f'{labelled}<title id="{name}-title">{escape(title, quote=False)}</title>{body}'
