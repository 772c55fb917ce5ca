"""Join the processes of a command, or say in a line why they cannot be joined."""

import torch

from mvczigal_ref.distributed import World, world
from mvczigal_ref.errors import ConfigError

__all__ = ["join"]


def join(device: str) -> World:
    """Join the processes that a launcher started, and try their device.

    Args:
        device: "auto" for an accelerator where there is one, or a torch device.

    Returns:
        This process's place.

    Raises:
        ConfigError: If they could not be joined, or there is no such device.

    Examples:
        >>> join("cpu").is_main
        True
    """
    try:
        here = world(device)
        torch.empty(1, device=here.device)
    except (RuntimeError, AssertionError, ValueError) as error:  # torch's words for its absence
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"cannot compute on device {device!r}: {reason}") from error
    return here
