"""Hand-built sets of views that a reward must rank: honest ones, and cheats."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mvczigal_ref.shapes import Images
from mvczigal_ref.tiny_world.grammar import COLOURS, parse
from mvczigal_ref.tiny_world.render import BACKGROUND, Nuisance, colour_maps
from mvczigal_ref.tiny_world.scene import WORLD_RIG, azimuth_index, sample_scenes

__all__ = ["hand_built_sets", "other_prompt"]

_BESIDE = (0, 1, 2, 1, 0, 7, 6, 7)  # by azimuth: the near side of the most alike outline


def other_prompt(prompt: str) -> str:
    """Replace the body colour by the next colour that is not the part's.

    Args:
        prompt: Sentence of the grammar.

    Returns:
        A sentence that does not fit objects of the first.

    Raises:
        ConfigError: If the prompt is not in the grammar.

    Examples:
        >>> other_prompt("a red cube with a green nose")
        'a blue cube with a green nose'
    """
    parsed, colours = parse(prompt), list(COLOURS)
    turn = colours[colours.index(parsed.body_colour) + 1 :] + colours
    return str(replace(parsed, body_colour=next(c for c in turn if c != parsed.part_colour)))


def hand_built_sets(prompts: Sequence[str], *, generator: torch.Generator) -> dict[str, Images]:
    """Build one set of views per prompt and kind, all of the same objects.

    ``real`` is an honest object. ``part_in_every_view`` replaces every view from the far side,
    where the part is hidden, by one from the near side. ``back_is_front`` repeats the front
    camera's view at the back camera, ``front_copied`` at all cameras. In ``headings_disagree``
    each camera sees another heading of the object; ``blurred_mean`` is the mean over headings.
    ``part_missing`` has a part in the body's colour, ``wrong_prompt`` the body colour of
    :func:`other_prompt`. ``blank`` is the background, ``noise`` is uniform.

    Args:
        prompts: Sentences of the grammar.
        generator: Draws nuisance, heading and noise.

    Returns:
        Images in [0, 1] by kind, from the cameras of ``WORLD_RIG``.

    Raises:
        ConfigError: If a prompt is not in the grammar.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> sets = hand_built_sets(["a red ball with a white nose"], generator=generator)
        >>> sets["real"].shape, sets["blank"].unique()
        (torch.Size([1, 6, 3, 32, 32]), tensor([0.4500]))
    """
    scenes = sample_scenes(prompts, per_prompt=1, generator=generator)
    azimuth, every = azimuth_index(WORLD_RIG), torch.arange(len(prompts))
    headings = len(Nuisance.HEADINGS)
    seen = azimuth[torch.randint(headings, (len(prompts),), generator=generator)]
    mixed = torch.randint(headings, seen.shape, generator=generator)
    front = seen[:, :1]  # the rig's first camera

    def views(at: Tensor, colours: Tensor = scenes.colours) -> Images:
        return replace(scenes, colours=colours).images(every, at)

    no_part = scenes.colours.clone()
    no_part[:, 1] = no_part[:, 0]
    wrong = torch.stack([colour_maps(parse(other_prompt(prompt))) for prompt in prompts])
    real = views(seen)
    return {
        "real": real,
        "part_in_every_view": views(torch.tensor(_BESIDE)[seen]),
        "back_is_front": views(torch.where(seen == (front + 4) % 8, front, seen)),
        "front_copied": views(front.expand_as(seen)),
        "headings_disagree": views(azimuth[mixed, torch.arange(seen.shape[1])]),
        "blurred_mean": torch.stack([views(row.expand_as(seen)) for row in azimuth]).mean(0),
        "part_missing": views(seen, no_part),
        "wrong_prompt": views(seen, wrong),
        "blank": torch.full_like(real, BACKGROUND),
        "noise": torch.rand(real.shape, generator=generator),
    }
