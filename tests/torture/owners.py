"""Two owners: of two processes that train into one folder one is refused, and no bit is lost."""

import random
import shutil
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from mvczigal_ref.config import from_dict, to_dict
from mvczigal_ref.errors import RunFolderInUseError
from tests.integration.killable import SERVER
from tests.integration.runs import assert_same_run, run
from tests.torture.folders import config_of
from tests.torture.kills import leftovers
from tests.torture.tally import Tally, require_line


def _work(values: dict, folder: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    try:
        run(from_dict(values), Path(folder))
    except RunFolderInUseError as error:
        pipe.send(str(error))
    else:
        pipe.send("done")


def _start(config, folder: Path):
    here, there = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=_work, args=(to_dict(config), str(folder), there))
    process.start()
    there.close()
    return process, here


def _end(process, pipe: Connection) -> str:
    """Wait for a run and give its word."""
    try:
        word = pipe.recv()
    except EOFError:
        word = "killed"
    process.join()
    pipe.close()
    return word


def torture(tally: Tally, _: random.Random, count: int, folder: Path) -> None:
    """Start the second at once or somewhat later; sometimes kill the first."""
    tally.limit = 900.0  # of two processes, on a machine that may do other work
    config, whole = config_of(folder, iterations=2), folder / "whole"
    run(config, whole)
    for place, chance in tally.places(count):
        here, killed = folder / "here", place % 3 == 2
        with tally.attempt(f"{'killed' if killed else 'alive'} {place}"):
            first, one = _start(config, here)
            time.sleep(chance.choice([0.0, 0.05, 0.5, chance.uniform(0, 3)]))
            if killed:
                first.kill()
            second, two = _start(config, here)
            try:
                answers = [_end(first, one), _end(second, two)]
            finally:
                first.kill()
                second.kill()
            refused = [answer for answer in answers if answer not in ("done", "killed")]
            tally.note("refused") if refused else None
            assert "done" in answers, answers
            for answer in refused:
                require_line(answer, str(here))
            assert not (killed and refused), answers
            assert_same_run(whole, here)
            assert leftovers(here) == []
        shutil.rmtree(here, ignore_errors=True)
