"""Plans of the package's own recipes, measured ahead: to read one takes no library of models.

``python -m bench plans`` writes them anew. One is read only where settings, sizes and the versions
of the libraries are those that it was measured with. It holds what a CPU takes, and beside it what
is other on an accelerator: which form of a LoRA costs less depends on the device.
"""

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mvczigal_ref.config import TrainConfig, to_dict
from mvczigal_ref.models.published import SHIPPED, weights_folder
from mvczigal_ref.preflight.plan_record import Calls, Flops, Memory, Parameters, Plan

__all__ = ["FREE", "STORED", "plan_key", "plan_values", "planned_device", "stored_plan"]

STORED = Path(__file__).with_name("plans.json")
"""File of the plans by key."""

FREE = {
    "run": (
        "device", "seed", "iterations", "prompts", "held_out", "checkpoint_every",
        "keep_checkpoints", "evaluate_every", "evaluation_noises", "trackers",
    ),
    "optim": (
        "lr", "betas", "eps", "weight_decay", "max_grad_norm", "warmup_iterations",
        "decay_iterations",
    ),
}  # fmt: skip
"""Settings by section on which no plan depends; on the kind of device it does, see
:func:`planned_device`, but its two plans are stored as one."""

_LIBRARIES = ("torch", "diffusers", "transformers", "peft")
_ACCELERATOR = "accelerator"  # key of what is other there


def stored_plan(config: TrainConfig, *, processes: int) -> Plan | None:
    """Read a plan that was measured ahead.

    Args:
        config: Any run.
        processes: Processes of the run.

    Returns:
        Plan as measuring gives it, for the device that the run would take, or None where none is
        stored.

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
    if name not in SHIPPED and weights_folder(name).is_dir():  # whose sizes may be others
        return None
    values = json.loads(STORED.read_text("utf-8")).get(plan_key(config, processes=processes))
    if values is None:
        return None
    device, other = planned_device(config), values.pop(_ACCELERATOR)
    values |= {"device": device} | (other if device != "cpu" else {})
    records = {"calls": Calls, "flops": Flops, "memory": Memory, "parameters": Parameters}
    parts = {part: record(**values.pop(part)) for part, record in records.items()}
    plan = Plan(latent=tuple(values.pop("latent")), **values, **parts)
    return replace(plan, source=str(weights_folder(name))) if name in SHIPPED else plan


def planned_device(config: TrainConfig) -> str:
    """Name the kind of device that a run would take here; a build for CPUs alone is not imported.

    Args:
        config: Any run.

    Returns:
        Type of a torch device, such as ``cpu`` or ``cuda``.

    Examples:
        >>> from mvczigal_ref.config import load_config
        >>> planned_device(load_config(overrides=["run.device=cuda:1"]))
        'cuda'
    """
    if config.run.device != "auto":
        return config.run.device.partition(":")[0]
    if "torch" not in sys.modules and version("torch").endswith("+cpu"):
        return "cpu"
    import torch

    here = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if here is None else here.type


def plan_values(on_cpu: Plan, on_accelerator: Plan) -> dict[str, Any]:
    """Give a run's plans as JSON values, without device and folders of who measured them.

    Args:
        on_cpu: Plan of the run on a CPU.
        on_accelerator: Plan of the same run on any accelerator.

    Returns:
        Fields of the first, and under one more key those that are other in the second.
    """
    values, other = _values(on_cpu), _values(on_accelerator)
    return values | {_ACCELERATOR: {k: v for k, v in other.items() if v != values[k]}}


def _values(plan: Plan) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(json.dumps(asdict(plan)))
    del values["device"]
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
    files = sorted(weights_folder(name).rglob("*.json")) if name in SHIPPED else []
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
