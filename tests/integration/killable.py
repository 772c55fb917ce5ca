"""A run in a process of its own, which tells how far it is and may be killed.

A server that has imported everything and computed nothing forks one process a run: it costs
milliseconds, and no thread of torch's is copied half-way through.
"""

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from mvczigal_ref.config import from_dict, to_dict
from mvczigal_ref.training import checkpoint, tensor_groups
from mvczigal_ref.training.events import Events
from tests.integration.runs import run

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", __name__])


class Reports(Events):
    """Sends a word through a pipe whenever something begins or ends."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe

    def stage(self, text):
        self.pipe.send("stage")

    def iteration(self, finished, total, metrics):
        self.pipe.send("iteration")


def _slowly(function, seconds):
    """Take a while before and after."""

    def call(*args, **kwargs):
        time.sleep(seconds)
        result = function(*args, **kwargs)
        time.sleep(seconds)
        return result

    return call


def _work(values: dict, folder: str, slow: float, pipe: Connection) -> None:
    """Run to the end, with each change of a checkpoint's files slowed down."""
    torch.set_num_threads(1)
    events = Reports(pipe)
    if slow:
        checkpoint.sync = _slowly(checkpoint.sync, slow)
        Path.rename = _slowly(Path.rename, slow)
        save = tensor_groups.save_file
        tensor_groups.save_file = lambda *args: (pipe.send("save"), save(*args))
    run(from_dict(values), Path(folder), events=events)


def start(config, folder, *, slow=0.0):
    """Start a run; give its process and the pipe through which it reports."""
    here, there = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=_work, args=(to_dict(config), str(folder), slow, there))
    process.start()
    there.close()
    return process, here


def kill_after(process, pipe, word: str, count: int, delay: float) -> bool:
    """Kill a run some time after it has said a word so often; say whether it was still alive."""
    try:
        while count:
            count -= pipe.recv() == word
    except EOFError:
        delay = 60.0  # it has ended, or is about to
    process.join(delay)
    alive = process.exitcode is None
    if alive:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    pipe.close()
    assert process.exitcode == (-signal.SIGKILL if alive else 0)
    return alive
