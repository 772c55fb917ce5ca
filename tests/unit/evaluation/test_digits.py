"""`evaluation.digits`: oracle, laws."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mvczigal_ref.evaluation.digits import (
    decimals_of,
    decimals_of_size,
    gain_text,
    in_errors,
    plus_minus,
    with_error,
)
from mvczigal_ref.evaluation.scores import PairedGain

# -- oracle ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "error", "texts"),
    [
        (0.02134, 0.00071, ("0.02134", "0.00071")),
        (0.0041, 0.0014, ("0.0041", "0.0014")),
        (2.0, 0.25, ("2.00", "0.25")),
        (134.4, 12.3, ("134", "12")),
        (1.0, 0.0996, ("1.00", "0.10")),
        (0.25, 0.0, ("0.2500", "0.0000")),
        (13.62, math.inf, ("13.62", "unknown")),
        (0.0, 0.0, ("0.00", "0.00")),
    ],
)
def test_number_and_error(value, error, texts):
    """Two significant digits of the error; where there is none, two decimals or four digits."""
    assert with_error(value, error) == texts


def test_a_gain_has_its_sign():
    """A gain of the size that is published for PickScore is visible."""
    assert with_error(0.0141, 0.0012, sign=True) == ("+0.0141", "0.0012")
    assert with_error(-0.0141, 0.0012, sign=True) == ("-0.0141", "0.0012")


def test_a_gain_and_its_means_share_their_decimals():
    """Those of the error; without one there is no ratio."""
    gain = PairedGain(before=0.2131, after=0.2166, gain=0.0035, standard_error=0.0007)
    alone = PairedGain(before=10.0, after=11.0, gain=1.0, standard_error=math.nan)

    assert gain_text(gain) == ("0.21310", "0.21660", "+0.00350", "0.00070", "+5.0")
    assert gain_text(alone) == ("10.00", "11.00", "+1.00", "unknown", "")
    assert plus_minus(0.0035, 0.0007) == "0.00350 ± 0.00070"
    assert in_errors(1.0, 0.0) == in_errors(1.0, math.inf) == ""


# -- laws --------------------------------------------------------------------------------


@given(st.floats(1e-9, 1e6), st.floats(-1e3, 1e3))
def test_an_error_keeps_two_digits(error, value):
    """What is printed is the error to 5%, unless it is above 100; the value is off by less."""
    number, text = with_error(value, error)

    assert abs(float(text) - error) <= max(0.0501 * error, 0.5 * (error >= 10))
    assert abs(float(number) - value) <= max(0.0501 * error, 0.5 * (error >= 10)) + 1e-12


@given(st.floats(1e-7, 1e6), st.integers(-2, 3))
def test_a_size_keeps_four_digits_or_two_decimals(size, power):
    """At every scale, and its sign does not matter."""
    scaled = size * 10.0**power
    assume(1e-7 < scaled < 1e6)
    decimals = decimals_of_size(scaled)

    assert decimals == decimals_of_size(-scaled) >= 2
    bound = 5.01e-4 * scaled if scaled < 1 else 5.01e-3
    assert abs(float(f"{scaled:.{decimals}f}") - scaled) <= bound


@given(st.floats(1e-9, 1e3))
def test_more_error_is_fewer_decimals(error):
    """A tenth of the error is one decimal more."""
    assert decimals_of(error / 10) >= decimals_of(error)
