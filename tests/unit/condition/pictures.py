"""Pictures of the tiny world, rendered by hand."""

import torch

from mvczigal_ref.tiny_world.grammar import parse
from mvczigal_ref.tiny_world.render import Geometry, Nuisance, colour_maps, paint, render_maps

__all__ = ["PROMPT", "group", "picture"]


PROMPT = "a red cube with a white nose"


def picture(prompt=PROMPT, *, azimuth=45.0, size=0.52, height=0.1, radius=0.46, pixels=32):
    """Render one object by hand."""
    said = parse(prompt)
    nuisance = Nuisance(*(torch.tensor([value]) for value in (size, height, radius)))
    maps = render_maps(
        Geometry(said.shape, said.part, nuisance), torch.tensor([azimuth]), image_size=pixels
    )
    return paint(maps, colour_maps(said))[0, 0]


def group(*pictures):
    """Put pictures into one group of single views."""
    return torch.stack(pictures)[None, :, None]
