"""`reward.service.wire` and `.terms`: bytes by hand, nothing lost, everything checked."""

import json
import pickle
import struct

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mvczigal_ref.reward.service.terms import Limits, RefusedError, ScorerInfo
from mvczigal_ref.reward.service.wire import (
    Head,
    decode_scores,
    encode_scores,
    from_pixels,
    parse_head,
    parse_object,
    to_pixels,
)
from tests.unit.reward.service.doubles import JOINT, PER_VIEW

HEAD = {"kind": "joint", "prompts": ["a", "b"], "shape": [2, 6, 3, 8, 4], "dtype": "uint8"}
ANSWER = {"name": "corner", "version": "1", "kind": "per_view", "dtype": "float32"}


def read(**other):
    """Read a head of small limits, some of its fields replaced."""
    limits = Limits(objects=2, views=6, image_size=8, prompt_chars=5)
    return parse_head(json.dumps({**HEAD, **other}).encode(), kind="joint", limits=limits)


# -- oracle ------------------------------------------------------------------------------


def test_a_head_is_its_length_and_its_json():
    """Four little-endian bytes, then UTF-8."""
    head = Head(kind="joint", prompts=("naïve",), shape=(1, 2, 3, 4, 5), dtype="float32")
    raw = head.encode()
    (length,) = struct.unpack("<I", raw[:4])

    assert len(raw) == 4 + length
    assert json.loads(raw[4:]) == {
        "kind": "joint",
        "prompts": ["naïve"],
        "shape": [1, 2, 3, 4, 5],
        "dtype": "float32",
    }
    assert head.image_bytes == 1 * 2 * 3 * 4 * 5 * 4


def test_pixels_are_little_endian_row_by_row():
    """Whatever the tensor's strides."""
    pixels = torch.tensor([0.0, 0.5, 0.125, 0.25, 1.0, 0.75]).reshape(1, 1, 1, 2, 3)
    images = pixels.permute(0, 1, 4, 2, 3)

    assert to_pixels(images, "float32").tobytes() == struct.pack(
        "<6f", 0.0, 0.25, 0.5, 1.0, 0.125, 0.75
    )
    # 63.75, 127.5, 31.875 and 191.25 to the nearest; a half to the even neighbour.
    assert list(to_pixels(images, "uint8").tobytes()) == [0, 64, 128, 255, 32, 191]


# -- laws --------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3))
def test_float_images_arrive_bit_for_bit(values):
    """Subnormal numbers too."""
    images = torch.tensor(values).reshape(1, 1, 3, 1, 1)
    head = Head(kind="joint", prompts=("a",), shape=(1, 1, 3, 1, 1), dtype="float32")
    arrived = from_pixels(bytearray(to_pixels(images, "float32").tobytes()), head)

    assert torch.equal(arrived.view(torch.int32), images.view(torch.int32))


def test_pictures_of_bytes_arrive_bit_for_bit():
    """All 256 levels, as uint8."""
    images = (torch.arange(258).clamp(max=255).float() / 255).reshape(1, 1, 3, 86, 1)
    head = Head(kind="joint", prompts=("a",), shape=(1, 1, 3, 86, 1), dtype="uint8")

    assert torch.equal(from_pixels(bytearray(to_pixels(images, "uint8").tobytes()), head), images)


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 32), (torch.float64, 64)])
def test_scores_arrive_bit_for_bit(dtype, width):
    """Through JSON text: the least and the largest, negative zero, and what has no short name."""

    @given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=width), min_size=2))
    def law(values):
        values = [*values, -0.0, 0.1][: 2 * ((len(values) + 2) // 2)]
        reward = torch.tensor(values, dtype=dtype).reshape(-1, 2)
        said = encode_scores(PER_VIEW, reward, objects=len(reward), views=2)
        read = decode_scores(
            parse_object(json.dumps(said).encode()), info=PER_VIEW, objects=len(reward), views=2
        ).tensor()
        bits = torch.int32 if width == 32 else torch.int64

        assert read.dtype == dtype
        assert torch.equal(read.view(bits), reward.view(bits))

    law()


def test_half_precision_scores_arrive_as_fp32():
    """Which holds each of them."""
    reward = torch.tensor([0.1, -3.0], dtype=torch.bfloat16)
    said = encode_scores(JOINT, reward, objects=2, views=6)

    assert said["dtype"] == "float32"
    assert said["scores"] == reward[:, None].tolist()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), st.integers(1, 3))
@example("\x01" * 300, 3)
def test_the_limits_leave_room_for_every_head(prompt, objects):
    """Whatever its characters cost in JSON."""
    limits = Limits(objects=objects, prompt_chars=max(1, len(prompt)))
    shape = (objects, 1, 3, 1, 1)
    raw = Head(kind="per_view", prompts=(prompt,) * objects, shape=shape, dtype="uint8").encode()

    assert len(raw) - 4 <= limits.head_bytes
    assert parse_head(raw[4:], kind="per_view", limits=limits).prompts == (prompt,) * objects


def test_a_refusal_crosses_processes():
    """With its status."""
    error = pickle.loads(pickle.dumps(RefusedError("no", status=413)))

    assert (str(error), error.status) == ("no", 413)


# -- errors ------------------------------------------------------------------------------


def test_reads_a_head_at_its_limits():
    """Each is the largest that is let in."""
    head = read(prompts=["12345", "b"])

    assert head.shape == (2, 6, 3, 8, 4)
    assert head.image_bytes == 2 * 6 * 3 * 8 * 4


@pytest.mark.parametrize(
    ("other", "status", "message"),
    [
        ({"kind": "per_view"}, 409, "`kind` must be 'joint'"),
        ({"dtype": "int64"}, 415, "`dtype` must be one of"),
        ({"dtype": ["uint8"]}, 415, "`dtype` must be one of"),
        ({"prompts": "ab"}, 400, "list of texts"),
        ({"prompts": ["a", 1]}, 400, "list of texts"),
        ({"prompts": ["a", "\ud800"]}, 400, "list of texts"),
        ({"prompts": ["a"]}, 400, "got 1 for 2 objects"),
        ({"prompts": [], "shape": [0, 6, 3, 8, 4]}, 400, "five positive numbers"),
        ({"shape": [2, 6, 3, 8]}, 400, "five positive numbers"),
        ({"shape": [2, 6, 4, 8, 4]}, 400, "five positive numbers"),
        ({"shape": [2, True, 3, 8, 4]}, 400, "five positive numbers"),
        ({"shape": [2, 6.0, 3, 8, 4]}, 400, "five positive numbers"),
        ({"shape": [2, -6, 3, 8, 4]}, 400, "five positive numbers"),
        ({"prompts": ["a"] * 3, "shape": [3, 6, 3, 8, 4]}, 413, "`objects` must be at most 2"),
        ({"shape": [2, 7, 3, 8, 4]}, 413, "`views` must be at most 6"),
        ({"shape": [2, 6, 3, 9, 4]}, 413, "`image_size` must be at most 8"),
        ({"shape": [2, 6, 3, 4, 10**30]}, 413, "`image_size` must be at most 8"),
        ({"prompts": ["a", "123456"]}, 413, "`prompt_chars` must be at most 5"),
        ({"more": 1}, 400, "alone"),
    ],
)
def test_refuses_a_head(other, status, message):
    """What it cannot be, and what is too much, each with its status."""
    with pytest.raises(RefusedError, match=message) as caught:
        read(**other)
    assert caught.value.status == status


@pytest.mark.parametrize(
    "raw",
    [b"", b"\xff", b"[]", b"{", b'{"a": NaN}', b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000],
)
def test_refuses_what_is_no_head(raw):
    """Whatever the bytes, by name and without a crash."""
    with pytest.raises(RefusedError, match="head"):
        parse_head(raw, kind="joint", limits=Limits())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.001, 1.001])
def test_refuses_a_pixel_that_is_none(value):
    """They are in [0, 1]."""
    head = Head(kind="joint", prompts=("a",), shape=(1, 1, 3, 1, 1), dtype="float32")
    with pytest.raises(RefusedError, match=r"in \[0, 1\]"):
        from_pixels(bytearray(struct.pack("<3f", 0.0, value, 1.0)), head)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"name": "corners"}, "the scorer must be"),
        ({"version": "2"}, "the scorer must be"),
        ({"kind": "joint"}, "the scorer must be"),
        ({"dtype": "float16"}, "`dtype` must be"),
        ({"scores": None}, "2 rows of 2"),
        ({"scores": [[1.0, 2.0]]}, "2 rows of 2"),
        ({"scores": [[1.0, 2.0], [1.0]]}, "2 rows of 2"),
        ({"scores": [[1.0, 2.0], [1.0, 2.0, 3.0]]}, "2 rows of 2"),
        ({"scores": [[1.0, 2.0], "ab"]}, "2 rows of 2"),
        ({"scores": [[1.0, 2.0], [1.0, "2"]]}, "finite numbers"),
        ({"scores": [[1.0, 2.0], [1.0, None]]}, "finite numbers"),
        ({"scores": [[1.0, 2.0], [1.0, True]]}, "finite numbers"),
        ({"scores": [[1.0, 2.0], [1.0, 10**400]]}, "finite numbers"),
        ({"scores": [[1.0, 2.0], [1.0, float("inf")]]}, "finite numbers"),
        ({"scores": [[1.0, 2.0], [1.0, 1e300]]}, "finite in float32"),
    ],
)
def test_refuses_an_answer(other, message):
    """From someone else, of another count, or with what is no score."""
    good = {**ANSWER, "scores": [[1.0, 2.0], [3, 4.5]]}
    assert decode_scores(good, info=PER_VIEW, objects=2, views=2).rows == ((1, 2), (3, 4.5))
    with pytest.raises(ValueError, match=message):
        decode_scores({**good, **other}, info=PER_VIEW, objects=2, views=2)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (torch.zeros(2), r"shape \(2, 6\)"),
        (torch.zeros(2, 5), r"shape \(2, 6\)"),
        (torch.zeros(2, 6, dtype=torch.int64), "must be floats"),
        (torch.zeros(2, 6).index_fill(1, torch.tensor([4]), torch.nan), r"got nan at \[0, 4\]"),
    ],
)
def test_does_not_send_what_is_no_reward(reward, message):
    """Of another shape, or not finite."""
    with pytest.raises(ValueError, match=message):
        encode_scores(PER_VIEW, reward, objects=2, views=6)


def test_rejects_limits_and_names_that_are_none():
    """A limit is positive, and a scorer has a name, a version and one of two kinds."""
    with pytest.raises(ValueError, match="`views` must be positive; got 0"):
        Limits(views=0)
    with pytest.raises(ValueError, match="`version` must be a printable text of 1 to 200"):
        ScorerInfo(name="a", version="", kind="joint")
    with pytest.raises(ValueError, match="`name` must be a printable text of 1 to 200"):
        ScorerInfo(name="a" * 201, version="1", kind="joint")
