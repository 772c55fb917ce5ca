"""A slice of every area of `nox -s torture`; the same draws each time, and all of them hold."""

import warnings

import pytest

from tests.torture.__main__ import AREAS, torture

SCALES = {
    "configurations": 0.02, "prompts": 0.1, "pictures": 0.1, "tensors": 0.03, "pickles": 0.1,
    "servers": 0.1, "clients": 0.1, "folders": 0.02, "kills": 0.02, "owners": 0.05, "trained": 0.02,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("area", AREAS)
def test_a_slice_holds(area):
    """Nothing escapes, hangs, is left behind or comes out wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tally = torture(area, scale=SCALES[area], seed=1)
    assert tally.tried >= 2
    assert tally.failures == []
