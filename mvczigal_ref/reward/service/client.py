"""Scorers that ask a service, and cannot be told from the scorer that it runs."""

import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final, get_args

import torch
from torch import Tensor

from mvczigal_ref.errors import NonFiniteError
from mvczigal_ref.reward.service.cache import ScoreCache, content_key
from mvczigal_ref.reward.service.connection import BadAnswerError, Connection, Patience
from mvczigal_ref.reward.service.terms import Kind, Limits, ScorerInfo
from mvczigal_ref.reward.service.wire import Head, Pixels, Scores, decode_scores, to_pixels
from mvczigal_ref.shapes import Images, JointViewReward, PerViewReward

__all__ = ["RemoteJointView", "RemotePerView", "RemoteScorer"]

_HEADROOM: Final = 1024  # bytes of a head besides its prompts


class RemoteScorer:
    """What a service's two kinds of clients share.

    Images are sent in groups of fixed objects. A group is known from the cache as a whole or
    sent as a whole, so that what the cache holds cannot change what a scorer computes together,
    and with that the last bits of its scores.

    Args:
        url: The service, such as ``http://127.0.0.1:8763``. It is first asked when the scorer
            is first called, or by `info`.
        objects: Objects in a request, at most; at least 1. The service's own limits count too.
        dtype: ``float32`` sends images as they are, rounded to fp32 if they are wider;
            ``uint8`` rounds to multiples of 1/255, for a quarter of the bytes.
        patience: How long to wait, and how often to try.
        cache: Scores that need not be asked for again; none if absent.
        clock: Gives the time [s].
        sleep: Waits [s].

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
        """Learn which scorer answers, waiting for it if need be.

        Returns:
            Its name, version and kind; the same from then on.

        Raises:
            ValueError: If the scorer is of the other kind.
            ScorerUnavailableError: If there is no usable answer.
        """
        return self._met()[0]

    def _met(self) -> tuple[ScorerInfo, int, int]:
        """Give who answers, and the objects and bytes that it takes in a request."""
        if self._service is None:
            self._service = self._connection.persist(self._meet)
            found = self._service[0].kind
            if found != self.kind:
                self._service = None
                msg = (
                    f"`url` must be of a {self.kind} scorer; the one at {self._connection.url} "
                    f"is {found}."
                )
                raise ValueError(msg)
        return self._service

    def _meet(self) -> tuple[ScorerInfo, int, int]:
        said = self._connection.get("/version")
        try:
            info = ScorerInfo(**{name: said[name] for name in ("name", "version", "kind")})
            names = ("objects", "body_bytes")
            limits = Limits(**{name: said["limits"][name] for name in names})
        except (KeyError, TypeError, ValueError) as error:
            msg = f"/version names no scorer: {error!r}"
            raise BadAnswerError(msg) from error
        return info, int(limits.objects), int(limits.body_bytes)

    def _ask(self, images: Images, prompts: Sequence[str]) -> Tensor:
        """Score each object, one row each."""
        if len(prompts) != images.shape[0]:
            msg = (
                f"`prompts` must hold one an object; got {len(prompts)} for {images.shape[0]} "
                "objects."
            )
            raise ValueError(msg)
        _check(images)
        info, most, room = self._met()
        views = images.shape[1]
        size = images[0].numel() * (4 if self._dtype == "float32" else 1) if len(prompts) else 1
        words = 6 * max(map(len, prompts), default=0) + 4
        group = max(1, min(self._objects, most, (room - _HEADROOM) // (size + words)))
        found: list[Scores] = []
        for start in range(0, len(prompts), group):
            part = slice(start, start + group)
            found += self._group(info, images[part], prompts[part])
        wide = any(scores.dtype == "float64" for scores in found)
        table = torch.empty(
            (len(prompts), info.count(views)), dtype=torch.float64 if wide else torch.float32
        )
        for row, scores in enumerate(found):
            table[row] = scores.tensor()[0]
        return table.to(images.device)

    def _group(self, info: ScorerInfo, images: Images, prompts: Sequence[str]) -> list[Scores]:
        """Score objects that travel together, one record each."""
        pixels = [image.tobytes() for image in to_pixels(images, self._dtype)]
        shape, views = tuple(images.shape), images.shape[1]
        keys = []
        if self._cache is not None:
            keys = [
                content_key(info, prompt, shape=shape[1:], dtype=self._dtype, pixels=content)
                for prompt, content in zip(prompts, pixels, strict=True)
            ]
            known = [self._cache.get(key, info=info, views=views) for key in keys]
            if all(scores is not None for scores in known):
                return [scores for scores in known if scores is not None]
        head = Head(kind=self.kind, prompts=tuple(prompts), shape=shape, dtype=self._dtype)
        body = b"".join([head.encode(), *pixels])

        def attempt() -> Scores:
            said: dict[str, Any] = self._connection.post("/score", body)
            try:
                return decode_scores(said, info=info, objects=len(prompts), views=views)
            except ValueError as error:
                raise BadAnswerError(str(error)) from error

        answer = self._connection.persist(attempt)
        each = [Scores(rows=(row,), dtype=answer.dtype) for row in answer.rows]
        if self._cache is not None:
            for key, scores in zip(keys, each, strict=True):
                self._cache.put(key, scores, info=info)
        return each


class RemotePerView(RemoteScorer):
    """Judge every image on its own, by asking a service; built as a `RemoteScorer`."""

    kind: ClassVar[Kind] = "per_view"

    def __call__(self, images: Images, prompts: Sequence[str]) -> PerViewReward:
        """Score each view of each object; see `PerViewScorer`.

        Args:
            images: Decoded views in [0, 1].
            prompts: One prompt an object.

        Returns:
            One reward a view, in the scorer's dtype but fp32 at least, on the images' device;
            without gradient [reward units].

        Raises:
            ValueError: If arguments disagree, or the service refuses them.
            NonFiniteError: If an image is not finite.
            ScorerUnavailableError: If there is no usable answer for as long as patience lasts.
        """
        return self._ask(images, prompts)


class RemoteJointView(RemoteScorer):
    """Judge all views of an object together, by asking a service; built as a `RemoteScorer`."""

    kind: ClassVar[Kind] = "joint"

    def __call__(self, images: Images, prompts: Sequence[str]) -> JointViewReward:
        """Score each object by the whole set of its views; see `JointViewScorer`.

        Args:
            images: Decoded views in [0, 1].
            prompts: One prompt an object.

        Returns:
            One reward an object, in the scorer's dtype but fp32 at least, on the images' device;
            without gradient [reward units].

        Raises:
            ValueError: If arguments disagree, or the service refuses them.
            NonFiniteError: If an image is not finite.
            ScorerUnavailableError: If there is no usable answer for as long as patience lasts.
        """
        return self._ask(images, prompts)[:, 0]


def _check(images: Images) -> None:
    """Refuse what the service would; name a view whose picture is broken."""
    broken = ~images.isfinite()
    outside = (images < 0) | (images > 1)
    for wrong in (broken, outside):
        if bool(wrong.any()):
            object, view, *pixel = (int(i) for i in wrong.nonzero()[0])
            value = float(images[(object, view, *pixel)])
            if wrong is broken:
                # The object's index is of this call, and known to no one else.
                raise NonFiniteError("images", view=view, value=value)
            msg = f"`images` must be in [0, 1]; got {value!r} at object {object}, view {view}."
            raise ValueError(msg)
