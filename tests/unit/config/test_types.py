"""`config.types`: a law."""

import pytest

from mvczigal_ref.config import scorer_weights


@pytest.mark.parametrize(
    ("scorers", "weights"),
    [("a", {"a": 1.0}), ({"a": 2.0, "b": -1.0}, {"a": 2.0, "b": -1.0})],
)
def test_a_bare_name_has_the_weight_1(scorers, weights):
    """And others the weight that is written."""
    assert scorer_weights(scorers) == weights
