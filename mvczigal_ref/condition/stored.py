r"""Captions made ahead of training, kept in a file of JSON lines.

The first line says how they were made, each further line holds one prompt and its captions. A
line is written whole and reaches the disk before the next is asked for, so a kill at any moment
costs the captions of one prompt; a last line without a line end does not count.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mvczigal_ref.condition.asking import checked_prompts
from mvczigal_ref.condition.offline import OfflineEnhancer
from mvczigal_ref.condition.protocol import Caption, CaptionError, GroupImages, stream
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.files import sync
from mvczigal_ref.language.threads import in_order
from mvczigal_ref.text_files import decode_text

__all__ = ["EnhanceOutcome", "StoredCaptions", "enhance_prompts"]

_VERSION: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class EnhanceOutcome:
    """Counts of one call of :func:`enhance_prompts`."""

    written: int
    """Prompts whose captions were made and stored [1]."""

    skipped: int
    """Prompts that were stored before, or named twice [1]."""

    refused: Mapping[str, str]
    """Reasons, by prompt, why no captions could be made; the next call tries these again."""


def enhance_prompts(
    prompts: Sequence[str],
    out: Path,
    *,
    enhancer: OfflineEnhancer,
    seed: int,
    model_name: str,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> EnhanceOutcome:
    """Make the captions of many prompts and store them; a file that was begun is continued.

    The file is the same however often it was interrupted, for the same prompts and a model
    whose answers depend on question and seed alone.

    Args:
        prompts: Texts; a repeated one is done once.
        out: File to write or to continue; its folder is made.
        enhancer: Made without a memory: each prompt is done once, and its captions differ.
        seed: Seed of the draws and of the answers.
        model_name: Stored in the file, so that no other model continues it.
        workers: Prompts asked about at once [1]; more than 1 for a served model.
        progress: Called with the prompts that are done, those of earlier calls included, and with
            all.

    Returns:
        Counts of prompts, and the reasons of refusals.

    Raises:
        CaptionError: If the file is damaged, or was made in another way.
        ValueError: If a prompt is blank, ``workers`` is below 1, or the enhancer has a memory.
    """
    if enhancer.memory is not None:
        msg = (
            "`enhancer` must have no memory, since captions served before this call would change "
            "the file; leave `memory` out."
        )
        raise ValueError(msg)
    header = {
        "captions_file": _VERSION,
        "model": model_name,
        "seed": seed,
        **enhancer.settings,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    done = _resume(out, header)
    distinct = list(dict.fromkeys(checked_prompts(prompts)))
    left = [prompt for prompt in distinct if prompt not in done]
    refused: dict[str, str] = {}

    def make(prompt: str) -> tuple[str, Sequence[Caption] | str]:
        try:
            return prompt, enhancer([prompt], seed=seed)[0]
        except CaptionError as error:
            return prompt, str(error)

    with out.open("ab", buffering=0) as file:
        if out.stat().st_size == 0:
            _append(file.fileno(), header)
            sync(out.parent)
        for count, (prompt, captions) in enumerate(in_order(make, left, workers=workers), 1):
            if isinstance(captions, str):
                refused[prompt] = captions
            else:
                _append(file.fileno(), _record(prompt, captions))
            if progress is not None:
                progress(len(distinct) - len(left) + count, len(distinct))
    written = len(left) - len(refused)
    return EnhanceOutcome(written=written, skipped=len(prompts) - len(left), refused=refused)


class StoredCaptions:
    """Serve captions from a file in training; no language model is asked.

    Args:
        path: File that :func:`enhance_prompts` wrote.
        num_captions: K [1]; at least 1. Where a prompt has more, K of them are drawn anew for
            each seed.

    Raises:
        CaptionError: If the file cannot be read, is damaged, or holds fewer captions per prompt.
        ValueError: If ``num_captions`` is below 1.
    """

    needs_images: bool = False

    def __init__(self, path: Path, *, num_captions: int) -> None:
        if num_captions < 1:
            raise ValueError(f"`num_captions` must be at least 1; got {num_captions}.")
        self._path, self._num_captions = path, num_captions
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CaptionError(f"cannot read captions from {str(path)!r}: {error}.") from error
        self._captions = _read(path, content)[1]
        for prompt, captions in self._captions.items():
            if len(captions) < num_captions:
                msg = (
                    f"`num_captions` must be at most what {str(path)!r} holds per prompt, "
                    f"{len(captions)} for {prompt!r}; got {num_captions}."
                )
                raise CaptionError(msg)

    def num_captions(self, group_size: int) -> int:
        """Return K, which does not depend on the size of the group."""
        del group_size
        return self._num_captions

    def __call__(
        self, prompts: Sequence[str], images: GroupImages | None = None, *, seed: int
    ) -> list[tuple[Caption, ...]]:
        """Look the captions up; images are ignored.

        Args:
            prompts: Texts, spelt as in the file.
            images: Ignored.
            seed: Seed of the draw where a prompt has more than K captions.

        Returns:
            K captions per prompt, in the order of the file.

        Raises:
            CaptionError: If prompts are absent from the file; names them.
        """
        del images
        self.require(prompts)
        return [self._drawn(prompt, seed) for prompt in prompts]

    def require(self, prompts: Sequence[str]) -> None:
        """Refuse prompts that have no captions here.

        Args:
            prompts: Texts, spelt as in the file.

        Raises:
            CaptionError: If a prompt has none; names the first ones and how to make captions.
        """
        absent = list(dict.fromkeys(prompt for prompt in prompts if prompt not in self._captions))
        if absent:
            more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
            msg = (
                f"{str(self._path)!r} must hold captions of every prompt; absent: "
                f"{', '.join(map(repr, absent[:3]))}{more}. Make them with `mvczigal enhance`."
            )
            raise CaptionError(msg)

    def _drawn(self, prompt: str, seed: int) -> tuple[Caption, ...]:
        captions = self._captions[prompt]
        indices = stream(seed, prompt).sample(range(len(captions)), self._num_captions)
        return tuple(captions[index] for index in sorted(indices))


def _record(prompt: str, captions: Sequence[Caption]) -> dict[str, Any]:
    pairs = [{"caption": c.caption, "instruction": c.instruction} for c in captions]
    return {"prompt": prompt, "captions": pairs}


def _append(descriptor: int, value: Mapping[str, Any]) -> None:
    """Write one line and wait until it is on the disk."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    while line:
        line = line[os.write(descriptor, line) :]
    os.fsync(descriptor)


def _resume(path: Path, header: Mapping[str, Any]) -> Mapping[str, tuple[Caption, ...]]:
    """Cut off an unfinished line and return the stored captions; refuse another header."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    # A file of another kind without a line end must not be cut.
    if not whole and not content.startswith(b'{"captions_file"'[: len(content)]):
        raise CaptionError(f"{str(path)!r} must hold stored captions, or not exist.")
    stored, captions = _read(path, content) if whole else ({}, {})
    if whole and stored != header:
        names = [name for name in {**stored, **header} if stored.get(name) != header.get(name)]
        differences = "; ".join(
            f"`{name}` is {stored.get(name)!r} there and {header.get(name)!r} here"
            for name in names
        )
        msg = f"{str(path)!r} was made in another way: {differences}. Write to another file."
        raise CaptionError(msg)
    if whole < len(content):
        os.truncate(path, whole)
        sync(path)
    return captions


def _read(path: Path, content: bytes) -> tuple[dict[str, Any], dict[str, tuple[Caption, ...]]]:
    """Read every whole line, or name the first that is damaged."""
    try:
        lines = decode_text(content[: content.rfind(b"\n") + 1], path).split("\n")[:-1]
    except ConfigError as error:
        raise CaptionError(str(error)) from error
    header: dict[str, Any] = {}
    captions: dict[str, tuple[Caption, ...]] = {}
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
            if number == 1:
                header = dict(value)
                fits = header["captions_file"] == _VERSION
            else:
                prompt, row = value["prompt"], tuple(Caption(**each) for each in value["captions"])
                texts = (prompt, *(text for c in row for text in (c.caption, c.instruction)))
                fits = all(isinstance(text, str) for text in texts) and prompt not in captions
                captions[prompt] = row
        except (ValueError, LookupError, TypeError, RecursionError):
            fits = False
        if not fits:
            rule = "the header of stored captions" if number == 1 else "one new prompt's captions"
            raise CaptionError(f"line {number} of {str(path)!r} must hold {rule}; it does not.")
    if not lines:
        raise CaptionError(f"{str(path)!r} must hold stored captions; it holds no whole line.")
    return header, captions
