"""`report.words`: sentences hold what was measured, with the digits that its error allows."""

import pytest

from mvczigal_ref.evaluation.scores import PairedGain
from mvczigal_ref.report.words import headline

# -- laws --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gain", "error", "said"),
    [
        (1.0, 0.4, "rose by 1.00 ± 0.40"),
        (-1.0, 0.4, "fell by 1.00 ± 0.40"),
        (1.0, 0.6, "did not change clearly (+1.00 ± 0.60)"),
        (1.0, float("nan"), "did not change clearly (+1.00 ± unknown)"),
    ],
)
def test_a_change_is_one_from_two_standard_errors(gain, error, said):
    """Less is not called a change, nor is one whose error is unknown."""
    one = PairedGain(before=-9.0, after=gain - 9.0, gain=gain, standard_error=error)

    assert headline({"joint view": one}, finished=3, unit="") == (
        f"The joint-view score {said} in 3 iterations."
    )


def test_a_small_reward_keeps_its_digits():
    """Gains of the size that is published for PickScore are not 0.00."""
    gain = PairedGain(before=0.2131, after=0.2166, gain=0.0035, standard_error=0.0007)

    assert headline({"per view": gain}, finished=9, unit="") == (
        "The per-view score rose by 0.00350 ± 0.00070 in 9 iterations."
    )
