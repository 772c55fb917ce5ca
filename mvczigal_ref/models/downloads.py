"""Published pipelines: sizes of their parts, and the command that downloads them."""

from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["PARTS", "download_hint"]

_CLIP, _CLIP_G, _T5, _VAE = 0.25, 1.4, 9.5, 0.17

_SDXL = {"unet": 5.1, "text_encoder": _CLIP, "text_encoder_2": _CLIP_G, "vae": _VAE}
_FLUX = {"transformer": 23.8, "text_encoder": _CLIP, "text_encoder_2": _T5, "vae": _VAE}
_SD3_TEXTS = {"text_encoder": _CLIP, "text_encoder_2": _CLIP_G, "text_encoder_3": _T5}

PARTS: Final[Mapping[str, Mapping[str, float]]] = {
    "black-forest-labs/FLUX.1-dev": _FLUX,
    "black-forest-labs/FLUX.1-schnell": _FLUX,
    "stabilityai/stable-diffusion-3.5-medium": {"transformer": 4.9, **_SD3_TEXTS, "vae": _VAE},
    "stabilityai/stable-diffusion-3.5-large": {"transformer": 16.3, **_SD3_TEXTS, "vae": _VAE},
    "Tongyi-MAI/Z-Image-Turbo": {"transformer": 12.3, "text_encoder": 8.0, "vae": _VAE},
    "stabilityai/stable-diffusion-xl-base-1.0": _SDXL,
    "stabilityai/sdxl-turbo": _SDXL,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {
        "unet": 1.7, "text_encoder": _CLIP, "vae": _VAE,
    },
}  # fmt: skip
"""Size of each network by repository and folder, in half precision as it is published [GB]."""


def download_hint(source: str, absent: Sequence[str] = ()) -> str:
    """Say by which command the parts of a pipeline are downloaded, and how large they are.

    The repositories hold the same weights a second time, in single files, which nothing here reads.

    Args:
        source: Hub id of the pipeline.
        absent: Folders that are missing; all if empty.

    Returns:
        Sentence with the command; without sizes where they are not known.

    Examples:
        >>> download_hint("someone/flux")
        'Download it first: hf download someone/flux'
        >>> download_hint("stabilityai/stable-diffusion-3.5-medium", ["vae", "scheduler"])
        "Download vae (0.2 GB), scheduler, 0.2 GB in all: hf download \
stabilityai/stable-diffusion-3.5-medium --include 'vae/*' --include 'scheduler/*'"
    """
    sizes = PARTS.get(source)
    if sizes is None:
        return f"Download it first: hf download {source}"
    encoders = len([part for part in sizes if part.startswith("text_encoder")])
    small = ("scheduler", "tokenizer", *(f"tokenizer_{n}" for n in range(2, encoders + 1)))
    parts = list(absent) or [*sizes, *small]
    named = [f"{part} ({sizes[part]:.1f} GB)" if part in sizes else part for part in parts]
    whole = sum(sizes.get(part, 0.0) for part in parts)
    patterns = [f"{part}/*" for part in parts] + ([] if absent else ["model_index.json"])
    include = " ".join(f"--include '{pattern}'" for pattern in patterns)
    return f"Download {', '.join(named)}, {whole:.1f} GB in all: hf download {source} {include}"
