"""The scorer protocols: what counts as a scorer."""

import pytest
import torch

from mvczigal_ref.reward.protocols import JointViewScorer, PerViewScorer


def brightness(images, prompts):
    """Score a view by its mean, whatever the prompt."""
    return images.mean(dim=(2, 3, 4))


@pytest.mark.parametrize("protocol", [JointViewScorer, PerViewScorer])
def test_any_callable_is_a_scorer(protocol):
    """A plain function is enough; an object that cannot be called is not."""
    assert isinstance(brightness, protocol)
    assert not isinstance("brightness", protocol)


def test_a_scorer_serves_where_the_protocol_is_asked_for():
    """Called by position with images and prompts, it returns one number per view."""
    scorer: PerViewScorer = brightness
    images = torch.stack([torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)])

    assert scorer(images, ["black", "white"]).tolist() == [[0.0, 0.0], [1.0, 1.0]]
