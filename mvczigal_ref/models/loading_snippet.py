"""Lines of Python by which a folder of trained weights is loaded and sampled."""

from collections.abc import Mapping
from typing import Any

from mvczigal_ref.models.published import LCM_UNET, SDXL_BASE, SHIPPED

__all__ = ["loading_snippet"]

_SCHEDULERS = {
    "lcm": "LCMScheduler",
    "ddim": "DDIMScheduler",
    "euler_ancestral": "EulerAncestralDiscreteScheduler",
    "tcd": "TCDScheduler",
}
_PROMPT = "a red cube with a white nose"


def loading_snippet(
    base: str | None,
    repo: str | None,
    settings: Mapping[str, Any] | None,
    *,
    whole: bool,
    network: str,
    multiview: bool = True,
) -> str:
    """Write the lines that load the weights on their base and sample a prompt.

    Args:
        base: Weights that were trained: a hub id, a folder, or the name of shipped weights.
        repo: Hub id of the folder, or None where it is a folder alone.
        settings: Settings of the run, read for its sampling; the pipeline's own if None.
        whole: Whether every weight was trained, or a LoRA.
        network: Name of the network in a diffusers pipeline, "unet" or "transformer".
        multiview: Whether a UNet has row attention, which diffusers' own pipelines have not.

    Returns:
        A block of Markdown.
    """
    imports, lines = [], []
    if repo is None:
        folder = '"."  # this folder'
    else:
        imports.append("from huggingface_hub import snapshot_download")
        folder = f'snapshot_download("{repo}")'
    place = f'"{SDXL_BASE if base == LCM_UNET else base or "the trained base"}"'
    if base in SHIPPED:
        imports.append("from mvczigal_ref.system.networks import weights_folder")
        place = f"weights_folder({place})"  # within the package
    multiview = multiview and network == "unet"
    kind = "TextToMultiviewPipeline" if multiview else "DiffusionPipeline"
    imports.append(f"from {'mvczigal_ref' if multiview else 'diffusers'} import {kind}")
    more, after = "", []
    if network == "unet" and not multiview:
        after = _few_steps(settings or {}, imports)
    if whole and multiview:
        more = ", unet=folder, adapter=folder"
    elif whole:
        imports.append("from diffusers import AutoModel")
        lines.append(f'{network} = AutoModel.from_pretrained(folder, subfolder="{network}")')
        more = f", {network}={network}"
    elif multiview:
        # Of SDXL's base the package takes the published few-step UNet unless another is named.
        more = f", unet={place}" if base == SDXL_BASE else ""
        imports.append("from mvczigal_ref.models.lora_files import load_lora")
        after.append("load_lora(pipeline.unet, folder)")
    else:
        after.append("pipeline.load_lora_weights(folder)")
    options = _sampling(settings or {}, flow=not multiview)
    if base == "tiny_flow":
        # Its autoencoder has one scale per channel, which diffusers' own pipeline does not apply.
        options += ', output_type="latent"'
    lines = [f"folder = {folder}", *lines, f"pipeline = {kind}.from_pretrained({place}{more})"]
    lines += [*after, f'images = pipeline("{_PROMPT}"{options}).images']
    return "\n".join(["```python", *sorted(imports), "", *lines, "```"])


def _few_steps(settings: Mapping[str, Any], imports: list[str]) -> list[str]:
    """Write the lines that fuse a distilled LoRA and choose the run's scheduler."""
    sampler, lines = settings.get("sampler", {}), []
    lora = settings.get("model", {}).get("sources", {}).get("lora")
    if lora is not None:
        repo, slash, file = lora.rpartition("/")
        named = slash and file.endswith(".safetensors")
        place = f'"{repo}", weight_name="{file}"' if named else f'"{lora}"'
        lines = [f"pipeline.load_lora_weights({place})", "pipeline.fuse_lora()"]
        lines.append("pipeline.unload_lora_weights()")
    scheduler = _SCHEDULERS.get(sampler.get("kind", ""))
    if scheduler is not None:
        trailing = sampler.get("spacing") == "trailing" or sampler.get("kind") == "euler_ancestral"
        more = ', timestep_spacing="trailing"' * trailing
        imports.append(f"from diffusers import {scheduler}")
        lines.append(
            f"pipeline.scheduler = {scheduler}.from_config(pipeline.scheduler.config{more})"
        )
    return lines


def _sampling(settings: Mapping[str, Any], *, flow: bool) -> str:
    """Give the run's sampling as arguments of the pipeline's call."""
    sampler, model = settings.get("sampler", {}), settings.get("model", {})
    values = {"num_inference_steps": sampler.get("num_steps")}
    values["guidance_scale"] = sampler.get("guidance_scale")
    if flow:
        values |= {"height": model.get("image_size"), "width": model.get("image_size")}
    return "".join(f", {name}={value}" for name, value in values.items() if value is not None)
