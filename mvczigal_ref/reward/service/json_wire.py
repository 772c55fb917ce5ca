"""Format of requests that people write: JSON, with pictures as PNG in base64.

Sizes are read from the pictures' own headers and checked against the limits before a picture is
decoded, and decoded pixels may not be more than the bytes of the longest body.
"""

import base64
import io
import struct
from typing import Any, Final

import numpy as np
from PIL import Image
from pydantic_core import from_json

from mvczigal_ref.errors import printable
from mvczigal_ref.reward.service.terms import Kind, Limits, RefusedError
from mvczigal_ref.reward.service.wire import Head, checked_head

__all__ = ["JSON_TYPE", "parse_json"]

JSON_TYPE: Final = "application/json"
"""Content type of these requests; no web page may send it to another site unasked."""

_URL: Final = "data:image/png;base64,"
_PNG: Final = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_START: Final = struct.Struct(">IIB")  # width, height and bits of a channel, which follow
_START_CHARS: Final = 36  # characters of base64 that hold all of these
_ORIENTATION: Final = 0x0112  # EXIF's
_WORDS: Final = 100  # most characters of another library's message


def parse_json(body: bytearray, *, kind: Kind, limits: Limits) -> tuple[Head, memoryview]:
    """Read a request and decode its pictures.

    Args:
        body: JSON text with ``prompts``, one per object, and ``images``, a list of its views per
            object; ``kind`` may be given. It is emptied, to make room for the pixels.
        kind: Kind of the service's scorer.
        limits: Limits of the service.

    Returns:
        The head, and the pixels that it describes.

    Raises:
        RefusedError: If the text or a picture cannot be read, or exceeds a limit.
    """
    # An empty list takes two characters, and fifty bytes once it is read.
    parts = sum(body.count(mark) for mark in (b"[", b"{", b",", b":"))
    if parts > 64 + limits.objects * (2 + limits.views + limits.prompt_chars):
        msg = f"the JSON must have fewer lists and entries than the limits allow; got {parts}."
        raise RefusedError(msg, status=413)
    try:
        entries = from_json(body, allow_inf_nan=False, cache_strings="none")
    except ValueError as error:
        raise RefusedError(f"the body cannot be read as JSON: {error}.") from None
    body.clear()
    if not isinstance(entries, dict) or not (
        {"prompts", "images"} <= entries.keys() <= {"prompts", "images", "kind"}
    ):
        raise RefusedError("the JSON must be an object with prompts and images, and perhaps kind.")
    pictures = _rows(entries["images"])
    sizes = {_size(text, place): place for place, text in _placed(pictures)}
    if len(sizes) > 1:
        listed = ", ".join(f"{w} x {h} at {place}" for (w, h), place in list(sizes.items())[:3])
        raise RefusedError(f"`images` must be of one size; got {listed}.")
    ((width, height),) = sizes
    head = checked_head(
        {
            "kind": entries.get("kind", kind),
            "prompts": entries["prompts"],
            "shape": [len(pictures), len(pictures[0]), 3, height, width],
            "dtype": "uint8",
        },
        kind=kind,
        limits=limits,
    )
    if head.image_bytes > limits.body_bytes:
        msg = f"`images` must have at most {limits.body_bytes} bytes of pixels; got more."
        raise RefusedError(msg, status=413)
    pixels = np.empty(head.shape, np.uint8)
    for place, text in _placed(pictures):
        object, view = place
        pixels[object, view] = _decoded(text, place, (width, height)).transpose(2, 0, 1)
        pictures[object][view] = ""
    return head, pixels.reshape(-1).data


def _rows(images: object) -> list[list[str]]:
    """Check that every object has as many pictures, at least one."""
    rows = images if isinstance(images, list) else []
    lengths = {len(row) if isinstance(row, list) else 0 for row in rows}
    texts = all(isinstance(text, str) for row in rows if isinstance(row, list) for text in row)
    if len(lengths) != 1 or 0 in lengths or not texts:
        msg = "`images` must be a list per object, of its views as texts, as many in each."
        raise RefusedError(msg)
    return rows


def _placed(pictures: list[list[str]]) -> Any:  # noqa: ANN401 - an iterator of places and texts
    return (
        ([object, view], text)
        for object, row in enumerate(pictures)
        for view, text in enumerate(row)
    )


def _bytes(text: str, place: list[int]) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        msg = f"`images` must be base64; at {place} it is not: {error}."
        raise RefusedError(msg) from None


def _size(text: str, place: list[int]) -> tuple[int, int]:
    """Read width and height of a picture from its first bytes."""
    start = text[len(_URL) if text.startswith(_URL) else 0 :][:_START_CHARS]
    data = _bytes(start, place) if len(start) == _START_CHARS else b""
    if not data.startswith(_PNG):
        msg = f"`images` must be PNG files in base64; at {place} there is none."
        raise RefusedError(msg)
    width, height, bits = _START.unpack_from(data, len(_PNG))
    if bits > 8:
        raise RefusedError(_unfit(place))
    return width, height


def _decoded(
    text: str, place: list[int], size: tuple[int, int]
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode a picture whose size has been checked."""
    data = io.BytesIO(_bytes(text.removeprefix(_URL), place))
    pixels = None
    try:
        with Image.open(data, formats=["PNG"]) as image:
            image.verify()  # the checksums
        data.seek(0)
        with Image.open(data, formats=["PNG"]) as image:
            plain = image.mode in ("1", "L", "P", "RGB") and not image.has_transparency_data
            upright = image.getexif().get(_ORIENTATION, 1) == 1
            if plain and upright and getattr(image, "n_frames", 1) == 1 and image.size == size:
                pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow lets errors of every kind out of damaged files
        words = printable(str(error)[:_WORDS]).rstrip(".")
        msg = f"`images` must be whole PNG files; the one at {place} is not: {words}."
        raise RefusedError(msg) from None
    if pixels is None:
        raise RefusedError(_unfit(place))
    return pixels


def _unfit(place: list[int]) -> str:
    return (
        "`images` must be upright PNGs of one frame, of 8 bits, without transparency; the one at "
        f"{place} is not. Convert it to RGB."
    )
