"""Strip of states: the same objects before and after, columns side by side."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

from mvczigal_ref.pictures.palette import LIGHT
from mvczigal_ref.pictures.sheets import as_grid, contact_sheet
from mvczigal_ref.shapes import Images

__all__ = ["strip"]

_MARGIN, _LINE, _GAP = 10, 20, 2  # around blocks, of a line of text, between views [pixels]
_GROUND = (112, 112, 112)


def strip(
    columns: Mapping[str, Images],
    *,
    rows: Sequence[str],
    notes: Mapping[str, Sequence[str]],
    views_per_line: int = 3,
    scale: int = 3,
) -> Image.Image:
    """Lay out states as columns and objects as rows, with a text under each.

    Args:
        columns: Images of the same objects in each state, by its name, in [0, 1].
        rows: Text above each object.
        notes: Text under each object of a state, by the state's name.
        views_per_line: Views of an object beside one another.
        scale: Screen pixels along the edge of an image's pixel.

    Returns:
        The picture, RGB on white.

    Raises:
        ValueError: If states, texts and objects are not equally many.

    Examples:
        >>> import torch
        >>> views = torch.zeros(1, 6, 3, 8, 8)
        >>> strip({"before": views}, rows=["a cat"], notes={"before": ["1 dB"]}, scale=1).size
        (52, 102)
    """
    for name, images in columns.items():
        if not len(images) == len(rows) == len(notes[name]):
            msg = (
                f"`columns` must hold as many objects as `rows` and `notes`, {len(rows)}; got "
                f"{len(images)} and {len(notes[name])} for {name!r}."
            )
            raise ValueError(msg)
    cells = {
        name: [
            contact_sheet(as_grid(views, views_per_line), scale=scale, gap=_GAP, paper=_GROUND)
            for views in images
        ]
        for name, images in columns.items()
    }
    width, height = next(iter(cells.values()))[0].size
    block = _LINE + height + _LINE
    size = (
        _MARGIN + len(columns) * (width + _MARGIN),
        _MARGIN + _LINE + len(rows) * block + _MARGIN,
    )
    sheet = Image.new("RGB", size, "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, name in enumerate(columns):
        x = _MARGIN + column * (width + _MARGIN)
        pen.text((x, _MARGIN), name, LIGHT["ink"], ImageFont.load_default(15))
        for row, text in enumerate(rows):
            y = _MARGIN + _LINE + row * block
            if column == 0:
                pen.text((x, y), text, LIGHT["ink"], font)
            sheet.paste(cells[name][row], (x, y + _LINE))
            pen.text((x, y + _LINE + height + 1), notes[name][row], LIGHT["soft"], font)
    return sheet
