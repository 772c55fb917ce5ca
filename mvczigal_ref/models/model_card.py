"""Model cards: a folder of trained weights describes itself."""

from collections.abc import Mapping
from typing import Any

from mvczigal_ref.files import to_json
from mvczigal_ref.models.lora_weights import LoraWeights

__all__ = ["lora_card", "network_card"]

_LAYERS = {
    "unet": "every attention projection of a UNet with row attention",
    "transformer": "a flow transformer",
}
_LOADING = {
    "unet": """
```python
from mvczigal_ref.models.lora_files import load_lora

load_lora(pipeline.unet, "this folder")
```

PEFT reads `adapter_model.safetensors` by `PeftModel.from_pretrained(unet, folder)`, diffusers
`pytorch_lora_weights.safetensors` by `pipeline.load_lora_weights(folder)`, where the UNet has row
attention; `lora.safetensors` has the released trainer's names. A folder need not hold all of them.
""",
    "transformer": """
PEFT reads `adapter_model.safetensors` by `PeftModel.from_pretrained(transformer, folder)`,
diffusers `pytorch_lora_weights.safetensors` by `pipeline.load_lora_weights(folder)`. A folder need
not hold all of them.
""",
}


def lora_card(
    lora: LoraWeights, *, base_model: str | None, settings: Mapping[str, Any] | None
) -> str:
    """Write the card of a folder that holds a LoRA.

    Args:
        lora: The trained update.
        base_model: Hub id of the trained network, or None if unknown.
        settings: Settings of the run as JSON values, or None if unknown.

    Returns:
        Markdown with the hub's header.
    """
    text = f"""
# LoRA trained by reinforcement learning

Rank {lora.rank}, alpha {lora.alpha:g}, on {_LAYERS[lora.network]}. Trained with mvczigal_ref.
{_LOADING[lora.network]}"""
    return _card("peft", "lora", text, base_model, settings)


def network_card(*, base_model: str | None, settings: Mapping[str, Any] | None) -> str:
    """Write the card of a folder that holds a whole trained network.

    Args:
        base_model: Hub id of the trained network, or None if unknown.
        settings: Settings of the run as JSON values, or None if unknown.

    Returns:
        Markdown with the hub's header.
    """
    text = """
# Network trained by reinforcement learning

Every weight was trained, with mvczigal_ref. A sub-folder is a diffusers model, read by its class's
`from_pretrained`; `mv_adapter.safetensors`, where there is one, holds row attention and camera
encoder under the published adapter's names.
"""
    return _card("diffusers", "fine-tuned", text, base_model, settings)


def _card(
    library: str, tag: str, text: str, base_model: str | None, settings: Mapping[str, Any] | None
) -> str:
    base = [f"base_model: {base_model}"] if base_model else []
    head = ["---", *base, f"library_name: {library}", f"tags: [{tag}, reinforcement-learning]"]
    run = f"\n## Settings of the run\n\n```json\n{to_json(settings)}```\n" if settings else ""
    return "\n".join([*head, "---"]) + "\n" + text + run
