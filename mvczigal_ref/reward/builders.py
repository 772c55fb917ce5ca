"""Builders of the scorers; a scorer's module is imported when it is first built.

A folder with weights of another size than the published one also holds a file ``size.json``:
for ``hpsv2`` the entries of a CLIP configuration, for ``image_reward`` those of BLIP's image
encoder, for ``hyperscore`` those of `HyperScoreSize`, for ``hpsv3`` the ``pixels`` of an image.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from math import ceil, log2
from operator import index
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import torch

from mvczigal_ref.errors import ConfigError
from mvczigal_ref.models.weight_files import described_by, read_json
from mvczigal_ref.reward.mixture import Scorer
from mvczigal_ref.reward.protocols import JointViewScorer, PerViewScorer
from mvczigal_ref.reward.provenance import note
from mvczigal_ref.reward.service.waiting import Asked, Waiting

__all__ = ["JOINT", "PER_VIEW", "ScorerOptions", "remote"]

_SIZE = "size.json"
_TOKENS = 512  # longest answer about an image
_Size = TypeVar("_Size")  # size of a network, as its class takes it


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerOptions:
    """Options of one scorer."""

    weights: str | None = None
    """Folder, file or hub id; the published weights if None. For a chat judge, the served name."""

    tokenizer: str | None = None
    """Folder or hub id of the tokenizer; the published one if None."""

    url: str | None = None
    """URL of a service to ask instead of building the scorer here."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """Device of the scorer's network."""

    dtype: torch.dtype = torch.float32
    """Floating type of the scorer's network."""

    images_per_chunk: int = 32
    """Images that pass through the network, or are sent, together [images]."""

    num_views: int = 6
    """Views of an object, for a scorer that judges them together [1]."""

    image_size: int = 64
    """Edge of an image, for the trial of a scorer that is the user's function [px]."""

    timeout: float = 120.0
    """Longest duration of one request to a service [s]."""

    wait: float = 600.0
    """Longest wait for a service that fails [s]."""

    api_key_env: str | None = None
    """Environment variable that holds a chat endpoint's key."""

    requests_at_once: int = 8
    """Questions that a chat judge is asked at once [requests]."""

    images_per_question: int = 1
    """Most images of one question to a chat judge [images]."""

    cache: str | None = None
    """Folder that stores a service's scores beyond the process; None stores none."""


def remote(kind: str, name: str, options: ScorerOptions) -> Any:  # noqa: ANN401 - either protocol
    """Build a scorer that asks a service, and check which scorer the service runs.

    Args:
        kind: ``per_view`` or ``joint``.
        name: Name that the service must give its scorer.
        options: Options with the service's URL.

    Returns:
        A scorer of either kind.

    Raises:
        ConfigError: If the URL is not valid, or leads to another scorer.
        ScorerUnavailableError: If the service does not answer.
    """
    from mvczigal_ref.reward.service import (
        Patience,
        RefusedError,
        RemoteJointView,
        RemotePerView,
        ScoreCache,
    )

    waiting = Waiting()
    cache = ScoreCache(folder=Path(options.cache).expanduser()) if options.cache else None
    patience = Patience(timeout_s=options.timeout, wait_s=options.wait)
    objects = max(1, options.images_per_chunk // options.num_views)
    client = RemotePerView if kind == "per_view" else RemoteJointView
    try:
        scorer = client(
            options.url or "", objects=objects, patience=patience, cache=cache, sleep=waiting.sleep
        )
        with waiting.hearing():
            info = scorer.info()
    except ValueError as error:  # no valid URL, or a scorer of the other kind
        raise ConfigError(f"`reward.url` of {name!r}: {error}") from error
    if info.name != name:
        msg = f"`reward.url` of {name!r} leads to the scorer {info.name!r} at {options.url}."
        raise ConfigError(msg)
    return Asked(scorer, (RefusedError,), waiting=waiting, version=info.version)


def _world_per_view(options: ScorerOptions) -> PerViewScorer:
    from mvczigal_ref.reward.tiny_world import WorldPerView

    return WorldPerView()


def _world_joint(options: ScorerOptions) -> JointViewScorer:
    from mvczigal_ref.reward.tiny_world import WorldJointView

    return WorldJointView()


def _clip_score(options: ScorerOptions) -> PerViewScorer:
    from mvczigal_ref.reward.clip_score import ClipScore

    return _published(ClipScore, options)


def _pickscore(options: ScorerOptions) -> PerViewScorer:
    from mvczigal_ref.reward.clip_score import PickScore

    return _published(PickScore, options)


def _hpsv2(options: ScorerOptions) -> PerViewScorer:
    from transformers import CLIPConfig

    from mvczigal_ref.reward.hpsv2 import HpsV2

    return _published(HpsV2, options, config=_size_file(options, CLIPConfig.from_dict))


def _image_reward(options: ScorerOptions) -> PerViewScorer:
    from transformers import BlipVisionConfig

    from mvczigal_ref.reward.image_reward import ImageReward

    return _published(ImageReward, options, vision=_size_file(options, BlipVisionConfig.from_dict))


def _hpsv3(options: ScorerOptions) -> PerViewScorer:
    from mvczigal_ref.reward.hpsv3 import HpsV3

    pixels = _size_file(options, lambda size: index(size["pixels"]))
    settings: dict[str, Any] = {} if pixels is None else {"pixels": pixels}
    scorer: PerViewScorer = HpsV3.from_pretrained(
        _place(options.weights), base=_place(options.tokenizer), dtype=options.dtype,
        chunk_size=options.images_per_chunk,
        **settings,
    ).to(options.device)  # fmt: skip
    return scorer


# Scorers of several axes share the network of one file while one of them is in use.
_IN_USE: WeakValueDictionary[tuple[object, ...], Any] = WeakValueDictionary()


def _hyperscore(axis: str) -> Callable[[ScorerOptions], JointViewScorer]:
    def build(options: ScorerOptions) -> JointViewScorer:
        from mvczigal_ref.reward.hyperscore import HyperScore, find_checkpoint

        path = find_checkpoint(Path(options.weights or "").expanduser())
        size = _size_file(options, _hyperscore_size)
        key = (options, path, path.stat().st_mtime_ns, size)
        loaded: HyperScore | None = _IN_USE.get(key)
        if loaded is not None:
            for file in loaded.files:
                note(file)
            return loaded.on(axis)
        _IN_USE[key] = scorer = HyperScore.load(
            path,
            tokenizer=_place(options.tokenizer),
            size=size,
            axis=axis,
            num_views=options.num_views,
            images_at_once=options.images_per_chunk,
            dtype=options.dtype,
        ).to(options.device)
        return scorer

    return build


def _hyperscore_size(content: dict[str, Any]) -> Any:  # noqa: ANN401 - imported only here
    from mvczigal_ref.reward.hyperscore_network import HyperScoreSize

    return HyperScoreSize(**{name: index(value) for name, value in content.items()})


def _chat_judge(options: ScorerOptions) -> PerViewScorer:
    return _chat_per_view(options)


def _chat_criterion(name: str) -> Callable[[ScorerOptions], PerViewScorer]:
    """Build a judge of one criterion alone, which is one column of a table."""

    def build(options: ScorerOptions) -> PerViewScorer:
        from mvczigal_ref.reward.judge_question import PER_VIEW_CRITERIA

        return _chat_per_view(options, criteria={name: PER_VIEW_CRITERIA[name]})

    return build


def _chat_per_view(options: ScorerOptions, criteria: dict[str, str] | None = None) -> PerViewScorer:
    from mvczigal_ref.reward.chat_judge import ChatJudge

    waiting = Waiting()
    judge = ChatJudge(
        _endpoint(options, waiting), criteria=criteria, workers=options.requests_at_once,
        images_per_question=options.images_per_question,
    )  # fmt: skip
    return _chat(judge, options, waiting)


def _chat_joint_judge(options: ScorerOptions) -> JointViewScorer:
    from mvczigal_ref.reward.chat_judge import ChatJointJudge

    waiting = Waiting()
    judge = ChatJointJudge(
        _endpoint(options, waiting), num_views=options.num_views, workers=options.requests_at_once,
        images_per_question=options.images_per_question,
    )  # fmt: skip
    return _chat(judge, options, waiting)


def _endpoint(options: ScorerOptions, waiting: Waiting) -> Any:  # noqa: ANN401 - imported only here
    from mvczigal_ref.language.chat import MAX_PAUSE_S, ChatEndpoint

    pauses = 0.5
    # Enough tries that the pauses between them add up to the wait: doubled ones, then the longest.
    doublings = ceil(log2(MAX_PAUSE_S / pauses))
    waits = [0.0, *accumulate(pauses * 2.0**k for k in range(doublings))]
    longest = ceil(max(0.0, options.wait - waits[-1]) / MAX_PAUSE_S)
    tries = longest + sum(wait < options.wait for wait in waits[:-1])
    endpoint = ChatEndpoint(
        options.url or "", options.weights or "", timeout_s=options.timeout, retries=tries,
        max_tokens=_TOKENS, backoff_s=pauses, api_key_env=options.api_key_env, sleep=waiting.sleep,
    )  # fmt: skip
    endpoint.key()  # an absent one is refused now, and not at the first picture
    return endpoint


def _chat(judge: Scorer, options: ScorerOptions, waiting: Waiting) -> Asked:
    from mvczigal_ref.language.chat import ChatAnswerError, ChatUnavailableError
    from mvczigal_ref.reward.judgement import JudgementError

    faults = (ChatUnavailableError, ChatAnswerError, JudgementError)
    return Asked(judge, faults, waiting=waiting, version=f"{options.url} {options.weights}")


def _published(kind: Any, options: ScorerOptions, **more: object) -> PerViewScorer:  # noqa: ANN401
    scorer: PerViewScorer = kind.from_pretrained(
        _place(options.weights), tokenizer=_place(options.tokenizer), dtype=options.dtype,
        chunk_size=options.images_per_chunk, **more,
    ).to(options.device)  # fmt: skip
    return scorer


def _place(text: str | None) -> str | None:
    return None if text is None else str(Path(text).expanduser())


def _size_file(options: ScorerOptions, make: Callable[[dict[str, Any]], _Size]) -> _Size | None:
    """Read the size of weights that differ from the published size; None if they do not."""
    if options.weights is None:
        return None
    place = Path(options.weights).expanduser()
    path = (place if place.is_dir() else place.parent) / _SIZE
    if not path.is_file():
        return None
    content = read_json(note(path))
    with described_by(path):
        return make(content)


PER_VIEW: dict[str, Callable[[ScorerOptions], PerViewScorer]] = {
    "world.per_view": _world_per_view,
    "clip_score": _clip_score,
    "pickscore": _pickscore,
    "hpsv2": _hpsv2,
    "hpsv3": _hpsv3,
    "image_reward": _image_reward,
    "chat_judge": _chat_judge,
    **{
        f"chat_judge.{name.lower()}": _chat_criterion(name)
        for name in ("Alignment", "Coherence", "Style")
    },
}
"""Per-view scorers by name."""

JOINT: dict[str, Callable[[ScorerOptions], JointViewScorer]] = {
    "world.joint": _world_joint,
    **{
        f"hyperscore.{axis}": _hyperscore(axis)
        for axis in ("alignment", "geometry", "texture", "overall")
    },
    "hyperscore": _hyperscore("overall"),
    "chat_judge.joint": _chat_joint_judge,
}
"""Joint-view scorers by name."""
