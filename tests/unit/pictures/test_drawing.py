"""`pictures.drawing`: figures for pages and files, in one palette, light and dark."""

import re
import xml.etree.ElementTree as ET

import pytest

from mvczigal_ref.pictures.drawing import CURVES, bare_axes, element, picture, style
from mvczigal_ref.pictures.palette import DARK, LIGHT


def figure():
    """One line of the first curve's colour."""
    with style("y"):
        drawing, axes = bare_axes(4.0, 2.0, left=0.5, bottom=0.4)
        axes.plot([0, 1], [0, 1], color=CURVES[0])
        axes.set_xlabel("time [s]")
        return drawing


def luminance(colour):
    """WCAG's relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    """WCAG's ratio."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_curves_stand_out_from_their_ground(palette):
    """4.5 for text, 3 for what is drawn, as WCAG 2.2 asks."""
    for ground in ("paper", "card", "mark"):
        assert contrast(palette["ink"], palette[ground]) >= 4.5
        assert contrast(palette["soft"], palette[ground]) >= 4.5
    for curve in ("curve-0", "curve-1", "curve-2"):
        assert contrast(palette[curve], palette["card"]) >= 3.0


def test_both_palettes_have_the_same_parts():
    """So a page may name any of them."""
    assert LIGHT.keys() == DARK.keys()


def test_an_element_takes_its_colours_from_the_page():
    """It names itself, and has no colour of its own."""
    svg = element(figure(), name="e", title="A < B")

    ET.fromstring(svg)
    assert 'role="img" aria-labelledby="e-title"><title id="e-title">A &lt; B</title>' in svg
    assert "var(--curve-0)" in svg
    assert not re.search(r"#[0-9a-f]{6}", svg)


def test_a_file_is_light_and_dark_on_a_transparent_ground():
    """Every colour of the light palette that it draws with has its dark one."""
    svg = picture(figure(), title="A line")
    root = ET.fromstring(svg)
    drawn, sheet = svg.split("</style>")[1], svg.split("</style>")[0]

    assert root.attrib["role"] == "img"
    assert LIGHT["curve-0"] in drawn
    assert "opacity: 0" in drawn
    for colour in set(re.findall(r"#[0-9a-f]{6}", drawn)) - {"#ffffff"}:
        (part,) = [name for name, light in LIGHT.items() if light == colour]
        assert f'[style*="stroke: {colour}"] {{ stroke: {DARK[part]} !important; }}' in sheet
