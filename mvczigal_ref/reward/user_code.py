"""Guard around the user's code: what it raises is told in a line, torch's defaults stay."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from mvczigal_ref.errors import ConfigError, one_line

__all__ = ["FAULTS", "raised", "unchanged_defaults"]

FAULTS = (Exception, SystemExit)
"""Errors of a user's code that are told: a script's `sys.exit()` must not end a run as if it were
done."""


@contextmanager
def unchanged_defaults(begin: str) -> Iterator[None]:
    """Run a user's code, and refuse it where it changes what the whole run computes in.

    Args:
        begin: Beginning of the message, which names the setting.

    Yields:
        Nothing; torch's default dtype, default device and gradient mode are afterwards what they
        were before.

    Raises:
        ConfigError: If the code has changed the default dtype or device.

    Examples:
        >>> with unchanged_defaults("`reward.per_view` = 'my.py:score'"):
        ...     torch.set_default_dtype(torch.float64)
        Traceback (most recent call last):
        mvczigal_ref.errors.ConfigError: `reward.per_view` = 'my.py:score' must leave torch's \
default dtype as it is; it set torch.float64, which the run would compute in. Give `dtype=` where \
you make tensors.
    """
    grad, before = torch.is_grad_enabled(), (torch.get_default_dtype(), torch.get_default_device())
    try:
        yield
    finally:
        after = (torch.get_default_dtype(), torch.get_default_device())
        torch.set_grad_enabled(grad)
        if after[0] != before[0]:
            torch.set_default_dtype(before[0])
        if after[1] != before[1]:
            torch.set_default_device(before[1])
    for name, old, new in zip(("dtype", "device"), before, after, strict=True):
        if old != new:
            msg = (
                f"{begin} must leave torch's default {name} as it is; it set {new}, which the run "
                f"would compute in. Give `{name}=` where you make tensors."
            )
            raise ConfigError(msg)


def raised(error: BaseException, function: Callable[..., object]) -> str:
    """Say in a line what a function has raised, and in which line of which file.

    Args:
        error: Exception that a call of the function has raised.
        function: The function.

    Returns:
        A part of a sentence, from "it raised" on.

    Examples:
        >>> raised(KeyError("colour"), len)
        "it raised KeyError: 'colour'"
    """
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is the call here
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    text = one_line(error)
    hint = "; it is a class, so name an instance of it" if isinstance(function, type) else ""
    return f"it raised {type(error).__name__}: {text}{place}{hint}"
