"""Folders of checkpoints: their names, manifests and JSON values, read without the tensors."""

import hashlib
import json
import re
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from mvczigal_ref.errors import CheckpointError, newer
from mvczigal_ref.files import file_digest, to_json
from mvczigal_ref.training.saved_state import require_state

__all__ = [
    "FORMAT",
    "JSON_FILES",
    "MANIFEST",
    "REPLACED",
    "VERSION",
    "checkpoint_iteration",
    "checkpoint_name",
    "checkpoints",
    "latest_checkpoint",
    "load_state",
    "measure",
    "read_state",
    "refusal",
    "seal",
    "verify",
]

FORMAT: Final = "mvczigal-ref checkpoint"
"""Format that a manifest names."""

VERSION: Final = 1
"""Version of the format that is written, the only one that is read."""

MANIFEST: Final = "manifest.json"
"""File with size and SHA-256 of every other."""

REPLACED: Final = ".replaced"
"""End of the name of a checkpoint that a new one of its iteration replaces."""

JSON_FILES: Final = ("config.json", "state.json")
"""Files of every checkpoint, besides the manifest and the tensors."""

_NAME = re.compile(r"iteration_(\d{6,})")
_EXACT = ConfigDict(strict=True, extra="forbid")
_FAULTS = {"missing": "missing", "extra_forbidden": "unknown"}


class _File(BaseModel):
    model_config = _EXACT
    bytes: int
    sha256: str


class _Manifest(BaseModel):
    model_config = _EXACT
    format: str
    version: int
    iteration: int
    fingerprint: str
    files: dict[str, _File]
    sha256: str


def load_state(path: Path) -> dict[str, Any]:
    """Read what a checkpoint holds beside tensors, without reading those.

    Args:
        path: The checkpoint's folder.

    Returns:
        JSON values of the checkpoint.

    Raises:
        CheckpointError: If manifest or values are damaged.
    """
    _require_file(path, "state.json", _read_manifest(path)["files"]["state.json"])
    return read_state(path)


def latest_checkpoint(folder: Path) -> Path | None:
    """Find the newest checkpoint by number; `load_checkpoint` says whether it is whole.

    A kill leaves no damaged one, so a damaged one is never passed over in silence.

    Args:
        folder: Folder of a run's checkpoints; it need not exist. Nothing in it is changed.

    Returns:
        The checkpoint's folder, or None if there is none.
    """
    return next(reversed(checkpoints(folder)), None)


def checkpoints(folder: Path) -> list[Path]:
    """List everything that is named as a checkpoint; a file in its place is damage.

    Args:
        folder: Folder of a run's checkpoints; it need not exist.

    Returns:
        Paths, the oldest first.
    """
    paths: dict[int, Path] = {}
    # A glob would find a folder empty that may not be read. A replaced one counts without another.
    for path in sorted(folder.iterdir() if folder.exists() else (), reverse=True):
        if (iteration := checkpoint_iteration(path)) is not None:
            paths[iteration] = path
    return [paths[iteration] for iteration in sorted(paths)]


def read_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint's JSON values, without comparing the file with the manifest.

    Args:
        path: The checkpoint's folder.

    Returns:
        JSON values by name.

    Raises:
        CheckpointError: If no run has written them.
    """
    try:
        return require_state((path / "state.json").read_text("utf-8"))
    except CheckpointError as error:
        raise refusal(path, str(error).rstrip(".")) from error


def verify(path: Path, *, unread: Container[str] = ()) -> dict[str, Any]:
    """Check every byte of a checkpoint.

    Args:
        path: The checkpoint's folder.
        unread: Names of files that are not read, and so may be damaged or gone.

    Returns:
        The manifest.

    Raises:
        CheckpointError: If a file is missing or is not what was written.
    """
    manifest = _read_manifest(path)
    for name, written in manifest["files"].items():
        if name not in unread:
            _require_file(path, name, written)
    return manifest


def _require_file(path: Path, name: str, written: Mapping[str, Any]) -> None:
    """Refuse a file that is not what the manifest says."""
    file = path / name
    if not file.is_file():
        raise refusal(path, f"its file {name!r} is missing")
    if (size := measure(file))["bytes"] != written["bytes"]:
        sizes = f"{size['bytes']} bytes of {written['bytes']}"
        raise refusal(path, f"its file {name!r} has {sizes}")
    if size != written:
        raise refusal(path, f"the content of its file {name!r} is not what was written")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        text = (path / MANIFEST).read_text("utf-8")
        manifest = json.loads(text)
        written = isinstance(manifest, dict) and text == to_json(manifest)
    except (OSError, ValueError) as error:
        raise refusal(path, f"its {MANIFEST} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise refusal(path, f"its {MANIFEST} is not one of a {FORMAT}")
    if (version := manifest.get("version")) != VERSION:
        fault = f"it is of version {version!r}, and this one reads {VERSION}"
        earlier = isinstance(version, int) and version < VERSION
        raise refusal(path, fault if earlier else newer(MANIFEST, fault))
    if not written or manifest.get("sha256") != seal(manifest):
        raise refusal(path, f"its {MANIFEST} is not what was written")
    _require_keys(path, manifest)
    # A name that is no checkpoint's is the caller's; one that is must be its own.
    if checkpoint_iteration(path) not in (None, manifest["iteration"]):
        right = checkpoint_name(manifest["iteration"])
        raise refusal(path, f"it was written as {right!r} and renamed")
    return manifest


def _require_keys(path: Path, manifest: dict[str, Any]) -> None:
    """Refuse a manifest that is whole, but lacks a key, has another, or one of another kind."""
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        key, fault = ".".join(map(str, first["loc"])), _FAULTS.get(first["type"], "of another kind")
    else:
        absent = [name for name in JSON_FILES if name not in manifest["files"]]
        if not absent:
            return
        key, fault = f"files.{absent[0]}", "missing"
    raise refusal(path, newer(MANIFEST, f"its key {key!r} is {fault}"))


def checkpoint_name(iteration: int) -> str:
    """Name the folder of a checkpoint.

    Args:
        iteration: Iterations finished; at least 0.

    Returns:
        The name.

    Examples:
        >>> checkpoint_name(7)
        'iteration_000007'
    """
    return f"iteration_{iteration:06d}"


def checkpoint_iteration(path: Path) -> int | None:
    """Read the iterations that a checkpoint's folder is named after.

    Args:
        path: The folder, or any other; that of a checkpoint which is being replaced counts.

    Returns:
        Iterations finished; None where the name is no checkpoint's.

    Examples:
        >>> checkpoint_iteration(Path("iteration_000007")), checkpoint_iteration(Path("best"))
        (7, None)
    """
    match = _NAME.fullmatch(path.name.removesuffix(REPLACED))
    return None if match is None else int(match[1])


def refusal(path: Path, reason: str) -> CheckpointError:
    """Word the refusal of a checkpoint.

    Args:
        path: The checkpoint's folder.
        reason: Clause that says what is wrong.

    Returns:
        Error to raise.
    """
    sentence = f"cannot use checkpoint {str(path)!r}: {reason}. "
    return CheckpointError(sentence + "Remove it to go on from the one before, or name another.")


def seal(manifest: Mapping[str, Any]) -> str:
    """Digest a manifest.

    Args:
        manifest: JSON values; its own seal is left out.

    Returns:
        SHA-256 in hexadecimal.
    """
    unsealed = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(to_json(unsealed).encode()).hexdigest()


def measure(file: Path) -> dict[str, Any]:
    """Measure a file.

    Args:
        file: The file.

    Returns:
        Size [bytes] and SHA-256.
    """
    return {"bytes": file.stat().st_size, "sha256": file_digest(file)}
