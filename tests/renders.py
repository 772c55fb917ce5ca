"""Real objects of the tiny world, for tests that need images which scorers like."""

import torch

from mvczigal_ref.tiny_world.grammar import parse
from mvczigal_ref.tiny_world.render import (
    IMAGE_SIZE,
    Geometry,
    Nuisance,
    colour_maps,
    paint,
    render_maps,
)
from mvczigal_ref.tiny_world.scene import FRONT_DEG, WORLD_RIG


def render_prompts(prompts, *, generator, rig=WORLD_RIG, image_size=IMAGE_SIZE):
    """Render one real object per prompt, with nuisance and heading drawn at random."""
    cameras, elevation = torch.tensor(rig.azimuth_deg), torch.tensor(rig.elevation_deg)
    sets = []
    for sentence in prompts:
        prompt = parse(sentence)
        nuisance = Nuisance.sample(1, generator)
        choice = int(torch.randint(len(Nuisance.HEADINGS), (), generator=generator))
        heading = Nuisance.HEADINGS[choice]
        maps = render_maps(
            Geometry(prompt.shape, prompt.part, nuisance),
            cameras - FRONT_DEG - heading,
            elevation,
            image_size=image_size,
            half_width=rig.half_width,
        )
        sets.append(paint(maps, colour_maps(prompt)))
    return torch.cat(sets)
