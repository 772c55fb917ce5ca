"""Start the processes that share a command's work on this machine."""

import logging
import os
import sys
import uuid
from collections.abc import Sequence

from mvczigal_ref.errors import ConfigError

__all__ = ["PROGRAM", "launch", "starts_processes"]

PROGRAM = ("-m", "mvczigal_ref")
"""What the processes run, before the command's words."""

_PATIENCE = 900  # seconds that a stop may take: the processes end their iteration and save


def starts_processes(count: int) -> bool:
    """Find out whether this process is to start others, or is one of those started.

    Args:
        count: Processes that were asked for.

    Returns:
        True where they are still to be started.

    Raises:
        ConfigError: If the count is below 1, or a launcher has started another number.

    Examples:
        >>> starts_processes(1)
        False
    """
    if count < 1:
        raise ConfigError(f"`--processes` must be at least 1; got {count}.")
    running = os.environ.get("WORLD_SIZE")
    if count > 1 and running is not None and int(running) != count:
        msg = f"`--processes` must be left out under a launcher; got {count}, it runs {running}."
        raise ConfigError(msg)
    return count > 1 and running is None


def launch(count: int, words: Sequence[str]) -> int:
    """Run a command in several processes, by torch's own launcher, and wait for them.

    They meet on loopback. Without ``OMP_NUM_THREADS`` they share out the cores.

    Args:
        count: Processes.
        words: The command, after the program's name.

    Returns:
        Exit status of the first that failed, 128 and the signal's number after a signal, or 0.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.ERROR)  # the processes say themselves why they end
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=uuid.uuid4().hex,
        rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1", max_restarts=0,
        shutdown_timeout=_PATIENCE,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)(*PROGRAM, *words)
    except ChildFailedError as failed:
        place, failure = failed.get_first_failure()
        if failure.exitcode < 0:  # it could not speak any more
            print(f"mvczigal: process {place} was ended: {failure.message}", file=sys.stderr)
            return 128 - int(failure.exitcode)
        return int(failure.exitcode)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    finally:
        logging.disable(logging.NOTSET)
    return 0
