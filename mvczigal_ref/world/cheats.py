"""Hand-built sets of views that a reward must rank: honest ones, and cheats."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.shapes import Images
from mvczigal_ref.world.grammar import COLOURS, parse
from mvczigal_ref.world.render import BACKGROUND, Nuisance, colour_maps, paint
from mvczigal_ref.world.scene import WORLD_RIG, SceneSet, azimuth_index, sample_scenes

__all__ = ["hand_built_sets"]


def _wrong(sentence: str) -> str:
    """Return another prompt: the next body colour that is not the part's."""
    prompt, colours = parse(sentence), list(COLOURS)
    turn = colours[colours.index(prompt.body_colour) + 1 :] + colours
    other = next(c for c in turn if c not in (prompt.body_colour, prompt.part_colour))
    return sentence.replace(f"a {prompt.body_colour} ", f"a {other} ", 1)


def hand_built_sets(
    prompts: Sequence[str], *, generator: torch.Generator
) -> dict[str, Float[Tensor, "object view rgb height width"]]:
    """Build one set of views a prompt and kind of fault, from the same objects.

    Args:
        prompts: Sentences of the grammar.
        generator: Draws nuisance, heading and noise.

    Returns:
        ``real`` and the faults by name, images in [0, 1]:
        ``part_in_every_view`` (a side that should hide the part shows it),
        ``back_is_front``, ``front_copied``, ``headings_disagree``,
        ``blurred_mean`` (mean over headings), ``part_missing``,
        ``wrong_prompt``, ``blank``, ``noise``.
    """
    scenes = sample_scenes(prompts, per_prompt=1, generator=generator)
    n, azimuth = len(prompts), azimuth_index(WORLD_RIG)
    every = torch.arange(n)
    heading = torch.randint(len(Nuisance.HEADINGS), (n,), generator=generator)
    seen = azimuth[heading]

    def views(at: Tensor, of: SceneSet = scenes) -> Images:
        return of.images(every, at)

    # relative azimuths 3, 4, 5 look at the far side; turn those cameras to the near one
    shown = torch.tensor([0, 1, 2, 1, 0, 7, 6, 7])[seen]
    own = torch.randint(8, seen.shape, generator=generator)
    disagree = (seen + torch.tensor([-1, 0, 1])[own % 3]) % 8
    front = seen[:, :1]
    back_is_front = torch.where(seen == (front + 4) % 8, front, seen)
    missing = scenes.colours.clone()
    missing[:, 1] = missing[:, 0]
    wrong = torch.stack([_colours(_wrong(sentence)) for sentence in prompts])
    real = views(seen)
    return {
        "real": real,
        "part_in_every_view": views(shown),
        "back_is_front": views(back_is_front),
        "front_copied": views(torch.zeros_like(seen)),
        "headings_disagree": views(disagree),
        "blurred_mean": torch.stack([views(azimuth[h].expand_as(seen)) for h in range(3)]).mean(0),
        "part_missing": _paint(scenes, every, seen, missing),
        "wrong_prompt": _paint(scenes, every, seen, wrong),
        "blank": torch.full_like(real, BACKGROUND),
        "noise": torch.rand(real.shape, generator=generator),
    }


def _colours(sentence: str) -> Float[Tensor, "3 rgb"]:
    return colour_maps(parse(sentence))


def _paint(scenes: SceneSet, index: Tensor, azimuth: Tensor, colours: Tensor) -> Images:
    return paint(scenes.maps[index[:, None], azimuth].float(), colours[:, None])
