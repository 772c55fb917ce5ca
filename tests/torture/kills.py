"""Kills: a run with the guard is killed at every change of a file, and goes on to the same bits."""

import os
import random
import shutil
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from mvczigal_ref.config import from_dict, to_dict
from tests.integration.killable import SERVER
from tests.integration.runs import assert_same_run, run
from tests.torture.folders import config_of
from tests.torture.tally import Tally

CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _work(values: dict, folder: str, fatal: int, pipe: Connection) -> None:
    """Run to the end, or to death just before a change of a file in the folder."""
    torch.set_num_threads(1)
    count = 0

    def hear(event: str, arguments: tuple) -> None:
        nonlocal count
        changes = event in CHANGES or (event == "open" and bool((arguments[2] or 0) & WRITING))
        if not changes or not str(arguments[0]).startswith(folder):
            return
        count += 1
        if count == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)
    run(from_dict(values), Path(folder))
    pipe.send(count)


def start(config, folder: Path, fatal: int = 0):
    """Start a run in a process of its own."""
    here, there = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=_work, args=(to_dict(config), str(folder), fatal, there))
    process.start()
    there.close()
    return process, here


def finish(process, pipe: Connection) -> int | None:
    """Wait for a run; give the number of its changes of files, None if it was killed."""
    try:
        count = pipe.recv()
    except EOFError:
        count = None
    process.join()
    pipe.close()
    assert process.exitcode == (0 if count is not None else -signal.SIGKILL), process.exitcode
    return count


def leftovers(folder: Path) -> list[str]:
    """Name what no run leaves."""
    return [p.name for p in folder.rglob(".*") if p.suffix == ".tmp" or p.name == ".lock"]


def torture(tally: Tally, chance: random.Random, count: int, folder: Path) -> None:
    """Kill at each change, or at as many as are asked for; every fifth is killed twice."""
    tally.limit = 900.0  # of three processes, on a machine that may do other work
    config, whole = config_of(folder), folder / "whole"
    events = finish(*start(config, whole))
    assert events is not None
    tally.notes["changes in a run"] = events
    moments = sorted(chance.sample(range(1, events + 1), min(count, events)))
    for place, moment in enumerate(moments):
        here = folder / "here"
        with tally.attempt(f"kill at change {moment} of {events}"):
            assert finish(*start(config, here, moment)) is None
            if place % 5 == 0:
                finish(*start(config, here, chance.randrange(1, 20)))
            assert finish(*start(config, here)) is not None
            assert_same_run(whole, here)
            assert leftovers(here) == []
        shutil.rmtree(here, ignore_errors=True)
