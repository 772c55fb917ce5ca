"""Origin of a run: another run's checkpoint, or an exported LoRA, from which a new run begins."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mvczigal_ref.config import TrainConfig, to_dict
from mvczigal_ref.config.fingerprint import differing_settings
from mvczigal_ref.config.paths import setting_value
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.files import (
    atomic_write,
    discard,
    file_digest,
    sync_files,
    to_json,
    usual_mode,
    writing,
)
from mvczigal_ref.models.loading import load_strict
from mvczigal_ref.models.lora_files import check_lora
from mvczigal_ref.models.lora_reading import PEFT_FILE
from mvczigal_ref.models.lora_weights import DIFFUSERS_LORA_FILE
from mvczigal_ref.models.saved_parts import SavedParts
from mvczigal_ref.models.sharding import shard_world
from mvczigal_ref.models.single_files import START, START_WEIGHTS, require_start
from mvczigal_ref.models.weight_files import write_safetensors
from mvczigal_ref.system import System
from mvczigal_ref.training.checkpoint import Checkpoint, load_checkpoint
from mvczigal_ref.training.checkpoint_folder import (
    checkpoint_iteration,
    checkpoint_name,
    checkpoints,
)
from mvczigal_ref.training.identity import require_same_weights
from mvczigal_ref.training.run_folder import load_newest
from mvczigal_ref.training.tensor_groups import read_groups, write_groups

__all__ = ["ORIGIN", "Origin", "begin_from", "origin_of", "read_origin", "write_origin"]

ORIGIN = "origin.json"
"""File of a run folder that tells its origin; the parameters lie beside it."""


_TENSORS = "origin.safetensors"


_PARTS = "origin"  # a folder in place of that file, where processes hold parts of the parameters


# Parameters fit nothing that differs in one of these.
_SHAPES = ("model.network", "model.finetune", "model.lora_rank", "model.lora_alpha")


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Parameters that a new run begins with, and where they are from."""

    place: str
    """Absolute path of the run folder, checkpoint, or LoRA."""

    iteration: int | None
    """Iterations that its run had finished; None of an exported LoRA."""

    sha256: str
    """Digest of the parameters, or of an exported LoRA's file."""

    differences: tuple[str, ...]
    """Sentence for each setting that differs from the other run's; empty of an exported LoRA."""

    lora: Path | None = None
    """File of an exported LoRA; None of a run."""

    tensors: Mapping[str, Tensor] | None = None
    """Trained parameters by name; None of an exported LoRA."""

    @property
    def lines(self) -> tuple[str, ...]:
        """Lines that tell a person where the run begins and what differs."""
        at = "" if self.iteration is None else f" after {self.iteration} iterations"
        unknown = self.lora is not None
        differ = [f"  {line}" for line in self.differences]
        more = ["the settings that it was trained with are not known"] if unknown else differ
        return (
            f"beginning a new run with the parameters of {self.place!r}{at}; optimiser, "
            "constraint, averages and the count of iterations begin anew",
            *(more or ["no setting differs"]),
        )

    def apply(self, system: System) -> None:
        """Put the parameters into a system that holds new ones.

        Args:
            system: System whose trained parameters change.

        Raises:
            CheckpointError: If they do not fit.
        """
        if self.tensors is not None:
            load_strict(system.trained(), self.tensors, source=self.place)
        elif self.lora is not None:
            system.backbone.load_lora(self.lora)


def read_origin(start: str | Path, config: TrainConfig) -> Origin:
    """Read what a new run is to begin with, before any model is loaded.

    Args:
        start: A run folder, `RUN@ITERATION` for one of its checkpoints, a checkpoint's folder,
            or an exported LoRA: a PEFT folder, one that holds diffusers' file, or the file.
        config: The new run; network, kind of training, rank and alpha must be the origin's.

    Returns:
        The parameters that were learnt, not their average, which an export holds.

    Raises:
        CheckpointError: If there is nothing of the kind, it is damaged or not finite, or does not
            fit the new run.

    Examples:
        >>> read_origin("absent@3", TrainConfig())
        Traceback (most recent call last):
        mvczigal_ref.errors.CheckpointError: `--from` must name a run folder, RUN@ITERATION, or an \
exported LoRA; got 'absent@3'.
    """
    path, iteration = _place(start)
    lora = path if path.is_file() else _lora_file(path)
    if iteration is None and lora is not None:
        return _of_lora(path, lora, config)
    if (path / "manifest.json").is_file():
        checkpoint = load_checkpoint(path, learning=False)
    elif (path / "checkpoints").is_dir():
        checkpoint = load_newest(path) if iteration is None else _at(path, iteration)
    else:
        msg = f"`--from` must name {START}; got {str(start)!r}."
        if (path / "model_index.json").is_file():
            msg = f"{msg[:-1]}, a pipeline's FOLDER: {START_WEIGHTS}."
        raise CheckpointError(msg)
    return _of_checkpoint(path, checkpoint, config)


def origin_of(
    folder: Path, origin: Origin | None, checkpoint: Checkpoint | None = None
) -> dict[str, Any] | None:
    """Compare what a run folder tells of its origin with what is asked for.

    Args:
        folder: The run folder; it need not exist.
        origin: Origin that is asked for, or None to go on with what is there.
        checkpoint: The folder's newest, which tells its origin too.

    Returns:
        The record of a run that has begun, with `place`, `iteration`, `sha256` of the source and
        `parameters`, the digest of what lies beside it; None of a run that begins, or that began
        with the base weights.

    Raises:
        CheckpointError: If the run has begun from something else, or its record is damaged.
    """
    path = folder / ORIGIN
    if not (folder / "config.json").is_file():
        return None
    record: dict[str, Any] | None = None
    if path.is_file():
        try:
            record = json.loads(path.read_text("utf-8"))
            _ = (record["place"], record["iteration"], record["sha256"], record["parameters"])
        except (ValueError, TypeError, KeyError) as error:
            msg = f"{str(path)!r} must tell the run's origin; it is damaged. Restore the file."
            raise CheckpointError(msg) from error
    if checkpoint is not None and checkpoint.state.get("origin") != record:
        msg = (
            f"{str(path)!r} must tell the origin that the run's checkpoints tell; it is "
            f"{'missing' if record is None else 'another'}. Restore the file."
        )
        raise CheckpointError(msg)
    if origin is not None and (record is None or record["sha256"] != origin.sha256):
        place = "its base weights" if record is None else repr(record["place"])
        msg = (
            f"{str(folder)!r} holds a run that began with {place}; got `--from` "
            f"{origin.place!r}. Choose another folder, or leave `--from` out to go on."
        )
        raise CheckpointError(msg)
    return record


def begin_from(
    folder: Path, system: System, origin: Origin | None, record: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Put the parameters of a run's origin into its system.

    Args:
        folder: The run folder.
        system: With new parameters, which change.
        origin: From :func:`read_origin`, for a run that begins.
        record: From :func:`origin_of`, for one that has begun.

    Returns:
        The record, to which :func:`write_origin` adds the digest of what it writes. None without
        an origin.

    Raises:
        CheckpointError: If the parameters do not fit, or their copy in the folder is damaged.
    """
    if record is not None:
        parts = folder / _PARTS
        path = parts if parts.is_dir() else folder / _TENSORS
        try:
            digest = _digest(path)
        except OSError as error:
            msg = f"cannot read the run's first parameters in {str(path)!r}: {error}. Restore it."
            raise CheckpointError(msg) from error
        if digest != record["parameters"]:
            msg = f"{str(path)!r} must hold the run's first parameters; it is damaged. Restore it."
            raise CheckpointError(msg)
        names = [file.name for file in path.iterdir()] if path == parts else []
        tensors = read_groups(path, names)["policy"] if names else load_file(path)
        load_strict(system.trained(), tensors, source=str(path))
        return record
    if origin is None:
        return None
    with shard_world({"policy": system.trained()}).agreed():
        origin.apply(system)
    return {
        "place": origin.place,
        "iteration": origin.iteration,
        "sha256": origin.sha256,
        "differences": list(origin.differences),
    }


def write_origin(
    folder: Path, record: dict[str, Any], parameters: Mapping[str, Tensor], world: World
) -> None:
    """Keep a run's origin in its folder, so that it goes on without the other run.

    Args:
        folder: The run folder.
        record: From :func:`begin_from`; in the first process it gets the digest of the parameters.
        parameters: Trainable parameters; where they are in parts, every process writes its own.
        world: This process among all; every process must call.
    """
    here, path = shard_world({"policy": parameters}), folder / _TENSORS
    if here.size > 1:
        path = folder / _PARTS
        with here.agreed():
            if world.is_main:
                _clear(folder)
                path.mkdir(parents=True)
        with here.agreed(), writing(path):
            write_groups(path, {"policy": parameters})
    if not world.is_main:
        return
    if here.size > 1:
        usual_mode(path)
        sync_files(path)
    else:
        _clear(folder)
        write_safetensors(path, parameters)
    record["parameters"] = _digest(path)
    atomic_write(folder / ORIGIN, to_json(record))


def _clear(folder: Path) -> None:
    """Remove what a start that was cut short has left, in one file or in parts."""
    discard(folder / _PARTS)
    (folder / _TENSORS).unlink(missing_ok=True)


def _digest(path: Path) -> str:
    """Digest a file of parameters, or a folder of files."""
    if not path.is_dir():
        return file_digest(path)
    sums = {file.name: file_digest(file) for file in path.iterdir()}
    return hashlib.sha256(to_json(sums).encode()).hexdigest()


def _place(start: str | Path) -> tuple[Path, int | None]:
    text = str(start)
    path = Path(text).expanduser()
    name, at, number = text.rpartition("@")
    if not path.exists() and at and number.isascii() and number.isdigit():
        return Path(name).expanduser().absolute(), int(number)
    return path.absolute(), None


def _at(folder: Path, iteration: int) -> Checkpoint:
    """Read one checkpoint of a run, the guard's best one too."""
    name = checkpoint_name(iteration)
    for place in ("checkpoints", "best"):
        if (folder / place / name).is_dir():
            return load_checkpoint(folder / place / name, learning=False)
    paths = (*checkpoints(folder / "checkpoints"), *checkpoints(folder / "best"))
    numbers = sorted({n for path in paths if (n := checkpoint_iteration(path)) is not None})
    msg = (
        f"`--from` must name a checkpoint that {str(folder)!r} holds, of the iterations {numbers}; "
        f"got {iteration}."
    )
    raise CheckpointError(msg)


def _of_checkpoint(path: Path, checkpoint: Checkpoint, config: TrainConfig) -> Origin:
    for setting in _SHAPES:
        there, here = setting_value(checkpoint.config, setting), setting_value(config, setting)
        if there != here:
            msg = (
                f"`{setting}` must be {there!r}, that of {str(path)!r}, whose parameters the run "
                f"is to begin with; got {here!r}."
            )
            raise CheckpointError(msg)
    tensors, digest = checkpoint.tensors["policy"], hashlib.sha256()
    for name, tensor in tensors.items():
        if isinstance(tensors, SavedParts):  # one at a time
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
        if not bool(tensor.isfinite().all()):
            msg = (
                f"`--from` must name finite parameters; got non-finite numbers in {name!r} of "
                f"{str(path)!r} after {checkpoint.iteration} iterations. Name an earlier "
                "checkpoint, as RUN@ITERATION."
            )
            raise CheckpointError(msg)
    require_same_weights(config, checkpoint.state)
    if not isinstance(tensors, SavedParts):
        digest.update(save(dict(tensors)))
    return Origin(
        place=str(path),
        iteration=checkpoint.iteration,
        sha256=digest.hexdigest(),
        differences=tuple(differing_settings(to_dict(checkpoint.config), to_dict(config))),
        tensors=tensors,
    )


def _of_lora(path: Path, file: Path, config: TrainConfig) -> Origin:
    require_start(file)
    if config.model.finetune != "lora":
        msg = (
            f'`model.finetune` must be "lora" to begin with the LoRA {str(path)!r}; got '
            f'"{config.model.finetune}". Merge the LoRA and name the folder as `model.weights`.'
        )
        raise CheckpointError(msg)
    lora, model = check_lora(file, network=config.model.network), config.model
    alpha = float(lora.rank) if lora.alpha is None else lora.alpha
    ranks_differ = lora.rank != model.lora_rank
    if ranks_differ or alpha / lora.rank != model.lora_alpha / model.lora_rank:
        name, value = ("rank", lora.rank) if ranks_differ else ("alpha", alpha)
        msg = (
            f"`model.lora_{name}` must be {value}, that of {str(path)!r}, whose parameters the run "
            f"is to begin with; got {getattr(model, f'lora_{name}')}."
        )
        raise CheckpointError(msg)
    return Origin(
        place=str(path), iteration=None, sha256=file_digest(file), differences=(), lora=file
    )


def _lora_file(folder: Path) -> Path | None:
    files = (folder / name for name in (PEFT_FILE, DIFFUSERS_LORA_FILE))
    return next((file for file in files if file.is_file()), None)
