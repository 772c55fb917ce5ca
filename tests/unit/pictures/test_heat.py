"""`pictures.heat`: the more, the brighter."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.pictures.heat import error_map, heat

# -- laws --------------------------------------------------------------------------------


@given(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5))
def test_more_is_brighter(one, other):
    """In luminance, from black to pale yellow; numbers outside are clamped."""
    low, high = sorted((one, other))
    colours = heat(torch.tensor([[low, high]], dtype=torch.float64))
    luminance = torch.tensor([0.2126, 0.7152, 0.0722], dtype=torch.float64) @ colours[:, 0]

    assert luminance[0] <= luminance[1] + 1e-9
    assert 0 <= colours.min() <= colours.max() <= 1


def test_an_error_is_the_mean_over_colours_of_the_absolute_difference():
    """Its sign and its channel do not matter; a quarter is the brightest."""
    grey = torch.full((3, 1, 3), 0.5)
    other = grey.clone()
    other[0, 0, 1] += 0.3
    other[2, 0, 2] -= 0.3
    maps = error_map(grey, other)

    assert torch.equal(maps[:, 0, 0], heat(torch.zeros(1, 1))[:, 0, 0])
    assert torch.equal(maps[:, 0, 1], maps[:, 0, 2])
    torch.testing.assert_close(maps[:, 0, 1], heat(torch.full((1, 1), 0.4))[:, 0, 0])
