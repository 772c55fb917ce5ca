"""`pictures.heat`: the more, the brighter."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.pictures.heat import error_levels, heat

LEVEL = st.integers(0, 255)

# -- laws --------------------------------------------------------------------------------


@given(LEVEL, LEVEL)
def test_more_is_brighter(one, other):
    """In luminance, from black to pale yellow."""
    colours = heat(np.array([sorted((one, other))], np.uint8))
    luminance = np.array([0.2126, 0.7152, 0.0722]) @ colours[:, 0]

    assert colours.shape == (3, 1, 2)
    assert luminance[0] <= luminance[1] + 1e-7
    assert 0 <= colours.min() <= colours.max() <= 1


def test_an_error_is_the_mean_over_colours_of_the_absolute_difference():
    """Its sign and its channel do not matter; a quarter and more have the highest level."""
    grey = torch.full((2, 3, 1, 4), 0.5)
    other = grey.clone()
    other[1, 0, 0, 1] += 0.3
    other[1, 2, 0, 2] -= 0.3
    other[1, :, 0, 3] += 0.26
    levels = error_levels(grey, other)

    assert levels.dtype == torch.uint8
    assert levels[:, 0].tolist() == [[0] * 4, [0, 102, 102, 255]]
