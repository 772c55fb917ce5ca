"""Small files in the layout and under the names in which the full-size networks are published."""

import json
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from mvczigal_ref.models.components import Components
from mvczigal_ref.models.published import LCM_UNET, MV_ADAPTER, SDXL_BASE, SDXL_VAE, SdxlSources
from tests.unit.models.small import fresh_components

DIFFUSERS = "diffusion_pytorch_model"
FACTOR = 0.13025
OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@cache
def parts() -> Components:
    """Build what is published, in fp32; its autoencoder has attention, as SDXL's."""
    components = fresh_components().to(dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16),
            norm_num_groups=8,
            scaling_factor=FACTOR,
            force_upcast=False,
        )
    return Components(
        tokenizer=components.tokenizer,
        tokenizer_2=components.tokenizer_2,
        text_encoder=components.text_encoder,
        text_encoder_2=components.text_encoder_2,
        vae=vae.eval(),
        policy=components.policy,
        latent_mean=torch.zeros(4),
        latent_std=torch.full((4,), 1.0 / FACTOR),
    )


def write_published(root: Path) -> SdxlSources:
    """Write four repositories as they are on the hub, each into a folder."""
    parts().save(root / "saved")
    saved, base = root / "saved", root / "base"
    for name in ("text_encoder", "text_encoder_2"):
        (base / name).mkdir(parents=True)
        (saved / name / "config.json").rename(base / name / "config.json")
        values = load_file(saved / name / "model.safetensors")
        values = {
            n if n.startswith("text_") else f"text_model.{n}": value for n, value in values.items()
        }
        # Files of that time hold the positions too.
        values["text_model.embeddings.position_ids"] = torch.arange(16)[None]
        _both(values, base / name / "model")
    for name in ("tokenizer", "tokenizer_2"):
        _tokenizer(saved / name, base / name)
    (saved / "unet").rename(root / "unet")
    _both(load_file(root / "unet" / f"{DIFFUSERS}.safetensors"), root / "unet" / DIFFUSERS)
    (root / "vae").mkdir()
    config = json.loads((saved / "vae" / "config.json").read_text("utf-8"))
    config |= {"latents_mean": None, "latents_std": None, "scaling_factor": FACTOR}
    (root / "vae" / "config.json").write_text(json.dumps(config))
    # The autoencoder's attention has names from before diffusers renamed it, and no half file.
    tensors = load_file(saved / "vae" / f"{DIFFUSERS}.safetensors")
    for new, old in OLD_NAMES.items():
        tensors = {
            name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): value
            for name, value in tensors.items()
        }
    save_file(tensors, root / "vae" / f"{DIFFUSERS}.safetensors", metadata={"format": "pt"})
    (root / "adapter").mkdir()
    (saved / "camera_encoder").rename(root / "adapter" / "camera_encoder")
    (saved / "mv_adapter.safetensors").rename(root / "adapter" / "mvadapter_t2mv_sdxl.safetensors")
    return SdxlSources(
        base=str(base),
        unet=str(root / "unet"),
        vae=str(root / "vae"),
        adapter=str(root / "adapter"),
    )


def write_cache(sources: SdxlSources, cache_folder: Path, revision: str = "main") -> SdxlSources:
    """Lay the four folders out as the hub's cache, under the published ids."""
    folders = {SDXL_BASE: sources.base, LCM_UNET: sources.unet, SDXL_VAE: sources.vae}
    for repo, folder in {**folders, MV_ADAPTER: sources.adapter}.items():
        place = cache_folder / f"models--{repo.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        (place / "refs" / revision).write_text("0" * 40)
        (place / "snapshots").mkdir()
        (place / "snapshots" / ("0" * 40)).symlink_to(str(folder))
    return SdxlSources(cache=str(cache_folder), local_files_only=True)


def _both(values: dict[str, torch.Tensor], stem: Path) -> None:
    """Write a full file and a half one."""
    save_file(values, stem.with_name(f"{stem.name}.safetensors"), metadata={"format": "pt"})
    half = {n: v.half() if v.is_floating_point() else v for n, v in values.items()}
    save_file(half, stem.with_name(f"{stem.name}.fp16.safetensors"), metadata={"format": "pt"})


def _tokenizer(saved: Path, folder: Path) -> None:
    """Write a tokenizer in the layout of its time: words and merges in a file each."""
    folder.mkdir(parents=True)
    model = json.loads((saved / "tokenizer.json").read_text("utf-8"))["model"]
    settings = json.loads((saved / "tokenizer_config.json").read_text("utf-8"))
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    special = {name: value for name, value in settings.items() if name.endswith("_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
