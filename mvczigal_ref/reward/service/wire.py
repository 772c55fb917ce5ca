"""Format of requests and answers: JSON and raw little-endian pixels.

The body of a request is the length of its head (four bytes, little-endian), the head (JSON: kind,
prompts, shape and dtype of the images), and the images. An answer is JSON. Nothing in them can
name code to run, and every length is checked against a limit before memory is taken for it.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, TypeGuard, get_args

import numpy as np
import torch
from torch import Tensor

from mvczigal_ref.reward.service.terms import Kind, Limits, RefusedError, ScorerInfo
from mvczigal_ref.shapes import Images

__all__ = [
    "CONTENT_TYPE",
    "Head",
    "Pixels",
    "Scores",
    "checked_head",
    "decode_scores",
    "encode_scores",
    "from_pixels",
    "parse_head",
    "parse_object",
    "to_pixels",
]

Pixels = Literal["float32", "uint8"]
"""Type of sent pixels: ``float32`` as they are, ``uint8`` rounded, in a quarter of the bytes."""

CONTENT_TYPE: Final = "application/x-mvczigal-images"
"""Content type of a request, which no web page may send to another site unasked."""

_NUMPY: Final[dict[str, np.dtype[Any]]] = {"float32": np.dtype("<f4"), "uint8": np.dtype("u1")}
_AXES: Final = ("objects", "views", "rgb", "height", "width")


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """Head of a request, which describes its images."""

    kind: Kind
    """Kind of scorer that the client expects."""

    prompts: tuple[str, ...]
    """Prompts, one per object."""

    shape: tuple[int, ...]
    """Shape of the images: objects, views, 3, height and width."""

    dtype: Pixels
    """Type of a pixel."""

    @property
    def image_bytes(self) -> int:
        """Length of the images after the head [bytes]."""
        return math.prod(self.shape) * _NUMPY[self.dtype].itemsize

    def encode(self) -> bytes:
        """Write the head as the beginning of a request.

        Returns:
            Length and text of the head.

        Raises:
            ValueError: If a prompt has no form in UTF-8.
        """
        text = json.dumps(asdict(self), ensure_ascii=False).encode()
        return struct.pack("<I", len(text)) + text


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Scores of some objects, exact: every float32 or float64 is a Python float."""

    rows: tuple[tuple[float, ...], ...]
    """Scores, one row per object: one number per view, or a single one."""

    dtype: Literal["float32", "float64"]
    """Type in which the scorer gave its scores."""

    def tensor(self) -> Tensor:
        """Return the scores in the scorer's own type.

        Returns:
            One row per object.
        """
        return torch.tensor(self.rows, dtype=getattr(torch, self.dtype))


def to_pixels(images: Images, dtype: Pixels) -> np.ndarray[Any, np.dtype[Any]]:
    """Turn images into bytes to send.

    Args:
        images: Views in [0, 1].
        dtype: ``float32`` keeps the numbers, ``uint8`` takes the nearest multiples of 1/255.

    Returns:
        A contiguous little-endian array of the same shape.
    """
    pixels = images.detach().cpu().float()
    if dtype == "uint8":
        pixels = (pixels * 255).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.numpy(), dtype=_NUMPY[dtype])


def from_pixels(body: bytearray | memoryview, head: Head) -> Images:
    """Turn received bytes into images.

    Args:
        body: Pixels, as many bytes as the head states; the images share this memory.
        head: Head with shape and dtype.

    Returns:
        Views in [0, 1], fp32.

    Raises:
        RefusedError: If a pixel is not a number in [0, 1].
    """
    array = np.frombuffer(body, dtype=_NUMPY[head.dtype]).reshape(head.shape)
    if head.dtype == "uint8":
        return torch.from_numpy(array).float().div_(255)
    images = torch.from_numpy(array.astype(np.float32, copy=False))
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise RefusedError("every pixel must be in [0, 1]; got one that is not.")
    return images


def parse_object(raw: bytes | bytearray) -> dict[str, Any]:
    """Read one JSON object, strictly.

    Args:
        raw: JSON text in UTF-8.

    Returns:
        The object.

    Raises:
        ValueError: If it is anything else, or has a word for a non-finite number.
    """
    try:
        value = json.loads(raw.decode(), parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        msg = f"it must be a JSON object, and is a {type(value).__name__}"
        raise ValueError(msg)  # noqa: TRY004 - of bytes received, not of an argument
    return value


def parse_head(raw: bytes | bytearray, *, kind: Kind, limits: Limits) -> Head:
    """Read a request's head and check it against the limits.

    Args:
        raw: Text of the head.
        kind: Kind of the service's scorer.
        limits: Limits of the service.

    Returns:
        The head.

    Raises:
        RefusedError: If it is no head, is for a scorer of another kind, or exceeds a limit.
    """
    try:
        entries = parse_object(raw)
    except ValueError as error:
        msg = f"the request's head cannot be read: {error}."
        raise RefusedError(msg) from error
    if entries.keys() != {"kind", "prompts", "shape", "dtype"}:
        raise RefusedError("the request's head must have kind, prompts, shape and dtype alone.")
    return checked_head(entries, kind=kind, limits=limits)


def checked_head(entries: Mapping[str, Any], *, kind: Kind, limits: Limits) -> Head:
    """Check the entries of a head against the limits.

    Args:
        entries: Values of any type under the names of the fields.
        kind: Kind of the service's scorer.
        limits: Limits of the service.

    Returns:
        The head.

    Raises:
        RefusedError: If a value is wrong, is for a scorer of another kind, or exceeds a limit.
    """
    if entries["kind"] != kind:
        msg = f"`kind` must be {kind!r}, the scorer's; got {str(entries['kind'])[:50]!r}."
        raise RefusedError(msg, status=409)
    dtype = entries["dtype"]
    if dtype not in get_args(Pixels):
        msg = f"`dtype` must be one of {list(get_args(Pixels))}; got {str(dtype)[:50]!r}."
        raise RefusedError(msg, status=415)
    prompts, shape = entries["prompts"], entries["shape"]
    if not _are(prompts, str) or not all(map(_has_utf8, prompts)):
        raise RefusedError("`prompts` must be a list of texts.")
    if not _are(shape, int) or len(shape) != len(_AXES) or shape[2] != 3 or min(shape) < 1:
        raise RefusedError("`shape` must be five positive numbers, the third of them 3.")
    if shape[0] != len(prompts):
        msg = f"`prompts` must hold one per object; got {len(prompts)} for {shape[0]} objects."
        raise RefusedError(msg)
    longest = max(map(len, prompts))
    for name, value, limit in (
        ("objects", shape[0], limits.objects),
        ("views", shape[1], limits.views),
        ("image_size", max(shape[3:]), limits.image_size),
        ("prompt_chars", longest, limits.prompt_chars),
    ):
        if value > limit:
            msg = f"`{name}` must be at most {limit} in a request; got {str(value)[:20]}."
            raise RefusedError(msg, status=413)
    return Head(kind=kind, prompts=tuple(prompts), shape=tuple(shape), dtype=dtype)


def encode_scores(info: ScorerInfo, reward: Tensor, *, objects: int, views: int) -> dict[str, Any]:
    """Check a scorer's rewards and write them as JSON values.

    Args:
        info: Info of the scorer.
        reward: Rewards that it returned.
        objects: Objects that it was given [1].
        views: Views of each object [1].

    Returns:
        The answer; its floats are read back to the same bits.

    Raises:
        ValueError: If the reward has another shape, or a non-finite number.
    """
    shape = (objects, views) if info.kind == "per_view" else (objects,)
    if tuple(reward.shape) != shape or not reward.is_floating_point():
        msg = f"reward must be floats of shape {shape}; got {reward.dtype} {tuple(reward.shape)}."
        raise ValueError(msg)
    wide = reward.detach().cpu()
    wide = wide if wide.dtype == torch.float64 else wide.float()
    if not bool(wide.isfinite().all()):
        where = [int(i) for i in (~wide.isfinite()).nonzero()[0]]
        msg = f"reward must be finite; got {wide[tuple(where)].item()!r} at {where}."
        raise ValueError(msg)
    name = str(wide.dtype).removeprefix("torch.")
    return {**asdict(info), "dtype": name, "scores": wide.reshape(objects, -1).tolist()}


def decode_scores(
    answer: Mapping[str, Any], *, info: ScorerInfo, objects: int, views: int
) -> Scores:
    """Read the scores of an answer, and check their origin, number, type and values.

    Args:
        answer: Answer of the service.
        info: Info of the scorer that was asked.
        objects: Objects that it was given [1].
        views: Views of each object [1].

    Returns:
        One row per object.

    Raises:
        ValueError: If another scorer answers, or counts, types or numbers are wrong.
    """
    who = {field.name: answer.get(field.name) for field in fields(info)}
    if who != asdict(info):
        msg = f"the scorer must be {asdict(info)}; the answer is from {who}"
        raise ValueError(msg)
    dtype, rows = answer.get("dtype"), answer.get("scores")
    if dtype != "float32" and dtype != "float64":
        msg = f"`dtype` must be float32 or float64; got {dtype!r}"
        raise ValueError(msg)
    count = info.count(views)
    if not _are(rows, list) or len(rows) != objects or any(len(row) != count for row in rows):
        msg = f"`scores` must be {objects} rows of {count}"
        raise ValueError(msg)
    if not all(_are(row, (float, int)) and all(map(_is_finite, row)) for row in rows):
        raise ValueError("`scores` must be finite numbers")
    scores = Scores(rows=tuple(tuple(map(float, row)) for row in rows), dtype=dtype)
    if not bool(scores.tensor().isfinite().all()):
        msg = f"`scores` must be finite in {dtype}"
        raise ValueError(msg)
    return scores


def _are(value: object, kind: type | tuple[type, ...]) -> TypeGuard[list[Any]]:
    """Return whether a value is a list of one type; True and False do not count as numbers."""
    return isinstance(value, list) and all(
        isinstance(x, kind) and not isinstance(x, bool) for x in value
    )


def _is_finite(number: int | float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer beyond every float
        return False


def _has_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _no_constant(word: str) -> float:
    msg = f"{word} is no JSON"
    raise ValueError(msg)
