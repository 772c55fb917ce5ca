"""`cli.views`: oracle, laws, errors."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from mvczigal_ref.cli import views
from mvczigal_ref.cli.views import MOST_PIXELS, read_picture, read_views
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.pictures import save_turntable

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (6, 9, 3)).astype(np.uint8)
GREY = (np.arange(54).reshape(6, 9) * 4).astype(np.uint8)
HIDDEN = np.zeros((6, 9), bool)
HIDDEN[1:3, 2:7] = True


def as_tensor(pixels):
    """Bytes, grey or RGB, as a picture in [0, 1]."""
    rgb = np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels
    return torch.from_numpy(rgb.astype(np.float32) / 255).permute(2, 0, 1)


def on_white(pixels, hidden):
    """The same where nothing is hidden, white elsewhere."""
    rgb = np.repeat(pixels[..., None], 3, 2) if pixels.ndim == 2 else pixels
    return as_tensor(np.where(hidden[..., None], 255, rgb))


def written(tmp_path, image, name, **options):
    """Save a picture and read it again."""
    image.save(tmp_path / name, **options)
    return read_picture(tmp_path / name)


def chunk(kind, content):
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(depth, colour_type, rows, width, *, hidden=None):
    """A PNG of rows of packed samples, as its specification lays them out."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour_type, 0, 0, 0)
    found = [chunk(b"IHDR", header)]
    if hidden is not None:
        found.append(chunk(b"tRNS", b"".join(struct.pack(">H", level) for level in hidden)))
    found.append(chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))))
    return b"\x89PNG\r\n\x1a\n" + b"".join(found) + chunk(b"IEND", b"")


# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.ppm", "a.tif", "a.webp", "a.jp2"])
def test_bytes_are_kept(tmp_path, name):
    """In every format that loses nothing."""
    options = {"lossless": True} if name == "a.webp" else {}

    assert torch.equal(
        written(tmp_path, Image.fromarray(COLOURS), name, **options), as_tensor(COLOURS)
    )


@pytest.mark.parametrize("hidden", [0, 255, "noise"])
def test_transparency_lets_white_through(tmp_path, hidden):
    """Whatever colour nobody sees is stored under it."""
    below = RNG.integers(0, 256, COLOURS.shape) if hidden == "noise" else hidden
    pixels = np.where(HIDDEN[..., None], below, COLOURS).astype(np.uint8)
    alpha = np.where(HIDDEN, 0, 255).astype(np.uint8)
    colour = Image.fromarray(np.dstack([pixels, alpha]))
    grey = Image.fromarray(np.dstack([pixels[..., 0], alpha]), "LA")

    for name in ("a.png", "a.webp", "a.tif"):
        options = {"lossless": True} if name == "a.webp" else {}
        read = written(tmp_path, colour, name, **options)
        assert torch.equal(read, on_white(COLOURS, HIDDEN))
    assert torch.equal(written(tmp_path, grey, "la.png"), on_white(COLOURS[..., 0], HIDDEN))


def test_half_transparency_mixes_with_white(tmp_path):
    """A red of which half is seen is pink."""
    read = written(tmp_path, Image.new("RGBA", (2, 2), (200, 0, 0, 51)), "half.png")

    assert read[:, 0, 0].mul(255).round().tolist() == [244, 204, 204]  # 0.2 x red + 0.8 x white


@pytest.mark.parametrize("name", ["a.png", "a.gif"])
def test_a_palette_may_hide_one_of_its_colours(tmp_path, name):
    """By one index."""
    indices = (GREY // 4 % 4).astype(np.uint8)
    palette = np.array([[9, 9, 9], [200, 0, 0], [0, 200, 0], [0, 0, 200]], np.uint8)
    image = Image.fromarray(indices, "P")
    image.putpalette(palette.tobytes())
    read = written(tmp_path, image, name, transparency=2)

    assert torch.equal(read, on_white(palette[indices], indices == 2))


def test_a_palette_may_hide_its_colours_in_part(tmp_path):
    """By one opacity per index."""
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((1, 0), 1)
    read = written(tmp_path, image, "p.png", transparency=bytes([51, 0]))

    assert read[:, 0, 0].mul(255).round().tolist() == [244, 204, 204]
    assert read[:, 0, 1].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("depth", "row", "level", "expected"),
    [
        (1, 0b01000000, 1, [0, 1]),
        (2, 0b00100000, 2, [0, 1]),
        (2, 0b01100000, 3, [85 / 255, 170 / 255]),
        (4, 0x3A, 10, [51 / 255, 1]),
    ],
)
def test_a_grey_of_few_bits_may_be_hidden(tmp_path, depth, row, level, expected):
    """A PNG counts the hidden level in its own bits."""
    (tmp_path / "few.png").write_bytes(png(depth, 0, [bytes([row])], 2, hidden=[level]))

    assert read_picture(tmp_path / "few.png")[0, 0].tolist() == pytest.approx(expected)


def test_one_grey_or_colour_may_be_hidden(tmp_path):
    """Of 8 and 16 bits of grey, and of 8 bits of colour."""
    read = written(tmp_path, Image.fromarray(GREY), "l.png", transparency=int(GREY[0, 3]))
    assert torch.equal(read, on_white(GREY, GREY[0, 3] == GREY))
    read = written(
        tmp_path, Image.fromarray(COLOURS), "c.png", transparency=tuple(map(int, COLOURS[2, 2]))
    )
    assert torch.equal(read, on_white(COLOURS, (COLOURS[2, 2] == COLOURS).all(-1)))
    wide = [struct.pack(">4H", 0, 1000, 65535, 1001)]
    (tmp_path / "w.png").write_bytes(png(16, 0, wide, 4, hidden=[1000]))
    read = read_picture(tmp_path / "w.png")
    assert read[0, 0].tolist() == pytest.approx([0, 1, 1, 1001 / 65535])


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.pgm", "grey.jp2"])
def test_16_bits_of_grey_are_scaled_to_white(tmp_path, name):
    """A picture of 16 bits is what it is with 8."""
    wide = Image.fromarray(GREY.astype(np.uint16) * 257)

    assert torch.equal(written(tmp_path, wide, name), as_tensor(GREY))


def test_a_tiff_may_count_from_white_or_in_12_bits(tmp_path):
    """As scanners write them; the byte order is the file's."""
    wide = Image.fromarray(GREY.astype(np.uint16) * 257)
    read = written(tmp_path, wide, "inverse.tif", tiffinfo={262: 0})
    assert torch.equal(read, 1 - as_tensor(GREY))
    levels = np.array([[0, 4095], [2048, 1024]])
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in levels.tolist())
    tags = [(256, 2), (257, 2), (258, 12), (259, 1), (262, 1), (273, 200), (277, 1), (278, 2)]
    tags.append((279, len(packed)))
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, v) for tag, v in tags)
    head = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    (tmp_path / "12.tif").write_bytes(head.ljust(200, b"\0") + packed)
    assert read_picture(tmp_path / "12.tif")[0].flatten().tolist() == pytest.approx(
        (levels.ravel() / 4095).tolist()
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg"])
def test_pictures_are_upright(tmp_path, orientation, name):
    """Turned and mirrored as EXIF asks for, once."""
    shown = np.repeat(np.repeat(COLOURS[:3, :4], 8, 0), 8, 1)
    stored = {
        1: shown,
        2: shown[:, ::-1],
        3: shown[::-1, ::-1],
        4: shown[::-1],
        5: shown.transpose(1, 0, 2),
        6: np.rot90(shown),
        7: shown[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(shown, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {
        "a.webp": {"lossless": True},
        "a.jpg": {"quality": 100, "subsampling": 0},
    }.get(name, {})
    image = Image.fromarray(np.ascontiguousarray(stored))
    read = written(tmp_path, image, name, exif=exif, **options)

    assert read.shape == (3, 24, 32)
    assert (read - as_tensor(shown)).abs().max() < (0.02 if name == "a.jpg" else 1e-9)


def test_every_mode_has_its_colours(tmp_path):
    """One bit, inks, video's luminance and chrominance, and CIE L*a*b*."""
    bits = Image.fromarray(HIDDEN)
    for name in ("1.png", "1.tif", "1.pbm", "1.bmp"):
        assert torch.equal(written(tmp_path, bits, name), as_tensor(HIDDEN * np.uint8(255)))
    inks = Image.new("CMYK", (8, 8), (0, 255, 255, 51))
    for name in ("inks.tif", "inks.jpg"):
        read = written(tmp_path, inks, name)
        assert read[:, 0, 0].mul(255).round().tolist() == pytest.approx([204, 0, 0], abs=2)
    video = Image.new("RGB", (8, 8), (200, 30, 30)).convert("YCbCr")
    # Pillow 12 writes such files without compression so that it cannot read them.
    read = written(tmp_path, video, "video.tif", compression="tiff_lzw")
    assert read[:, 0, 0].mul(255).round().tolist() == pytest.approx([200, 30, 30], abs=2)
    # Of sRGB's red, L* 54.3, a* 80.8, b* 69.9, in 8 bits.
    lab = Image.new("LAB", (8, 8), (138, 209, 198))
    read = written(tmp_path, lab, "lab.tif")
    assert read[:, 0, 0].mul(255).round().tolist() == pytest.approx([255, 0, 0], abs=6)


def test_views_are_files_or_parts_of_a_row(tmp_path):
    """In their order."""
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    Image.fromarray(COLOURS[::-1].copy()).save(tmp_path / "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]

    views, rows = read_views(paths, row=None), read_views(paths, row=3)
    assert (views.shape, rows.shape) == ((1, 2, 3, 6, 9), (2, 3, 3, 6, 3))
    assert torch.equal(views[0, 1], as_tensor(COLOURS[::-1].copy()))
    assert torch.equal(rows[1, 2], views[0, 1, :, :, 6:])


# -- errors ------------------------------------------------------------------------------


def refused(path, words):
    """The file and the cause on one line."""
    with pytest.raises(ConfigError, match=words) as caught:
        read_picture(path)
    told = str(caught.value)
    assert told.startswith(repr(str(path)))
    assert told.isprintable()
    assert len(told) < 500 + len(str(path))


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif", "a.avif", "a.mpo"])
def test_several_frames_are_refused(tmp_path, name):
    """A picture is one view, and which frame is meant is not said."""
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "blue")]
    if name in ("a.tif", "a.mpo"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    else:
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=100)

    refused(tmp_path / name, "several frames")


def test_the_turntables_of_samples_are_refused(tmp_path):
    """They are in the order of angles, not of cameras."""
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for end in ("webp", "gif", "png"):
        save_turntable(tmp_path / f"turn.{end}", images, [-90.0, -45.0, 0.0, 90.0, 180.0, 225.0])
        refused(tmp_path / f"turn.{end}", "several frames")


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_without_a_white_are_refused(tmp_path, kind):
    """Integers and floats of 32 bits."""
    Image.fromarray(GREY.astype(kind)).save(tmp_path / "wide.tif")
    refused(tmp_path / "wide.tif", "nothing says which of them is white")


def test_signed_bytes_are_refused(tmp_path):
    """Pillow takes them for unsigned ones."""
    Image.fromarray(GREY).save(tmp_path / "signed.tif", tiffinfo={339: 2})
    refused(tmp_path / "signed.tif", "it holds signed integers")


def test_a_fourth_byte_of_a_bitmap_is_refused_where_it_says_something(tmp_path):
    """Of 32 bits per pixel, which Pillow writes for RGBA and reads as opaque."""
    alpha = np.where(HIDDEN, 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([COLOURS, alpha])).save(tmp_path / "a.bmp")
    refused(tmp_path / "a.bmp", "a fourth byte per pixel")
    full = np.full_like(alpha, 255)
    read = written(tmp_path, Image.fromarray(np.dstack([COLOURS, full])), "full.bmp")
    assert torch.equal(read, as_tensor(COLOURS))


def test_a_hidden_colour_of_16_bits_is_refused(tmp_path):
    """Decoding keeps 8 of them, which do not tell it from its neighbours."""
    content = png(16, 2, [bytes(12)], 2, hidden=[0, 0, 1])
    (tmp_path / "wide.png").write_bytes(content)
    refused(tmp_path / "wide.png", "one colour of 16 bits transparent")


def test_large_texts_and_profiles_are_refused(tmp_path):
    """Node graphs of several megabytes, compressed."""
    for kind in ("add_text", "add_itxt"):
        info = PngImagePlugin.PngInfo()
        getattr(info, kind)("workflow", "x" * (2 << 20), zip=True)
        Image.fromarray(COLOURS).save(tmp_path / "text.png", pnginfo=info)
        refused(tmp_path / "text.png", "larger than 1 MiB")
    Image.fromarray(COLOURS).save(tmp_path / "icc.png", icc_profile=bytes(2 << 20))
    refused(tmp_path / "icc.png", "larger than 1 MiB")


@pytest.mark.parametrize("side", [8200, 15000])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, side):
    """Below and above what Pillow itself refuses."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b""))
    refused(tmp_path / "huge.png", f"{MOST_PIXELS}")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.avif", "a.webp", "a.tif", "a.gif", "a.jp2"])
def test_cut_files_are_refused(tmp_path, name):
    """Wherever they are cut, down to nothing."""
    noise = Image.fromarray(RNG.integers(0, 256, (48, 64, 3)).astype(np.uint8))
    noise.save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for share in (0.0, 0.01, 0.3, 0.9):
        (tmp_path / name).write_bytes(content[: int(share * len(content))])
        refused(tmp_path / name, "is no picture that can be read")


def test_damaged_files_are_refused_or_read(tmp_path):
    """Never with an error of another kind."""
    contents = {}
    for name in ("a.png", "a.gif", "a.ppm", "a.tif", "a.webp", "a.bmp"):
        Image.fromarray(COLOURS).save(tmp_path / name)
        contents[name] = (tmp_path / name).read_bytes()
    (tmp_path / "p6.ppm").write_bytes(b"P6\n64 48\n255\x1d\0\0\0\4\0\0\x08" + bytes(9000))
    refused(tmp_path / "p6.ppm", "Token too long")
    messages = []
    for name, content in contents.items():
        for _ in range(30):
            damaged = bytearray(content)
            for place in RNG.integers(0, len(content), 3):
                damaged[place] = RNG.integers(0, 256)
            (tmp_path / name).write_bytes(damaged)
            try:
                read_picture(tmp_path / name)
            except ConfigError as error:
                messages.append(str(error))
    assert len(messages) > 30
    assert all(message.isprintable() for message in messages)


def test_decoders_print_nothing_themselves(tmp_path, capfd):
    """The refusal is the only line."""
    Image.fromarray(COLOURS).save(tmp_path / "a.tif", compression="tiff_lzw")
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with Image.open(tmp_path / "a.tif") as image:
        start = image.tag_v2[273][0]
    content[start + 20 : start + 60] = b"\xff" * 40
    (tmp_path / "a.tif").write_bytes(content)
    refused(tmp_path / "a.tif", "is no picture that can be read")
    assert capfd.readouterr() == ("", "")


def test_what_a_checksum_finds_is_refused(tmp_path):
    """A bit of a PNG's pixels."""
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).save(buffer, "PNG", compress_level=0)
    content = bytearray(buffer.getvalue())
    content[content.index(b"IDAT") + 30] ^= 1
    (tmp_path / "flipped.png").write_bytes(content)
    refused(tmp_path / "flipped.png", "SyntaxError")


def test_other_formats_are_refused_without_a_try(tmp_path, monkeypatch):
    """PostScript, that an interpreter would run, most of all."""
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    )
    refused(tmp_path / "a.png", "it is none of PNG, JPEG")
    refused(tmp_path, "no such file")
    refused(tmp_path / "absent\n.png", "no such file")
    for content, words in (
        (b"", "it is an empty file"),
        (b"<!DOCTYPE html><html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
    ):
        (tmp_path / "other.png").write_bytes(content)
        refused(tmp_path / "other.png", words)


def test_the_one_that_fails_is_named_among_many(tmp_path):
    """And pictures of other sizes are listed."""
    for name, side in (("a.png", 8), ("b.png", 9)):
        Image.new("RGB", (side, 8)).save(tmp_path / name)
    (tmp_path / "c.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    paths = [tmp_path / name for name in ("a.png", "c.jpg", "b.png")]
    with pytest.raises(ConfigError, match=r"c\.jpg' is no picture"):
        read_views(paths, row=None)
    with pytest.raises(ConfigError, match=r"8 x 8 of .*a\.png', 9 x 8 of .*b\.png'"):
        read_views([paths[0], paths[2]], row=None)
    with pytest.raises(ConfigError, match=r"`--row` = 3 must divide .*; got 8 pixels"):
        read_views(paths[:1], row=3)


def test_too_many_pictures_are_refused_at_the_first(tmp_path, monkeypatch):
    """Each is small enough; together they would fill the memory."""
    read = []
    monkeypatch.setattr(views, "read_picture", lambda p: (read.append(p), read_picture(p))[1])
    monkeypatch.setattr(views, "MOST_PIXELS", 3 * 64)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    paths = [tmp_path / "a.png"] * 4
    with pytest.raises(ConfigError, match=r"at most 192 pixels together; got 4 of 8 x 8\. .*fewer"):
        read_views(paths, row=None)
    assert len(read) == 1
    assert read_views(paths[:3], row=None).shape == (1, 3, 3, 8, 8)


def test_inks_follow_their_profile(tmp_path):
    """A profile that cannot be followed is refused."""
    Image.new("CMYK", (8, 8), (0, 255, 255, 51)).save(
        tmp_path / "inks.tif", icc_profile=b"not a profile"
    )
    refused(tmp_path / "inks.tif", "profile")
