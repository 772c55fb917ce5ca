"""Plans of the package's own recipes, measured ahead: to read one takes no library of models.

``python -m bench plans`` writes them anew. One is read only where settings, sizes and the versions
of the libraries are those that it was measured with.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mvczigal_ref.config import TrainConfig, to_dict
from mvczigal_ref.models.published import weights_folder
from mvczigal_ref.preflight.plan_record import Calls, Flops, Memory, Parameters, Plan

__all__ = ["FREE", "STORED", "plan_key", "plan_values", "stored_plan"]

STORED = Path(__file__).with_name("plans.json")
"""File of the plans by key."""

FREE = {
    "run": (
        "seed", "iterations", "prompts", "held_out", "checkpoint_every", "keep_checkpoints",
        "evaluate_every", "evaluation_noises", "trackers",
    ),
    "optim": (
        "lr", "betas", "eps", "weight_decay", "max_grad_norm", "warmup_iterations",
        "decay_iterations",
    ),
}  # fmt: skip
"""Settings by section on which no plan depends."""

_LIBRARIES = ("torch", "diffusers", "transformers", "peft")
_SHIPPED = ("tiny", "tiny_flow")


def stored_plan(config: TrainConfig, *, processes: int) -> Plan | None:
    """Read a plan that was measured ahead.

    Args:
        config: Any run.
        processes: Processes of the run.

    Returns:
        Plan as measuring gives it, or None where none is stored.

    Examples:
        >>> from dataclasses import replace
        >>> config = TrainConfig()
        >>> run = replace(config.run, objects_per_iteration=8 * 77)
        >>> stored_plan(replace(config, run=run), processes=1) is None
        True
    """
    name = config.model.weights
    if config.model.gradient_checkpointing == "auto":  # by the memory of the machine
        return None
    if name not in _SHIPPED and weights_folder(name).is_dir():  # whose sizes may be others
        return None
    values = json.loads(STORED.read_text("utf-8")).get(plan_key(config, processes=processes))
    if values is None:
        return None
    records = {"calls": Calls, "flops": Flops, "memory": Memory, "parameters": Parameters}
    parts = {part: record(**values.pop(part)) for part, record in records.items()}
    plan = Plan(latent=tuple(values.pop("latent")), **values, **parts)
    return replace(plan, source=str(weights_folder(name))) if name in _SHIPPED else plan


def plan_values(plan: Plan) -> dict[str, Any]:
    """Give a plan's fields as JSON values, without the folders of the machine that measured it."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(plan)))
    published = plan.source.startswith("the published ")
    return values | {"source": plan.source if published else Path(plan.source).name}


def plan_key(config: TrainConfig, *, processes: int) -> str:
    """Digest what a plan depends on: settings, sizes of shipped networks, and versions.

    Args:
        config: A run of published or shipped weights.
        processes: Processes of the run.

    Returns:
        Digest in hexadecimal.
    """
    name = config.model.weights
    files = sorted(weights_folder(name).rglob("*.json")) if name in _SHIPPED else []
    sizes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    inputs = [_settings(config), processes, sizes, [_version(each) for each in _LIBRARIES]]
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:32]


def _settings(config: TrainConfig) -> Mapping[str, Any]:
    """Give what a plan depends on and is no default; so a new setting leaves old keys as are."""
    defaults = to_dict(TrainConfig())
    return {
        section: {
            name: value
            for name, value in values.items()
            if value != defaults[section][name] and name not in FREE.get(section, ())
        }
        for section, values in to_dict(config).items()
        if section != "recipe"
    }


def _version(library: str) -> str:
    try:
        return version(library).partition("+")[0]
    except PackageNotFoundError:
        return ""
