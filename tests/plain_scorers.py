"""Two smooth judges in a few lines of torch, for any image size, under names of their own."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mvczigal_ref.reward.builders import JOINT, PER_VIEW

__all__ = ["joint_score", "per_view_score", "registered"]


def per_view_score(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Likeness of every view to a wave of the prompt's own; unlike a mean, no two views share it.

    The deviation over views is that of single pixels, so fp32 rounds it to a part in a million.
    """
    edge = images.shape[-1]
    place = torch.arange(edge, device=images.device, dtype=images.dtype) * (2 * math.pi / edge)
    waves = torch.stack([_wave(prompt, place) for prompt in prompts])
    return torch.einsum("ovchw,ochw->ov", images - 0.5, waves) / edge


def joint_score(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Two, less how much neighbouring views differ, and a share of the views' own scores."""
    jumps = (images - images.roll(1, dims=1)).square().mean((1, 2, 3, 4))
    return 2.0 - jumps + 0.5 * per_view_score(images, prompts).mean(-1)


def registered(patch) -> tuple[str, str]:
    """Make both known to configurations as long as `patch` lasts, and give their names."""
    patch.setitem(PER_VIEW, "plain.per_view", lambda options: per_view_score)
    patch.setitem(JOINT, "plain.joint", lambda options: joint_score)
    return "plain.per_view", "plain.joint"


def _wave(prompt: str, place: Tensor) -> Tensor:
    """One wave per channel, some turns down and across, others for every text."""
    total = sum(ord(letter) * (1 + index) for index, letter in enumerate(prompt))
    turns = [
        (1 + total // 7**n % 3, 1 + total // 5**n % 3, float(total // 3**n % 6)) for n in range(3)
    ]
    return torch.stack(
        [torch.cos(down * place[:, None] + across * place + phase) for down, across, phase in turns]
    )
