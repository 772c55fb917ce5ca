"""Scorers that ask a service, with the interface of the scorer that it runs."""

import time
from collections.abc import Callable, Sequence
from typing import ClassVar, Final, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.reward.service.cache import ScoreCache, content_key
from mvczigal_ref.reward.service.connection import BadAnswerError, Connection, Patience
from mvczigal_ref.reward.service.terms import Kind, Limits, ScorerInfo
from mvczigal_ref.reward.service.wire import Head, Pixels, Scores, decode_scores, to_pixels
from mvczigal_ref.shapes import Images

__all__ = ["RemoteJointView", "RemotePerView", "RemoteScorer"]

_HEADROOM: Final = 1024  # bytes of a head besides its prompts


class RemoteScorer:
    """Common part of the two clients of a service, which differ in the kind of scorer.

    Images are sent in groups of consecutive objects. Scores of a group are all taken from the
    cache or all asked for, so that the cache cannot change which objects are scored
    together, and with them the last bits of the scores.

    Args:
        url: Address of the service, such as ``http://127.0.0.1:8763``. It is first asked at the
            first call, or by `info`.
        objects: Most objects in a request [1]; at least 1. The service's own limits hold too.
        dtype: ``float32`` sends images as they are, rounded to fp32 if they are wider;
            ``uint8`` rounds to multiples of 1/255, for a quarter of the bytes.
        patience: Bounds on the wait for the service.
        cache: Scores that need not be asked for again; None stores none.
        clock: Returns the time [s].
        sleep: Waits for some seconds.

    Raises:
        ValueError: If an argument is out of range.
    """

    kind: ClassVar[Kind]

    def __init__(
        self,
        url: str,
        *,
        objects: int = 16,
        dtype: Pixels = "float32",
        patience: Patience | None = None,
        cache: ScoreCache | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if objects < 1:
            msg = f"`objects` must be at least 1; got {objects}."
            raise ValueError(msg)
        if dtype not in get_args(Pixels):
            msg = f"`dtype` must be one of {list(get_args(Pixels))}; got {dtype!r}."
            raise ValueError(msg)
        self._connection = Connection(
            url, patience=patience or Patience(), clock=clock, sleep=sleep
        )
        self._objects, self._dtype, self._cache = objects, dtype, cache
        self._service: tuple[ScorerInfo, int, int] | None = None

    def info(self) -> ScorerInfo:
        """Ask which scorer the service runs, waiting for it if necessary.

        Returns:
            The scorer's name, version and kind, which stay the same from then on.

        Raises:
            ValueError: If the scorer is of the other kind.
            ScorerUnavailableError: If there is no usable answer.
        """
        return self._described()[0]

    def __call__(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, " object *view"]:
        """Score each view, or each object by all its views: see `PerViewScorer`, `JointViewScorer`.

        Args:
            images: Decoded views in [0, 1].
            prompts: One prompt per object.

        Returns:
            One reward per view, or one per object, in the scorer's dtype but at least fp32, on
            the images' device; without gradient [reward units].

        Raises:
            ValueError: If arguments disagree, or the service refuses them.
            NonFiniteError: If an image is not finite.
            ScorerUnavailableError: If there is no usable answer for as long as patience lasts.
        """
        scores = self._scores(images, prompts)
        return scores if self.kind == "per_view" else scores[:, 0]

    def _described(self) -> tuple[ScorerInfo, int, int]:
        """Return the service's scorer, and the objects and bytes that it takes in a request."""
        if self._service is None:
            self._service = self._connection.persist(self._ask_version)
            kind = self._service[0].kind
            if kind != self.kind:
                self._service = None
                msg = (
                    f"`url` must be of a {self.kind} scorer; the one at {self._connection.url} "
                    f"is {kind}."
                )
                raise ValueError(msg)
        return self._service

    def _ask_version(self) -> tuple[ScorerInfo, int, int]:
        answer = self._connection.get("/version")
        try:
            info = ScorerInfo(**{name: answer[name] for name in ("name", "version", "kind")})
            names = ("objects", "body_bytes")
            limits = Limits(**{name: answer["limits"][name] for name in names})
        except (KeyError, TypeError, ValueError) as error:
            msg = f"/version names no scorer: {error!r}"
            raise BadAnswerError(msg) from error
        return info, int(limits.objects), int(limits.body_bytes)

    def _scores(self, images: Images, prompts: Sequence[str]) -> Float[Tensor, "object score"]:
        """Score each object, one row per object."""
        if len(prompts) != images.shape[0]:
            msg = (
                f"`prompts` must hold one per object; got {len(prompts)} for {images.shape[0]} "
                "objects."
            )
            raise ValueError(msg)
        _check(images)
        info, most, room = self._described()
        views = images.shape[1]
        size = images[0].numel() * (4 if self._dtype == "float32" else 1) if len(prompts) else 1
        words = 6 * max(map(len, prompts), default=0) + 4
        group = max(1, min(self._objects, most, (room - _HEADROOM) // (size + words)))
        rows: list[Scores] = []
        for start in range(0, len(prompts), group):
            part = slice(start, start + group)
            rows += self._group(info, images[part], prompts[part])
        wide = any(scores.dtype == "float64" for scores in rows)
        table = torch.empty(
            (len(prompts), info.count(views)), dtype=torch.float64 if wide else torch.float32
        )
        for index, scores in enumerate(rows):
            table[index] = scores.tensor()[0]
        return table.to(images.device)

    def _group(self, info: ScorerInfo, images: Images, prompts: Sequence[str]) -> list[Scores]:
        """Score objects that are sent together, one record per object."""
        pixels = [image.tobytes() for image in to_pixels(images, self._dtype)]
        shape, views = tuple(images.shape), images.shape[1]
        keys = []
        if self._cache is not None:
            keys = [
                content_key(info, prompt, shape=shape[1:], dtype=self._dtype, pixels=content)
                for prompt, content in zip(prompts, pixels, strict=True)
            ]
            cached = [self._cache.get(key, info=info, views=views) for key in keys]
            if all(scores is not None for scores in cached):
                return [scores for scores in cached if scores is not None]
        head = Head(kind=self.kind, prompts=tuple(prompts), shape=shape, dtype=self._dtype)
        body = b"".join([head.encode(), *pixels])

        def attempt() -> Scores:
            content = self._connection.post("/score", body)
            try:
                return decode_scores(content, info=info, objects=len(prompts), views=views)
            except ValueError as error:
                raise BadAnswerError(str(error)) from error

        answer = self._connection.persist(attempt)
        each = [Scores(rows=(row,), dtype=answer.dtype) for row in answer.rows]
        if self._cache is not None:
            for key, scores in zip(keys, each, strict=True):
                self._cache.put(key, scores, info=info)
        return each


class RemotePerView(RemoteScorer):
    """Per-view scorer that asks a service; built as a `RemoteScorer`."""

    kind: ClassVar[Kind] = "per_view"


class RemoteJointView(RemoteScorer):
    """Joint-view scorer that asks a service; built as a `RemoteScorer`."""

    kind: ClassVar[Kind] = "joint"


def _check(images: Images) -> None:
    """Refuse images that the service would refuse; name the view of a non-finite one."""
    broken = ~images.isfinite()
    outside = (images < 0) | (images > 1)
    for wrong in (broken, outside):
        if bool(wrong.any()):
            object, view, *pixel = (int(i) for i in wrong.nonzero()[0])
            value = float(images[(object, view, *pixel)])
            if wrong is broken:
                # The object's index counts in this call, so it would mislead the caller.
                raise NonFiniteError("images", view=view, value=value)
            msg = f"`images` must be in [0, 1]; got {value!r} at object {object}, view {view}."
            raise ValueError(msg)
