"""Preprocessing of images: oracle, laws, gradients, errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mvczigal_ref.reward import preprocessing
from mvczigal_ref.reward.preprocessing import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, preprocess
from tests.compare import FP64, assert_equal_to

CLIP = {"mean": OPENAI_CLIP_MEAN, "std": OPENAI_CLIP_STD}
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
SIDE = st.integers(2, 12)


def pictures(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator, dtype=dtype)


# -- oracle ------------------------------------------------------------------------------


def cubic(x):
    """Keys' kernel with a = -1/2."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def tent(x):
    """Linear interpolation's kernel."""
    return max(0.0, 1 - abs(x))


def resized_line(line, length, kernel, radius):
    """Filter one line of floats; the kernel is widened when the line shrinks."""
    ratio = len(line) / length
    width = max(ratio, 1.0)
    result = []
    for i in range(length):
        centre = (i + 0.5) * ratio
        # Of a pixel that the kernel's support touches, the one whose centre rounds into it counts.
        first = max(0, int(centre - radius * width + 0.5))
        last = min(len(line), int(centre + radius * width + 0.5))
        weights = [kernel((j + 0.5 - centre) / width) for j in range(first, last)]
        pixels = line[first:last]
        total = math.fsum(weights)
        result.append(math.fsum(w * p for w, p in zip(weights, pixels, strict=True)) / total)
    return result


def resized(image, height, width, kernel, radius):
    """Filter rows, then columns, of one colour."""
    rows = [resized_line(row, width, kernel, radius) for row in image]
    columns = [
        resized_line(list(column), height, kernel, radius) for column in zip(*rows, strict=True)
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def by_hand(images, height, width, kernel, radius, *, top=0, left=0, rows=None, columns=None):
    """Resize, cut, clamp and normalise, one number at a time."""
    rows, columns = rows or height, columns or width
    out = []
    for image in images.tolist():
        colours = []
        for colour, mean, std in zip(image, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, strict=True):
            full = resized(colour, height, width, kernel, radius)
            cut = [line[left : left + columns] for line in full[top : top + rows]]
            colours.append([[(min(max(x, 0.0), 1.0) - mean) / std for x in row] for row in cut])
        out.append(colours)
    return torch.tensor(out, dtype=torch.float64)


@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(["bicubic", "bilinear"]))
@settings(max_examples=10, deadline=None)
def test_equals_the_filter_s_definition(height, width, new_height, new_width, interpolation):
    """Sides grow and shrink each on its own; overshoot is clamped."""
    images = pictures(1, 3, height, width)
    actual = preprocess(
        images, size=(new_height, new_width), crop=False, interpolation=interpolation, **CLIP
    )
    kernel, radius = {"bicubic": (cubic, 2), "bilinear": (tent, 1)}[interpolation]
    expected = by_hand(images, new_height, new_width, kernel, radius)

    assert_equal_to(actual, expected, FP64, axes=4)


@pytest.mark.parametrize(
    ("shape", "size", "between", "top", "left"),
    [
        ((9, 6), 4, (6, 4), 1, 0),
        ((6, 9), 4, (4, 6), 0, 1),
        # 4 * 11 / 6 is 7.33: the longer side rounds down, and so does the offset.
        ((11, 6), 4, (7, 4), 1, 0),
        ((6, 11), 4, (4, 7), 0, 1),
        ((6, 6), (4, 2), (4, 4), 0, 1),
        ((3, 5), 7, (7, 11), 0, 2),
        # The ratio in floats, 4 * (1 / 3), would miss the last pixel.
        ((9, 3), (12, 4), (12, 4), 0, 0),
    ],
)
def test_the_crop_keeps_the_aspect_ratio_and_the_centre(shape, size, between, top, left):
    """The smallest picture that covers the target is cut."""
    images = pictures(2, 3, *shape)
    rows, columns = (size, size) if isinstance(size, int) else size
    expected = by_hand(images, *between, cubic, 2, top=top, left=left, rows=rows, columns=columns)

    assert_equal_to(preprocess(images, size=size, **CLIP), expected, FP64, axes=4)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("shape", "size", "between", "top", "left"),
    [
        ((3, 61), 4, (4, 81), 0, 38),
        ((61, 3), 4, (81, 4), 38, 0),
        ((9, 160), 4, (4, 71), 0, 33),
        ((160, 9), (3, 5), (88, 5), 42, 0),
    ],
)
def test_of_a_thin_picture_the_same_centre_is_cut(shape, size, between, top, left, interpolation):
    """Grown or shrunk, though only the centre is ever made."""
    images = pictures(2, 3, *shape)
    rows, columns = (size, size) if isinstance(size, int) else size
    kernel, radius = {"bicubic": (cubic, 2), "bilinear": (tent, 1)}[interpolation]
    expected = by_hand(
        images, *between, kernel, radius, top=top, left=left, rows=rows, columns=columns
    )
    actual = preprocess(images, size=size, interpolation=interpolation, **CLIP)

    assert_equal_to(actual, expected, FP64, axes=4)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("round_to_bytes", [False, True])
def test_the_cut_of_a_thin_picture_joins_on_to_that_of_others(
    interpolation, round_to_bytes, monkeypatch
):
    """To the rounding of fp32: one way of cutting is as good as the other."""
    images = pictures(1, 3, 11, 40, dtype=torch.float32)
    options = {"size": 7, "interpolation": interpolation, "round_to_bytes": round_to_bytes}
    whole = preprocess(images, **options, **PLAIN)
    monkeypatch.setattr(preprocessing, "_MOST_CUT_OFF", 0)
    cut = preprocess(images, **options, **PLAIN)

    apart = (whole - cut).abs()
    assert (apart > 1e-6).double().mean() <= 0.02 * round_to_bytes  # ties may fall the other way
    assert apart.max() < (1.01 / 255 if round_to_bytes else 1e-6)


def test_a_thin_picture_takes_little_memory():
    """Of 20,000 x 3 pixels: the whole resized picture would have 334 million."""
    wide = torch.full((1, 3, 3, 20000), 0.5)
    with torch.profiler.profile(profile_memory=True) as profile:
        assert preprocess(wide, size=224, **PLAIN).shape == (1, 3, 224, 224)
    tracked = [event.self_cpu_memory_usage for event in profile.key_averages()]
    assert sum(size for size in tracked if size > 0) < 50e6


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(16, 16), (80, 64), (30, 20)])
def test_equals_pillow_to_its_rounding(size, interpolation):
    """Noise of 8 bits, shrunk or grown: a tie may fall the other way, by one step of 255."""
    # Both sides alike, as no scorer's resizing mixes: from version 13 Pillow then goes by
    # columns first, so that two versions of it differ more than their rounding.
    generator = torch.Generator().manual_seed(0)
    content = torch.randint(0, 256, (37, 53, 3), generator=generator, dtype=torch.uint8)
    kind = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
    pillow = Image.fromarray(content.numpy()).resize(size[::-1], kind[interpolation])
    expected = torch.from_numpy(np.array(pillow)).long()
    actual = preprocess(
        content.permute(2, 0, 1).float() / 255,
        size=size,
        crop=False,
        round_to_bytes=True,
        interpolation=interpolation,
        **PLAIN,
    )
    steps = (actual * 255).permute(1, 2, 0)
    apart = (steps.round().long() - expected).abs()

    assert (steps - steps.round()).abs().max() < 1e-4
    assert apart.max() <= 1
    assert (apart > 0).double().mean() < 0.02


# -- laws --------------------------------------------------------------------------------


def test_every_image_is_treated_alike_and_apart():
    """Leading axes are rows."""
    images = pictures(2, 3, 3, 7, 9)
    together = preprocess(images, size=4, **CLIP)

    assert together.shape == (2, 3, 3, 4, 4)
    for i in range(2):
        for j in range(3):
            assert torch.equal(together[i, j], preprocess(images[i, j], size=4, **CLIP))


def test_an_image_of_the_right_size_is_only_normalised():
    """Nothing is filtered twice; colours have their own statistics."""
    images = pictures(2, 3, 4, 4)
    expected = images.clone()
    for colour in range(3):
        expected[:, colour] -= OPENAI_CLIP_MEAN[colour]
        expected[:, colour] /= OPENAI_CLIP_STD[colour]

    assert_equal_to(preprocess(images, size=4, **CLIP), expected, FP64, axes=4)


@pytest.mark.parametrize("options", [{"size": 8}, {"size": 5, "round_to_bytes": True}])
def test_images_that_are_resized_apart_have_the_same_bits(monkeypatch, options):
    """Memory is all that differs."""
    images = torch.rand(2, 3, 3, 40, 24, generator=torch.Generator().manual_seed(0))
    options = {"mean": (0.5,) * 3, "std": (0.3,) * 3, **options}
    together = preprocess(images, **options)
    monkeypatch.setattr(preprocessing, "_PIXELS_AT_ONCE", 2000)
    assert torch.equal(preprocess(images, **options), together)


def test_a_number_is_a_square():
    """Cropped or stretched."""
    images = pictures(1, 3, 7, 9)
    for crop in (True, False):
        square = preprocess(images, size=(5, 5), crop=crop, **CLIP)

        assert torch.equal(preprocess(images, size=5, crop=crop, **CLIP), square)


def test_bytes_are_bytes_before_and_after():
    """Noise below half a step of 255 is not seen."""
    steps = (pictures(1, 3, 6, 6) * 255).round()
    noisy = ((steps + 0.8 * (pictures(1, 3, 6, 6, seed=1) - 0.5)) / 255).clamp(0.0, 1.0)
    clean, seen = (
        preprocess(x, size=4, round_to_bytes=True, **PLAIN) for x in (steps / 255, noisy)
    )

    assert torch.equal(clean, seen)
    assert ((clean * 255) - (clean * 255).round()).abs().max() < 1e-9


def test_the_dtype_stays():
    """Float32 images give float32."""
    images = pictures(1, 3, 6, 6, dtype=torch.float32)

    assert preprocess(images, size=4, **CLIP).dtype == torch.float32


# -- gradients ---------------------------------------------------------------------------


def test_gradient_flows_through_resizing():
    """Where the clamp is not active."""
    images = (0.4 + 0.2 * pictures(1, 3, 3, 2)).requires_grad_()

    assert torch.autograd.gradcheck(lambda x: preprocess(x, size=2, **CLIP), images)


def test_no_gradient_where_overshoot_was_clamped():
    """A bicubic edge between black and white rings, and the ringing is cut."""
    images = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    images[..., 2:] = 1.0
    images.requires_grad_()
    result = preprocess(images, size=8, **PLAIN)
    (gradient,) = torch.autograd.grad(result[..., 2].sum(), images)

    assert (result[..., 2] == 0.0).all()
    assert (gradient == 0.0).all()


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("images", {"images": torch.zeros(1, 3, 4, 4, dtype=torch.bfloat16)}),
        ("images", {"images": torch.zeros(1, 3, 0, 4)}),
        ("size", {"size": 0}),
        ("size", {"size": (4, -1)}),
        ("mean", {"mean": (0.0, 0.0)}),
        ("std", {"std": (1.0,)}),
        ("std", {"std": (1.0, 0.0, 1.0)}),
        ("std", {"std": (math.nan, 1.0, 1.0)}),
    ],
)
def test_rejects_what_has_no_picture(name, change):
    """Each argument by its name."""
    arguments = {"images": torch.zeros(1, 3, 4, 4), "size": 4, **CLIP, **change}
    with pytest.raises(ValueError, match=rf"`{name}` must .*; got"):
        preprocess(arguments.pop("images"), **arguments)
