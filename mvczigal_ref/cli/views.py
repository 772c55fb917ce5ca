"""Picture files as the views of objects: upright, in 8 or 16 bits, on white, one frame each."""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from mvczigal_ref.errors import ConfigError, printable
from mvczigal_ref.files import to_nothing
from mvczigal_ref.models.file_kinds import describe_file
from mvczigal_ref.shapes import Images

__all__ = ["FORMATS", "GROUND", "MOST_PIXELS", "read_picture", "read_views"]

FORMATS: Final = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "JPEG2000")
"""Formats that are read; no other is tried, so that no outside interpreter is ever started."""

GROUND: Final = (255, 255, 255)
"""Colour that transparency lets through: white, as viewers and web pages show it [1/255]. The tiny
world renders on grey, 0.45, and MV-Adapter was trained on grey, 0.5: lay pictures on that first
where they are to be compared with those."""

MOST_PIXELS: Final = 2**26
"""Most pixels of one picture that is decoded, and of all pictures of a call [px]: 8192 x 8192."""

_LONGEST_CAUSE = 160  # of another library's words [characters]
_BLACK_ON_WHITE = 0  # TIFF's photometric interpretation whose 0 is white
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_SIGNED = 2  # of TIFF's sample formats
_NO_PICTURE = ("a web page", "a Git LFS", "JSON text", "an empty file", "a PDF")
_WHITE_OF_BITS = {"L;2": 85, "L;4": 17}  # decoded levels per level of a PNG of few bits


def read_views(paths: Sequence[Path], *, row: int | None) -> Images:
    """Read pictures as the views of objects.

    Args:
        paths: Image files of one size.
        row: Views side by side in each file, which is an object; None where each file is a view
            of one object.

    Returns:
        Images in [0, 1], fp32; see :func:`read_picture`.

    Raises:
        ConfigError: If a file is no picture that can be read, sizes differ, together they have
            more than :data:`MOST_PIXELS`, or a width cannot be cut.
    """
    sizes: dict[tuple[int, ...], Path] = {}
    stacked = torch.empty(0)
    for place, path in enumerate(paths):
        picture = read_picture(path)
        if not sizes:
            _refuse_many(len(paths), picture)
            stacked = torch.empty(len(paths), *picture.shape)
        sizes[tuple(picture.shape)] = path
        if len(sizes) == 1:
            stacked[place] = picture
    if len(sizes) > 1:
        listed = ", ".join(
            f"{width} x {height} of {str(path)!r}" for (_, height, width), path in sizes.items()
        )
        raise ConfigError(f"pictures must have one size; got {listed}. Scale them first.")
    if row is None:
        return stacked[None]
    if stacked.shape[-1] % row:
        msg = f"`--row` = {row} must divide the pictures' width; got {stacked.shape[-1]} pixels."
        raise ConfigError(msg)
    return torch.stack(stacked.chunk(row, dim=-1), dim=1)


def read_picture(path: Path) -> Float[Tensor, "rgb height width"]:
    """Read one picture as a person sees it.

    It is turned upright by its EXIF orientation and laid on white where it is transparent;
    16 bits of grey are read as such. An ICC profile of RGB colours is not followed, as the
    published scorers do not follow it.

    Args:
        path: File of a format in :data:`FORMATS`, with one frame.

    Returns:
        RGB in [0, 1], fp32.

    Raises:
        ConfigError: If there is no such file, it is damaged or cut, of another format, larger
            than :data:`MOST_PIXELS`, an animation, or in numbers whose white it does not say.

    Examples:
        >>> read_picture(Path("absent.png"))
        Traceback (most recent call last):
        mvczigal_ref.errors.ConfigError: 'absent.png' is no picture that can be read: there is no \
such file.
    """
    try:
        with warnings.catch_warnings(), _silent_decoders():
            # Of pictures that are odd but whole; the size is checked here.
            warnings.simplefilter("ignore")
            pixels = _read(path)
    except _UnreadableError as error:
        raise ConfigError(f"{str(path)!r} is no picture that can be read: {error}.") from error
    except Exception as error:  # Pillow lets errors of every kind out of damaged files
        msg = f"{str(path)!r} is no picture that can be read: {_cause(error)}. Save it anew."
        raise ConfigError(msg) from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _refuse_many(count: int, picture: Tensor) -> None:
    """Refuse more pictures of one size than memory is meant for, before the second is decoded."""
    height, width = picture.shape[1:]
    if count * height * width > MOST_PIXELS:
        raise ConfigError(
            f"pictures must have at most {MOST_PIXELS} pixels together; got {count} of {width} x "
            f"{height}. Scale them first, or score fewer at once."
        )


class _UnreadableError(Exception):
    """A reason for not reading a picture, without its end."""


def _read(path: Path) -> NDArray[np.float32]:
    if not os.path.isfile(path):  # which a name too long is not either
        raise _UnreadableError("there is no such file")
    Image.init()
    formats: list[str] = [name for name in FORMATS if name in Image.OPEN]
    try:
        with Image.open(path, formats=formats) as image:
            _refuse_size(image)
            image.verify()  # of PNG, the checksums
        with Image.open(path, formats=formats) as image:
            if getattr(image, "is_animated", False):
                raise _UnreadableError(
                    "it holds several frames, and a picture is one view. Save each frame as a "
                    "file, and name the files in the order of the cameras"
                )
            _refuse_samples(image, path)
            return _rgb(image)
    except UnidentifiedImageError as error:
        kind = describe_file(path)
        if kind.startswith(_NO_PICTURE):
            raise _UnreadableError(f"it is {kind}") from error
        raise _UnreadableError(
            f"it is none of {', '.join(formats)}, or of a kind of them that is not read, or its "
            "start is damaged"
        ) from error
    except Image.DecompressionBombError as error:
        raise _UnreadableError(f"it has more than {MOST_PIXELS} pixels. Scale it first") from error


@contextmanager
def _silent_decoders() -> Iterator[None]:
    """Keep what libtiff prints of damaged files by itself off the terminal; an error says it."""
    terminal = os.dup(2)
    try:
        to_nothing(2)
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def _refuse_size(image: Image.Image) -> None:
    if image.width * image.height > MOST_PIXELS:
        raise _UnreadableError(
            f"it has {image.width} x {image.height} pixels, more than {MOST_PIXELS}. Scale it first"
        )


def _refuse_samples(image: Image.Image, path: Path) -> None:
    """Refuse samples that Pillow reads as if they were others."""
    if _SIGNED in getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, ()):
        raise _UnreadableError(
            "it holds signed integers, and nothing says which of them is white. Save it with 8 or "
            "16 bits without a sign"
        )
    tile = image.tile[0] if isinstance(image, ImageFile.ImageFile) and image.tile else None
    if image.format != "BMP" or tile is None or "BGRX" not in str(tile.args):
        return
    rows = path.read_bytes()[tile.offset :][: 4 * image.width * image.height]
    fourth = np.frombuffer(rows, np.uint8)[3::4]
    if fourth.size and fourth.min() != fourth.max():
        raise _UnreadableError(
            "it holds a fourth byte per pixel, and nothing says whether that is transparency. Save "
            "it as PNG"
        )


def _rgb(image: Image.Image) -> NDArray[np.float32]:
    """Give upright RGB in [0, 1], whatever the mode."""
    hidden = _hidden_level(image)  # before the picture is decoded, and its storage forgotten
    upright = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        pixels = np.repeat(_wide_grey(image, upright)[..., None], 3, axis=2)
    elif image.mode in ("I", "F"):
        raise _UnreadableError(
            f"it holds {'integers' if image.mode == 'I' else 'floats'} of 32 bits, and nothing "
            "says which of them is white. Save it with 8 or 16 bits"
        )
    elif image.mode in ("CMYK", "LAB"):
        pixels = _bytes(_by_profile(upright))
    elif hidden is None and upright.has_transparency_data:
        ground = Image.new("RGBA", upright.size, (*GROUND, 255))
        ground.alpha_composite(upright.convert("RGBA"))
        pixels = _bytes(ground.convert("RGB"))
    else:
        upright.info.pop("transparency", None)
        pixels = _bytes(upright.convert("RGB"))
    if hidden is not None:
        shown = np.asarray(upright)
        alike = shown == hidden if shown.ndim == 2 else (shown == hidden).all(-1)
        pixels[alike] = np.asarray(GROUND, np.float32) / 255
    return pixels


def _bytes(image: Image.Image) -> NDArray[np.float32]:
    pixels = np.array(image, np.float32)
    pixels /= np.float32(255)
    return pixels


def _hidden_level(image: Image.Image) -> NDArray[np.generic] | None:
    """Give the one grey or colour that a PNG lets through, as decoding will give it."""
    level = image.info.get("transparency")
    if level is None or image.mode not in ("1", "L", "I;16", "RGB"):
        return None
    stored = str(image.tile[0].args) if isinstance(image, ImageFile.ImageFile) else ""
    if stored.startswith("RGB;16"):
        raise _UnreadableError(
            "it makes one colour of 16 bits transparent. Save it with an alpha channel"
        )
    return np.atleast_1d(level) * _WHITE_OF_BITS.get(stored, 1)


def _wide_grey(image: Image.Image, upright: Image.Image) -> NDArray[np.float32]:
    """Scale grey levels of more than 8 bits."""
    tags = getattr(image, "tag_v2", {})
    white = np.float32(4095 if tags.get(_BITS) == (12,) else 65535)
    levels = np.asarray(upright, np.float32) / white
    return 1 - levels if tags.get(_PHOTOMETRIC) == _BLACK_ON_WHITE else levels


def _by_profile(image: Image.Image) -> Image.Image:
    """Turn inks, or CIE L*a*b*, into sRGB; inks without a profile cover what they cover."""
    profile: Any = image.info.get("icc_profile") if image.mode == "CMYK" else None
    if image.mode == "CMYK" and not profile:
        return image.convert("RGB")
    source = ImageCms.ImageCmsProfile(BytesIO(profile)) if profile else _profile("LAB")
    converted = ImageCms.profileToProfile(image, source, _profile("sRGB"), outputMode="RGB")
    if converted is None:
        raise _UnreadableError("its colour profile cannot be followed")
    return converted


def _profile(name: Literal["LAB", "sRGB"]) -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(name))


def _cause(error: Exception) -> str:
    """Say another library's error on one line, and not at length."""
    if "Decompressed data too large" in str(error):
        return "a text or colour profile in it is larger than 1 MiB"
    words = " ".join(printable(str(error)).split())[:_LONGEST_CAUSE].rstrip(".") or "it is damaged"
    return f"{words} ({type(error).__name__})"
