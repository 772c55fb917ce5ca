"""Digits of a number: as many as its standard error allows, wherever numbers are shown."""

import math
from typing import NamedTuple

from mvczigal_ref.evaluation.scores import PairedGain

__all__ = [
    "GainText",
    "decimals_of",
    "decimals_of_size",
    "gain_text",
    "in_errors",
    "plus_minus",
    "with_error",
]

_ERROR_DIGITS = 2  # significant digits of a standard error
_SIZE_DIGITS = 4  # significant digits of a number below 1 whose error is unknown
_FEWEST = 2  # decimals of a larger one
_MOST = 12  # decimals of any number


class GainText(NamedTuple):
    """Cells of a paired gain, all with the decimals that its error allows."""

    before: str
    """Mean before."""

    after: str
    """Mean after."""

    gain: str
    """Gain with its sign."""

    error: str
    """Standard error of the gain."""

    ratio: str
    """Gain in standard errors; empty where the error is 0 or unknown."""


def gain_text(gain: PairedGain) -> GainText:
    """Write a paired gain.

    Args:
        gain: Means, gain and standard error.

    Returns:
        The cells.

    Examples:
        >>> gain = PairedGain(before=0.0213, after=0.0245, gain=0.0032, standard_error=0.0004)
        >>> gain_text(gain)
        GainText(before='0.02130', after='0.02450', gain='+0.00320', error='0.00040', ratio='+8.0')
    """
    error = gain.standard_error
    decimals = decimals_of(error, gain.before, gain.after)
    change = with_error(gain.gain, error, decimals=decimals, sign=True)
    before, after = (f"{mean:.{decimals}f}" for mean in (gain.before, gain.after))
    return GainText(before, after, *change, in_errors(gain.gain, error))


def in_errors(value: float, error: float) -> str:
    """Write how many standard errors a number is.

    Args:
        value: A gain.
        error: Standard error of the number.

    Returns:
        The ratio with its sign; empty where the error is 0 or not finite.

    Examples:
        >>> in_errors(-0.4, 0.1), in_errors(1.0, 0.0)
        ('-4.0', '')
    """
    return f"{value / error:+.1f}" if error and math.isfinite(error) else ""


def plus_minus(value: float, error: float, *, sign: bool = False) -> str:
    """Write a number ± its standard error.

    Args:
        value: A mean or a gain.
        error: Standard error of the number; 0 or not finite where it is unknown.
        sign: Whether a plus is written, too.

    Returns:
        Text such as ``0.02134 ± 0.00071``.

    Examples:
        >>> plus_minus(0.75, 0.124, sign=True)
        '+0.75 ± 0.12'
    """
    return " ± ".join(with_error(value, error, sign=sign))


def with_error(
    value: float, error: float, *, decimals: int | None = None, sign: bool = False
) -> tuple[str, str]:
    """Write a number and its standard error with the same decimals.

    Args:
        value: A mean or a gain.
        error: Standard error of the value; 0 or not finite where it is unknown.
        decimals: Decimals of both, where they stand beside other numbers; else those of the error.
        sign: Whether a plus is written, too.

    Returns:
        Both as text; an error that is not finite is "unknown".

    Examples:
        >>> with_error(0.02134, 0.00071)
        ('0.02134', '0.00071')
        >>> with_error(12.3456, 0.25, sign=True)
        ('+12.35', '0.25')
    """
    decimals = decimals_of(error, value) if decimals is None else decimals
    number = f"{value:{'+' if sign else ''}.{decimals}f}"
    return number, f"{error:.{decimals}f}" if math.isfinite(error) else "unknown"


def decimals_of(error: float, *values: float) -> int:
    """Count the decimals of two significant digits of a standard error.

    Args:
        error: Standard error, in the unit of the values.
        *values: Numbers whose size counts where the error is 0 or not finite.

    Returns:
        Decimals of the error and of every value that it belongs to.

    Examples:
        >>> decimals_of(0.0123), decimals_of(0.0996), decimals_of(42.0)
        (3, 2, 0)
    """
    if error == 0 or not math.isfinite(error):
        return decimals_of_size(*values)
    return _decimals(error, _ERROR_DIGITS)


def decimals_of_size(*values: float) -> int:
    """Count decimals by the largest of some numbers: two, or four significant digits below 1.

    Args:
        *values: Numbers of one unit, whose error is unknown.

    Returns:
        Decimals, at least 2.

    Examples:
        >>> decimals_of_size(13.6), decimals_of_size(0.0213), decimals_of_size()
        (2, 5, 2)
    """
    size = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return _decimals(size, _SIZE_DIGITS) if 0 < size < 1 else _FEWEST


def _decimals(size: float, digits: int) -> int:
    """Count decimals; the exponent is that of the rounded number, so 0.0996 counts as 0.10."""
    exponent = int(f"{size:.{digits - 1}e}".partition("e")[2])
    return min(max(digits - 1 - exponent, 0), _MOST)
