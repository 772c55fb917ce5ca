r"""The tiny world's two judges, exact and in closed form.

Both compare images with every valid render of the prompt, in decibels relative to
the render's foreground:

.. math:: \mathrm{dB}(x, r) = -10 \log_{10}\Big(
    \frac{\lVert x - r \rVert^2}{\lVert r - \mathrm{background} \rVert^2} + 0.02\Big)

so a perfect match has 17 and a blank image about 0. The renders are a grid of 90
geometries, each from the eight azimuths of the rig.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mvczigal_ref.cameras import OrthographicRig
from mvczigal_ref.shapes import Images, JointViewReward, PerViewReward
from mvczigal_ref.tiny_world.grammar import parse
from mvczigal_ref.tiny_world.render import (
    BACKGROUND,
    IMAGE_SIZE,
    Geometry,
    Nuisance,
    colour_maps,
    paint,
    render_maps,
)
from mvczigal_ref.tiny_world.scene import AZIMUTHS, WORLD_RIG, azimuth_index

__all__ = ["FLOOR", "PART_BONUS", "joint_view_score", "nearest_renders", "per_view_score"]

FLOOR: Final = 0.02
"""Relative error that is added to every match, which bounds the score [1]."""


PART_BONUS: Final = 6.0
"""Bonus on the per-view judge of a render that shows the named part [dB]."""


@dataclass(frozen=True, slots=True)
class _Atlas:
    """Every valid geometry of one shape and part, from the eight azimuths."""

    maps: Float[Tensor, "geometry azimuth 3 pixel"]
    gram: Float[Tensor, "geometry azimuth 3 3"]
    """Inner products of each render's three maps."""
    bonus: Float[Tensor, "geometry azimuth"]
    """Bonus of each render on the per-view judge [dB]."""

    def to(self, like: Tensor) -> "_Atlas":
        """Move the tables to the device and dtype of the images compared with them."""
        return _Atlas(self.maps.to(like), self.gram.to(like), self.bonus.to(like))


@lru_cache(maxsize=8)
def _atlas(shape: str, part: str) -> _Atlas:
    """Render on the CPU, in fp32."""
    azimuth = torch.tensor(AZIMUTHS, dtype=torch.float32)
    maps = render_maps(Geometry(shape, part, Nuisance.grid()), azimuth).flatten(-2)
    visible = maps[:, :, 1].sum(-1)
    best = visible.amax(1, keepdim=True)
    bonus = PART_BONUS * (visible / (0.5 * best)).clamp(max=1)
    return _Atlas(maps, maps @ maps.mT, bonus)


_Above = Float[Tensor, "object view rgb pixel"]  # images minus the background
_Colours = Float[Tensor, "object 3 rgb"]  # of the three maps
_PerView = Float[Tensor, "object view"]


@torch.no_grad()
def _errors(
    above: _Above, atlas: _Atlas, colours: _Colours
) -> tuple[Float[Tensor, "object geometry azimuth view"], Float[Tensor, "object geometry azimuth"]]:
    """Return each view's squared error against every render, and each render's energy.

    Good enough to find the best match: cancelling squares leave an error of 1e-6 of the energy.
    """
    # <x, r> = sum over maps of <x . colour, map>: three products for any number of colours
    seen = torch.einsum("ovcp,omc->ovmp", above, colours)
    inner = torch.einsum("gamp,ovmp->ogav", atlas.maps, seen)
    energy = torch.einsum("gamn,omn->oga", atlas.gram, colours @ colours.mT)
    square = above.square().sum((-2, -1))
    return square[:, None, None, :] - 2 * inner + energy[..., None], energy


def _measure(
    above: _Above, maps: Float[Tensor, "object view 3 pixel"], colours: _Colours
) -> tuple[_PerView, _PerView]:
    """Return the squared error against one render per view, summed over pixels, and its energy."""
    render = torch.einsum("ovmp,omc->ovcp", maps, colours)
    return (above - render).square().sum((-2, -1)), render.square().sum((-2, -1))


def _decibel(error: Float[Tensor, "*n"], energy: Float[Tensor, "*#n"]) -> Float[Tensor, "*n"]:
    return -10 * torch.log10((error / energy).clamp(min=0) + FLOOR)


def _families(
    images: Images, prompts: Sequence[str]
) -> Iterator[tuple[list[int], _Above, _Atlas, _Colours]]:
    """Group the objects by shape and part: those of one group share all renders but the colours."""
    parsed = [parse(sentence) for sentence in prompts]
    groups: dict[tuple[str, str], list[int]] = {}
    for i, prompt in enumerate(parsed):
        groups.setdefault((prompt.shape, prompt.part), []).append(i)
    for family, index in groups.items():
        above = (images[index] - BACKGROUND).flatten(-2)
        colours = torch.stack([colour_maps(parsed[i]) for i in index]).to(images)
        yield index, above, _atlas(*family).to(images), colours


def _checked(images: Images, prompts: Sequence[str]) -> Images:
    """Refuse images that no render can be compared with; return them in fp32 or wider."""
    if images.shape[0] != len(prompts):
        msg = (
            f"`prompts` must hold one sentence per object; got {len(prompts)} for "
            f"{images.shape[0]} objects."
        )
        raise ValueError(msg)
    if images.shape[-2:] != (IMAGE_SIZE, IMAGE_SIZE):
        msg = (
            f"`images` must be {IMAGE_SIZE}x{IMAGE_SIZE} pixels, the tiny world's size; got "
            f"{images.shape[-2]}x{images.shape[-1]}."
        )
        raise ValueError(msg)
    return images.to(torch.promote_types(images.dtype, torch.float32))


def per_view_score(images: Images, prompts: Sequence[str]) -> PerViewReward:
    r"""Judge each view alone: does it show the object of the prompt?

    .. math:: \max_{g, a} \big[\mathrm{dB}(x, r_{g,a})
        + 6 \min(1, \tfrac{\text{part visible in } r_{g,a}}{\text{half its best}})\big]

    over geometries g and azimuths a. The judge does not know the cameras, so a view that
    shows the part scores more than one that rightly hides it.

    Args:
        images: Views in [0, 1], one object per prompt. Gradient flows, through
            the best match.
        prompts: Sentences of the grammar.

    Returns:
        Scores, at most 23; a blank image has about 6, the bonus of a render that
        shows the part [dB]. In fp32 or wider.

    Raises:
        ValueError: If counts or pixels disagree, or a prompt is not in the
            grammar.

    Examples:
        >>> grey = torch.full((1, 2, 3, 32, 32), 0.45)
        >>> per_view_score(grey, ["a red cube with a white nose"]).shape
        torch.Size([1, 2])
    """
    images = _checked(images, prompts)
    scores = images.new_empty(images.shape[:2])
    for index, above, atlas, colours in _families(images, prompts):
        best = _best_render(above, atlas, colours)
        matched = _decibel(*_measure(above, atlas.maps.flatten(0, 1)[best], colours))
        scores[index] = matched + atlas.bonus.flatten()[best]
    return scores


def joint_view_score(
    images: Images, prompts: Sequence[str], *, rig: OrthographicRig = WORLD_RIG
) -> JointViewReward:
    r"""Judge all views together: is there ONE object that matches every camera?

    .. math:: \max_{g, h} -10\log_{10}\Big(
        \frac{\sum_v \lVert x_v - r_{g, a(v,h)} \rVert^2}
        {\sum_v \lVert r_{g, a(v,h)} - \mathrm{background} \rVert^2} + 0.02\Big)

    over geometries g and headings h, each view at its own camera.

    Args:
        images: Views in [0, 1], one object per prompt, one view per camera. Gradient
            flows, through the best match.
        prompts: Sentences of the grammar.
        rig: The cameras; elevation 0, azimuths in multiples of 45 degrees.

    Returns:
        Scores, at most 17, about 0 for blank images [dB]. In fp32 or wider.

    Raises:
        ValueError: If counts, views or pixels disagree, a prompt is not in the
            grammar, or a camera is off the grid of azimuths.

    Examples:
        >>> grey = torch.full((1, 6, 3, 32, 32), 0.45)
        >>> round(joint_view_score(grey, ["a red cube with a white nose"]).item())
        0
    """
    images = _checked(images, prompts)
    if images.shape[1] != rig.num_views:
        msg = f"`images` must hold {rig.num_views} views, one per camera; got {images.shape[1]}."
        raise ValueError(msg)
    scores = images.new_empty(images.shape[0])
    for index, above, atlas, colours in _families(images, prompts):
        maps = _best_object(above, atlas, colours, azimuth_index(rig).to(images.device))
        squares, energies = _measure(above, maps, colours)
        scores[index] = _decibel(squares.sum(-1), energies.sum(-1))
    return scores


def _best_render(above: _Above, atlas: _Atlas, colours: _Colours) -> Int[Tensor, "object view"]:
    """Choose the render that matches each view best, its bonus included, from all geometries."""
    error, energy = _errors(above, atlas, colours)
    value = _decibel(error, energy[..., None]) + atlas.bonus[None, :, :, None]
    return value.flatten(1, 2).argmax(1)


def _best_object(
    above: _Above, atlas: _Atlas, colours: _Colours, azimuth: Int[Tensor, "heading view"]
) -> Float[Tensor, "object view 3 pixel"]:
    """Choose the one object that matches all cameras best."""
    error, energy = _errors(above, atlas, colours)
    view = torch.arange(azimuth.shape[1], device=azimuth.device)
    total = error[:, :, azimuth, view].sum(-1)  # (object, geometry, heading)
    best = _decibel(total, energy[:, :, azimuth].sum(-1)).flatten(1).argmax(1)
    geometry, heading = best // len(azimuth), best % len(azimuth)
    maps: Tensor = atlas.maps[geometry[:, None], azimuth[heading]]
    return maps


@torch.no_grad()
def nearest_renders(
    images: Images, prompts: Sequence[str], *, rig: OrthographicRig | None = WORLD_RIG
) -> Images:
    """Paint the exact render that a judge compares each view with.

    Args:
        images: Views in [0, 1], one object per prompt.
        prompts: Sentences of the grammar.
        rig: Cameras of the views, which the joint judge knows; None for the per-view judge, which
            looks at each view alone.

    Returns:
        Renders in [0, 1]: with cameras the views of one object.

    Raises:
        ValueError: As :func:`joint_view_score` or :func:`per_view_score`.

    Examples:
        >>> grey = torch.full((1, 6, 3, 32, 32), 0.45)
        >>> nearest_renders(grey, ["a red cube with a white nose"]).shape
        torch.Size([1, 6, 3, 32, 32])
    """
    images = _checked(images, prompts)
    renders = torch.empty_like(images)
    for index, above, atlas, colours in _families(images, prompts):
        if rig is None:
            maps = atlas.maps.flatten(0, 1)[_best_render(above, atlas, colours)]
        else:
            maps = _best_object(above, atlas, colours, azimuth_index(rig).to(images.device))
        painted = paint(maps.unflatten(-1, (IMAGE_SIZE, IMAGE_SIZE)), colours[:, None])
        renders[index] = painted.to(images)
    return renders
