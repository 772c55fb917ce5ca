"""The narrowest pipeline in a folder, and small runs of it."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from mvczigal_ref.config import from_dict
from mvczigal_ref.models.tiny import tiny_components

__all__ = ["config_of"]


@cache
def folder(guidance_width=8) -> Path:
    """Save the narrowest pipeline once, with some attention in it."""
    found = Path(mkdtemp())
    tiny_components(
        seed=1, channels=(8, 16, 16), num_heads=(1, 2, 2), vae_channels=(8, 8, 16), text_width=8,
        time_cond_proj_dim=guidance_width,
    ).save(found)  # fmt: skip
    return found


def config_of(*, guidance_width=8, **sections):
    """Configure a small run whose slices divide unevenly; sections are dictionaries."""
    small = {
        "model": {"weights": str(folder(guidance_width)), "lora_rank": 2, "lora_alpha": 2.0},
        "sampler": {"num_steps": 2, "guidance_scale": 2.0},
        "optim": {"optimizer_steps_per_epoch": 2},
        "run": {"objects_per_iteration": 2, "objects_per_slice": 1},
    }
    names = {*small, *sections}
    return from_dict({name: {**small.get(name, {}), **sections.get(name, {})} for name in names})
