"""Digits of a number: as many as its standard error allows, for terminal and report."""

import math

__all__ = ["decimals_of", "decimals_of_size", "with_error"]

_ERROR_DIGITS = 2  # significant digits of a standard error
_SIZE_DIGITS = 4  # significant digits of a number below 1 whose error is unknown
_FEWEST = 2  # decimals of a larger one
_MOST = 12  # decimals of any number


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
