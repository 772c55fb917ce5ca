"""The processes of this machine that share a command's work: started, watched, ended together.

They meet in a file of a folder that only this user may read, and talk over loopback: nothing
listens to the network, and nothing that a process reads of another is run.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from mvczigal_ref.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteError,
    ReplayMismatchError,
    ZeroGradientError,
    quoted,
)
from mvczigal_ref.training.stops import handling

if TYPE_CHECKING:
    from mvczigal_ref.distributed import World

__all__ = ["PROGRAM", "REFUSED", "end_with_launcher", "join", "launch", "starts_processes"]

PROGRAM = ("-m", "mvczigal_ref")
"""Program of the processes, before the command's words."""

REFUSED = (
    ConfigError,
    CheckpointError,
    NonFiniteError,
    ReplayMismatchError,
    ZeroGradientError,
    OSError,
)
"""Errors that a process prints in one line, without a traceback."""

_LIFELINE = "MVCZIGAL_LIFELINE"  # a pipe's descriptor, whose other end closes with the launcher
_MOST_PROCESSES = 1000  # on one machine, which more of them would bring down
_GRACE = 30.0  # seconds for the others to see that one has failed
_STOPPED = 128 + signal.SIGINT  # status of a process that saved and stopped
_FAREWELL = 2.0  # seconds after a second Ctrl-C, in which they may tell how to go on
_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none
_STOPS = (signal.SIGTERM, signal.SIGINT, *(() if _HANGUP is None else (_HANGUP,)))


def starts_processes(count: int) -> bool:
    """Find out whether this process is to start others, or is one of those started.

    Args:
        count: Processes that were asked for.

    Returns:
        True where they are still to be started.

    Raises:
        ConfigError: If the count is not 1 to 1000, or a launcher has started another number.

    Examples:
        >>> starts_processes(1)
        False
    """
    if not 1 <= count <= _MOST_PROCESSES:
        raise ConfigError(f"`--processes` must be 1 to {_MOST_PROCESSES}; got {count}.")
    running = _launched()
    if count > 1 and running is not None and running != count:
        msg = f"`--processes` must be left out under a launcher; got {count}, it runs {running}."
        raise ConfigError(msg)
    return count > 1 and running is None


def _launched() -> int | None:
    """Read how many processes a launcher has started; None without one."""
    size, rank = (os.environ.get(name) for name in ("WORLD_SIZE", "RANK"))
    if size is None:
        return None
    if not size.isdecimal() or not (rank or "0").isdecimal() or int(rank or 0) >= int(size):
        msg = (
            "WORLD_SIZE and RANK must be whole numbers, the second below the first, as a launcher "
            f"sets them; got {quoted(size)} and {quoted(rank)}. Unset both, and use `--processes`."
        )
        raise ConfigError(msg)
    return int(size)


def join(device: str) -> "World":
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
    import torch

    from mvczigal_ref.distributed import world

    try:
        here = world(device)
        torch.empty(1, device=here.device)
    except (RuntimeError, AssertionError, ValueError) as error:  # torch's words for its absence
        reason = str(error).partition("\n")[0].partition(". ")[0]
        msg = (
            f"cannot compute on device {quoted(device)}: {reason}. Name one that is there, or cpu."
        )
        raise ConfigError(msg) from error
    if here.device.type == "meta":
        msg = (
            'cannot compute on device "meta", whose tensors hold no numbers. Name another, or cpu.'
        )
        raise ConfigError(msg)
    return here


def launch(count: int, words: Sequence[str]) -> int:
    """Run a command in several processes, and wait for them.

    Without ``OMP_NUM_THREADS`` they share out the cores. SIGTERM, SIGHUP and Ctrl-C reach all of
    them, so that they save and stop, however long that takes; a second Ctrl-C ends them at once.
    Where one fails, the others end, too.

    Args:
        count: Processes.
        words: The command, after the program's name.

    Returns:
        Exit status of the first that failed, 128 and the signal's number after a signal, or 0.
        Where they have stopped together, that of the one with a reason, such as 1 where the
        output's reader has gone.
    """
    lifeline, held = os.pipe()
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="mvczigal-") as folder, _stops_asked() as asked:
        try:
            for rank in range(count):
                environment = _environment(rank, count, Path(folder) / "store", lifeline)
                command = [sys.executable, *PROGRAM, *words]
                processes.append(subprocess.Popen(command, env=environment, pass_fds=(lifeline,)))
            failed = _wait(processes, asked)
        finally:
            for process in processes:
                process.kill()
                process.wait()
            os.close(lifeline)
            os.close(held)
    if failed is None:
        return 0
    if asked:
        return 128 + asked[0]
    statuses = [process.returncode for process in processes]
    if statuses[failed] == _STOPPED:  # as all of them, since one asked for it, which may say why
        failed = next((i for i, s in enumerate(statuses) if s > 0 and s != _STOPPED), failed)
    status = statuses[failed]
    if status >= 0:
        return status
    name = signal.Signals(-status).name  # it could not speak any more
    text = f"process {failed} of {count} was ended by {name}, and the others with it."
    print(f"mvczigal: error: {text}", file=sys.stderr, flush=True)
    return 128 - status


def end_with_launcher() -> None:
    """End this process as soon as the one that started it has ended, in whatever way.

    Otherwise it would train on in a folder that a second start takes for free. Does nothing in a
    process that :func:`launch` did not start.
    """
    lifeline = os.environ.pop(_LIFELINE, None)
    if lifeline is not None:
        threading.Thread(target=_outlive_no_launcher, args=(int(lifeline),), daemon=True).start()


def _outlive_no_launcher(lifeline: int) -> None:
    os.set_inheritable(lifeline, False)
    os.read(lifeline, 1)  # nobody writes: it returns when the other end is closed
    os._exit(1)


def _environment(rank: int, count: int, store: Path, lifeline: int) -> dict[str, str]:
    loopback = next(name for _, name in socket.if_nameindex() if name in ("lo", "lo0"))
    threads = str(max(1, (os.cpu_count() or 1) // count))
    return {
        "OMP_NUM_THREADS": threads,
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MVCZIGAL_STORE": str(store),  # read by `distributed.world`
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": loopback,
        _LIFELINE: str(lifeline),
    }


@contextmanager
def _stops_asked() -> Iterator[list[int]]:
    """Collect the signals that ask for a stop; one that is ignored, as under nohup, stays so."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        asked.append(number)

    heeded = [number for number in _STOPS if signal.getsignal(number) != signal.SIG_IGN]
    with handling(heeded, ask):
        yield asked


def _wait(processes: Sequence[subprocess.Popen[bytes]], asked: Sequence[int]) -> int | None:
    """Wait until all have ended, or kill those that do not; give the first that failed."""
    failed, passed_on, end = None, 0, float("inf")
    while any([process.poll() is None for process in processes]):
        if passed_on < len(asked):
            passed_on = len(asked)
            for process in processes:
                process.terminate()  # a second Ctrl-C reaches them from the terminal itself
            if signal.SIGINT in asked[1:]:
                end = min(end, time.monotonic() + _FAREWELL)
        if failed is None:
            failed = next((i for i, p in enumerate(processes) if p.returncode), None)
            if failed is not None:
                end = min(end, time.monotonic() + _GRACE)
        if time.monotonic() > end:
            for process in processes:
                process.kill()
        time.sleep(0.05)
    if failed is None:
        failed = next((i for i, p in enumerate(processes) if p.returncode), None)
    return failed
