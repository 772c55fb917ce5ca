"""`pretraining.multiview`: the guidance scales that a distillation draws."""

import math

import pytest
import torch

from mvczigal_ref.pretraining.multiview import PretrainConfig, _guidance_scale


@pytest.mark.parametrize(
    ("draw", "median", "below_two"),
    [("uniform", 4.5, 1 / 7), ("log_uniform", math.sqrt(8), 1 / 3)],
)
def test_guidance_scales_follow_their_distribution(draw, median, below_two):
    """By hand on [1, 8]; 4,000 draws, four standard errors of a share."""
    config = PretrainConfig(guidance_draw=draw)
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([_guidance_scale(config, generator) for _ in range(4000)])

    def share(bound: float) -> float:
        return float((scales < bound).float().mean())

    assert scales.min() >= 1
    assert scales.max() <= 8
    assert share(median) == pytest.approx(1 / 2, abs=4 * math.sqrt(0.25 / 4000))
    error = math.sqrt(below_two * (1 - below_two) / 4000)
    assert share(2) == pytest.approx(below_two, abs=4 * error)
