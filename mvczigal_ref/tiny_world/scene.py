"""Scenes of the tiny world: its cameras, and sets of rendered objects to train on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvczigal_ref.cameras import PAPER_RIG, OrthographicRig
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.tiny_world.grammar import parse
from mvczigal_ref.tiny_world.render import (
    HALF_WIDTH,
    Geometry,
    Nuisance,
    colour_maps,
    paint,
    render_maps,
)

__all__ = [
    "AZIMUTHS",
    "FRONT_DEG",
    "WORLD_RIG",
    "SceneSet",
    "azimuth_index",
    "sample_scenes",
]

WORLD_RIG: Final[OrthographicRig] = replace(PAPER_RIG, half_width=HALF_WIDTH)
"""The paper's six cameras, with the tiny world's frame."""


AZIMUTHS: Final[tuple[int, ...]] = tuple(range(0, 360, 45))
"""All azimuths at which the rig's cameras see an object, relative to its heading [deg]."""


FRONT_DEG: Final = -90
"""Azimuth of the camera that an object with heading 0 faces [deg]."""


def azimuth_index(
    rig: OrthographicRig, heading_deg: Sequence[int] = Nuisance.HEADINGS
) -> Int[Tensor, "heading view"]:
    r"""Index the relative azimuth at which each camera sees the object, for each heading.

    .. math:: i_{hv} = (\alpha_v + 90 - h) / 45 \bmod 8

    Args:
        rig: Cameras at elevation 0 and multiples of 45 degrees.
        heading_deg: Headings, multiples of 45; 0 faces the camera at -90 [deg].

    Returns:
        Indices into ``AZIMUTHS``.

    Raises:
        ConfigError: If a camera or a heading lies off the grid.

    Examples:
        >>> azimuth_index(WORLD_RIG, (0,)).tolist()
        [[0, 1, 2, 4, 6, 7]]
    """
    if any(heading % 45 for heading in heading_deg):
        msg = f"`heading_deg` must hold multiples of 45 degrees; got {tuple(heading_deg)}."
        raise ConfigError(msg)
    cameras = torch.tensor(rig.azimuth_deg, dtype=torch.float64)
    index = (cameras - FRONT_DEG - torch.tensor(heading_deg)[:, None]) / 45
    if any(rig.elevation_deg) or not torch.equal(index, index.round()):
        msg = (
            "`rig` must stand at elevation 0 and azimuths that are multiples of 45 degrees, where "
            f"the tiny world's judges have every view; got azimuths {rig.azimuth_deg} and "
            f"elevations {rig.elevation_deg}."
        )
        raise ConfigError(msg)
    return index.long() % len(AZIMUTHS)


@dataclass(frozen=True, slots=True)
class SceneSet:
    """Objects rendered from the eight azimuths, without colour or heading."""

    maps: Float[Tensor, "object azimuth 3 height width"]
    """Shaded body, shaded part and coverage [1]; half precision to save memory."""

    colours: Float[Tensor, "object 3 rgb"]
    """Colours of the three maps [RGB]; see :func:`colour_maps`."""

    prompt_index: Int[Tensor, " object"]
    """Index of each object's prompt in the list of prompts."""

    size: Float[Tensor, " object"]
    """Radius of the ball; the other bodies scale with it [world units]."""

    def images(
        self, index: Int[Tensor, " n"], azimuth: Int[Tensor, "n view"]
    ) -> Float[Tensor, "n view rgb height width"]:
        """Colour some objects, seen from some azimuths.

        Args:
            index: Indices of the objects.
            azimuth: Indices into ``AZIMUTHS``, one row per object.

        Returns:
            Images in [0, 1].
        """
        maps = self.maps[index[:, None], azimuth].float()
        return paint(maps, self.colours[index][:, None])


def sample_scenes(
    prompts: Sequence[str], *, per_prompt: int, generator: torch.Generator
) -> SceneSet:
    """Draw and render objects for prompts, with uniform nuisances.

    Args:
        prompts: Sentences of the grammar.
        per_prompt: Objects per prompt [1].
        generator: Draws size, part height and part radius.

    Returns:
        The objects, prompt by prompt.

    Raises:
        ConfigError: If a prompt is not in the grammar.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> scenes = sample_scenes(
        ...     ["a red ball with a white nose"], per_prompt=2, generator=generator
        ... )
        >>> scenes.maps.shape
        torch.Size([2, 8, 3, 32, 32])
    """
    maps, colours, sizes = [], [], []
    azimuth = torch.tensor(AZIMUTHS, dtype=torch.float32)
    for sentence in prompts:
        prompt = parse(sentence)
        geometry = Geometry(prompt.shape, prompt.part, Nuisance.sample(per_prompt, generator))
        sizes.append(geometry.nuisance.size)
        maps.append(render_maps(geometry, azimuth).half())
        colours.append(colour_maps(prompt).expand(per_prompt, 3, 3))
    index = torch.arange(len(prompts)).repeat_interleave(per_prompt)
    return SceneSet(torch.cat(maps), torch.cat(colours), index, torch.cat(sizes))
