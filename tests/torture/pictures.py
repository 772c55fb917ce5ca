"""Pictures: damaged ones are read or refused by name; those that look alike read alike."""

import io
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mvczigal_ref.cli.views import FORMATS, read_picture
from mvczigal_ref.errors import ConfigError
from tests.torture.damage import damaged
from tests.torture.tally import Tally, require_line

MODES = {"PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"), "TIFF": ("RGB", "L", "CMYK", "1")}


def torture(tally: Tally, chance: random.Random, count: int, folder: Path) -> None:
    """Damage pictures of every format; hide colours; turn; widen."""
    Image.init()
    formats = [name for name in FORMATS if name in Image.SAVE]
    alike = (_hidden, _turned, _wide)
    for place in range(count):
        pixels = np.random.default_rng(chance.randrange(2**32)).integers(0, 256, (12, 16, 4))
        pixels = pixels.astype(np.uint8)
        if place % 4 == 0:
            check = chance.choice(alike)
            with tally.attempt(f"{check.__name__} {place}"):
                check(chance, pixels, folder)
            continue
        kind = chance.choice(formats)
        mode = chance.choice(MODES.get(kind, ("RGB",)))
        path = folder / f"{place}.{kind.lower()}"
        with tally.attempt(f"damaged {kind} {mode} {place}"):
            path.write_bytes(damaged(chance, _encoded(pixels, kind, mode)))
            try:
                picture = read_picture(path)
            except ConfigError as error:
                tally.note("refused")
                require_line(str(error), path.name)
            else:
                assert bool((picture.isfinite() & (picture >= 0) & (picture <= 1)).all())
        path.unlink(missing_ok=True)


def _encoded(pixels: np.ndarray, kind: str, mode: str) -> bytes:
    image = Image.fromarray(pixels)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def _saved(image: Image.Image, path: Path, **options: object) -> torch.Tensor:
    image.save(path, **options)
    picture = read_picture(path)
    path.unlink()
    return picture


def _hidden(chance: random.Random, pixels: np.ndarray, folder: Path) -> None:
    """Colours under full transparency do not matter, to the bit."""
    pixels[..., 3] = np.where(pixels[..., 3] < 128, 0, 255)
    other = pixels.copy()
    other[pixels[..., 3] == 0, :3] = [chance.randrange(256) for _ in range(3)]
    suffix, options = chance.choice([("png", {}), ("tif", {}), ("webp", {"lossless": True})])
    one, two = (
        _saved(Image.fromarray(p), folder / f"a.{suffix}", **options) for p in (pixels, other)
    )
    white = np.where(pixels[..., 3:] == 0, 255, pixels[..., :3]).astype(np.float32) / 255
    assert torch.equal(one, two)
    assert torch.equal(one, torch.from_numpy(white).permute(2, 0, 1))


def _turned(chance: random.Random, pixels: np.ndarray, folder: Path) -> None:
    """An orientation by EXIF alone is the picture turned."""
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    number = chance.choice(list(back))
    upright, exif = Image.fromarray(pixels[..., :3]), Image.Exif()
    exif[0x0112] = number
    turned = _saved(upright.transpose(back[number]), folder / "a.png", exif=exif)
    assert torch.equal(turned, _saved(upright, folder / "b.png"))


def _wide(chance: random.Random, pixels: np.ndarray, folder: Path) -> None:
    """Grey of 16 bits is that of 8."""
    grey, suffix = pixels[..., 0], chance.choice(["png", "tif"])
    narrow = _saved(Image.fromarray(grey), folder / f"a.{suffix}")
    wide = _saved(Image.fromarray(grey.astype(np.uint16) * 257), folder / f"b.{suffix}")
    assert torch.allclose(wide, narrow, atol=1e-7, rtol=0)
