"""LoRA files: names, rank and scale are read and checked before any network is touched."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mvczigal_ref.errors import CheckpointError, quoted
from mvczigal_ref.models.file_kinds import plain_name, summary
from mvczigal_ref.models.file_sums import require_sum
from mvczigal_ref.models.single_files import require_lora
from mvczigal_ref.models.weight_files import read_json, read_metadata, read_safetensors

__all__ = [
    "INERT",
    "KEEPS_BASE",
    "METADATA",
    "PEFT_CONFIG",
    "PEFT_FILE",
    "PEFT_PREFIX",
    "PLAIN",
    "LoraFile",
    "read_lora",
]

PEFT_FILE, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_PREFIX = "base_model.model."

METADATA = "lora_adapter_metadata"
"""Entry of a file in which diffusers looks for the scale; without it values are misread."""

PLAIN: Mapping[str, Any] = {
    "peft_type": "LORA", "bias": "none", "use_dora": False, "use_rslora": False,
    "use_qalora": False, "use_bdlora": None, "lora_bias": False, "fan_in_fan_out": False,
    "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None, "layer_replication": None,
    "target_parameters": None, "trainable_token_indices": None, "alora_invocation_tokens": None,
    "velora_config": None, "monteclora_config": None, "arrow_config": None, "kasa_config": None,
    "layers_to_transform": None,
}  # fmt: skip
"""PEFT's settings with the value that a plain LoRA has; any other value is refused."""

KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Kinds of initial values that leave the base weights as they are."""

INERT = (
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "target_modules", "exclude_modules", "lora_dropout",
    "layers_pattern", "megatron_config", "megatron_core", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config",
    "ensure_weight_tying",
)  # fmt: skip
"""PEFT's settings that change no value of a plain LoRA: every tensor is compared by name."""

_NAMES = (*PLAIN, *INERT, "r", "lora_alpha", "init_lora_weights")

# Parts of tensors' names, and the kind of file that has them.
_STYLES: tuple[tuple[tuple[str, ...], str], ...] = (
    (("lora_magnitude_vector", "dora_scale"), "a DoRA"),
    (("hada_w", "lokr_w", "oft_blocks", "oft_diag"), "a LyCORIS adapter, no plain LoRA"),
    ((".lora_down.", ".lora_up.", "lora_unet_", "lora_te"), "a LoRA in kohya's names"),
    (("_lora.down.", "_lora.up.", ".lora.down.", ".lora.up."), "a LoRA in diffusers' old names"),
    (("diffusion_model.",), "a LoRA in the original model's names"),
)
_ADAPTER = re.compile(r"\.lora_[AB]\.(?!weight$)[^.]+\.weight$")
_SINGLE = torch.finfo(torch.float32)
_WHOLE = "name FOLDER as weights or in `model.sources`"  # what to do with other weights
_TEXT_ENCODERS = ("text_encoder.", "text_encoder_2.", "text_encoder_3.")
_OTHER_NETWORK = {"unet": "transformer.", "transformer": "unet."}


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraFile:
    """Content of a LoRA's file."""

    path: Path
    """Place of the file."""

    values: Mapping[str, Tensor]
    """Tensors by their names inside the network."""

    rank: int
    """Rank of every factor [columns]."""

    alpha: float | None
    """Numerator of the scale [1]; None where the file does not say it."""

    targets: tuple[str, ...] | None
    """Ends of the names of the adapted layers; None where the file does not say them."""


def read_lora(path: Path, *, network: Literal["unet", "transformer"] = "unet") -> LoraFile:
    """Read a LoRA's tensors and settings; refuse a file that would be misread.

    Args:
        path: A safetensors file; the settings of a PEFT folder lie beside it.
        network: Name of the network in a diffusers pipeline.

    Returns:
        The LoRA.

    Raises:
        CheckpointError: If the file is unreadable, its names are of another layout, its numbers
            are not floating-point or not finite, it has several ranks or another rank than its
            settings say, or it is no plain LoRA. One line names file, setting or tensor, and
            remedy.
    """
    named = read_safetensors(path)
    require_sum(path.with_name(PEFT_CONFIG))
    settings = _settings(path, network)
    _check_style(path, named, network)
    prefixes = (PEFT_PREFIX, f"{network}.")
    prefix = next((p for p in prefixes if named and all(n.startswith(p) for n in named)), "")
    values = {name.removeprefix(prefix): value for name, value in named.items()}
    for name, value in values.items():
        if not value.is_floating_point():
            msg = (
                f"`{path}` must hold floating-point tensors; got {plain_name(name)} of "
                f"{value.dtype}. Save the "
                "LoRA as it was before it was quantised."
            )
            raise CheckpointError(msg)
        if not bool(value.float().isfinite().all()):
            msg = (
                f"`{path}` must hold finite numbers; got NaN or infinity in {plain_name(name)}. "
                "Train again."
            )
            raise CheckpointError(msg)
    rank = _rank(path, values, settings)
    if prefix == PEFT_PREFIX and "lora_alpha" not in settings:
        msg = (
            f"`{path}` must say its scale; it has PEFT's names, and PEFT keeps the scale in "
            f"{PEFT_CONFIG}. Name it {PEFT_FILE} again, in a folder with that file."
        )
        raise CheckpointError(msg)
    targets = settings.get("target_modules")
    if isinstance(targets, list):
        _check_targets(path, values, tuple(str(end) for end in targets))
    return LoraFile(
        path=path,
        values=values,
        rank=rank,
        alpha=_number(path, settings, "lora_alpha") if "lora_alpha" in settings else None,
        targets=tuple(str(end) for end in targets) if isinstance(targets, list) else None,
    )


def _settings(path: Path, network: str) -> dict[str, Any]:
    """Read the LoRA's settings from the file and its folder; refuse other kinds."""
    try:
        content = json.loads(read_metadata(path).get(METADATA, "{}"))
    except (ValueError, RecursionError) as error:
        msg = f"`{path}` must hold {METADATA} as JSON; got {error}."
        raise CheckpointError(msg) from error
    if not isinstance(content, dict):
        msg = f"`{path}` must hold {METADATA} as a JSON object; got {type(content).__name__}."
        raise CheckpointError(msg)
    start = f"{network}."
    # diffusers' `save_lora_adapter` writes a network's settings without its name.
    bare = {n: v for n, v in content.items() if "." not in n}
    settings = {n.removeprefix(start): v for n, v in content.items() if n.startswith(start)} or bare
    if path.name == PEFT_FILE:
        settings |= read_json(path.parent / PEFT_CONFIG)
    absent = [name for name in ("r", "lora_alpha") if name not in settings]
    if absent and (settings or path.name == PEFT_FILE):
        msg = (
            f"`{path}` must have {absent[0]} among its settings; got "
            f"{summary(sorted(settings)) or 'none'}, and PEFT would take its default. Add it."
        )
        raise CheckpointError(msg)
    other = [n for n, only in PLAIN.items() if settings.get(n) and settings[n] != only]
    other += [n for n, value in settings.items() if value and n not in _NAMES]
    if other:
        msg = f"`{path}` must be a plain LoRA of one rank; its settings have {summary(other)}."
        raise CheckpointError(msg)
    initial = settings.get("init_lora_weights")
    if not any(type(initial) is type(kind) and initial == kind for kind in KEEPS_BASE):
        msg = (
            f"`{path}` must be for the base weights as they are; its init_lora_weights = "
            f"{quoted(initial)} changed them. Save it with PEFT's `path_initial_model_for_weight_"
            "conversion`, which makes a plain LoRA of it."
        )
        raise CheckpointError(msg)
    return settings


def _check_style(path: Path, named: Mapping[str, Tensor], network: str) -> None:
    """Refuse names of other layouts, and say which layout it is."""
    require_lora(path, path.name, rule="a LoRA, tensors named lora_A and lora_B", use=_WHOLE)
    text = [name for name in named if name.startswith(_TEXT_ENCODERS)]
    if text:
        msg = (
            f"`{path}` must hold the {network}'s LoRA alone; got {len(text)} tensors of text "
            f"encoders: {summary(text)}. Load all of it with `pipeline.load_lora_weights`, or save "
            "it without them."
        )
        raise CheckpointError(msg)
    wrong = _OTHER_NETWORK[network]
    styles = (*_STYLES, ((wrong,), f"a LoRA of another network, {wrong.rstrip('.')}"))
    for parts, style in styles:
        names = [name for name in named if any(part in name for part in parts)]
        if style.endswith(wrong.rstrip(".")):
            names = [name for name in names if name.startswith(wrong)]
        if names:
            msg = (
                f"`{path}` is {style}, {len(names)} of {len(named)} tensors, such as "
                f"{plain_name(names[0])}; "
                "names of PEFT, diffusers or the released code are read here. A pipeline may read "
                "it, by `load_lora_weights`."
            )
            raise CheckpointError(msg)
    inside = [name for name in named if _ADAPTER.search(name)]
    if inside:
        msg = (
            f"`{path}` is a network's own state, {len(inside)} of {len(named)} tensors with an "
            f"adapter's name inside, such as {plain_name(inside[0])}. Save it with PEFT's "
            "`save_pretrained`, or diffusers' `save_lora_weights`."
        )
        raise CheckpointError(msg)
    if not any(".lora_A." in name for name in named):
        msg = (
            f"`{path}` must hold a LoRA, tensors named lora_A and lora_B; got {len(named)} "
            f"tensors: {summary(list(named)) or 'none'}."
        )
        raise CheckpointError(msg)


def _rank(path: Path, values: Mapping[str, Tensor], settings: Mapping[str, Any]) -> int:
    """Compare the tensors' ranks with each other and with the settings."""
    ranks = {
        value.shape[0 if ".lora_A." in name else 1]
        for name, value in values.items()
        if value.ndim == 2 and (".lora_A." in name or ".lora_B." in name)
    }
    if len(ranks) != 1 or 0 in ranks:
        listed = ", ".join(str(rank) for rank in sorted(ranks)) or "none"
        msg = f"`{path}` must be a plain LoRA of one rank; its tensors have ranks {listed}."
        raise CheckpointError(msg)
    (rank,) = ranks
    if "r" in settings and _number(path, settings, "r") != rank:
        msg = (
            f"`{path}` must have the rank that its settings say, r = {quoted(settings['r'])}; its "
            f"tensors have rank {rank}, so its strength is unknown. Correct the setting."
        )
        raise CheckpointError(msg)
    return rank


def _check_targets(path: Path, values: Mapping[str, Tensor], targets: tuple[str, ...]) -> None:
    """Refuse tensors of layers that the settings leave out: PEFT would drop them."""
    ends = tuple(f".{end}" for end in targets)
    layers = {name.partition(".lora_")[0] for name in values}
    other = sorted(layer for layer in layers if not f".{layer}".endswith(ends))
    if other:
        msg = (
            f"`{path}` must hold tensors of its target_modules alone, {summary(targets)}; got "
            f"those of {summary(other)}. Correct the setting."
        )
        raise CheckpointError(msg)


def _number(path: Path, settings: Mapping[str, Any], name: str) -> float:
    """Read a setting that must be a positive number."""
    value = settings[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not _SINGLE.tiny <= value <= _SINGLE.max:
        msg = (
            f"`{path}` must have a positive number that fits single precision as its setting "
            f"{name}; got {quoted(value)}."
        )
        raise CheckpointError(msg)
    return float(value)
