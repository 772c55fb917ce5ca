"""Reference values: loaded only if they are the very bytes whose provenance is written down.

``fixtures/golden/<topic>.json`` says where each file of a topic comes from, what its tensors mean,
and its sha256.
"""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "fixtures" / "golden"


@cache
def provenance(topic: str) -> dict[str, Any]:
    """Return a topic's entries by the file's name without its suffix."""
    files = json.loads((GOLDEN / f"{topic}.json").read_text())["files"]
    return {name.removesuffix(".safetensors"): entry for name, entry in files.items()}


def names(topic: str, prefix: str = "") -> list[str]:
    """Return a topic's files that begin with ``prefix``; never an empty list."""
    found = sorted(name for name in provenance(topic) if name.startswith(prefix))
    if not found:
        message = f"no golden file of {topic!r} begins with {prefix!r}"
        raise LookupError(message)
    return found


def constants(topic: str, name: str) -> dict[str, Any]:
    """Return the scalars that a file was made with."""
    return provenance(topic)[name]["constants"]


def tensors(topic: str, name: str) -> dict[str, Tensor]:
    """Return a file's tensors, after its hash and its list of tensors are found right."""
    content = (GOLDEN / f"{name}.safetensors").read_bytes()
    entry = provenance(topic)[name]
    digest = hashlib.sha256(content).hexdigest()
    if digest != entry["sha256"]:
        message = f"{name}.safetensors has sha256 {digest}, its provenance says {entry['sha256']}"
        raise ValueError(message)
    loaded = load(content)
    if set(loaded) != set(entry["tensors"]):
        message = f"{name}.safetensors and its provenance list different tensors"
        raise ValueError(message)
    return loaded
