"""`reward.service.json_wire`: PNGs in JSON, to the pixel, or a refusal in one line."""

import base64
import io
import json
import random
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from mvczigal_ref.cli.views import read_picture
from mvczigal_ref.reward.service.json_wire import parse_json
from mvczigal_ref.reward.service.terms import Limits, RefusedError
from mvczigal_ref.reward.service.wire import Head, from_pixels

LIMITS = Limits(
    body_bytes=10_000, objects=2, views=3, image_size=16, prompt_chars=9, requests=1, read_s=9.0
)


def pixels(objects=2, views=3, height=3, width=5):
    """Draw pictures in 8 bits."""
    shape = (objects, views, height, width, 3)
    return np.random.default_rng(4).integers(0, 256, shape, dtype=np.uint8)


def png(picture, **settings):
    """Write an array or a picture as a PNG."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **settings)
    return buffer.getvalue()


def chunk(name, content):
    """Write a chunk of a PNG."""
    check = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)


def text(content):
    """Write bytes in base64."""
    return base64.b64encode(content).decode()


def parse(images, prompts=("a", "b"), *, limits=LIMITS, **more):
    """Write a request to a joint scorer and read it."""
    body = json.dumps({"prompts": prompts, "images": images, **more}, ensure_ascii=False)
    return parse_json(bytearray(body.encode()), kind="joint", limits=limits)


def one(content):
    """Read a request of one picture."""
    return parse([[text(content)]], ["a"])


def header(width, height, bits=8):
    """Write the header of an RGB picture."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))


GOOD = png(pixels()[0, 0])
HEADER, BIG = header(5, 3), header(5000, 5000)
BLACK = chunk(b"IDAT", zlib.compress(bytes(2 * 8 * (1 + 3 * 2 * 8)))) + chunk(b"IEND", b"")
START = b"\x89PNG\r\n\x1a\n"


# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["", "data:image/png;base64,"])
def test_pictures_arrive_to_the_pixel(start):
    """In their order, height and width not exchanged, with or without the start of a data URL."""
    drawn = pixels()
    images = [[start + text(png(view)) for view in row] for row in drawn]
    head, content = parse(images, ["ä\n😀", "b"])

    assert head == Head(kind="joint", prompts=("ä\n😀", "b"), shape=(2, 3, 3, 3, 5), dtype="uint8")
    expected = torch.from_numpy(drawn).permute(0, 1, 4, 2, 3) / 255
    assert torch.equal(from_pixels(content, head), expected)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_picture_is_seen_as_from_its_file(tmp_path, mode):
    """As `mvczigal score` reads it."""
    picture = Image.fromarray(pixels()[0, 0]).convert(mode)
    picture.save(tmp_path / "a.png")
    head, content = one(png(picture))

    assert torch.equal(from_pixels(content, head)[0, 0], read_picture(tmp_path / "a.png"))


def test_the_body_makes_room_for_the_pixels():
    """It is not held beside them."""
    body = bytearray(json.dumps({"prompts": ["a"], "images": [[text(GOOD)]]}).encode())
    parse_json(body, kind="joint", limits=LIMITS)

    assert not body


def test_sizes_are_checked_before_a_picture_is_decoded():
    """Small files may hold many pixels; none is unpacked."""
    limits = Limits(body_bytes=2**20, image_size=2048)
    large = text(png(Image.new("RGB", (2048, 2048))))
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError, match="at most 1048576 bytes of pixels") as caught:
            parse([[large]], ["a"], limits=limits)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()

    assert caught.value.status == 413


@pytest.mark.parametrize("part", [b"[]", b"{}", b'"":[]', b"0"])
def test_lists_of_nothing_take_no_memory(part):
    """Two characters become fifty bytes once they are read, so they are counted first."""
    body = bytearray(b'{"prompts": [' + b",".join([part] * 200_000) + b'], "images": []}')
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError, match="fewer lists and entries") as caught:
            parse_json(body, kind="joint", limits=LIMITS)
        assert tracemalloc.get_traced_memory()[1] < 2**16
    finally:
        tracemalloc.stop()

    assert caught.value.status == 413


def test_prompts_of_marks_alone_are_within_the_limits():
    """What is counted may all stand in prompts."""
    images = [[text(GOOD)] * 3] * 2
    head, _ = parse(images, [",[{:,[{:,"] * 2)

    assert head.prompts == (",[{:,[{:,",) * 2


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "cannot be read as JSON"),
        (b"\xff\xfe", "cannot be read as JSON"),
        (b"[" * 150, "cannot be read as JSON|fewer lists"),
        (b'{"prompts": NaN, "images": []}', "cannot be read as JSON"),
        (b'{"prompts": ["\\ud800"], "images": []}', "cannot be read as JSON"),
        (b"[]", "an object with prompts and images"),
        (b"{}", "an object with prompts and images"),
        (b'{"prompts": [], "images": [], "more": 1}', "an object with prompts and images"),
    ],
)
def test_refuses_other_json(body, message):
    """In one line."""
    with pytest.raises(RefusedError, match=message) as caught:
        parse_json(bytearray(body), kind="joint", limits=LIMITS)

    assert str(caught.value).isprintable()


PICTURE = text(GOOD)


@pytest.mark.parametrize(
    "images",
    [
        None, {}, PICTURE, [], [PICTURE], [[]], [[], []], [[PICTURE], []], [[PICTURE], None],
        [[PICTURE], [PICTURE, PICTURE]], [[PICTURE, 7]], [[None]], [[[PICTURE]]],
    ],
)  # fmt: skip
def test_refuses_other_shapes(images):
    """A list of equally long lists of texts."""
    with pytest.raises(RefusedError, match="a list per object, of its views as texts"):
        parse(images)


@pytest.mark.parametrize(
    ("images", "prompts", "more", "status", "message"),
    [
        ([[PICTURE]], ["a", "b"], {}, 400, "one per object; got 2 for 1"),
        ([[PICTURE]], "a", {}, 400, "`prompts` must be a list of texts"),
        ([[PICTURE]], ["a"], {"kind": "per_view"}, 409, "`kind` must be 'joint'"),
        ([[PICTURE]] * 3, ["a"] * 3, {}, 413, "`objects` must be at most 2"),
        ([[PICTURE] * 4], ["a"], {}, 413, "`views` must be at most 3"),
        ([[PICTURE]], ["a" * 10], {}, 413, "`prompt_chars` must be at most 9"),
        ([[text(png(Image.new("RGB", (17, 3))))]], ["a"], {}, 413, "`image_size` must be at most"),
        (
            [[PICTURE, text(png(pixels(width=4)[0, 0]))]], ["a"], {}, 400,
            r"one size; got 5 x 3 at \[0, 0\], 4 x 3 at \[0, 1\]",
        ),
    ],
)  # fmt: skip
def test_the_limits_hold(images, prompts, more, status, message):
    """As those of the other format."""
    with pytest.raises(RefusedError, match=message) as caught:
        parse(images, prompts, **more)

    assert caught.value.status == status


@pytest.mark.parametrize("content", ["", "!", "AAAA", PICTURE[:30], PICTURE[:35] + "\n", "é" * 99])
def test_refuses_what_is_no_png(content):
    """With its place."""
    with pytest.raises(RefusedError, match=r"`images` must be .* at \[1, 0\]") as caught:
        parse([[PICTURE], [content]])

    assert str(caught.value).isprintable()


ORIENTED = Image.Exif()
ORIENTED[0x0112] = 3
FRAMES = {"save_all": True, "append_images": [Image.fromarray(pixels()[0, 1])]}


@pytest.mark.parametrize(
    "content",
    [
        png(Image.new("RGBA", (5, 3))),
        png(Image.new("LA", (5, 3))),
        png(Image.new("I;16", (5, 3))),
        png(Image.new("RGB", (5, 3)), transparency=(0, 0, 0)),
        png(Image.fromarray(pixels()[0, 0]), exif=ORIENTED),
        png(Image.fromarray(pixels()[0, 0]), **FRAMES),
        START + header(8, 8, bits=16) + BLACK,
        START + header(8, 8) + header(4, 4) + BLACK,
    ],
    ids=[
        "alpha",
        "grey alpha",
        "16 bits grey",
        "hidden colour",
        "on its head",
        "frames",
        "16 bits",
        "two headers",
    ],
)
def test_refuses_pictures_that_would_be_guessed_at(content):
    """Ground, white and frame are the sender's to choose."""
    assert one(START + header(8, 8) + BLACK)[0].shape == (1, 1, 3, 8, 8)
    with pytest.raises(RefusedError, match=r"`images` must be .* at \[0, 0\] is not"):
        one(content)


def bomb():
    """Write a text that unpacks to more than anyone reads."""
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "b" * (2**21), zip=True)
    return png(Image.fromarray(pixels()[0, 0]), pnginfo=info)


@pytest.mark.parametrize(
    "content",
    [
        GOOD[:-20],
        GOOD[: len(HEADER) + 8],
        GOOD[:60] + b"\0" + GOOD[61:],
        GOOD.replace(HEADER, BIG),
        bomb(),
    ],
    ids=["cut", "header alone", "flipped", "too few pixels", "text bomb"],
)
def test_refuses_a_damaged_picture(content):
    """Whatever the damage, with its place."""
    limits = Limits(body_bytes=2**30, image_size=5000)
    with pytest.raises(RefusedError, match=r"the one at \[0, 0\] is not: ") as caught:
        parse([[text(content)]], ["a"], limits=limits)

    assert str(caught.value).isprintable()


def test_damage_of_any_kind_is_refused_or_harmless():
    """A thousand requests with a few bytes changed: pixels of the stated shape, or a refusal."""
    draws = random.Random(3)
    good = json.dumps({"prompts": ["a", "b"], "images": [[PICTURE] * 2] * 2}).encode()
    refusals = []
    for _ in range(1000):
        body, near = bytearray(good), draws.random() < 0.5
        for _ in range(draws.randint(1, 3)):
            place = draws.randrange(40 if near else len(body))
            body[place] = draws.choice(b'[]{},:"0A\x00\xff' if near else range(256))
        try:
            head, content = parse_json(body, kind="joint", limits=LIMITS)
        except RefusedError as error:
            refusals.append(error)
        else:
            assert len(content) == head.image_bytes

    assert 500 < len(refusals) < 1000
    assert all(str(error).isprintable() for error in refusals)
    assert {error.status for error in refusals} <= {400, 409, 413}
