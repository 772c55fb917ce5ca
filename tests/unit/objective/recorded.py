"""Read this topic's golden files: tensors, and the constants they were made with."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load

__all__ = ["load_golden"]

_FOLDER = Path(__file__).parents[3] / "fixtures" / "golden"


def load_golden(name: str) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Return a golden file's tensors and constants, after checking that it is unchanged."""
    entry = json.loads((_FOLDER / "objective.json").read_text())["files"][f"{name}.safetensors"]
    content = (_FOLDER / f"{name}.safetensors").read_bytes()
    assert hashlib.sha256(content).hexdigest() == entry["sha256"], name
    return load(content), entry["constants"]
