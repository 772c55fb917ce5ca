"""Single files of weights where a folder or a LoRA is meant: what each is, and its conversion."""

import os
from collections.abc import Sequence
from pathlib import Path

from mvczigal_ref.errors import CheckpointError
from mvczigal_ref.models.file_kinds import conversion, describe_file, summary, tensor_names

__all__ = ["START", "START_WEIGHTS", "refuse_single_file", "require_lora", "require_start"]

START = "a run folder, RUN@ITERATION, or an exported LoRA"
"""Noun phrase of what a new run can begin with."""

START_WEIGHTS = "name FOLDER as `model.weights` or in `model.sources`, and leave `--from` out"
"""Remedy where a FOLDER of whole weights is given, with which no run begins."""

_SINGLE = ("model.diffusion_model.", "first_stage_model.", "conditioner.", "cond_stage_model.")
_SDXL = ("SDXL", "StableDiffusionXLPipeline")
_PIPELINES = {  # whose single file holds a name with this in it, and the class that reads it
    "joint_blocks.": ("Stable Diffusion 3", "StableDiffusion3Pipeline"),
    "double_blocks.": ("FLUX", "FluxPipeline"),
    "cond_stage_model.": ("Stable Diffusion", "StableDiffusionPipeline"),
}
_LORA = ("lora", "hada_w", "lokr_w", "oft_blocks", "oft_diag", "dora_scale")
_SHOWN = 2  # names in a message


def refuse_single_file(
    name: str,
    source: str | Path,
    *,
    rule: str = "a folder or hub id in diffusers' layout",
    use: str = "",
) -> None:
    """Refuse one file where something else is meant.

    Args:
        name: Name of the argument.
        source: Value of the argument.
        rule: Noun phrase of what the argument must be.
        use: Remedy for the file's FOLDER where the argument takes none.

    Raises:
        CheckpointError: If it is a file; says what that is, and how a checkpoint is converted.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        return
    what = describe_file(path)
    names = tensor_names(path) if what == "a safetensors file" else None
    alone = not (path.parent / "config.json").is_file()
    folder = "Give the folder that holds it" + (f", as FOLDER: {use}." if use else ".")
    if names is not None and _is_lora(names):
        what += " of a LoRA"
        remedy = "Give it as the LoRA, and the folder of its base here."
    elif names is not None:
        whole = [one for one in names if one.startswith(_SINGLE)]
        kind = "a single-file checkpoint of a whole pipeline" if whole else "no LoRA"
        what += f", {kind}, {len(names)} tensors: {summary(whole or names, shown=_SHOWN) or 'none'}"
        remedy = _folder_of(str(path), use, names) if alone else folder
    elif "pickle" in what and alone:
        converted = f"{path.with_suffix('')}.safetensors"
        remedy = f"First {conversion(path)}. {_folder_of(converted, use)}"
    elif "pickle" in what:
        remedy = f"{folder[:-1]}, and {conversion(path)}."
    elif not os.access(path, os.R_OK):
        remedy = "Change its mode, or its owner."
    else:
        remedy = folder if not alone else "Download it again."
    msg = f"`{name}` must be {rule}; got the file {str(path)!r}, which is {what}. {remedy}"
    raise CheckpointError(msg)


def require_lora(path: Path, name: str, *, rule: str, use: str = "") -> None:
    """Refuse a file that is anything but a LoRA, whole or not: no tensor is read.

    Args:
        path: File.
        name: Name of the argument.
        rule: As in :func:`refuse_single_file`.
        use: As there.

    Raises:
        CheckpointError: If it is something else; says what, and how a checkpoint is converted.
    """
    whole = describe_file(path) == "a safetensors file"
    if not whole or not _is_lora(tensor_names(path) or ()):
        refuse_single_file(name, path, rule=rule, use=use)


def require_start(path: Path) -> None:
    """Refuse a file that holds no LoRA as what a new run begins with; torch is not imported.

    Args:
        path: Value of the option ``--from``; folders are judged elsewhere.

    Raises:
        CheckpointError: If it is another file; says what, and how a checkpoint is converted.
    """
    if path.is_file():
        require_lora(path, "--from", rule=START, use=START_WEIGHTS)


def _is_lora(names: Sequence[str]) -> bool:
    """Tell a LoRA's tensors, of whatever layout, or a relative's, from a whole network's."""
    return any(part in name for name in names for part in _LORA)


def _folder_of(checkpoint: str, use: str, names: Sequence[str] = ()) -> str:
    """Say how a whole pipeline's single file becomes a folder."""
    kinds = (kind for part, kind in _PIPELINES.items() if any(part in name for name in names))
    model, pipeline = next(kinds, _SDXL)
    return (
        f"Convert a single-file {model} checkpoint once, `from diffusers import {pipeline} as P; "
        f"P.from_single_file({checkpoint!r}).save_pretrained("
        f"'FOLDER')`, and {use or 'name FOLDER'}."
    )
