"""Model cards: a folder of trained weights describes itself, and says how to load it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mvczigal_ref.files import is_hub_id, to_json
from mvczigal_ref.models.loading_snippet import loading_snippet
from mvczigal_ref.models.lora_weights import LoraWeights

__all__ = ["CardFacts", "CardResult", "hub_id", "model_card", "public_settings"]

_LAYERS = {
    ("unet", True): "every attention projection of a UNet with row attention",
    ("unet", False): "every attention projection of a UNet",
    ("transformer", False): "a flow transformer",
}
_LICENSES: dict[str, dict[str, Any]] = {
    "latent-consistency/lcm-sdxl": {"license": "openrail++"},
    "stabilityai/stable-diffusion-xl-base-1.0": {"license": "openrail++"},
    "stabilityai/stable-diffusion-3.5-medium": {
        "license": "other", "license_name": "stabilityai-ai-community",
    },
    "black-forest-labs/FLUX.1-dev": {
        "license": "other", "license_name": "flux-1-dev-non-commercial-license",
    },
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class CardResult:
    """Change of one held-out score."""

    name: str
    """Name of the score."""

    gain: float
    """Mean of the paired differences [reward units]."""

    text: str
    """Before, after, and the gain with its standard error and unit, as a reader sees them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CardFacts:
    """Facts about trained weights that the weights themselves do not hold."""

    base: str | None = None
    """Weights that were trained: a hub id, a folder, or the name of shipped weights."""

    settings: Mapping[str, Any] | None = None
    """Settings of the run as JSON values, or None if unknown."""

    results: Sequence[CardResult] = ()
    """Held-out scores."""

    sheet: str | None = None
    """File of the picture with objects before and after, beside the card."""

    repo: str | None = None
    """Hub id under which the folder will be found, or None where it is a folder alone."""

    license: str | None = None
    """Licence by its name on the hub; that of a known base if None."""


def hub_id(name: str | None) -> str | None:
    """Tell a hub id from the name of a folder or of shipped weights.

    Args:
        name: Weights that were trained.

    Returns:
        The hub id, or None.

    Examples:
        >>> hub_id("black-forest-labs/FLUX.1-dev"), hub_id("tiny"), hub_id("/data/flux")
        ('black-forest-labs/FLUX.1-dev', None, None)
    """
    named = name is not None and is_hub_id(name) and not Path(name).exists()
    return name if named else None


def public_settings(settings: Any) -> Any:  # noqa: ANN401 - JSON values, nested
    """Take places of the machine out of settings that will be read by everyone.

    Args:
        settings: JSON values.

    Returns:
        Values in which absolute paths have no folders, and addresses no name.

    Examples:
        >>> public_settings({"prompts": "/home/me/own.txt", "url": "http://gpu7:8000", "n": [8]})
        {'prompts': 'own.txt', 'url': 'an address', 'n': [8]}
    """
    if isinstance(settings, Mapping):
        return {name: public_settings(value) for name, value in settings.items()}
    if isinstance(settings, list | tuple):
        return [public_settings(value) for value in settings]
    if not isinstance(settings, str):
        return settings
    if "://" in settings:
        return "an address"
    paths = (PurePosixPath(settings), PureWindowsPath(settings))
    return next((path.name for path in paths if path.is_absolute()), settings)


def model_card(
    lora: LoraWeights | None, facts: CardFacts, *, network: str, multiview: bool = True
) -> str:
    """Write the card of a folder of trained weights.

    Args:
        lora: The trained update, or None where every weight was trained.
        facts: Facts about the weights; a base that is no hub id is left out of the header.
        network: Name of the network in a diffusers pipeline, "unet" or "transformer".
        multiview: Whether a UNet has row attention.

    Returns:
        Markdown with the hub's header, in which ``model-index`` holds the results.
    """
    base = hub_id(facts.base)
    name = "mvczigal-lora" if facts.repo is None else facts.repo.partition("/")[2]
    terms: dict[str, Any] = (
        {"license": facts.license} if facts.license else _LICENSES.get(base or "", {})
    )
    header = ModelCardData(
        base_model=base,
        library_name="diffusers" if lora is None else "peft",
        tags=["fine-tuned" if lora is None else "lora", "reinforcement-learning"],
        pipeline_tag="text-to-image",
        model_name=name if facts.results else None,
        eval_results=[_evaluation(result) for result in facts.results] or None,
        **terms,
    )
    parts = [_about(lora), _results(facts)]
    lines = loading_snippet(
        facts.base, facts.repo, facts.settings, whole=lora is None, network=network,
        multiview=multiview,
    )  # fmt: skip
    parts += ["## Loading", lines]
    if facts.settings:
        shown = facts.settings if facts.repo is None else public_settings(facts.settings)
        parts += ["## Settings of the run", f"```json\n{to_json(shown)}```"]
    body = "\n\n".join(part.strip() for part in parts if part)
    return str(ModelCard(f"---\n{header.to_yaml()}\n---\n\n{body}\n"))


def _about(lora: LoraWeights | None) -> str:
    if lora is None:
        return """# Network trained by reinforcement learning

Every weight was trained, with mvczigal_ref. A sub-folder is a diffusers model, read by its class's
`from_pretrained`; `mv_adapter.safetensors`, where there is one, holds row attention and camera
encoder under the published adapter's names."""
    layers = _LAYERS[lora.network, lora.multiview]
    text = f"""# LoRA trained by reinforcement learning

Rank {lora.rank}, alpha {lora.alpha:g}, on {layers}. Trained with mvczigal_ref.

PEFT reads `adapter_model.safetensors` by `PeftModel.from_pretrained({lora.network}, folder)`,
diffusers `pytorch_lora_weights.safetensors` by `pipeline.load_lora_weights(folder)`"""
    if lora.multiview:
        text += """, where the
UNet has row attention; `lora.safetensors` has the released trainer's names"""
    return text + ". A folder need not hold all of them."


def _results(facts: CardFacts) -> str:
    lines = [f"- {result.name}: {result.text}" for result in facts.results]
    text = "## Held-out prompts\n\n" + "\n".join(lines) if lines else ""
    if facts.sheet is not None:
        text += f"\n\nFrom the same noise, before and after training:\n\n![Sheet]({facts.sheet})"
    return text


def _evaluation(result: CardResult) -> EvalResult:
    return EvalResult(
        task_type="text-to-image",
        dataset_type="prompts",
        dataset_name="held-out prompts",
        metric_type="gain",
        metric_name=f"gain of the {result.name} score ({result.text})",
        metric_value=result.gain,
    )
