"""Places of the published full-size networks: hub ids, the cache or local folders."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from transformers.utils import cached_file

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.files import is_hub_id
from mvczigal_ref.models import reach
from mvczigal_ref.models.downloads import NETWORKS, file_size
from mvczigal_ref.models.loading import shards_of
from mvczigal_ref.models.published import (
    ADAPTER_FILES,
    LCM_UNET,
    MV_ADAPTER,
    SDXL_BASE,
    SDXL_VAE,
    SdxlSources,
)
from mvczigal_ref.models.weight_files import pickled_weights

__all__ = [
    "AbsentError",
    "Located",
    "cache_first",
    "find_file",
    "locate_adapter",
    "locate_network",
    "locate_tokenizer",
    "published_place",
]

_Place = TypeVar("_Place")


class AbsentError(CheckpointError):
    """A part's files are on this machine neither whole nor damaged.

    Args:
        name: Name of the argument.
        files: Files that its value must hold.
        source: Value of the argument.
        why: Reason: the file that is absent there.
        download: Command that fetches the files, and their size.
        size: Size of the files [bytes].

    Examples:
        >>> print(AbsentError("unet", "a.json", "here", "it holds none", "`hf download a`", 9))
        `unet` must be a folder or hub id that holds a.json; got 'here': it holds none. Download \
with `hf download a`.
    """

    def __init__(
        self, name: str, files: str, source: str, why: str, download: str, size: int
    ) -> None:
        super().__init__(name, files, source, why, download, size)
        self.name, self.files, self.source, self.why = name, files, source, why
        self.download, self.size = download, size

    def __str__(self) -> str:
        """Say what is absent and how to get it."""
        return (
            f"`{self.name}` must be a folder or hub id that holds {self.files}; got "
            f"{self.source!r}: {self.why}. Download with {self.download}."
        )


class Located(NamedTuple):
    """Place of a network's files on the disk."""

    folder: Path
    """Folder of the settings."""

    variant: str | None
    """Word in the names of the tensors' files."""


class _Published(NamedTuple):
    """One network of a pipeline: its file, the numbers in it, and its published place."""

    stem: str
    numbers: int
    repo: str
    in_half: bool = True


_TOKENIZER_BYTES = 1_600_000
_DIFFUSERS = "diffusion_pytorch_model"
_NETWORKS = {
    "text_encoder": _Published("model", NETWORKS["text_encoder"], SDXL_BASE),
    "text_encoder_2": _Published("model", NETWORKS["text_encoder_2"], SDXL_BASE),
    "unet": _Published(_DIFFUSERS, NETWORKS["lcm_unet"], LCM_UNET),
    "vae": _Published(_DIFFUSERS, NETWORKS["vae"], SDXL_VAE, in_half=False),
}


def find_file(source: str, name: str, sources: SdxlSources) -> tuple[Path | None, str]:
    """Find one file in a folder, or in a hub repository's cache, and only then in the repository.

    Args:
        source: A folder, or a hub id, optionally followed by ``@revision``.
        name: Name of the file, with its sub-folder.
        sources: Read for the hub's cache, and for whether to look there alone.

    Returns:
        The file, or None; and the reason where there is none.
    """
    path, reason = _look(source, name, replace(sources, local_files_only=True))
    if path is not None or not _may_ask(source, sources):
        return path, reason
    return _look(source, name, sources)


def cache_first(search: Callable[[SdxlSources], _Place], sources: SdxlSources) -> _Place:
    """Look for files on this machine, and only where some are absent on the hub, if it answers.

    All files of a search come from one place, so that settings and tensors are of one revision.

    Args:
        search: One of the functions that locate a part.
        sources: Places to look.

    Returns:
        Place that was found.

    Raises:
        CheckpointError: If files are absent; says what to download.
    """
    try:
        return search(replace(sources, local_files_only=True))
    except CheckpointError:
        if sources.local_files_only or not reach.hub_answers():
            raise
    return search(sources)


def _may_ask(source: str, sources: SdxlSources) -> bool:
    """Say whether the hub may be asked for more than its cache holds, and answers."""
    named = is_hub_id(source, revision=True) and not Path(source).expanduser().exists()
    return named and not sources.local_files_only and reach.hub_answers()


def _look(source: str, name: str, sources: SdxlSources) -> tuple[Path | None, str]:
    """Find one file as far as it is allowed, asking the hub at once where that is."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        file = folder / name
        return (file, "") if file.is_file() else (None, f"the folder holds no {name}")
    if not is_hub_id(source, revision=True):
        return None, "there is no such folder"
    repo, _, revision = source.partition("@")
    try:
        path = cached_file(
            repo,
            name,
            revision=revision or None,
            cache_dir=sources.cache,
            local_files_only=sources.local_files_only,
        )
    except OSError as error:
        if sources.local_files_only:
            return None, f"the cache holds no {name}"
        return None, str(error).partition("\n")[0].rstrip(".")
    return (None, f"the repository holds no {name}") if path is None else (Path(path), "")


def published_place(name: str, sources: SdxlSources) -> str | None:
    """Choose between a base's own network and the published one that goes with SDXL's base.

    Args:
        name: Name of the network in a diffusers pipeline, "unet" or "vae".
        sources: Read for the base, and for the published place under the network's name.

    Returns:
        The published place, with a warning unless the base is SDXL's; None for the base's own.
    """
    published: str = getattr(sources, name)
    if sources.base.partition("@")[0] == SDXL_BASE:
        return published
    if find_file(sources.base, f"{name}/config.json", sources)[0] is not None:
        return None
    warnings.warn(
        f"{sources.base!r} holds no {name}/config.json; that of {published} is taken in its place.",
        stacklevel=3,
    )
    return published


def locate_network(name: str, sources: SdxlSources, *, dtype: torch.dtype) -> Located:
    """Find a network's settings and weights.

    Args:
        name: Name of the network in a diffusers pipeline.
        sources: Places to look.
        dtype: In half precision a file of the variant "fp16" is preferred to the full one.

    Returns:
        Folder of the files, and their variant.

    Raises:
        CheckpointError: If they are absent; says what to download.
    """
    part, separate = _NETWORKS[name], getattr(sources, name, None)
    source = separate or sources.base
    half = dtype in (torch.float16, torch.bfloat16)
    variants = ("fp16", None) if half else (None,)
    why = ""
    for place in ("", f"{name}/") if separate else (f"{name}/",):
        config, reason = _look(source, f"{place}config.json", sources)
        if config is None:
            why = why or reason
            continue
        for variant in variants:
            reason = _find_weights(source, place, part.stem, variant, sources)
            if not reason:
                return Located(config.parent, variant)
        why = reason
    small = half and (part.in_half or not separate)
    place = "" if separate else f"{name}/"
    raise _absent(
        name if separate else "base",
        source,
        part.repo if separate else SDXL_BASE,
        (f"{place}config.json", f"{place}{part.stem}{'.fp16' * small}.safetensors"),
        part.numbers * (2 if small else 4),
        why,
    )


def _find_weights(
    source: str, place: str, stem: str, variant: str | None, sources: SdxlSources
) -> str:
    """Find a network's tensors, in one file or in shards; return why not."""
    dotted = f".{variant}" if variant else ""
    path, reason = _look(source, f"{place}{stem}{dotted}.safetensors", sources)
    if path is not None:
        return ""
    index, _ = _look(source, f"{place}{stem}.safetensors.index{dotted}.json", sources)
    if index is None:
        return pickled_weights(Path(source).expanduser() / place, stem + dotted) or reason
    shards = sorted(shards_of(index))
    reasons = [_look(source, place + shard, sources)[1] for shard in shards]
    return next(filter(None, reasons), "")


def locate_tokenizer(name: str, sources: SdxlSources) -> Path:
    """Find a tokenizer's files; without its words its class would silently build an empty one.

    Args:
        name: Name of the tokenizer in a diffusers pipeline.
        sources: Places to look.

    Returns:
        Folder of the files.

    Raises:
        CheckpointError: If they are absent; says what to download.
    """
    files = ("tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
    results = {file: _look(sources.base, f"{name}/{file}", sources) for file in files}
    settings, why = results["tokenizer_config.json"]
    words = results["vocab.json"][0] and results["merges.txt"][0]
    whole = words or _look(sources.base, f"{name}/tokenizer.json", sources)[0]
    if settings is None or whole is None:
        why = why or results["vocab.json"][1] or results["merges.txt"][1]
        names = [f"{name}/{file}" for file in files]
        raise _absent("base", sources.base, SDXL_BASE, names, _TOKENIZER_BYTES, why)
    return settings.parent


def locate_adapter(sources: SdxlSources) -> Path:
    """Find the file of row attention and camera encoder.

    Args:
        sources: Places to look.

    Returns:
        The file; settings of the camera encoder that are published with it lie beside it.

    Raises:
        CheckpointError: If it is absent; says what to download.
    """
    file, why = Path(sources.adapter).expanduser(), ""
    if file.is_file():
        return file
    for name in ADAPTER_FILES:
        path, reason = _look(sources.adapter, name, sources)
        if path is not None:
            # Fetched where there is one: the published encoder's size is known without.
            _look(sources.adapter, "camera_encoder/config.json", sources)
            return path
        why = why or reason
    size, single = 2 * NETWORKS["adapter"], " in half precision, twice that in single"
    raise _absent("adapter", sources.adapter, MV_ADAPTER, ADAPTER_FILES[:1], size, why, single)


def _absent(
    name: str,
    source: str,
    published: str,
    files: Sequence[str],
    size: int,
    why: str,
    remark: str = "",
) -> AbsentError:
    """Make the error that says what to download, from which place, and its size."""
    here = Path(source).expanduser().exists()
    named = is_hub_id(source, revision=True) and not here
    repo, _, revision = (source if named else published).partition("@")
    at = f" --revision {revision}" if revision else ""
    return AbsentError(
        name, " and ".join(files), source, why,
        f"`hf download {repo} {' '.join(files)}{at}` (about {file_size(size)}{remark})", size,
    )  # fmt: skip
