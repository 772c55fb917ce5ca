"""Durations as people write them."""

__all__ = ["duration"]


def duration(seconds: float) -> str:
    """Write a duration in hours, minutes and seconds.

    Args:
        seconds: Length of time [s]; at least 0.

    Returns:
        Words, from the first part that is not 0.

    Examples:
        >>> duration(4.2), duration(300.4), duration(7310.0)
        ('4 s', '5 min 0 s', '2 h 1 min 50 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min {rest} s"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
