"""Scores by the content that was scored: memory first, and a folder if there is one."""

import hashlib
import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from mvczigal_ref.files import atomic_write
from mvczigal_ref.reward.service.terms import ScorerInfo
from mvczigal_ref.reward.service.wire import Scores, decode_scores, parse_object

__all__ = ["ScoreCache", "content_key"]

_LOG: Final = logging.getLogger(__name__)
_ASIDE_S: Final = 3600.0  # age at which a half-written file has no living writer


def content_key(
    info: ScorerInfo, prompt: str, *, shape: Sequence[int], dtype: str, pixels: bytes
) -> str:
    """Name one object's images, its prompt and who scores them.

    Args:
        info: Info of the scorer.
        prompt: Prompt of the object.
        shape: Shape of its images.
        dtype: Type of a pixel.
        pixels: Pixels as they travel.

    Returns:
        SHA-256 in hexadecimal; equal for equal contents alone.

    Examples:
        >>> info = ScorerInfo(name="brightness", version="1", kind="joint")
        >>> content_key(info, "grey", shape=(1, 3, 1, 1), dtype="uint8", pixels=b"777")[:8]
        '46daabe3'
    """
    question = {**asdict(info), "prompt": prompt, "shape": list(shape), "dtype": dtype}
    # A JSON object tells where it ends, so no prompt can be taken for pixels.
    digest = hashlib.sha256(json.dumps(question, sort_keys=True).encode())
    digest.update(pixels)
    return digest.hexdigest()


class ScoreCache:
    """Remembers scores; may be shared by clients and threads, and its folder by processes.

    Args:
        entries: Objects to remember in memory; the one that was not asked for longest goes
            first. At least 1.
        folder: Folder that keeps scores beyond the end of the process, a file of some 300 bytes
            per object. It may be emptied at any moment. A file that does not fit its checksum is
            removed with a warning, and its object scored again.
        files: Objects to keep in the folder; the one that was written longest ago goes first.
            At least 1. Each further process that writes there may exceed it by a tenth.

    Raises:
        ValueError: If there is no room for an entry.
    """

    def __init__(
        self, *, entries: int = 65536, folder: Path | None = None, files: int = 262144
    ) -> None:
        for name, value in (("entries", entries), ("files", files)):
            if value < 1:
                msg = f"`{name}` must be at least 1; got {value}."
                raise ValueError(msg)
        self._room, self._folder, self._files = entries, folder, files
        self._free = 0  # files that may be written before the folder is looked through again
        self._known: OrderedDict[str, Scores] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str, *, info: ScorerInfo, views: int) -> Scores | None:
        """Look up one object.

        Args:
            key: Key from `content_key`.
            info: Info of the scorer.
            views: Views of the object [1].

        Returns:
            One row of scores, or None if it is not known, or its file is damaged.
        """
        with self._lock:
            scores = self._known.get(key)
            if scores is not None:
                self._known.move_to_end(key)
                return scores
        scores = self._read(key, info, views)
        if scores is not None:
            self._remember(key, scores)
        return scores

    def put(self, key: str, scores: Scores, *, info: ScorerInfo) -> None:
        """Remember one object.

        Args:
            key: Key from `content_key`.
            scores: One row of scores.
            info: Info of the scorer.
        """
        self._remember(key, scores)
        if self._folder is None:
            return
        entry: dict[str, Any] = {"key": key, **asdict(info), **asdict(scores)}
        entry["scores"] = entry.pop("rows")
        try:
            self._make_room(self._folder)
            content = json.dumps({"sha256": _checksum(entry), **entry})
            atomic_write(self._path(self._folder, key), content)
        except OSError as error:
            # Scores can be had again: no reason to end a run.
            _LOG.warning("scores are no longer kept in %s: %s", self._folder, error)
            self._folder = None

    def _remember(self, key: str, scores: Scores) -> None:
        with self._lock:
            self._known[key] = scores
            self._known.move_to_end(key)
            while len(self._known) > self._room:
                self._known.popitem(last=False)

    def _make_room(self, folder: Path) -> None:
        """Every so many writes, remove what was written longest ago; others may do so too."""
        with self._lock:
            self._free -= 1
            if self._free >= 0:
                return
            spare = max(1, self._files // 10)
            self._free = spare - 1
        written: list[tuple[int, Path]] = []
        for path in folder.glob("??/*.json"):
            with suppress(FileNotFoundError):
                written.append((path.stat().st_mtime_ns, path))
        written.sort()
        for _, path in written[: max(0, len(written) + spare - self._files)]:
            path.unlink(missing_ok=True)
        for path in folder.glob("??/.*.tmp"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ASIDE_S:
                    path.unlink()

    def _read(self, key: str, info: ScorerInfo, views: int) -> Scores | None:
        if self._folder is None:
            return None
        path = self._path(self._folder, key)
        try:
            entry = parse_object(path.read_bytes())
            if entry.pop("sha256", None) != _checksum(entry) or entry.pop("key", None) != key:
                raise ValueError("its checksum does not fit")  # noqa: TRY301
            return decode_scores(entry, info=info, objects=1, views=views)
        except OSError:  # absent, most often
            return None
        except ValueError as error:
            _LOG.warning("damaged scores in %s are scored again: %s", path, error)
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.json"


def _checksum(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
