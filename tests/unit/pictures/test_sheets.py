"""`pictures.sheets`: oracle, laws, errors."""

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mvczigal_ref.pictures import as_grid, contact_sheet, save_png, save_turntable


def numbered(rows, columns, height=3, width=2):
    """Give every image one grey level of its own."""
    level = torch.arange(rows * columns, dtype=torch.float32) * 10 / 255
    return level.view(rows, columns, 1, 1, 1).expand(-1, -1, 3, height, width).contiguous()


# -- oracle ------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3))
def test_every_pixel_is_where_it_belongs(rows, columns, scale, gap):
    """Images as a table, a gap around each, every pixel a square of `scale`."""
    height, width = 3, 2
    images = torch.rand(rows, columns, 3, height, width, generator=torch.Generator().manual_seed(0))
    sheet = contact_sheet(images, scale=scale, gap=gap)
    wide, high = gap + columns * (width * scale + gap), gap + rows * (height * scale + gap)

    assert (sheet.mode, sheet.size) == ("RGB", (wide, high))
    for y in range(high):
        row, dy = divmod(y - gap, height * scale + gap)
        for x in range(wide):
            column, dx = divmod(x - gap, width * scale + gap)
            inside = row >= 0 and column >= 0 and dy < height * scale and dx < width * scale
            expected = (255, 255, 255)
            if inside:
                pixel = images[row, column, :, dy // scale, dx // scale]
                expected = tuple(round(255 * v) for v in pixel.tolist())
            assert sheet.getpixel((x, y)) == expected


# -- laws --------------------------------------------------------------------------------


def test_values_outside_the_range_are_clamped():
    """Half precision and tensors that carry a gradient are shown as well."""
    images = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float16).view(1, 1, 3, 1, 1)

    assert contact_sheet(images.requires_grad_(), gap=0).getpixel((0, 0)) == (0, 128, 255)


def test_labels_stand_above_their_rows():
    """Between the rows of images, which stay whole, in an ink that can be read."""
    images = numbered(2, 3, height=8, width=8)
    plain = contact_sheet(images, scale=4)
    sheet = contact_sheet(images, scale=4, row_labels=["one", "two"])
    line = (sheet.height - plain.height) // 2

    assert line >= 12
    for row in range(2):
        top = 2 + row * (34 + line)
        text = sheet.crop((0, top, sheet.width, top + line))
        assert min(low for low, _ in text.getextrema()) < 100
        block = sheet.crop((2, top + line, 34, top + line + 32))
        assert block.getextrema() == (((30 * row),) * 2,) * 3


def test_a_long_label_widens_the_sheet():
    """No text is cut off."""
    images = numbered(1, 1)
    short, long = (
        contact_sheet(images, row_labels=["a red cube with a white nose" * n]) for n in (1, 2)
    )

    assert long.width > 1.8 * short.width > 100
    margin = long.crop((long.width - 1, 0, long.width, long.height))
    assert margin.getextrema() == ((255, 255),) * 3


def test_a_saved_picture_reads_back(tmp_path):
    """In a folder that is made; an older file is replaced; nothing else is left behind."""
    path = tmp_path / "new" / "sheet.png"
    save_png(path, contact_sheet(numbered(1, 1)))
    sheet = contact_sheet(numbered(2, 2), scale=2)
    save_png(path, sheet)

    assert list(path.parent.iterdir()) == [path]
    with Image.open(io.BytesIO(path.read_bytes())) as read:
        assert read.format == "PNG"
        assert read.tobytes() == sheet.tobytes()


def test_a_grid_is_read_row_by_row():
    """What the last row lacks is white."""
    views = numbered(1, 5)[0]
    grid = as_grid(views, 3)

    assert grid.shape == (2, 3, *views.shape[1:])
    assert torch.equal(grid.flatten(0, 1)[:5], views)
    assert bool((grid[1, 2] == 1).all())
    assert as_grid(views, 5).shape[:2] == (1, 5)


@pytest.mark.parametrize("end", ["gif", "png", "apng", "webp"])
def test_a_turntable_turns(end, tmp_path):
    """Views by azimuth, each for its share of the turn, again and again."""
    path = tmp_path / "new" / f"turn.{end}"
    # Seen from -90, -45, 0, 90, 180 and 225 degrees; given in another order.
    azimuths = [180.0, -90.0, 90.0, -45.0, 225.0, 0.0]
    images = numbered(1, 6)[0]
    save_turntable(path, images, azimuths, seconds=3.6, scale=3)

    expected = [(0.0, 67.5), (90.0, 90.0), (180.0, 67.5), (225.0, 45.0), (270.0, 45.0), (315.0, 45)]
    with Image.open(path) as turn:
        assert turn.n_frames == 6
        assert turn.size == (6, 9)
        assert turn.info["loop"] == 0
        for frame, (azimuth, degrees) in enumerate(expected):
            turn.seek(frame)
            view = [a % 360 for a in azimuths].index(azimuth)
            assert turn.convert("RGB").getextrema() == ((10 * view,) * 2,) * 3
            # GIF counts hundredths of a second.
            assert abs(turn.info["duration"] - 10 * degrees) <= 10


def test_a_turn_of_one_view(tmp_path):
    """It is shown all the while."""
    save_turntable(tmp_path / "turn.webp", numbered(1, 1)[0], [30.0], seconds=1.5)
    with Image.open(tmp_path / "turn.webp") as turn:
        assert turn.n_frames == 1


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "azimuths", "seconds", "message"),
    [
        ("turn.mp4", [0.0, 90.0], 1.0, "`path` must end in .* got 'turn.mp4'"),
        ("turn.gif", [0.0], 1.0, "`azimuth_deg` must hold one angle per view, 2; got 1"),
        ("turn.gif", [0.0, 90.0], 0.0, "`seconds` must be positive; got 0.0"),
    ],
)
def test_a_bad_turntable_is_refused(name, azimuths, seconds, message, tmp_path):
    """Before a file is there."""
    with pytest.raises(ValueError, match=message):
        save_turntable(tmp_path / name, numbered(1, 2)[0], azimuths, seconds=seconds)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": 0}, "`scale` must be at least 1; got 0"),
        ({"gap": -1}, "`gap` must not be negative; got -1"),
        ({"row_labels": ["one"]}, "`row_labels` must hold one text per row, 2; got 1"),
        ({"row_labels": []}, "`row_labels` must hold one text per row, 2; got 0"),
    ],
)
def test_a_bad_setting_is_refused(change, message):
    """Its name, the rule and the value."""
    with pytest.raises(ValueError, match=message):
        contact_sheet(numbered(2, 2), **change)


def test_a_grid_without_columns_is_refused():
    """By the argument's name."""
    with pytest.raises(ValueError, match="`columns` must be at least 1; got 0"):
        as_grid(numbered(1, 2)[0], 0)


def test_no_image_is_refused():
    """There is nothing to lay out."""
    with pytest.raises(ValueError, match="`images` must hold at least one image"):
        contact_sheet(torch.zeros(0, 6, 3, 8, 8))
