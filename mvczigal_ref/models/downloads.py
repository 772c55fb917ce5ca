"""Published pipelines: sizes of their parts, and the command that downloads them."""

from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["NETWORKS", "PARTS", "download_hint", "file_size"]

NETWORKS: Final[Mapping[str, int]] = {
    "unet": 2_567_463_684,
    "lcm_unet": 2_567_545_604,
    "adapter": 490_923_200,
    "text_encoder": 123_060_480,
    "text_encoder_2": 694_659_840,
    "vae": 83_653_863,
}
"""Numbers that the files of SDXL's networks hold, of row attention with its camera encoder too."""

_HALF = 2  # bytes of a number
_CLIP, _CLIP_G = NETWORKS["text_encoder"], NETWORKS["text_encoder_2"]
_T5, _VAE = 4_762_310_656, 83_819_683

_SDXL = {name: NETWORKS[name] for name in ("unet", "text_encoder", "text_encoder_2", "vae")}
_FLUX = {"transformer": 11_901_408_320, "text_encoder": _CLIP, "text_encoder_2": _T5, "vae": _VAE}
_SD3_REST = {
    "text_encoder": 123_650_304, "text_encoder_2": _CLIP_G, "text_encoder_3": _T5, "vae": _VAE,
}  # fmt: skip

PARTS: Final[Mapping[str, Mapping[str, int]]] = {
    "black-forest-labs/FLUX.1-dev": _FLUX,
    "black-forest-labs/FLUX.1-schnell": _FLUX | {"transformer": 11_891_178_560},
    "stabilityai/stable-diffusion-3.5-medium": {"transformer": 2_469_663_936, **_SD3_REST},
    "stabilityai/stable-diffusion-3.5-large": {"transformer": 8_146_280_768, **_SD3_REST},
    "Tongyi-MAI/Z-Image-Turbo": {
        "transformer": 6_154_908_736, "text_encoder": 4_022_468_096, "vae": _VAE,
    },
    "stabilityai/stable-diffusion-xl-base-1.0": _SDXL,
    "stabilityai/sdxl-turbo": _SDXL,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {
        "unet": 859_520_964, "text_encoder": _CLIP, "vae": NETWORKS["vae"],
    },
}  # fmt: skip
"""Numbers that the file of each network holds, by repository and folder; two bytes each, as
published."""


def file_size(size: int) -> str:
    """Write the size of a file to three digits.

    Args:
        size: Size [bytes].

    Returns:
        Size in MB or GB, of 1000 and 1000 million kB.

    Examples:
        >>> file_size(246_120_960), file_size(5_134_927_368)
        ('246 MB', '5.13 GB')
    """
    return f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3g} MB"


def download_hint(source: str, absent: Sequence[str] = ()) -> str:
    """Say by which command the parts of a pipeline are downloaded, and how large they are.

    The repositories hold the same weights again: in single files, and those with a UNet in single
    precision and for other libraries. Nothing of that is read here, nor downloaded so.

    Args:
        source: Hub id of the pipeline.
        absent: Folders that are missing; all if empty.

    Returns:
        Sentence with the command; without sizes where they are not known.

    Examples:
        >>> download_hint("someone/flux")
        'Download it first: hf download someone/flux'
        >>> download_hint("stabilityai/stable-diffusion-3.5-medium", ["vae", "scheduler"])
        "Download vae (168 MB), scheduler, 168 MB in all: hf download \
stabilityai/stable-diffusion-3.5-medium --include 'vae/*' --include 'scheduler/*'"
    """
    sizes = PARTS.get(source)
    if sizes is None:
        return f"Download it first: hf download {source}"
    encoders = len([part for part in sizes if part.startswith("text_encoder")])
    small = ("scheduler", "tokenizer", *(f"tokenizer_{n}" for n in range(2, encoders + 1)))
    parts = list(absent) or [*sizes, *small]
    bytes_of = {part: _HALF * numbers for part, numbers in sizes.items()}
    named = [f"{part} ({file_size(bytes_of[part])})" if part in sizes else part for part in parts]
    whole = file_size(sum(bytes_of.get(part, 0) for part in parts))
    several = ("*.json", "*.fp16.safetensors") if "unet" in sizes else ("*",)
    patterns = [
        f"{part}/{files}" for part in parts for files in (several if part in sizes else ("*",))
    ] + ([] if absent else ["model_index.json"])
    include = " ".join(f"--include '{pattern}'" for pattern in patterns)
    return f"Download {', '.join(named)}, {whole} in all: hf download {source} {include}"
